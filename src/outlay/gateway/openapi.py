"""The API's description (OpenAPI 3.1) at /openapi.json, and a plain page of it at /docs.

Bodies come from the models that read them, rows from the tables that hold them: what is described
is what is checked.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Float, Integer, Table
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from outlay.gateway.admin import AmountForm, BudgetForm, KeyForm, RotateForm
from outlay.gateway.bounds import BODIES
from outlay.gateway.config import ENDPOINTS, Config, Endpoint
from outlay.gateway.state import Gateway
from outlay.gateway.store import schema

Json = dict[str, Any]
_TEXT: Json = {"type": "string"}
_WHOLE: Json = {"type": "integer"}
_NUMBER: Json = {"type": "number"}
_YES: Json = {"const": True}
_TITLES: dict[Endpoint, str] = {
    "chat": "Answer a chat",
    "completions": "Continue a text",
    "responses": "Answer (the Responses API)",
    "embeddings": "Embed texts",
}
_PROBLEMS = {
    400: "The request cannot be served as it is",
    401: "No valid key was given",
    402: "A budget that never renews is spent",
    403: "The key may not do this",
    404: "There is no such model, key or budget",
    405: "The path does not take this method",
    409: "A request with this idempotency key is in flight, or its outcome was not kept",
    413: "The body is too large",
    415: "The body is not JSON in UTF-8",
    422: "The idempotency key was used with another request",
    429: "A budget is exhausted until it renews, or reserved by requests in flight",
    502: "The upstream failed",
    503: "The database, the upstream or the model is not available",
    504: "The upstream or the request took too long",
}
_ADMIN = (400, 401, 403, 404, 413, 415, 503)
_GUARDED = (401, 404, 503)
_ACCOUNTS = {
    "x-outlay-charged-tokens": "tokens that the request was charged",
    "x-outlay-charged-usd": "US dollars that it was charged",
    "x-outlay-remaining-tokens": "what the tightest token budget has left",
    "x-outlay-remaining-usd": "what the tightest money budget has left",
    "x-outlay-renews-tokens": "when the token budget renews, in seconds since 1970",
    "x-outlay-renews-usd": "when the money budget renews",
}


def document(config: Config) -> Json:
    """The description of a gateway with this configuration."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "outlay",
            "version": version("outlay"),
            "description": "OpenAI's API behind hard budgets, and the administration of keys and "
            "budgets. Amounts are tokens or nano-dollars; times are seconds since 1970.",
        },
        "security": [{"key": []}],
        "paths": {**_serving(config), **_reading(), **_administration()},
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(config),
            "headers": {
                name: {"description": text, "schema": _TEXT} for name, text in _ACCOUNTS.items()
            },
        },
    }


# -- schemas --------------------------------------------------------------------------------------


def _object(**properties: Json) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _maybe(kind: Json) -> Json:
    return {"type": [kind["type"], "null"]}


def _row(table: Table, **instead: Json) -> Json:
    """A row as JSON."""
    properties = {}
    for column in table.columns:
        kind = _TEXT
        if isinstance(column.type, Integer | Float):
            kind = _WHOLE if isinstance(column.type, Integer) else _NUMBER
        properties[str(column.name)] = _maybe(kind) if column.nullable else kind
    return _object(**{**properties, **instead})


def _model(model: type[BaseModel]) -> Json:
    return model.model_json_schema(ref_template="#/components/schemas/{model}")


