"""The method: budgets that hold for any model, roll-over, merging, prompts of every rung."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import completions_server
from json_server import JsonHandler, JsonServer, running
from outlay import registry
from outlay.budget import Budget
from outlay.catalogue import Entry
from outlay.errors import BudgetError, CapabilityError, InputError
from outlay.evals.base import Problem
from outlay.models.base import SamplingParams
from outlay.models.endpoint import EndpointModel
from outlay.models.local import LocalModel
from outlay.reason import Answer, Question, solve_many
from outlay.reason.plan_and_budget import (
    SCHEDULES,
    Curve,
    ModelPlanner,
    PlanAndBudget,
    StructuralPlanner,
    allocate,
    fit,
    optimal,
    position_weights,
)
from outlay.reason.plan_and_budget.structural import step_tokens
from outlay.testbeds.reasoner.joined import JoinedArith
from outlay.testbeds.reasoner.tokenizer import build_tokenizer

from .exact import ExactReasoner
from .scripted import Scripted

TASK = JoinedArith()
GREEDY = SamplingParams(max_tokens=220)
OURS = PlanAndBudget(
    planner=StructuralPlanner(),
    schedule="constant",
    mode="enforced",
    answer_reserve=4,
    min_step_budget=1,
)


def asked(problems: Sequence[Problem], task: JoinedArith = TASK) -> list[Question]:
    return [
        Question(
            task.prompt(problem, ""),
            text=problem.question,
            kind="custom",
            read=partial(task.read, problem),
            delimiter=";",
            id=problem.id,
        )
        for problem in problems
    ]


PROBLEMS = list(TASK.sample(0, 12))
QUESTIONS = asked(PROBLEMS)
NEEDS = [step_tokens(TASK.chain(problem)) for problem in PROBLEMS]


def right(answers: Sequence[Answer], problems: Sequence[Problem] = PROBLEMS) -> list[bool]:
    return [
        bool(TASK.verify(problem, answer.text))
        for problem, answer in zip(problems, answers, strict=True)
    ]


def sampled(answer: Answer) -> int:
    return answer.ledger.totals(role="target").generated


# -- budgets ---------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(
    question=st.sampled_from(QUESTIONS),
    budget=st.integers(1, 200),
    reserve=st.integers(1, 20),
    stubborn=st.booleans(),
    knobs=st.fixed_dictionaries(
        {
            "schedule": st.sampled_from(SCHEDULES),
            "allocator": st.sampled_from(["credits", "levels", "uniform", "bam"]),
            "rollover": st.sampled_from(["proportional", "next", "none"]),
            "limits": st.sampled_from(["local", "global"]),
            "planner": st.sampled_from(
                [StructuralPlanner(), StructuralPlanner("noisy"), "none", "structure"]
            ),
        }
    ),
)
def test_no_model_samples_more_than_b_and_the_reserve(
    question: Question, budget: int, reserve: int, stubborn: bool, knobs: dict[str, Any]
) -> None:
    method = replace(OURS, budget=budget, answer_reserve=reserve, **knobs)
    answer = method.solve(ExactReasoner(stubborn=stubborn), question, sampling=GREEDY)
    assert sampled(answer) <= budget + reserve
    assert sum(answer.detail["used"]) <= budget
    if stubborn and knobs["limits"] == "global":
        assert sum(answer.detail["used"]) == budget


@settings(max_examples=40)
@given(st.sampled_from(QUESTIONS), st.integers(10, 200), st.booleans())
def test_the_questions_own_budget_holds_and_keeps_a_part_for_the_answer(
    question: Question, tokens: int, stubborn: bool
) -> None:
    model = ExactReasoner(stubborn=stubborn)
    answer = replace(OURS, min_step_budget=8).solve(model, question, Budget(tokens=tokens), GREEDY)
    assert answer.ledger.totals().generated <= tokens
    assert answer.detail["budget"] == min(450, 600, tokens - min(4, tokens // 4)) or tokens > 300
    if not stubborn:
        assert answer.value is not None


def test_stages_of_a_budget_are_kept() -> None:
    budget = Budget(tokens=70, stages={"think": 40, "answer": 2})
    method = replace(OURS, min_step_budget=8)
    answer = method.solve(ExactReasoner(), QUESTIONS[1], budget, GREEDY)
    assert answer.detail["budget"] == 40
    assert answer.ledger.totals(stage="think").generated <= 40
    assert answer.ledger.totals(stage="answer").generated <= 2


def test_true_weights_finish_every_chain_with_exactly_what_is_needed() -> None:
    for question, needs, problem in zip(QUESTIONS, NEEDS, PROBLEMS, strict=True):
        answer = replace(OURS, budget=sum(needs)).solve(ExactReasoner(), question, sampling=GREEDY)
        assert answer.detail["allocated"] == needs == answer.detail["used"]
        assert right([answer], [problem]) == [True]


def test_wrong_weights_starve_chains_at_the_same_budget() -> None:
    model = ExactReasoner()
    for weights, most in (("reversed", 2), ("equal", 3)):
        method = replace(OURS, planner=StructuralPlanner(weights), rollover="none")  # type: ignore[arg-type]
        answers = [
            replace(method, budget=sum(needs)).solve(model, question, sampling=GREEDY)
            for question, needs in zip(QUESTIONS, NEEDS, strict=True)
        ]
        assert sum(right(answers)) <= most


def test_one_step_is_a_hard_cap_with_a_forced_answer() -> None:
    model = ExactReasoner()
    closing = "</think><answer>"
    for question in QUESTIONS[:6]:
        for cap in (10, 40, 400):
            ours = replace(OURS, planner="none", budget=cap, answer_prefix=closing).solve(
                model, question, sampling=GREEDY
            )
            root = model.open(question.prompt)
            [[thought]] = model.extend(
                [root], replace(GREEDY, max_tokens=cap, stop=(closing,), include_stop=False)
            )
            [[ending]] = model.extend(
                [model.append(thought, closing)], replace(GREEDY, max_tokens=4)
            )
            assert ours.text == ending.completion()


def test_what_a_step_leaves_rolls_over_by_the_rule() -> None:
    """Chains of 1 and 11 operations, and an even split: the second needs what the first left."""
    many = JoinedArith(chains=(2, 2)).sample(0, 400)
    problem = next(p for p in many if p.meta["lengths"] == [1, 11])
    (question,) = asked([problem])
    even = replace(OURS, planner=StructuralPlanner("equal"), budget=3 * 40)
    found = {
        how: replace(even, rollover=how).solve(ExactReasoner(), question, sampling=GREEDY)  # type: ignore[arg-type]
        for how in ("proportional", "next", "none")
    }
    assert {how: answer.detail["used"] for how, answer in found.items()} == {
        "none": [7, 40, 8],
        "proportional": [7, 57, 8],  # half of 33, and the token that rounding leaves
        "next": [7, 67, 8],
    }
    assert all(answer.detail["allocated"] == [40, 40, 40] for answer in found.values())
    assert right([found["next"]], [problem]) == [True]


def test_a_shared_pool_is_first_come_first_served() -> None:
    question, needs = QUESTIONS[1], NEEDS[1]
    answer = replace(OURS, limits="global", budget=needs[0] + 5).solve(
        ExactReasoner(), question, sampling=GREEDY
    )
    assert answer.detail["used"] == [needs[0], 5, 0, 0]


def test_a_plan_alone_has_no_limit() -> None:
    answers = solve_many(replace(OURS, limits="none"), ExactReasoner(), QUESTIONS, None, GREEDY)
    assert all(right(answers))
    assert [answer.detail["used"] for answer in answers] == NEEDS


def test_schedules_shape_what_each_step_may_spend() -> None:
    for schedule in SCHEDULES:
        answer = replace(OURS, schedule=schedule, budget=97).solve(
            ExactReasoner(), QUESTIONS[1], sampling=GREEDY
        )
        credits = answer.detail["plan"]["credits"]
        expected = allocate(97, credits, position_weights(len(credits), schedule))
        assert answer.detail["allocated"] == expected


def test_levels_and_the_uniform_rung_are_allocators() -> None:
    model = ExactReasoner()
    uniform = replace(OURS, allocator="uniform", budget=99)
    answer = uniform.solve(model, QUESTIONS[1], sampling=GREEDY)
    assert answer.detail["allocated"] == [24] * 4
    levels = replace(OURS, allocator="levels", budget=99)
    answer = levels.solve(model, QUESTIONS[1], sampling=GREEDY)
    assert answer.detail["allocated"] == allocate(99, answer.detail["plan"]["levels"])


def test_the_budget_follows_the_level_unless_it_is_given() -> None:
    model = ExactReasoner()
    by_level = replace(OURS, level_budgets=(60, 70, 80, 90, 100))
    for problem, question in zip(PROBLEMS[:6], QUESTIONS, strict=False):
        answer = by_level.solve(model, question, sampling=GREEDY)
        assert answer.detail["budget"] == 50 + 10 * problem.meta["level"]
        assert replace(by_level, level=1).solve(model, question, sampling=GREEDY).detail[
            "budget"
        ] == (60)
        given_ = replace(by_level, level=1, budget=33).solve(model, question, sampling=GREEDY)
        assert given_.detail["budget"] == 33


# -- BAM -------------------------------------------------------------------------------------------


def test_bam_shares_the_budget_by_the_curves_that_it_is_given() -> None:
    curves = [Curve(1, 1), Curve(4, 1), Curve(1, 2), Curve(2, 0.5)]
    method = replace(OURS, allocator="bam", curves=lambda question, plan: curves, budget=90)
    answer = method.solve(ExactReasoner(), QUESTIONS[1], sampling=GREEDY)
    expected = allocate(90, optimal(curves, 90), remainder="largest")
    assert answer.detail["allocated"] == expected
    paper = replace(method, bam_closed="paper").solve(
        ExactReasoner(), QUESTIONS[1], sampling=GREEDY
    )
    assert paper.detail["allocated"] != expected
    short = replace(method, curves=lambda question, plan: curves[:2])
    with pytest.raises(InputError, match="2 curves for 4 steps"):
        short.solve(ExactReasoner(), QUESTIONS[1], sampling=GREEDY)


def test_probes_of_each_step_decide_its_share_and_are_booked_as_planning() -> None:
    method = replace(OURS, allocator="bam", budget=90, probe_budgets=(6, 12), probes=2)
    model = ExactReasoner(candid=True)
    answers = solve_many(method, model, QUESTIONS, None, GREEDY)
    found = 0
    for problem, answer in zip(PROBLEMS, answers, strict=True):
        steps = answer.detail["plan"]["steps"]
        assert 0 < answer.ledger.totals(role="planner").generated <= 2 * len(steps) * (12 + 2 * 8)
        assert sampled(answer) <= 90 + 4
        assert sum(answer.detail["allocated"]) == 90
        if min(problem.meta["lengths"]) > 1 and not answer.detail["note"]:
            found += 1
            expected = allocate(90, optimal(probed(problem), 90), remainder="largest")
            assert answer.detail["allocated"] == expected
    assert found


def probed(problem: Problem) -> list[Curve]:
    """Curves through U = 0.1 + operations left after 6 and 12 tokens: one and two are done."""
    curves = [
        fit([6, 12], [0.1 + max(0, length - 1), 0.1 + max(0, length - 2)])
        for length in (*problem.meta["lengths"], len(problem.meta["lengths"]) - 1)
    ]
    return [curve for curve in curves if curve is not None]


def test_probes_leave_room_for_the_answer_within_the_questions_budget() -> None:
    method = replace(OURS, allocator="bam", min_step_budget=8, answer_reserve=20)
    for question in QUESTIONS:
        answer = method.solve(ExactReasoner(candid=True), question, Budget(tokens=300), GREEDY)
        probing = answer.ledger.totals(role="planner").generated
        assert 0 < probing < 300
        assert answer.detail["budget"] == min(600, 300 - probing - 20)
        assert sum(answer.detail["allocated"]) == answer.detail["budget"]
        assert answer.ledger.totals().generated <= 300
        assert answer.value is not None


def test_flat_probes_fall_back_to_credits_and_say_so() -> None:
    method = replace(OURS, allocator="bam", budget=90)
    answer = method.solve(ExactReasoner(), QUESTIONS[1], sampling=GREEDY)
    assert "credits instead of BAM" in answer.detail["note"]
    assert answer.detail["allocated"] == allocate(90, NEEDS[1])


def test_a_trained_model_can_be_probed(reasoner: LocalModel) -> None:
    method = replace(OURS, allocator="bam", budget=90)
    for answer in solve_many(method, reasoner, QUESTIONS[:4], None, GREEDY):
        assert answer.ledger.totals(role="planner").generated > 0
        assert sampled(answer) <= 94
        assert sum(answer.detail["allocated"]) == 90


def test_probing_needs_log_probabilities() -> None:
    model = Scripted("x")
    method = replace(OURS, allocator="bam")
    with pytest.raises(CapabilityError, match="probing for BAM needs logprobs"):
        method.solve(model, QUESTIONS[0], sampling=GREEDY)  # type: ignore[arg-type]


# -- steps that do not fit -------------------------------------------------------------------------


def test_steps_that_the_budget_is_too_small_for_are_merged_or_refused() -> None:
    question = QUESTIONS[2]  # four chains and a sum
    method = replace(OURS, min_step_budget=20, budget=65)
    answer = method.solve(ExactReasoner(), question, sampling=GREEDY)
    assert len(answer.detail["plan"]["steps"]) == 3
    assert sum(answer.detail["used"]) <= 65
    with pytest.raises(BudgetError, match="B=65 for 5 steps is below min_step_budget=20 each"):
        replace(method, too_many="error").solve(ExactReasoner(), question, sampling=GREEDY)
    capped = replace(OURS, max_steps=2, budget=100).solve(
        ExactReasoner(), question, sampling=GREEDY
    )
    assert len(capped.detail["plan"]["steps"]) == 2


def test_merged_steps_keep_the_headings_that_the_model_writes_itself() -> None:
    answer = replace(OURS, max_steps=1, budget=200).solve(
        ExactReasoner(), QUESTIONS[2], sampling=GREEDY
    )
    assert right([answer], [PROBLEMS[2]]) == [True]


def test_a_budget_below_one_step_is_refused_before_anything_is_spent() -> None:
    model = Scripted("x")
    with pytest.raises(BudgetError, match="8 tokens are left for a step of min_step_budget=8"):
        PlanAndBudget().solve(model, QUESTIONS[0], Budget(tokens=8), GREEDY)  # type: ignore[arg-type]
    assert model.asked == []


def test_enforcing_needs_a_model_that_goes_on_from_forced_text() -> None:
    with pytest.raises(CapabilityError, match="mode='enforced' needs append"):
        OURS.solve(ExactReasoner(append=False), QUESTIONS[0], sampling=GREEDY)


# -- prompt mode -----------------------------------------------------------------------------------

STEPS = ["Count them.", "Take some away."]
BIRDS = Question("Ten birds sit on a fence and three fly off.", kind="number")


def prompted(**knobs: Any) -> tuple[str, Answer]:
    model = Scripted("Answer: 7")
    method = PlanAndBudget(planner=knobs.pop("planner", lambda session: STEPS), **knobs)
    answer = method.solve(model, BIRDS, sampling=GREEDY)  # type: ignore[arg-type]
    (prompt,) = model.asked
    return prompt, answer


def test_every_rung_of_the_ladder_is_a_prompt_of_its_own() -> None:
    vanilla, _ = prompted(planner="none", limits="none", budget=90)
    planned, _ = prompted(limits="none", budget=90)
    capped, _ = prompted(planner="none", limits="global", budget=90)
    both, _ = prompted(limits="global", budget=90)
    uniform, _ = prompted(allocator="uniform", budget=90)
    local, answer = prompted(schedule="linear", budget=90)
    for text in (vanilla, planned, capped, both, uniform, local):
        assert BIRDS.text in text
        assert "100 points" in text
        assert 'End with "Answer: " and the number.' in text
    assert not any(step in vanilla or step in capped for step in STEPS)
    assert all(step in text for step in STEPS for text in (planned, both, uniform, local))
    assert "90 words" not in vanilla + planned + uniform + local
    assert "less than 90 words" in capped
    assert "less than 90 words" in both
    assert uniform.count("within 45 words") == 2
    assert answer.detail["allocated"] == [60, 30]
    assert "Count them. Solve it thinking only a little, within 60 words." in local
    assert "Take some away. Solve it thinking only a little, within 30 words." in local
    assert len({vanilla, planned, capped, both, uniform, local}) == 6


def test_budgets_are_asked_for_in_words_or_tokens() -> None:
    assert "within 60 tokens" in prompted(schedule="linear", budget=90, unit="tokens")[0]


def test_the_level_and_an_opening_are_part_of_the_prompt() -> None:
    prompt, answer = prompted(level=2, opening="<think>")
    assert "(level 2 of 5)" in prompt
    assert prompt.endswith("<think>")
    assert answer.detail["budget"] == 250


def test_the_prompt_keeps_the_context_of_the_question() -> None:
    context = "The fence is red.\n\n" + BIRDS.text
    for prompt in (context, [{"role": "user", "content": context}]):
        model = Scripted("Answer: 7")
        question = Question(prompt, text=BIRDS.text, kind="number")  # type: ignore[arg-type]
        PlanAndBudget(planner=lambda session: STEPS).solve(model, question, sampling=GREEDY)  # type: ignore[arg-type]
        assert context in model.asked[0]


def test_prompt_mode_is_one_call_and_its_limits_are_soft() -> None:
    words = " ".join(["word"] * 200)
    model = Scripted(words)
    method = PlanAndBudget(planner=lambda session: STEPS, budget=20)
    answer = method.solve(model, BIRDS, sampling=GREEDY)  # type: ignore[arg-type]
    assert len(model.asked) == 1
    assert sampled(answer) == 200
    assert answer.detail["used"] == [200]


def test_a_heading_that_was_begun_is_finished_and_not_written_twice() -> None:
    """The last token before the cut opened the answer's tags; only the rest is forced."""
    needs = NEEDS[0]
    for spare in (0, 1):
        answer = replace(OURS, budget=sum(needs) - 2 + spare, limits="global").solve(
            ExactReasoner(), QUESTIONS[0], sampling=GREEDY
        )
        assert answer.text.count("</think>") == answer.text.count("<answer>") == 1
        assert right([answer], PROBLEMS[:1]) == [True]
        assert answer.detail["used"] == [*needs[:-1], needs[-1] - 2 + spare]


