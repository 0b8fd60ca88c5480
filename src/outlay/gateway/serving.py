"""The way of one request: read, bound, reserve, send, settle, answer.

Raw ASGI, since every caller's latency goes through here. What is reserved is settled whatever
happens to the caller or the upstream; if the database fails, settling is tried again in the
background, and a reservation that cannot be settled is charged in full when its lease runs out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import orjson

from outlay.gateway import sse
from outlay.gateway.bounds import LIMITS, Wanted, bound, counter, parse
from outlay.gateway.config import Config, Endpoint, ModelTable
from outlay.gateway.metrics import Metrics
from outlay.gateway.money import dollars
from outlay.gateway.problems import RequestError, error_body, invalid, upstream_failed
from outlay.gateway.store.admin import same, split
from outlay.gateway.store.batch import Forget, Outcome, Release, Settle, Stored
from outlay.gateway.store.books import Ask, Charge, Grant, Key, Left, Refusal
from outlay.gateway.store.store import Store, StoreError
from outlay.gateway.upstream import Broken, NotSent, Reply, Server
from outlay.gateway.usage import Tally

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
log = logging.getLogger("outlay.gateway")
_JSON = "application/json"
_EVENTS = "text/event-stream"
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_REFUSED = frozenset({429, 503})  # said before any work was done
_LONGEST_ERROR = 1_000_000


@dataclass
class Gateway:
    """What requests share.

    Args:
        config: the current configuration; replaced when the file changes.
        store: keys, budgets, ledger.
        servers: upstreams by name.
        metrics: counters for Prometheus.
        refused: told of every request that was not admitted, and why.
    """

    config: Config
    store: Store
    servers: dict[str, Server]
    metrics: Metrics
    refused: Callable[[Key, str], None] = lambda key, kind: None
    closing: set[asyncio.Task[Any]] = field(default_factory=set)
    _looked: float = 0.0

    async def key(self, scope: Scope) -> Key:
        """The caller's key.

        Raises:
            RequestError: 401 if it is missing, unknown, revoked or expired.
        """
        token = bearer(scope)
        parts = split(token) if token else None
        key = None
        if parts is not None:
            key = self.store.key(parts[0])
            if key is None and time.monotonic() - self._looked > 0.5:
                # A replica may have made it just now. At most two looks a second: unknown keys
                # must not reach the database.
                self._looked = time.monotonic()
                await self.store.refresh()
                key = self.store.key(parts[0])
            if not same(parts[1], key.digest if key is not None else "0" * 64):
                key = None
        if key is None or not key.alive(time.time()):
            raise RequestError(
                401,
                "no valid API key was given; send 'Authorization: Bearer olk_...'",
                "authentication_error",
                "invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return key

    async def persist(self, closing: Settle | Release | Forget) -> Any:
        """Close a reservation, or give up a claim, whatever happens to the caller.

        While the database fails it is tried again and again in the background.
        """
        future = self.store.submit(closing)
        future.add_done_callback(partial(self._persisted, closing))
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


@dataclass
class Serving:
    """An ASGI application for one endpoint."""

    gateway: Gateway
    endpoint: Endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        exchange = Exchange(self.gateway, self.endpoint, scope, receive, send)
        try:
            await exchange.run()
        except RequestError as problem:
            await exchange.fail(problem)
        except StoreError as error:
            self.gateway.metrics.store_errors.inc()
            await exchange.fail(_closed(error))
        except Exception:  # a mistake of ours: said as an error of the API, and logged
            log.exception("request %s failed", exchange.id)
            await exchange.fail(
                RequestError(500, "the gateway failed; see its log", "api_error", "internal_error")
            )
        finally:
            exchange.observe()


class _AgainError(Exception):
    """An attempt failed before anything reached the caller; another may be made."""

    def __init__(self, problem: RequestError) -> None:
        super().__init__(str(problem))
        self.problem = problem


class Exchange:
    """One request of a caller, with all its attempts."""

    def __init__(
        self, gateway: Gateway, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self.gateway, self.endpoint = gateway, endpoint
        self.scope, self.receive, self._send = scope, receive, send
        self.id = "req_" + secrets.token_hex(12)
        self.began = time.perf_counter()
        self.ttft: float | None = None
        self.status = 0
        self.started = self.over = False
        self.stopped = ""
        self.model = self.route = self.upstream = ""
        self.kept: bytearray | None = None
        self.left: tuple[Left, ...] = ()
        self.claimed = self.resolved = False  # an idempotency key, and its outcome

    # -- the request ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve it.

        Raises:
            RequestError: for what the caller is told.
        """
        gateway, config = self.gateway, self.gateway.config
        key = await gateway.key(self.scope)
        raw = await read_body(self.scope, self.receive, config.server.max_body)
        wanted = parse(self.endpoint, raw, config.server.max_depth)
        table = config.models.get(wanted.model)
        if table is None:
            raise RequestError(
                404,
                f"the model {wanted.model[:100]!r} does not exist here; see /v1/models",
                code="model_not_found",
                param="model",
            )
        if not key.may_use(wanted.model):
            raise RequestError(
                403, f"this key may not use {wanted.model[:100]!r}", code="model_not_allowed"
            )
        if config.server.log_prompts:
            text = raw.decode("utf-8", "replace")
            log.info("prompt", extra={"request": self.id, "body": text})
        found = config.route(wanted.model, self.endpoint)
        if found is None:
            raise RequestError(
                403, f"no route takes {wanted.model[:100]!r} at this endpoint", code="no_route"
            )
        self.model, self.route, self.upstream = wanted.model, found[0], table.upstream
        wanted = bound(wanted, table, found[1], config.server.max_tokens)
        idempotency = header(self.scope, b"idempotency-key")
        if len(idempotency) > 255:
            raise invalid("an idempotency key has at most 255 characters")
        self.kept = bytearray() if idempotency else None
        ask = Ask(
            id="",
            key=key,
            model=wanted.model,
            route=found[0],
            endpoint=self.endpoint,
            upstream=table.upstream,
            prompt=wanted.prompt,
            output=wanted.output,
            choices=wanted.choices,
            price=table.price,
            least=found[1].least_output,
            request=self.id,
            idempotency=idempotency,
            fingerprint=wanted.fingerprint,
        )
        task = asyncio.current_task()
        assert task is not None
        watch = asyncio.create_task(self._gone(task))
        timer = asyncio.get_running_loop().call_later(
            config.server.timeout, self._stop, task, "timeout"
        )
        try:
            await self._claimed(ask, wanted, table)
        except asyncio.CancelledError:
            if not self.stopped or task.uncancel():
                raise  # the server stops
            if self.stopped == "timeout":
                raise RequestError(
                    504, "the request took too long", "api_error", "request_timeout"
                ) from None
            self.status = self.status or 499
        finally:
            self.over = True
            timer.cancel()
            watch.cancel()

    async def _gone(self, task: asyncio.Task[Any]) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self._stop(task, "disconnect")

    def _stop(self, task: asyncio.Task[Any], why: str) -> None:
        """Cancel the request, once, while it is served."""
        if not self.over and not self.stopped:
            self.stopped = why
            task.cancel()

    async def _claimed(self, ask: Ask, wanted: Wanted, table: ModelTable) -> None:
        """All attempts; one that ends without an outcome gives up its idempotency key."""
        try:
            await self._attempts(ask, wanted, table)
        finally:
            if self.claimed and not self.resolved:
                await self.gateway.persist(Forget(ask.key.id, ask.idempotency))

    async def _attempts(self, ask: Ask, wanted: Wanted, table: ModelTable) -> None:
        server = self.gateway.servers[table.upstream]
        settings = self.gateway.config.upstreams[table.upstream]
        attempt = 0
        while True:
            attempt += 1
            if not server.ready():
                raise RequestError(
                    503,
                    f"{table.upstream} is not answering; its circuit is open",
                    "api_error",
                    "upstream_unavailable",
                    headers={"retry-after": str(server.retry_after())},
                )
            try:
                await self._attempt(ask, attempt, wanted, table, server)
                return
            except _AgainError as failed:
                self.gateway.metrics.failures.labels(table.upstream).inc()
                if attempt > settings.retries:
                    raise failed.problem from failed
                await asyncio.sleep(settings.backoff * 2 ** (attempt - 1))

    async def _attempt(
        self, ask: Ask, attempt: int, wanted: Wanted, table: ModelTable, server: Server
    ) -> None:
        store = self.gateway.store
        free = not server.busy()
        ask = replace(ask, id=secrets.token_hex(16), attempt=attempt, sent=free)
        slot = server.slot()
        if free:
            await slot.acquire()  # does not wait
        try:
            admitted = await store.admit(ask)
        except BaseException:
            if free:
                slot.release()
            raise
        if not isinstance(admitted, Grant):
            if free:
                slot.release()
            if isinstance(admitted, Refusal):
                self.gateway.metrics.refusals.labels(admitted.kind).inc()
                self.gateway.refused(ask.key, admitted.kind)
                raise refusal(admitted)
            await self._replay(admitted)
            return
        self.left = admitted.left
        self.claimed = bool(ask.idempotency)
        closer = _Closer(self, admitted, wanted, table, attempt)
        try:
            if not free:
                await slot.acquire()
                free = True
                if not await store.send(admitted.id):
                    raise RequestError(503, "the reservation ran out while waiting", "api_error")
                closer.sent = True
            await self._exchange(closer, server)
        except BaseException as error:
            await closer.abandon(error)
            raise
        finally:
            if free:
                slot.release()

    async def _replay(self, stored: Stored) -> None:
        if not stored.same:
            raise RequestError(
                422, "this idempotency key was used with another request", code="idempotency_reuse"
            )
        if stored.status == 0:
            raise RequestError(
                409,
                "a request with this idempotency key is in flight",
                code="idempotency_in_flight",
                headers={"retry-after": "1"},
            )
        if not stored.body:
            raise RequestError(
                409,
                "the outcome of the request with this idempotency key was not kept",
                code="idempotency_lost",
            )
        headers = {"content-type": stored.media, "x-outlay-replayed": "true"}
        await self.start(stored.status, headers)
        await self.write(stored.body, last=True)

    # -- the upstream ---------------------------------------------------------------------------

    async def _exchange(self, closer: _Closer, server: Server) -> None:
        wanted = closer.wanted
        fields = closer.forwarded()
        body = orjson.dumps(fields)
        try:
            async with server.send(self.endpoint, fields, body, self.id) as reply:
                if reply.status != 200:
                    await self._refused(closer, reply)
                elif wanted.stream and self.endpoint != "embeddings":
                    await self._stream(closer, reply)
                else:
                    await self._whole(closer, reply)
        except NotSent as error:
            await closer.release(0, str(error))
            raise _AgainError(upstream_failed(str(error), 502, "upstream_unreachable")) from error
        except Broken as error:
            await closer.settle(error.status, note=str(error))
            if self.started:
                await self._broken_stream(str(error))
                return
            raise _AgainError(upstream_failed(str(error), error.status)) from error

    async def _refused(self, closer: _Closer, reply: Reply) -> None:
        """Another status than 200."""
        raw = await gather(reply, _LONGEST_ERROR)
        server = self.gateway.config.upstreams[self.upstream]
        note = f"{self.upstream} answered {reply.status}"
        payload = _object(raw)
        charged = reply.status >= 500 and reply.status not in _REFUSED
        if (charged and server.charge_failures == "full") or 200 < reply.status < 400:
            closer.tally.whole(payload or {})
            await closer.settle(reply.status, note=note)
        else:
            await closer.release(reply.status, note)
        status = reply.status if 400 <= reply.status < 500 else 502
        message = note
        code: str | None = "upstream_error"
        error = (payload or {}).get("error")
        if isinstance(error, dict) and isinstance(error.get("message"), str):
            message = f"{note}: {error['message'][:1000]}"
            code = error["code"] if isinstance(error.get("code"), str) else code
        if status in (401, 403):  # the operator's credentials, not the caller's
            status = 502
        headers = {name: reply.headers[name] for name in ("retry-after",) if name in reply.headers}
        kind = "api_error" if status >= 500 or status == 429 else "invalid_request_error"
        problem = RequestError(status, message, kind, code, headers=headers)
        if reply.status in _RETRIED:
            raise _AgainError(problem)
        raise problem

    async def _whole(self, closer: _Closer, reply: Reply) -> None:
        raw = await gather(reply, None)
        payload = _object(raw)
        if payload is None:
            raise Broken(f"{self.upstream} answered 200 with something that is no JSON object")
        closer.tally.whole(payload)
        self.ttft = time.perf_counter() - self.began
        if isinstance(payload.get("error"), dict):
            raise Broken(f"{self.upstream} answered 200 with an error")
        if self.kept is not None:
            self.kept += raw
        settled = await closer.settle(200, media=_JSON)
        headers = {"content-type": _JSON, **self._accounts(settled)}
        await self.start(200, headers)
        await self.write(raw, last=True)

    async def _stream(self, closer: _Closer, reply: Reply) -> None:
        if reply.media != _EVENTS:
            raise Broken(f"{self.upstream} answered a streamed request with {reply.media[:40]!r}")
        wanted, tally = closer.wanted, closer.tally
        splitter = sse.Splitter()
        done = False
        try:
            async for piece in reply.pieces:
                ready = bytearray()
                for data in splitter.feed(piece):
                    if data == sse.DONE:
                        done = True
                        continue
                    payload = _object(data)
                    if payload is None:
                        raise Broken(f"{self.upstream} sent an event that is no JSON object")
                    if tally.piece(payload) and self.ttft is None:
                        self.ttft = time.perf_counter() - self.began
                    if payload.get("error") and "choices" not in payload:
                        raise Broken(f"{self.upstream} sent an error in its stream")
                    bare = not payload.get("choices") and payload.get("usage") is not None
                    if bare and not wanted.usage and self.endpoint != "responses":
                        continue
                    name = b""
                    if self.endpoint == "responses" and isinstance(payload.get("type"), str):
                        name = payload["type"].encode()
                    ready += sse.event(data, name)
                if ready:
                    await self._begin_stream()
                    await self.write(bytes(ready))
        except sse.EventTooLong as error:
            raise Broken(f"{self.upstream} sent {error}") from error
        if splitter.open or not (done or tally.ended):
            raise Broken(f"{self.upstream} ended its stream too early")
        await self._begin_stream()
        last = sse.event(sse.DONE) if self.endpoint != "responses" else b""
        if self.kept is not None:
            self.kept += last
        await closer.settle(200, media=_EVENTS)
        await self.write(last, last=True, keep=False)

    async def _begin_stream(self) -> None:
        if not self.started:
            headers = {
                "content-type": _EVENTS,
                "cache-control": "no-store",
                "x-accel-buffering": "no",
            }
            await self.start(200, {**headers, **self._accounts(None)})

    async def _broken_stream(self, message: str) -> None:
        body = error_body(message, "api_error", "upstream_error")
        with contextlib.suppress(Exception):
            name = b"error" if self.endpoint == "responses" else b""
            await self.write(sse.event(body, name), last=True, keep=False)

    # -- the answer -----------------------------------------------------------------------------

    def _accounts(self, settled: Any) -> dict[str, str]:
        """The `x-outlay-*` headers."""
        headers = {}
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
        """Send the head of the answer."""
        self.started, self.status = True, status
        every = {"x-request-id": self.id, **headers}
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(k.encode(), v.encode("latin-1", "replace")) for k, v in every.items()],
            }
        )

    async def write(self, body: bytes, *, last: bool = False, keep: bool = True) -> None:
        """Send a piece of the body."""
        if self.kept is not None and keep and not last:
            self.kept += body
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    async def fail(self, problem: RequestError) -> None:
        """Answer with an error, if nothing was answered yet."""
        if self.started:
            await self._broken_stream(str(problem))
            return
        body = problem.body()
        headers = {
            "content-type": _JSON,
            "content-length": str(len(body)),
            **self._accounts(None),
            **problem.headers,
        }
        await self.start(problem.status, headers)
        await self.write(body, last=True)

    def observe(self) -> None:
        """Count the request."""
        seconds = time.perf_counter() - self.began
        self.gateway.metrics.request(self.endpoint, self.route, self.status or 499, seconds)
        if not log.isEnabledFor(logging.INFO):
            return
        log.info(
            "request",
            extra={
                "request": self.id,
                "endpoint": self.endpoint,
                "model": self.model,
                "route": self.route,
                "status": self.status or 499,
                "seconds": round(seconds, 4),
            },
        )


