"""The four worlds: what a step takes, what it keeps, and how it fails."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from robot_worlds import MIDDLE, SMALL, all_single, ids, things

from outlay.errors import InputError
from outlay.evals.robots import planner
from outlay.evals.robots.base import Draw, World
from outlay.evals.robots.boxlift import BoxLift, LiftState
from outlay.evals.robots.boxnet import BoxNet1, BoxNet2, CornerState
from outlay.evals.robots.warehouse import HouseState, Warehouse

SEEDS = st.integers(0, 10_000)
WORLDS = (*SMALL, *MIDDLE)


def wander(world: World[Any, Any], seed: int, steps: int) -> list[Any]:
    """States of a random walk."""
    draw, state = Draw("walk", seed), world.reset(seed)
    states = [state]
    for _ in range(steps):
        step = world.step(state, planner.random_plan(world, state, draw))
        assert not step.refusals
        state = step.state
        states.append(state)
        if step.collisions:
            break
    return states


@pytest.mark.parametrize("world", WORLDS, ids=ids)
@given(seed=SEEDS, steps=st.integers(0, 6))
def test_a_step_takes_exactly_the_actions_that_are_offered(world, seed, steps):
    state = wander(world, seed, steps)[-1]
    offered = world.actions(state)
    assert set(offered) == set(world.agents)
    singles = list(all_single(world))
    for agent, action in singles[:: 1 if len(singles) < 300 else 37]:
        if world.name.startswith("boxlift") and not action.startswith("lift"):
            continue
        plan = world.join({agent: action})
        refused = world.check(state, plan)
        assert (not refused) == (action in offered[agent]), (agent, action)


@pytest.mark.parametrize("world", SMALL, ids=ids)
@pytest.mark.parametrize("seed", range(4))
def test_joint_plans_are_all_combinations_that_share_no_object(world, seed):
    state = wander(world, seed, seed)[-1]
    slow = []
    rows = [[None, *actions] for actions in world.actions(state).values()]
    for combination in itertools.product(*rows):
        chosen = {a: c for a, c in zip(world.agents, combination, strict=True) if c is not None}
        held = [thing for action in chosen.values() for thing in things(action)]
        own_box = world.name.startswith("boxlift") or len(held) == len(set(held))
        if own_box or world.name.startswith("boxnet1"):
            slow.append(world.join(chosen))
    assert [dict(plan) for plan in world.plans(state)] == slow


@pytest.mark.parametrize("world", WORLDS, ids=ids)
@given(seed=SEEDS, data=st.data())
def test_an_invalid_action_leaves_the_state_and_names_robot_and_reason(world, seed, data):
    state = world.reset(seed)
    good = planner.random_plan(world, state, Draw("good", seed))
    bad_key = (
        "box999" if world.name.startswith("boxlift") else data.draw(st.sampled_from(world.agents))
    )
    plan = {key: action for key, action in good.items() if key != bad_key}
    plan[bad_key] = data.draw(st.sampled_from(["dance", "", "move(box_mauve, target_mauve)"]))
    step = world.step(state, plan)
    assert step.state == state
    (refusal,) = step.refusals
    assert refusal.key == bad_key
    assert refusal.reason
    assert bad_key in refusal.text()


@pytest.mark.parametrize("world", WORLDS, ids=ids)
@given(seed=SEEDS)
def test_objects_are_kept(world, seed):
    states = wander(world, seed, 12)

    def left(state: Any) -> Any:
        if isinstance(state, HouseState):
            return len(state.boxes) + sum(carrying for _, _, carrying in state.robots)
        if isinstance(state, LiftState):
            return {number: (volume, weight) for number, volume, weight in state.boxes}
        if isinstance(state, CornerState):
            return sorted(c for c, _ in state.boxes), sorted(c for c, _ in state.targets)
        return Counter(item for cell in state for item in cell)

    for before, after in itertools.pairwise(states):
        old, new = left(before), left(after)
        if isinstance(before, HouseState):
            gone = sum(
                was[2] and now[0] < 0 for was, now in zip(before.robots, after.robots, strict=True)
            )
            assert new == old - gone
        elif isinstance(before, LiftState):
            assert new.items() <= old.items()
            assert after.strengths == before.strengths
        elif isinstance(before, CornerState):
            assert new[0] == new[1]
            assert set(new[0]) <= set(old[0])
        else:
            for colour in world.colours:
                boxes = new[f"box_{colour}"], old[f"box_{colour}"]
                assert boxes[0] - new[f"target_{colour}"] == boxes[1] - old[f"target_{colour}"]
                assert boxes[0] <= boxes[1]


@pytest.mark.parametrize("world", WORLDS, ids=ids)
@given(seed=SEEDS, steps=st.integers(0, 5))
def test_the_text_of_a_state_says_everything_that_may_be_known(world, seed, steps):
    state = wander(world, seed, steps)[-1]
    if world.foresee(state, {}):
        return
    lines = list(world.agent_lines(state).values())
    for order in (lines, lines[::-1]):
        seen = world.read("\n".join([world.shared_text(state), *order]))
        if isinstance(state, LiftState):
            assert [box[:2] for box in seen.boxes] == [box[:2] for box in state.boxes]
            assert seen.strengths == state.strengths
        else:
            assert seen == state


@pytest.mark.parametrize("world", WORLDS, ids=ids)
@given(seed=SEEDS, steps=st.integers(0, 8))
def test_codes_stay_in_bounds_and_tables_hold_all_actions(world, seed, steps):
    state = wander(world, seed, steps)[-1]
    code, bounds = world.encode(state), world.bounds()
    assert len(code) == len(bounds)
    assert all(low <= value <= high for value, (low, high) in zip(code, bounds, strict=True))
    for agent, actions in world.actions(state).items():
        assert set(actions) <= set(world.table(agent))


@pytest.mark.parametrize("world", WORLDS, ids=ids)
@given(seed=SEEDS)
def test_plans_split_into_choices_and_join_back(world, seed):
    state = world.reset(seed)
    plan = planner.random_plan(world, state, Draw("split", seed))
    assert world.join(world.split(plan)) == plan
    assert world.named(plan) == tuple(world.split(plan))


GOLDEN = {
    "boxnet1-2x2": "d64ed0",
    "boxnet1-4x4": "d754e0",
    "boxnet2-2x4": "f18971",
    "boxlift-4x10": "316696",
    "warehouse-3x5x4": "6c2b99",
    "warehouse-4x8x10": "cd11d9",
}


@pytest.mark.parametrize("world", MIDDLE, ids=ids)
def test_a_seed_gives_the_same_instances_everywhere(world):
    """Digests written down once: another platform or Python must give the same."""
    text = repr([world.reset(seed) for seed in range(20)])
    assert hashlib.sha256(text.encode()).hexdigest()[:6] == GOLDEN[world.name]


def test_simultaneous_and_sequential_agree_without_shared_objects():
    for together in MIDDLE:
        apart = type(together)(
            **{
                **{f: getattr(together, f) for f in together.__dataclass_fields__},
                "apply": "sequential",
            }
        )
        for seed in range(30):
            state = together.reset(seed)
            plan = planner.random_plan(together, state, Draw("apply", seed))
            assert apart.step(state, plan).state == together.step(state, plan).state


def test_a_box_travels_two_cells_in_one_sequential_step_only():
    state = (("box_red",), (), ("target_red",))
    plan = {
        "Agent[0.5, 0.5]": "move(box_red, square[0.5, 1.5])",
        "Agent[0.5, 1.5]": "move(box_red, square[0.5, 2.5])",
    }
    handed = BoxNet1(1, 3, ("red",), apply="sequential").step(state, plan)
    assert handed.state == ((), (), ("box_red", "target_red"))
    judged = BoxNet1(1, 3, ("red",)).step(state, plan)
    assert judged.state == state
    assert [refusal.key for refusal in judged.refusals] == ["Agent[0.5, 1.5]"]


# -- BoxNet ---------------------------------------------------------------------------------------


def test_a_box_on_its_own_target_still_needs_a_match():
    world, state = BoxNet1(1, 1, ("red",)), (("box_red", "target_red"),)
    assert not world.solved(state)
    after = world.step(state, {"Agent[0.5, 0.5]": "move(box_red, target_red)"}).state
    assert world.solved(after)


@pytest.mark.parametrize(
    "action",
    [
        "move(box_red,square[0.5,1.5])",
        " move( box_red , square[ 0.5 , 1.5 ] ) ",
        "move(box_red, square[0.50, 1.5])",
    ],
)
def test_white_space_and_digits_do_not_matter(action):
    world = BoxNet1(1, 2, ("red",))
    state = (("box_red",), ("target_red",))
    assert not world.check(state, {"Agent[0.5,0.5]": action})


def test_minus_signs_are_not_dropped():
    world = BoxNet1(1, 2, ("red",))
    state = (("target_red",), ("box_red",))
    (refusal,) = world.check(state, {"Agent[0.5, 1.5]": "move(box_red, square[-0.5, 0.5])"})
    assert "-0.5" in refusal.reason


def test_boxnet1_moves_as_reasoning_gym_moves():
    from reasoning_gym.games.boxnet import action_from_response

    world = BoxNet1(3, 4)
    for seed in range(12):
        draw, state = Draw("cross", seed), world.reset(seed)
        theirs = {
            f"{i + 0.5}_{j + 0.5}": list(items)
            for (i, j), items in zip(world.cells, state, strict=True)
        }
        for _ in range(10):
            plan = planner.random_plan(world, state, draw)
            state = world.step(state, plan).state
            theirs = action_from_response(theirs, [plan])
            assert [tuple(sorted(items)) for items in theirs.values()] == list(state)


def test_two_boxes_on_one_corner_collide_and_name_the_robots_that_moved():
    world = BoxNet2(1, 2, ("blue", "red"))
    state = CornerState((("blue", (0, 0)), ("red", (0, 2))), (("blue", (0, 1)), ("red", (0, 0))))
    step = world.step(
        state,
        {
            "Agent[0.5, 0.5]": "move(box_blue, position[0.0, 1.0])",
            "Agent[0.5, 1.5]": "move(box_red, position[0.0, 1.0])",
        },
    )
    (collision,) = step.collisions
    assert collision.agents == ("Agent[0.5, 0.5]", "Agent[0.5, 1.5]")
    assert "position[0.0, 1.0]" in collision.text()


def test_two_robots_cannot_move_one_box_in_one_step():
    world = BoxNet2(1, 2, ("red",))
    state = CornerState((("red", (0, 1)),), (("red", (0, 0)),))
    refusals = world.check(
        state,
        {
            "Agent[0.5, 0.5]": "move(box_red, target_red)",
            "Agent[0.5, 1.5]": "move(box_red, position[0.0, 2.0])",
        },
    )
    assert [refusal.key for refusal in refusals] == ["Agent[0.5, 1.5]"]
    assert refusals[0].reason == "Agent[0.5, 0.5] uses box_red already"


def test_every_robot_of_boxnet2_is_checked_and_sees_its_own_cell():
    world = BoxNet2(2, 2)
    state = world.reset(3)
    refusals = world.check(state, dict.fromkeys(world.agents, "move(box_mauve, target_mauve)"))
    assert [refusal.key for refusal in refusals] == list(world.agents)
    for (agent, line), cell in zip(world.agent_lines(state).items(), world.cells, strict=True):
        seen = re.search(r"observe \[(.*?)\], I can do", line)[1]
        corners = world.corners(cell)
        for colour, corner in state.boxes:
            assert (f"box_{colour}@" in seen) == (corner in corners), agent
        for colour, goal in state.targets:
            assert (f"target_{colour}" in seen) == (goal == cell), agent


# -- BoxLift --------------------------------------------------------------------------------------


def test_boxes_of_equal_volume_stay_apart():
    world = BoxLift(4, 24)
    state = world.reset(0)
    assert len({volume for _, volume, _ in state.boxes}) < 24
    assert len(state.boxes) == 24


def test_unknown_robots_and_double_use_are_refused():
    world = BoxLift(2, 2)
    state = world.given([10, 10], [10, 10], [20, 20])
    reasons = {
        plan["box0"] + "|" + plan.get("box1", ""): world.check(state, plan)[0].reason
        for plan in (
            {"box0": "agent7"},
            {"box0": "agent0, agent0"},
            {"box0": "agent0", "box1": "agent0, agent1"},
        )
    }
    assert "there is no robot" in reasons["agent7|"]
    assert "twice" in reasons["agent0, agent0|"]
    assert "box0 uses agent0" in reasons["agent0|agent0, agent1"]


def test_the_official_order_of_application_lets_a_robot_work_twice():
    world = BoxLift(2, 2, apply="sequential")
    state = world.given([10, 10], [10, 10], [20, 20])
    assert world.solved(world.step(state, {"box0": "agent0", "box1": "agent0"}).state)


def test_a_box_is_lifted_at_exactly_its_weight_and_not_a_tenth_below():
    world = BoxLift(3, 1)
    for weight, done in ((30, True), (31, False)):
        state = world.given([30], [weight], [10, 20, 90])
        step = world.step(state, {"box0[3.0V]": "agent0[1.0W], agent1"})
        assert world.solved(step.state) is done
        verb = "was lifted by" if done else "is too heavy for"
        assert step.feedback == (f"box0[3.0V] {verb} agent0[1.0W], agent1[2.0W]",)


def test_all_robots_together_lift_every_generated_box():
    for seed in range(200):
        state = BoxLift(4, 10).reset(seed)
        assert sum(state.strengths) >= max(weight for _, _, weight in state.boxes)


def test_weights_are_near_volumes():
    rows = [b for seed in range(100) for b in BoxLift(10, 24).reset(seed).boxes]
    errors = [abs(weight / volume - 1) for _, volume, weight in rows]
    assert 0.05 < sum(errors) / len(errors) < 0.14
    assert 0.02 < sum(error > 0.35 for error in errors) / len(errors) < 0.09


# -- Warehouse ------------------------------------------------------------------------------------


def test_every_track_is_offered_from_the_depot_and_moves_there_are_refused_without_a_crash():
    world = Warehouse(3, 5, 1)
    state = HouseState(((0, 2),), ((-1, -1, False),))
    assert world.actions(state)["agent0"] == tuple(f"move to track_{i}" for i in range(3))
    for action in ("move left", "move right", "move to target", "pick box_0.5_2"):
        assert "at target" in world.check(state, {"agent0": action})[0].reason
    assert world.step(state, {"agent0": "move to track_0"}).state.robots == ((0, 0, False),)


def test_two_robots_on_one_place_collide_but_not_at_the_depot():
    world = Warehouse(2, 3, 2)
    state = HouseState(((0, 2),), ((0, 0, False), (0, 2, False)))
    step = world.step(state, {"agent0": "move right", "agent1": "move left"})
    assert step.collisions[0].agents == ("agent0", "agent1")
    home = HouseState(((0, 2),), ((0, 0, False), (1, 0, False)))
    assert not world.step(home, dict.fromkeys(world.agents, "move to target")).collisions


@pytest.mark.parametrize("counts", [False, True])
def test_exchanging_places_collides_only_on_request(counts):
    world = Warehouse(2, 3, 2, swap_is_collision=counts)
    state = HouseState(((0, 2),), ((0, 0, False), (0, 1, False)))
    step = world.step(state, {"agent0": "move right", "agent1": "move left"})
    assert bool(step.collisions) is counts


def test_two_robots_cannot_pick_one_box():
    world = Warehouse(2, 3, 2)
    state = HouseState(((0, 1),), ((0, 1, False), (1, 1, False)))
    refusals = world.check(state, dict.fromkeys(world.agents, "pick box_0.5_1"))
    assert [refusal.key for refusal in refusals] == ["agent1"]


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: BoxNet1(0, 2), "rows=0"),
        (lambda: BoxNet2(2, 0), "columns=0"),
        (lambda: BoxNet1(9, 8), "force=True"),
        (lambda: BoxNet1(2, 2, ("red", "red")), "duplicates"),
        (lambda: BoxNet1(2, 2, ("Red",)), "lower-case"),
        (lambda: BoxNet1(2, 2, ()), "colours"),
        (lambda: BoxNet1(2, 2, pairs=(3, 1)), "pairs"),
        (lambda: BoxNet1(2, 2, apply="both"), "apply='both'"),
        (lambda: BoxLift(0, 4), "robots=0"),
        (lambda: BoxLift(4, 0), "boxes=0"),
        (lambda: Warehouse(1, 5, 2), "tracks=1"),
        (lambda: Warehouse(2, 2, 5), "robots=5"),
        (lambda: Warehouse(3, 5, 4, occupancy=1.5), "occupancy=1.5"),
        (lambda: Warehouse(3, 5, 4, occupancy=float("nan")), "occupancy"),
        (lambda: BoxNet1(2, 2).reset(-1), "seed=-1"),
        (lambda: BoxLift(2, 1).given([10], [50], [20, 20]), "unsolvable"),
        (lambda: BoxLift(2, 1).given([10, 10], [50], [20, 20]), "volumes"),
        (lambda: next(BoxNet1(4, 4).plans(BoxNet1(4, 4).reset(0), limit=99)), "joint plans"),
    ],
)
def test_bad_worlds_are_refused_with_the_number(make, says):
    with pytest.raises(InputError, match=re.escape(says)):
        make()


def test_a_large_grid_is_possible_on_request():
    assert len(BoxNet1(9, 8, force=True).agents) == 72


def test_an_empty_shelf_still_gets_one_box():
    for seed in range(20):
        assert len(Warehouse(3, 5, 4, occupancy=0.0).reset(seed).boxes) == 1
