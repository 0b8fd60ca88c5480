"""The tables, in SQLAlchemy Core. Migrations (`gateway/migrations`) create them.

Money is in nano-dollars, time in seconds since 1970 on the database's clock. The ledger and the
audit log are append-only: triggers refuse updates and deletes.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()
_SERIAL = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up integers alone

keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("owner", String(200), nullable=False),
    Column("team", String(200), nullable=False),
    Column("models", Text, nullable=False),  # JSON list of patterns; [] for all
    Column("created_at", Float(53), nullable=False),
    Column("expires_at", Float(53)),
    Column("revoked_at", Float(53)),
)

budgets = Table(
    "budgets",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("unit", String(8), nullable=False),  # tokens or nanousd
    Column("amount", BigInteger, nullable=False),
    Column("window", String(8), nullable=False),
    Column("zone", String(64), nullable=False),
    Column("seconds", Integer, nullable=False),
    Column("mode", String(8), nullable=False),
    Column("key_id", String(32)),
    Column("owner", String(200)),
    Column("team", String(200)),
    Column("model", String(200)),
    Column("route", String(200)),
    Column("created_at", Float(53), nullable=False),
    Column("archived_at", Float(53)),
    CheckConstraint("amount >= 0"),
)

counters = Table(
    "counters",
    metadata,
    Column("budget_id", String(32), primary_key=True),
    Column("bucket", BigInteger, primary_key=True),
    Column("settled", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
    CheckConstraint("settled >= 0"),
    CheckConstraint("reserved >= 0"),
)

reservations = Table(
    "reservations",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("state", String(8), nullable=False),  # held or sent
    Column("worker", String(32), nullable=False),
    Column("admitted_at", Float(53), nullable=False),
    Column("lease_until", Float(53), nullable=False),
    Column("key_id", String(32), nullable=False),
    Column("owner", String(200), nullable=False),
    Column("team", String(200), nullable=False),
    Column("model", String(200), nullable=False),
    Column("route", String(200), nullable=False),
    Column("endpoint", String(32), nullable=False),
    Column("upstream", String(200), nullable=False),
    Column("request", String(64), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("prompt", BigInteger, nullable=False),
    Column("output", BigInteger, nullable=False),
    Column("nanousd", BigInteger, nullable=False),
    Column("lines", Text, nullable=False),  # JSON [[budget, bucket, amount], ...]
    Column("idempotency", String(255)),
    Index("ix_reservations_lease", "lease_until"),
    Index("ix_reservations_worker", "worker"),
)

ledger = Table(
    "ledger",
    metadata,
    Column("seq", _SERIAL, primary_key=True, autoincrement=True),
    Column("reservation", String(32), nullable=False),
    Column("kind", String(8), nullable=False),  # settled, unknown, released, overrun, late
    Column("at", Float(53), nullable=False),
    Column("admitted_at", Float(53), nullable=False),
    Column("key_id", String(32), nullable=False),
    Column("owner", String(200), nullable=False),
    Column("team", String(200), nullable=False),
    Column("model", String(200), nullable=False),
    Column("route", String(200), nullable=False),
    Column("endpoint", String(32), nullable=False),
    Column("upstream", String(200), nullable=False),
    Column("request", String(64), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("reserved_tokens", BigInteger, nullable=False),
    Column("reserved_nanousd", BigInteger, nullable=False),
    Column("prompt", BigInteger, nullable=False),
    Column("cached", BigInteger, nullable=False),
    Column("output", BigInteger, nullable=False),
    Column("reasoning", BigInteger, nullable=False),
    Column("nanousd", BigInteger, nullable=False),
    Column("status", Integer, nullable=False),
    Column("seconds", Float(53), nullable=False),
    Column("ttft", Float(53)),
    Column("stages", Text, nullable=False),  # JSON: the stack's own ledger, where one ran
    Column("note", Text, nullable=False),
    UniqueConstraint("reservation", "kind"),
    Index("ix_ledger_at", "at"),
    Index("ix_ledger_key", "key_id", "at"),
    Index("ix_ledger_request", "request"),
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("key_id", String(32), primary_key=True),
    Column("idempotency", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("reservation", String(32), nullable=False),
    Column("status", Integer, nullable=False),  # 0 while in flight
    Column("media", String(100), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("expires_at", Float(53), nullable=False),
    Index("ix_outcomes_expires", "expires_at"),
)

suspensions = Table(
    "suspensions",
    metadata,
    Column("upstream", String(200), primary_key=True),
    Column("model", String(200), primary_key=True),
    Column("at", Float(53), nullable=False),
    Column("reason", Text, nullable=False),
)

alerts = Table(
    "alerts",
    metadata,
    Column("seq", _SERIAL, primary_key=True, autoincrement=True),
    Column("at", Float(53), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("message", Text, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", _SERIAL, primary_key=True, autoincrement=True),
    Column("at", Float(53), nullable=False),
    Column("actor", String(32), nullable=False),
    Column("action", String(32), nullable=False),
    Column("target", String(200), nullable=False),
    Column("detail", Text, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("key_id", String(32), nullable=False),
    Column("csrf", String(64), nullable=False),
    Column("expires_at", Float(53), nullable=False),
)

frontiers = Table(
    "frontiers",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("at", Float(53), nullable=False),
    Column("key_id", String(32), nullable=False),
    Column("owner", String(200), nullable=False),
    Column("title", String(200), nullable=False),
    Column("body", Text, nullable=False),  # JSON of `outlay compare --json`, as far as it is shown
)

refusals = Table(
    "refusals",
    metadata,
    Column("hour", BigInteger, primary_key=True),
    Column("key_id", String(32), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("owner", String(200), nullable=False),
    Column("number", BigInteger, nullable=False),
)

meta = Table(
    "meta",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", String(200), nullable=False),
)

APPEND_ONLY = ("ledger", "audit")
