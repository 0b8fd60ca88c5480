"""A gateway in a thread of the tests' process: real uvicorn, real sockets, a database file."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from sqlalchemy import Connection

from outlay.gateway.app import build
from outlay.gateway.config import Config, read
from outlay.gateway.run import bootstrap
from outlay.gateway.state import Gateway
from outlay.gateway.store import admin
from outlay.gateway.store.admin import NewKey

CONFIG = """\
[server]
port = 0
log_level = "error"

[store]
url = {database}

[upstreams.recorder]
url = {upstream}

[models.plain]
upstream = "recorder"
price = {{ input = 1, output = 2 }}

[models.drip]
upstream = "recorder"
price = {{ input = 1, output = 2 }}

[models.greedy]
upstream = "recorder"
price = {{ input = 1, output = 2 }}

[routes.default]
models = ["*"]
default_max_output = 16
"""


@dataclass
class Serving:
    """A gateway that answers at `url`; `token` is its admin key, `tokens` others by name."""

    url: str
    token: str
    gateway: Gateway
    loop: asyncio.AbstractEventLoop
    tokens: dict[str, str] = field(default_factory=dict)

    def call(self, work: Callable[..., Any], **fields: Any) -> Any:
        """Run `work(connection, now, **fields)` in the store."""

        def run(connection: Connection, now: float) -> Any:
            return work(connection, now, **fields)

        return self.wait(self.gateway.store.call(run))

    def wait(self, work: Any) -> Any:
        """The result of a coroutine on the gateway's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def key(self, name: str, **fields: Any) -> NewKey:
        """A new key."""
        made = self.call(partial(admin.create_key, actor="test"), name=name, **fields)
        assert isinstance(made, NewKey)
        return made

    def chat(self, token: str, model: str = "plain", **fields: Any) -> httpx.Response:
        """One chat request."""
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}
        return httpx.post(
            f"{self.url}/v1/chat/completions",
            json=body,
            headers={"authorization": f"Bearer {token}"},
            timeout=60,
        )


@contextmanager
def serving(
    folder: Path, upstream: str, *, database: str = "", more: str = "", first: bool = False
) -> Iterator[Serving]:
    """A gateway in front of `upstream`.

    Args:
        folder: for its configuration and database.
        upstream: base URL.
        database: URL; empty for SQLite in `folder`.
        more: further TOML.
        first: put it before the default route, which takes every model.
    """
    path = folder / "gateway.toml"
    url = database or f"sqlite:///{folder / 'gateway.db'}"
    text = CONFIG.format(database=json.dumps(url), upstream=json.dumps(upstream))
    head, default = text.split("[routes.default]")
    parts = (head, more, "\n[routes.default]", default) if first else (text, more)
    path.write_text("".join(parts), encoding="utf-8")
    config = read(path)
    token = bootstrap(config)
    assert token is not None
    with _running(config) as (address, gateway, loop):
        yield Serving(address, token, gateway, loop)


@contextmanager
def _running(config: Config) -> Iterator[tuple[str, Gateway, asyncio.AbstractEventLoop]]:
    app = build(config)
    settings = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", ws="none")
    server = uvicorn.Server(settings)
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive(), "the gateway did not start"
        assert time.monotonic() < until, "the gateway did not start within a minute"
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", app.state.gateway, loops[0]
    finally:
        server.should_exit = True
        thread.join(60)
