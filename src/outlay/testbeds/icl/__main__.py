"""Train, measure and save the in-context model: `python -m outlay.testbeds.icl --out DIR`.

Writes the checkpoint (safetensors and tokenizer), `measured.json` with its accuracies, and a model
card. With `--controller DIR` it also collects labels and trains the DynaICL controller that is
shipped beside it. The defaults make what is shipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outlay.testbeds.command import prepare
from outlay.testbeds.icl.train import TrainConfig
from outlay.testbeds.watched import watched

DEFAULTS = TrainConfig()


def main(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = DEFAULTS.steps,
    seed: Annotated[int, typer.Option(help="Of weights and data.")] = DEFAULTS.seed,
    hidden: Annotated[int, typer.Option(help="Width of the model.")] = DEFAULTS.hidden,
    layers: Annotated[int, typer.Option(help="Number of layers.")] = DEFAULTS.layers,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = DEFAULTS.lr,
    batch: Annotated[int, typer.Option(help="Sequences per step.")] = DEFAULTS.batch,
    threads: Annotated[int, typer.Option(help="CPU threads; part of the recipe.")] = 1,
    rules: Annotated[int, typer.Option(help="Rules per measured cell; 0 measures nothing.")] = 500,
    controller: Annotated[
        Path | None, typer.Option(help="Folder for a DynaICL controller; none without it.")
    ] = None,
    inputs: Annotated[int, typer.Option(help="Labelled inputs of the controller.")] = 600,
) -> None:
    """Train the in-context model from scratch, measure it and save it."""
    from outlay.testbeds.icl.answers import Answerer
    from outlay.testbeds.icl.card import save
    from outlay.testbeds.icl.evaluate import table
    from outlay.testbeds.icl.labels import train_controller
    from outlay.testbeds.icl.train import train

    prepare(threads)
    config = TrainConfig(steps=steps, seed=seed, hidden=hidden, layers=layers, lr=lr, batch=batch)
    with watched(steps) as report:
        model, tokenizer = train(config, report)
    ask = Answerer(model)
    save(out, model, tokenizer, config, table(ask, rules) if rules else [], report.last)
    typer.echo((out / "README.md").read_text())
    if controller is not None:
        train_controller(ask, inputs).save(controller)
        typer.echo(f"controller saved to {controller}")
    typer.echo(f"saved to {out}")


if __name__ == "__main__":
    typer.run(main)
