"""Errors as OpenAI's clients expect them: a status, a body `{"error": {...}}`, headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from outlay.errors import OutlayError
from outlay.gateway.store.books import Refusal


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


def no_key() -> RequestError:
    """The caller has no key, or one that is unknown, revoked or expired (401)."""
    return RequestError(
        401,
        "no valid API key was given; send 'Authorization: Bearer olk_...'",
        "authentication_error",
        "invalid_api_key",
        headers={"www-authenticate": "Bearer"},
    )


def upstream_failed(message: str, status: int = 502, code: str = "upstream_error") -> RequestError:
    """The upstream did not answer as it should."""
    return RequestError(status, message, "api_error", code)


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
