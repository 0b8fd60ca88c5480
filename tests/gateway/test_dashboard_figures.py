"""What the dashboard's numbers and pictures say, against slow references."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, event, insert, select

from outlay.gateway.dashboard.balances import Balance, balances
from outlay.gateway.dashboard.figures import HIGH, OTHER, WIDE, burn, ceiling, largest, stacked
from outlay.gateway.dashboard.spending import LEVELS, Spending, by_stage, stack_ledger
from outlay.gateway.dashboard.text import brief, clock, money, span
from outlay.gateway.store import admin, catalogue, schema
from outlay.gateway.store.books import BudgetRow
from outlay.gateway.store.engine import open_engine
from outlay.gateway.store.migrate import upgrade
from outlay.gateway.windows import Window
from outlay.ledger import Ledger

HOUR, DAY = 3600.0, 86_400.0
NOON = 1_800_014_400.0  # a Friday, 12:00 UTC


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    engine = open_engine(f"sqlite:///{tmp_path}/gateway.db", "process")
    upgrade(engine)
    with engine.connect() as found, found.begin():
        yield found
    engine.dispose()


def row(at: float, **fields: Any) -> dict[str, Any]:
    shared = dict.fromkeys(
        ("key_id", "owner", "team", "model", "route", "endpoint", "upstream", "request"), "x"
    )
    counts = dict.fromkeys(
        ("attempt", "reserved_tokens", "reserved_nanousd", "cached", "reasoning", "status"), 0
    )
    rest = {"kind": "settled", "prompt": 0, "output": 0, "nanousd": 0, "seconds": 0.0}
    texts = {"ttft": None, "stages": "", "note": ""}
    name = f"{random.getrandbits(128):032x}"
    return {
        **shared, **counts, **rest, **texts, "reservation": name, "at": at, "admitted_at": at,
        **fields,
    }  # fmt: skip


def test_slots_add_up_to_the_ledger_however_they_were_put_together(connection: Connection) -> None:
    dice = random.Random(1)
    spending = Spending()
    stages = Ledger()
    stages.record("think", "target", generated=5)
    kinds = ("settled", "unknown", "released", "overrun")
    now = NOON
    for step in range(8):
        start, now = now, now + dice.choice((1, 30, 400, 5000, 50_000))
        rows = [
            row(
                dice.uniform(start, now),
                kind=dice.choice(kinds),
                model=dice.choice("ab"),
                owner=dice.choice("uv"),
                prompt=dice.randrange(1000),
                output=dice.randrange(1000),
                nanousd=dice.randrange(10**12),
                stages=json.dumps(stages.to_dict()) if dice.random() < 0.2 else "",
            )
            for _ in range(40)
        ]
        connection.execute(insert(schema.ledger), rows)
        for seconds in LEVELS:
            since = max(NOON - DAY, now - 30 * seconds)
            slots = spending.slots(connection, now, seconds, since)
            assert [slot.start % seconds for slot in slots] == [0] * len(slots)
            assert slots[0].start <= since < slots[0].start + seconds
            assert slots[-1].start <= now < slots[-1].start + seconds
            found: Counter[Any] = Counter()
            for slot in slots:
                for group, spent in slot.groups.items():
                    at = (slot.start, group.model, group.owner)
                    found[at, "tokens"] += spent.tokens
                    found[at, "nanousd"] += spent.nanousd
                    found[at, "attempts"] += spent.attempts
                for (owner, stage), tokens in slot.stages.items():
                    found[(slot.start, owner), stage] += tokens
            assert found == _plain(connection, seconds, slots[0].start), (step, seconds)


def _plain(connection: Connection, seconds: int, since: int) -> Counter[Any]:
    sums: Counter[Any] = Counter()
    for each in connection.execute(select(schema.ledger)):
        if each.at < since or each.kind not in ("settled", "unknown"):
            continue
        start = int(each.at // seconds) * seconds
        at = (start, each.model, each.owner)
        sums[at, "tokens"] += each.prompt + each.output
        sums[at, "nanousd"] += each.nanousd
        sums[at, "attempts"] += 1
        if each.stages:
            sums[(start, each.owner), "think"] += 5
    return sums


def test_tokens_by_stage_are_those_of_the_ledger() -> None:
    ledger = Ledger()
    ledger.record("prompt", "scorer", prompt_new=7, prompt_cached=5)
    ledger.record("think", "target", prompt_new=1, generated=11, forced=2, retried=3, branch="a")
    ledger.record("think", "draft", generated=13)
    text = json.dumps(ledger.to_dict())
    wanted = {stage: total.all for (stage,), total in ledger.by("stage").items()}
    assert by_stage(text) == wanted == {"prompt": 12, "think": 30}
    for broken in ("", "{", "[]", "{}", '{"entries": 5}', '{"entries": [5]}', '{"entries": [{}]}'):
        assert by_stage(broken) == {}
        assert stack_ledger(broken) is None


def test_looking_again_reads_the_last_minutes_alone(connection: Connection) -> None:
    spending = Spending()
    asked: list[Any] = []
    event.listen(connection, "before_cursor_execute", lambda *a: asked.append(a[3]))
    spending.slots(connection, NOON, LEVELS[3], NOON - 30 * DAY)
    asked.clear()
    spending.slots(connection, NOON + 2, LEVELS[3], NOON - 30 * DAY)
    assert 0 < len(asked) <= 8
    assert min(parameters[0] for parameters in asked) >= NOON - 240


def balance(
    connection: Connection, spent: int, *, window: Window, amount: int = 1000, ago: float = 0.0
) -> Balance:
    """A budget of which `spent` tokens are settled."""
    made = admin.create_budget(
        connection, NOON - ago, actor="t", name="b", unit="tokens", amount=amount, window=window
    )
    connection.execute(
        insert(schema.counters).values(
            budget_id=made.id, bucket=window.bucket(NOON), settled=spent, reserved=0
        )
    )
    connection.execute(insert(schema.ledger), [row(NOON - HOUR, prompt=spent)])
    return balances(connection, NOON, Spending(), [made], catalogue.read(connection).keys)[0]


@pytest.mark.parametrize(
    ("spent", "window", "level", "over"),
    [
        (0, Window("day"), "fine", None),
        (400, Window("day"), "fine", None),  # 400 in 12 hours: 800 by midnight
        (600, Window("day"), "tight", NOON + 8 * HOUR),  # 50 an hour, 400 left
        (950, Window("day"), "tight", NOON + 12 * HOUR * 50 / 950),
        (1000, Window("day"), "spent", None),
        (1001, Window("day"), "spent", None),
        (600, Window("rolling", "UTC", 86_400), "fine", None),  # what is forgotten comes back
        (950, Window("rolling", "UTC", 86_400), "tight", None),
        (500, Window("total"), "fine", NOON + 10 * DAY),
        (1, Window("total"), "fine", None),  # in 9,990 days: nobody knows
    ],
)
def test_a_budget_says_whether_it_lasts(
    connection: Connection, spent: int, window: Window, level: str, over: float | None
) -> None:
    found = balance(connection, spent, window=window, ago=10 * DAY)
    assert found.level == level
    assert found.over_at == (None if over is None else pytest.approx(over))
    assert found.used == min(1.0, spent / 1000)


def test_a_burn_down_starts_full_and_ends_at_what_is_left(connection: Connection) -> None:
    found = balance(connection, 600, window=Window("day"))
    points = [tuple(map(float, p.split())) for p in found.burn.line[1:].split(" L")]
    assert points[0] == (0.0, 0.0)
    assert points[-1] == (500.0, 60.0)
    assert found.burn.now == 500.0
    assert found.burn.ahead == f"M500.0 60.0 L{round(1000 * 20 / 24, 1)} 100.0"
    assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(points))


def test_an_empty_limit_is_spent(connection: Connection) -> None:
    found = balance(connection, 0, window=Window("day"), amount=0)
    assert (found.level, found.used) == ("spent", 1.0)


def test_budgets_that_run_out_first_come_first(connection: Connection) -> None:
    made: list[BudgetRow] = []
    for name, amount in (("fine", 10**9), ("soon", 1300), ("spent", 0), ("sooner", 1100)):
        made.append(
            admin.create_budget(
                connection,
                NOON - DAY,
                actor="t",
                name=name,
                unit="tokens",
                amount=amount,
                window=Window("day"),
            )
        )
        bucket = Window("day").bucket(NOON)
        values = {"budget_id": made[-1].id, "bucket": bucket, "settled": 1000, "reserved": 0}
        connection.execute(insert(schema.counters).values(values))
    found = balances(connection, NOON, Spending(), made, {})
    assert [each.row["name"] for each in found] == ["spent", "sooner", "soon", "fine"]


columns = st.lists(
    st.dictionaries(st.sampled_from("abcdefghij"), st.integers(0, 10**15), max_size=10),
    min_size=1,
    max_size=60,
)


@given(columns)
def test_bars_stay_in_their_picture_and_stand_on_each_other(given: list[dict[str, int]]) -> None:
    totals: Counter[str] = Counter()
    for column in given:
        totals.update(column)
    names = largest(totals)
    bars = stacked(given, names, [list(names) for _ in given])
    assert len(names) <= 7
    assert len(totals) <= 7 or names[-1] == OTHER
    by_x: dict[float, float] = {}
    for rect in bars.rects:
        assert 0 <= rect.x <= rect.x + rect.width <= WIDE
        assert -0.01 <= rect.y <= rect.y + rect.height <= HIGH + 0.01
        assert rect.y + rect.height == pytest.approx(by_x.get(rect.x, HIGH), abs=0.01)
        by_x[rect.x] = rect.y
    for index, column in enumerate(given):
        x = round(index * WIDE / len(given) + WIDE / len(given) * 0.1, 2)
        share = sum(column.values()) / bars.top
        assert HIGH - by_x.get(x, HIGH) == pytest.approx(HIGH * share, abs=0.02)


@given(st.integers(1, 2**62))
def test_a_scale_ends_just_above_what_it_shows(value: int) -> None:
    assert value <= ceiling(value) <= 2 * value or value > 10**15


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(-50, 2000)), min_size=1, max_size=20),
    st.floats(0, 100),
    st.floats(0, 1000),
)
def test_a_burn_down_stays_in_its_picture(
    left: list[tuple[float, float]], pace: float, amount: float
) -> None:
    picture = burn(sorted(left), 0.0, 100.0, amount, pace)
    for path in (picture.line, picture.ahead):
        for point in path.removeprefix("M").split(" L"):
            if point:
                x, y = map(float, point.split())
                assert 0 <= x <= WIDE
                assert 0 <= y <= HIGH


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (9999, "9\u202f999"),
        (12_345, "12.3k"),
        (999_949, "1000k"),
        (1_234_567, "1.23M"),
        (45_000_000_000, "45B"),
        (2**53, "9007T"),
    ],
)
def test_large_numbers_are_short(value: int, shown: str) -> None:
    assert brief(value) == shown


@pytest.mark.parametrize(
    ("nanousd", "shown"),
    [
        (0, "$0"),
        (1, "$0.000000001"),
        (123_456, "$0.000123"),
        (45_600_000, "$0.0456"),
        (500_000_000, "$0.5"),
        (12_345_678_901, "$12.35"),
        (12_345_678_901_234, "$12\u202f346"),
    ],
)
def test_money_keeps_the_digits_that_matter(nanousd: int, shown: str) -> None:
    assert money(nanousd) == shown


def test_times_are_read_at_a_glance() -> None:
    spans = [span(s) for s in (-1, 59, 60, 3600, 11_100, 36_000, 200_000)]
    assert spans == ["0 s", "59 s", "1 min", "1 h", "3 h 5 min", "10 h", "2 days"]
    assert clock(NOON) == "15 Jan 12:00"
