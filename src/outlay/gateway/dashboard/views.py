"""What the pages show, read from the books: one function a page, from a `Look` to a context."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from sqlalchemy import Connection, desc, func, select

from outlay.gateway.admin import owner_only, sees_budget
from outlay.gateway.config import Config
from outlay.gateway.dashboard import frontiers
from outlay.gateway.dashboard.balances import balances
from outlay.gateway.dashboard.figures import largest, stacked
from outlay.gateway.dashboard.refusals import refused
from outlay.gateway.dashboard.spending import LEVELS, Slot, Spending, Spent, stack_ledger
from outlay.gateway.dashboard.text import clock, exact
from outlay.gateway.store import schema
from outlay.gateway.store.admin import Role
from outlay.gateway.store.books import Key, Mode
from outlay.gateway.store.catalogue import Catalogue
from outlay.gateway.windows import Kind

RANGES = {
    "hour": ("last hour", LEVELS[0], 3600),
    "day": ("last 24 hours", LEVELS[1], 86_400),
    "week": ("last 7 days", LEVELS[2], 7 * 86_400),
    "month": ("last 30 days", LEVELS[3], 30 * 86_400),
}
SPLITS = {"model": "model", "route": "route", "key": "key", "owner": "owner"}
UNITS = {"tokens": "tokens", "nanousd": "money"}
KINDS = ("settled", "unknown", "released", "overrun")
_PAGE = 50


@dataclass(frozen=True)
class Look:
    """Who looks at what, and when.

    Args:
        connection: a read-only transaction.
        now: the database's time.
        key: of who logged in.
        query: the page's parameters.
        known: keys and budgets.
        spending: sums over time.
        config: the configuration.
    """

    connection: Connection
    now: float
    key: Key
    query: Mapping[str, str]
    known: Catalogue
    spending: Spending
    config: Config

    @property
    def owner(self) -> str | None:
        """The owner that is looked at; None for all."""
        return owner_only(self.key)

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        """A parameter that must be one of some values."""
        given = self.query.get(name, default)
        return given if given in choices else default

    def key_name(self, identity: str) -> str:
        """A key's name; its id where it is gone."""
        found = self.known.keys.get(identity)
        return found.name if found is not None else identity

    def rows(self, query: Any) -> list[dict[str, Any]]:
        """The rows of a query, each with the name of its key."""
        return [
            {**row._mapping, "key": self.key_name(row.key_id)}
            for row in self.connection.execute(query)
        ]


def overview(look: Look) -> dict[str, Any]:
    """Budgets, and what was spent over time."""
    span = look.choice("range", tuple(RANGES), "day")
    by = look.choice("by", tuple(SPLITS), "model")
    unit = look.choice("unit", tuple(UNITS), "tokens")
    label, seconds, reach = RANGES[span]
    slots = look.spending.slots(look.connection, look.now, seconds, look.now - reach + seconds)
    totals: dict[str, Spent] = defaultdict(Spent)
    whole = Spent()
    columns = []
    for slot in slots:
        column: dict[str, int] = defaultdict(int)
        for group, spent in slot.only(look.owner):
            name = look.key_name(group.key_id) if by == "key" else str(getattr(group, by))
            totals[name].add(spent)
            whole.add(spent)
            column[name] += spent.of(unit)
        columns.append(column)
    names = largest({name: spent.of(unit) for name, spent in totals.items()})
    says = [
        [f"{name}, {clock(slot.start)}: {exact(column[name], unit)}" for name in names]
        for slot, column in zip(slots, columns, strict=True)
    ]
    table = schema.reservations
    held = select(func.count(), func.coalesce(func.sum(table.c.prompt + table.c.output), 0))
    if look.owner is not None:
        held = held.where(table.c.owner == look.owner)
    in_flight, reserved = look.connection.execute(held).one()
    ranked = sorted(totals, key=lambda name: (-totals[name].of(unit), name))
    colours = {name: index for index, name in enumerate(names)}
    return {
        "span": span,
        "by": by,
        "unit": unit,
        "label": label,
        "whole": whole,
        "in_flight": in_flight,
        "reserved": int(reserved),
        "bars": stacked(columns, names, says),
        "x_labels": _x_labels(slots, seconds),
        "parts": [(name, totals[name], colours.get(name, len(names) - 1)) for name in ranked[:50]],
        "stages": _stages(slots, look.owner),
        "refused": refused(look.connection, look.now - reach, look.owner),
        "balances": _balances(look)[:12],
    }


