"""Planning: three calls, tolerant of bad replies; plans are kept and used again."""

from __future__ import annotations

import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.budget import Budget
from outlay.errors import InputError, ResultsError
from outlay.models.base import Account, SamplingParams
from outlay.reason import Answer, Question
from outlay.reason.plan_and_budget import (
    ModelPlanner,
    NoPlanner,
    Plan,
    PlanAndBudget,
    PlanCache,
    StructuralPlanner,
    neutral,
)
from outlay.reason.plan_and_budget.plans import NEUTRAL, question_hash
from outlay.reason.plan_and_budget.structural import step_tokens
from outlay.testbeds.reasoner import parse_question

from .scripted import Scripted

LEVEL = '{"reason": "like the second", "evaluated_level": 2}'
STEPS = "1. How many are there?\nHint: count.\n2. How many are left?\nHint: take away."
WEIGHTS = '{"1": {"level": 1, "credit": 30}, "2": {"level": 3, "credit": 70}}'
QUESTION = Question("Ten birds sit on a fence and three fly off.", kind="number", id="birds")
SAMPLING = SamplingParams(max_tokens=50, temperature=0.0)


def solved(model: Any, **knobs: Any) -> Answer:
    return PlanAndBudget(**knobs).solve(model, QUESTION, sampling=SAMPLING)


def plan_of(answer: Answer) -> dict[str, Any]:
    return dict(answer.detail["plan"])


def test_a_plan_takes_three_calls_for_level_steps_and_credits() -> None:
    model = Scripted(LEVEL, STEPS, WEIGHTS, "Answer: 7")
    answer = solved(model)
    plan = plan_of(answer)
    assert plan["steps"] == ["How many are there?", "How many are left?"]
    assert plan["hints"] == ["count.", "take away."]
    assert (plan["credits"], plan["levels"], plan["level"]) == ([30, 70], [1, 3], 2)
    assert plan["note"] == ""
    assert answer.value == "7"
    assert len(model.asked) == 4
    assert all(QUESTION.text in asked for asked in model.asked)
    assert "level 2 of 5" in model.asked[1]
    assert all(step in model.asked[2] for step in plan["steps"])


def test_what_a_planner_reads_and_writes_is_in_the_ledger() -> None:
    answer = solved(Scripted(LEVEL, STEPS, WEIGHTS, "Answer: 7"))
    planner, target = (answer.ledger.totals(role=role) for role in ("planner", "target"))
    words = sum(len(reply.split(" ")) for reply in (LEVEL, STEPS, WEIGHTS))
    assert planner.generated == words
    assert planner.prompt > 100
    assert target.generated == 2


def test_a_given_level_is_not_asked_for() -> None:
    model = Scripted(STEPS, WEIGHTS, "Answer: 7")
    assert plan_of(solved(model, level=4))["level"] == 4
    assert "level 4 of 5" in model.asked[0]
    assert len(model.asked) == 3


@pytest.mark.parametrize("knobs", [{"allocator": "uniform"}, {"limits": "global"}])
def test_credits_that_nobody_needs_are_not_asked_for(knobs: dict[str, Any]) -> None:
    model = Scripted(LEVEL, STEPS, "Answer: 7")
    assert plan_of(solved(model, **knobs))["credits"] == [50, 50]
    assert len(model.asked) == 3


def test_replies_that_cannot_be_read_are_asked_for_again_with_other_seeds() -> None:
    model = Scripted(LEVEL, "It is simple.", STEPS, "no", WEIGHTS, "Answer: 7")
    answer = solved(model)
    assert plan_of(answer)["credits"] == [30, 70]
    assert plan_of(answer)["note"] == ""
    assert len({want.seed for want in model.sampling[1:3]}) == 2
    assert answer.ledger.totals(role="planner").calls == 10  # five prompts and five replies


def test_a_planner_that_never_gives_a_plan_leaves_one_step_and_says_so() -> None:
    with pytest.warns(UserWarning, match="birds: .*solved directly"):
        answer = solved(Scripted("I do not know"))
    plan = plan_of(answer)
    assert plan["steps"] == [NEUTRAL]
    assert plan["level"] == 5
    assert "no level" in plan["note"]
    assert "no list of sub-questions" in answer.detail["note"]
    assert answer.ledger.totals(role="planner").generated == 6 * 4


def test_a_planner_that_gives_no_credits_leaves_equal_ones_and_says_so() -> None:
    model = Scripted(LEVEL, STEPS, "half and half")
    with pytest.warns(UserWarning, match="no credits"):
        answer = solved(model)
    assert plan_of(answer)["credits"] == [50, 50]
    assert plan_of(answer)["levels"] == [2, 2]
    assert "equal ones" in answer.detail["note"]


