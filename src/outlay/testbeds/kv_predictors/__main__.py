"""Train, measure and save pairs: `python -m outlay.testbeds.kv_predictors --out DIR`.

For every `--keep` one process trains auxiliary and predictor, then the same auxiliary by itself on
the same rows, measures both and writes a folder `aux<keep>` with the pair, the rival, the curves
(`curves.json`), the figures (`measured.json`) and a model card. `--lora-r 0` trains all weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outlay.testbeds.kv_predictors.train import PairConfig

DEFAULTS = PairConfig()


def main(
    out: Annotated[Path, typer.Option(help="Folder for the pairs.")],
    keep: Annotated[list[int], typer.Option(help="Layers of the auxiliary; repeat it.")] = [15],  # noqa: B006
    rows: Annotated[
        Path | None, typer.Option(help="Prepared rows; made from local text without.")
    ] = None,
    rows_only: Annotated[bool, typer.Option(help="Only write the rows to --rows.")] = False,
    count: Annotated[int, typer.Option(help="Rows of 512 tokens to prepare.")] = 20_000,
    seconds: Annotated[float, typer.Option(help="Of a pair's training; 0 for no limit.")] = 0.0,
    steps: Annotated[int, typer.Option(help="Optimiser steps at most.")] = DEFAULTS.steps,
    batch: Annotated[int, typer.Option(help="Rows per step.")] = DEFAULTS.batch,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = DEFAULTS.lr,
    lora_r: Annotated[int, typer.Option(help="Rank; 0 trains all weights.")] = DEFAULTS.lora_r,
    seed: Annotated[int, typer.Option(help="Of weights and order.")] = DEFAULTS.seed,
    measure: Annotated[int, typer.Option(help="Prompts of each measured kind.")] = 256,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; chosen without.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of each process.")] = 1,
) -> None:
    """Train auxiliaries and predictors of the embedded model."""
    import multiprocessing

    from outlay.testbeds.kv_predictors.job import Job, prepare, run

    prepared = prepare(rows or out / "rows.safetensors", count)
    if rows_only:
        typer.echo(f"rows in {prepared}")
        return
    jobs = [
        Job(
            out / f"aux{layers}",
            prepared,
            PairConfig(
                keep=layers,
                lora_r=lora_r,
                seconds=seconds,
                steps=steps,
                batch=batch,
                lr=lr,
                seed=seed,
            ),
            measure,
            device,
            threads,
        )
        for layers in keep
    ]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=run, args=(job,)) for job in jobs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failed := [job.out.name for job, w in zip(jobs, workers, strict=True) if w.exitcode]:
        typer.echo(f"failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)
    for job in jobs:
        typer.echo((job.out / "README.md").read_text())


if __name__ == "__main__":
    typer.run(main)
