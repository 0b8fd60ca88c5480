"""HTTP to an OpenAI-compatible server: JSON and server-sent events in, helpful errors out.

Error messages say what the server has and which knob to turn, and never show the API key.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from outlay.errors import CapabilityError, EndpointError, InputError
from outlay.models.retry import (
    Clock,
    OutOfTimeError,
    RefusedError,
    RetriableError,
    Retry,
    Timeouts,
    Tries,
    attempt_until,
    retry_after,
)

DONE: Mapping[str, Any] = {}  # the event by which a stream says that it is complete

_MODELS_SECONDS = 5.0
_ERROR_CHARS = 300
_CONTEXT_WORDS = (
    "context length",
    "context_length",
    "context size",
    "context_size",
    "max_model_len",
)


@dataclass(frozen=True)
class ServerInfo:
    """What GET /models says: `rows` by model id; None where it could not be read."""

    rows: Mapping[str, Mapping[str, Any]] | None

    @property
    def names(self) -> list[str]:
        """Ids of the models on the server."""
        return list(self.rows or ())


class Wire(Protocol):
    """How calls reach a server; `Transport` over HTTP, or whatever carries them."""

    shown: str

    def models(self) -> ServerInfo:
        """What the server serves."""
        ...

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        tries: Tries,
        *,
        deadline: float | None = None,
        attempts: int | None = None,
    ) -> dict[str, Any]:
        """POST and read a JSON object; raises EndpointError."""
        ...

    def events(
        self,
        path: str,
        body: Mapping[str, Any],
        tries: Tries,
        *,
        deadline: float | None = None,
    ) -> Iterator[Mapping[str, Any]]:
        """POST and read server-sent events, with `DONE` at the end; raises EndpointError."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