def test_another_model_may_plan() -> None:
    planner, model = Scripted(LEVEL, STEPS, WEIGHTS, name="big"), Scripted("Answer: 7")
    answer = solved(model, planner=ModelPlanner(planner))
    assert plan_of(answer)["credits"] == [30, 70]
    assert plan_of(answer)["planner_id"].startswith("big/")
    assert (len(planner.asked), len(model.asked)) == (3, 1)
    assert answer.ledger.totals(role="planner").calls == 6


def test_a_budget_that_planning_eats_up_ends_without_an_answer_but_with_its_bill() -> None:
    answer = PlanAndBudget().solve(
        Scripted(LEVEL, STEPS, WEIGHTS, "Answer: 7"), QUESTION, Budget(tokens=10), SAMPLING
    )
    assert (answer.status, answer.value) == ("budget", None)
    assert answer.ledger.totals(role="planner").generated > 0


def test_stored_plans_cost_nothing_the_second_time(tmp_path: Path) -> None:
    cache = str(tmp_path / "plans.jsonl")
    model = Scripted(LEVEL, STEPS, WEIGHTS, "Answer: 7")
    first = solved(model, plan_cache=cache)
    again = solved(model, plan_cache=cache)
    assert plan_of(first) == plan_of(again)
    assert first.ledger.totals(role="planner").generated > 0
    assert again.ledger.totals(role="planner").calls == 0
    (line,) = Path(cache).read_text().splitlines()
    stored = json.loads(line)
    assert stored["question_hash"] == question_hash(QUESTION.text)
    assert set(stored) >= {"question_hash", "steps", "credits", "level", "planner_id"}


def test_stored_plans_serve_other_models_and_methods(tmp_path: Path) -> None:
    big = ModelPlanner(Scripted(LEVEL, STEPS, WEIGHTS, name="big"))
    cache = str(tmp_path / "plans.jsonl")
    solved(Scripted("Answer: 7"), planner=big, plan_cache=cache)
    other = Scripted("8", name="other")
    answer = solved(other, planner=big, plan_cache=cache, mode="enforced", schedule="linear")
    assert plan_of(answer)["credits"] == [30, 70]
    assert answer.ledger.totals(role="planner").calls == 0
    reread = PlanCache(cache)
    assert len(reread) == 1
    assert reread.get(QUESTION.text, plan_of(answer)["planner_id"]) is not None


def test_plans_of_a_planner_without_a_name_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"plan_cache needs a planner with a method id"):
        solved(
            Scripted("Answer: 7"),
            planner=lambda session: ["count"],
            plan_cache=str(tmp_path / "plans.jsonl"),
        )


def test_a_cache_survives_threads_and_names_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "plans.jsonl"
    cache = PlanCache(path)
    plans = [neutral(f"q{i % 20}", planner_id="p") for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(cache.put, plans))
    assert len(PlanCache(path)) == len(path.read_text().splitlines()) == 20
    path.write_text(path.read_text() + '{"steps": []}\n')
    with pytest.raises(ResultsError, match=r"plans.jsonl:21 is not a stored plan"):
        PlanCache(path)
    with pytest.raises(ResultsError, match="cannot read plans"):
        PlanCache(tmp_path)
    with pytest.raises(ResultsError, match="cannot write plans"):
        PlanCache(path / "below").put(plans[0])


