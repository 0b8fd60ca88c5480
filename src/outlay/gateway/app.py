"""The application: routes, start and stop, health, metrics, the list of models."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import func, select
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from outlay.errors import InputError
from outlay.gateway.config import ENDPOINTS, Config, Upstream, read
from outlay.gateway.metrics import Metrics
from outlay.gateway.problems import RequestError
from outlay.gateway.serving import Gateway, Serving
from outlay.gateway.store import schema
from outlay.gateway.store.migrate import upgrade
from outlay.gateway.store.store import Store, StoreError
from outlay.gateway.upstream import HttpUpstream, Server

log = logging.getLogger("outlay.gateway")
_WATCH = 1.0  # seconds between looks at the configuration's file


def build(config: Config, *, path: Path | None = None) -> Starlette:
    """The application of a configuration.

    Args:
        config: what to serve.
        path: its file, watched for changes; None watches nothing.

    Raises:
        InputError: for upstreams that cannot be.
        ResultsError: if the database cannot be brought to this version.
    """
    from outlay.gateway.admin import admin_routes
    from outlay.gateway.dashboard.routes import dashboard_routes
    from outlay.gateway.openapi import schema_routes

    settings = config.store
    store = Store(
        settings.url.get_secret_value(),
        settings.durability,
        lease=settings.lease,
        keep=settings.keep_outcomes,
    )
    upgrade(store.engine)
    servers = {name: server(name, table) for name, table in config.upstreams.items()}
    gateway = Gateway(config, store, servers, Metrics())

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await store.start()
        watcher = None
        if path is not None:
            watcher = asyncio.create_task(_watch(gateway, path))
        try:
            yield
        finally:
            if watcher is not None:
                watcher.cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(config.server.grace):
                    while gateway.closing:
                        await asyncio.gather(*gateway.closing, return_exceptions=True)
            await store.stop()
            for each in gateway.servers.values():
                await each.close()

    routes: list[BaseRoute] = [
        *(
            Route(each, Serving(gateway, name), methods=["POST"])
            for name, each in ENDPOINTS.items()
        ),
        Route("/v1/models", _guard(gateway, _models)),
        Route("/v1/models/{name:path}", _guard(gateway, _model)),
        Route("/health/live", _live),
        Route("/health/ready", _guard(gateway, _ready)),
        Route("/metrics", _guard(gateway, _metrics)),
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
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=middleware,
        exception_handlers={404: _missing, 405: _wrong_method, RequestError: _problem},
    )
    app.state.gateway = gateway
    return app


def server(name: str, table: Upstream) -> Server:
    """What answers for an upstream."""
    if table.local is not None:
        from outlay.gateway.local import LocalUpstream

        return LocalUpstream(name, table)
    return HttpUpstream(name, table)


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
        InputError: for upstreams that cannot be.
    """
    old, servers = gateway.config, {}
    for name, table in config.upstreams.items():
        same = old.upstreams.get(name) == table
        servers[name] = gateway.servers[name] if same else server(name, table)
    keep = {"server": old.server, "store": old.store}
    if config.server != old.server or config.store != old.store:
        log.warning("server and store are read at start; restart to change them")
    gone = [each for name, each in gateway.servers.items() if servers.get(name) is not each]
    gateway.config = config.model_copy(update=keep)
    gateway.servers = servers

    async def retire(each: Server) -> None:
        await asyncio.sleep(old.server.timeout)
        await each.close()

    for each in gone:
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
