"""An answer does not wait for its settlement: what that keeps, and what it may not lose."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from benches import bench
from recording_upstream import Running
from servers import Serving, serving
from sqlalchemy import Connection, Engine, create_engine, select, text

from outlay.gateway.store import admin, schema
from outlay.gateway.store.batch import Settle
from outlay.gateway.store.books import Charge, Grant
from outlay.gateway.windows import Window

MORE = """
[upstreams.narrow]
url = {upstream}
max_connections = 1

[models.gate]
upstream = "narrow"

[models.slow]
upstream = "recorder"
price = { input = 1, output = 2 }

[models.silent]
upstream = "recorder"
price = { input = 1, output = 2 }
"""
BREAKING = {  # what makes the ledger refuse rows, and what ends it
    "sqlite": (
        [
            "CREATE TRIGGER broken BEFORE INSERT ON ledger "
            "BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
        ],
        "DROP TRIGGER broken",
    ),
    "postgresql": (
        [
            "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'the disk is full'; END $$",
            "CREATE TRIGGER broken BEFORE INSERT ON ledger FOR EACH ROW EXECUTE FUNCTION broken()",
        ],
        "DROP TRIGGER broken ON ledger",
    ),
}


@pytest.fixture
def gateway(recorder: Running, database: str, tmp_path: Path) -> Iterator[Serving]:
    more = MORE.replace("{upstream}", json.dumps(recorder.url))
    with serving(tmp_path, recorder.url, database=database, more=more) as running:
        yield running


def budget(gateway: Serving, key: str, amount: int, unit: str = "tokens") -> None:
    gateway.call(
        admin.create_budget,
        actor="test",
        name=f"{unit} of {key}",
        unit=unit,
        amount=amount,
        window=Window("day"),
        key_id=key,
    )


@contextmanager
def engine(database: str) -> Iterator[Engine]:
    """The tests' own way to the database, beside the store's."""
    made = create_engine(database.replace("postgresql://", "postgresql+psycopg://"))
    yield made
    made.dispose()


def rows(engine: Engine, table: Any) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(select(table)))


@contextmanager
def held(gateway: Serving) -> Iterator[None]:
    """The store's thread does nothing inside this block."""
    go, at = threading.Event(), threading.Event()

    def wait(connection: Connection, now: float) -> None:
        at.set()
        assert go.wait(60)

    async def submit() -> None:
        await gateway.gateway.store.call(wait)

    done = asyncio.run_coroutine_threadsafe(submit(), gateway.loop)
    assert at.wait(60)
    try:
        yield
    finally:
        go.set()
        done.result(60)


def eventually(holds: Any) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, "it did not come about within 30 seconds"
        time.sleep(0.02)


def test_an_answer_is_given_while_its_reservation_still_stands_and_both_accounts_agree(
    gateway: Serving, database: str
) -> None:
    made = gateway.key("ann")
    budget(gateway, made.key.id, 10_000)
    budget(gateway, made.key.id, 10**9, "nanousd")
    answers: list[httpx.Response] = []
    thread = threading.Thread(
        target=lambda: answers.append(gateway.chat(made.token, "slow", max_tokens=5))
    )
    with engine(database) as own:
        thread.start()
        eventually(lambda: rows(own, schema.reservations))  # admitted; the upstream takes .2 s
        with held(gateway):
            thread.join(60)
            (answer,) = answers
            assert answer.status_code == 200
            (reserved,) = rows(own, schema.reservations)
            assert reserved.state == "sent"
            assert rows(own, schema.ledger) == []
            charged = int(answer.headers["x-outlay-charged-tokens"])
            tokens = next(row for row in rows(own, schema.counters) if row.reserved < 10_000)
            assert tokens.reserved > charged
        eventually(lambda: rows(own, schema.ledger))
        (settled,) = rows(own, schema.ledger)
        assert settled.kind == "settled"
        assert settled.prompt + settled.output == charged
        assert float(answer.headers["x-outlay-charged-usd"]) == settled.nanousd / 1e9
        assert int(answer.headers["x-outlay-remaining-tokens"]) == 10_000 - charged
        left = 10**9 - settled.nanousd
        assert float(answer.headers["x-outlay-remaining-usd"]) == left / 1e9
        assert rows(own, schema.reservations) == []


def test_what_a_request_gives_back_is_there_for_the_callers_next_one(gateway: Serving) -> None:
    made = gateway.key("ben")
    probe = gateway.key("probe")
    budget(gateway, probe.key.id, 10_000)
    answer = gateway.chat(probe.token, max_tokens=16)
    charged = int(answer.headers["x-outlay-charged-tokens"])
    (row,) = gateway.call(lambda c, now: list(c.execute(select(schema.ledger))))
    reserved = row.reserved_tokens
    assert reserved > charged
    budget(gateway, made.key.id, 19 * charged + reserved)  # the 20th fits to the token
    url = f"{gateway.url}/v1/chat/completions"
    body = {"model": "plain", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16}
    with httpx.Client(headers={"authorization": f"Bearer {made.token}"}, timeout=60) as client:
        for number in range(20):
            assert client.post(url, json=body).status_code == 200, number
        refused = client.post(url, json=body)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "insufficient_quota"