class _Closer:
    """Closes one reservation exactly once."""

    def __init__(
        self, exchange: Exchange, grant: Grant, wanted: Wanted, table: ModelTable, attempt: int
    ) -> None:
        self.exchange, self.grant = exchange, grant
        self.wanted, self.table, self.attempt = wanted, table, attempt
        self.began = time.perf_counter()
        self.sent = True
        self.closed = False
        count = None if table.tokenizer is None else counter(table.tokenizer)
        self.tally = Tally(exchange.endpoint, count)

    def forwarded(self) -> dict[str, Any]:
        """The body for the upstream: its own model name, the limit that was reserved."""
        wanted, table = self.wanted, self.table
        fields = {name: value for name, value in wanted.fields.items() if name not in LIMITS}
        fields["model"] = table.name or wanted.model
        if wanted.endpoint == "responses":
            fields["max_output_tokens"] = self.grant.output
        elif wanted.endpoint == "chat":
            fields[table.limit_field] = self.grant.output
        elif wanted.endpoint == "completions":
            fields["max_tokens"] = self.grant.output
        else:  # embeddings have no stream, whatever was asked for
            fields.pop("stream", None)
            fields.pop("stream_options", None)
        if wanted.stream and wanted.endpoint in ("chat", "completions"):
            fields["stream_options"] = {
                **(wanted.fields.get("stream_options") or {}),
                "include_usage": True,
            }
        return fields

    def charge(self, status: int, note: str = "") -> Charge:
        """What was used: the larger of what was reported and what was counted, else all."""
        exchange, tally = self.exchange, self.tally
        usage = tally.usage
        common: dict[str, Any] = {
            "status": status,
            "seconds": time.perf_counter() - self.began,
            "ttft": exchange.ttft,
            "note": note,
        }
        if usage is None and (tally.count is None or not tally.ended):
            return Charge(full=True, **common)
        own = tally.output()
        prompt = self.wanted.prompt if usage is None else usage.prompt
        output = own if usage is None else max(own, usage.output)
        cached = 0 if usage is None else usage.cached
        price = self.table.price
        return Charge(
            prompt=prompt,
            cached=cached,
            output=output,
            reasoning=0 if usage is None else usage.reasoning,
            nanousd=0 if price is None else price.cost(prompt, cached, output),
            **common,
        )

    def _outcome(self, status: int, media: str) -> Outcome | None:
        exchange = self.exchange
        if exchange.kept is None or not media:
            return None
        most = exchange.gateway.config.store.max_outcome
        body = bytes(exchange.kept) if len(exchange.kept) <= most else b""
        return Outcome(status, media, body)

    async def settle(self, status: int, *, note: str = "", media: str = "") -> Any:
        """Charge what was used."""
        if self.closed:
            return None
        self.closed = True
        gateway = self.exchange.gateway
        charge = self.charge(status, note)
        outcome = self._outcome(status, media)
        if outcome is None and self.exchange.kept is not None:
            outcome = Outcome(502, _JSON, b"")  # charged, and not to be repeated
        self.exchange.resolved = outcome is not None
        settled = await gateway.persist(Settle(self.grant.id, charge, outcome))
        gateway.metrics.charged(self.wanted.model, charge, self.grant)
        if settled is not None and settled.overrun:
            gateway.metrics.overruns.labels(self.exchange.upstream).inc()
            log.error("%s used more than it was allowed; suspended", self.exchange.upstream)
        return settled

    async def release(self, status: int, note: str) -> None:
        """Charge nothing."""
        if self.closed:
            return
        self.closed = True
        await self.exchange.gateway.persist(Release(self.grant.id, status, note))

    async def abandon(self, error: BaseException) -> None:
        """Whatever was not closed on the way: in full if it was sent."""
        if self.closed:
            return
        if not self.sent:
            await self.release(0, "given up before it was sent")
        else:
            note = "the caller went away" if isinstance(error, asyncio.CancelledError) else "failed"
            await self.settle(499, note=note)


