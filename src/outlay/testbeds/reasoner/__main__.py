"""Train, measure and save a reasoner: `python -m outlay.testbeds.reasoner --out DIR`.

Writes the checkpoint (safetensors and tokenizer), `measured.json` with its accuracy tables, and a
model card. The defaults make the shipped checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outlay.testbeds.command import prepare, show
from outlay.testbeds.reasoner.corpus import Mix
from outlay.testbeds.reasoner.train import TrainConfig
from outlay.testbeds.watched import watched

DEFAULTS = TrainConfig()


def main(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = DEFAULTS.steps,
    seed: Annotated[int, typer.Option(help="Of weights, data and order.")] = DEFAULTS.seed,
    hidden: Annotated[int, typer.Option(help="Width of the model.")] = DEFAULTS.hidden,
    layers: Annotated[int, typer.Option(help="Number of layers.")] = DEFAULTS.layers,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = DEFAULTS.lr,
    batch_tokens: Annotated[
        int, typer.Option(help="Tokens per step, padding included.")
    ] = DEFAULTS.batch_tokens,
    joined: Annotated[
        float, typer.Option(help="Share of problems of several chains.")
    ] = DEFAULTS.mix.joined,
    detour: Annotated[
        float, typer.Option(help="Share of two-hop recall that is led astray and follows.")
    ] = DEFAULTS.mix.detour,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; part of the recipe.")] = 1,
    problems: Annotated[
        int, typer.Option(help="Problems per cell of the tables; 0 measures nothing.")
    ] = 100,
) -> None:
    """Train a reasoner from scratch, measure it and save it."""
    import torch

    from outlay.testbeds.reasoner.card import save
    from outlay.testbeds.reasoner.evaluate import table
    from outlay.testbeds.reasoner.train import train

    prepare(threads)
    config = TrainConfig(
        steps=steps,
        seed=seed,
        hidden=hidden,
        layers=layers,
        lr=lr,
        batch_tokens=batch_tokens,
        mix=Mix(joined=joined, detour=detour),
    )
    with watched(steps) as report:
        model, tokenizer = train(config, report, device=device)
    rows = []
    if problems:
        typer.echo("measuring on held-out problems ...")
        rows = table(model, tokenizer, config.world, config.mix.modulus, n=problems)
    where = f"{threads} CPU thread(s) of a shared machine"
    if device != "cpu":
        where = torch.cuda.get_device_name()
    save(out, model, tokenizer, config, rows, report.last, where)
    show(out)


if __name__ == "__main__":
    typer.run(main)
