"""`outlay prove <slug>`: run a system's scaled-down experiment."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, cast

import typer

from outlay import registry
from outlay.cli import AsJson, errors, show_json
from outlay.errors import InputError
from outlay.proofs.base import Proof, Scale


def find(slug: str) -> Proof:
    """The proof of a system.

    Raises:
        InputError: if there is none.
    """
    provable = [name for name, parts in registry.systems().items() if any(e.proof for e in parts)]
    if slug not in provable:
        raise InputError(f"no proof for {slug!r}; there are: {', '.join(provable)}")
    module = importlib.import_module(f"outlay.proofs.{slug.replace('-', '_')}")
    return cast(Proof, module.run)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def prove(
        slug: Annotated[str, typer.Argument(help="A system, see `outlay methods`.")],
        scale: Annotated[str, typer.Option(help="ci (seconds), laptop (minutes) or gpu.")] = "ci",
        seed: Annotated[int, typer.Option(help="Of the experiment.")] = 0,
        out: Annotated[Path, typer.Option(help="Where results go.")] = Path("results/proofs"),
        as_json: AsJson = False,
    ) -> None:
        """Reproduce a paper's claims at a size that this machine can run."""
        with errors(as_json):
            if scale not in ("ci", "laptop", "gpu"):
                raise InputError(f"--scale {scale}; choose ci, laptop or gpu")
            run = find(slug)
            result = run(
                cast(Scale, scale),
                seed=seed,
                progress=lambda message: typer.echo(message, err=True),
            ).finish()
            paths = [] if scale == "ci" else result.save(out)
            if as_json:
                show_json(result.to_dict())
            else:
                typer.echo(result.table())
                for path in paths:
                    typer.echo(f"wrote {path}")
