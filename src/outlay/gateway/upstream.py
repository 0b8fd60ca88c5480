"""Upstreams over HTTP: connections, time limits, a circuit breaker; no retries (the caller's).

Only addresses of the configuration are called, redirects are errors, and a name that resolves to
an address which is not public (other than loopback) is refused unless the upstream is `private`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from outlay.errors import InputError
from outlay.gateway.config import ENDPOINTS, Endpoint, Upstream


class NotSent(Exception):  # noqa: N818 - an outcome that the caller handles
    """The request did not reach the upstream: nothing was spent."""


class Broken(Exception):  # noqa: N818 - an outcome that the caller handles
    """The request reached the upstream, and its answer did not come or could not be read.

    Args:
        message: what happened.
        status: for the caller of the gateway.
    """

    def __init__(self, message: str, status: int = 502) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Reply:
    """The head of an upstream's answer, and its body in pieces."""

    status: int
    media: str
    headers: Mapping[str, str]
    pieces: AsyncIterator[bytes]


class Server(Protocol):
    """What can answer requests: an HTTP upstream or a local model."""

    name: str

    def ready(self) -> bool:
        """Whether requests would be tried now."""
        ...

    def retry_after(self) -> int:
        """Seconds after which a request is worth trying, where `ready` is False."""
        ...

    def busy(self) -> bool:
        """Whether a request would have to wait."""
        ...

    def slot(self) -> Any:
        """An async context that waits for a place."""
        ...

    def send(self, endpoint: Endpoint, fields: Mapping[str, Any], body: bytes, request: str) -> Any:
        """An async context with the `Reply`."""
        ...

    async def close(self) -> None:
        """Drop connections."""
        ...


@dataclass
class Breaker:
    """Opens after consecutive failures; then one request at a time may try again.

    Args:
        failures: that open it.
        seconds: until the next try.
    """

    failures: int
    seconds: float
    count: int = 0
    opened: float = 0.0
    trying: bool = False

    def allows(self) -> bool:
        """Whether a request may be sent now; a half-open circuit allows one."""
        if self.count < self.failures:
            return True
        if self.trying or time.monotonic() - self.opened < self.seconds:
            return False
        self.trying = True
        return True

    def open(self) -> bool:
        """Whether requests are refused."""
        waiting = time.monotonic() - self.opened < self.seconds
        return self.count >= self.failures and (waiting or self.trying)

    def succeeded(self) -> None:
        """An answer came."""
        self.count, self.trying = 0, False

    def failed(self) -> None:
        """No answer came, or a server error."""
        self.count += 1
        self.trying = False
        if self.count >= self.failures:
            self.opened = time.monotonic()

    def abandoned(self) -> None:
        """The request was given up by its caller: neither a success nor a failure."""
        self.trying = False

    def retry_after(self) -> int:
        """Seconds until the next try, at least 1."""
        return max(1, round(self.seconds - (time.monotonic() - self.opened)))


