"""How well a classifier knows scenes that it has not seen.

Shapes: B scenes, N patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from outlay.testbeds.garments.scenes import Scenes, World, scenes

if TYPE_CHECKING:
    from transformers import ViTForImageClassification

SEED = 1_000_003  # of the scenes that cards report
WORLDS = {
    "garments, 28 px": World(sizes=(28,), seed=SEED),
    "garments, 56 px": World(sizes=(56,), seed=SEED),
    "digits, 28 px": World(sizes=(28,), digits=1.0, seed=SEED),
    "digits, 56 px": World(sizes=(56,), digits=1.0, seed=SEED),
}


@dataclass(frozen=True)
class Row:
    """One world.

    Args:
        world: its name.
        accuracy: share of scenes whose object is named.
        covered: mean share of patches that the object covers, by more than 8 %.
        n: scenes.
    """

    world: str
    accuracy: float
    covered: float
    n: int


@torch.inference_mode()
def accuracy(model: ViTForImageClassification, shown: Scenes, batch: int = 128) -> float:
    """Share of scenes whose object the model names."""
    pixels_BCHW = shown.tensor()
    said = torch.cat(
        [model(pixel_values=part).logits.argmax(-1) for part in pixels_BCHW.split(batch)]
    )
    return float((said == shown.labels_B).double().mean())


def table(model: ViTForImageClassification, n: int) -> list[Row]:
    """Every world of `WORLDS`, on test scenes."""
    rows = []
    for name, world in WORLDS.items():
        shown = scenes(world, n)
        covered = shown.covered(model.config.patch_size) > 0.08
        rows.append(Row(name, accuracy(model, shown), float(covered.float().mean()), n))
    return rows


def as_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """JSON-ready rows."""
    return [asdict(row) for row in rows]
