"""Engines: SQLite (WAL) or PostgreSQL, their durability, their clock and their locks.

| | a killed process | a lost machine or power cut |
|---|---|---|
| `durability="machine"` | nothing acknowledged is lost | nothing acknowledged is lost |
| `durability="process"` | nothing acknowledged is lost | the last transactions may be lost |

SQLite: `synchronous` FULL or NORMAL. PostgreSQL: `synchronous_commit` on or off; with off, a crash
of the database server too may lose the last transactions.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Literal

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from outlay.errors import InputError

Durability = Literal["machine", "process"]


def open_engine(url: str, durability: Durability = "machine", *, pool: int = 2) -> Engine:
    """An engine for `sqlite:///path` or `postgresql://...`.

    Raises:
        InputError: for another database, or a URL that cannot be read.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise InputError(
            "store.url is no database URL; write sqlite:///outlay.db or postgresql://..."
        ) from error
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return _sqlite(parsed, durability)
    if backend != "postgresql":
        raise InputError(f"store.url names {backend}; SQLite and PostgreSQL are supported")
    try:
        engine = create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_size=pool,
            max_overflow=pool,
            pool_pre_ping=True,
            isolation_level="READ COMMITTED",
        )
    except NoSuchModuleError as error:
        raise InputError("PostgreSQL needs psycopg; pip install 'outlay[serve]'") from error
    setting = "on" if durability == "machine" else "off"

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET synchronous_commit = {setting}")
            cursor.execute("SET lock_timeout = '10s'")
            cursor.execute("SET idle_in_transaction_session_timeout = '30s'")
        connection.commit()

    return engine


def _sqlite(url: Any, durability: Durability) -> Engine:
    if url.database in (None, "", ":memory:"):
        raise InputError("store.url: an in-memory database forgets budgets; name a file")
    engine = create_engine(
        url, connect_args={"timeout": 30, "check_same_thread": False, "isolation_level": None}
    )
    level = "FULL" if durability == "machine" else "NORMAL"

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, record: object) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {level}")
        connection.execute("PRAGMA busy_timeout = 30000")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def is_sqlite(connection: Connection) -> bool:
    """True on SQLite, whose write transactions exclude each other."""
    return connection.dialect.name == "sqlite"


CLOCKS = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "extract(epoch FROM clock_timestamp())",
}
"""SQL of the database's clock, in seconds since 1970."""
_NOW = {dialect: text(f"SELECT {clock}") for dialect, clock in CLOCKS.items()}


def now(connection: Connection) -> float:
    """The database's clock, in seconds since 1970."""
    return float(connection.execute(_NOW[connection.dialect.name]).scalar_one())
