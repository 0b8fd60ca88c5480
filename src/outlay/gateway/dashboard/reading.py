"""Reading the books beside the hot path: connections of its own, which can only read.

The store's thread serves requests; a page that sums a month must not make them wait. SQLite in WAL
mode and PostgreSQL both let readers go on while others write.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from outlay.gateway.store.engine import now
from outlay.gateway.store.store import Store, StoreError

_AT_ONCE = 4
_Answer = TypeVar("_Answer")


class Reader:
    """Runs functions in read-only transactions, on four threads of its own.

    Args:
        store: whose database is read.
    """

    def __init__(self, store: Store) -> None:
        self._engine = _engine(store.engine)
        self._pool = ThreadPoolExecutor(_AT_ONCE, "outlay-dashboard")

    async def run(self, work: Callable[[Connection, float], _Answer]) -> _Answer:
        """`work(connection, now)`, with the database's time.

        Raises:
            StoreError: if the database does not answer.
        """
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._run, work)

    def _run(self, work: Callable[[Connection, float], _Answer]) -> _Answer:
        try:
            with self._engine.begin() as connection:
                return work(connection, now(connection))
        except SQLAlchemyError as error:
            raise StoreError(
                f"the database cannot be read ({type(error).__name__}); try again later"
            ) from error


def _engine(writing: Engine) -> Engine:
    if writing.dialect.name == "sqlite":
        engine = create_engine(
            writing.url,
            poolclass=NullPool,
            connect_args={"timeout": 10, "check_same_thread": False, "isolation_level": None},
        )

        @event.listens_for(engine, "connect")
        def _read_only(connection: sqlite3.Connection, record: object) -> None:
            connection.execute("PRAGMA query_only = ON")

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN")  # takes no lock until it reads

        return engine
    engine = create_engine(writing.url, poolclass=NullPool)

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET default_transaction_read_only = on")
            cursor.execute("SET statement_timeout = '20s'")
        connection.commit()

    return engine
