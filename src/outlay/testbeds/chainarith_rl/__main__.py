"""Train, measure and save a starting policy: `python -m outlay.testbeds.chainarith_rl --out DIR`.

Writes the checkpoint (safetensors and tokenizer), `measured.json` with its tables, and a model
card. The defaults make the shipped checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outlay.testbeds.chainarith_rl.train import TrainConfig
from outlay.testbeds.command import prepare, show
from outlay.testbeds.watched import watched

DEFAULTS = TrainConfig()


def main(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    steps: Annotated[
        int, typer.Option(help="Length of the learning rate's schedule.")
    ] = DEFAULTS.steps,
    stop: Annotated[int, typer.Option(help="Steps taken of it.")] = DEFAULTS.stop,
    settle: Annotated[
        int, typer.Option(help="From this step on, batches mix all lengths.")
    ] = DEFAULTS.settle,
    seed: Annotated[int, typer.Option(help="Of weights, data and order.")] = DEFAULTS.seed,
    hidden: Annotated[int, typer.Option(help="Width of the model.")] = DEFAULTS.hidden,
    layers: Annotated[int, typer.Option(help="Number of layers.")] = DEFAULTS.layers,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = DEFAULTS.lr,
    batch_tokens: Annotated[
        int, typer.Option(help="Tokens per step, padding included.")
    ] = DEFAULTS.batch_tokens,
    threads: Annotated[int, typer.Option(help="CPU threads; part of the recipe.")] = 1,
    problems: Annotated[
        int, typer.Option(help="Problems per cell of the tables; 0 measures nothing.")
    ] = 100,
) -> None:
    """Train a starting policy from scratch, measure it and save it."""
    from outlay.testbeds.chainarith_rl.card import save
    from outlay.testbeds.chainarith_rl.evaluate import cuts, table
    from outlay.testbeds.chainarith_rl.train import train

    prepare(threads)
    config = TrainConfig(
        steps=steps,
        stop=stop,
        settle=settle,
        seed=seed,
        hidden=hidden,
        layers=layers,
        lr=lr,
        batch_tokens=batch_tokens,
    )
    with watched(stop) as report:
        model, tokenizer = train(config, report)
    rows, cut = [], {}
    if problems:
        typer.echo("measuring on held-out problems ...")
        rows = table(model, tokenizer, n=problems)
        cut = cuts(model, tokenizer, n=problems)
    where = f"{threads} CPU thread(s) of a shared machine"
    save(out, model, tokenizer, config, rows, cut, report.last, where)
    show(out)


if __name__ == "__main__":
    typer.run(main)
