"""Requests that were not admitted, counted by hour, key and kind.

A refusal costs the database nothing when it happens: counts gather in memory and are written
together every two seconds. A worker that is killed loses at most those; they are for people to look
at, and no books depend on them.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import NamedTuple

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects import postgresql, sqlite

from outlay.gateway.store import schema
from outlay.gateway.store.books import Key
from outlay.gateway.store.engine import is_sqlite
from outlay.gateway.store.store import Store, StoreError

_EVERY = 2.0
_HOUR = 3600


class _Count(NamedTuple):
    hour: int
    key_id: str
    owner: str
    kind: str


class Refusals:
    """Counts refusals.

    Args:
        store: where they are written.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._counts: Counter[_Count] = Counter()
        self._task: asyncio.Task[None] | None = None

    def note(self, key: Key, kind: str) -> None:
        """Count one."""
        hour = int(time.time() // _HOUR) * _HOUR
        self._counts[_Count(hour, key.id, key.owner, kind)] += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._later())

    async def _later(self) -> None:
        await asyncio.sleep(_EVERY)
        while self._counts:
            counts, self._counts = self._counts, Counter()

            def work(connection: Connection, now: float, counts: Counter[_Count] = counts) -> None:
                _add(connection, counts)

            try:
                await self._store.call(work)
            except StoreError:
                self._counts.update(counts)
            await asyncio.sleep(_EVERY)


def _add(connection: Connection, counts: Counter[_Count]) -> None:
    table = schema.refusals
    dialect = sqlite if is_sqlite(connection) else postgresql
    query = dialect.insert(table)
    query = query.on_conflict_do_update(
        index_elements=[table.c.hour, table.c.key_id, table.c.kind],
        set_={"number": table.c.number + query.excluded.number},
    )
    rows = [{**count._asdict(), "number": number} for count, number in sorted(counts.items())]
    connection.execute(query, rows)


def refused(connection: Connection, since: float, owner: str | None) -> list[tuple[str, int]]:
    """Numbers of refusals by kind, in the hours since `since`; of one owner where given."""
    table = schema.refusals
    number = func.sum(table.c.number)
    query = select(table.c.kind, number).where(table.c.hour > since - _HOUR).group_by(table.c.kind)
    if owner is not None:
        query = query.where(table.c.owner == owner)
    rows = connection.execute(query.order_by(number.desc()))
    return [(str(kind), int(count)) for kind, count in rows]
