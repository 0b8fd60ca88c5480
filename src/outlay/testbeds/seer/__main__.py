"""Train, measure and save a seer: `python -m outlay.testbeds.seer --size S --out DIR`.

Writes the checkpoint (safetensors, fp16), `measured.json` with what training and held-out scenes
showed, and a model card; fails if size S misses a target of `check.py`. The defaults make what is
shipped: size S from scratch, the others from the shipped S.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from outlay.testbeds.command import prepare
from outlay.testbeds.watched import progress_bar


def main(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    size: Annotated[str, typer.Option(help="S, M, HR or V.")] = "S",
    seed: Annotated[int, typer.Option(help="Of weights and data.")] = 0,
    tower_steps: Annotated[int | None, typer.Option(help="Steps of the tower.")] = None,
    llm_steps: Annotated[int | None, typer.Option(help="Steps of the language model.")] = None,
    start: Annotated[
        Path | None, typer.Option(help="Seer of size S to start from; the shipped one without it.")
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; part of the recipe.")] = 1,
    scenes: Annotated[int, typer.Option(help="Held-out scenes to measure on.")] = 1000,
    measure_only: Annotated[bool, typer.Option(help="Measure what is in the folder.")] = False,
) -> None:
    """Train a seer, measure it on held-out scenes and save it."""
    from outlay.testbeds.seer.card import measure, save
    from outlay.testbeds.seer.check import holds
    from outlay.testbeds.seer.model import size_of
    from outlay.testbeds.seer.recipe import DEFAULTS
    from outlay.testbeds.seer.store import load, record
    from outlay.testbeds.seer.train import train

    prepare(threads)
    if not measure_only:
        size_of(size)
        config = replace(DEFAULTS[size], seed=seed)
        if tower_steps is not None:
            config = replace(config, tower_steps=tower_steps)
        if llm_steps is not None:
            config = replace(config, llm_steps=llm_steps)
        first = None if size == "S" else load("S", start)
        with progress_bar() as bar:
            jobs = {
                stage: bar.add_task(stage, total=steps, loss=float("nan"))
                for stage, steps in (("tower", config.tower_steps), ("llm", config.llm_steps))
            }

            def report(stage: str, step: int, loss: float) -> None:
                bar.update(jobs[stage], completed=step, loss=loss)

            seer, training = train(config, first, report)
        save(out, seer, config, training)
        typer.echo(f"saved to {out}")
    measure(out, scenes)
    typer.echo((out / "README.md").read_text(encoding="utf-8"))
    found = record(out)
    if found["config"]["size"] == "S" and not all(holds(found["check"]).values()):
        typer.echo("targets are missed", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
