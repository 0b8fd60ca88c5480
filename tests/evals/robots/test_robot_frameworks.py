"""The topologies: who is asked how often, whose plan stands, and what the books say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from robot_worlds import MIDDLE, SMALL, ids, play

from outlay.budget import Budget
from outlay.errors import InputError
from outlay.evals.robots import planner, prompts
from outlay.evals.robots.boxlift import BoxLift
from outlay.evals.robots.boxnet import BoxNet1, BoxNet2
from outlay.evals.robots.calls import Call, LoggedModel
from outlay.evals.robots.episode import replay
from outlay.evals.robots.frameworks import CMAS, DMAS, HMAS1, HMAS2
from outlay.evals.robots.scripted import ScriptedModel
from outlay.evals.robots.warehouse import HouseState, Warehouse
from outlay.models.base import Account, Generation, SamplingParams

ALL = (CMAS(), CMAS(votes=3), HMAS2(), HMAS2(reviewers="all"), DMAS(), HMAS1(), HMAS1(fast=True))


def sure(world: Any, **knobs: float) -> ScriptedModel:
    """A scripted model without errors; reviewers agree unless told otherwise."""
    return ScriptedModel(world, **{"error": 0.0, "recall": 0.0, "false_alarm": 0.0, **knobs})


class Fixed(ScriptedModel):
    """A scripted model whose central replies, reviews or speeches are given word by word."""

    def script(self, **texts: Any) -> Fixed:
        self.texts = texts
        return self

    def _reply(self, turns, sampling):
        ask = turns[1]["content"]
        kind = "speak" if "and talk with" in ask else "central"
        kind = "review" if "You are the local agent" in ask else kind
        if kind not in self.texts:
            return super()._reply(turns, sampling)
        given = self.texts[kind]
        return given.pop(0) if isinstance(given, list) else given


@pytest.mark.parametrize("world", MIDDLE, ids=ids)
def test_with_agreeing_reviewers_hmas2_plans_as_cmas_does(world):
    model = sure(world)
    alone = play(world, 1, CMAS("none"), model, step_limit=1)
    agreed = play(world, 1, HMAS2("none"), model, step_limit=1)
    assert agreed.turns[0].plan == alone.turns[0].plan
    assert len(alone.calls) == 1 + alone.retries
    assert len(agreed.calls) == len(alone.calls) + len(world.named(alone.turns[0].plan))


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_with_stubborn_reviewers_there_are_exactly_max_rounds_rounds(rounds):
    world = BoxNet1(2, 2)
    model = sure(world, false_alarm=1.0)
    log = play(world, 1, HMAS2(max_rounds=rounds), model, step_limit=1)
    m = len(world.named(log.turns[0].plan))
    assert sum(call.speaker == "central" for call in log.calls) == 1 + rounds
    assert len(log.calls) == 1 + rounds * (m + 1)


def test_reviewers_in_the_plan_all_or_those_in_conflict():
    world = Warehouse(2, 4, 3)
    state = HouseState(((0, 3),), ((0, 0, False), (0, 2, False), (1, 3, False)))
    plan = '{"agent0": "move right", "agent1": "move left"}'
    asked = {}
    for reviewers in ("in_plan", "all", "conflicting"):
        model = Fixed(world).script(central=plan, review="I Agree")
        from outlay.evals.robots.calls import Caller
        from outlay.evals.robots.episode import run_episode

        caller = Caller(model, Account(), SamplingParams())
        log = run_episode(world, state, HMAS2(reviewers=reviewers), caller, step_limit=1)
        asked[reviewers] = [call.speaker for call in log.calls if call.role == "verifier"]
    assert asked["in_plan"] == ["agent0", "agent1"]
    assert asked["all"] == ["agent0", "agent1", "agent2"]
    assert asked["conflicting"] == ["agent0", "agent1"]


def test_an_agreement_with_a_but_is_sent_back_to_the_centre():
    world = BoxNet1(2, 2)
    model = Fixed(world, error=0.0).script(review="I agree, but the plan is slow")
    log = play(world, 1, HMAS2(agree="contains", max_rounds=1), model, step_limit=1)
    last = log.calls[-1]
    assert last.speaker == "central"
    assert [role for role, _ in last.messages] == ["system", "user", "assistant", "user"]
    assert "I agree, but the plan is slow" in last.messages[-1][1]


def test_a_fenced_plan_is_read_in_new_plans_too():
    world = BoxNet1(2, 2)
    good = json.dumps(planner.naive(world, world.reset(1)))
    fenced = f"Here you are:\n```json\n{good}\n```"
    model = Fixed(world).script(central=fenced, review="No.")
    log = play(world, 1, HMAS2(max_rounds=2), model, step_limit=1)
    assert log.retries == 0
    assert log.turns[0].plan == json.loads(good)


def test_unusable_plans_are_asked_for_again_with_every_reason_and_then_end_the_episode():
    world = BoxNet2(2, 2)
    bad = dict.fromkeys(world.agents, "move(box_mauve, target_mauve)")
    model = Fixed(world).script(central=json.dumps(bad))
    log = play(world, 0, CMAS(max_retries=2), model)
    assert (log.ending, log.retries, len(log.calls), log.steps) == ("unusable plan", 2, 3, 0)
    feedback = log.calls[1].messages[-1][1]
    assert all(agent in feedback for agent in world.agents)
    assert len(log.calls[2].messages) == len(log.calls[1].messages) + 2


def test_the_checker_s_calls_are_in_the_books():
    world = BoxNet1(2, 2)
    good = json.dumps(planner.naive(world, world.reset(1)))
    account = Account()
    model = Fixed(world).script(central=["nothing", "{", good], review="I Agree")
    log = play(world, 1, HMAS2(), model, account=account, step_limit=1)
    assert log.retries == 2
    assert len(account.ledger) == len(log.calls)


def test_robots_speak_in_order_and_the_order_rotates():
    world = BoxNet1(1, 3, ("red",), pairs=(2, 2))
    for order, first in (("fixed", [0, 0]), ("rotate", [0, 1])):
        model = Fixed(world).script(speak="Let us wait.\nPROCEED")
        log = play(world, 0, DMAS(speak_order=order, max_rounds=2), model, step_limit=2)
        for step, start in zip((1, 2), first, strict=True):
            names = [call.speaker for call in log.calls if call.step == step]
            turned = world.agents[start:] + world.agents[:start]
            assert names == [*turned, *turned]


def test_a_dialogue_without_execute_leaves_an_empty_plan_or_the_initial_one():
    world = BoxNet1(2, 2)
    speech = 'I would do {"Agent[0.5, 0.5]": "dance"}.\nPROCEED'
    idle = play(world, 1, DMAS(), Fixed(world).script(speak=speech), step_limit=1)
    assert idle.turns[0].plan == {}
    assert len(idle.calls) == 4 * 4
    model = Fixed(world, error=0.0).script(speak=speech)
    kept = play(world, 1, HMAS1(), model, step_limit=1)
    assert kept.turns[0].plan == planner.naive(world, world.reset(1))
    assert len(kept.calls) == 1 + 4 * len(world.named(kept.turns[0].plan))


def test_the_first_valid_execute_ends_the_step():
    world = BoxNet1(2, 2)
    good = json.dumps(planner.naive(world, world.reset(1)))
    replies = ["Hm.\nPROCEED", f"Fine.\nEXECUTE\n{good}"]
    log = play(world, 1, DMAS(), Fixed(world).script(speak=replies), step_limit=1)
    assert len(log.calls) == 2
    assert log.turns[0].plan == json.loads(good)
    assert "Hm. PROCEED" in log.calls[1].messages[1][1]


def test_the_dialogue_of_hmas1_opens_with_the_central_plan():
    world = BoxNet1(2, 2)
    log = play(world, 1, HMAS1(), sure(world), step_limit=1)
    assert f"{prompts.INITIAL}{log.calls[0].reply}" in log.calls[1].messages[1][1]


def test_hmas1_fast_wants_the_final_plan_from_the_second_round_on():
    world = BoxNet1(2, 2)
    model = Fixed(world, error=0.0).script(speak="Let me think.\nPROCEED")
    log = play(world, 1, HMAS1(fast=True, max_retries=1), model)
    m = len(world.named(planner.naive(world, world.reset(1))))
    assert log.ending == "unusable plan"
    assert len(log.calls) == 1 + m + 1 + 1
    assert "Give the final plan now" in log.calls[1 + m].messages[1][1]
    assert HMAS1(fast=True).name == "HMAS-1-fast"


def test_votes_take_the_most_frequent_usable_plan():
    world = BoxNet1(2, 2)
    one = planner.naive(world, world.reset(1))
    agent = next(iter(one))
    other = {agent: one[agent]}
    texts = [json.dumps(other), "nonsense", json.dumps(one), json.dumps(one)]
    log = play(world, 1, CMAS(votes=4), Fixed(world).script(central=texts), step_limit=1)
    assert log.turns[0].plan == one
    assert len(log.calls) == 4


def test_votes_draw_different_samples():
    world = Warehouse(3, 5, 4)
    model = ScriptedModel(world, error=1.0)
    log = play(world, 1, CMAS(votes=8), model, step_limit=1)
    assert len({call.reply for call in log.calls}) > 1
    assert len({call.messages for call in log.calls[:8]}) == 1


def test_the_collision_checker_prevents_what_the_planner_overlooks():
    world = Warehouse(3, 6, 6)
    model = ScriptedModel(world)
    plain = [play(world, seed, CMAS(), model).ending for seed in range(6)]
    checked = [play(world, seed, CMAS(checker="collisions"), model).ending for seed in range(6)]
    assert plain.count("collision") >= 4
    assert "collision" not in checked


# -- the books ------------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", ALL, ids=lambda f: f"{f.name}-{getattr(f, 'votes', 1)}")
@pytest.mark.parametrize("world", [*SMALL, Warehouse(3, 5, 4)], ids=ids)
def test_the_ledger_is_the_sum_of_the_calls_and_a_log_replays_byte_for_byte(world, framework):
    account = Account()
    model = ScriptedModel(world)
    log = play(world, 3, framework, model, account=account)
    total = account.ledger.totals()
    assert total.calls == len(log.calls)
    assert total.prompt + total.generated == sum(call.booked for call in log.calls) == log.tokens
    for role, row in log.by_role().items():
        booked = account.ledger.totals(role=role)
        assert (booked.calls, booked.prompt + booked.generated) == (row["calls"], row["tokens"])
    assert replay(world, world.reset(3), [t.plan for t in log.turns]) == list(log.states)
    stored = [Call.from_dict(row) for row in json.loads(json.dumps(log.to_dict()))["calls"]]
    assert tuple(stored) == log.calls
    again = play(world, 3, framework, LoggedModel(stored, model))
    assert again.to_dict() == log.to_dict()
    assert again.states == log.states


def test_a_changed_prompt_is_noticed_when_a_log_is_replayed():
    world = BoxNet1(2, 2)
    model = ScriptedModel(world)
    log = play(world, 3, CMAS(), model)
    with pytest.raises(InputError, match="differs from the log"):
        play(world, 4, CMAS(), LoggedModel(log.calls, model))
    with pytest.raises(InputError, match="no further call"):
        play(world, 3, CMAS(), LoggedModel(log.calls[:1], model))


def test_roles_tell_who_spent_what():
    world = BoxNet1(2, 2)
    roles = {
        framework.name: set(play(world, 1, framework, ScriptedModel(world)).by_role())
        for framework in (CMAS(), HMAS2(), DMAS(), HMAS1())
    }
    assert roles == {
        "CMAS": {"planner"},
        "HMAS-2": {"planner", "verifier"},
        "DMAS": {"target"},
        "HMAS-1": {"planner", "target"},
    }


# -- how episodes end -----------------------------------------------------------------------------


def test_solved_on_the_last_allowed_step_is_a_success():
    world = BoxNet1(2, 2)
    model = sure(world)
    steps = play(world, 1, CMAS(), model).steps
    assert play(world, 1, CMAS(), model, step_limit=steps).ending == "solved"
    short = play(world, 1, CMAS(), model, step_limit=steps - 1)
    assert (short.ending, short.steps) == ("step limit", steps - 1)


def test_a_collision_ends_the_episode():
    world = Warehouse(2, 3, 2)
    state = HouseState(((0, 2),), ((0, 0, False), (0, 2, False)))
    plan = '{"agent0": "move right", "agent1": "move left"}'
    from outlay.evals.robots.calls import Caller
    from outlay.evals.robots.episode import run_episode

    caller = Caller(Fixed(world).script(central=plan), Account(), SamplingParams())
    log = run_episode(world, state, CMAS(), caller)
    assert (log.ending, log.steps, log.collisions) == ("collision", 1, 1)
    assert "agent0, agent1" in log.note


def test_going_round_in_circles_is_seen():
    world = BoxLift(2, 2)
    plan = '{"box0": "agent0"}'
    seed = next(
        s
        for s in range(50)
        if not world.solved(world.reset(s))
        and world.reset(s).strengths[0] < world.reset(s).boxes[0][2]
    )
    log = play(world, seed, CMAS(), Fixed(world).script(central=plan), step_limit=5)
    assert (log.ending, log.revisits, log.looped) == ("step limit", 5, True)
    assert all("is too heavy for agent0" in turn.feedback[0] for turn in log.turns)


@pytest.mark.parametrize(
    "limits",
    [
        {"model": {"context_length": 450}},
        {"caller": {"token_budget": 3000}},
        {"account": Account.open(Budget(tokens=150))},
        {"account": Account.open(Budget(calls=7))},
        {"account": Account.open(Budget(tokens=3000, counts="all"))},
    ],
    ids=["window", "token_budget", "generated", "calls", "all"],
)
def test_running_out_of_tokens_ends_an_episode_and_overspends_nothing(limits):
    world = BoxNet1(2, 2)
    model = ScriptedModel(world, **limits.get("model", {}))
    account = limits.get("account")
    if account is not None:
        account = Account.open(account.meter.budget)
    log = play(world, 1, DMAS(), model, account=account, caller=limits.get("caller"))
    assert log.ending == "out of tokens"
    assert log.note
    if "caller" in limits:
        assert log.tokens <= 3000
    if account is not None:
        total, budget = account.ledger.totals(), account.meter.budget
        assert total.calls <= (budget.calls or total.calls)
        spent = total.all if budget.counts == "all" else total.generated
        assert spent <= (budget.tokens or spent)


def test_no_framework_beats_breadth_first_search():
    worlds = (BoxNet1(2, 2, ("blue", "red"), pairs=(1, 2)), Warehouse(3, 3, 2, 0.4))
    solved = 0
    for world in worlds:
        for seed in range(3):
            best = len(planner.optimal(world, world.reset(seed)))
            for framework in ALL:
                log = play(world, seed, framework, ScriptedModel(world))
                assert not log.solved or log.steps >= best
                solved += log.solved
    assert solved > 20


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: CMAS("all"), "history='all'"),
        (lambda: CMAS(votes=0), "votes=0"),
        (lambda: CMAS(votes=2, vote_temperature=0), "vote_temperature"),
        (lambda: CMAS(checker="none"), "checker='none'"),
        (lambda: HMAS2(max_retries=-1), "max_retries=-1"),
        (lambda: HMAS2(max_rounds=-1), "max_rounds=-1"),
        (lambda: HMAS2(agree="maybe"), "agree='maybe'"),
        (lambda: HMAS2(reviewers="nobody"), "reviewers='nobody'"),
        (lambda: DMAS(max_rounds=0), "max_rounds=0"),
        (lambda: DMAS(speak_order="random"), "speak_order='random'"),
        (lambda: ScriptedModel(SMALL[0], error=1.5), "error=1.5"),
        (lambda: ScriptedModel(SMALL[0]).generate("text"), "chats"),
        (lambda: Call.from_dict({"step": 1}), "logged call"),
    ],
)
def test_bad_knobs_are_refused_by_name(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_a_decoder_is_used_when_given():
    world = BoxNet1(2, 2)
    seen = []

    class Counting:
        def generate(self, model, prompt, budget=None, sampling=None, *, account=None):
            seen.append(budget)
            made: Generation = model.generate(prompt, budget, sampling, account=account)
            return made

    log = play(world, 1, CMAS(), sure(world), caller={"decode": Counting(), "reply_tokens": 300})
    assert log.solved
    assert seen == [Budget(tokens=300)] * len(log.calls)
