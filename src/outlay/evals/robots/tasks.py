"""The task "robots": episodes of a multi-robot world, played by any model in one of the topologies.

arXiv 2309.15943. One problem is one instance of a world; an answer is the JSON list of the plans
that were taken, so that `verify` replays it. Quality is 1 for a solved instance, also one solved on
its last allowed step.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

from outlay.budget import Budget
from outlay.decode.base import Decoder
from outlay.errors import InputError
from outlay.evals.base import Episode, Kind, Mark, Problem
from outlay.evals.checks import check_sample
from outlay.evals.robots import boxlift, prompts, warehouse
from outlay.evals.robots.base import Apply, World, check_whole
from outlay.evals.robots.boxlift import BoxLift
from outlay.evals.robots.boxnet import BoxNet1, BoxNet2
from outlay.evals.robots.calls import Caller
from outlay.evals.robots.episode import EpisodeLog, run_episode
from outlay.evals.robots.frameworks import (
    CMAS,
    DMAS,
    HMAS1,
    HMAS2,
    Agree,
    Checker,
    Framework,
    Reviewers,
    SpeakOrder,
)
from outlay.evals.robots.grid import COLOURS
from outlay.evals.robots.history import Policy
from outlay.evals.robots.plans import read_plan
from outlay.evals.robots.warehouse import Warehouse
from outlay.models.base import Account, Model, SamplingParams

WorldName = Literal["boxnet1", "boxnet2", "boxlift", "warehouse"]
FrameworkName = Literal["cmas", "hmas2", "dmas", "hmas1", "hmas1-fast"]
GRIDS = ((2, 2), (2, 4), (4, 4), (4, 8))
PAPER_SIZES: Mapping[WorldName, tuple[tuple[int, ...], ...]] = {
    "boxnet1": GRIDS,
    "boxnet2": GRIDS,
    "boxlift": boxlift.SIZES,
    "warehouse": warehouse.SIZES,
}
_TAKEN = re.compile(r"^-> (\{.*\})$", re.MULTILINE)
_SIZE = {"boxnet1": 2, "boxnet2": 2, "boxlift": 2, "warehouse": 3}


def make_world(
    world: WorldName,
    size: tuple[int, ...],
    *,
    apply: Apply = "simultaneous",
    swap_is_collision: bool = False,
    leak_weights: bool = False,
    occupancy: float = 0.5,
    colours: tuple[str, ...] = COLOURS,
    force: bool = False,
) -> World[Any, Any]:
    """A world by name.

    Args:
        world: which one.
        size: rows and columns; robots and boxes; tracks, columns and robots.
        apply, swap_is_collision, leak_weights, occupancy, colours, force: as in the world's class,
            where it has them.

    Raises:
        InputError: for an unknown world, or a size that does not suit it.
    """
    if world not in _SIZE:
        raise InputError(f"world={world!r}; choose one of {', '.join(_SIZE)}")
    if len(size) != _SIZE[world]:
        raise InputError(f"size={size} does not suit {world}, which takes {_SIZE[world]} numbers")
    if world == "boxnet1":
        return BoxNet1(size[0], size[1], colours=colours, apply=apply, force=force)
    if world == "boxnet2":
        return BoxNet2(size[0], size[1], colours=colours, apply=apply, force=force)
    if world == "boxlift":
        return BoxLift(size[0], size[1], leak_weights=leak_weights, apply=apply)
    return Warehouse(
        size[0],
        size[1],
        size[2],
        occupancy=occupancy,
        swap_is_collision=swap_is_collision,
        apply=apply,
        force=force,
    )


@dataclass(frozen=True)
class Robots:
    """Multi-robot worlds.

    Args:
        world: "boxnet1", "boxnet2", "boxlift" or "warehouse".
        size: rows and columns; robots and boxes; tracks, columns and robots. None takes turns
            through the paper's four sizes.
        framework: "cmas", "hmas2", "dmas", "hmas1" or "hmas1-fast".
        history: "none", "state_action", "full" or "summary"; None is the paper's: none for CMAS,
            state_action for the others.
        max_rounds: rounds of review (HMAS-2) or of speaking; None is 3 and 4.
        max_retries: further calls for an unusable plan.
        history_tokens: limit of prompt and history together; None is the paper's 3000 or 4000.
        step_limit: None is the paper's for the size.
        apply: "simultaneous" or, as in the official code, "sequential".
        agree: what counts as agreement of a reviewer: "exact" or "contains".
        swap_is_collision: robots of the warehouse that exchange places collide.
        speak_order: "fixed" or "rotate".
        reviewers: robots that review a central plan: "in_plan", "all" or "conflicting".
        votes: plans that CMAS samples and votes on.
        checker: "collisions" sends CMAS's plans back that lead to a collision.
        token_budget: stop once prompts and replies of an episode exceed this; None for no limit.
        reply_tokens: most tokens of one reply.
        leak_weights: show BoxLift's weights to reviewers and in the history, as the official code
            does.
        occupancy: share of the warehouse's shelf places with a box.
        colours: of BoxNet.
        force: allow grids of more than 64 cells.

    Raises:
        InputError: for an unknown name or a knob out of range.
    """

    world: WorldName = "boxnet1"
    size: tuple[int, ...] | None = None
    framework: FrameworkName = "hmas2"
    history: Policy | None = None
    max_rounds: int | None = None
    max_retries: int = 6
    history_tokens: int | None = None
    step_limit: int | None = None
    apply: Apply = "simultaneous"
    agree: Agree = "exact"
    swap_is_collision: bool = False
    speak_order: SpeakOrder = "fixed"
    reviewers: Reviewers = "in_plan"
    votes: int = 1
    checker: Checker = "feasible"
    token_budget: int | None = None
    reply_tokens: int = 512
    leak_weights: bool = False
    occupancy: float = 0.5
    colours: tuple[str, ...] = COLOURS
    force: bool = False

    kind: ClassVar[Kind] = "episode"
    metric: ClassVar[str] = "success"
    chat: ClassVar[bool] = True  # robots talk through chats
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.framework not in get_args(FrameworkName):
            raise InputError(
                f"framework={self.framework!r}; choose one of {', '.join(get_args(FrameworkName))}"
            )
        if self.framework != "cmas" and (self.votes != 1 or self.checker != "feasible"):
            raise InputError(f"votes and checker belong to cmas, not to {self.framework}")
        if self.framework == "cmas" and self.max_rounds is not None:
            raise InputError("cmas has no rounds; leave max_rounds out")
        for name, most in (("token_budget", 10**9), ("step_limit", 100_000)):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1, most)
        if self.history_tokens is not None:
            check_whole("history_tokens", self.history_tokens, 1, 10_000_000)
        check_whole("reply_tokens", self.reply_tokens, 1, 1_000_000)
        _ = self.worlds, self.method

    @cached_property
    def worlds(self) -> tuple[World[Any, Any], ...]:
        """One world per size."""
        sizes = PAPER_SIZES.get(self.world, ()) if self.size is None else (tuple(self.size),)
        if not sizes:
            raise InputError(f"world={self.world!r}; choose one of {', '.join(PAPER_SIZES)}")
        return tuple(
            make_world(
                self.world,
                size,
                apply=self.apply,
                swap_is_collision=self.swap_is_collision,
                leak_weights=self.leak_weights,
                occupancy=self.occupancy,
                colours=tuple(self.colours),
                force=self.force,
            )
            for size in sizes
        )

    @cached_property
    def method(self) -> Framework:
        """The framework."""
        history: Policy = self.history or ("none" if self.framework == "cmas" else "state_action")
        rounds = {} if self.max_rounds is None else {"max_rounds": self.max_rounds}
        if self.framework == "cmas":
            return CMAS(history, self.max_retries, votes=self.votes, checker=self.checker)
        if self.framework == "hmas2":
            return HMAS2(
                history, self.max_retries, agree=self.agree, reviewers=self.reviewers, **rounds
            )
        if self.framework == "dmas":
            return DMAS(history, self.max_retries, speak_order=self.speak_order, **rounds)
        return HMAS1(
            history,
            self.max_retries,
            speak_order=self.speak_order,
            fast=self.framework == "hmas1-fast",
            **rounds,
        )

    @property
    def name(self) -> str:
        """ "robots/" with world and framework."""
        return f"robots/{self.world}/{self.framework}"

    def sample(self, seed: int, n: int) -> list[Problem]:
        """`n` instances; sizes take turns, and seeds of instances are mixed from seed and index."""
        check_sample(seed, n)
        problems = []
        for index in range(n):
            world = self.worlds[index % len(self.worlds)]
            digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=4).digest()
            start = int.from_bytes(digest, "big")
            state = world.reset(start)
            lines = [world.shared_text(state), *world.agent_lines(state).values()]
            problems.append(
                Problem(
                    id=f"{world.name}:{start}",
                    question="\n".join(filter(None, lines)),
                    meta={"world": world.name, "seed": start},
                )
            )
        return problems

    def instance(self, problem: Problem) -> tuple[World[Any, Any], Any]:
        """World and first state of a problem.

        Raises:
            InputError: for a problem of another task.
        """
        for world in self.worlds:
            if world.name == problem.meta.get("world"):
                return world, world.reset(problem.meta["seed"])
        raise InputError(
            f"problem {problem.id!r} is not of {self.name}; sample it with the same world and size"
        )

    def prompt(self, problem: Problem, context: str) -> str:
        """The central planner's first prompt."""
        world, state = self.instance(problem)
        return prompts.central(prompts.View.of(world, state), context)

    def verify(self, problem: Problem, answer: str) -> float:
        """1.0 if the plans of `answer` (a JSON list) solve the instance in time, else 0.0."""
        return float(self._replayed(problem, answer)[0])

    def explain(self, problem: Problem, answer: str) -> Mapping[str, str]:
        """How many plans were good, and what the first bad one did."""
        solved, taken, reason = self._replayed(problem, answer)
        return {"solved": str(solved).lower(), "steps": str(taken), "reason": reason}

    def marks(self, problem: Problem, text: str) -> list[Mark]:
        """The plans of a transcript: taken, refused, or leading to a collision or the solution."""
        world, state = self.instance(problem)
        found = []
        for number, match in enumerate(_TAKEN.finditer(text), 1):
            read = read_plan(world, state, match[1])
            good: bool | None = None
            if read.plan is None or read.errors:
                label, good = f"plan {number}: {read.errors[0]}", False
            else:
                step = world.step(state, read.plan)
                state, label = step.state, f"plan {number}"
                if step.collisions:
                    label, good = f"{label}: {step.collisions[0].text()}", False
                elif world.solved(state):
                    label, good = f"{label}: solved", True
            found.append(Mark(match.start(1), match.end(1), label, good))
        return found

    def _replayed(self, problem: Problem, answer: str) -> tuple[bool, int, str]:
        world, state = self.instance(problem)
        try:
            plans = json.loads(answer)
        except (ValueError, RecursionError):
            return False, 0, "the answer is not JSON"
        good = isinstance(plans, list) and all(
            isinstance(plan, dict) and all(isinstance(v, str) for v in plan.values())
            for plan in plans
        )
        if not good:
            return False, 0, "the answer is no list of plans"
        limit = self.step_limit or world.step_limit
        for taken, plan in enumerate(plans):
            if world.solved(state):
                return False, taken, f"plan {taken + 1} comes after the task was solved"
            if taken == limit:
                return False, taken, f"more than {limit} steps"
            step = world.step(state, plan)
            if step.refusals:
                return False, taken, f"plan {taken + 1}: {step.refusals[0].text()}"
            state = step.state
            if step.collisions:
                return False, taken + 1, f"plan {taken + 1}: {step.collisions[0].text()}"
        solved = world.solved(state)
        return solved, len(plans), "solved" if solved else "not solved"

    def play(
        self,
        model: Model,
        problem: Problem,
        budget: Budget,
        sampling: SamplingParams,
        *,
        decode: Decoder | None,
        account: Account,
    ) -> Episode:
        """Play one instance; running out of budget ends it as "out of tokens"."""
        log = self.run(model, problem, sampling, decode=decode, account=account)
        facts = log.to_dict(calls=False)
        plans = facts.pop("plans")
        texts = {
            "answer": json.dumps(plans),
            "transcript": log.transcript(),
            "finish": log.ending,
            "facts": json.dumps(facts),
        }
        if model.name.startswith("scripted"):
            texts["scripted"] = f"{model.name}: a scripted policy, not a language model"
        return Episode(float(log.solved), texts)

    def run(
        self,
        model: Model,
        problem: Problem,
        sampling: SamplingParams,
        *,
        decode: Decoder | None = None,
        account: Account | None = None,
    ) -> EpisodeLog:
        """As `play`, giving the whole log (for replays, pictures, counts)."""
        world, state = self.instance(problem)
        caller = Caller(
            model,
            account or Account(method=self.method.name),
            sampling,
            decode,
            self.reply_tokens,
            self.token_budget,
        )
        return run_episode(
            world,
            state,
            self.method,
            caller,
            step_limit=self.step_limit,
            history_tokens=self.history_tokens,
        )
