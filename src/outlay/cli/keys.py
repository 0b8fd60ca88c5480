"""`outlay keys`: keys of the gateway, straight in its database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from outlay.cli import AsJson, errors, show_json

Config = Annotated[Path | None, typer.Option("--config", "-c", help="The gateway's TOML file.")]
ACTOR = "cli"


def run(config: Path | None, work: Callable[..., Any], **fields: Any) -> Any:
    """Run `work(connection, now, **fields)` in the gateway's database.

    Raises:
        OutlayError: if the configuration or the database cannot be used, or the change be made.
    """
    from outlay.gateway.config import read
    from outlay.gateway.store.engine import now, open_engine
    from outlay.gateway.store.migrate import upgrade

    table = read(config).store
    engine = open_engine(table.url.get_secret_value(), table.durability)
    try:
        upgrade(engine)
        with engine.begin() as connection:
            return work(connection, now(connection), **fields)
    finally:
        engine.dispose()


def when(seconds: float | None) -> str:
    """A time for people."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    keys = typer.Typer(help="Create, list, rotate and revoke keys of the gateway.")
    app.add_typer(keys, name="keys", no_args_is_help=True)

    @keys.command()
    def create(
        name: Annotated[str, typer.Argument(help="What the key is for.")],
        owner: Annotated[str, typer.Option(help="Whose it is; default: its name.")] = "",
        team: Annotated[str, typer.Option(help="The owner's team.")] = "",
        role: Annotated[str, typer.Option(help="caller, viewer, owner or admin.")] = "caller",
        model: Annotated[
            list[str] | None, typer.Option(help="Models it may use, as patterns; default: all.")
        ] = None,
        days: Annotated[float | None, typer.Option(help="Days until it expires.")] = None,
        config: Config = None,
        as_json: AsJson = False,
    ) -> None:
        """Create a key; its secret is shown this once."""
        with errors(as_json):
            from outlay.gateway.store import admin

            def make(connection: Any, now: float) -> Any:
                return admin.create_key(
                    connection,
                    now,
                    actor=ACTOR,
                    name=name,
                    owner=owner,
                    team=team,
                    role=role,  # type: ignore[arg-type]
                    models=model or (),
                    expires_at=None if days is None else now + days * 86_400,
                )

            _show(run(config, make), as_json)

    @keys.command("list")
    def list_(config: Config = None, as_json: AsJson = False) -> None:
        """List keys, without their secrets."""
        with errors(as_json):
            from outlay.gateway.admin import key_row
            from outlay.gateway.store import catalogue

            found = run(config, lambda connection, now: catalogue.read(connection))
            rows = [key_row(key) for key in sorted(found.keys.values(), key=lambda k: k.name)]
            if as_json:
                show_json(rows)
                return
            for row in rows:
                state = "revoked" if row["revoked_at"] else when(row["expires_at"]) or "active"
                named = [row["id"], row["name"], row["role"], row["owner"], row["team"] or "-"]
                typer.echo("  ".join([*named, state]))

    @keys.command()
    def rotate(
        identity: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")],
        grace: Annotated[float, typer.Option(help="Seconds that the old one still works.")] = 0.0,
        config: Config = None,
        as_json: AsJson = False,
    ) -> None:
        """Replace a key by a new one with its budgets; the new secret is shown this once."""
        with errors(as_json):
            from outlay.gateway.store import admin

            fields = {"actor": ACTOR, "identity": identity, "grace": grace}
            _show(run(config, admin.rotate_key, **fields), as_json)

    @keys.command()
    def revoke(
        identity: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")],
        config: Config = None,
        as_json: AsJson = False,
    ) -> None:
        """Revoke a key: it is refused from the next request on."""
        with errors(as_json):
            from outlay.gateway.store import admin

            run(config, admin.revoke_key, actor=ACTOR, identity=identity)
            if as_json:
                show_json({"id": identity, "revoked": True})
            else:
                typer.echo(f"{identity} is revoked")


def _show(made: Any, as_json: bool) -> None:
    from outlay.gateway.admin import key_row

    if as_json:
        show_json({**key_row(made.key), "token": made.token})
        return
    typer.echo(made.token)
    typer.secho(f"id {made.key.id}; the key above is shown this once", dim=True, err=True)
