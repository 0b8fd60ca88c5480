"""`outlay compress`: shorten files to a token budget."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from outlay.cli import AsJson, errors, show_json


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def compress(
        files: Annotated[list[str], typer.Argument(help="Source files; - reads standard input.")],
        budget: Annotated[int, typer.Option(help="Tokens of the result.")],
        question: Annotated[str, typer.Option(help="What will be asked about them.")] = "",
        method: Annotated[str, typer.Option(help="A prompt method's spec.")] = "longcodezip",
        model: Annotated[str, typer.Option(help="Whose tokenizer counts.")] = "embedded",
        scorer: Annotated[str | None, typer.Option(help="Judges relevance; default model.")] = None,
        language: Annotated[str, typer.Option(help="Default: by the file name.")] = "",
        encoding: Annotated[str | None, typer.Option(help="Default: detected.")] = None,
        as_json: AsJson = False,
    ) -> None:
        """Shorten files to a token budget; the text goes to standard output, the bill to stderr."""
        with errors(as_json):
            from outlay import files as texts
            from outlay.api import compress as run

            sources: list[str | Path | texts.TextFile] = []
            for name in files:
                if name == "-":
                    data = sys.stdin.buffer.read(texts.MAX_BYTES + 1)
                    text, used = texts.decode(data, "standard input", encoding=encoding)
                    sources.append(
                        texts.TextFile(Path("standard input"), text, used, language, len(data))
                    )
                else:
                    sources.append(name)
            result = run(
                sources,
                question,
                budget=budget,
                method=method,
                model=model,
                scorer=scorer,
                language=language,
                encoding=encoding,
            )
            if as_json:
                show_json(
                    {
                        "text": result.text,
                        "tokens": result.tokens,
                        "original_tokens": result.original_tokens,
                        "ratio": round(result.ratio, 3),
                        "warnings": list(result.warnings),
                        "report": result.report,
                        "ledger": result.ledger.to_dict(),
                    }
                )
                return
            typer.echo(result.text)
            total = result.ledger.totals()
            typer.echo(
                f"{result.original_tokens} -> {result.tokens} tokens ({result.ratio:.1f}x), budget "
                f"{budget}; scorer read {total.prompt} tokens in {total.seconds:.1f} s",
                err=True,
            )
            for warning in result.warnings:
                typer.secho(f"warning: {warning}", fg=typer.colors.YELLOW, err=True)
