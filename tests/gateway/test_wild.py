"""Wild upstreams, callers and clocks against a whole gateway: all is settled, nothing exceeded."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import aiohttp
import httpx
import orjson
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import Serving, serving
from sqlalchemy import select, text
from test_fuzz import FAST, answers, is_json, streams

from outlay.gateway import sse
from outlay.gateway.store import admin, catalogue, schema
from outlay.gateway.store.books import Ask, Charge, Grant, Key
from outlay.gateway.store.migrate import upgrade
from outlay.gateway.store.store import Store
from outlay.gateway.windows import Window

# -- the whole way --------------------------------------------------------------------------------


class Script:
    """An upstream that sends what it is told to, and may break off."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.media = "text/event-stream"
        self.breaks = False

    async def answer(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"content-type": self.media})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for piece in self.pieces:
                await response.write(piece)
                await asyncio.sleep(0)
            if self.breaks and request.transport is not None:
                request.transport.abort()
        return response


@contextlib.contextmanager
def scripted() -> Iterator[tuple[str, Script]]:
    script, ports = Script(), []
    loop, ready = asyncio.new_event_loop(), threading.Event()

    async def start() -> None:
        app = web.Application()
        app.router.add_post("/v1/{path:.*}", script.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ports.append(runner.addresses[0][1])
        ready.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield f"http://127.0.0.1:{ports[0]}/v1", script
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


@pytest.fixture(scope="module")
def upstream() -> Iterator[tuple[str, Script]]:
    with scripted() as made:
        yield made


@pytest.fixture(scope="module")
def gateway(
    upstream: tuple[str, Script], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    more = (
        "[upstreams.wild]\nretries = 0\nbreaker_failures = 1000000\nidle_timeout = 5\n"
        f'url = "{upstream[0]}"\n[models.wild]\nupstream = "wild"\n'
    )
    with serving(tmp_path_factory.mktemp("fuzz"), upstream[0], more=more) as running:
        yield running


def counted(gateway: Serving) -> tuple[int, int, int]:
    """Reservations, ledger rows, and what counters hold as reserved."""

    def read(connection: Any, now: float) -> tuple[int, int, int]:
        held = len(connection.execute(select(schema.reservations.c.id)).all())
        rows = len(connection.execute(select(schema.ledger.c.seq)).all())
        reserved = connection.execute(text("SELECT COALESCE(SUM(reserved), 0) FROM counters"))
        return held, rows, int(reserved.scalar_one())

    return gateway.call(read)  # type: ignore[no-any-return]


good = {"id": "x", "choices": [{"index": 0, "delta": {"content": "word"}, "finish_reason": None}]}
last = {"id": "x", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
events = st.sampled_from([good, last, {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}])
lines = (events | answers.filter(is_json)).map(lambda e: sse.event(orjson.dumps(e)))
wild = st.lists(lines | streams | st.just(b"data: [DONE]\n\n"), max_size=8)


def test_any_stream_of_an_upstream_is_settled_and_nothing_stays_reserved(
    gateway: Serving, upstream: tuple[str, Script]
) -> None:
    made = gateway.key("wild")
    gateway.call(
        admin.create_budget,
        actor="test",
        name="wild",
        unit="tokens",
        amount=10**9,
        window=Window("total"),
        key_id=made.key.id,
    )
    script = upstream[1]

    with httpx.Client(headers={"authorization": f"Bearer {made.token}"}, timeout=60) as client:

        @settings(FAST, max_examples=60, database=None)
        @given(
            pieces=wild,
            media=st.sampled_from(["text/event-stream"] * 5 + ["application/json", "text/html"]),
            breaks=st.booleans(),
            stream=st.sampled_from([True, True, True, False]),
        )
        def send(pieces: list[bytes], media: str, breaks: bool, stream: bool) -> None:
            gateway.call(_lift)
            before = counted(gateway)
            script.pieces, script.media, script.breaks = pieces, media, breaks
            body = {"model": "wild", "messages": [{"role": "user", "content": "hi"}]}
            answer = client.post(
                f"{gateway.url}/v1/chat/completions", json={**body, "stream": stream}
            )
            assert answer.status_code in (200, 502), answer.text
            held, rows, reserved = counted(gateway)
            assert (held, reserved) == (0, 0)
            assert rows > before[1]

        send()


def _lift(connection: Any, now: float) -> None:
    """Forget suspensions, which an upstream that reports too much has earned."""
    if connection.execute(select(schema.suspensions.c.model)).first() is not None:
        admin.lift(connection, now, actor="test", upstream="wild", model="wild")


def test_unknown_keys_do_not_reach_the_database(gateway: Serving) -> None:
    async def ask(number: int) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=50)) as session:

            async def one(index: int) -> None:
                token = f"olk_{index:016x}_" + "A" * 43
                headers = {"authorization": f"Bearer {token}"}
                url = f"{gateway.url}/v1/models"
                async with session.get(url, headers=headers) as answer:
                    assert answer.status == 401

            await asyncio.gather(*(one(index) for index in range(number)))

    store = gateway.gateway.store
    began, before = time.monotonic(), store.operations
    asyncio.run(ask(1500))
    looks = 2 * (time.monotonic() - began) + 3  # two a second
    assert store.operations - before <= looks


def test_large_deep_and_foreign_bodies_are_refused(gateway: Serving) -> None:
    token = gateway.key("large").token
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    url = f"{gateway.url}/v1/chat/completions"

    def pieces() -> Iterator[bytes]:  # chunked: no length to look at
        for _ in range(400):
            yield b" " * 2**18

    with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # it hangs up on us
        assert httpx.post(url, content=pieces(), headers=headers, timeout=60).status_code == 413
    assert _declares(gateway, token, 10**8).startswith(b"HTTP/1.1 413")
    deep = b'{"model":"plain","messages":' + b"[" * 10**5 + b"]" * 10**5 + b"}"
    assert httpx.post(url, content=deep, headers=headers, timeout=60).status_code == 400
    wrong = {**headers, "content-type": "application/json; charset=utf-16"}
    assert httpx.post(url, content="{}".encode("utf-16"), headers=wrong).status_code == 415
    latin = '{"model":"plain","messages":[{"role":"user","content":"é"}]}'.encode("latin-1")
    assert httpx.post(url, content=latin, headers=headers).status_code == 400
    assert httpx.get(f"{gateway.url}/health/live").status_code == 200


def _declares(gateway: Serving, token: str, length: int) -> bytes:
    """The answer to a request that only says how long its body is."""
    host, port = gateway.url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n"
        f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head.encode())
        return connection.recv(1000)


