"""Inputs of every family of models, and labelled batches, for the tests of CoViPAL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tests.vision.tiny_vlms import IMAGE, llava, llava_inputs, llava_next, onevision, qwen


@dataclass(frozen=True)
class Case:
    """A model, its inputs, and how many visual tokens a row has."""

    model: Any
    inputs: dict[str, Any]
    visual: int


def plain() -> Case:
    return Case(llava(), llava_inputs(2), 16)


def tiles() -> Case:
    model = llava_next()
    sizes = torch.tensor([[32, 64], [32, 64]])
    pictures = torch.randn(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    count = len(model.get_image_features(pictures, image_sizes=sizes).pooler_output[0])
    row = [1, *[IMAGE] * count, 9, 10, 11]
    ids = torch.tensor([row, [*row[:-1], 12]])
    return Case(model, {"input_ids": ids, "pixel_values": pictures, "image_sizes": sizes}, count)


def mosaic() -> Case:
    model = onevision()
    pictures = torch.randn(1, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[32, 64]])
    count = len(model.get_image_features(pictures, image_sizes=sizes).pooler_output[0])
    ids = torch.tensor([[1, *[IMAGE] * count, 9, 10]])
    return Case(model, {"input_ids": ids, "pixel_values": pictures, "image_sizes": sizes}, count)


def grid() -> Case:
    patches = torch.randn(64, 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 5, *[IMAGE] * 16, 6, 9, 10]])
    given = {
        "input_ids": ids,
        "pixel_values": patches,
        "image_grid_thw": torch.tensor([[1, 8, 8]]),
        "mm_token_type_ids": (ids == IMAGE).int(),
    }
    return Case(qwen(), given, 16)


FAMILIES: dict[str, Callable[[], Case]] = {
    "llava": plain,
    "llava-next": tiles,
    "onevision": mosaic,
    "qwen2.5-vl": grid,
}


def labelled(rows: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """LLaVA's inputs whose last token is the answer."""
    batch = llava_inputs(rows, seed=seed)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -1] = batch["input_ids"][:, -1]
    return {**batch, "labels": labels}