@given(st.integers(1, 8), st.integers(1, 8), st.randoms(use_true_random=False))
def test_merging_keeps_the_credits_and_the_order(steps: int, most: int, rng: Any) -> None:
    plan = Plan(
        steps=tuple(f"s{i}" for i in range(steps)),
        credits=tuple(float(rng.randint(0, 9) + (i == 0)) for i in range(steps)),
        levels=tuple(rng.randint(1, 5) for _ in range(steps)),
        headings=tuple(f"[{i}]" for i in range(steps)),
    )
    merged = plan.merged(most)
    assert len(merged.steps) == min(steps, most)
    assert sum(merged.credits) == sum(plan.credits)
    assert "; then ".join(merged.steps) == "; then ".join(plan.steps)
    assert max(merged.levels) == max(plan.levels)
    assert merged.headings[0] == "[0]"
    assert list(merged.headings) == sorted(merged.headings)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_merging_joins_the_cheapest_neighbours() -> None:
    plan = Plan(("a", "b", "c"), (5, 1, 2), headings=("[1]", "[2]", "[3]"), hints=("", "x", "y"))
    merged = plan.merged(2)
    assert merged.steps == ("a", "b; then c")
    assert merged.credits == (5, 3)
    assert merged.headings == ("[1]", "[2]")
    assert merged.hints == ("", "x y")


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"steps": (), "credits": ()}, "0 steps"),
        ({"steps": ("a",), "credits": (1, 2)}, "2 credits for 1 steps"),
        ({"steps": ("a",), "credits": (0,)}, "all credits are zero"),
        ({"steps": ("a", "b"), "credits": (1, 2), "hints": ("x",)}, "1 hints for 2 steps"),
        ({"steps": ("a",), "credits": (1,), "level": 6}, "level=6"),
        ({"steps": ("a",), "credits": (1,), "levels": (0,)}, "levels=0"),
        ({"steps": ("a",) * 65, "credits": (1,) * 65}, "65 steps"),
    ],
)
def test_impossible_plans_are_refused(given_: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Plan(**given_)


def test_a_callable_may_give_a_list_of_steps_and_anything_else_is_a_recorded_fallback() -> None:
    listed = solved(Scripted("Answer: 7"), planner=lambda session: ["count", "take away"])
    assert plan_of(listed)["steps"] == ["count", "take away"]
    assert plan_of(listed)["credits"] == [1, 1]
    for junk in (None, "one text", 7, [], ["count", ""], {"steps": 2}):
        with pytest.warns(UserWarning, match="no plan or list of steps"):
            answer = solved(Scripted("Answer: 7"), planner=lambda session, junk=junk: junk)
        assert plan_of(answer)["steps"] == [NEUTRAL]
        assert type(junk).__name__ in answer.detail["note"]


def test_no_planner_is_one_step_and_costs_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = solved(Scripted("Answer: 7"), planner="none")
    assert plan_of(answer)["steps"] == [NEUTRAL]
    assert answer.ledger.totals(role="planner").calls == 0
    with pytest.raises(InputError, match="level=0"):
        NoPlanner(level=0)


JOINED = "(3+4*7)+(2-1)+(9*3+2-4*7)=?"


def structural(text: str, **knobs: Any) -> Plan:
    from outlay.reason import Session

    session = Session(Scripted(""), Question(text), Account(), SAMPLING)  # type: ignore[arg-type]
    return StructuralPlanner(**knobs)(session)


def test_the_structure_of_joined_chains_is_read_off() -> None:
    plan = structural(JOINED)
    assert plan.steps == ("3+4*7", "2-1", "9*3+2-4*7", "final sum")
    assert plan.headings == ("[1]", "[2]", "[3]", "[+]")
    assert plan.opening == "<short>"
    assert plan.closing == "</think><answer>"
    assert plan.credits == (13, 7, 25, 14)
    assert list(plan.credits) == step_tokens(parse_question(JOINED))
    assert structural(JOINED, format="long").credits == (25, 13, 49, 26)
    assert structural("3+4*7=?").headings == ("",)


def test_wrong_weights_are_wrong_in_the_way_that_they_are_named() -> None:
    oracle = structural(JOINED).credits
    reversed_ = structural(JOINED, weights="reversed").credits
    assert sorted(reversed_) == sorted(oracle)
    assert reversed_[2] == min(oracle)
    assert reversed_[1] == max(oracle)
    assert set(structural(JOINED, weights="equal").credits) == {1.0}
    noisy = structural(JOINED, weights="noisy").credits
    assert noisy == structural(JOINED, weights="noisy").credits
    assert noisy != structural(JOINED, weights="noisy", seed=1).credits
    assert structural(JOINED, weights="noisy", sigma=0.0).credits == oracle


def test_a_question_of_another_kind_gets_one_step_and_a_note() -> None:
    plan = structural("How are you?")
    assert plan.steps == (NEUTRAL,)
    assert "not a chain" in plan.note


@pytest.mark.parametrize(
    "knobs", [{"weights": "best"}, {"format": "code"}, {"sigma": -1}, {"total": 0}]
)
def test_structural_knobs_are_checked(knobs: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(knobs))):
        StructuralPlanner(**knobs)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"level": 6}, "level=6"),
        ({"max_steps": 1}, "max_steps=1"),
        ({"retries": -1}, "retries=-1"),
        ({"temperature": -1}, "temperature=-1"),
        ({"json_mode": True}, "json_mode needs model="),
    ],
)
def test_planner_knobs_are_checked(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ModelPlanner(**knobs)
