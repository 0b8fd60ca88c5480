"""The application: routes, start and stop, health, metrics, the list of models."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import func, select
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from outlay.errors import InputError
from outlay.gateway.config import ENDPOINTS, Config, Endpoint, Upstream, read
from outlay.gateway.metrics import Metrics
from outlay.gateway.policies.methods import Catalogue
from outlay.gateway.policies.running import Runner
from outlay.gateway.problems import RequestError
from outlay.gateway.serving import Serving
from outlay.gateway.state import Gateway
from outlay.gateway.store import schema
from outlay.gateway.store.migrate import upgrade
from outlay.gateway.store.store import Store, StoreError
from outlay.gateway.upstream import HttpUpstream, Server

if TYPE_CHECKING:
    from outlay.gateway.coin import Audited
    from outlay.gateway.telemetry import Telemetry

log = logging.getLogger("outlay.gateway")
_WATCH = 1.0  # seconds between looks at the configuration's file


def build(config: Config, *, path: Path | None = None) -> Starlette:
    """The application of a configuration.

    Args:
        config: what to serve.
        path: its file, watched for changes; None watches nothing.

    Raises:
        InputError: for upstreams, or a collector of traces, that cannot be, and for policies that
            a model cannot serve.
        ResultsError: if the database cannot be brought to this version.
        DependencyError: if traces are wanted and their package is missing.
    """
    from outlay.gateway.admin import admin_routes
    from outlay.gateway.dashboard.routes import dashboard_routes
    from outlay.gateway.openapi import schema_routes

    runner = Runner(Catalogue(config))
    settings = config.store
    telemetry = _telemetry(config)
    store = (Store if telemetry is None else telemetry.store)(
        settings.url.get_secret_value(),
        settings.durability,
        lease=settings.lease,
        keep=settings.keep_outcomes,
    )
    upgrade(store.engine)
    servers = {name: server(name, table, telemetry) for name, table in config.upstreams.items()}
    gateway = Gateway(config, store, servers, Metrics(), runner, telemetry=telemetry)
    gateway.coin = _audited(config)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await store.start()
        warming = asyncio.create_task(gateway.runner.start())
        watcher = None
        if path is not None:
            watcher = asyncio.create_task(_watch(gateway, path))
        try:
            yield
        finally:
            warming.cancel()
            if watcher is not None:
                watcher.cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(config.server.grace):
                    while gateway.closing:
                        await asyncio.gather(*gateway.closing, return_exceptions=True)
            await store.stop()
            await gateway.runner.close()
            if gateway.coin is not None:
                gateway.coin.close()
            for each in gateway.servers.values():
                await each.close()
            if telemetry is not None:
                await telemetry.close()

    endpoints = {name: _endpoint(gateway, name) for name in ENDPOINTS}
    routes: list[BaseRoute] = [
        *(Route(ENDPOINTS[name], each, methods=["POST"]) for name, each in endpoints.items()),
        Route("/v1/models", _guard(gateway, _models)),
        Route("/v1/models/{name:path}", _guard(gateway, _model)),
        Route("/health/live", _live),
        Route("/health/ready", _guard(gateway, _ready)),
        Route("/metrics", _guard(gateway, _metrics)),
        *_coin_routes(gateway),
        *admin_routes(gateway),
        *schema_routes(gateway),
        *dashboard_routes(gateway),
    ]
    middleware = []
    if config.server.cors:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(config.server.cors),
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "idempotency-key"],
                expose_headers=["x-request-id", "x-outlay-remaining-tokens"],
            )
        )
    app = _App(
        routes=routes,
        lifespan=lifespan,
        middleware=middleware,
        exception_handlers={404: _missing, 405: _wrong_method, RequestError: _problem},
    )
    app.state.gateway = gateway
    if not middleware:
        app.direct = {ENDPOINTS[name]: each for name, each in endpoints.items()}
    return app


class _App(Starlette):
    """An application whose models' endpoints are reached without a search for the route."""

    direct: Mapping[str, ASGIApp] = MappingProxyType({})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the application's life."""
        if scope["type"] == "http" and scope["method"] == "POST":
            endpoint = self.direct.get(scope["path"])
            if endpoint is not None:
                await endpoint(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


def check(config: Config) -> None:
    """Find what would stop a worker, before there are any.

    Raises:
        InputError: for upstreams, or a collector of traces, that cannot be, and for policies that
            a model cannot serve.
        DependencyError: if traces are wanted and their package is missing.
    """
    for name, table in config.upstreams.items():
        server(name, table)
    Catalogue(config)
    if (coin := _audited(config)) is not None:
        coin.close()
    telemetry = _telemetry(config)
    if telemetry is not None:
        telemetry.provider.shutdown()


def server(name: str, table: Upstream, telemetry: Telemetry | None = None) -> Server:
    """What answers for an upstream."""
    made: Server
    if table.local is not None:
        from outlay.gateway.local import LocalUpstream

        made = LocalUpstream(name, table)
    else:
        made = HttpUpstream(name, table)
    return made if telemetry is None else telemetry.server(made, table)


def _telemetry(config: Config) -> Telemetry | None:
    """What traces requests; None where no collector is named, and nothing is loaded."""
    if config.telemetry.endpoint is None:
        return None
    from outlay.gateway.telemetry import Telemetry

    return Telemetry(config.telemetry)


def _audited(config: Config) -> Audited | None:
    """What commits to hidden reasoning; None where it is off, and nothing is loaded."""
    if not config.coin.enabled:
        return None
    from outlay.gateway.coin import Audited

    return Audited(config.coin)


def _coin_routes(gateway: Gateway) -> list[BaseRoute]:
    if gateway.coin is None:
        return []
    from outlay.gateway.coin import coin_routes

    return [coin_routes(gateway, gateway.coin)]


def _endpoint(gateway: Gateway, name: Endpoint) -> ASGIApp:
    made = Serving(gateway, name)
    return made if gateway.telemetry is None else gateway.telemetry.endpoint(made)


async def _watch(gateway: Gateway, path: Path) -> None:
    """Take over a changed file: upstreams, models, prices and routes."""
    seen = _stamp(path)
    while True:
        await asyncio.sleep(_WATCH)
        now = _stamp(path)
        if now == seen:
            continue
        seen = now
        try:
            reload(gateway, read(path))
        except InputError as error:
            log.error("the changed configuration cannot be used and the old one stays: %s", error)
        else:
            log.info("configuration read again")


def reload(gateway: Gateway, config: Config) -> None:
    """Replace what may change while running; requests in flight end on what they began with.

    Raises:
        InputError: for upstreams that cannot be, and policies that a model cannot serve.
    """
    old, servers = gateway.config, {}
    runner = Runner(Catalogue(config))
    for name, table in config.upstreams.items():
        same = old.upstreams.get(name) == table
        servers[name] = gateway.servers[name] if same else server(name, table, gateway.telemetry)
    keep = {name: getattr(old, name) for name in ("server", "store", "telemetry", "coin")}
    if any(getattr(config, name) != value for name, value in keep.items()):
        log.warning("server, store, telemetry and coin are read at start; restart to change them")
    gone: list[Server | Runner] = [
        each for name, each in gateway.servers.items() if servers.get(name) is not each
    ]
    gateway.config = config.model_copy(update=keep)
    gateway.servers = servers
    before, gateway.runner = gateway.runner, runner

    async def retire(each: Server | Runner) -> None:
        await asyncio.sleep(old.server.timeout)
        await each.close()

    for each in [*gone, before]:
        task = asyncio.create_task(retire(each))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


Handler = Callable[[Gateway, Request], Awaitable[Response]]


def _guard(gateway: Gateway, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """Errors of a handler as OpenAI's errors."""

    async def run(request: Request) -> Response:
        try:
            return await handler(gateway, request)
        except StoreError as error:
            return answer(RequestError(503, str(error), "api_error", "store_unavailable"))

    return run


def answer(problem: RequestError) -> Response:
    """An error as a response."""
    return Response(
        problem.body(),
        status_code=problem.status,
        media_type="application/json",
        headers=dict(problem.headers),
    )


def as_json(value: Any, status: int = 200) -> Response:
    """A JSON response."""
    return Response(orjson.dumps(value), status_code=status, media_type="application/json")


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return answer(error)


async def _missing(request: Request, error: Exception) -> Response:
    path = request.url.path[:100]
    return answer(RequestError(404, f"no such page: {path}", code="not_found"))


async def _wrong_method(request: Request, error: Exception) -> Response:
    headers = dict(getattr(error, "headers", None) or {})
    problem = RequestError(
        405, f"{request.method} is not for {request.url.path[:100]}", headers=headers
    )
    return answer(problem)


async def _models(gateway: Gateway, request: Request) -> Response:
    key = await gateway.key(request.scope)
    names = [name for name in gateway.config.models if key.may_use(name)]
    return as_json({"object": "list", "data": [_card(name) for name in names]})


async def _model(gateway: Gateway, request: Request) -> Response:
    key = await gateway.key(request.scope)
    name = request.path_params["name"]
    if name not in gateway.config.models or not key.may_use(name):
        raise RequestError(404, f"the model {name[:100]!r} does not exist", code="model_not_found")
    return as_json(_card(name))


def _card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "outlay"}


async def _live(request: Request) -> Response:
    return as_json({"status": "live"})


async def _ready(gateway: Gateway, request: Request) -> Response:
    """Ready: the database answers, and some upstream would be tried."""
    found = {name: each.ready() for name, each in gateway.servers.items()}
    try:
        async with asyncio.timeout(5):
            await gateway.store.refresh()
        database = True
    except (StoreError, TimeoutError):
        database = False
    ready = database and (any(found.values()) or not found)
    body = {"status": "ready" if ready else "not ready", "database": database, "upstreams": found}
    return as_json(body, 200 if ready else 503)


async def _metrics(gateway: Gateway, request: Request) -> Response:
    table = schema.reservations
    rows = await gateway.store.call(
        lambda connection, now: connection.execute(
            select(table.c.state, func.count()).group_by(table.c.state)
        ).all()
    )
    counts = {"held": 0, "sent": 0, **{str(state): int(count) for state, count in rows}}
    for state, count in counts.items():
        gateway.metrics.in_flight.labels(state).set(count)
    return Response(generate_latest(gateway.metrics.registry), media_type=CONTENT_TYPE_LATEST)
