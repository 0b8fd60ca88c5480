"""`outlay compare`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from outlay.cli import AsJson, errors, show_json
from outlay.cli.running import (
    Counted,
    Examples,
    Fresh,
    Judge,
    ModelSpec,
    Out,
    Scorer,
    Seed,
    Seeds,
    Temperature,
    VerifierSpec,
    Workers,
    progress_bars,
    show_comparison,
)
from outlay.errors import InputError


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def compare(
        runfile: Annotated[
            Path | None, typer.Argument(help="A TOML run file; without it, use --task.")
        ] = None,
        task: Annotated[str | None, typer.Option(help="A task's spec.")] = None,
        method: Annotated[
            list[str] | None, typer.Option(help="A stack's spec; give it several times.")
        ] = None,
        budget: Annotated[
            list[int] | None, typer.Option(help="Token budget; give it several times.")
        ] = None,
        model: ModelSpec = "embedded",
        axis: Annotated[
            str | None, typer.Option(help="Cost axis: seconds, flops, kv_bytes, ttft, tbt, ...")
        ] = None,
        counts: Counted = None,
        n: Examples = 20,
        seed: Seed = 0,
        seeds: Seeds = 1,
        scorer: Scorer = None,
        verifier: VerifierSpec = "self",
        judge: Judge = None,
        temperature: Temperature = None,
        max_tokens: Annotated[int, typer.Option(help="Generated tokens, unbudgeted.")] = 128,
        workers: Workers = None,
        out: Out = None,
        fresh: Fresh = False,
        as_json: AsJson = False,
    ) -> None:
        """Find the best way to spend N tokens: methods x budgets on a task's examples.

        A killed run goes on when the same command is given again.
        """
        with errors(as_json):
            from outlay import comparison as lib

            if runfile is not None:
                if task or method or budget:
                    raise InputError("a run file names its own tasks, methods and budgets")
                plans = lib.Plans.read(runfile)
            elif task is None:
                raise InputError("give --task (see `outlay methods --tasks`) or a run file")
            else:
                if not method or not budget:
                    raise InputError("give --method and --budget, each at least once")
                given: dict[str, Any] = {
                    "task": task,
                    "methods": tuple(method),
                    "budgets": tuple(budget),
                    "model": model,
                    "axis": axis,
                    "counts": counts,
                    "n": n,
                    "seed": seed,
                    "seeds": seeds,
                    "scorer": scorer,
                    "verifier": verifier,
                    "judge": judge,
                    "temperature": temperature,
                    "max_tokens": max_tokens,
                    "workers": workers,
                }
                plans = lib.Plans(compare=(lib.plan(**given),), title=f"outlay compare: {task}")
            with progress_bars(quiet=as_json) as progress:
                result = lib.compare(plans, out=out, fresh=fresh, progress=progress)
            page = result.report()
            if as_json:
                show_json({**result.to_dict(), "report": str(page), "folder": str(result.folder)})
            else:
                show_comparison(result, page)
