"""The admin API: keys, budgets, the ledger, suspensions. JSON over `/admin/v1`.

Who may do what: *admin* everything; *owner* sees and manages the keys, budgets and ledger rows of
its own owner name; *viewer* sees all of it and changes nothing; *caller* keys get in nowhere here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection, Row, desc, select
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from outlay.errors import InputError
from outlay.gateway.config import explain
from outlay.gateway.problems import RequestError, invalid
from outlay.gateway.state import Gateway
from outlay.gateway.store import admin, schema
from outlay.gateway.store.books import BudgetRow, Counter, Counters, Key
from outlay.gateway.windows import Window
from outlay.gateway.wire import read_body

_LARGEST = 100_000
_PAGE = 500
_OWNERS = ("caller", "owner")  # roles that see no more than an owner does


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class KeyForm(_Form):
    """A key to make; see `store.admin.create_key`."""

    name: str
    owner: str = ""
    team: str = ""
    role: Literal["caller", "viewer", "owner", "admin"] = "caller"
    models: list[str] = Field(default_factory=list)
    expires_at: float | None = None


class RotateForm(_Form):
    """Seconds that the old key still works."""

    grace: float = 0.0


class BudgetForm(_Form):
    """A budget to make; `amount` in tokens or nano-dollars."""

    name: str
    unit: Literal["tokens", "nanousd"] = "tokens"
    amount: int
    window: Literal["total", "hour", "day", "week", "month", "rolling"] = "month"
    zone: str = "UTC"
    seconds: int = 0
    mode: Literal["reject", "shrink"] = "reject"
    key_id: str | None = None
    owner: str | None = None
    team: str | None = None
    model: str | None = None
    route: str | None = None


class AmountForm(_Form):
    """A budget's new limit."""

    amount: int


def may_read(key: Key) -> bool:
    """Whether a key gets into the admin API and the dashboard."""
    return key.role in ("admin", "owner", "viewer")


def owner_only(key: Key) -> str | None:
    """The owner that a key is confined to; None for all."""
    return key.owner if key.role == "owner" else None


