"""What the commands that run many examples share: progress bars and the table at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from outlay.comparison import Comparison, Progress

Counted = Annotated[str | None, typer.Option("--counts", help="What budgets count.")]
Examples = Annotated[int, typer.Option("--n", help="Examples.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over.")]
Judge = Annotated[str | None, typer.Option(help="Model of the verifier.")]
ModelSpec = Annotated[str, typer.Option(help="A model's spec.")]
Out = Annotated[Path | None, typer.Option(help="The run's folder.")]
Scorer = Annotated[str | None, typer.Option(help="Model of the compressors.")]
Seed = Annotated[int, typer.Option(help="Of examples and sampling.")]
Seeds = Annotated[int, typer.Option(help="Sampling repetitions.")]
Temperature = Annotated[
    float | None, typer.Option(help="0 is greedy; None: 0, and 0.8 for reason methods.")
]
VerifierSpec = Annotated[str, typer.Option("--verifier", help="Judge of reason methods.")]
Workers = Annotated[int | None, typer.Option(help="Examples in flight.")]


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Progress]:
    """A progress callback: bars on a terminal, a line every tenth elsewhere; quiet shows nothing.

    Ctrl-C is passed on, after saying that finished examples are kept.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import (
        Progress as Bars,
    )

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
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
            yield progress
    except KeyboardInterrupt:
        typer.echo("\nfinished examples are kept; give the same command to go on", err=True)
        raise


def show_comparison(result: Comparison, page: Path) -> None:
    """Print tables, verdicts, notes and where the report is."""
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
