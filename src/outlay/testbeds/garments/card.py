"""Saving the garment classifier with its measurements and its model card.

The card is written from the configuration and the measured rows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from outlay.testbeds.cards import save_card, save_parts
from outlay.testbeds.garments.evaluate import Row, as_records
from outlay.testbeds.garments.scenes import CLASSES
from outlay.testbeds.garments.train import Progress, TrainConfig

if TYPE_CHECKING:
    from transformers import ViTForImageClassification

_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-classification
datasets: [fashion_mnist]
---

# A tiny garment classifier

A ViT of {parameters:,} parameters ({layers} blocks, width {hidden}, {heads} heads, patches of
{patch} pixels: {patches} and a class token), trained from scratch on Fashion-MNIST garments (MIT)
and scikit-learn digits pasted at random on textured canvases of {side} pixels. Most of a picture is
background, as in photographs, so it exists for experiments on dropping and merging tokens.

    from outlay.testbeds import garments
    model = garments.load()
    scenes = garments.scenes(garments.World(sizes=(28,)), 100)
    model(pixel_values=scenes.tensor()).logits

The {classes} classes are ten garments and ten digits. Weights are stored in float16.

## How it was made

    python -m outlay.testbeds.garments --out DIR --steps {steps} --seed {seed} --hidden {hidden} \\
        --layers {layers} --heads {heads} --patch {patch} --lr {lr} --batch {batch}

{steps} steps of AdamW, {images:,} scenes, {minutes:.1f} CPU minutes on {where}, loss of the last
step {loss:.3f}. The loss is cross-entropy of the class token, and {weight} times that of every
patch's own label (token labelling); the patches' head is not part of the checkpoint. Sizes of
objects in training: {sizes} pixels; {digits:.0%} of the scenes show digits. Test garments and
digits were never trained on.

## Measured on unseen objects

{measured}

## Limits

It knows these canvases and nothing else. Garments of 28 pixels cover few patches; shirts, coats,
pullovers and t-shirts are often confused.
"""


def save(
    out: Path,
    model: ViTForImageClassification,
    config: TrainConfig,
    rows: Sequence[Row],
    progress: Progress,
    where: str,
) -> None:
    """Write checkpoint, `measured.json` and README.md into `out`."""
    model.config._attn_implementation = "sdpa"  # training used eager attention; loading decides
    save_parts(out, model.to(torch.float16))
    record = {
        "config": asdict(config),
        "training": asdict(progress),
        "rows": as_records(rows),
    }
    card = _CARD.format(
        parameters=model.num_parameters(),
        layers=config.layers,
        hidden=config.hidden,
        heads=config.heads,
        patch=config.patch,
        patches=(config.world.side // config.patch) ** 2,
        side=config.world.side,
        classes=len(CLASSES),
        steps=config.steps,
        seed=config.seed,
        lr=config.lr,
        batch=config.batch,
        images=progress.images,
        minutes=progress.cpu_seconds / 60,
        where=where,
        loss=progress.loss,
        weight=config.patches,
        sizes=", ".join(map(str, config.world.sizes)),
        digits=config.world.digits,
        measured=_measured(rows),
    )
    save_card(out, record, card)


def _measured(rows: Sequence[Row]) -> str:
    if not rows:
        return "Not measured: trained with `--scenes 0`."
    lines = ["| world | accuracy | patches covered | scenes |", "|---|---:|---:|---:|"]
    lines += [f"| {r.world} | {r.accuracy:.3f} | {r.covered:.0%} | {r.n} |" for r in rows]
    return "\n".join(lines)
