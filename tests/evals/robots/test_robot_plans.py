"""Plans are read strictly, out of any surroundings, and every fault gets its reason."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.evals.robots.boxnet import BoxNet1
from outlay.evals.robots.plans import MAX_REPLY, agrees, extract, final_plan, read_plan

PLAN = {"Agent[0.5, 0.5]": "move(box_red, square[0.5, 1.5])"}
TEXT = json.dumps(PLAN)
WORLD = BoxNet1(1, 2, ("red",))
STATE = (("box_red",), ("target_red",))


@pytest.mark.parametrize(
    "reply",
    [
        TEXT,
        f"```json\n{TEXT}\n```",
        f"Here is my plan:\n{TEXT}\nI hope it helps.",
        f"{TEXT} and again {TEXT}",
        json.dumps(PLAN, indent=2),
        "The set {a, b} is no plan. " + TEXT,
        TEXT.replace(", ", ","),
    ],
)
def test_one_plan_is_found_in_any_surroundings(reply):
    read = read_plan(WORLD, STATE, reply)
    assert not read.errors
    assert read.plan is not None
    assert list(read.plan) == list(PLAN)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "holds no plan"),
        ("I would move the box.", "holds no plan"),
        ("{" * 500, "holds no plan"),
        ('{"a":' * 3000, "holds no plan"),
        (f"{TEXT} or {{}}", "2 different plans"),
        ('{"Agent[0.5, 0.5]": "a", "Agent[0.5, 0.5]": "b"}', "appears twice"),
        ('{"Agent[0.5, 0.5]": "a", "Agent[0.5,0.5]": "b"}', "appears twice"),
        ('{"Agent[0.5, 0.5]": ["move"]}', "not a text"),
        ('{"Agent[0.5, 0.5]": null}', "not a text"),
        ('{"Agent[7.5, 0.5]": "move(box_red, target_red)"}', "no such robot"),
        ('{"Agent[0.5, 0.5]": "move(box_red, target_red)"}', "no target_red"),
        ('{"Agent[0.5, 0.5]": "move box_red to the right"}', "not written as"),
        ("x" * (MAX_REPLY + 1), "characters"),
    ],
)
def test_every_fault_has_its_reason(reply, reason):
    read = read_plan(WORLD, STATE, reply)
    assert any(reason in error for error in read.errors), read.errors


def test_a_list_is_no_plan_but_its_object_is_read():
    assert extract("[1, 2]").errors
    assert extract(f"[{TEXT}]").plan == PLAN


@given(st.text(max_size=300))
def test_any_text_gives_a_plan_or_a_reason(text):
    read = read_plan(WORLD, STATE, text)
    assert (read.plan is not None) or read.errors
    if read.plan is not None and not read.errors:
        assert not WORLD.step(STATE, read.plan).refusals


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4))
def test_what_json_writes_is_read_back(plan):
    assert extract("so: " + json.dumps(plan) + " .").plan == plan


@pytest.mark.parametrize(
    ("reply", "exact", "contains"),
    [
        ("I Agree", True, True),
        ("  I Agree\n", True, True),
        ("I Agree.", False, True),
        ("i agree with the plan", False, True),
        ("I agree, but the box is not there", False, False),
        ("I Agree. However, wait.", False, False),
        ("I do not agree", False, False),
        ("I disagree", False, False),
        ("", False, False),
    ],
)
def test_agreement(reply, exact, contains):
    assert agrees(reply, "exact") is exact
    assert agrees(reply, "contains") is contains


@pytest.mark.parametrize(
    ("speech", "rest"),
    [
        (f"EXECUTE\n{TEXT}", TEXT),
        (f"All fine.\n EXECUTE: \n{TEXT}\nend", f"{TEXT}\nend"),
        (f"EXECUTE\n{{}}\nno, sorry\nEXECUTE\n{TEXT}", TEXT),
        (f"I would EXECUTE {TEXT}", None),
        (f"{TEXT}\nPROCEED", None),
    ],
)
def test_only_a_line_execute_ends_a_dialogue(speech, rest):
    found = final_plan(speech)
    assert (None if found is None else found.strip()) == rest


def test_a_checker_without_a_model_refuses_collisions_on_request():
    from outlay.evals.robots.warehouse import HouseState, Warehouse

    world = Warehouse(2, 3, 2)
    state = HouseState(((0, 2),), ((0, 0, False), (0, 2, False)))
    reply = '{"agent0": "move right", "agent1": "move left"}'
    assert not read_plan(world, state, reply).errors
    (error,) = read_plan(world, state, reply, collisions=True).errors
    assert "collision" in error
    assert "agent0, agent1" in error