def test_headings_open_the_steps_of_a_model_without_a_notation_of_its_own() -> None:
    model = Scripted("Ten birds. ", "Three fly off. ", "7")
    method = PlanAndBudget(planner=lambda session: STEPS, mode="enforced", budget=40)
    answer = method.solve(model, BIRDS, sampling=GREEDY)  # type: ignore[arg-type]
    assert answer.text == (
        "\n\nStep 1: Count them.\nTen birds. \n\nStep 2: Take some away.\nThree fly off. "
        "\n\nFinal answer: 7"
    )
    assert answer.value == "7"
    assert model.sampling[0].stop == ("Step 2:", "Final answer:")
    assert model.sampling[1].stop == ("Final answer:",)


# -- batches, servers, specs -----------------------------------------------------------------------


@pytest.mark.parametrize("knobs", [{}, {"allocator": "bam"}, {"limits": "global"}])
def test_many_questions_at_a_time_give_what_one_at_a_time_gives(
    reasoner: LocalModel, knobs: dict[str, Any]
) -> None:
    method = replace(OURS, **knobs)
    sampling = SamplingParams(temperature=0.8, max_tokens=60, seed=5)
    budget = Budget(tokens=120)
    alone = [method.solve(reasoner, q, budget, sampling) for q in QUESTIONS[:4]]
    batch = solve_many(method, reasoner, QUESTIONS[:4], budget, sampling, together=3)
    for one, other in zip(alone, batch, strict=True):
        assert (one.text, one.value, one.detail) == (other.text, other.value, other.detail)
        assert one.ledger.totals().generated == other.ledger.totals().generated


