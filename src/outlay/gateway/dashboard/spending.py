"""What was charged over time, from the ledger, in slots that are summed once.

A slot that ended two minutes ago no longer changes, since ledger rows bear the time of the
transaction that wrote them; its sums are kept. The slot that is running is put together from
shorter ones, so that looking again reads the last minutes of the ledger and not a month of it.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson
from sqlalchemy import Connection, func, select

from outlay.errors import OutlayError
from outlay.gateway.store import schema
from outlay.gateway.store.books import BudgetRow
from outlay.ledger import Ledger

LEVELS = (60, 1800, 10_800, 43_200)  # seconds of a slot; each is a multiple of the one before
_FINAL = 120.0
_KEPT = 5000
_KINDS = ("prompt_new", "prompt_cached", "generated", "forced", "retried")
CHARGED = ("settled", "unknown")
"""Kinds of ledger rows that were charged; an overrun repeats what its settled row says."""


class Group(NamedTuple):
    """What spending is told apart by."""

    key_id: str
    owner: str
    team: str
    model: str
    route: str

    def on(self, budget: BudgetRow) -> bool:
        """Whether a budget was charged for it."""
        pairs = (
            (budget.key_id, self.key_id),
            (budget.owner, self.owner),
            (budget.team, self.team),
            (budget.model, self.model),
            (budget.route, self.route),
        )
        return all(wanted is None or wanted == given for wanted, given in pairs)


@dataclass
class Spent:
    """Sums."""

    attempts: int = 0
    tokens: int = 0
    nanousd: int = 0

    def add(self, other: Spent) -> None:
        """Add another sum to this one."""
        self.attempts += other.attempts
        self.tokens += other.tokens
        self.nanousd += other.nanousd

    def of(self, unit: str) -> int:
        """The sum in a budget's unit."""
        return self.tokens if unit == "tokens" else self.nanousd


@dataclass
class Slot:
    """One stretch of time: sums by group, and tokens by owner and stage where stacks ran."""

    start: int
    groups: dict[Group, Spent] = field(default_factory=lambda: defaultdict(Spent))
    stages: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))

    def add(self, other: Slot) -> None:
        """Add another slot's sums."""
        for group, spent in other.groups.items():
            self.groups[group].add(spent)
        for stage, tokens in other.stages.items():
            self.stages[stage] += tokens

    def only(self, owner: str | None) -> Iterable[tuple[Group, Spent]]:
        """The groups of one owner; of all for None."""
        return ((g, s) for g, s in self.groups.items() if owner in (None, g.owner))


class Spending:
    """Slots, kept once they are final. Safe to use from several threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, int], Slot] = OrderedDict()
        self._lock = threading.Lock()

    def slots(self, connection: Connection, now: float, seconds: int, since: float) -> list[Slot]:
        """The slots of `seconds` (one of `LEVELS`) from the one that `since` is in until now."""
        level = LEVELS.index(seconds)
        first = int(since // seconds) * seconds
        with self._lock:
            return [
                self._slot(connection, now, level, start)
                for start in range(first, int(now) + 1, seconds)
            ]

    def _slot(self, connection: Connection, now: float, level: int, start: int) -> Slot:
        seconds = LEVELS[level]
        if (found := self._kept.get((level, start))) is not None:
            self._kept.move_to_end((level, start))
            return found
        final = start + seconds <= now - _FINAL
        if final or level == 0:
            slot = _read(connection, start, start + seconds)
        else:
            slot = Slot(start)
            for part in range(start, min(start + seconds, int(now) + 1), LEVELS[level - 1]):
                slot.add(self._slot(connection, now, level - 1, part))
        if final:
            self._kept[level, start] = slot
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return slot


def _read(connection: Connection, start: int, end: int) -> Slot:
    slot = Slot(start)
    table = schema.ledger
    columns = (table.c.key_id, table.c.owner, table.c.team, table.c.model, table.c.route)
    within = (table.c.at >= start, table.c.at < end, table.c.kind.in_(CHARGED))
    sums = (
        func.count(),
        func.sum(table.c.prompt + table.c.output),
        func.sum(table.c.nanousd),
    )
    query = select(*columns, *sums).where(*within).group_by(*columns)
    for *group, attempts, tokens, nanousd in connection.execute(query):
        slot.groups[Group(*group)] = Spent(attempts, int(tokens), int(nanousd))
    staged = select(table.c.owner, table.c.stages).where(*within, table.c.stages != "")
    for owner, text in connection.execute(staged):
        for stage, tokens in by_stage(text).items():
            slot.stages[owner, stage] += tokens
    return slot


def stack_ledger(text: str) -> Ledger | None:
    """The ledger that a stack left in a row; None where it left none that can be read."""
    try:
        return Ledger.from_dict(json.loads(text)) if text else None
    except (ValueError, OutlayError):
        return None


def by_stage(text: str) -> dict[str, int]:
    """Tokens paid for by stage; read without building a `Ledger`, since a month has many."""
    sums: dict[str, int] = defaultdict(int)
    try:
        for entry in orjson.loads(text)["entries"]:
            sums[str(entry["stage"])] += sum(int(entry.get(kind, 0)) for kind in _KINDS)
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return sums
