"""Planners without a model: what greedy keeps, what breadth-first search proves."""

from __future__ import annotations

import itertools

import pytest
from robot_worlds import MIDDLE, ids

from outlay.errors import InputError
from outlay.evals.robots import planner
from outlay.evals.robots.base import Draw
from outlay.evals.robots.boxlift import BoxLift
from outlay.evals.robots.boxnet import BoxNet1, BoxNet2
from outlay.evals.robots.warehouse import HouseState, Warehouse


@pytest.mark.parametrize("world", MIDDLE, ids=ids)
def test_greedy_solves_every_instance_without_a_collision(world):
    for seed in range(15):
        plans, solved = planner.rollout(
            world, world.reset(seed), lambda s: planner.greedy(world, s)
        )
        assert solved, (seed, len(plans))


@pytest.mark.parametrize("world", MIDDLE, ids=ids)
def test_wishes_are_possible_actions_without_repeats(world):
    state = world.reset(5)
    able = world.actions(state)
    for agent, ranked in planner.wishes(world, state).items():
        assert set(ranked) <= set(able[agent])
        assert len(set(ranked)) == len(ranked) > 0


def test_robots_that_may_not_move_keep_their_first_wish():
    world = Warehouse(2, 3, 2)
    state = HouseState(((0, 2),), ((0, 0, False), (0, 2, False)))
    ranked = {"agent0": ["move right"], "agent1": ["move left"]}
    assert planner.yielding(world, state, ranked) == {"agent0": "move right"}
    assert planner.yielding(world, state, ranked, movable={"agent0"}) == {"agent1": "move left"}


def test_who_gave_way_in_vain_gets_its_wish_back():
    world = Warehouse(2, 4, 3)
    # agent0 cannot move into agent1's place while agent1 picks: agent1 must still pick.
    state = HouseState(((0, 1),), ((0, 2, True), (0, 1, False), (1, 3, False)))
    ranked = {"agent0": ["move left"], "agent1": ["pick box_0.5_1"]}
    assert planner.yielding(world, state, ranked) == {"agent1": "pick box_0.5_1"}


def test_the_weakest_team_is_found():
    strengths = (35, 10, 25, 60, 15)
    for need in range(1, 150, 7):
        teams = [
            team
            for size in range(6)
            for team in itertools.combinations(range(5), size)
            if sum(strengths[i] for i in team) >= need
        ]
        best = min((sum(strengths[i] for i in team) for team in teams), default=None)
        found = planner._weakest(strengths, range(5), need)
        assert (None if found is None else sum(strengths[i] for i in found)) == best


def test_known_failures_make_teams_stronger():
    world = BoxLift(3, 1)
    state = world.given([30], [30], [10, 20, 40])
    assert planner.greedy(world, state) == {"box0": "agent0, agent1"}
    assert planner.greedy(world, state, floors={0: 30}) == {"box0": "agent2"}
    assert planner.greedy(world, state, floors={0: 60}) == {"box0": "agent0, agent1, agent2"}


def test_optimal_plans_of_hand_made_instances():
    box = BoxNet1(1, 3, ("red",))
    plans = planner.optimal(box, (("box_red",), (), ("target_red",)))
    assert [next(iter(plan.values())) for plan in plans] == [
        "move(box_red, square[0.5, 1.5])",
        "move(box_red, square[0.5, 2.5])",
        "move(box_red, target_red)",
    ]
    house = Warehouse(2, 3, 1)
    trip = planner.optimal(house, HouseState(((0, 1),), ((0, 0, False),)))
    assert [plan["agent0"] for plan in trip] == [
        "move right",
        "pick box_0.5_1",
        "move left",
        "move to target",
    ]


def test_optimal_is_never_longer_than_greedy():
    worlds = (
        BoxNet1(2, 2, ("blue", "red"), pairs=(1, 1)),
        BoxNet2(2, 2, ("blue", "red")),
        BoxLift(3, 4),
        Warehouse(3, 3, 2, 0.4),
    )
    for world in worlds:
        for seed in range(4):
            state = world.reset(seed)
            best = planner.optimal(world, state)
            plans, solved = planner.rollout(world, state, lambda s, w=world: planner.greedy(w, s))
            assert solved
            assert len(best) <= len(plans)
            assert planner.rollout(world, state, iter_policy(best)) == (best, True)


def iter_policy(plans):
    left = iter(plans)
    return lambda state: next(left)


def test_searches_that_are_too_large_or_hopeless_say_so():
    with pytest.raises(InputError, match="max_states"):
        planner.optimal(BoxNet1(2, 2), BoxNet1(2, 2).reset(0), max_states=5)
    stuck = Warehouse(2, 1, 2, 0.0)
    with pytest.raises(InputError, match="simultaneous"):
        planner.optimal(BoxNet1(2, 2, apply="sequential"), ())
    blocked = HouseState(((0, 0),), ((0, 0, True), (1, 0, True)))
    assert len(planner.optimal(stuck, blocked)) == 4


def test_random_plans_are_taken_and_depend_on_the_draw_alone():
    for world in MIDDLE:
        state = world.reset(2)
        plans = [planner.random_plan(world, state, Draw("r", seed)) for seed in range(8)]
        assert all(not world.check(state, plan) for plan in plans)
        assert plans == [planner.random_plan(world, state, Draw("r", seed)) for seed in range(8)]
        assert len({str(plan) for plan in plans}) > 1


def test_a_refused_policy_is_an_error():
    world = BoxNet1(2, 2)
    with pytest.raises(InputError, match="refused"):
        planner.rollout(world, world.reset(0), lambda state: {"Agent[9.5, 0.5]": "dance"})
