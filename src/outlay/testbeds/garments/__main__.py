"""Train, measure and save a classifier: `python -m outlay.testbeds.garments --out DIR`.

Writes the checkpoint (safetensors, float16), `measured.json` and a model card. The defaults make
the shipped checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outlay.testbeds.command import show
from outlay.testbeds.garments.train import TrainConfig
from outlay.testbeds.watched import watched

DEFAULTS = TrainConfig()


def main(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = DEFAULTS.steps,
    seed: Annotated[int, typer.Option(help="Of weights, data and order.")] = DEFAULTS.seed,
    hidden: Annotated[int, typer.Option(help="Width of the model.")] = DEFAULTS.hidden,
    layers: Annotated[int, typer.Option(help="Number of blocks.")] = DEFAULTS.layers,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = DEFAULTS.heads,
    patch: Annotated[int, typer.Option(help="Side of a patch in pixels.")] = DEFAULTS.patch,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = DEFAULTS.lr,
    batch: Annotated[int, typer.Option(help="Scenes a step.")] = DEFAULTS.batch,
    threads: Annotated[int, typer.Option(help="CPU threads; part of the recipe.")] = 1,
    scenes: Annotated[
        int, typer.Option(help="Scenes of each world of the table; 0 measures nothing.")
    ] = 2000,
) -> None:
    """Train a classifier from scratch, measure it and save it."""
    import torch

    from outlay.testbeds.garments.card import save
    from outlay.testbeds.garments.evaluate import table
    from outlay.testbeds.garments.train import train

    torch.set_num_threads(threads)
    config = TrainConfig(
        steps=steps,
        seed=seed,
        hidden=hidden,
        layers=layers,
        heads=heads,
        patch=patch,
        lr=lr,
        batch=batch,
    )
    with watched(steps) as report:
        model = train(config, report)
    model.to(torch.float16).to(torch.float32)  # what is measured is what is stored
    rows = table(model, scenes) if scenes else []
    save(out, model, config, rows, report.last, f"{threads} thread(s) of a shared machine")
    show(out)


if __name__ == "__main__":
    typer.run(main)
