"""Scripted policies: they read and write the frameworks' texts, err as told, and own up."""

from __future__ import annotations

import json

import numpy as np
import pytest
from robot_worlds import MIDDLE, ids, play

from outlay.errors import CapabilityError, InputError
from outlay.evals.robots import planner, prompts
from outlay.evals.robots.boxlift import BoxLift
from outlay.evals.robots.calls import SYSTEM
from outlay.evals.robots.frameworks import DMAS, HMAS1, HMAS2
from outlay.evals.robots.scripted import ScriptedModel
from outlay.evals.robots.warehouse import HouseState, Warehouse
from outlay.models.base import Account, Message, Model, SamplingParams


def chat(*texts: str) -> list[Message]:
    roles = ("user", "assistant")
    turns = [Message(role=roles[i % 2], content=text) for i, text in enumerate(texts)]
    return [Message(role="system", content=SYSTEM), *turns]


def ask(model: ScriptedModel, *texts: str, sampling: SamplingParams | None = None) -> str:
    return model.generate(chat(*texts), None, sampling or SamplingParams()).text


def test_it_is_a_model_and_its_name_says_scripted():
    model = ScriptedModel(MIDDLE[0], error=0.5)
    assert isinstance(model, Model)
    assert model.name == "scripted(e=0.5,r=0.8,f=0.05)"
    with pytest.raises(CapabilityError):
        model.open("x")


@pytest.mark.parametrize("world", MIDDLE, ids=ids)
def test_without_errors_the_central_reply_is_the_naive_plan(world):
    model = ScriptedModel(world, error=0.0)
    state = world.reset(7)
    reply = ask(model, prompts.central(prompts.View.of(world, state), ""))
    seen = world.read("\n".join([world.shared_text(state), *world.agent_lines(state).values()]))
    assert json.loads(reply) == planner.naive(world, seen)


@pytest.mark.parametrize("world", MIDDLE, ids=ids)
@pytest.mark.parametrize(
    "framework",
    [DMAS(max_rounds=20), HMAS1(max_rounds=20), HMAS2(max_rounds=20)],
    ids=lambda f: f.name,
)
def test_flawless_policies_never_collide_where_agents_talk(world, framework):
    model = ScriptedModel(world, error=0.0, recall=1.0, false_alarm=0.0)
    logs = [play(world, seed, framework, model) for seed in range(3)]
    assert all(log.ending in ("solved", "step limit") for log in logs)
    assert any(log.solved for log in logs)


def test_plans_go_wrong_as_often_as_told():
    world = Warehouse(3, 6, 6)
    view = prompts.View.of(world, world.reset(0))
    good = ask(ScriptedModel(world, error=0.0), prompts.central(view, ""))
    for error in (0.0, 0.15, 1.0):
        replies = [
            ask(ScriptedModel(world, error=error, seed=seed), prompts.central(view, ""))
            for seed in range(300)
        ]
        assert abs(np.mean([reply != good for reply in replies]) - error) < 0.06


def test_reviewers_overlook_and_cry_wolf_as_often_as_told():
    world = Warehouse(2, 3, 2)
    state = HouseState(((0, 2),), ((0, 0, False), (0, 2, False)))
    view = prompts.View.of(world, state)
    crash = {"agent0": "move right", "agent1": "move left"}
    rates = {}
    for name, plan in (("crash", crash), ("safe", {"agent0": "move right"})):
        replies = [
            ask(ScriptedModel(world, seed=seed), prompts.review(view, "", "agent0", plan))
            for seed in range(600)
        ]
        rates[name] = np.mean([reply != "I Agree" for reply in replies])
    assert abs(rates["crash"] - 0.8) < 0.05
    assert abs(rates["safe"] - 0.05) < 0.03


def test_at_temperature_0_only_the_prompt_counts():
    world = Warehouse(3, 5, 4)
    text = prompts.central(prompts.View.of(world, world.reset(0)), "")
    model = ScriptedModel(world, error=1.0)
    cold = {ask(model, text, sampling=SamplingParams(seed=s)) for s in range(20)}
    warm = {ask(model, text, sampling=SamplingParams(seed=s, temperature=1.0)) for s in range(20)}
    assert len(cold) == 1
    assert len(warm) > 3


def test_objections_replan_the_robots_that_are_named_and_keep_the_rest():
    world = Warehouse(2, 5, 3)
    state = HouseState(((0, 4),), ((0, 0, False), (0, 2, True), (1, 2, False)))
    model = ScriptedModel(world, error=0.0)
    plan = {"agent0": "move right", "agent1": "move left", "agent2": "move right"}
    view = prompts.View.of(world, state)
    against = prompts.objections({"agent0": "I object: collision at x of agent0, agent1."})
    reply = ask(model, prompts.central(view, ""), json.dumps(plan), against)
    assert json.loads(reply) == {"agent1": "move left", "agent2": "move right"}


def test_boxlift_is_learnt_from_the_history_in_the_prompt():
    world = BoxLift(3, 1)
    state = world.given([30], [35], [10, 20, 40])
    view = prompts.View.of(world, state)
    model = ScriptedModel(world, error=0.0)
    assert json.loads(ask(model, prompts.central(view, ""))) == {"box0": "agent0, agent1"}
    told = "State_1: x\nAction_1: y\nEnvironmentFeedback_1: " + "; ".join(
        world.step(state, {"box0": "agent0, agent1"}).feedback
    )
    assert json.loads(ask(model, prompts.central(view, told))) == {"box0": "agent2"}


def test_replies_are_cut_and_booked_within_the_limits():
    world = MIDDLE[0]
    account = Account()
    text = prompts.central(prompts.View.of(world, world.reset(0)), "")
    made = ScriptedModel(world).generate(
        chat(text), None, SamplingParams(max_tokens=5), account=account
    )
    (entry,) = account.ledger.entries
    assert made.finish_reason == "length"
    assert len(made.text) == 20
    assert (entry.generated, entry.estimated) == (5, True)
    assert entry.prompt_new == -(-len(SYSTEM) // 4) + -(-len(text) // 4)


def test_prompts_of_others_are_refused():
    model = ScriptedModel(MIDDLE[0])
    with pytest.raises(InputError, match="shows no state"):
        ask(model, "What is the capital of France?")
    with pytest.raises(InputError, match="user turn"):
        model.generate([Message(role="system", content="x")])
