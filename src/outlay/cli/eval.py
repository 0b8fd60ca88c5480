"""`outlay eval`: one task, any model; accuracy, tokens and traces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from outlay.evaluation import Row


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("eval")
    def evaluate(
        task: Annotated[str, typer.Argument(help="A task's spec, see `outlay methods --tasks`.")],
        model: ModelSpec = "embedded",
        method: Annotated[
            list[str] | None,
            typer.Option(help="A stack's spec, several times; none is the model as it is."),
        ] = None,
        budget: Annotated[
            list[int] | None, typer.Option(help="Token budget, several times; none is no limit.")
        ] = None,
        counts: Counted = None,
        n: Examples = 20,
        seed: Seed = 0,
        seeds: Seeds = 1,
        scorer: Scorer = None,
        verifier: VerifierSpec = "self",
        judge: Judge = None,
        temperature: Temperature = None,
        max_tokens: Annotated[int, typer.Option(help="Generated tokens, unbudgeted.")] = 512,
        workers: Workers = None,
        out: Out = None,
        fresh: Fresh = False,
        as_json: AsJson = False,
    ) -> None:
        """Evaluate a model on a task: accuracy with its interval, tokens per right answer, traces.

        A killed run goes on when the same command is given again.
        """
        with errors(as_json):
            from outlay.comparison import plan
            from outlay.evaluation import evaluate as run
            from outlay.stack import NOTHING

            wanted = plan(
                task=task,
                methods=tuple(method or (NOTHING,)),
                budgets=tuple(budget or ()),
                model=model,
                counts=counts,
                n=n,
                seed=seed,
                seeds=seeds,
                scorer=scorer,
                verifier=verifier,
                judge=judge,
                temperature=temperature,
                max_tokens=max_tokens,
                workers=workers,
            )
            with progress_bars(quiet=as_json) as progress:
                result = run(wanted, out=out, fresh=fresh, progress=progress)
            page = result.comparison.report()
            if as_json:
                folder = str(result.comparison.folder)
                show_json({**result.to_dict(), "report": str(page), "folder": folder})
                return
            show_comparison(result.comparison, page)
            _show_efficiency(result.rows)
            typer.echo(f"traces: {result.traces.resolve()}")


def _show_efficiency(rows: tuple[Row, ...]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    judged = [row for row in rows if row.efficiency is not None]
    if not judged:
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("method", overflow="fold", min_width=20)
    table.add_column("budget")
    for name in ("tokens, mean", "p90", "of correct", "per correct", "E3"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in judged:
        found = row.efficiency
        assert found is not None
        numbers = (
            found.tokens_mean,
            found.tokens_p90,
            found.tokens_correct,
            found.tokens_per_correct,
            found.e3,
        )
        cells = ["undefined" if value is None else f"{value:.1f}" for value in numbers]
        table.add_row(Text(row.point.stack), row.point.budget.label(), *cells)
    Console().print(table)
