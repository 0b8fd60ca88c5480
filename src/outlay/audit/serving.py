"""The provider's side over HTTP: `/commit` and `/open`, to mount into a server that generates.

Opt-in, because stored fingerprints can be inverted to text: who has the store has the reasoning,
and who has an id may open a share of it. Ids cannot be guessed, entries end after a time to live,
and openings stop at the provider's limits.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx

from outlay.audit.commitment import Challenge, Commitment, Opening, Provider
from outlay.audit.wire import challenge_json, opening_json, read_challenge, read_openings
from outlay.errors import DependencyError, EndpointError, InputError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse

_BODY = 1_000_000  # bytes of a request


class FingerprintStore:
    """Fingerprints of finished answers, each for a time; the oldest go first when it is full.

    Args:
        ttl: seconds that an entry is kept.
        most: entries.
        clock: seconds, for tests.

    Raises:
        InputError: for a time or a size that keeps nothing.
    """

    def __init__(
        self, ttl: float = 3600.0, most: int = 1000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not ttl > 0 or most < 1:
            raise InputError(f"ttl={ttl}, most={most}; both must be above 0")
        self.ttl, self.most, self._clock = ttl, most, clock
        self._held: OrderedDict[str, tuple[float, Provider]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, provider: Provider) -> str:
        """Keep a provider's fingerprints; returns the id that goes on the bill."""
        name = secrets.token_urlsafe(24)
        provider.commit()
        with self._lock:
            self._purge()
            self._held[name] = (self._clock() + self.ttl, provider)
            while len(self._held) > self.most:
                self._held.popitem(last=False)
        return name

    def commitment(self, name: str) -> Commitment | None:
        """The commitment of an id; None where there is none, or no longer."""
        with self._lock:
            self._purge()
            held = self._held.get(name)
            return None if held is None else held[1].commit()

    def prove(self, name: str, challenge: Challenge) -> list[Opening] | None:
        """Answer a challenge; None where the id is not known, or no longer.

        Raises:
            InputError: as `Provider.prove`.
        """
        with self._lock:
            self._purge()
            held = self._held.get(name)
            return None if held is None else held[1].prove(challenge)

    def forget(self, name: str) -> None:
        """Remove an id now."""
        with self._lock:
            self._held.pop(name, None)

    def __len__(self) -> int:
        with self._lock:
            self._purge()
            return len(self._held)

    def _purge(self) -> None:
        now = self._clock()
        while self._held and next(iter(self._held.values()))[0] <= now:
            self._held.popitem(last=False)


def provider_app(store: FingerprintStore) -> Starlette:
    """An ASGI application with POST /commit `{"id"}` and POST /open `{"id", "challenge"}`.

    Raises:
        DependencyError: without starlette.
    """
    try:
        from starlette.applications import Starlette
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import JSONResponse
        from starlette.routing import Route
    except ImportError as error:
        raise DependencyError(f"this needs pip install 'outlay[serve]' ({error})") from error

    def refuse(status: int, message: str) -> JSONResponse:
        return JSONResponse({"error": {"message": message}}, status)

    async def commit(request: Request) -> JSONResponse:
        try:
            name, _ = await _body(request)
        except InputError as error:
            return refuse(400, str(error))
        held = store.commitment(name)
        if held is None:
            return refuse(404, "no such id, or its time is over")
        return JSONResponse(held.to_dict())

    async def open_(request: Request) -> JSONResponse:
        try:
            name, data = await _body(request)
            challenge = read_challenge(data.get("challenge"))
            openings = await run_in_threadpool(store.prove, name, challenge)
        except InputError as error:
            return refuse(400, str(error))
        if openings is None:
            return refuse(404, "no such id, or its time is over")
        return JSONResponse({"openings": [opening_json(each) for each in openings]})

    return Starlette(
        routes=[
            Route("/commit", commit, methods=["POST"]),
            Route("/open", open_, methods=["POST"]),
        ]
    )


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
        timeout: seconds per request.
    """

    def __init__(self, url: str, name: str, *, key: str = "", timeout: float = 30.0) -> None:
        if not name:
            raise InputError("the bill has no id; a live provider needs one")
        self._url, self._name = url.rstrip("/"), name
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=timeout, headers=headers)

    def commit(self) -> Commitment:
        """The commitment behind the id.

        Raises:
            EndpointError: if the provider does not answer as it should.
        """
        return Commitment.from_dict(self._post("/commit", {}))

    def open(self, challenge: Challenge) -> list[Opening]:
        """Send a challenge.

        Raises:
            EndpointError: if the provider does not answer as it should.
        """
        data = self._post("/open", {"challenge": challenge_json(challenge)})
        return read_openings(data.get("openings"))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = self._client.post(self._url + path, json={"id": self._name, **body})
            data = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise EndpointError(f"{self._url}{path} gave no answer ({error})") from error
        if answer.status_code != 200 or not isinstance(data, dict):
            said = data.get("error", {}) if isinstance(data, dict) else {}
            message = said.get("message", "") if isinstance(said, dict) else ""
            raise EndpointError(f"{self._url}{path}: status {answer.status_code}, {message}")
        return data