def test_without_usage_the_answer_says_that_all_of_the_reservation_was_charged(
    gateway: Serving, database: str
) -> None:
    made = gateway.key("cora")
    budget(gateway, made.key.id, 10_000)
    answer = gateway.chat(made.token, "silent", max_tokens=5)
    with engine(database) as own:
        eventually(lambda: rows(own, schema.ledger))
        (row,) = rows(own, schema.ledger)
    assert row.kind == "unknown"
    assert int(answer.headers["x-outlay-charged-tokens"]) == row.reserved_tokens
    assert int(answer.headers["x-outlay-remaining-tokens"]) == 10_000 - row.reserved_tokens


def test_a_database_that_fails_after_the_answer_gets_the_settlement_when_it_is_back(
    gateway: Serving, database: str
) -> None:
    break_it, mend_it = BREAKING["sqlite" if database.startswith("sqlite") else "postgresql"]
    made = gateway.key("dora")
    budget(gateway, made.key.id, 10_000)
    with engine(database) as own:
        with own.begin() as connection:
            for statement in break_it:
                connection.execute(text(statement))
        answer = gateway.chat(made.token, max_tokens=5)
        assert answer.status_code == 200
        charged = int(answer.headers["x-outlay-charged-tokens"])
        eventually(lambda: gateway.gateway.closing)
        assert len(rows(own, schema.reservations)) == 1
        with own.begin() as connection:
            connection.execute(text(mend_it))
        eventually(lambda: rows(own, schema.ledger))
        (row,) = rows(own, schema.ledger)
        assert (row.kind, row.prompt + row.output) == ("settled", charged)
        assert rows(own, schema.reservations) == []


def test_a_caller_that_goes_away_before_its_turn_pays_nothing(
    gateway: Serving, recorder: Running, database: str
) -> None:
    first, second = gateway.key("first"), gateway.key("second")
    for made in (first, second):
        budget(gateway, made.key.id, 10_000)
    recorder.handler.gate.clear()
    served = recorder.handler.calls
    thread = threading.Thread(target=lambda: gateway.chat(first.token, "gate"))
    thread.start()
    try:
        with engine(database) as own:
            eventually(lambda: recorder.handler.calls == served + 1)
            body = {"model": "gate", "messages": [{"role": "user", "content": "hello"}]}
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(
                    f"{gateway.url}/v1/chat/completions",
                    json=body,
                    headers={"authorization": f"Bearer {second.token}"},
                    timeout=1.0,
                )
            eventually(lambda: rows(own, schema.ledger))
            (row,) = rows(own, schema.ledger)
            assert (row.key_id, row.kind) == (second.key.id, "released")
            assert (row.prompt, row.output, row.nanousd) == (0, 0, 0)
            assert len(rows(own, schema.reservations)) == 1  # the first one's
    finally:
        recorder.handler.gate.set()
        thread.join(60)
    assert recorder.handler.calls == served + 1


def test_a_call_reads_what_was_answered_before_it_came(database: str) -> None:
    async def work() -> None:
        async with bench(database, amount=10_000) as it:
            store = it.store
            first, second = await it.grant(), await it.grant()
            go = threading.Event()
            blocked = asyncio.ensure_future(store.call(lambda c, now: go.wait(60)))
            await asyncio.sleep(0.05)  # everything below waits behind it, to be done at once
            settled = [
                store.submit(Settle(each.id, Charge(prompt=1, output=1)), answered=True)
                for each in (first, second)
            ]
            seen = asyncio.ensure_future(it.rows(schema.ledger))
            go.set()
            assert len(await seen) == 2
            assert all(each.done() for each in settled)
            await blocked

    asyncio.run(asyncio.wait_for(work(), 60))


def test_what_nobody_waits_for_is_done_before_the_store_stops(database: str) -> None:
    async def work() -> None:
        async with bench(database, amount=10_000) as it:
            grants = [await it.store.admit(it.ask()) for _ in range(20)]
            futures = [
                it.store.submit(Settle(grant.id, Charge(prompt=1, output=1)), answered=True)
                for grant in grants
                if isinstance(grant, Grant)
            ]
            assert len(futures) == 20
        await asyncio.sleep(0)
        with engine(database) as own:
            assert len(rows(own, schema.ledger)) == 20
            assert rows(own, schema.reservations) == []

    asyncio.run(asyncio.wait_for(work(), 60))