def refusal(found: Refusal) -> RequestError:
    """A refusal as the caller is told."""
    unit = "tokens" if found.unit == "tokens" else "nano-dollars"
    about = f"budget {found.budget!r} has {found.left} {unit} left, {found.need} are needed"
    never = {"x-should-retry": "false"}
    if found.kind == "busy":
        return RequestError(
            429,
            f"{about}; the rest is reserved by requests in flight, try again soon",
            "rate_limit_error",
            "budget_busy",
            headers={"retry-after": "1"},
        )
    if found.kind == "exhausted":
        assert found.renews_at is not None
        headers = {**never, "x-outlay-renews-at": f"{found.renews_at:.0f}"}
        return RequestError(
            429, f"{about}", "insufficient_quota", "insufficient_quota", headers=headers
        )
    if found.kind == "spent":
        return RequestError(
            402,
            f"{about}, and it does not renew",
            "insufficient_quota",
            "budget_spent",
            headers=never,
        )
    if found.kind == "unpriced":
        return RequestError(
            400, f"{found.reason}, and a budget in money applies", code="model_unpriced"
        )
    if found.kind == "suspended":
        return RequestError(
            503, f"suspended: {found.reason}", "api_error", "upstream_suspended", headers=never
        )
    return RequestError(401, found.reason, "authentication_error", "invalid_api_key")


