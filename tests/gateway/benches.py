"""A store by itself, for tests of what it guarantees."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy import Connection, select

from outlay.gateway.store import admin, schema
from outlay.gateway.store.books import Ask, BudgetRow, Grant, Key
from outlay.gateway.store.migrate import upgrade
from outlay.gateway.store.store import Store
from outlay.gateway.windows import Window


@dataclass
class Bench:
    """A store with one key and one budget of 100 tokens."""

    store: Store
    key: Key
    budget: BudgetRow

    def ask(self, **knobs: Any) -> Ask:
        made = Ask(secrets.token_hex(16), self.key, "m", "default", "chat", "u", 10, 20)
        return replace(made, **knobs)

    async def grant(self, **knobs: Any) -> Grant:
        found = await self.store.admit(self.ask(**knobs))
        assert isinstance(found, Grant), found
        return found

    async def counters(self) -> tuple[int, int]:
        def read(connection: Connection, now: float) -> Any:
            table = schema.counters
            where = table.c.budget_id == self.budget.id
            return connection.execute(select(table).where(where)).one_or_none()

        row = await self.store.call(read)
        return (0, 0) if row is None else (row.settled, row.reserved)

    async def rows(self, table: Any) -> list[Any]:
        return await self.store.call(lambda c, now: list(c.execute(select(table))))

    async def admin(self, work: Callable[..., Any], **fields: Any) -> Any:
        return await self.store.call(
            lambda connection, now: work(connection, now, actor="test", **fields)
        )


@asynccontextmanager
async def bench(url: str, *, amount: int = 100, lease: float = 30.0) -> AsyncIterator[Bench]:
    store = Store(url, lease=lease)
    upgrade(store.engine)
    await store.start(upkeep=False)
    try:
        make = partial(admin.create_key, actor="test", name="ann", team="red")
        key = (await store.call(lambda c, now: make(c, now))).key
        give = partial(
            admin.create_budget,
            actor="test",
            name="ann's",
            unit="tokens",
            amount=amount,
            window=Window("total"),
            key_id=key.id,
        )
        yield Bench(store, key, await store.call(lambda c, now: give(c, now)))
    finally:
        await store.stop()
