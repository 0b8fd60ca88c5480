"""`outlay budgets`: budgets of the gateway, straight in its database."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from outlay.cli import AsJson, errors, show_json
from outlay.cli.keys import ACTOR, Config, run, when
from outlay.errors import InputError


def register(app: typer.Typer) -> None:
    """Add the commands."""
    budgets = typer.Typer(help="Create, list, change and archive budgets of the gateway.")
    app.add_typer(budgets, name="budgets", no_args_is_help=True)

    @budgets.command()
    def create(
        name: Annotated[str, typer.Argument(help="What the budget is for.")],
        tokens: Annotated[int | None, typer.Option(help="Limit in tokens.")] = None,
        usd: Annotated[str | None, typer.Option(help="Limit in US dollars, such as 12.50.")] = None,
        window: Annotated[
            str, typer.Option(help="total, hour, day, week, month or rolling.")
        ] = "month",
        zone: Annotated[str, typer.Option(help="IANA time zone of calendar windows.")] = "UTC",
        seconds: Annotated[int, typer.Option(help="Length of a rolling window.")] = 0,
        shrink: Annotated[
            bool, typer.Option("--shrink", help="Lower a request's output to what is left.")
        ] = False,
        key: Annotated[str | None, typer.Option(help="Only this key's id.")] = None,
        owner: Annotated[str | None, typer.Option(help="Only this owner.")] = None,
        team: Annotated[str | None, typer.Option(help="Only this team.")] = None,
        model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
        route: Annotated[str | None, typer.Option(help="Only this route.")] = None,
        config: Config = None,
        as_json: AsJson = False,
    ) -> None:
        """Create a budget for the requests that match every filter given."""
        with errors(as_json):
            from outlay.gateway.money import nano
            from outlay.gateway.store import admin
            from outlay.gateway.windows import Window

            if (tokens is None) == (usd is None):
                raise InputError("give the limit as --tokens or as --usd")
            made = run(
                config,
                admin.create_budget,
                actor=ACTOR,
                name=name,
                unit="tokens" if usd is None else "nanousd",
                amount=tokens if usd is None else nano(usd),
                window=Window(window, zone, seconds),  # type: ignore[arg-type]
                mode="shrink" if shrink else "reject",
                key_id=key,
                owner=owner,
                team=team,
                model=model,
                route=route,
            )
            if as_json:
                show_json({"id": made.id, "name": made.name})
            else:
                typer.echo(made.id)

    @budgets.command("list")
    def list_(config: Config = None, as_json: AsJson = False) -> None:
        """List budgets with what is settled, reserved and left."""
        with errors(as_json):
            from outlay.gateway.admin import budget_rows
            from outlay.gateway.money import dollars
            from outlay.gateway.store import catalogue

            def read(connection: Any, now: float) -> Any:
                found = catalogue.read(connection).budgets.values()
                return budget_rows(connection, now, sorted(found, key=lambda b: b.name))

            rows = run(config, read)
            if as_json:
                show_json(rows)
                return
            for row in rows:
                money = row["unit"] == "nanousd"
                left, amount = (
                    f"${dollars(row[name])}" if money else f"{row[name]:,} tokens"
                    for name in ("left", "amount")
                )
                renews = f", renews {when(row['renews_at'])}" if row["renews_at"] else ""
                typer.echo(f"{row['id']}  {row['name']}  {left} of {amount} left{renews}")

    @budgets.command()
    def change(
        identity: Annotated[str, typer.Argument(metavar="ID", help="The budget's id.")],
        amount: Annotated[int, typer.Argument(help="New limit, in tokens or nano-dollars.")],
        config: Config = None,
        as_json: AsJson = False,
    ) -> None:
        """Change a budget's limit; a lower one only stops admissions."""
        with errors(as_json):
            from outlay.gateway.store import admin

            run(config, admin.set_amount, actor=ACTOR, identity=identity, amount=amount)
            if as_json:
                show_json({"id": identity, "amount": amount})
            else:
                typer.echo(f"{identity} has a limit of {amount}")

    @budgets.command()
    def archive(
        identity: Annotated[str, typer.Argument(metavar="ID", help="The budget's id.")],
        config: Config = None,
        as_json: AsJson = False,
    ) -> None:
        """Stop charging a budget; its history stays."""
        with errors(as_json):
            from outlay.gateway.store import admin

            run(config, admin.archive_budget, actor=ACTOR, identity=identity)
            if as_json:
                show_json({"id": identity, "archived": True})
            else:
                typer.echo(f"{identity} is archived")
