"""Rendering: templates, static files, and the headers that every answer of the dashboard bears."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from outlay.gateway.dashboard.text import FILTERS
from outlay.gateway.problems import RequestError

_HERE = Path(__file__).resolve().parent
_MEDIA = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@cache
def environment() -> jinja2.Environment:
    """The templates; everything that they are given is escaped."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(FILTERS)
    found.globals["asset"] = lambda name: f"/static/{name}?v={_files()[name][1]}"
    return found


@cache
def _files() -> dict[str, tuple[bytes, str]]:
    """The static files with the first digits of their hash."""
    found = {}
    for path in sorted((_HERE / "static").iterdir()):
        if path.suffix in _MEDIA:
            content = path.read_bytes()
            found[path.name] = content, hashlib.sha256(content).hexdigest()[:16]
    return found


def fragment(template: str, **context: Any) -> str:
    """A template as text."""
    return environment().get_template(template).render(context)


def html(template: str, code: int = 200, **context: Any) -> Response:
    """A page with an HTTP status."""
    return guarded(HTMLResponse(fragment(template, **context), status_code=code))


def guarded(response: Response) -> Response:
    """Add the headers; what is shown is kept nowhere."""
    response.headers.update(HEADERS)
    response.headers.setdefault("cache-control", "no-store")
    return response


async def static(request: Request) -> Response:
    """A style sheet or script; under its hash it never changes."""
    name = request.path_params["name"]
    if name not in _files():
        raise RequestError(404, f"no such page: {request.url.path[:100]}", code="not_found")
    content, tag = _files()[name]
    fresh = request.query_params.get("v") == tag
    headers = {
        "etag": f'"{tag}"',
        "cache-control": "public, max-age=31536000, immutable" if fresh else "no-cache",
    }
    if request.headers.get("if-none-match") == headers["etag"]:
        return guarded(Response(status_code=304, headers=headers))
    media = _MEDIA[Path(name).suffix]
    return guarded(Response(content, media_type=media, headers=headers))