def _schemas(config: Config) -> Json:
    key = {
        **dict.fromkeys(("id", "name", "role", "owner", "team"), _TEXT),
        "models": {"type": "array", "items": _TEXT},
        "expires_at": _maybe(_NUMBER),
        "revoked_at": _maybe(_NUMBER),
    }
    budget = {
        **dict.fromkeys(("id", "name", "unit", "window", "zone", "mode"), _TEXT),
        **dict.fromkeys(("amount", "seconds", "settled", "reserved", "left"), _WHOLE),
        **{name: _maybe(_TEXT) for name in ("key_id", "owner", "team", "model", "route")},
        "renews_at": _maybe(_NUMBER),
    }
    problem = _object(message=_TEXT, type=_TEXT, param=_maybe(_TEXT), code=_maybe(_TEXT))
    card = _object(id=_TEXT, object={"const": "model"}, created=_WHOLE, owned_by=_TEXT)
    made: dict[str, Json] = {model.__name__: _model(model) for model in BODIES.values()}
    for body in made.values():
        body["properties"]["model"]["examples"] = list(config.models)
    made |= {form.__name__: _model(form) for form in (KeyForm, RotateForm, BudgetForm, AmountForm)}
    return {
        **made,
        "Error": _object(error=problem),
        "Key": _object(**key),
        "NewKey": _object(**key, token=_TEXT),
        "Budget": _object(**budget),
        "LedgerEntry": _row(schema.ledger, stages={}),
        "AuditEntry": _row(schema.audit, detail={"type": "object"}),
        "Suspension": _row(schema.suspensions),
        "Model": card,
        "Models": _object(object={"const": "list"}, data={"type": "array", "items": card}),
    }


# -- paths ----------------------------------------------------------------------------------------


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(name: str) -> Json:
    return _object(data={"type": "array", "items": _ref(name)})


def _responses(good: Json, problems: Sequence[int], *, status: int = 200) -> Json:
    responses: Json = {str(status): good}
    for each in (*problems, 405):
        responses[str(each)] = {
            "description": _PROBLEMS[each],
            "content": {"application/json": {"schema": _ref("Error")}},
        }
    return responses


def _operation(
    summary: str,
    answer: Json,
    problems: Sequence[int],
    *,
    status: int = 200,
    form: str = "",
    needed: bool = True,
    parameters: Sequence[Json] = (),
) -> Json:
    """An operation that answers with JSON."""
    good = {"description": "Done", "content": {"application/json": {"schema": answer}}}
    made: Json = {"summary": summary, "responses": _responses(good, problems, status=status)}
    if parameters:
        made["parameters"] = list(parameters)
    if form:
        made["requestBody"] = _body(form, needed=needed)
    return made


def _body(name: str, *, needed: bool = True) -> Json:
    return {"required": needed, "content": {"application/json": {"schema": _ref(name)}}}


def _parameter(
    name: str, place: str = "query", kind: Json = _TEXT, *, needed: bool = False
) -> Json:
    return {"name": name, "in": place, "required": needed or place == "path", "schema": kind}


def _serving(config: Config) -> Json:
    paths: Json = {}
    for endpoint, path in ENDPOINTS.items():
        content: Json = {"application/json": {"schema": {"type": "object"}}}
        if endpoint != "embeddings":
            content["text/event-stream"] = {"schema": _TEXT}
        headers = {name: {"$ref": f"#/components/headers/{name}"} for name in _ACCOUNTS}
        good = {"description": "OpenAI's answer", "content": content, "headers": headers}
        paths[path] = {
            "post": {
                "summary": _TITLES[endpoint],
                "parameters": [
                    _parameter("idempotency-key", "header", {**_TEXT, "maxLength": 255})
                ],
                "requestBody": _body(BODIES[endpoint].__name__),
                "responses": _responses(good, tuple(_PROBLEMS)),
            }
        }
    return paths


def _reading() -> Json:
    state = {"type": "object", "additionalProperties": {"type": "boolean"}}
    ready = _object(status=_TEXT, database={"type": "boolean"}, upstreams=state)
    health = _operation("Whether requests would be served", ready, ())
    health["responses"]["503"] = {**health["responses"]["200"], "description": "Not ready"}
    text = {"description": "Prometheus' text format", "content": {"text/plain": {"schema": _TEXT}}}
    name = _parameter("name", "path", {**_TEXT, "minLength": 1})
    return {
        "/v1/models": {
            "get": _operation("The models that the key may use", _ref("Models"), _GUARDED)
        },
        "/v1/models/{name}": {
            "get": _operation("One model", _ref("Model"), _GUARDED, parameters=[name])
        },
        "/health/live": {
            "get": {**_operation("Whether it runs", _object(status=_TEXT), ()), "security": []}
        },
        "/health/ready": {"get": {**health, "security": []}},
        "/metrics": {
            "get": {
                "summary": "Counters for Prometheus",
                "security": [],
                "responses": _responses(text, (503,)),
            }
        },
    }


