"""`outlay stream`: read a long text over a cache of fixed size, and see that nothing grows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outlay.cli import AsJson, errors, show_json
from outlay.errors import InputError

if TYPE_CHECKING:
    from outlay.cache.compacted import Retention


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def stream(
        files: Annotated[
            list[Path] | None, typer.Argument(help="Texts; default: documentation at hand.")
        ] = None,
        tokens: Annotated[int, typer.Option(help="Tokens to read.")] = 32_768,
        cache: Annotated[
            str, typer.Option(help='A spec such as "lacache:capacity=512", or full.')
        ] = "lacache",
        model: Annotated[str, typer.Option(help="A local model's spec.")] = "embedded",
        window: Annotated[int, typer.Option(help="Tokens per forward pass.")] = 16,
        block: Annotated[int, typer.Option(help="Tokens per line.")] = 1024,
        as_json: AsJson = False,
    ) -> None:
        """Read a text token by token and print perplexity, rows, memory and time per block."""
        with errors(as_json):
            from outlay.cache.loop import local
            from outlay.cache.streaming import file_text, running_text, stream_text
            from outlay.models import load

            method = _method(cache)
            network = local(load(model), cache)
            ids_BT = file_text(network, files, tokens) if files else running_text(network, tokens)
            rows = []
            if not as_json:
                typer.echo("tokens  perplexity  rows  cache MB  ms/token")
            for each in stream_text(network, method, ids_BT, window=window, block=block):
                rows.append(
                    {
                        "first": each.first,
                        "tokens": each.tokens,
                        "perplexity": each.perplexity,
                        "peak_rows": each.peak_rows,
                        "mean_rows": each.mean_rows,
                        "peak_bytes": each.peak_bytes,
                        "seconds": each.seconds,
                        "cpu_seconds": each.cpu_seconds,
                    }
                )
                if not as_json:
                    typer.echo(
                        f"{each.first + each.tokens:6d}  {each.perplexity:10.2f}  "
                        f"{each.peak_rows:4d}  {each.peak_bytes / 1e6:8.1f}  "
                        f"{1000 * each.seconds / each.tokens:8.2f}"
                    )
            if as_json:
                show_json({"tokens": tokens, "cache": cache, "model": network.name, "blocks": rows})


def _method(spec: str) -> Retention | None:
    from outlay import registry
    from outlay.cache.compacted import Retention

    if spec == "full":
        return None
    made = registry.create("methods", spec)
    if not isinstance(made, Retention):
        raise InputError(
            f"{spec!r} holds no fixed number of rows; choose lacache or one of its baselines"
        )
    return made
