"""Errors as OpenAI's clients expect them: a status, a body `{"error": {...}}`, headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from outlay.errors import OutlayError


@dataclass
class RequestError(OutlayError):
    """A response that is an error.

    Args:
        status: HTTP status.
        message: what was wrong, and what to do.
        kind: OpenAI's `type`.
        code: OpenAI's `code`.
        param: the field of the request that is wrong.
        headers: further headers.
    """

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.message)

    def body(self) -> bytes:
        """The body."""
        return error_body(self.message, self.kind, self.code, self.param)


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> bytes:
    """OpenAI's error object as JSON."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def invalid(message: str, param: str | None = None, code: str | None = None) -> RequestError:
    """A request that cannot be served as it is (400)."""
    return RequestError(400, message, code=code, param=param)


def upstream_failed(message: str, status: int = 502, code: str = "upstream_error") -> RequestError:
    """The upstream did not answer as it should."""
    return RequestError(status, message, "api_error", code)
