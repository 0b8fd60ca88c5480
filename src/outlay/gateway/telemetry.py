"""Traces in OpenTelemetry's protocol: a span per request, with admission, upstream and settle.

Only loaded where `telemetry.endpoint` is set. The gateway's own code knows nothing of it: the
endpoints, the store and the upstreams are wrapped, and the request in hand is found through a
context variable, so whatever admits, sends and settles is traced. A request whose key is refused
makes no span. Names follow OpenTelemetry's conventions for HTTP servers and generative AI; what has
no name there begins with `outlay.`. Prompts, answers and keys are never written.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from outlay.errors import DependencyError, InputError
from outlay.gateway import config
from outlay.gateway.config import ENDPOINTS, Endpoint
from outlay.gateway.serving import Serving
from outlay.gateway.store.batch import Admit, Operation, Release, Settle, Settled
from outlay.gateway.store.books import Ask, Charge, Grant, Refusal
from outlay.gateway.store.engine import Durability
from outlay.gateway.store.store import Store
from outlay.gateway.upstream import HttpUpstream, Reply, Server, public
from outlay.gateway.wire import Receive, Scope, Send, header

try:
    import requests
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    from requests.adapters import HTTPAdapter
except ImportError as error:
    raise DependencyError(f"traces need pip install 'outlay[otel]' ({error})") from error

_OPERATIONS: dict[Endpoint, str] = {
    "chat": "chat",
    "completions": "text_completion",
    "responses": "chat",
    "embeddings": "embeddings",
}
_ASKED = {  # numbers of a request, by their names in traces
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_output_tokens": "gen_ai.request.max_tokens",
    "n": "gen_ai.request.choice.count",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
}
_CARRIED = ("traceparent", "tracestate")


class _Trace:
    """The trace of one request; its span begins with the first thing that is worth one."""

    def __init__(self, telemetry: Telemetry, scope: Scope, endpoint: Endpoint) -> None:
        self._telemetry, self._scope, self._endpoint = telemetry, scope, endpoint
        self._began = time.time_ns()
        self._span: Span | None = None
        self._context = Context()
        self.status = 0

    def context(self) -> Context:
        """What spans of this request are children of."""
        self._open()
        return self._context

    def _open(self) -> Span:
        if self._span is None:
            telemetry, path = self._telemetry, ENDPOINTS[self._endpoint]
            carrier = {name: header(self._scope, name.encode()) for name in _CARRIED}
            parent = telemetry.propagator.extract({k: v for k, v in carrier.items() if v})
            attributes = {
                "http.request.method": "POST",
                "http.route": path,
                "url.path": path,
                "url.scheme": str(self._scope.get("scheme", "http")),
            }
            self._span = telemetry.tracer.start_span(
                f"POST {path}",
                parent,
                SpanKind.SERVER,
                attributes,
                start_time=self._began,
            )
            self._context = set_span_in_context(self._span, Context())
        return self._span

    def asked(self, ask: Ask) -> None:
        """Say on the request's span what it asks for."""
        self._open().set_attributes(
            {
                "gen_ai.request.model": ask.model,
                "outlay.request": ask.request,
                "outlay.route": ask.route,
                "outlay.upstream": ask.upstream,
            }
        )

    def end(self, failure: str = "") -> None:
        """End it; a request whose key was refused has no span."""
        if self._span is None and self.status == 401:
            return
        span = self._open()
        if self.status:
            span.set_attribute("http.response.status_code", self.status)
        else:
            failure = failure or "disconnected"
        if self.status >= 500:
            failure = failure or str(self.status)
        _finish(span, failure)


_TRACE: ContextVar[_Trace | None] = ContextVar("outlay-trace", default=None)
_SENT: ContextVar[Span | None] = ContextVar("outlay-trace-upstream", default=None)


