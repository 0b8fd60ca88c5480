"""Steps per second of the multi-robot worlds, and BoxNet1 beside reasoning-gym's simulator.

python benchmarks/robots.py [--repeats 5] [--steps 2000]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import common
from outlay.evals.robots import planner
from outlay.evals.robots.base import Draw, World
from outlay.evals.robots.boxlift import BoxLift
from outlay.evals.robots.boxnet import BoxNet1, BoxNet2
from outlay.evals.robots.gym import gym_env
from outlay.evals.robots.warehouse import Warehouse

WORLDS: tuple[World[Any, Any], ...] = (
    BoxNet1(2, 2),
    BoxNet1(4, 8),
    BoxNet2(2, 2),
    BoxNet2(4, 8),
    BoxLift(4, 10),
    BoxLift(10, 24),
    Warehouse(3, 5, 4),
    Warehouse(4, 8, 10),
)
Pair = tuple[Any, dict[str, str]]


def walks(world: World[Any, Any], steps: int) -> list[Pair]:
    """States of random walks with the plans that were taken there."""
    found: list[Pair] = []
    seed = 0
    while len(found) < steps:
        draw, state = Draw("benchmark", seed), world.reset(seed)
        for _ in range(world.step_limit):
            plan = planner.random_plan(world, state, draw)
            step = world.step(state, plan)
            found.append((state, plan))
            if step.collisions or world.solved(step.state):
                break
            state = step.state
        seed += 1
    return found[:steps]


def stepping(world: World[Any, Any], pairs: list[Pair]) -> Callable[[], None]:
    def work() -> None:
        for state, plan in pairs:
            world.step(state, plan)

    return work


def environment(world: World[Any, Any], steps: int) -> Callable[[], None]:
    """The gymnasium adapter with sampled actions, resets included."""
    env = gym_env(world)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(steps)]

    def work() -> None:
        env.reset(seed=0)
        for action in actions:
            _, _, ended, cut, _ = env.step(action)
            if ended or cut:
                env.reset(seed=0)

    return work


def speed(world: World[Any, Any], steps: int, repeats: int) -> list[common.Row]:
    pairs = walks(world, steps)
    few = max(1, steps // 10)
    seconds = common.turns(
        {"step": stepping(world, pairs), "gym": environment(world, few)}, repeats, clock="cpu"
    )
    plain = steps / statistics.median(seconds["step"])
    adapted = few / statistics.median(seconds["gym"])
    size = statistics.fmean(len(plan) for _, plan in pairs)
    return [
        common.Row(
            f"{world.name}: World.step",
            "steps/s",
            plain,
            note=f"target >= 1000; {size:.1f} actions a plan",
        ),
        common.Row(
            f"{world.name}: gymnasium step with masks",
            "steps/s",
            adapted,
            note="target >= 1000; random actions, mostly refused",
        ),
    ]


def cross_check(steps: int, repeats: int) -> list[common.Row]:
    """The same plans through reasoning-gym's BoxNet simulator: same states, and seconds."""
    from reasoning_gym.games.boxnet import action_from_response

    world = BoxNet1(4, 4)
    pairs = walks(world, steps)

    def theirs_of(state: Any) -> dict[str, list[str]]:
        return {
            f"{i + 0.5}_{j + 0.5}": list(items)
            for (i, j), items in zip(world.cells, state, strict=True)
        }

    inputs = [(theirs_of(state), [plan]) for state, plan in pairs]
    same = 0
    for (state, plan), (grid, plans) in zip(pairs, inputs, strict=True):
        moved = action_from_response(grid, plans)
        after = theirs_of(world.step(state, plan).state)
        same += {key: sorted(items) for key, items in moved.items()} == after

    def theirs() -> None:
        for grid, plans in inputs:
            action_from_response(grid, plans)

    seconds = common.turns({"ours": stepping(world, pairs), "theirs": theirs}, repeats, clock="cpu")
    peer = f"reasoning-gym {version('reasoning-gym')} boxnet"
    return [
        common.faster(
            f"boxnet1-4x4: {steps} joint plans",
            seconds["ours"],
            seconds["theirs"],
            peer,
            "ours also refuses what cannot be done, with reasons",
        ),
        common.Row(
            "boxnet1-4x4: share of plans after which both simulators are in the same state",
            "share",
            same / len(pairs),
            note="plans that ours takes; theirs applies actions one after the other",
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2000)
    given = parser.parse_args()
    common.warn_if_busy()
    rows = [row for world in WORLDS for row in speed(world, given.steps, given.repeats)]
    common.write("robots", rows + cross_check(given.steps, given.repeats))


if __name__ == "__main__":
    main()
