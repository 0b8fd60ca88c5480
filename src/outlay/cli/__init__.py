"""The command line: one file a command; every command is also a two-line Python call."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from outlay.errors import OutlayError

COMMANDS = (
    "ask",
    "audit",
    "basir",
    "bench",
    "budgets",
    "compare",
    "compress",
    "doctor",
    "eval",
    "keys",
    "methods",
    "models",
    "policy",
    "prove",
    "serve",
    "stream",
    "train",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(
    name="outlay",
    help="Spend language-model tokens well: measure, compare, compress, enforce.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@contextmanager
def errors(as_json: bool = False) -> Iterator[None]:
    """Show an `OutlayError` as one line (or as JSON) and exit with 2; Ctrl-C exits with 130."""
    try:
        yield
    except OutlayError as error:
        if as_json:
            show_json({"error": {"type": type(error).__name__, "message": str(error)}})
        else:
            typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as interrupt:
        typer.echo("stopped", err=True)
        raise typer.Exit(130) from interrupt
    except BrokenPipeError as closed:  # the reader (head, less) has gone
        sys.stderr.close()
        raise typer.Exit(0) from closed


def show_json(value: Any) -> None:
    """Print JSON for tools: valid JSON only, one document."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=str))


def main() -> None:
    """Entry point of the `outlay` command."""
    for name in COMMANDS:
        importlib.import_module(f"{__name__}.{name}").register(app)
    app()
