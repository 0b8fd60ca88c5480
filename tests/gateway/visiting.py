"""Somebody at the dashboard without a window: cookies, forms, redirects."""

from __future__ import annotations

import re
from typing import Any

import httpx
from servers import Serving
from sqlalchemy import select

PLACES = ("/", "/requests", "/flight", "/keys", "/budgets", "/alerts", "/frontiers")


class Visitor:
    """A browser without a window."""

    def __init__(self, gateway: Serving) -> None:
        self.client = httpx.Client(base_url=gateway.url, timeout=60)

    def log_in(self, token: str) -> httpx.Response:
        page = self.client.get("/login")
        return self.client.post("/login", data={"csrf": _field(page.text), "key": token})

    @property
    def csrf(self) -> str:
        return _field(self.client.get("/keys").text)

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path)

    def post(self, path: str, **fields: Any) -> httpx.Response:
        return self.client.post(path, data={"csrf": self.csrf, **fields})


def _field(text: str) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', text)
    assert found is not None
    return found[1]


def inside(gateway: Serving, token: str = "") -> Visitor:
    """Somebody who logged in."""
    visitor = Visitor(gateway)
    assert visitor.log_in(token or gateway.token).headers["location"] == "/"
    return visitor


def rows(gateway: Serving, table: Any) -> list[Any]:
    return list(gateway.call(lambda connection, now: connection.execute(select(table)).all()))