def _x_labels(slots: Sequence[Slot], seconds: int) -> list[str]:
    """Five times along the axis, evenly spread."""
    first, last = slots[0].start, slots[-1].start + seconds
    marks = [first + (last - first) * part / 4 for part in range(5)]
    if last - first <= 86_400:
        return [clock(mark, day=False) for mark in marks]
    return [clock(mark).rpartition(" ")[0] for mark in marks]


def _stages(slots: Sequence[Slot], owner: str | None) -> list[tuple[str, int, float]]:
    """Tokens by stage where stacks ran, with their shares."""
    sums: dict[str, int] = defaultdict(int)
    for slot in slots:
        for (whose, stage), tokens in slot.stages.items():
            if owner in (None, whose):
                sums[stage] += tokens
    total = sum(sums.values()) or 1
    ranked = sorted(sums.items(), key=lambda item: -item[1])
    return [(stage, tokens, tokens / total) for stage, tokens in ranked]


def _balances(look: Look) -> list[Any]:
    mine = [
        budget
        for budget in look.known.budgets.values()
        if sees_budget(look.key, budget, look.known.keys)
    ]
    return balances(look.connection, look.now, look.spending, mine, look.known.keys)


def budgets(look: Look) -> dict[str, Any]:
    """All budgets, and the form for another."""
    alive = [key for key in look.known.keys.values() if key.alive(look.now)]
    return {
        "balances": _balances(look),
        "manages": look.key.role == "admin",
        "kinds": get_args(Kind),
        "modes": get_args(Mode),
        "keys": sorted(alive, key=lambda key: key.name)[:500],
        "models": sorted(look.config.models),
        "routes": list(look.config.routes),
        "owners": sorted({key.owner for key in alive}),
        "teams": sorted({key.team for key in alive if key.team}),
    }


def keys(look: Look) -> dict[str, Any]:
    """Keys with what they spent in thirty days."""
    slots = look.spending.slots(look.connection, look.now, LEVELS[3], look.now - 30 * 86_400)
    spent: dict[str, Spent] = defaultdict(Spent)
    for slot in slots:
        for group, part in slot.only(look.owner):
            spent[group.key_id].add(part)
    mine = [key for key in look.known.keys.values() if look.owner in (None, key.owner)]
    alive = sorted((k for k in mine if k.alive(look.now)), key=lambda k: (k.name, k.id))
    over = sorted((k for k in mine if not k.alive(look.now)), key=lambda k: (k.name, k.id))
    owners = ("caller", "owner")
    roles = owners if look.key.role == "owner" else get_args(Role)
    return {
        "alive": [(key, spent[key.id]) for key in alive],
        "over": [(key, spent[key.id]) for key in over][:200],
        "changes": look.key.role != "viewer",
        "roles": roles,
        "managed": roles,
        "me": look.key,
    }