def test_a_nul_in_an_address_is_refused_by_both_databases(
    database: str, upstream: tuple[str, Script], tmp_path: Path
) -> None:
    with serving(tmp_path, upstream[0], database=database) as running:
        headers = {"authorization": f"Bearer {running.token}"}
        for method, path in (("GET", "ledger?owner=%00"), ("DELETE", "budgets/a%00b")):
            answer = httpx.request(method, f"{running.url}/admin/v1/{path}", headers=headers)
            assert answer.status_code == 400, answer.text


# -- callers that go away, clocks that jump -------------------------------------------------------


def test_an_admission_whose_caller_went_away_is_released(database: str) -> None:
    async def work() -> None:
        store = Store(database)
        upgrade(store.engine)
        await store.start(upkeep=False)
        try:
            key = await _caller(store, 1000)
            ask = Ask("", key, "m", "default", "chat", "u", 10, 20)
            for number in range(20):
                ask = replace(ask, idempotency=f"x{number}")
                task = asyncio.create_task(store.admit(_named(ask, f"{number:032x}")))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            for _ in range(100):
                rows = await store.call(lambda c, now: _all(c, schema.ledger))
                if len(rows) == 20:
                    break
                await asyncio.sleep(0.02)
            assert [row.kind for row in rows] == ["released"] * 20
            assert await store.call(lambda c, now: _all(c, schema.reservations)) == []
            again = await store.admit(_named(ask, "f" * 32))
            assert isinstance(again, Grant)  # the claim of its idempotency key went with it
        finally:
            await store.stop()

    asyncio.run(asyncio.wait_for(work(), 60))


