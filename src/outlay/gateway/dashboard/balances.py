"""Budgets as the dashboard shows them: what is spent, held and left, and how long it will last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from outlay.gateway.admin import budget_rows
from outlay.gateway.dashboard.figures import Burn, burn
from outlay.gateway.dashboard.spending import LEVELS, Slot, Spending
from outlay.gateway.store import schema
from outlay.gateway.store.books import BudgetRow, Key

_SLOTS = 60  # about as many points as a burn-down has
_FAR = 400 * 86_400.0  # seconds that no pace is trusted for


@dataclass(frozen=True)
class Balance:
    """A budget now.

    Args:
        row: as `admin.budget_rows` gives it.
        scope: whom it applies to, in words.
        window: in words.
        used: share of the limit that is settled, 0 to 1.
        held: share that is reserved.
        burn: its picture.
        over_at: when it will be spent at this pace; None where that is after it renews, or never.
        level: "spent", "tight" (under a tenth left, or over before it renews) or "fine".
    """

    row: Mapping[str, Any]
    scope: str
    window: str
    used: float
    held: float
    burn: Burn
    over_at: float | None
    level: str


def balances(
    connection: Connection,
    now: float,
    spending: Spending,
    budgets: Sequence[BudgetRow],
    keys: Mapping[str, Key],
) -> list[Balance]:
    """The balances of `budgets`: those that will last the shortest first."""
    rows = budget_rows(connection, now, list(budgets))
    table = schema.budgets
    wanted = table.c.id.in_([budget.id for budget in budgets])
    made = {
        row.id: row.created_at
        for row in connection.execute(select(table.c.id, table.c.created_at).where(wanted))
    }
    series: dict[tuple[int, int], list[Slot]] = {}
    found = []
    for budget, row in zip(budgets, rows, strict=True):
        reach = _reach(budget, now, made[budget.id])
        seconds = next((s for s in LEVELS if (now - reach.start) / s <= _SLOTS), LEVELS[-1])
        at = (seconds, int(reach.start // seconds))
        if at not in series:
            series[at] = spending.slots(connection, now, seconds, reach.start)
        found.append(_balance(budget, row, keys, series[at], reach))
    return sorted(found, key=lambda b: (_RANK[b.level], b.over_at or 0, -b.used, b.row["name"]))


_RANK = {"spent": 0, "tight": 1, "fine": 2}


class _Reach(NamedTuple):
    """Where a picture begins and ends, since when spending counts, and now."""

    start: float
    end: float
    since: float
    now: float


def _reach(budget: BudgetRow, now: float, made: float) -> _Reach:
    window = budget.window
    if window.kind == "total":
        start = max(made, now - _SLOTS * LEVELS[-1])
        return _Reach(start, now + max(3600.0, (now - start) / 2), made, now)
    if window.kind == "rolling":
        start = now - window.seconds
        return _Reach(start, now, start, now)
    start = float(window.since(now))
    return _Reach(start, float(window.renews(now) or now), start, now)


def _balance(
    budget: BudgetRow,
    row: Mapping[str, Any],
    keys: Mapping[str, Key],
    slots: Sequence[Slot],
    reach: _Reach,
) -> Balance:
    now, free, amount = reach.now, row["left"], row["amount"]
    spent = [
        (
            max(float(slot.start), reach.start),
            sum(part.of(budget.unit) for group, part in slot.groups.items() if group.on(budget)),
        )
        for slot in slots
    ]
    rolling = budget.window.kind == "rolling"
    pace = 0.0 if rolling else row["settled"] / max(now - reach.since, 60.0)
    over = now + free / pace if pace > 0 and free > 0 else None
    renews = row["renews_at"]
    if over is not None and over >= (now + _FAR if renews is None else renews):
        over = None
    level = "fine"
    if free <= 0:
        level = "spent"
    elif (over is not None and renews is not None) or free < amount / 10:
        level = "tight"
    unspent = amount - row["settled"]
    points = _rolled(spent, amount, now) if rolling else _fallen(spent, unspent, now)
    return Balance(
        row=row,
        scope=_scope(budget, keys),
        window=_window(budget),
        used=min(1.0, row["settled"] / amount) if amount else 1.0,
        held=min(1.0, row["reserved"] / amount) if amount else 0.0,
        burn=burn(points, reach.start, reach.end, amount, pace),
        over_at=over,
        level=level,
    )


def _fallen(spent: Sequence[tuple[float, int]], left: int, now: float) -> list[tuple[float, float]]:
    """What was left at each time, reckoned back from what is left now."""
    points = [(now, float(left))]
    for begin, mine in reversed(spent):
        left += mine
        points.append((begin, float(left)))
    return points[::-1]


def _rolled(
    spent: Sequence[tuple[float, int]], amount: int, now: float
) -> list[tuple[float, float]]:
    """What the spending that still counts left at each time."""
    points = []
    for begin, mine in spent:
        points.append((begin, float(amount)))
        amount -= mine
    return [*points, (now, float(amount))]


def _scope(budget: BudgetRow, keys: Mapping[str, Key]) -> str:
    parts = []
    if budget.key_id is not None:
        key = keys.get(budget.key_id)
        parts.append(f"key {key.name if key else budget.key_id}")
    parts += [
        f"{name} {value}"
        for name in ("owner", "team", "model", "route")
        if (value := getattr(budget, name)) is not None
    ]
    return ", ".join(parts) or "all requests"


def _window(budget: BudgetRow) -> str:
    window = budget.window
    if window.kind == "total":
        return "in all"
    if window.kind == "rolling":
        hours = window.seconds / 3600
        return f"in any {hours:g} h" if hours >= 1 else f"in any {window.seconds // 60} min"
    zone = "" if window.zone == "UTC" else f", {window.zone}"
    return f"a {window.kind}{zone}"