def test_a_trained_model_obeys_the_scaffold(reasoner: LocalModel) -> None:
    answers = solve_many(replace(OURS, budget=80), reasoner, QUESTIONS, None, GREEDY)
    for problem, answer in zip(PROBLEMS, answers, strict=True):
        for heading in ("<short>[1]", "[2]", "[+]"):
            assert heading in answer.text
        assert answer.text.count("</think><answer>") == 1
        assert sampled(answer) <= 84
        assert answer.value is not None
        assert "<eos>" not in answer.text[:-5]
        assert len(answer.detail["used"]) == len(problem.meta["lengths"]) + 1
        totals = answer.ledger.totals()
        assert totals.generated + totals.forced == totals.delivered + totals.discarded


@pytest.mark.server
def test_a_server_gives_the_same_answer_as_the_local_model(
    reasoner: LocalModel,
) -> None:
    with completions_server.serving(reasoner, "vllm") as server:
        remote = EndpointModel(
            server.url, completions_server.MODEL, api="completions", tokenizer=build_tokenizer()
        )
        for question in QUESTIONS[:2]:
            method = replace(OURS, budget=60)
            ours = method.solve(remote, question, sampling=GREEDY)
            local = method.solve(reasoner, question, sampling=GREEDY)
            assert ours.text.removesuffix("<eos>") == local.text.removesuffix("<eos>")
            assert sampled(ours) <= 64


