"""What goes over the wire on the hot path: headers, bodies, JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from outlay.gateway.problems import RequestError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
JSON = "application/json"
EVENTS = "text/event-stream"


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


def as_object(raw: bytes) -> dict[str, Any] | None:
    """A JSON object; None for anything else."""
    try:
        payload = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return payload if isinstance(payload, dict) else None


async def gather(pieces: AsyncIterator[bytes], most: int | None) -> bytes:
    """A whole body; cut after `most` bytes."""
    body = bytearray()
    async for piece in pieces:
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
    if kind.strip() not in ("", JSON) or ("charset" in rest and "utf-8" not in rest):
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