class _Guarded(AbstractResolver):
    """Resolves names, and refuses addresses that are not public."""

    def __init__(self) -> None:
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of `host`."""
        found = await self._inner.resolve(host, port, family)
        for each in found:
            if not public(each["host"]):
                raise OSError(f"{host} resolves to {each['host']}, which is not public")
        return found

    async def close(self) -> None:
        """Nothing to drop."""
        await self._inner.close()


def public(address: str) -> bool:
    """True for public addresses and for loopback."""
    try:
        parsed = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return True  # a name: the resolver decides
    mapped = getattr(parsed, "ipv4_mapped", None)
    parsed = mapped or parsed
    return parsed.is_loopback or (parsed.is_global and not parsed.is_multicast)


@dataclass
class HttpUpstream:
    """One upstream over HTTP.

    Args:
        name: in the configuration.
        table: its configuration.
        propagate: adds a trace's headers to those of a request.

    Raises:
        InputError: if its key's variable is not set, or its address is not allowed.
    """

    name: str
    table: Upstream
    propagate: Callable[[dict[str, str]], None] | None = None
    _slots: asyncio.Semaphore = field(init=False)
    _session: aiohttp.ClientSession | None = None

    def __post_init__(self) -> None:
        table = self.table
        assert table.url is not None
        host = urlsplit(table.url).hostname or ""
        if not table.private and not public(host):
            raise InputError(
                f"upstreams.{self.name}.url names {host}, which is not public; "
                "set private = true if that is meant"
            )
        self._base = table.url.rstrip("/").removesuffix("/v1")
        self._headers = {
            "content-type": "application/json",
            "user-agent": "outlay",
            **{name.lower(): value for name, value in table.headers.items()},
        }
        if secret := self._secret():
            self._headers["authorization"] = f"Bearer {secret}"
        self._slots = asyncio.Semaphore(table.max_connections)
        self.breaker = Breaker(table.breaker_failures, table.breaker_seconds)

    def _secret(self) -> str | None:
        table = self.table
        if table.api_key is not None:
            return table.api_key.get_secret_value()
        if table.api_key_env is None:
            return None
        secret = os.environ.get(table.api_key_env)
        if not secret:
            raise InputError(
                f"upstreams.{self.name}.api_key_env names {table.api_key_env}, which is not set"
            )
        return secret

    def ready(self) -> bool:
        """False while the circuit is open."""
        return not self.breaker.open()

    def retry_after(self) -> int:
        """Seconds until the circuit lets a request through."""
        return self.breaker.retry_after()

    def busy(self) -> bool:
        """Whether all connections are in use."""
        return self._slots.locked()

    def slot(self) -> asyncio.Semaphore:
        """One of the upstream's connections."""
        return self._slots

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            table = self.table
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,
                    keepalive_timeout=table.keepalive,
                    resolver=None if table.private else _Guarded(),
                ),
                timeout=aiohttp.ClientTimeout(
                    total=table.timeout,
                    sock_connect=table.connect_timeout,
                    sock_read=table.idle_timeout,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=True,
                read_bufsize=2**18,
            )
        return self._session

    @asynccontextmanager
    async def send(
        self, endpoint: Endpoint, fields: Mapping[str, Any], body: bytes, request: str
    ) -> AsyncIterator[Reply]:
        """Send one request.

        Raises:
            NotSent: if no connection came about, or the circuit is open.
            Broken: if the answer does not come, breaks off, or redirects.
        """
        if not self.breaker.allows():
            raise NotSent(f"the circuit of {self.name} is open")
        known = False  # whether the breaker has been told how this request went
        try:
            session = self._connected()
            url = self._base + ENDPOINTS[endpoint]
            headers = {**self._headers, "x-request-id": request}
            if self.propagate is not None:
                self.propagate(headers)
            async with session.post(
                url, data=body, headers=headers, allow_redirects=False
            ) as response:
                if 300 <= response.status < 400:
                    raise Broken(f"{self.name} redirects, which is not followed")
                if response.status != 200:  # a refusal is an answer, a server error is none
                    known = True
                    if response.status >= 500:
                        self.breaker.failed()
                    else:
                        self.breaker.succeeded()
                yield Reply(
                    response.status,
                    response.content_type,
                    {k.lower(): v for k, v in response.headers.items()},
                    self._read(response),
                )
                if not known:
                    known = True
                    self.breaker.succeeded()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            known = self._failed(known)
            raise NotSent(f"{self.name} cannot be reached ({type(error).__name__})") from error
        except TimeoutError as error:
            known = self._failed(known)
            raise Broken(f"{self.name} took too long", 504) from error
        except aiohttp.ClientError as error:
            known = self._failed(known)
            raise Broken(f"{self.name} broke off ({type(error).__name__})") from error
        except Broken:
            known = self._failed(known)
            raise
        finally:
            if not known:  # the caller went away: neither a success nor a failure
                self.breaker.abandoned()

    def _failed(self, known: bool) -> bool:
        """Tell the breaker of a failure, once a request."""
        if not known:
            self.breaker.failed()
        return True

    async def _read(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        size = 0
        async for piece in response.content.iter_any():
            size += len(piece)
            if size > self.table.max_answer:
                raise Broken(f"{self.name} sent more than {self.table.max_answer} bytes")
            yield piece

    async def close(self) -> None:
        """Drop connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None
