"""One transaction that serves many requests: read once, do the books in memory, write once.

Order of locks, the same in every worker: reservations by id, then budgets by id. Whoever holds a
budget's lock is alone with its counters. SQLite has one writer at a time and needs no locks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import orjson
from sqlalchemy import (
    Connection,
    Select,
    and_,
    bindparam,
    delete,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from outlay.gateway.store import catalogue, schema
from outlay.gateway.store.books import (
    Ask,
    BudgetRow,
    Charge,
    Counter,
    Counters,
    Grant,
    Left,
    Line,
    Refusal,
    admit,
    candidates,
    settle,
)
from outlay.gateway.store.catalogue import Catalogue
from outlay.gateway.store.engine import is_sqlite


@dataclass(frozen=True)
class Stored:
    """What an idempotency key stands for already: in flight (status 0), or with its outcome."""

    status: int
    media: str
    body: bytes
    same: bool


@dataclass(frozen=True)
class Settled:
    """What a settlement did; `late` if the reservation had been settled by a sweep."""

    tokens: int
    nanousd: int
    left: tuple[Left, ...]
    overrun: bool = False
    late: bool = False


@dataclass(frozen=True)
class Outcome:
    """A response to keep for duplicates of a request."""

    status: int
    media: str
    body: bytes


@dataclass(frozen=True)
class Admit:
    """Admit an attempt under a lease of `lease` seconds."""

    ask: Ask
    worker: str
    lease: float
    keep: float = 0.0  # seconds that an outcome is kept


@dataclass(frozen=True)
class Send:
    """Note that a held reservation goes upstream."""

    id: str


@dataclass(frozen=True)
class Settle:
    """Close a reservation with what was used; `outcome` answers later duplicates."""

    id: str
    charge: Charge
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Release:
    """Close a reservation that never went upstream, or that the upstream refused.

    `forget` gives up the claim of its idempotency key, too.
    """

    id: str
    status: int = 0
    note: str = ""
    outcome: Outcome | None = None
    forget: bool = False


@dataclass(frozen=True)
class Forget:
    """Give up the claim of an idempotency key whose request failed without having cost anything."""

    key_id: str
    idempotency: str


@dataclass(frozen=True)
class Renew:
    """Extend the leases of a worker's reservations."""

    worker: str
    lease: float


@dataclass(frozen=True)
class Sweep:
    """Close reservations whose lease ran out: in full as unknown if sent, else released."""


@dataclass(frozen=True)
class Call:
    """Anything else, inside the batch's transaction: `run(connection, now)`."""

    run: Callable[[Connection, float], Any]


Operation = Admit | Send | Settle | Release | Forget | Renew | Sweep | Call
_STALE = 900.0  # seconds after which a claim without a reservation is that of a dead worker
Result = Any