class Telemetry:
    """Where spans go.

    Args:
        settings: the table `telemetry`.

    Raises:
        InputError: if the collector's address is not allowed.
    """

    def __init__(self, settings: config.Telemetry) -> None:
        assert settings.endpoint is not None
        host = urlsplit(settings.endpoint).hostname or ""
        if not settings.private and not public(host):
            raise InputError(
                f"telemetry.endpoint names {host}, which is not public; "
                "set private = true if that is meant"
            )
        session = requests.Session()
        session.trust_env = False
        if not settings.private:
            for scheme in ("http://", "https://"):
                session.mount(scheme, _Guarded())
        self.provider = TracerProvider(
            ParentBased(TraceIdRatioBased(settings.sample)),
            Resource.create({SERVICE_NAME: settings.service}),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(
            settings.endpoint,
            headers={k: v.get_secret_value() for k, v in settings.headers.items()},
            timeout=settings.timeout,
            session=session,
        )
        self.provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self.provider.get_tracer("outlay.gateway")
        self.propagator = TraceContextTextMapPropagator()

    async def close(self) -> None:
        """Export what is left, and stop."""
        await asyncio.to_thread(self.provider.shutdown)

    def store(self, url: str, durability: Durability, *, lease: float, keep: float) -> TracedStore:
        """A store whose operations are traced."""
        made = TracedStore(url, durability, lease, keep)
        made.telemetry = self
        return made

    def endpoint(self, inner: Serving) -> TracedServing:
        """An endpoint whose requests are traced."""
        return TracedServing(self, inner)

    def server(self, inner: Server, table: config.Upstream) -> TracedServer:
        """An upstream that is told of traces."""
        if isinstance(inner, HttpUpstream):
            inner.propagate = self._propagate
        return TracedServer(self, inner, table)

    def _propagate(self, headers: dict[str, str]) -> None:
        span = _SENT.get()
        if span is not None:
            self.propagator.inject(headers, set_span_in_context(span, Context()))


class _Guarded(HTTPAdapter):
    """Refuses a collector whose name resolves to an address that is not public."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        """Send a request."""
        parts = urlsplit(request.url or "")
        host = str(parts.hostname or "")
        for *_, address in socket.getaddrinfo(host, parts.port, type=socket.SOCK_STREAM):
            if not public(str(address[0])):
                raise requests.exceptions.InvalidURL(f"{host} is at {address[0]}: not public")
        return super().send(request, *args, **kwargs)


@dataclass
class TracedServing:
    """An endpoint, with a span for every request."""

    telemetry: Telemetry
    inner: Serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        trace = _Trace(self.telemetry, scope, self.inner.endpoint)

        async def watched(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
            await send(message)

        token = _TRACE.set(trace)
        try:
            await self.inner(scope, receive, watched)
        except BaseException as error:
            trace.end(_kind(error))
            raise
        else:
            trace.end()
        finally:
            _TRACE.reset(token)


class TracedStore(Store):
    """The store, with spans for what requests wait for in it."""

    telemetry: Telemetry

    def submit(self, operation: Operation, *, answered: bool = False) -> asyncio.Future[Any]:
        """Queue an operation."""
        trace = _TRACE.get()
        if trace is None or not isinstance(operation, Admit | Settle | Release):
            return super().submit(operation, answered=answered)
        start = self.telemetry.tracer.start_span
        if isinstance(operation, Admit):
            trace.asked(operation.ask)
            span = start("admission", trace.context())
            span.set_attribute("outlay.attempt", operation.ask.attempt)
        else:
            span = start("settle", trace.context())
            if isinstance(operation, Settle):
                _used(operation.charge)
        future = super().submit(operation, answered=answered)
        future.add_done_callback(partial(_stored, span, operation))
        return future


def _stored(span: Span, operation: Operation, done: asyncio.Future[Any]) -> None:
    """End the span of an operation."""
    error = asyncio.CancelledError() if done.cancelled() else done.exception()
    if error is None:
        span.set_attributes(_outcome(operation, done.result()))
    _finish(span, "" if error is None else _kind(error))


def _outcome(operation: Operation, result: Any) -> dict[str, str | int | bool]:
    """What became of an operation."""
    if isinstance(operation, Release):
        return {"outlay.charge": "none"}
    if isinstance(operation, Settle) and isinstance(result, Settled):
        unknown = operation.charge.full or operation.charge.unknown
        return {
            "outlay.charge": "unknown" if unknown else "used",
            "outlay.charged.tokens": result.tokens,
            "outlay.charged.nanousd": result.nanousd,
            "outlay.overrun": result.overrun,
        }
    if isinstance(result, Grant):
        return {
            "outlay.admission": "granted",
            "outlay.reserved.tokens": result.tokens,
            "outlay.reserved.nanousd": result.nanousd,
        }
    refused = isinstance(result, Refusal)
    return {"outlay.admission": result.kind if refused else "replayed"}


def _used(charge: Charge) -> None:
    """Say on the upstream's span, if it is open, what was used."""
    span = _SENT.get()
    if span is not None and not charge.full:
        span.set_attributes(
            {
                "gen_ai.usage.input_tokens": charge.prompt,
                "gen_ai.usage.output_tokens": charge.output,
                "gen_ai.usage.cache_read.input_tokens": charge.cached,
                "gen_ai.usage.reasoning.output_tokens": charge.reasoning,
            }
        )


@dataclass
class TracedServer:
    """An upstream, with a span for every request that is sent to it."""

    telemetry: Telemetry
    inner: Server
    table: config.Upstream

    def __post_init__(self) -> None:
        self.name = self.inner.name
        self.ready, self.retry_after = self.inner.ready, self.inner.retry_after
        self.busy, self.slot, self.close = self.inner.busy, self.inner.slot, self.inner.close
        self._where: dict[str, str | int] = {"gen_ai.provider.name": self.name}
        if self.table.url is not None:
            parts = urlsplit(self.table.url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            self._where |= {"server.address": parts.hostname or "", "server.port": port}

    @asynccontextmanager
    async def send(
        self, endpoint: Endpoint, fields: Mapping[str, Any], body: bytes, request: str
    ) -> AsyncIterator[Reply]:
        """Send one request."""
        trace = _TRACE.get()
        if trace is None:
            async with self.inner.send(endpoint, fields, body, request) as reply:
                yield reply
            return
        operation = _OPERATIONS[endpoint]
        span = self.telemetry.tracer.start_span(
            f"{operation} {fields['model']}",
            trace.context(),
            SpanKind.CLIENT if self.table.url is not None else SpanKind.INTERNAL,
            {
                **self._where,
                "gen_ai.operation.name": operation,
                "gen_ai.request.model": fields["model"],
                "gen_ai.request.stream": bool(fields.get("stream")),
                **_numbers(fields),
            },
        )
        _SENT.set(span)
        began, failure, status = time.perf_counter(), "", 0
        try:
            async with self.inner.send(endpoint, fields, body, request) as reply:
                status = reply.status
                span.set_attribute("http.response.status_code", status)
                first = _first(reply.pieces, partial(_waited, span, began))
                yield Reply(status, reply.media, reply.headers, first)
        except BaseException as error:
            failure = _kind(error)
            raise
        finally:
            _SENT.set(None)
            _finish(span, str(status) if status >= 400 else failure)


def _numbers(fields: Mapping[str, Any]) -> dict[str, int | float]:
    return {
        name: fields[field]
        for field, name in _ASKED.items()
        if isinstance(fields.get(field), int | float) and not isinstance(fields[field], bool)
    }


async def _first(pieces: AsyncIterator[bytes], come: Callable[[], None]) -> AsyncIterator[bytes]:
    """The pieces; `come` is called at the first one."""
    waiting = True
    async for piece in pieces:
        if waiting:
            waiting = False
            come()
        yield piece


def _waited(span: Span, began: float) -> None:
    span.set_attribute("gen_ai.response.time_to_first_chunk", time.perf_counter() - began)


def _kind(error: BaseException) -> str:
    return "cancelled" if isinstance(error, asyncio.CancelledError) else type(error).__name__


def _finish(span: Span, failure: str = "") -> None:
    """End a span, as failed where there is a failure."""
    if failure:
        span.set_attribute("error.type", failure)
        span.set_status(Status(StatusCode.ERROR))
    span.end()
