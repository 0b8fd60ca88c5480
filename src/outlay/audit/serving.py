"""The provider's side over HTTP: `/commit` and `/open`, to mount into a server that generates.

Opt-in, because stored fingerprints can be inverted to text: who has the store has the reasoning,
and who has an id may open a share of it. Ids cannot be guessed and may belong to an owner, entries
end after a time to live, and openings stop at the provider's limits.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from outlay.audit.commitment import Challenge, Commitment, Opening, Provider
from outlay.audit.wire import challenge_json, opening_json, read_challenge, read_openings
from outlay.errors import DependencyError, EndpointError, InputError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.routing import BaseRoute

_BODY = 1_000_000  # bytes of a request
_WAIT = 0.5  # seconds between looks for a commitment that is being made


class NotYetError(InputError):
    """The commitment behind an id is still being made; ask again."""


@dataclass(frozen=True)
class _Entry:
    """One answer: whose it is, until when it is kept, its fingerprints."""

    owner: str
    until: float
    provider: Provider

    @property
    def tokens(self) -> int:
        return self.provider.fingerprints.partition.tokens


class FingerprintStore:
    """Fingerprints of finished answers, each for a time; the oldest go first when it is full.

    Args:
        ttl: seconds that an entry is kept.
        most: entries.
        most_tokens: hidden tokens of all entries together; each takes about 2 kB of memory.
        clock: seconds, for tests.

    Raises:
        InputError: for a time or a size that keeps nothing.
    """

    def __init__(
        self,
        ttl: float = 3600.0,
        most: int = 1000,
        most_tokens: int = 1_000_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not ttl > 0 or most < 1 or most_tokens < 1:
            raise InputError(
                f"ttl={ttl}, most={most}, most_tokens={most_tokens}; all must be above 0"
            )
        self.ttl, self.most, self.most_tokens, self._clock = ttl, most, most_tokens, clock
        self._held: OrderedDict[str, _Entry] = OrderedDict()
        self._making: dict[str, str] = {}
        self._lock = threading.Lock()

    def announce(self, name: str, owner: str = "") -> None:
        """An id whose fingerprints follow, by `put` or not, by `forget`: askers wait until then."""
        with self._lock:
            self._making[name] = owner

    def put(self, provider: Provider, name: str = "", owner: str = "") -> str:
        """Keep a provider's fingerprints; returns the id that goes on the bill.

        Args:
            provider: it commits now.
            name: of the id; "" draws one that cannot be guessed.
            owner: who alone may ask for it.
        """
        name = name or secrets.token_urlsafe(24)
        provider.commit()
        with self._lock:
            self._purge()
            self._making.pop(name, None)
            self._held[name] = _Entry(owner, self._clock() + self.ttl, provider)
            tokens = sum(entry.tokens for entry in self._held.values())
            while self._held and (len(self._held) > self.most or tokens > self.most_tokens):
                tokens -= self._held.popitem(last=False)[1].tokens
        return name

    def commitment(self, name: str, owner: str = "") -> Commitment | None:
        """The commitment of an id; None where its owner has none, or no longer.

        Raises:
            NotYetError: while it is being made.
        """
        with self._lock:
            held = self._find(name, owner)
            return None if held is None else held.commit()

    def prove(self, name: str, challenge: Challenge, owner: str = "") -> list[Opening] | None:
        """Answer a challenge; None where its owner has no such id, or no longer.

        Raises:
            NotYetError: while the commitment is being made.
            InputError: as `Provider.prove`.
        """
        with self._lock:
            held = self._find(name, owner)
            return None if held is None else held.prove(challenge)

    def forget(self, name: str) -> None:
        """Remove an id now."""
        with self._lock:
            self._making.pop(name, None)
            self._held.pop(name, None)

    def __len__(self) -> int:
        with self._lock:
            self._purge()
            return len(self._held)

    def _find(self, name: str, owner: str) -> Provider | None:
        self._purge()
        if self._making.get(name) == owner:
            raise NotYetError("the commitment is still being made; ask again in a moment")
        entry = self._held.get(name)
        return entry.provider if entry is not None and entry.owner == owner else None

    def _purge(self) -> None:
        now = self._clock()
        while self._held and next(iter(self._held.values())).until <= now:
            self._held.popitem(last=False)


Owner = Callable[["Request"], Awaitable[str]]
"""Whose request it is; raises what the server answers strangers with."""


async def _nobody(request: Request) -> str:
    return ""


def provider_app(store: FingerprintStore, owner: Owner = _nobody) -> Starlette:
    """An ASGI application with the routes of `provider_routes`.

    Raises:
        DependencyError: without starlette.
    """
    try:
        from starlette.applications import Starlette
    except ImportError as error:
        raise DependencyError(f"this needs pip install 'outlay[serve]' ({error})") from error
    return Starlette(routes=provider_routes(store, owner))


def provider_routes(store: FingerprintStore, owner: Owner = _nobody) -> list[BaseRoute]:
    """POST /commit `{"id"}` and POST /open `{"id", "challenge"}`.

    Args:
        store: of fingerprints.
        owner: of a request; it sees what was announced for that owner alone.

    Raises:
        DependencyError: without starlette.
    """
    try:
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import JSONResponse
        from starlette.routing import Route
    except ImportError as error:
        raise DependencyError(f"this needs pip install 'outlay[serve]' ({error})") from error

    def refuse(error: InputError) -> JSONResponse:
        early = isinstance(error, NotYetError)
        said = {"error": {"message": str(error)}}
        return JSONResponse(said, 409 if early else 400, {"retry-after": "1"} if early else None)

    gone = {"error": {"message": "no such id, or its time is over"}}

    async def commit(request: Request) -> JSONResponse:
        mine = await owner(request)
        try:
            name, _ = await _body(request)
            held = store.commitment(name, mine)
        except InputError as error:
            return refuse(error)
        return JSONResponse(gone, 404) if held is None else JSONResponse(held.to_dict())

    async def open_(request: Request) -> JSONResponse:
        mine = await owner(request)
        try:
            name, data = await _body(request)
            challenge = read_challenge(data.get("challenge"))
            openings = await run_in_threadpool(store.prove, name, challenge, mine)
        except InputError as error:
            return refuse(error)
        if openings is None:
            return JSONResponse(gone, 404)
        return JSONResponse({"openings": [opening_json(each) for each in openings]})

    return [
        Route("/commit", commit, methods=["POST"]),
        Route("/open", open_, methods=["POST"]),
    ]


async def _body(request: Request) -> tuple[str, dict[str, Any]]:
    raw = bytearray()
    async for part in request.stream():
        raw += part
        if len(raw) > _BODY:
            raise InputError(f"the request is larger than {_BODY} bytes")
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the request is no JSON ({error})") from error
    if not isinstance(data, dict) or not isinstance(data.get("id"), str):
        raise InputError('the request must be an object with a text "id"')
    return data["id"], data


class LiveProvider:
    """A provider behind a URL.

    Args:
        url: under which /commit and /open lie.
        name: the id on the bill.
        key: sent as a bearer token, where the server wants one.
        timeout: seconds per request, and until a commitment that is being made is there.
    """

    def __init__(self, url: str, name: str, *, key: str = "", timeout: float = 30.0) -> None:
        if not name:
            raise InputError("the bill has no id; a live provider needs one")
        self._url, self._name, self._timeout = url.rstrip("/"), name, timeout
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=timeout, headers=headers)

    def commit(self) -> Commitment:
        """The commitment behind the id.

        Raises:
            EndpointError: if the provider does not answer as it should.
        """
        until = time.monotonic() + self._timeout
        while True:
            status, data = self._post("/commit", {})
            if status != 409 or time.monotonic() >= until:
                return Commitment.from_dict(self._checked("/commit", status, data))
            time.sleep(_WAIT)

    def open(self, challenge: Challenge) -> list[Opening]:
        """Send a challenge.

        Raises:
            EndpointError: if the provider does not answer as it should.
        """
        sent = {"challenge": challenge_json(challenge)}
        return read_openings(self._checked("/open", *self._post("/open", sent)).get("openings"))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        try:
            answer = self._client.post(self._url + path, json={"id": self._name, **body})
            return answer.status_code, answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise EndpointError(f"{self._url}{path} gave no answer ({error})") from error

    def _checked(self, path: str, status: int, data: Any) -> dict[str, Any]:
        if status != 200 or not isinstance(data, dict):
            said = data.get("error", {}) if isinstance(data, dict) else {}
            message = said.get("message", "") if isinstance(said, dict) else ""
            raise EndpointError(f"{self._url}{path}: status {status}, {message}")
        return data
