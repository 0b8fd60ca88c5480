"""`outlay compare`: the main job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from outlay.cli import errors, show_json
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
        model: Annotated[str, typer.Option(help="A model's spec.")] = "embedded",
        counts: Annotated[str | None, typer.Option(help="What budgets count.")] = None,
        n: Annotated[int, typer.Option(help="Examples.")] = 20,
        seed: Annotated[int, typer.Option(help="Of examples and sampling.")] = 0,
        seeds: Annotated[int, typer.Option(help="Sampling repetitions.")] = 1,
        scorer: Annotated[str | None, typer.Option(help="Model of the compressors.")] = None,
        temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
        max_tokens: Annotated[int, typer.Option(help="Generated tokens, unbudgeted.")] = 128,
        workers: Annotated[int | None, typer.Option(help="Examples in flight.")] = None,
        out: Annotated[Path | None, typer.Option(help="The run's folder.")] = None,
        fresh: Annotated[bool, typer.Option("--fresh", help="Start over.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
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
                    "counts": counts,
                    "n": n,
                    "seed": seed,
                    "seeds": seeds,
                    "scorer": scorer,
                    "temperature": temperature,
                    "max_tokens": max_tokens,
                    "workers": workers,
                }
                plans = lib.Plans(compare=(lib.plan(**given),), title=f"outlay compare: {task}")
            result = _run(plans, out, fresh, quiet=as_json)
            page = result.report()
            if as_json:
                show_json({**result.to_dict(), "report": str(page), "folder": str(result.folder)})
            else:
                _show(result, page)


def _run(plans: Any, out: Path | None, fresh: bool, *, quiet: bool) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from outlay.comparison import compare as run

    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not sys.stderr.isatty(),
    )
    rows: dict[str, Any] = {}
    shown: dict[str, int] = {}

    def progress(name: str, done: int, total: int) -> None:
        if name not in rows:
            rows[name] = bars.add_task(name, total=total)
        bars.update(rows[name], completed=done, total=total)
        tenth = 10 * done // max(1, total)
        if bars.disable and not quiet and shown.get(name) != tenth:
            shown[name] = tenth
            typer.echo(f"{name}: {done}/{total}", err=True)

    try:
        with bars:
            return run(plans, out=out, fresh=fresh, progress=progress)
    except KeyboardInterrupt:
        typer.echo("\nfinished examples are kept; give the same command to go on", err=True)
        raise


def _show(result: Any, page: Path) -> None:
    from rich.console import Console

    from outlay.comparison import summary
    from outlay.report import rich_table

    console = Console()
    found = result.verdicts()
    for task, view in result.views.items():
        console.print(
            rich_table(
                result.points(task),
                found,
                title=task,
                metric=view.metric,
                higher_is_better=view.higher_is_better,
            )
        )
    for where, text in summary(result).items():
        console.print(f"{where}: {text}", markup=False, highlight=False)
    for note in result.notes():
        console.print(f"note: {note}", style="yellow", markup=False)
    typer.echo(f"report: {page.resolve()}")