def _closed(error: StoreError) -> RequestError:
    return RequestError(
        503, str(error), "api_error", "store_unavailable", headers={"retry-after": "2"}
    )


def _object(raw: bytes) -> dict[str, Any] | None:
    try:
        payload = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return payload if isinstance(payload, dict) else None


def header(scope: Scope, name: bytes) -> str:
    """A request header; "" without it."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return ""


def bearer(scope: Scope) -> str:
    """The bearer token of a request; "" without one."""
    scheme, _, token = header(scope, b"authorization").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


async def gather(reply: Reply, most: int | None) -> bytes:
    """A whole body; cut after `most` bytes."""
    body = bytearray()
    async for piece in reply.pieces:
        body += piece
        if most is not None and len(body) > most:
            break
    return bytes(body)


async def read_body(scope: Scope, receive: Receive, most: int) -> bytes:
    """A request's body.

    Raises:
        RequestError: 413 above `most` bytes, 415 for another media type than JSON.
    """
    media = header(scope, b"content-type").lower()
    kind, _, rest = media.partition(";")
    if kind.strip() not in ("", _JSON) or ("charset" in rest and "utf-8" not in rest):
        raise RequestError(415, "send JSON in UTF-8 (content-type: application/json)")
    length = header(scope, b"content-length")
    too_large = RequestError(413, f"the body has more than {most} bytes", code="body_too_large")
    if length.isdecimal() and int(length) > most:
        raise too_large
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError(400, "the request broke off")
        body += message.get("body", b"")
        if len(body) > most:
            raise too_large
        if not message.get("more_body", False):
            return bytes(body)