class Transport:
    """One server and one connection pool; safe to share between threads."""

    def __init__(
        self, base_url: str, api_key: str | None, timeouts: Timeouts, retry: Retry
    ) -> None:
        try:
            url = httpx.URL(base_url.rstrip("/"))
        except (httpx.InvalidURL, AttributeError, TypeError) as error:
            raise InputError(f"base_url={base_url!r} is not a URL ({error})") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise InputError(
                f"base_url={base_url!r} needs a scheme and a host, as in http://localhost:8000/v1"
            )
        for tail in ("/chat/completions", "/completions"):
            if url.path.endswith(tail):
                raise InputError(f"base_url ends in {tail}; give the part before it")
        self.url = str(url)
        self.shown = str(url.copy_with(userinfo=b""))
        self._key = api_key if api_key is not None else os.environ.get("OPENAI_API_KEY", "")
        if any(not 32 < ord(char) < 127 for char in self._key):
            raise InputError("api_key holds white space or non-ASCII characters; check it")
        self.timeouts = timeouts
        self.retry = retry
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.Client(
            headers=headers, limits=httpx.Limits(max_connections=None, keepalive_expiry=5.0)
        )

    def __repr__(self) -> str:
        return f"Transport({self.shown!r})"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def models(self, url: str | None = None) -> ServerInfo:
        """What the server serves; quick, tried once, and never an error."""
        try:
            answer = self._client.get(f"{url or self.url}/models", timeout=_MODELS_SECONDS)
            rows = {str(row["id"]): row for row in answer.json()["data"]}
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return ServerInfo(None)
        return ServerInfo(rows)

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        tries: Tries,
        *,
        deadline: float | None = None,
        attempts: int | None = None,
    ) -> dict[str, Any]:
        """POST and read a JSON object.

        Raises:
            EndpointError: when every attempt failed, or the answer is not a JSON object.
        """

        def attempt() -> bytes:
            response = self._send(path, body, tries, clock)
            with self._reading(response, tries, clock):
                chunks = []
                for chunk in response.iter_bytes():
                    clock.check()
                    chunks.append(chunk)
                return b"".join(chunks)

        clock = Clock(self.timeouts, deadline)
        raw = attempt_until(attempt, clock, self.retry, attempts or self.retry.attempts)
        try:
            return self._object(raw)
        except EndpointError:
            tries.answers += 1
            raise

    def events(
        self,
        path: str,
        body: Mapping[str, Any],
        tries: Tries,
        *,
        deadline: float | None = None,
    ) -> Iterator[Mapping[str, Any]]:
        """POST now, and read server-sent events as they come; only the opening is retried.

        A stream that says that it is complete ends with `DONE`. A server that ignores `stream` and
        answers with one JSON object yields that object.

        Raises:
            EndpointError: when the stream breaks off or holds something that is not JSON.
        """
        clock = Clock(self.timeouts, deadline)
        response = attempt_until(
            lambda: self._send(path, body, tries, clock), clock, self.retry, self.retry.attempts
        )
        return self._events(response, clock)

    def _events(self, response: httpx.Response, clock: Clock) -> Iterator[Mapping[str, Any]]:
        with self._reading(response, None, clock):
            if "json" in response.headers.get("content-type", ""):
                yield self._object(response.read())
                yield DONE
                return
            data: list[str] = []
            for line in response.iter_lines():
                clock.check()
                if line.startswith("data:"):
                    data.append(line[5:].strip())
                elif not line and data:
                    text, data = "\n".join(data), []
                    yield self._event(text)
                    if text == "[DONE]":
                        return
            if data:  # the last event may lack its blank line
                yield self._event("\n".join(data))

    def _event(self, text: str) -> Mapping[str, Any]:
        return DONE if text == "[DONE]" else self._object(text.encode())

    def _send(
        self, path: str, body: Mapping[str, Any], tries: Tries, clock: Clock
    ) -> httpx.Response:
        request = self._client.build_request(
            "POST", f"{self.url}{path}", json=body, timeout=clock.httpx()
        )
        try:
            response = self._client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise RetriableError(
                EndpointError(
                    f"cannot reach {self.shown} ({self._clean(str(error)) or 'timed out'}); "
                    "is the server running, and is base_url right?"
                )
            ) from error
        except httpx.TimeoutException as error:
            tries.answers += 1
            raise self._slow(clock) from error
        except httpx.TransportError as error:
            tries.answers += 1
            raise RetriableError(self._lost(error)) from error
        if response.status_code == 200:
            # httpcore reads this limit when the body begins: keep the total honest.
            request.extensions["timeout"]["read"] = clock.httpx().read
            return response
        with self._reading(response, tries, clock):
            detail = self._detail(response.read())
        raise self._refusal(response, detail, str(body.get("model", "")), tries)

    @contextmanager
    def _reading(
        self, response: httpx.Response, tries: Tries | None, clock: Clock
    ) -> Iterator[None]:
        """Close `response` after; lost connections are retriable where `tries` is given."""
        try:
            yield
        except httpx.TimeoutException as error:
            if tries is not None:
                tries.answers += 1
            raise self._slow(clock) from error
        except OutOfTimeError:
            if tries is not None:
                tries.answers += 1
            raise
        except httpx.TransportError as error:
            if tries is None:
                raise self._lost(error) from error
            tries.answers += 1
            raise RetriableError(self._lost(error)) from error
        finally:
            response.close()

    def _slow(self, clock: Clock) -> EndpointError:
        if clock.left() <= 0:
            return clock.error()
        return OutOfTimeError(
            f"{self.shown} sent nothing for {self.timeouts.read:g} s; raise timeouts.read, lower "
            "max_tokens, or stream",
            budget=False,
        )

    def _lost(self, error: Exception) -> EndpointError:
        return EndpointError(
            f"{self.shown} broke the connection ({self._clean(str(error)) or type(error).__name__})"
        )

    def _refusal(
        self, response: httpx.Response, detail: str, model: str, tries: Tries
    ) -> Exception:
        status = response.status_code
        if status == 429 or status >= 500:
            if status >= 500:
                tries.prompts += 1
            return RetriableError(
                EndpointError(f"{self.shown} answered {status}: {detail}"), retry_after(response)
            )
        if status in (401, 403):
            return RefusedError(
                f"{self.shown} refused the API key ({status}: {detail}); give api_key= or set "
                "OPENAI_API_KEY",
                status,
                detail,
            )
        if 300 <= status < 400:
            where = self._clean(response.headers.get("location", "elsewhere"))
            return RefusedError(
                f"{self.shown} redirects to {where}; give that as base_url", status, detail
            )
        if status in (400, 413, 422) and any(word in detail.lower() for word in _CONTEXT_WORDS):
            return InputError(
                f"the prompt and max_tokens do not fit the context of {model!r}: {detail}; shorten "
                "the prompt or lower max_tokens"
            )
        if status in (404, 405):
            return self._missing(response.request.url.path, status, detail, model)
        hint = ""
        names = self.models().names
        if names and model not in names:
            hint = f"; the server has {_listing(names)}, not {model!r}"
        return RefusedError(
            f"{self.shown} refused the request ({status}: {detail}){hint}", status, detail
        )

    def _missing(self, path: str, status: int, detail: str, model: str) -> Exception:
        info = self.models()
        if info.rows is None:
            with_v1 = f"{self.url}/v1"
            if not self.url.endswith("/v1") and self.models(with_v1).rows is not None:
                return RefusedError(
                    f"nothing is served at {self.shown}; use base_url={self.shown + '/v1'!r}",
                    status,
                    detail,
                )
            return RefusedError(
                f"{self.shown} answered {status} ({detail}) and lists no models; base_url usually "
                "ends in /v1",
                status,
                detail,
            )
        if model not in info.names:
            return RefusedError(
                f"{self.shown} has no model {model!r}; it has {_listing(info.names)}",
                status,
                detail,
            )
        return CapabilityError(
            f"{self.shown} answered {status} for {path} ({detail}); use the other api= "
            "(chat for messages, completions for raw text)"
        )

    def _object(self, raw: bytes) -> dict[str, Any]:
        try:
            value = json.loads(raw)
        except ValueError as error:
            raise EndpointError(
                f"{self.shown} answered something that is not JSON ({self._quote(raw)!r}); "
                "check base_url, which usually ends in /v1"
            ) from error
        if not isinstance(value, dict):
            raise EndpointError(
                f"{self.shown} answered JSON that is not an object ({self._quote(raw)!r})"
            )
        if value.get("error"):
            raise EndpointError(f"{self.shown} reported an error: {self._detail(raw)}")
        return value

    def _detail(self, raw: bytes) -> str:
        """The server's own words, from any of the usual places."""
        try:
            value = json.loads(raw)
        except ValueError:
            return self._quote(raw) or "no message"
        while isinstance(value, dict):
            inner = next((value[k] for k in ("error", "message", "detail") if value.get(k)), None)
            if inner is None:
                break
            value = inner
        return self._quote(str(value).encode()) or "no message"

    def _quote(self, raw: bytes) -> str:
        return self._clean(raw[: 4 * _ERROR_CHARS].decode(errors="replace")).strip()[:_ERROR_CHARS]

    def _clean(self, text: str) -> str:
        """Without the API key or credentials of the URL."""
        if self._key:
            text = text.replace(self._key, "***")
        return text.replace(self.url, self.shown)


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(repr(name) for name in names[:10]) + more
