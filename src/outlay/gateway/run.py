"""Running the gateway: the bootstrap key, logs, uvicorn with its workers."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import select
from starlette.applications import Starlette

from outlay.gateway.config import Config, read
from outlay.gateway.store import admin, schema
from outlay.gateway.store.engine import now, open_engine
from outlay.gateway.store.migrate import upgrade

_CONFIG = "OUTLAY_GATEWAY_CONFIG"  # hands the file's name to worker processes
_FIELDS = ("request", "body", "endpoint", "model", "route", "status", "seconds", "turned_away")


class JsonLines(logging.Formatter):
    """One JSON object a line; no keys, and bodies only where `server.log_prompts` asks for them."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "at": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def logs(level: str) -> dict[str, Any]:
    """A logging configuration for this process and uvicorn's own loggers."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonLines}},
        "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "json"}},
        "root": {"handlers": ["out"], "level": level.upper()},
        "loggers": {"uvicorn.access": {"level": "WARNING"}},
    }


def bootstrap(config: Config) -> str | None:
    """An admin key where the database has none: shown once, on the first start.

    Returns:
        Its token, None where there are keys already.
    """
    engine = open_engine(config.store.url.get_secret_value(), config.store.durability)
    try:
        upgrade(engine)
        with engine.begin() as connection:
            some = connection.execute(select(schema.keys.c.id).limit(1)).first()
            if some is not None:
                return None
            made = admin.create_key(
                connection, now(connection), actor="bootstrap", name="bootstrap", role="admin"
            )
            return made.token
    finally:
        engine.dispose()


def create() -> Starlette:
    """The application of a worker process."""
    from outlay.gateway.app import build

    sys.setswitchinterval(0.0005)  # requests wait for no more of a batch of the store's thread
    path = os.environ.get(_CONFIG)
    return build(read(path), path=Path(path) if path else None)


def run(config: Config, path: Path | None) -> None:
    """Serve until stopped."""
    import uvicorn

    from outlay.gateway.app import check

    check(config)
    token = bootstrap(config)
    if token is not None:
        print(f"admin key, shown this once: {token}", file=sys.stderr, flush=True)
    if path is not None:
        os.environ[_CONFIG] = str(path.resolve())
    server = config.server
    uvicorn.run(
        "outlay.gateway.run:create",
        factory=True,
        host=server.host,
        port=server.port,
        workers=server.workers,
        log_config=logs(server.log_level),
        access_log=False,
        server_header=False,
        date_header=True,
        timeout_graceful_shutdown=max(1, round(server.grace)),
        timeout_keep_alive=75,
        h11_max_incomplete_event_size=65_536,
        ssl_certfile=server.certificate,
        ssl_keyfile=server.key,
        proxy_headers=False,
        ws="none",
    )