def _all(connection: Any, table: Any) -> list[Any]:
    return list(connection.execute(select(table)))


def _named(ask: Ask, identity: str) -> Ask:
    return replace(ask, id=identity)


async def _caller(store: Store, amount: int, *windows: Window) -> Key:
    """A key with one budget a window."""

    def make(connection: Any, now: float) -> Key:
        key = admin.create_key(connection, now, actor="test", name="ann").key
        for window in windows or (Window("total"),):
            admin.create_budget(
                connection,
                now,
                actor="test",
                name=window.kind,
                unit="tokens",
                amount=amount,
                window=window,
                key_id=key.id,
            )
        return key

    return await store.call(make)


WINDOWS = (
    Window("hour"),
    Window("day", "Europe/Berlin"),
    Window("week"),
    Window("month", "America/New_York"),
    Window("rolling", seconds=600),
)
JUMPS = st.sampled_from([0, 1, -1, 59, -61, 600, -600, 3600, -3600, 86_400, -86_400, 31 * 86_400])
steps = st.lists(st.tuples(JUMPS, st.integers(1, 60), st.booleans()), min_size=1, max_size=25)


def test_a_clock_that_jumps_never_opens_a_window_wider(tmp_path: Path) -> None:
    amount = 100

    async def work(moves: list[tuple[int, int, bool]], url: str) -> None:
        clock = [1_761_436_800.0]  # the night in which Berlin's clocks went back
        with patch.object(catalogue, "look", lambda c: (clock[0], catalogue.revision(c))):
            store = Store(url)
            upgrade(store.engine)
            await store.start(upkeep=False)
            try:
                await walk(store, clock, moves)
            finally:
                await store.stop()

    async def walk(store: Store, clock: list[float], moves: list[tuple[int, int, bool]]) -> None:
        key = await _caller(store, amount, *WINDOWS)
        held: list[Grant] = []
        for number, (jump, tokens, close) in enumerate(moves):
            clock[0] += jump
            ask = Ask(f"{number:032x}", key, "m", "default", "chat", "u", 1, tokens)
            found = await store.admit(ask)
            if isinstance(found, Grant):
                held.append(found)
                rows = await store.call(lambda c, now: _all(c, schema.counters))
                for budget in store.known.budgets.values():  # what counts now, and what is to come
                    since = budget.window.since(clock[0])
                    mine = [r for r in rows if r.budget_id == budget.id and r.bucket >= since]
                    assert sum(r.settled + r.reserved for r in mine) <= amount, budget.window
            if close and held:
                await store.settle(held.pop(0).id, Charge(prompt=1, output=1))
            rows = await store.call(lambda c, now: _all(c, schema.counters))
            budgets = store.known.budgets
            for row in rows:  # each calendar window is one bucket
                assert row.settled >= 0
                assert row.reserved >= 0
                assert row.settled + row.reserved <= amount, budgets[row.budget_id].window
        for grant in held:
            await store.settle(grant.id, Charge(full=True))
        rows = await store.call(lambda c, now: _all(c, schema.counters))
        assert all(row.reserved == 0 for row in rows)

    number = [0]

    @settings(FAST, max_examples=15, database=None)
    @given(moves=steps)
    def run(moves: list[tuple[int, int, bool]]) -> None:
        number[0] += 1
        asyncio.run(asyncio.wait_for(work(moves, f"sqlite:///{tmp_path}/{number[0]}.db"), 60))

    run()