def _administration() -> Json:
    key, budget = _parameter("key", "path"), _parameter("budget", "path")
    limit = _parameter("limit", kind={**_WHOLE, "minimum": 1, "maximum": 500})
    names = ("key_id", "owner", "team", "model", "route", "request", "kind")
    filters = [limit, _parameter("before", kind={**_WHOLE, "minimum": 0})]
    filters += [_parameter(name) for name in names]
    which = [_parameter(name, needed=True) for name in ("upstream", "model")]
    gone = {"upstream": _TEXT, "model": _TEXT}
    paths = {
        "me": {"get": _operation("The key that asks", _ref("Key"), _ADMIN)},
        "keys": {
            "get": _operation("Keys", _list("Key"), _ADMIN),
            "post": _operation("Make a key", _ref("NewKey"), _ADMIN, status=201, form="KeyForm"),
        },
        "keys/{key}": {
            "delete": _operation(
                "Revoke a key", _object(id=_TEXT, revoked=_YES), _ADMIN, parameters=[key]
            )
        },
        "keys/{key}/rotate": {
            "post": _operation(
                "A new key in place of one",
                _ref("NewKey"),
                _ADMIN,
                status=201,
                form="RotateForm",
                needed=False,
                parameters=[key],
            )
        },
        "budgets": {
            "get": _operation("Budgets", _list("Budget"), _ADMIN),
            "post": _operation(
                "Make a budget", _ref("Budget"), _ADMIN, status=201, form="BudgetForm"
            ),
        },
        "budgets/{budget}": {
            "patch": _operation(
                "Change a limit",
                _object(id=_TEXT, amount=_WHOLE),
                _ADMIN,
                form="AmountForm",
                parameters=[budget],
            ),
            "delete": _operation(
                "Archive a budget", _object(id=_TEXT, archived=_YES), _ADMIN, parameters=[budget]
            ),
        },
        "ledger": {
            "get": _operation(
                "The ledger, newest first", _list("LedgerEntry"), _ADMIN, parameters=filters
            )
        },
        "audit": {
            "get": _operation(
                "What admins did, newest first", _list("AuditEntry"), _ADMIN, parameters=[limit]
            )
        },
        "suspensions": {
            "get": _operation("Suspended models", _list("Suspension"), _ADMIN),
            "delete": _operation(
                "Lift a suspension", _object(**gone, lifted=_YES), _ADMIN, parameters=which
            ),
        },
    }
    return {f"/admin/v1/{path}": operations for path, operations in paths.items()}


# -- routes ---------------------------------------------------------------------------------------

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code{overflow-wrap:anywhere}dt{margin-top:1rem}:root{color-scheme:light dark}"
)
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()


def page(described: Json) -> str:
    """The description as a page, for people."""
    rows = []
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            codes = ", ".join(operation["responses"])
            rows.append(
                f"<dt><code>{method.upper()} {escape(path)}</code></dt>"
                f"<dd>{escape(operation['summary'])}. Answers: {codes}.</dd>"
            )
    info = described["info"]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{info["title"]}: the API'
        f'</title><meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<main><h1>{info['title']} {info['version']}</h1><p>{escape(info['description'])}</p>"
        '<p>For programs: <a href="/openapi.json">/openapi.json</a>. Send '
        f"<code>Authorization: Bearer olk_…</code>.</p><dl>{''.join(rows)}</dl></main></html>"
    )


def schema_routes(gateway: Gateway) -> list[BaseRoute]:
    """`/openapi.json`, and `/docs` unless `server.docs` is off."""
    from outlay.gateway.app import as_json

    async def described(request: Request) -> Response:
        return as_json(document(gateway.config))

    async def docs(request: Request) -> Response:
        policy = f"default-src 'none'; style-src 'sha256-{_HASH}'; frame-ancestors 'none'"
        headers = {"content-security-policy": policy}
        return Response(page(document(gateway.config)), media_type="text/html", headers=headers)

    routes: list[BaseRoute] = [Route("/openapi.json", described)]
    if gateway.config.server.docs:
        routes.append(Route("/docs", docs))
    return routes
