"""Train, measure and save a searcher: `python -m outlay.testbeds.searcher --out DIR`.

Writes the checkpoint (safetensors and tokenizer), `measured.json` with its accuracies, and a model
card with the command that made it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outlay.testbeds.command import prepare, show
from outlay.testbeds.searcher.train import TrainConfig
from outlay.testbeds.watched import progress_bar

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
    primer: Annotated[
        int, typer.Option(help="Examples at the start that recite their question.")
    ] = DEFAULTS.primer,
    ramp: Annotated[int, typer.Option(help="Examples over which trees then grow.")] = DEFAULTS.ramp,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; none chooses.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that make examples.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; part of the recipe.")] = 1,
    problems: Annotated[int, typer.Option(help="Problems measured; 0 measures nothing.")] = 400,
) -> None:
    """Train a searcher from scratch, measure it and save it."""
    import torch

    from outlay.models.local import choose_device
    from outlay.testbeds.searcher.card import save
    from outlay.testbeds.searcher.evaluate import table
    from outlay.testbeds.searcher.train import train
    from outlay.testbeds.tiny_llama import Progress

    prepare(threads)
    config = TrainConfig(
        steps=steps,
        seed=seed,
        hidden=hidden,
        layers=layers,
        lr=lr,
        batch_tokens=batch_tokens,
        primer=primer,
        ramp=ramp,
    )
    target = choose_device(device)
    last: list[Progress] = []
    recent: list[float] = []
    with progress_bar() as bar:
        job = bar.add_task("training", total=steps, loss=float("nan"))

        def report(state: Progress) -> None:
            last[:] = [state]
            recent.append(state.loss)
            del recent[:-100]
            bar.update(job, completed=state.step, loss=sum(recent) / len(recent))
            if state.step % max(1, steps // 20) == 0:
                bar.console.print(
                    f"step {state.step}: loss {sum(recent) / len(recent):.3f}, "
                    f"{state.tokens:,} tokens, {state.seconds:.0f} s"
                )

        model, tokenizer = train(config, report, device=target, workers=workers)
    rows = []
    if problems:
        typer.echo("measuring on held-out problems ...")
        rows = table(model.to(target), tokenizer, problems)
        model.to("cpu")
    name = torch.cuda.get_device_name(target) if target.type == "cuda" else f"{threads} CPU threads"
    save(out, model, tokenizer, config, rows, last[0], device=name, workers=workers)
    show(out)


if __name__ == "__main__":
    typer.run(main)
