"""Calls of a policy's methods through the gateway's own upstream.

Methods run in threads and see an ordinary `EndpointModel`; its requests go through the upstream's
connections, circuit breaker and address checks, and each is taken from the request's purse first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from outlay.errors import EndpointError
from outlay.gateway.bounds import bound, counter, parse
from outlay.gateway.config import Config, Endpoint, ModelTable, Route
from outlay.gateway.policies.purse import Purse, Taken
from outlay.gateway.upstream import Broken, NotSent, Reply, Server
from outlay.gateway.usage import Tally, Usage
from outlay.models.retry import RefusedError, Tries
from outlay.models.transport import DONE, ServerInfo

_ENDPOINTS: dict[str, Endpoint] = {"/chat/completions": "chat", "/completions": "completions"}
_UNCHARGED = frozenset({429, 503})  # said before any work was done
_LONGEST_ERROR = 4_000
_CHOICES = 1024


@dataclass
class Through:
    """The wire of one request's model.

    Args:
        config: limits.
        table: the model's.
        model: its name upstream.
        server: its upstream.
        purse: the request's reservation.
        loop: that the upstream lives on.
        request: its id.
        charge_failures: whether a server error is charged in full.
        served_by: the server's kind, None where it is not known.
    """

    config: Config
    table: ModelTable
    model: str
    server: Server
    purse: Purse
    loop: asyncio.AbstractEventLoop
    request: str
    charge_failures: Literal["full", "none"]
    served_by: str | None
    shown: str = field(init=False)
    _open: set[Future[Any]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.shown = self.server.name
        # A method may sample as many choices and tokens as its reservation holds.
        self._route = Route(max_n=_CHOICES)

    def models(self) -> ServerInfo:
        """What the configuration says of the server."""
        if self.served_by is None:
            return ServerInfo(None)
        return ServerInfo({self.model: {"owned_by": self.served_by}})

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        tries: Tries,
        *,
        deadline: float | None = None,
        attempts: int | None = None,
    ) -> dict[str, Any]:
        """Send one call.

        Raises:
            BudgetError: if the reservation has no room for it.
            EndpointError: if the upstream fails or refuses it.
        """
        return self._wait(self._call(_ENDPOINTS[path], dict(body), tries))

    def events(
        self,
        path: str,
        body: Mapping[str, Any],
        tries: Tries,
        *,
        deadline: float | None = None,
    ) -> Iterator[Mapping[str, Any]]:
        """As `post`: the answer comes whole."""
        whole = {k: v for k, v in body.items() if k not in ("stream", "stream_options")}
        yield self.post(path, whole, tries)
        yield DONE

    def close(self) -> None:
        """Give up the calls in flight."""
        for future in list(self._open):
            future.cancel()

    def _wait(self, call: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        future = asyncio.run_coroutine_threadsafe(call, self.loop)
        self._open.add(future)
        try:
            return future.result()
        except CancelledError as error:
            raise EndpointError("the request is over; its calls were given up") from error
        finally:
            self._open.discard(future)

    async def _call(self, endpoint: Endpoint, body: dict[str, Any], tries: Tries) -> dict[str, Any]:
        raw = orjson.dumps(body)
        limits = self.config.server
        wanted = bound(
            parse(endpoint, raw, limits.max_depth), self.table, self._route, limits.max_tokens
        )
        taken = self.purse.take(wanted.prompt, wanted.output * wanted.choices)
        if not self.server.ready():
            self.purse.settle(taken, Usage(0, 0, 0, 0))
            raise EndpointError(f"{self.shown} is not answering; its circuit is open")
        async with self.server.slot():
            self.purse.send(taken)
            try:
                async with self.server.send(endpoint, body, raw, self.request) as reply:
                    return await self._read(endpoint, reply, taken, tries)
            except NotSent as error:
                self.purse.settle(taken, Usage(0, 0, 0, 0))
                raise EndpointError(str(error)) from error
            except Broken as error:
                tries.answers += 1  # not settled: it counts in full
                raise EndpointError(str(error)) from error

    async def _read(
        self, endpoint: Endpoint, reply: Reply, taken: Taken, tries: Tries
    ) -> dict[str, Any]:
        raw = bytearray()
        async for piece in reply.pieces:
            raw += piece
        if reply.status != 200:
            failed = reply.status >= 500 and reply.status not in _UNCHARGED
            free = self.charge_failures == "none" if failed else reply.status >= 400
            if free:
                self.purse.settle(taken, Usage(0, 0, 0, 0))
            else:
                tries.answers += 1
            detail = raw[:_LONGEST_ERROR].decode("utf-8", "replace")
            raise RefusedError(f"{self.shown} answered {reply.status}", reply.status, detail)
        try:
            payload = orjson.loads(bytes(raw))
        except orjson.JSONDecodeError as error:
            tries.answers += 1
            raise EndpointError(f"{self.shown} answered 200 with no JSON") from error
        if not isinstance(payload, dict) or payload.get("error"):
            tries.answers += 1
            raise EndpointError(f"{self.shown} answered 200 with an error")
        tally = Tally(
            endpoint, None if self.table.tokenizer is None else counter(self.table.tokenizer)
        )
        tally.whole(payload)
        reported, counted = tally.usage, tally.output()
        if reported is None:
            known = tally.count is not None
            self.purse.settle(taken, Usage(taken.prompt, 0, counted, 0) if known else None)
        else:
            output = max(reported.output, counted)
            self.purse.settle(
                taken, Usage(reported.prompt, reported.cached, output, reported.reasoning)
            )
        return payload
