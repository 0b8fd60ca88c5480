"""Callers without a key: many of them must not cost those who have one."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from recording_upstream import upstream
from servers import Serving, serving

from outlay.gateway.door import Door
from outlay.gateway.metrics import Metrics

FLOOD = Path(__file__).parents[2] / "benchmarks" / "gateway_flood.py"
REQUESTS, SECONDS, CONNECTIONS = 30_000, 120, 100
UNKNOWN = "olk_" + "0" * 16 + "_" + "x" * 43


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with upstream() as recorder, serving(tmp_path_factory.mktemp("flood"), recorder.url) as running:
        yield running


def refused(gateway: Serving) -> float:
    """How many callers without a key the metrics tell of."""
    text = httpx.get(f"{gateway.url}/metrics", timeout=60).text
    lines = [each for each in text.splitlines() if each.startswith("outlay_requests_total")]
    return sum(float(each.rsplit(" ", 1)[1]) for each in lines if 'status="401"' in each)


def test_thirty_thousand_unknown_keys_neither_reach_the_database_nor_starve_a_good_caller(
    gateway: Serving,
) -> None:
    token = gateway.key("good").token
    store = gateway.gateway.store
    memory = psutil.Process().memory_info().rss
    counted = refused(gateway)
    began, before = time.monotonic(), store.operations
    command = [sys.executable, str(FLOOD), gateway.url, str(REQUESTS), str(SECONDS)]
    flood = subprocess.Popen([*command, str(CONNECTIONS), "0"], stdout=subprocess.PIPE, text=True)
    good = 0
    with httpx.Client(headers={"authorization": f"Bearer {token}"}, timeout=60) as client:
        while flood.poll() is None:
            body = {"model": "plain", "messages": [{"role": "user", "content": "hello"}]}
            answer = client.post(f"{gateway.url}/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            good += 1
    output, _ = flood.communicate()
    seconds = time.monotonic() - began
    said = json.loads(output)
    assert said["requests"] == said["refused"] == REQUESTS
    assert said["other"] == said["closed"] == 0
    assert good >= 10
    upkeep = seconds / (store.lease / 3) + seconds / (store.lease / 2) + 2
    looks = 2 * seconds + 2
    assert store.operations - before <= 2 * good + upkeep + looks
    assert psutil.Process().memory_info().rss - memory < 100_000_000
    assert refused(gateway) - counted == REQUESTS


def test_an_unknown_key_is_refused_before_its_body_is_read(gateway: Serving) -> None:
    parts = urlsplit(gateway.url)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {UNKNOWN}\r\n"
        "content-type: application/json\r\ncontent-length: 100000000\r\n\r\n"
    )
    for _ in range(3):  # the first may be a look into the database
        address = (str(parts.hostname), parts.port)
        with socket.create_connection(address, timeout=30) as connection:
            connection.sendall(head.encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses", "embeddings"])
@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Basic abc", f"Bearer {UNKNOWN}", f"Bearer {UNKNOWN}x", "\xff"],
)
def test_every_refusal_at_the_door_is_an_error_that_clients_know(
    gateway: Serving, path: str, authorization: str | None
) -> None:
    headers = [] if authorization is None else [(b"authorization", authorization.encode("latin-1"))]
    answer = httpx.post(f"{gateway.url}/v1/{path}", headers=headers, content=b"{}", timeout=60)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_a_known_key_with_another_secret_is_refused(gateway: Serving) -> None:
    token = gateway.key("guessed").token
    identity = token.split("_")[1]
    assert gateway.chat(f"olk_{identity}_{'x' * 43}").status_code == 401
    assert gateway.chat(token).status_code == 200


def test_the_log_says_how_many_were_turned_away_once_in_a_while(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("outlay.gateway.door.time.perf_counter", lambda: now)

    async def send(message: MutableMapping[str, Any]) -> None:
        """Into the void."""

    async def refuse(many: int) -> None:
        for _ in range(many):
            await door.refuse("chat", send)

    door = Door(Metrics())
    with caplog.at_level(logging.WARNING, "outlay.gateway"):
        asyncio.run(refuse(500))
        now += 11
        asyncio.run(refuse(500))
    assert [vars(each)["turned_away"] for each in caplog.records] == [1, 500]