def key_fields(actor: Key, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a key that `actor` makes: an owner's are of its own owner and team.

    Raises:
        RequestError: 403 for an owner that asks for another owner, or for a role that sees more.
    """
    only = owner_only(actor)
    if only is None:
        return dict(fields)
    if fields["owner"] not in ("", only) or fields["role"] not in _OWNERS:
        raise RequestError(
            403, "an owner makes keys of its own owner, in the roles caller and owner", "forbidden"
        )
    return {**fields, "owner": only, "team": actor.team}


def manages_key(actor: Key, found: Key | None) -> Key:
    """A key that `actor` may rotate and revoke.

    Raises:
        RequestError: 404 if it is none of the actor's, 403 for a role that sees more than an owner.
    """
    only = owner_only(actor)
    if found is None or only not in (None, found.owner):
        raise RequestError(404, "no such key", code="not_found")
    if only is not None and found.role not in _OWNERS:
        raise RequestError(403, f"an owner does not manage a key in the role {found.role}")
    return found


def sees_budget(actor: Key, budget: BudgetRow, keys: Mapping[str, Key]) -> bool:
    """Whether `actor` is shown a budget: an owner, those of its owner and of its keys."""
    only = owner_only(actor)
    key = keys.get(budget.key_id or "")
    return only in (None, budget.owner) or (key is not None and key.owner == only)


async def _actor(gateway: Gateway, request: Request, *, change: bool) -> Key:
    key = await gateway.key(request.scope)
    if not may_read(key) or (change and key.role == "viewer"):
        raise RequestError(403, f"a key with the role {key.role!r} may not do this", "forbidden")
    if b"%00" in request.scope["query_string"] or "\0" in request.scope["path"]:
        raise invalid("an address holds no NUL character")  # PostgreSQL's texts cannot
    return key


async def _form(request: Request, form: type[_Form]) -> Any:
    raw = await read_body(request.scope, request.receive, _LARGEST)
    try:
        return form.model_validate_json(raw or b"{}")
    except ValidationError as error:
        raise invalid(explain(error)[:500]) from error


async def _run(gateway: Gateway, work: Callable[[Connection, float], Any]) -> Any:
    try:
        return await gateway.store.call(work)
    except InputError as error:
        raise invalid(str(error)) from error


def key_row(key: Key) -> dict[str, Any]:
    """A key without its digest."""
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role,
        "owner": key.owner,
        "team": key.team,
        "models": list(key.models),
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    }


def budget_rows(
    connection: Connection, now: float, budgets: list[BudgetRow]
) -> list[dict[str, Any]]:
    """Budgets with what is settled, reserved and left, and when they renew."""
    counters = Counters()
    if budgets:
        table = schema.counters
        wanted = table.c.budget_id.in_([budget.id for budget in budgets])
        for row in connection.execute(select(table).where(wanted)):
            counters.rows[row.budget_id][row.bucket] = Counter(row.settled, row.reserved)
    rows = []
    for budget in budgets:
        used = counters.used(budget, now)
        left = counters.left(budget, now)
        rows.append(
            {
                "id": budget.id,
                "name": budget.name,
                "unit": budget.unit,
                "amount": budget.amount,
                "window": budget.window.kind,
                "zone": budget.window.zone,
                "seconds": budget.window.seconds,
                "mode": budget.mode,
                "key_id": budget.key_id,
                "owner": budget.owner,
                "team": budget.team,
                "model": budget.model,
                "route": budget.route,
                "settled": used.settled,
                "reserved": used.reserved,
                "left": left.left,
                "renews_at": left.renews_at,
            }
        )
    return rows


def admin_routes(gateway: Gateway) -> list[BaseRoute]:
    """The routes under `/admin/v1`."""
    from outlay.gateway.app import as_json

    async def me(request: Request) -> Response:
        return as_json(key_row(await _actor(gateway, request, change=False)))

    async def list_keys(request: Request) -> Response:
        actor = await _actor(gateway, request, change=False)
        await gateway.store.refresh()
        only = owner_only(actor)
        keys = [k for k in gateway.store.known.keys.values() if only in (None, k.owner)]
        return as_json({"data": [key_row(key) for key in sorted(keys, key=lambda k: k.name)]})

    async def create_key(request: Request) -> Response:
        actor = await _actor(gateway, request, change=True)
        form = await _form(request, KeyForm)
        fields = key_fields(actor, form.model_dump())
        made = await _run(gateway, partial(_keyed, admin.create_key, actor=actor.id, **fields))
        return as_json({**key_row(made.key), "token": made.token}, 201)

    async def rotate_key(request: Request) -> Response:
        actor = await _actor(gateway, request, change=True)
        identity = await _own_key(request, actor)
        form = await _form(request, RotateForm)
        made = await _run(
            gateway,
            partial(_keyed, admin.rotate_key, actor=actor.id, identity=identity, grace=form.grace),
        )
        return as_json({**key_row(made.key), "token": made.token}, 201)

    async def revoke_key(request: Request) -> Response:
        actor = await _actor(gateway, request, change=True)
        identity = await _own_key(request, actor)
        await _run(gateway, partial(_keyed, admin.revoke_key, actor=actor.id, identity=identity))
        return as_json({"id": identity, "revoked": True})

    async def _own_key(request: Request, actor: Key) -> str:
        await gateway.store.refresh()
        return manages_key(actor, gateway.store.key(str(request.path_params["key"]))).id

    async def list_budgets(request: Request) -> Response:
        actor = await _actor(gateway, request, change=False)
        await gateway.store.refresh()
        known = gateway.store.known
        mine = [b for b in known.budgets.values() if sees_budget(actor, b, known.keys)]
        rows = await gateway.store.call(lambda connection, now: budget_rows(connection, now, mine))
        return as_json({"data": rows})

    def _manages(actor: Key) -> None:
        if actor.role != "admin":
            raise RequestError(403, "only an admin changes budgets", "forbidden")

    async def create_budget(request: Request) -> Response:
        actor = await _actor(gateway, request, change=True)
        _manages(actor)
        form = await _form(request, BudgetForm)
        fields = form.model_dump(exclude={"window", "zone", "seconds"})
        try:
            window = Window(form.window, form.zone, form.seconds)
        except InputError as error:
            raise invalid(str(error)) from error
        made = await _run(
            gateway,
            partial(_keyed, admin.create_budget, actor=actor.id, window=window, **fields),
        )
        rows = await gateway.store.call(
            lambda connection, now: budget_rows(connection, now, [made])
        )
        return as_json(rows[0], 201)

    async def change_budget(request: Request) -> Response:
        actor = await _actor(gateway, request, change=True)
        _manages(actor)
        form = await _form(request, AmountForm)
        identity = request.path_params["budget"]
        await _run(
            gateway,
            partial(
                _keyed, admin.set_amount, actor=actor.id, identity=identity, amount=form.amount
            ),
        )
        return as_json({"id": identity, "amount": form.amount})

    async def archive_budget(request: Request) -> Response:
        actor = await _actor(gateway, request, change=True)
        _manages(actor)
        identity = request.path_params["budget"]
        await _run(
            gateway, partial(_keyed, admin.archive_budget, actor=actor.id, identity=identity)
        )
        return as_json({"id": identity, "archived": True})

    async def ledger(request: Request) -> Response:
        actor = await _actor(gateway, request, change=False)
        table = schema.ledger
        query = select(table).order_by(desc(table.c.seq)).limit(_limit(request))
        if (only := owner_only(actor)) is not None:
            query = query.where(table.c.owner == only)
        for name in ("key_id", "owner", "team", "model", "route", "request", "kind"):
            if value := request.query_params.get(name):
                query = query.where(table.c[name] == value)
        if (before := request.query_params.get("before", "")).isdecimal():
            query = query.where(table.c.seq < int(before[:18]))
        rows = await gateway.store.call(
            lambda connection, now: [plain(row) for row in connection.execute(query)]
        )
        return as_json({"data": [_entry(row) for row in rows]})

    async def audit(request: Request) -> Response:
        actor = await _actor(gateway, request, change=False)
        if actor.role == "owner":
            raise RequestError(403, "an owner does not read the audit log", "forbidden")
        query = select(schema.audit).order_by(desc(schema.audit.c.seq)).limit(_limit(request))
        rows = await gateway.store.call(
            lambda connection, now: [plain(row) for row in connection.execute(query)]
        )
        return as_json({"data": [{**row, "detail": json.loads(row["detail"])} for row in rows]})

    async def suspensions(request: Request) -> Response:
        await _actor(gateway, request, change=False)
        rows = await gateway.store.call(
            lambda connection, now: [
                plain(row) for row in connection.execute(select(schema.suspensions))
            ]
        )
        return as_json({"data": rows})

    async def lift(request: Request) -> Response:
        actor = await _actor(gateway, request, change=True)
        _manages(actor)
        names: dict[str, Any] = {
            name: request.query_params.get(name, "") for name in ("upstream", "model")
        }
        await _run(gateway, partial(_keyed, admin.lift, actor=actor.id, **names))
        return as_json({**names, "lifted": True})

    return [
        Route("/admin/v1/me", me),
        Route("/admin/v1/keys", list_keys, methods=["GET"]),
        Route("/admin/v1/keys", create_key, methods=["POST"]),
        Route("/admin/v1/keys/{key}/rotate", rotate_key, methods=["POST"]),
        Route("/admin/v1/keys/{key}", revoke_key, methods=["DELETE"]),
        Route("/admin/v1/budgets", list_budgets, methods=["GET"]),
        Route("/admin/v1/budgets", create_budget, methods=["POST"]),
        Route("/admin/v1/budgets/{budget}", change_budget, methods=["PATCH"]),
        Route("/admin/v1/budgets/{budget}", archive_budget, methods=["DELETE"]),
        Route("/admin/v1/ledger", ledger),
        Route("/admin/v1/audit", audit),
        Route("/admin/v1/suspensions", suspensions, methods=["GET"]),
        Route("/admin/v1/suspensions", lift, methods=["DELETE"]),
    ]


def _keyed(work: Callable[..., Any], connection: Connection, now: float, **fields: Any) -> Any:
    return work(connection, now, **fields)


def plain(row: Row[Any]) -> dict[str, Any]:
    """A row with plain strings as names: SQLAlchemy's are of a class that orjson refuses."""
    return {str(name): value for name, value in row._mapping.items()}


def _limit(request: Request) -> int:
    given = request.query_params.get("limit", "100")
    if not given.isdecimal() or not 1 <= int(given) <= _PAGE:
        raise invalid(f"limit must be between 1 and {_PAGE}", "limit")
    return int(given)


def _entry(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "stages": json.loads(row["stages"]) if row["stages"] else None}