class Canned(JsonHandler):
    """Answers every completion alike, and keeps the requests."""

    server: JsonServer

    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": "canned"}]})

    def do_POST(self) -> None:
        self.server.requests.append(self.body())
        choice = {"index": 0, "text": '{"evaluated_level": 3}', "finish_reason": "stop"}
        usage = {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16}
        self.reply({"choices": [choice], "usage": usage})


@pytest.mark.server
def test_json_is_asked_for_where_the_server_knows_how() -> None:
    with running(JsonServer(Canned)) as server:
        remote = EndpointModel(server.url, "canned", api="completions")
        planner = ModelPlanner(remote, json_mode=True, retries=0)
        with pytest.warns(UserWarning, match="solved directly"):
            answer = PlanAndBudget(planner=planner).solve(
                Scripted("Answer: 7"),
                BIRDS,
                sampling=GREEDY,  # type: ignore[arg-type]
            )
    level, steps = server.requests
    assert level["response_format"] == {"type": "json_object"}
    assert "response_format" not in steps
    assert answer.detail["plan"]["level"] == 3
    assert answer.ledger.totals(role="planner").generated == 14


def test_a_spec_writes_every_knob_that_is_no_object(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry(
        "plan-and-budget",
        "outlay.reason.plan_and_budget:PlanAndBudget",
        "reason",
        "Plan-and-Budget",
        "",
    )
    monkeypatch.setattr(registry, "_table", lambda kind: {entry.slug: entry})
    made = registry.create(
        "methods",
        "plan-and-budget:mode=enforced,planner=structure,schedule=cosine,budget=80,power=1.5,"
        "level_budgets=[50,60,70,80,90],answer_reserve=4,probe_budgets=[4,8],plan_cache=p.jsonl",
    )
    assert made == PlanAndBudget(
        mode="enforced",
        planner="structure",
        schedule="cosine",
        budget=80,
        power=1.5,
        level_budgets=(50, 60, 70, 80, 90),
        answer_reserve=4,
        probe_budgets=(4, 8),
        plan_cache="p.jsonl",
    )


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"planner": "oracle"}, "planner='oracle'; choose model, structure, none"),
        ({"schedule": "quadratic"}, "schedule="),
        ({"schedule": "exponential", "base": -1}, "base=-1"),
        ({"power": -2}, "power=-2"),
        ({"allocator": "best"}, "allocator="),
        ({"mode": "soft"}, "mode="),
        ({"limits": "some"}, "limits="),
        ({"rollover": "back"}, "rollover="),
        ({"unit": "characters"}, "unit="),
        ({"remainder": "smallest"}, "remainder="),
        ({"too_many": "drop"}, "too_many="),
        ({"bam_closed": "closed"}, "bam_closed="),
        ({"level": 0}, "level=0"),
        ({"level_budgets": (1, 2)}, "levels 1 to 5"),
        ({"answer_reserve": 0}, "answer_reserve=0"),
        ({"min_step_budget": 0}, "min_step_budget=0"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"probes": 0}, "probes=0"),
        ({"probe_budgets": (8,)}, "two or more rising"),
        ({"probe_budgets": (8, 4)}, "two or more rising"),
        ({"probe_budgets": (0, 4)}, "two or more rising"),
        ({"heading": "Step"}, "heading needs {number}"),
        ({"heading": "{name}"}, "heading="),
        ({"answer_prefix": " "}, "answer_prefix"),
    ],
)
def test_bad_knobs_are_named(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        PlanAndBudget(**knobs)


def test_budgets_below_one_step_are_named() -> None:
    with pytest.raises(BudgetError, match="budget of 5 tokens is below min_step_budget=8"):
        PlanAndBudget(budget=5)
    with pytest.raises(BudgetError, match="budget of 7 tokens"):
        PlanAndBudget(level_budgets=(7, 250, 350, 450, 600))


def test_a_question_without_text_cannot_be_planned() -> None:
    question = Question([{"role": "user", "content": "hello"}])
    with pytest.raises(InputError, match=r"Question\(text="):
        PlanAndBudget().solve(Scripted("x"), question, sampling=GREEDY)  # type: ignore[arg-type]
