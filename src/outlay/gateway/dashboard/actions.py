"""What forms do: keys, budgets, suspensions, frontiers. Each ends in a page or a redirect."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection

from outlay.errors import InputError
from outlay.gateway.admin import BudgetForm, KeyForm, key_fields, manages_key, owner_only
from outlay.gateway.config import explain
from outlay.gateway.dashboard import frontiers
from outlay.gateway.dashboard.forms import Form
from outlay.gateway.money import nano
from outlay.gateway.problems import RequestError, invalid
from outlay.gateway.state import Gateway
from outlay.gateway.store import admin
from outlay.gateway.store.books import Key
from outlay.gateway.windows import Window

DONE = {
    "revoked": "The key is revoked: it is refused from the next request on.",
    "budget": "The budget is in force.",
    "changed": "The limit is changed.",
    "archived": "The budget is archived: nothing is charged to it any more.",
    "lifted": "The suspension is lifted.",
    "imported": "The frontier is imported.",
    "deleted": "The frontier is deleted.",
}
"""What a page says after a redirect to `?done=...`."""


@dataclass(frozen=True)
class Done:
    """How an action ended: where to go, and a new key's token that is shown there once."""

    to: str
    token: str = ""
    name: str = ""


@dataclass(frozen=True)
class Actions:
    """The changes that somebody who logged in makes."""

    gateway: Gateway

    async def _do(self, work: Callable[..., Any], **fields: Any) -> Any:
        def run(connection: Connection, now: float) -> Any:
            return work(connection, now, **fields)

        try:
            return await self.gateway.store.call(run)
        except InputError as error:
            raise invalid(str(error)) from error

    async def create_key(self, actor: Key, form: Form) -> Done:
        """Make a key."""
        days = form.text("days")
        expires = None
        if days:
            if not days.isdigit() or not 1 <= int(days[:6]) <= 3660:
                raise invalid("days until the key expires: 1 to 3660, or nothing for never")
            expires = _now() + 86_400.0 * int(days)
        models = [name.strip() for name in form.text("models").split(",") if name.strip()]
        given = _validated(
            KeyForm,
            name=form.text("name"),
            owner=form.text("owner"),
            team=form.text("team"),
            role=form.text("role") or "caller",
            models=models,
            expires_at=expires,
        )
        fields = key_fields(actor, given.model_dump())
        made = await self._do(admin.create_key, actor=actor.id, **fields)
        return Done("/keys", made.token, made.key.name)

    async def rotate_key(self, actor: Key, form: Form) -> Done:
        """A new key in place of one."""
        found = await self._key(actor, form)
        hours = form.text("grace") or "0"
        if not hours.isdigit() or len(hours) > 4:
            raise invalid("hours that the old key still works: 0 to 720")
        made = await self._do(
            admin.rotate_key, actor=actor.id, identity=found.id, grace=3600.0 * int(hours)
        )
        return Done("/keys", made.token, made.key.name)

    async def revoke_key(self, actor: Key, form: Form) -> Done:
        """Revoke a key."""
        found = await self._key(actor, form)
        await self._do(admin.revoke_key, actor=actor.id, identity=found.id)
        return Done("/keys?done=revoked")

    async def _key(self, actor: Key, form: Form) -> Key:
        await self.gateway.store.refresh()
        return manages_key(actor, self.gateway.store.key(form.text("key")))

    async def create_budget(self, actor: Key, form: Form) -> Done:
        """Make a budget."""
        _admin(actor)
        unit = form.text("unit")
        kind = form.text("window")
        hours = form.text("hours")
        filters = {name: form.text(name) or None for name in _FILTERS}
        given = _validated(
            BudgetForm,
            name=form.text("name"),
            unit=unit,
            amount=_amount(form.text("amount"), unit),
            window=kind,
            zone=form.text("zone") or "UTC",
            seconds=_seconds(hours) if kind == "rolling" else 0,
            mode=form.text("mode") or "reject",
            **filters,
        )
        try:
            window = Window(given.window, given.zone, given.seconds)
        except InputError as error:
            raise invalid(str(error)) from error
        fields = given.model_dump(exclude={"window", "zone", "seconds"})
        await self._do(admin.create_budget, actor=actor.id, window=window, **fields)
        return Done("/budgets?done=budget")

    async def change_budget(self, actor: Key, form: Form) -> Done:
        """Set a budget's limit."""
        _admin(actor)
        amount = _amount(form.text("amount"), form.text("unit"))
        await self._do(
            admin.set_amount, actor=actor.id, identity=form.text("budget"), amount=amount
        )
        return Done("/budgets?done=changed")

    async def archive_budget(self, actor: Key, form: Form) -> Done:
        """Stop charging a budget."""
        _admin(actor)
        await self._do(admin.archive_budget, actor=actor.id, identity=form.text("budget"))
        return Done("/budgets?done=archived")

    async def lift(self, actor: Key, form: Form) -> Done:
        """Lift a suspension."""
        _admin(actor)
        names = {name: form.fields.get(name, "") for name in ("upstream", "model")}
        await self._do(admin.lift, actor=actor.id, **names)
        return Done("/alerts?done=lifted")

    async def import_frontier(self, actor: Key, form: Form) -> Done:
        """Keep a comparison."""
        raw = form.files.get("file") or form.text("json").encode()
        if not raw:
            raise invalid("choose a file, or paste what 'outlay compare --json' printed")
        try:
            parsed = frontiers.parse(raw)
        except InputError as error:
            raise invalid(str(error)) from error
        identity = await self._do(frontiers.keep, actor=actor, form=parsed)
        return Done(f"/frontiers/{identity}?done=imported")

    async def delete_frontier(self, actor: Key, form: Form) -> Done:
        """Forget a comparison."""
        await self._do(
            frontiers.forget,
            actor=actor,
            identity=form.text("frontier"),
            owner=owner_only(actor),
        )
        return Done("/frontiers?done=deleted")


_FILTERS = ("key_id", "owner", "team", "model", "route")


def _admin(actor: Key) -> None:
    if actor.role != "admin":
        raise RequestError(403, "only an admin does this", "forbidden")


def _validated(form: Any, **fields: Any) -> Any:
    try:
        return form.model_validate(fields)
    except ValidationError as error:
        raise invalid(explain(error)[:500]) from error


def _amount(text: str, unit: str) -> int:
    """A limit: whole tokens, or dollars."""
    plain = text.replace(",", "").replace("\u202f", "").replace(" ", "").removeprefix("$")
    if unit == "nanousd":
        try:
            return nano(Decimal(plain[:40]))
        except InvalidOperation as error:
            raise invalid(f"{text[:40]!r} is no amount of dollars, such as 12.50") from error
        except InputError as error:
            raise invalid(str(error)) from error
    if not plain.isascii() or not plain.isdigit() or len(plain) > 16:
        raise invalid(f"{text[:40]!r} is no number of tokens")
    return int(plain)


def _seconds(hours: str) -> int:
    try:
        seconds = float(hours) * 3600
        return round(seconds)
    except (ValueError, OverflowError) as error:
        raise invalid(f"{hours[:40]!r} is no number of hours for a rolling window") from error


def _now() -> float:
    return datetime.datetime.now(datetime.UTC).timestamp()
