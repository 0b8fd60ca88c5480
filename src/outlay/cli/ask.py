"""`outlay ask`: one question, one budget, and the bill."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from outlay.budget import Budget, Counts
from outlay.cli import AsJson, errors, show_json
from outlay.errors import InputError
from outlay.ledger import Ledger


def bill(ledger: Ledger) -> list[str]:
    """A ledger as lines: tokens by stage and role."""
    lines = []
    for (stage, role), total in ledger.by("stage", "role").items():
        parts = [
            f"{value} {name}"
            for name, value in (
                ("prompt", total.prompt_new),
                ("cached", total.prompt_cached),
                ("generated", total.generated),
                ("forced", total.forced),
                ("retried", total.retried),
                ("discarded", total.discarded),
            )
            if value
        ]
        sign = "~" if total.estimated else ""
        lines.append(f"{stage}/{role}: {sign}{', '.join(parts)} tokens, {total.seconds:.2f} s")
    return lines + [f"note: {note}" for note in ledger.notes()]


def stack_spec(*slots: str | None) -> str:
    """The stack that the slots' options name."""
    return "+".join(part for part in slots if part) or "full"


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def ask(
        question: Annotated[str, typer.Argument(help="What to ask.")],
        budget: Annotated[int, typer.Option(help="Tokens that may be spent.")] = 256,
        counts: Annotated[
            str, typer.Option(help="What the budget counts: generated, think or all.")
        ] = "generated",
        context: Annotated[list[Path] | None, typer.Option(help="Files to put before it.")] = None,
        context_budget: Annotated[
            int | None, typer.Option(help="Tokens of the context after --prompt.")
        ] = None,
        model: Annotated[str, typer.Option(help="A model's spec.")] = "embedded",
        prompt: Annotated[str | None, typer.Option(help="Method that shortens.")] = None,
        image: Annotated[list[Path] | None, typer.Option(help="Images to ask about.")] = None,
        vision: Annotated[str | None, typer.Option(help="Method that drops visual tokens.")] = None,
        vision_budget: Annotated[
            int | None, typer.Option(help="Visual tokens of an image, mean over layers.")
        ] = None,
        decode: Annotated[str | None, typer.Option(help="Method that decodes.")] = None,
        cache: Annotated[str | None, typer.Option(help="Method that shrinks the cache.")] = None,
        reason: Annotated[str | None, typer.Option(help="Method that reasons.")] = None,
        temperature: Annotated[
            float | None, typer.Option(help="0 is greedy; --reason samples at 0.8 by default.")
        ] = None,
        seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
        raw: Annotated[bool, typer.Option("--raw", help="No chat template.")] = False,
        as_json: AsJson = False,
    ) -> None:
        """Answer one question within a budget, streaming, with the ledger after it."""
        with errors(as_json):
            from outlay import api
            from outlay.files import read_text
            from outlay.models.base import SamplingParams
            from outlay.models.images import read_image

            if prompt is not None and context_budget is None:
                raise InputError(
                    f"--prompt {prompt} needs --context-budget, the size to shorten to"
                )
            if counts == "prompt":
                raise InputError("--counts prompt limits no answer; use --context-budget for that")
            if counts == "vision":
                raise InputError("--counts vision limits no answer; use --vision-budget for that")
            warmth = temperature if temperature is not None else 0.8 if reason else 0.0
            limit = Budget(tokens=budget, counts=cast(Counts, counts))
            text = "\n\n".join(read_text(path).text for path in context or [])
            answer = api.ask(
                question,
                context=text,
                model=model,
                stack=stack_spec(prompt, vision, decode, cache, reason),
                budget=limit,
                context_budget=context_budget,
                images=[read_image(path) for path in image or []],
                vision_budget=vision_budget,
                sampling=SamplingParams(max_tokens=budget, temperature=warmth, seed=seed),
                raw=raw,
                on_text=None if as_json else lambda piece: typer.echo(piece, nl=False),
            )
            if as_json:
                show_json(
                    {
                        "text": answer.text,
                        "finish_reason": answer.finish_reason,
                        "thinking": getattr(answer, "thinking", None),
                        "budget": limit.label(),
                        "ledger": answer.ledger.to_dict(),
                    }
                )
                return
            typer.echo("")
            typer.secho(f"[{limit.label()}; ended by {answer.finish_reason}]", dim=True, err=True)
            for line in bill(answer.ledger):
                typer.secho(line, dim=True, err=True)
