"""`outlay policy`: a comparison's winner as a policy, and what a policy makes of a request."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from outlay.cli import AsJson, errors, show_json
from outlay.errors import InputError

_LARGEST = 100_000_000  # bytes of a request


def register(app: typer.Typer) -> None:
    """Add the commands."""
    policy = typer.Typer(help="Policies of the gateway: export a winner, explain a request.")
    app.add_typer(policy, name="policy", no_args_is_help=True)

    @policy.command()
    def export(
        run: Annotated[
            Path, typer.Argument(help="Folder of `outlay compare --out`, or its --json output.")
        ],
        task: Annotated[str | None, typer.Option(help="A task of the run.")] = None,
        budget: Annotated[
            int | None, typer.Option(help="Take the best quality at this budget.")
        ] = None,
        within: Annotated[
            float | None,
            typer.Option(help="Take the cheapest that is at most so much worse than the best."),
        ] = None,
        axis: Annotated[str | None, typer.Option(help="What is cheap: seconds, all, ...")] = None,
        higher: Annotated[
            bool | None,
            typer.Option("--higher/--lower", help="Which quality is better; asks the task."),
        ] = None,
        name: Annotated[str | None, typer.Option(help="Of the policy and its route.")] = None,
        model: Annotated[
            list[str] | None, typer.Option(help="Models of the route, as patterns.")
        ] = None,
        size: Annotated[
            int | None, typer.Option(help="Tokens of the texts that are shortened.")
        ] = None,
        answer: Annotated[
            str, typer.Option(help="How votes read answers: text, number, math, choice.")
        ] = "text",
        config: Annotated[
            Path | None,
            typer.Option("--config", "-c", help="Check that this gateway could serve it."),
        ] = None,
        out: Annotated[Path | None, typer.Option(help="Write the TOML here; a new file.")] = None,
        as_json: AsJson = False,
    ) -> None:
        """Write the winner of a comparison as [policies.NAME] and [routes.NAME]."""
        with errors(as_json):
            from outlay.gateway.policies.exporting import export as find

            made = find(
                run,
                task=task,
                budget=budget,
                within=within,
                axis=axis,  # type: ignore[arg-type]
                higher_is_better=higher,
                name=name,
                models=model or ("*",),
                size=size,
                answer=answer,  # type: ignore[arg-type]
                config=config,
            )
            if out is not None:
                _write(out, made.toml)
            if as_json:
                show_json(made.to_dict())
                return
            if out is None:
                typer.echo(made.toml, nl=False)
            for note in made.notes:
                typer.secho(f"note: {note}", fg=typer.colors.YELLOW, err=True)

    @policy.command()
    def explain(
        config: Annotated[Path, typer.Argument(help="The gateway's TOML file.")],
        request: Annotated[
            str, typer.Argument(help="A file with the request's JSON; - for standard input.")
        ] = "-",
        endpoint: Annotated[
            str, typer.Option(help="chat, completions, responses or embeddings.")
        ] = "chat",
        policy: Annotated[
            str | None, typer.Option(help="Assume this policy; none for none.")
        ] = None,
        budget: Annotated[
            list[int] | None, typer.Option(help="Could this budget, in tokens, ever hold it?")
        ] = None,
        usd: Annotated[
            list[str] | None, typer.Option(help="Could this budget, in US dollars, ever hold it?")
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Say what would happen to a request, and what it reserves; nothing is sent."""
        with errors(as_json):
            from outlay.gateway.policies.explaining import explain as say

            told = say(
                config,
                _read(request),
                endpoint=endpoint,  # type: ignore[arg-type]
                policy=policy,
                tokens=budget or (),
                usd=usd or (),
            )
            if as_json:
                show_json(told.to_dict())
            else:
                typer.echo(told.lines())


def _read(request: str) -> bytes:
    """The request's body.

    Raises:
        InputError: if there is none, or one that is too large.
    """
    if request == "-":
        raw = sys.stdin.buffer.read(_LARGEST + 1)
    else:
        try:
            with Path(request).open("rb") as file:
                raw = file.read(_LARGEST + 1)
        except OSError as error:
            raise InputError(f"{request} cannot be read ({error})") from error
    if len(raw) > _LARGEST:
        raise InputError(f"the request has more than {_LARGEST:,} bytes")
    return raw


def _write(path: Path, text: str) -> None:
    """A new file.

    Raises:
        InputError: if it exists, or cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise InputError(f"{path} exists; give a new file, and add its text to yours") from error
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error})") from error
