"""Keys, budgets and suspensions, as a worker holds them in memory.

They are read again when their revision in the database moves. Every batch of the store looks at the
revision inside its own transaction, so a key that was revoked or a limit that was lowered counts
from the next admission on, on every replica.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from sqlalchemy import Connection, Row, insert, select, text, update

from outlay.gateway.store import schema
from outlay.gateway.store.books import BudgetRow, Key, Mode, Unit, index
from outlay.gateway.store.engine import CLOCKS
from outlay.gateway.windows import Kind, Window

_REVISION = "revision"
_CURRENT = select(schema.meta.c.value).where(schema.meta.c.name == _REVISION)
_LOOKS = {
    dialect: text(f"SELECT {clock}, (SELECT value FROM meta WHERE name = '{_REVISION}')")
    for dialect, clock in CLOCKS.items()
}


@dataclass(frozen=True)
class Catalogue:
    """One revision of what the database holds."""

    revision: int = -1
    keys: Mapping[str, Key] = field(default_factory=dict)
    budgets: Mapping[str, BudgetRow] = field(default_factory=dict)
    indexed: Mapping[tuple[str, str], Sequence[BudgetRow]] = field(default_factory=dict)
    suspended: Mapping[tuple[str, str], str] = field(default_factory=dict)


def revision(connection: Connection) -> int:
    """The current revision."""
    return int(connection.execute(_CURRENT).scalar_one_or_none() or 0)


def look(connection: Connection) -> tuple[float, int]:
    """The database's clock and the current revision, in one question."""
    row = connection.execute(_LOOKS[connection.dialect.name]).one()
    return float(row[0]), int(row[1] or 0)


def touch(connection: Connection) -> None:
    """Move the revision on: called by whatever changes keys, budgets or suspensions."""
    current = revision(connection)
    meta = schema.meta
    done = connection.execute(
        update(meta).where(meta.c.name == _REVISION).values(value=str(current + 1))
    )
    if not done.rowcount:
        connection.execute(insert(meta).values(name=_REVISION, value="1"))


def read(connection: Connection) -> Catalogue:
    """Everything, at one revision."""
    at = revision(connection)
    keys = {row.id: key_of(row) for row in connection.execute(select(schema.keys))}
    live = select(schema.budgets).where(schema.budgets.c.archived_at.is_(None))
    budgets = {row.id: budget_of(row) for row in connection.execute(live)}
    suspended = {
        (row.upstream, row.model): row.reason
        for row in connection.execute(select(schema.suspensions))
    }
    return Catalogue(at, keys, budgets, index(budgets.values()), suspended)


def key_of(row: Row[tuple[object, ...]]) -> Key:
    """A key from its row."""
    return Key(
        id=row.id,
        name=row.name,
        role=row.role,
        owner=row.owner,
        team=row.team,
        digest=row.digest,
        models=tuple(json.loads(row.models)),
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )


def budget_of(row: Row[tuple[object, ...]]) -> BudgetRow:
    """A budget from its row."""
    return BudgetRow(
        id=row.id,
        name=row.name,
        unit=cast(Unit, row.unit),
        amount=row.amount,
        window=Window(cast(Kind, row.window), row.zone, row.seconds),
        mode=cast(Mode, row.mode),
        key_id=row.key_id,
        owner=row.owner,
        team=row.team,
        model=row.model,
        route=row.route,
    )
