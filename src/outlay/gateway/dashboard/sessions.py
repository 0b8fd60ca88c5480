"""Who is at the dashboard: a key exchanged for a session, forms that only our pages can send.

A session is 256 random bits in a cookie; the database holds their SHA-256, the key, a CSRF token
and an end. It is over when it ends, when its owner logs out, or when its key is revoked or expires.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import time
from collections import deque
from dataclasses import dataclass, field

from sqlalchemy import Connection, delete, insert, select
from starlette.requests import Request
from starlette.responses import Response

from outlay.gateway.config import Server
from outlay.gateway.dashboard.reading import Reader
from outlay.gateway.problems import RequestError
from outlay.gateway.store import catalogue, schema
from outlay.gateway.store.admin import digest, same
from outlay.gateway.store.books import Key
from outlay.gateway.store.store import Store

LASTS = 12 * 3600.0
"""Seconds that a session lasts."""
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class Session:
    """Somebody who logged in."""

    digest: str
    key: Key
    csrf: str


class Sessions:
    """Opens, finds and closes sessions.

    Args:
        store: writes them.
        reader: reads them.
        server: says whether cookies are marked Secure.
    """

    def __init__(self, store: Store, reader: Reader, server: Server) -> None:
        self._store, self._reader = store, reader
        self.secure = server.certificate is not None or server.cookie_secure
        prefix = "__Host-" if self.secure else ""  # such a cookie no other host can set
        self._name, self._form = f"{prefix}outlay_session", f"{prefix}outlay_login"

    async def find(self, request: Request) -> Session | None:
        """Whose cookie a request bears."""
        token = request.cookies.get(self._name, "")
        if not _TOKEN.fullmatch(token):
            return None
        wanted = digest(token)

        def work(connection: Connection, now: float) -> Session | None:
            sessions, keys = schema.sessions, schema.keys
            query = (
                select(sessions.c.digest.label("session"), sessions.c.csrf, keys)
                .join_from(sessions, keys, sessions.c.key_id == keys.c.id)
                .where(sessions.c.digest == wanted, sessions.c.expires_at > now)
            )
            row = connection.execute(query).one_or_none()
            if row is None or not same(row.session, wanted):
                return None
            key = catalogue.key_of(row)
            return Session(wanted, key, row.csrf) if key.alive(now) else None

        return await self._reader.run(work)

    async def open(self, key: Key, response: Response) -> None:
        """Begin a session; `response` takes its cookie along."""
        token, csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(32)

        def work(connection: Connection, now: float) -> None:
            table = schema.sessions
            connection.execute(delete(table).where(table.c.expires_at <= now))
            row = {
                "digest": digest(token),
                "key_id": key.id,
                "csrf": csrf,
                "expires_at": now + LASTS,
            }
            connection.execute(insert(table), row)

        await self._store.call(work)
        self._cookie(response, self._name, token, LASTS)
        self._cookie(response, self._form, "", 0)

    async def close(self, session: Session, response: Response) -> None:
        """End a session."""
        table = schema.sessions
        await self._store.call(
            lambda connection, now: (
                connection.execute(delete(table).where(table.c.digest == session.digest)).rowcount
            )
        )
        self._cookie(response, self._name, "", 0)

    def login_token(self, request: Request) -> str:
        """The token that the login form of this browser bears."""
        token = request.cookies.get(self._form, "")
        return token if _TOKEN.fullmatch(token) else secrets.token_urlsafe(32)

    def keep_login_token(self, token: str, response: Response) -> None:
        """Set the cookie that the login form's token is compared with."""
        self._cookie(response, self._form, token, 3600)

    def check_login(self, request: Request, given: str) -> None:
        """Refuse a login form that is not ours.

        Raises:
            RequestError: 403.
        """
        token = request.cookies.get(self._form, "")
        if not _TOKEN.fullmatch(token) or not same(token, given):
            raise _foreign()
        _check_site(request)

    def check(self, request: Request, session: Session, given: str) -> None:
        """Refuse what does not bear the session's CSRF token, or comes from another site.

        Raises:
            RequestError: 403.
        """
        if not same(session.csrf, given):
            raise _foreign()
        _check_site(request)

    def _cookie(self, response: Response, name: str, value: str, seconds: float) -> None:
        response.set_cookie(
            name,
            value,
            max_age=int(seconds),
            path="/",
            secure=self.secure,
            httponly=True,
            samesite="strict",
        )


def _foreign() -> RequestError:
    return RequestError(
        403,
        "the form did not bear this session's token; load the page again and repeat",
        code="csrf",
    )


def _check_site(request: Request) -> None:
    # Not Origin: under our referrer policy browsers send "null" there.
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise _foreign()


@dataclass
class Attempts:
    """Limits how often a login is tried, per client address and in all.

    An address that is over its own limit does not count towards the common one, so that one client
    cannot lock the others out.

    Args:
        each: tries of one address in `seconds`.
        all: tries of all addresses together.
        seconds: the stretch of time.
    """

    each: int = 10
    all: int = 120
    seconds: float = 60.0
    _total: deque[float] = field(default_factory=deque)
    _by_address: dict[str, deque[float]] = field(default_factory=dict)

    def wait(self, address: str, now: float | None = None) -> float:
        """Count a try; 0, or the seconds until another may be made."""
        at = time.monotonic() if now is None else now
        if len(self._by_address) > 4 * self.all:
            old = at - self.seconds
            recent = {k: v for k, v in self._by_address.items() if v and v[-1] > old}
            self._by_address = recent
        mine = self._by_address.setdefault(_network(address), deque())
        for tries, most in ((mine, self.each), (self._total, self.all)):
            while tries and tries[0] <= at - self.seconds:
                tries.popleft()
            if len(tries) >= most:
                return tries[0] + self.seconds - at
        mine.append(at)
        self._total.append(at)
        return 0.0


def _network(address: str) -> str:
    """An IPv6 client holds a whole /64."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False))