def requests(look: Look) -> dict[str, Any]:
    """Recent ledger rows."""
    table = schema.ledger
    query = select(table).order_by(desc(table.c.seq)).limit(_PAGE + 1)
    if look.owner is not None:
        query = query.where(table.c.owner == look.owner)
    given = {
        name: look.query.get(name, "")[:200]
        for name in ("key_id", "owner", "model", "route", "kind", "request")
    }
    for name, value in given.items():
        if value:
            query = query.where(table.c[name] == value)
    if (before := look.query.get("before", "")).isdigit():
        query = query.where(table.c.seq < int(before[:18]))
    rows = look.rows(query)
    mine = [key for key in look.known.keys.values() if look.owner in (None, key.owner)]
    return {
        "rows": rows[:_PAGE],
        "older": rows[_PAGE - 1]["seq"] if len(rows) > _PAGE else None,
        "before": before,
        "given": given,
        "filtered": any(given.values()),
        "kinds": KINDS,
        "keys": sorted(mine, key=lambda key: key.name)[:500],
        "models": sorted(look.config.models),
        "routes": list(look.config.routes),
    }


def request(look: Look, identity: str) -> dict[str, Any] | None:
    """One request: its attempts, and the ledger of a stack that ran."""
    table = schema.ledger
    query = select(table).where(table.c.request == identity).order_by(table.c.seq)
    if look.owner is not None:
        query = query.where(table.c.owner == look.owner)
    rows = look.rows(query)
    held = select(schema.reservations).where(schema.reservations.c.request == identity)
    if look.owner is not None:
        held = held.where(schema.reservations.c.owner == look.owner)
    flying = look.rows(held)
    if not rows and not flying:
        return None
    stacks = []
    for row in rows:
        ledger = stack_ledger(row["stages"])
        if ledger is not None:
            parts = ledger.by("stage", "role", "method")
            stacks.append((row["attempt"], list(parts.items()), ledger.totals(), ledger.notes()))
    return {"request": identity, "rows": rows, "flying": flying, "stacks": stacks}


def flight(look: Look) -> dict[str, Any]:
    """What is reserved now."""
    table = schema.reservations
    query = select(table).order_by(table.c.admitted_at).limit(200)
    count = select(
        func.count(),
        func.coalesce(func.sum(table.c.prompt + table.c.output), 0),
        func.coalesce(func.sum(table.c.nanousd), 0),
    )
    if look.owner is not None:
        query = query.where(table.c.owner == look.owner)
        count = count.where(table.c.owner == look.owner)
    number, tokens, nanousd = look.connection.execute(count).one()
    return {
        "rows": look.rows(query),
        "number": number,
        "tokens": int(tokens),
        "nanousd": int(nanousd),
        "now": look.now,
    }


def alerts(look: Look) -> dict[str, Any]:
    """Suspensions; alerts and the audit log for those who see all owners."""
    suspended = look.connection.execute(select(schema.suspensions)).mappings().all()
    found: dict[str, Any] = {
        "suspended": suspended,
        "lifts": look.key.role == "admin",
        "alerts": None,
        "audit": None,
    }
    if look.owner is None:
        newest = select(schema.alerts).order_by(desc(schema.alerts.c.seq)).limit(_PAGE)
        found["alerts"] = look.connection.execute(newest).mappings().all()
        log = select(schema.audit).order_by(desc(schema.audit.c.seq)).limit(_PAGE)
        found["audit"] = [
            {
                **row,
                "who": look.key_name(row["actor"]),
                "says": ", ".join(f"{k}: {v}" for k, v in json.loads(row["detail"]).items()),
            }
            for row in look.connection.execute(log).mappings()
        ]
    return found


def frontier_list(look: Look) -> dict[str, Any]:
    """The imported frontiers."""
    found = frontiers.listed(look.connection, look.owner)
    return {
        "rows": [{**row, "key": look.key_name(row["key_id"])} for row in found],
        "imports": look.key.role != "viewer",
    }


PAGES: dict[str, tuple[str, Callable[[Look], dict[str, Any]]]] = {
    "overview": ("Overview", overview),
    "requests": ("Requests", requests),
    "flight": ("In flight", flight),
    "keys": ("Keys", keys),
    "budgets": ("Budgets", budgets),
    "alerts": ("Alerts", alerts),
    "frontiers": ("Frontiers", frontier_list),
}
