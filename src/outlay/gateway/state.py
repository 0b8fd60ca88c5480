"""What the requests of a worker share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from outlay.gateway.config import Config
from outlay.gateway.door import Door
from outlay.gateway.metrics import Metrics
from outlay.gateway.policies.running import Runner
from outlay.gateway.problems import no_key
from outlay.gateway.store.admin import same, split
from outlay.gateway.store.batch import Forget, Release, Settle
from outlay.gateway.store.books import Key
from outlay.gateway.store.store import Store, StoreError
from outlay.gateway.upstream import Server
from outlay.gateway.wire import Scope, bearer

if TYPE_CHECKING:
    from outlay.gateway.coin import Audited
    from outlay.gateway.telemetry import Telemetry

log = logging.getLogger("outlay.gateway")
_MOST_WAITING = 1000  # callers whose unknown key is being looked for


@dataclass
class Gateway:
    """What requests share.

    Args:
        config: the current configuration; replaced when the file changes.
        store: keys, budgets, ledger.
        servers: upstreams by name.
        metrics: counters for Prometheus.
        runner: of policies.
        refused: told of every request that was not admitted, and why.
        telemetry: traces requests; None does not.
        coin: commits to hidden reasoning; None does not.
    """

    config: Config
    store: Store
    servers: dict[str, Server]
    metrics: Metrics
    runner: Runner
    refused: Callable[[Key, str], None] = lambda key, kind: None
    telemetry: Telemetry | None = None
    coin: Audited | None = None
    closing: set[asyncio.Task[Any]] = field(default_factory=set)
    door: Door = field(init=False)
    _looked: float = 0.0
    _look: asyncio.Future[None] | None = None
    _waiting: int = 0

    def __post_init__(self) -> None:
        self.door = Door(self.metrics)

    def known(self, scope: Scope) -> Key | None:
        """The caller's key, if it is in memory and alive: no wait, no database."""
        token = bearer(scope)
        parts = split(token) if token else None
        if parts is None:
            return None
        key = self.store.key(parts[0])
        if not same(parts[1], key.digest if key is not None else "0" * 64):
            return None
        return key if key is not None and key.alive(time.time()) else None

    def looks(self, scope: Scope) -> bool:
        """Whether a key that is not in memory is looked for: another process may have made it.

        At most two looks a second: unknown keys must not reach the database. Callers that come
        while one is under way share it.
        """
        parts = split(bearer(scope))
        if parts is None or self.store.key(parts[0]) is not None:
            return False
        if self._look is not None and not self._look.done():
            return self._waiting < _MOST_WAITING
        return time.monotonic() - self._looked >= 0.5

    async def key(self, scope: Scope) -> Key:
        """The caller's key.

        Raises:
            RequestError: 401 if it is missing, unknown, revoked or expired.
        """
        key = self.known(scope)
        if key is None and self.looks(scope):
            if self._look is None or self._look.done():
                self._looked = time.monotonic()
                self._look = asyncio.ensure_future(self.store.refresh())
            self._waiting += 1
            try:
                await asyncio.shield(self._look)
            finally:
                self._waiting -= 1
            key = self.known(scope)
        if key is None:
            raise no_key()
        return key

    def book(
        self, closing: Settle | Release | Forget, *, answered: bool = True
    ) -> asyncio.Future[Any]:
        """Close a reservation, or give up a claim, without waiting for it.

        While the database fails it is tried again and again in the background.
        """
        future = self.store.submit(closing, answered=answered)
        future.add_done_callback(partial(self._persisted, closing))
        return future

    async def persist(self, closing: Settle | Release | Forget) -> Any:
        """The same, waiting for it; it is done whatever happens to the caller meanwhile."""
        future = self.book(closing, answered=False)
        with contextlib.suppress(StoreError):
            return await asyncio.shield(future)
        return None

    def _persisted(self, closing: Settle | Release | Forget, done: asyncio.Future[Any]) -> None:
        if done.cancelled() or done.exception() is None:
            return
        self.metrics.store_errors.inc()
        log.error("the database failed while settling; trying again in the background")

        async def again() -> None:
            wait = 0.5
            while True:
                await asyncio.sleep(wait)
                wait = min(30.0, wait * 2)
                with contextlib.suppress(StoreError):
                    await self.store.submit(closing)
                    return

        task = asyncio.create_task(again())
        self.closing.add(task)
        task.add_done_callback(self.closing.discard)
