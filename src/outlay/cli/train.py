"""`outlay train`: budget-aware RL from a recipe, and grids of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outlay.cli import AsJson, errors, show_json
from outlay.cli.running import progress_bars
from outlay.errors import InputError

if TYPE_CHECKING:
    from outlay.rl.running import Training

_train = typer.Typer(help="Train models that spend less.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_train, name="train")


@_train.command()
def rl(
    recipe: Annotated[Path | None, typer.Option(help="A TOML recipe; options win over it.")] = None,
    example: Annotated[str | None, typer.Option(help="Print a recipe, or 'list'.")] = None,
    method: Annotated[str | None, typer.Option(help="A method's spec.")] = None,
    model: Annotated[str | None, typer.Option(help="A folder, a hub's name, 'embedded'.")] = None,
    task: Annotated[
        str | None, typer.Option(help="chainarith-rl, a reasoning-gym data set, or a JSONL file.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    questions: Annotated[int | None, typer.Option(help="Questions of a step.")] = None,
    group: Annotated[int | None, typer.Option(help="Rollouts of a question.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the optimiser.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of training.")] = None,
    lora: Annotated[int | None, typer.Option(help="Rank of an adapter; 0 for none.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model under token budgets, and evaluate it at several budgets.

    `accelerate launch -m outlay train rl ...` trains on several processes.
    """
    with errors(as_json):
        from outlay.rl import recipe as recipes

        if example is not None:
            _show_example(example, as_json)
            return
        given = {
            "method": method,
            "model": model,
            "task": task,
            "steps": steps,
            "questions": questions,
            "group": group,
            "learning_rate": learning_rate,
            "seed": seed,
            "lora": lora,
        }
        changed: dict[str, Any] = {
            name: value for name, value in given.items() if value is not None
        }
        if recipe is not None:
            from dataclasses import replace

            chosen: recipes.Recipe = replace(recipes.read(recipe), **changed)
        elif method is not None:
            chosen = recipes.Recipe(**changed)
        else:
            raise InputError("give --method or --recipe; --example list shows recipes")
        if out is None:
            raise InputError("give --out, the run's folder")
        from outlay.rl.running import train

        with progress_bars(quiet=as_json) as progress:
            done = train(chosen, out, resume=resume, progress=progress)
        if done.after is None:
            return  # the first process speaks
        if as_json:
            show_json({**done.to_dict(), "page": str(out / "index.html")})
        else:
            _show(done)


@_train.command()
def grid(
    file: Annotated[Path, typer.Argument(help="A TOML grid: methods x seeds.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the store.")] = None,
    processes: Annotated[int, typer.Option(help="Cells at once, one thread each.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Train methods x seeds, skip what is stored, and compare them.

    A killed grid goes on when the same command is given again.
    """
    with errors(as_json):
        from outlay.rl import grid_compare
        from outlay.rl.grid import run
        from outlay.rl.grid_file import read_grid
        from outlay.rl.pages import grid_page

        plan = read_grid(file)
        folder = out or Path("runs") / file.stem
        results = run(
            plan.cells,
            folder,
            (lambda message: None) if as_json else (lambda m: typer.echo(m, err=True)),
            processes,
        )
        page = grid_page(results, folder / "index.html", title=plan.title, baseline=plan.baseline)
        picture = grid_compare.frontier(results, folder / "frontier.png", title=plan.title)
        if as_json:
            rows = grid_compare.rows(results, plan.baseline)
            show_json({"rows": [_data(row) for row in rows], "page": str(page)})
        else:
            typer.echo(grid_compare.table(results, plan.baseline))
            typer.echo(f"page: {page.resolve()}\npicture: {picture.resolve()}")


def _show_example(name: str, as_json: bool) -> None:
    from outlay.rl import recipe as recipes

    if name == "list":
        names = recipes.examples()
        if as_json:
            show_json(names)
        else:
            typer.echo("\n".join(names))
        return
    text = recipes.example(name)
    if as_json:
        show_json({"name": name, "recipe": text})
    else:
        typer.echo(text, nl=False)


def _show(done: Training) -> None:
    """A table of the evaluation, what changed, and where the page is."""
    from rich.console import Console
    from rich.table import Table

    assert done.after is not None
    table = Table(header_style="bold")
    for name in ("budget", "temperature", "accuracy before", "after", "tokens before", "after"):
        table.add_column(name, justify="right")
    old: dict[Any, Any] = {}
    if done.before is not None:
        old = {(o.budget, o.temperature, o.seed): o.metrics for o in done.before.evaluation}
    for one in done.after.evaluation:
        was = old.get((one.budget, one.temperature, one.seed), {})
        table.add_row(
            str(one.budget),
            f"{one.temperature:g}",
            _number(was.get("acc"), 3),
            _number(one.metrics["acc"], 3),
            _number(was.get("tokens_mean"), 1),
            _number(one.metrics["tokens_mean"], 1),
        )
    if done.after.evaluation:
        Console().print(table)
    for note in done.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"model: {(done.folder / 'model').resolve()}")
    typer.echo(f"page: {(done.folder / 'index.html').resolve()}")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _data(row: dict[str, Any]) -> dict[str, Any]:
    from dataclasses import asdict, is_dataclass

    return {
        name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in row.items()
    }
