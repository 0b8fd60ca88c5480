"""The dashboard's routes: pages, their live parts, forms, log in and out, static files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from outlay.gateway.admin import may_read
from outlay.gateway.dashboard import frontiers, page, views
from outlay.gateway.dashboard.actions import DONE, Actions, Done
from outlay.gateway.dashboard.forms import LARGEST, Form, read_form
from outlay.gateway.dashboard.reading import Reader
from outlay.gateway.dashboard.refusals import Refusals
from outlay.gateway.dashboard.sessions import Attempts, Session, Sessions
from outlay.gateway.dashboard.spending import Spending
from outlay.gateway.dashboard.views import PAGES, Look
from outlay.gateway.problems import RequestError
from outlay.gateway.state import Gateway
from outlay.gateway.store.books import Key
from outlay.gateway.store.store import StoreError

Handler = Callable[[Request], Awaitable[Response]]
_PATHS = {name: f"/{name}" if name != "overview" else "/" for name in PAGES}


def dashboard_routes(gateway: Gateway) -> list[BaseRoute]:
    """Everything under `/` that people look at."""
    board = Dashboard(gateway)
    actions = Actions(gateway)
    forms: dict[str, tuple[str, Callable[[Key, Form], Awaitable[Done]]]] = {
        "/keys/create": ("keys", actions.create_key),
        "/keys/rotate": ("keys", actions.rotate_key),
        "/keys/revoke": ("keys", actions.revoke_key),
        "/budgets/create": ("budgets", actions.create_budget),
        "/budgets/change": ("budgets", actions.change_budget),
        "/budgets/archive": ("budgets", actions.archive_budget),
        "/alerts/lift": ("alerts", actions.lift),
        "/frontiers/import": ("frontiers", actions.import_frontier),
        "/frontiers/delete": ("frontiers", actions.delete_frontier),
    }
    return [
        *(Route(path, board.shown(name), methods=["GET"]) for name, path in _PATHS.items()),
        Route("/live/{page}", board.safe(board.live), methods=["GET"]),
        Route("/requests/{request}", board.safe(board.request), methods=["GET"]),
        *(
            Route(path, board.form(name, action), methods=["POST"])
            for path, (name, action) in forms.items()
        ),
        Route("/frontiers/{frontier}", board.safe(board.frontier), methods=["GET"]),
        Route("/login", board.safe(board.login), methods=["GET"]),
        Route("/login", board.safe(board.log_in), methods=["POST"]),
        Route("/logout", board.safe(board.log_out), methods=["POST"]),
        Route("/static/{name}", page.static, methods=["GET"]),
    ]


class _AnonymousError(Exception):
    """Nobody has logged in."""


class Dashboard:
    """Pages for whoever logged in."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.reader = Reader(gateway.store)
        self.sessions = Sessions(gateway.store, self.reader, gateway.config.server)
        self.spending = Spending()
        self.attempts = Attempts()
        gateway.refused = Refusals(gateway.store).note

    def safe(self, handler: Handler) -> Handler:
        """Errors as pages, and whoever has not logged in to the login form."""

        async def run(request: Request) -> Response:
            try:
                return await handler(request)
            except _AnonymousError:
                return page.guarded(RedirectResponse("/login", 303))
            except RequestError as problem:
                return self._failed(problem.status, problem.message, dict(problem.headers))
            except StoreError as error:
                return self._failed(503, str(error), {"retry-after": "2"})

        return run

    def _failed(self, status: int, message: str, headers: dict[str, str]) -> Response:
        response = page.html("error.html", status, status=status, message=message)
        response.headers.update(headers)
        return response

    async def _session(self, request: Request) -> Session:
        found = await self.sessions.find(request)
        if found is None:
            raise _AnonymousError
        return found

    async def _look(self, session: Session, request: Request, build: Callable[[Look], Any]) -> Any:
        await self.gateway.store.refresh()
        gateway, query = self.gateway, dict(request.query_params)

        def work(connection: Connection, now: float) -> Any:
            look = Look(
                connection=connection,
                now=now,
                key=session.key,
                query=query,
                known=gateway.store.known,
                spending=self.spending,
                config=gateway.config,
            )
            return build(look)

        return await self.reader.run(work)

    def _shared(self, session: Session, name: str, request: Request) -> dict[str, Any]:
        return {
            "page": name,
            "pages": [(each, PAGES[each][0], path) for each, path in _PATHS.items()],
            "title": PAGES[name][0],
            "me": session.key,
            "csrf": session.csrf,
            "live": None,
            "done": DONE.get(request.query_params.get("done", ""), ""),
            "error": "",
            "made": None,
            "filled": {},
        }

    async def _page(
        self,
        session: Session,
        name: str,
        request: Request,
        status: int = 200,
        **more: Any,
    ) -> Response:
        context = await self._look(session, request, PAGES[name][1])
        query = "" if request.method == "POST" else request.url.query
        shared = self._shared(session, name, request)
        shared["live"] = f"/live/{name}" + (f"?{query}" if query else "")
        return page.html(f"{name}.html", status, **{**shared, **context, **more})

    def shown(self, name: str) -> Handler:
        """A page's handler."""

        async def run(request: Request) -> Response:
            return await self._page(await self._session(request), name, request)

        return self.safe(run)

    async def live(self, request: Request) -> Response:
        """The part of a page that moves, as JSON."""
        session = await self.sessions.find(request)
        if session is None:
            return page.guarded(Response(status_code=401))
        self.sessions.check(request, session, request.headers.get("x-csrf-token", ""))
        name = request.path_params["page"]
        if name not in PAGES:
            raise RequestError(404, "no such page", code="not_found")
        context = await self._look(session, request, PAGES[name][1])
        shared = self._shared(session, name, request)
        body = {"html": page.fragment(f"_{name}.html", **{**shared, **context})}
        return page.guarded(Response(orjson.dumps(body), media_type="application/json"))

    async def request(self, request: Request) -> Response:
        """One request."""
        session = await self._session(request)
        identity = request.path_params["request"]
        context = await self._look(session, request, lambda look: views.request(look, identity))
        if context is None:
            raise RequestError(404, f"no request {identity[:40]}", code="not_found")
        shared = self._shared(session, "requests", request)
        return page.html("request.html", **{**shared, **context})

    async def frontier(self, request: Request) -> Response:
        """One imported comparison."""
        session = await self._session(request)
        identity = request.path_params["frontier"]
        found = await self._look(
            session, request, lambda look: frontiers.find(look.connection, identity, look.owner)
        )
        if found is None:
            raise RequestError(404, "no such frontier", code="not_found")
        row, form = found
        shared = self._shared(session, "frontiers", request)
        deletes = session.key.role != "viewer"
        return page.html(
            "frontier.html",
            **shared,
            row=row,
            form=form,
            panels=frontiers.panels(form),
            deletes=deletes,
        )

    def form(self, name: str, action: Callable[[Key, Form], Awaitable[Done]]) -> Handler:
        """A form's handler; what is wrong with it is said on its own page."""
        most = frontiers.LARGEST + LARGEST if name == "frontiers" else LARGEST

        async def run(request: Request) -> Response:
            session = await self._session(request)
            form = await read_form(request, most)
            given = form.text("csrf") or request.headers.get("x-csrf-token", "")
            self.sessions.check(request, session, given)
            if session.key.role == "viewer":
                raise RequestError(403, "a viewer changes nothing", code="forbidden")
            try:
                done = await action(session.key, form)
            except RequestError as problem:
                return await self._page(
                    session,
                    name,
                    request,
                    problem.status,
                    error=problem.message,
                    filled=form.fields,
                )
            if done.token:
                return await self._page(session, name, request, made=done)
            return page.guarded(RedirectResponse(done.to, 303))

        return self.safe(run)

    async def login(self, request: Request) -> Response:
        """The login form."""
        if await self.sessions.find(request) is not None:
            return page.guarded(RedirectResponse("/", 303))
        return self._login(request)

    def _login(self, request: Request, status: int = 200, error: str = "") -> Response:
        token = self.sessions.login_token(request)
        response = page.html("login.html", status, csrf=token, error=error)
        self.sessions.keep_login_token(token, response)
        return response

    async def log_in(self, request: Request) -> Response:
        """Exchange a key for a session."""
        address = request.client.host if request.client is not None else ""
        wait = self.attempts.wait(address)
        if wait > 0:
            response = self._login(request, 429, f"too many tries; wait {wait:.0f} seconds")
            response.headers["retry-after"] = str(int(wait) + 1)
            return response
        form = await read_form(request)
        self.sessions.check_login(request, form.text("csrf"))
        await self.gateway.store.refresh()  # a replica may have made the key just now
        bearer = f"Bearer {form.text('key')}".encode()
        try:
            key = await self.gateway.key({"headers": [(b"authorization", bearer)]})
        except RequestError:
            return self._login(request, 401, "that is no valid key")
        if not may_read(key):
            return self._login(
                request, 403, f"a key in the role {key.role} calls models, but does not get in here"
            )
        response = page.guarded(RedirectResponse("/", 303))
        await self.sessions.open(key, response)
        return response

    async def log_out(self, request: Request) -> Response:
        """End the session."""
        session = await self._session(request)
        form = await read_form(request)
        self.sessions.check(request, session, form.text("csrf"))
        response = page.guarded(RedirectResponse("/login", 303))
        await self.sessions.close(session, response)
        return response
