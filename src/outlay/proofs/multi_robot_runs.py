"""The runs behind the proof of the multi-robot system: episodes of scripted policies, measured.

Every name of a method starts with "scripted": no language model plans here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from outlay.budget import Budget
from outlay.evals.base import Problem
from outlay.evals.robots import planner
from outlay.evals.robots.base import Draw, World
from outlay.evals.robots.boxlift import BoxLift, LiftState
from outlay.evals.robots.episode import EpisodeLog
from outlay.evals.robots.history import HEAD
from outlay.evals.robots.prompts import STATE
from outlay.evals.robots.scripted import BYTES_PER_TOKEN, ScriptedModel
from outlay.evals.robots.tasks import Robots, WorldName
from outlay.models.base import Account, SamplingParams
from outlay.records import Record

FloatArray = npt.NDArray[np.float64]
WORLDS: tuple[WorldName, ...] = ("boxnet1", "boxnet2", "boxlift", "warehouse")
FRAMEWORKS: Mapping[str, Mapping[str, Any]] = {
    "CMAS": {"framework": "cmas"},
    "HMAS-2": {"framework": "hmas2"},
    "HMAS-1": {"framework": "hmas1"},
    "DMAS": {"framework": "dmas"},
    "HMAS-2 no history": {"framework": "hmas2", "history": "none"},
    "HMAS-2 full history": {"framework": "hmas2", "history": "full"},
    "CMAS + collision checker": {"framework": "cmas", "checker": "collisions"},
    "HMAS-2 one round": {"framework": "hmas2", "max_rounds": 1},
}
MAIN = ("CMAS", "HMAS-2", "HMAS-1", "DMAS")


@dataclass(frozen=True)
class Play:
    """One instance under one method.

    Args:
        world, problem, agents, method: what was played; `agents` robots.
        log: without the texts of its calls.
        record: for the frontier.
        dropped, slope: see the functions of these names.
    """

    world: WorldName
    problem: str
    agents: int
    method: str
    log: EpisodeLog
    record: Record
    dropped: int = 0
    slope: float | None = None

    @property
    def success(self) -> float:
        """1 or 0."""
        return float(self.log.solved)

    @property
    def rounds(self) -> int:
        """Steps that were planned, also one that was not taken."""
        return max((call.step for call in self.log.calls), default=1)

    @property
    def tokens_per_step(self) -> float:
        """Tokens (the paper's count) per planned step."""
        return self.log.tokens / self.rounds


def play(
    world: WorldName,
    method: str,
    knobs: Mapping[str, Any],
    problems: Sequence[Problem],
    skills: Mapping[str, float],
    seed: int,
) -> list[Play]:
    """All problems of one world under one method."""
    task = Robots(world=world, **knobs)
    found = []
    for problem in problems:
        rules, _ = task.instance(problem)
        model = ScriptedModel(rules, seed=seed, **skills)  # type: ignore[arg-type]
        account = Account(method=f"scripted {method}")
        log = task.run(model, problem, SamplingParams(seed=seed), account=account)
        record = Record(
            world,
            problem.id,
            f"scripted {method}",
            Budget(),
            seed,
            float(log.solved),
            account.ledger,
        )
        agents = len(rules.agents)
        one = Play(world, problem.id, agents, method, log, record, dropped(log), slope(log))
        found.append(replace(one, log=_without_prompts(log)))
    return found


def _without_prompts(log: EpisodeLog) -> EpisodeLog:
    """The log with the texts of its calls left out: they would fill gigabytes."""
    return replace(log, calls=tuple(replace(call, messages=(), reply="") for call in log.calls))


def dropped(log: EpisodeLog) -> int:
    """Prompts of the planner whose history lost earlier steps to the token limit."""
    count = 0
    for call in log.calls:
        if call.speaker == "central" and len(call.messages) == 2:
            text = call.messages[1][1]
            count += call.step > 1 and "State_" in text and "\nState_1: " not in text
    return count


def classical(
    world: WorldName, problems: Sequence[Problem], name: str, seed: int
) -> dict[str, tuple[bool, int]]:
    """Success and steps of the planners without a model: "greedy" or "random"."""
    task = Robots(world=world)
    found = {}
    for problem in problems:
        rules, state = task.instance(problem)
        policy: Callable[[Any], dict[str, str]]
        if name == "greedy":
            policy = greedy_policy(rules)
        else:
            policy = partial(_random, rules, Draw(f"random {problem.id}", seed))
        plans, solved = planner.rollout(rules, state, policy)
        found[problem.id] = (solved, len(plans))
    return found


def _random(world: World[Any, Any], draw: Draw, state: Any) -> dict[str, str]:
    return planner.random_plan(world, state, draw)


def greedy_policy(world: World[Any, Any]) -> Callable[[Any], dict[str, str]]:
    """The greedy planner; in BoxLift it sees volumes, not weights, and learns from failures."""
    if not isinstance(world, BoxLift):
        return partial(planner.greedy, world)
    floors: dict[int, int] = {}

    def policy(state: LiftState) -> dict[str, str]:
        seen = LiftState(tuple((n, v, v) for n, v, _ in state.boxes), state.strengths)
        plan = planner.greedy(world, seen, floors=floors)
        weights = {n: w for n, _, w in state.boxes}
        for box, team in plan.items():
            effect = world.judge(state, box, team)
            assert not isinstance(effect, str)
            strength = sum(state.strengths[i] for i in effect[1])
            if strength < weights[effect[0]]:
                floors[effect[0]] = max(strength, floors.get(effect[0], -1))
        return plan

    return policy


def paired(
    plays: Iterable[Play], a: str, b: str, value: Callable[[Play], float], **where: Any
) -> FloatArray:
    """Differences a - b of `value` over the instances that both played; `where` filters fields."""
    sides: list[dict[str, float]] = [{}, {}]
    for one in plays:
        if all(getattr(one, key) == wanted for key, wanted in where.items()):
            for side, name in zip(sides, (a, b), strict=True):
                if one.method == name:
                    side[f"{one.world} {one.problem}"] = value(one)
    shared = sorted(set(sides[0]) & set(sides[1]))
    return np.array([sides[0][key] - sides[1][key] for key in shared])


def growth(logs: Iterable[EpisodeLog], *, first: int = 3) -> list[float]:
    """Per episode, the exponent of cumulative tokens over steps (1: linear), from step `first`."""
    found = []
    for log in logs:
        spent = np.zeros(log.steps + 1)
        for call in log.calls:
            if call.step <= log.steps:
                spent[call.step] += call.tokens
        total = spent.cumsum()
        if log.steps < 2 * first:
            continue
        steps = np.arange(first, log.steps + 1)
        found.append(float(np.polyfit(np.log(steps), np.log(total[first:]), 1)[0]))
    return found


def slope(log: EpisodeLog) -> float | None:
    """Tokens by which the history in the planner's prompt grows a step; None for short episodes."""
    sizes = []
    for call in log.calls:
        if call.speaker == "central" and len(call.messages) == 2:
            text = call.messages[1][1]
            start, end = text.find(HEAD.strip()), text.find(STATE)
            sizes.append(0.0 if start < 0 else (end - start) / BYTES_PER_TOKEN)
    if len(sizes) < 6:
        return None
    return float(np.polyfit(np.arange(len(sizes)), sizes, 1)[0])


def ratios(plays: Sequence[Play]) -> dict[str, dict[str, dict[str, float | None]]]:
    """The paper's table: per world and method success, and steps, calls, tokens over the best.

    "Best" is the smallest value that any of the main frameworks reached on the same instance in a
    successful run; ratios are averaged over a method's successful runs.
    """
    table: dict[str, dict[str, dict[str, float | None]]] = {}
    for world in WORLDS:
        rows = [one for one in plays if one.world == world]
        best: dict[str, list[float]] = {}
        for one in rows:
            if one.log.solved and one.method in MAIN:
                mine = measures(one)
                old = best.get(one.problem, [math.inf] * 3)
                best[one.problem] = [min(x, y) for x, y in zip(mine, old, strict=True)]
        for method in dict.fromkeys(one.method for one in rows):
            chosen = [one for one in rows if one.method == method]
            shares = [
                [x / y for x, y in zip(measures(one), best[one.problem], strict=True)]
                for one in chosen
                if one.log.solved and one.problem in best
            ]
            means = np.mean(shares, axis=0).tolist() if shares else [None] * 3
            table.setdefault(world, {})[method] = {
                "success": float(np.mean([one.success for one in chosen])),
                "steps": means[0],
                "calls": means[1],
                "tokens": means[2],
                "tokens_per_step": float(np.mean([one.tokens_per_step for one in chosen])),
                "collisions": float(np.mean([one.log.ending == "collision" for one in chosen])),
                "looped": float(np.mean([one.log.looped for one in chosen])),
                "out_of_tokens": float(
                    np.mean([one.log.ending == "out of tokens" for one in chosen])
                ),
                "retries": float(np.mean([one.log.retries for one in chosen])),
                "n": len(chosen),
            }
    return table


def measures(one: Play) -> list[float]:
    """Steps, calls and tokens of a run, at least 1 each."""
    return [float(max(1, n)) for n in (one.log.steps, len(one.log.calls), one.log.tokens)]