@dataclass
class Batch:
    """The state of one transaction."""

    connection: Connection
    known: Catalogue
    at: float = 0.0
    counters: Counters = field(default_factory=Counters)
    stored: set[tuple[str, int]] = field(default_factory=set)
    rows: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, tuple[Line, ...]] = field(default_factory=dict)
    opened: list[dict[str, Any]] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)

    def run(self, operations: Sequence[Operation]) -> list[Result]:
        """Do all operations; results in their order. The caller commits."""
        connection = self.connection
        self.at, revision = catalogue.look(connection)
        if revision != self.known.revision:
            self.known = catalogue.read(connection)
        ids = [op.id for op in operations if isinstance(op, Send | Settle | Release)]
        if any(isinstance(op, Sweep) for op in operations):
            ids += self._expired()
        self._lock_reservations(ids)
        asks = {
            index: candidates(op.ask, self.known.indexed)
            for index, op in enumerate(operations)
            if isinstance(op, Admit)
        }
        self._lock_budgets(asks.values())
        results: list[Result] = [None] * len(operations)
        order = sorted(range(len(operations)), key=lambda i: _turn(operations[i]))
        for index in order:
            operation = operations[index]
            if isinstance(operation, Admit):
                results[index] = self._admit(operation, asks[index])
            else:
                results[index] = self._other(operation)
        self._write()
        return results

    # -- reading --------------------------------------------------------------------------------

    def _expired(self) -> list[str]:
        table = schema.reservations
        query = select(table.c.id).where(table.c.lease_until < self.at).limit(1000)
        return list(self.connection.execute(query).scalars())

    def _lock_reservations(self, ids: Iterable[str]) -> None:
        wanted = sorted(set(ids))
        if not wanted:
            return
        query = _RESERVED if is_sqlite(self.connection) else _RESERVED_LOCKED
        self.rows = {row.id: row for row in self.connection.execute(query, {"ids": wanted})}
        self.lines = {identity: lines_of(row.lines) for identity, row in self.rows.items()}

    def _lock_budgets(self, groups: Iterable[Sequence[BudgetRow]]) -> None:
        since: dict[str, int] = {}
        for group in groups:
            for budget in group:
                since[budget.id] = budget.window.since(self.at)
        for lines in self.lines.values():
            for line in lines:
                budget_row = self.known.budgets.get(line.budget)
                start = line.bucket if budget_row is None else budget_row.window.since(self.at)
                since[line.budget] = min(since.get(line.budget, start), start, line.bucket)
        if not since:
            return
        table = schema.budgets
        if not is_sqlite(self.connection):
            query = select(table).where(table.c.id.in_(sorted(since))).order_by(table.c.id)
            self.connection.execute(query.with_for_update(key_share=True)).all()
            # A limit may have moved while we waited for the lock.
            if catalogue.revision(self.connection) != self.known.revision:
                self.known = catalogue.read(self.connection)
        alike: dict[int, list[str]] = defaultdict(list)
        for budget_id, start in since.items():
            alike[start].append(budget_id)
        wanted: dict[str, Any] = {}
        for number, (start, alike_ids) in enumerate(alike.items()):
            wanted |= {f"ids{number}": alike_ids, f"since{number}": start}
        for row in self.connection.execute(_counting(len(alike)), wanted):
            self.counters.rows[row.budget_id][row.bucket] = Counter(row.settled, row.reserved)
            self.stored.add((row.budget_id, row.bucket))

    # -- admitting ------------------------------------------------------------------------------

    def _admit(self, operation: Admit, before: Sequence[BudgetRow]) -> Grant | Refusal | Stored:
        ask = operation.ask
        key = self.known.keys.get(ask.key.id)
        if key is None or not key.alive(self.at):
            return Refusal("revoked", reason="the key was revoked or has expired")
        if reason := self.known.suspended.get((ask.upstream, ask.model)):
            return Refusal("suspended", reason=reason)
        if key is not ask.key:
            ask = replace(ask, key=key)
        budgets = [self.known.budgets[b.id] for b in before if b.id in self.known.budgets]
        if ask.idempotency and ask.attempt == 1:
            stored = self._claim(ask, operation.keep)
            if stored is not None:
                return stored
        grant = admit(ask, budgets, self.counters, self.at)
        if isinstance(grant, Refusal):
            if ask.idempotency and ask.attempt == 1:
                self._forget(ask.key.id, ask.idempotency)
            return grant
        row = {
            "id": ask.id,
            "state": "sent" if ask.sent else "held",
            "worker": operation.worker,
            "admitted_at": self.at,
            "lease_until": self.at + operation.lease,
            "key_id": key.id,
            "owner": key.owner,
            "team": key.team,
            "model": ask.model,
            "route": ask.route,
            "endpoint": ask.endpoint,
            "upstream": ask.upstream,
            "request": ask.request,
            "attempt": ask.attempt,
            "prompt": ask.prompt,
            "output": ask.choices * grant.output,
            "nanousd": grant.nanousd,
            "lines": orjson.dumps([list(line) for line in grant.lines]).decode(),
            "idempotency": ask.idempotency or None,
        }
        self.opened.append(row)
        return grant

    def _claim(self, ask: Ask, keep: float) -> Stored | None:
        table = schema.outcomes
        self.connection.execute(delete(table).where(table.c.expires_at < self.at))
        dialect = sqlite if is_sqlite(self.connection) else postgresql
        row = {
            "key_id": ask.key.id,
            "idempotency": ask.idempotency,
            "fingerprint": ask.fingerprint,
            "reservation": ask.id,
            "status": 0,
            "media": "",
            "body": b"",
            "expires_at": self.at + keep,
        }
        claim = dialect.insert(table).values(row).on_conflict_do_nothing()
        if self.connection.execute(claim.returning(table.c.key_id)).first() is not None:
            return None
        mine = (table.c.key_id == ask.key.id) & (table.c.idempotency == ask.idempotency)
        found = self.connection.execute(select(table).where(mine)).one()
        if found.status == 0 and self._stale(found, keep):
            self.connection.execute(update(table).where(mine).values(**row))
            return None
        same = found.fingerprint == ask.fingerprint
        return Stored(found.status, found.media, found.body, same)

    def _stale(self, found: Any, keep: float) -> bool:
        """Whether the worker of a claim died between two attempts."""
        if self.at - (found.expires_at - keep) < _STALE:
            return False
        table = schema.reservations
        open_ = select(table.c.id).where(
            table.c.key_id == found.key_id, table.c.idempotency == found.idempotency
        )
        return self.connection.execute(open_.limit(1)).first() is None

    def _forget(self, key_id: str, idempotency: str) -> None:
        """Give up a claim that has no outcome."""
        table = schema.outcomes
        self.connection.execute(
            delete(table).where(
                table.c.key_id == key_id, table.c.idempotency == idempotency, table.c.status == 0
            )
        )

    def _remember(self, row: Any, outcome: Outcome | None) -> None:
        if row.idempotency is None or outcome is None:
            return
        table = schema.outcomes
        self.connection.execute(
            update(table)
            .where(table.c.key_id == row.key_id, table.c.idempotency == row.idempotency)
            .values(status=outcome.status, media=outcome.media, body=outcome.body)
        )

    # -- closing --------------------------------------------------------------------------------

    def _other(self, operation: Operation) -> Result:
        if isinstance(operation, Settle):
            row = self.rows.pop(operation.id, None)
            if row is None:
                return Settled(0, 0, (), late=True)
            self._remember(row, operation.outcome)
            return self._settle(row, operation.charge)
        if isinstance(operation, Release):
            row = self.rows.pop(operation.id, None)
            if row is None:
                return False
            self._remember(row, operation.outcome)
            if operation.forget and row.idempotency is not None:
                self._forget(row.key_id, row.idempotency)
            self._close(row, "released", 0, 0, Charge(status=operation.status, note=operation.note))
            return True
        if isinstance(operation, Send):
            row = self.rows.get(operation.id)
            if row is None:
                return False
            table = schema.reservations
            self.connection.execute(
                update(table).where(table.c.id == operation.id).values(state="sent")
            )
            return True
        if isinstance(operation, Forget):
            self._forget(operation.key_id, operation.idempotency)
            return None
        if isinstance(operation, Renew):
            table = schema.reservations
            self.connection.execute(
                update(table)
                .where(table.c.worker == operation.worker)
                .values(lease_until=self.at + operation.lease)
            )
            return None
        if isinstance(operation, Sweep):
            return self._sweep()
        assert isinstance(operation, Call)
        result = operation.run(self.connection, self.at)
        if catalogue.revision(self.connection) != self.known.revision:
            self.known = catalogue.read(self.connection)
        return result

    def _sweep(self) -> tuple[int, int]:
        """Numbers of reservations settled as unknown and released."""
        unknown = released = 0
        for row in [row for row in self.rows.values() if row.lease_until < self.at]:
            del self.rows[row.id]
            lost = Outcome(502, "application/json", b"")
            if row.state == "sent":
                self._remember(row, lost)
                self._settle(row, Charge(full=True, status=0, note="its worker died"))
                unknown += 1
            else:
                if row.idempotency is not None:
                    self._forget(row.key_id, row.idempotency)
                self._close(row, "released", 0, 0, Charge(status=0, note="its worker died"))
                released += 1
        return unknown, released

    def _settle(self, row: Any, charge: Charge) -> Settled:
        reserved = row.prompt + row.output
        if charge.full:
            charge = replace(charge, prompt=row.prompt, cached=0, output=row.output, reasoning=0)
            self._close(row, "unknown", reserved, row.nanousd, charge)
            return Settled(reserved, row.nanousd, self._left(row))
        over = charge.tokens > reserved or charge.nanousd > row.nanousd
        kind = "unknown" if charge.unknown else "settled"
        self._close(row, kind, charge.tokens, charge.nanousd, charge)
        if over:
            self._overrun(row, charge)
        return Settled(charge.tokens, charge.nanousd, self._left(row), overrun=over)

    def _left(self, row: Any) -> tuple[Left, ...]:
        ids = {line.budget for line in self.lines[row.id]}
        rows = (self.known.budgets.get(each) for each in sorted(ids))
        return tuple(self.counters.left(b, self.at) for b in rows if b is not None)

    def _close(self, row: Any, kind: str, tokens: int, nanousd: int, charge: Charge) -> None:
        settle(self.lines[row.id], tokens, nanousd, self.counters)
        self.closed.append(row.id)
        self.entries.append(entry(row, kind, self.at, charge, nanousd))

    def _overrun(self, row: Any, charge: Charge) -> None:
        reserved = row.prompt + row.output
        message = (
            f"{row.upstream} used {charge.tokens} tokens for {row.model} where {reserved} were "
            f"allowed (request {row.request}); it is suspended for this model"
        )
        beyond = max(0, charge.nanousd - row.nanousd)
        self.entries.append(entry(row, "overrun", self.at, replace(charge, note=message), beyond))
        dialect = sqlite if is_sqlite(self.connection) else postgresql
        values = {
            "upstream": row.upstream,
            "model": row.model,
            "at": self.at,
            "reason": message,
        }
        self.connection.execute(
            dialect.insert(schema.suspensions).values(values).on_conflict_do_nothing()
        )
        self.connection.execute(
            insert(schema.alerts).values(at=self.at, kind="overrun", message=message)
        )
        catalogue.touch(self.connection)
        self.known = catalogue.read(self.connection)

    # -- writing --------------------------------------------------------------------------------

    def _write(self) -> None:
        connection = self.connection
        if self.closed:
            connection.execute(_CLOSE, {"ids": self.closed})
        if self.opened:
            connection.execute(insert(schema.reservations), self.opened)
        if self.entries:
            connection.execute(insert(schema.ledger), self.entries)
        new, moved = [], []
        for (budget, bucket), change in sorted(self.counters.changes.items()):
            if (budget, bucket) not in self.stored:
                row = {"settled": change.settled, "reserved": change.reserved}
                new.append({"budget_id": budget, "bucket": bucket, **row})
            elif change.settled or change.reserved:
                row = {"more_settled": change.settled, "more_reserved": change.reserved}
                moved.append({"of_budget": budget, "of_bucket": bucket, **row})
        if new:
            connection.execute(insert(schema.counters), new)
        if moved:
            connection.execute(_MOVE, moved)


