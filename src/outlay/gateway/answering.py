"""The answer that a caller gets: its head with the accounts, its body, an error in time or late."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from outlay.gateway import sse
from outlay.gateway.config import Endpoint
from outlay.gateway.ids import request_id
from outlay.gateway.money import dollars
from outlay.gateway.policies.books import Books
from outlay.gateway.problems import RequestError, error_body
from outlay.gateway.store.books import Left
from outlay.gateway.wire import EVENTS, JSON, Send


class Answer:
    """What one caller is told, and what of it is kept for an idempotency key."""

    def __init__(self, endpoint: Endpoint, send: Send) -> None:
        self.endpoint, self._send = endpoint, send
        self.id = request_id()
        self.began = time.perf_counter()
        self.ttft: float | None = None
        self.status = 0
        self.started = False
        self.left: tuple[Left, ...] = ()
        self.kept: bytearray | None = None
        self.resolved = False  # whether an outcome is stored
        self.books: Books | None = None  # of the request's policy

    def seconds(self) -> float:
        """Since the request came."""
        return time.perf_counter() - self.began

    def accounts(self, settled: Any) -> dict[str, str]:
        """The `x-outlay-*` headers."""
        headers = {} if self.books is None else self.books.headers()
        left = self.left
        if settled is not None:
            headers["x-outlay-charged-tokens"] = str(settled.tokens)
            headers["x-outlay-charged-usd"] = dollars(settled.nanousd)
            left = settled.left or left
        for unit, name, show in (
            ("tokens", "tokens", str),
            ("nanousd", "usd", dollars),
        ):
            mine = [each for each in left if each.unit == unit]
            if not mine:
                continue
            tight = min(mine, key=lambda each: each.left)
            headers[f"x-outlay-remaining-{name}"] = show(tight.left)
            if tight.renews_at is not None:
                headers[f"x-outlay-renews-{name}"] = f"{tight.renews_at:.0f}"
        return headers

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the head."""
        self.started, self.status = True, status
        every = {"x-request-id": self.id, **headers}
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(k.encode(), v.encode("latin-1", "replace")) for k, v in every.items()],
            }
        )

    async def start_stream(self) -> None:
        """Send the head of a stream, once."""
        if not self.started:
            headers = {
                "content-type": EVENTS,
                "cache-control": "no-store",
                "x-accel-buffering": "no",
            }
            await self.start(200, {**headers, **self.accounts(None)})

    async def write(self, body: bytes, *, last: bool = False, keep: bool = True) -> None:
        """Send a piece of the body."""
        if self.kept is not None and keep and not last:
            self.kept += body
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    async def fail(self, problem: RequestError) -> None:
        """Answer with an error; as the last event where a stream has begun."""
        if self.started:
            await self.break_off(str(problem))
            return
        body = problem.body()
        headers = {
            "content-type": JSON,
            "content-length": str(len(body)),
            **self.accounts(None),
            **problem.headers,
        }
        await self.start(problem.status, headers)
        await self.write(body, last=True)

    async def break_off(self, message: str) -> None:
        """End a stream that has begun with an error."""
        body = error_body(message, "api_error", "upstream_error")
        with contextlib.suppress(Exception):
            name = b"error" if self.endpoint == "responses" else b""
            await self.write(sse.event(body, name), last=True, keep=False)
