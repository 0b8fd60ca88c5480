"""What planners write is read as it is meant, or refused; nothing raises."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.reason.plan_and_budget.parsing import (
    read_json,
    read_level,
    read_steps,
    read_weights,
)

TEXT = st.text(max_size=300) | st.text(alphabet='{}[]",:0123456789\n\\ab.Hint ', max_size=200)


def test_items_and_hints_are_read_apart() -> None:
    reply = """Here is the plan:
1. How many seats?
Hint: rows times seats.
2. How many are sold?
3. **What was earned?**
   in coins
Hint: price
per seat"""
    assert read_steps(reply) == [
        ("How many seats?", "rows times seats."),
        ("How many are sold?", ""),
        ("What was earned? in coins", "price per seat"),
    ]


def test_other_ways_of_numbering_are_read() -> None:
    assert [s for s, _ in read_steps("Step 1: add\n**Hint:** a\nStep 2: divide")] == [
        "add",
        "divide",
    ]
    assert read_steps("1) add\n- Hint: both\n2) divide\n") == [("add", "both"), ("divide", "")]


def test_numbers_that_do_not_count_on_belong_to_the_item_before() -> None:
    assert read_steps("1. Compare\n7. and nothing else\n2. Add") == [
        ("Compare 7. and nothing else", ""),
        ("Add", ""),
    ]


def test_thinking_is_not_read() -> None:
    assert read_steps("<think>1. no\n</think>1. yes") == [("yes", "")]


def test_text_without_items_has_no_steps() -> None:
    assert read_steps("I would simply add them.") == []


@pytest.mark.parametrize(
    "reply",
    [
        '{"1": {"level": 2, "credit": 40}, "2": {"level": 3, "credit": 60}}',
        'Sure!\n```json\n{"1": {"level": 2, "credit": 40}, "2": {"level": 3, "credit": 60},}\n```',
        '{"1": {"level": 2 "credit": 40}\n "2": {"level": 3, "credit": 60}}',
        "{'1': {'level': 2, 'credit': '40'}, '2': {'level': 3, 'credit': '60%'}}",
        '{"1": {"level": 2, "credit": 40}, "2": {"level": 3, "credit": 60',
        '[{"level": 2, "credit": 40}, {"level": 3, "credit": 60}]',
        '{"problem": {"credit": 100}, "1": {"level": 2, "credits": 40}, '
        '"2": {"level": 3, "points": 60}}',
        '{"sub_questions": [{"level": 2, "credit": 40}, {"level": 3, "credit": 60}]}',
    ],
)
def test_broken_json_is_repaired(reply: str) -> None:
    weights = read_weights(reply, 2)
    assert weights is not None
    assert [(w.credit, w.level) for w in weights] == [(40, 2), (60, 3)]


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "no idea",
        '{"1": {"credit": 40}}',
        '{"1": {"credit": 40}, "2": {"credit": -1}}',
        '{"1": {"credit": 0}, "2": {"credit": 0}}',
        '{"1": {"credit": "much"}, "2": {"credit": 1}}',
        '{"1": {"credit": NaN}, "2": {"credit": 1}}',
        '{"1": {"credit": true}, "2": {"credit": 1}}',
        "[1",
    ],
)
def test_credits_that_are_missing_or_no_numbers_are_refused(reply: str) -> None:
    assert read_weights(reply, 2) is None


def test_levels_outside_1_to_5_are_none() -> None:
    assert read_level('{"reason": "like the third", "evaluated_level": 3}') == 3
    assert read_level('{"evaluated_level": "4"}') == 4
    assert read_level('{"evaluated_level": 9}') is None
    assert read_level('{"evaluated_level": 2.5}') is None
    assert read_level("level 3") is None
    found = read_weights('{"1": {"level": 9, "credit": 1}}', 1)
    assert found is not None
    assert found[0].level is None


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=4))
def test_whole_json_is_read_as_it_is(value: dict[str, object]) -> None:
    assert read_json("first " + json.dumps(value) + " last") == value


@given(TEXT)
def test_nothing_that_a_planner_writes_raises(text: str) -> None:
    assert all(isinstance(step, str) and step for step, _ in read_steps(text))
    read_json(text)
    assert read_level(text) in (None, 1, 2, 3, 4, 5)
    weights = read_weights(text, 2)
    assert weights is None or len(weights) == 2
    read_json("[" * 5000)