def _turn(operation: Operation) -> int:
    """What settles by itself comes before the sweep, and what frees room before what takes it."""
    return 2 if isinstance(operation, Admit) else int(isinstance(operation, Sweep))


# Statements that every batch runs are built once: building them costs more than running them.
_ONE_OF = schema.reservations.c.id.in_(bindparam("ids", expanding=True))
_RESERVED = select(schema.reservations).where(_ONE_OF).order_by(schema.reservations.c.id)
_RESERVED_LOCKED = _RESERVED.with_for_update()
_CLOSE = delete(schema.reservations).where(_ONE_OF)


@cache
def _counting(groups: int) -> Select[Any]:
    """The counters of groups of budgets, each from a bucket on."""
    table = schema.counters
    return select(table).where(
        or_(
            *(
                and_(
                    table.c.budget_id.in_(bindparam(f"ids{number}", expanding=True)),
                    table.c.bucket >= bindparam(f"since{number}"),
                )
                for number in range(groups)
            )
        )
    )


_MOVE = (
    update(schema.counters)
    .where(
        schema.counters.c.budget_id == bindparam("of_budget"),
        schema.counters.c.bucket == bindparam("of_bucket"),
    )
    .values(
        settled=schema.counters.c.settled + bindparam("more_settled"),
        reserved=schema.counters.c.reserved + bindparam("more_reserved"),
    )
)


def lines_of(text: str) -> tuple[Line, ...]:
    """The lines of a reservation's row."""
    return tuple(Line(*each) for each in orjson.loads(text))


def entry(row: Any, kind: str, at: float, charge: Charge, nanousd: int) -> dict[str, Any]:
    """A ledger row."""
    shared: Mapping[str, Any] = row._mapping
    copied = {
        name: shared[name]
        for name in (
            "admitted_at",
            "key_id",
            "owner",
            "team",
            "model",
            "route",
            "endpoint",
            "upstream",
            "request",
            "attempt",
        )
    }
    return {
        **copied,
        "reservation": row.id,
        "kind": kind,
        "at": at,
        "reserved_tokens": row.prompt + row.output,
        "reserved_nanousd": row.nanousd,
        "prompt": charge.prompt,
        "cached": charge.cached,
        "output": charge.output,
        "reasoning": charge.reasoning,
        "nanousd": nanousd,
        "status": charge.status,
        "seconds": charge.seconds,
        "ttft": charge.ttft,
        "stages": charge.stages,
        "note": charge.note,
    }
