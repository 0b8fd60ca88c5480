"""Worlds of several robots: the one protocol of this package.

A `World` is a frozen description (sizes, rules); its states are immutable and hashable, so that
episodes replay, searches share work and loops show as equal states. A *plan* maps keys (robots, in
BoxLift boxes) to one action text each; keys that do nothing are left out. Robots' own choices
(`actions`) become a plan through `join`.

A step either takes the whole plan or refuses it, leaving the state as it was, with a `Refusal` per
offending action. Two rules of application exist. "simultaneous": every action is judged on the
state before the step, and two actions on one object are a conflict. "sequential": actions are
judged and applied one after the other in the plan's order, as the official code of
arXiv 2309.15943 does, so that an object may be handed on within one step.

Random numbers come from `random.Random.random()` alone, whose stream Python keeps stable across
versions and platforms; integers and normals are derived from it here.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Generic, Literal, TypeVar, get_args

from outlay.errors import InputError

Apply = Literal["simultaneous", "sequential"]
Plan = Mapping[str, str]

S = TypeVar("S")
E = TypeVar("E")

MAX_CELLS = 64
MAX_AGENTS = 64
MAX_PLANS = 200_000
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Refusal:
    """Why one action cannot be done.

    Args:
        key: the plan's key: a robot, in BoxLift a box.
        action: as given.
        reason: in words, for the one who planned it.
    """

    key: str
    action: str
    reason: str

    def text(self) -> str:
        """One line of feedback."""
        return f"{self.key}: {self.action!r} is not possible: {self.reason}"


@dataclass(frozen=True)
class Collision:
    """Robots or boxes that end a step in one place.

    Args:
        agents: those whose action or presence makes it, in the world's order.
        where: the place, in words.
    """

    agents: tuple[str, ...]
    where: str

    def text(self) -> str:
        """One line of feedback."""
        return f"collision at {self.where} of {', '.join(self.agents)}"


@dataclass(frozen=True)
class Step(Generic[S]):
    """What a plan did.

    Args:
        state: after the step; the state before it where the plan was refused.
        refusals: empty where the plan was taken.
        collisions: of the state after the step; any ends the episode as a failure.
        feedback: what the world reports to the planner (BoxLift: lifted, too heavy).
    """

    state: S
    refusals: tuple[Refusal, ...] = ()
    collisions: tuple[Collision, ...] = ()
    feedback: tuple[str, ...] = ()


class Draw:
    """Random choices that are the same on every platform; `name` keeps worlds apart."""

    def __init__(self, name: str, seed: int) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise InputError(f"seed={seed!r}; give an int >= 0")
        digest = hashlib.blake2b(f"{name}:{seed}".encode(), digest_size=8).digest()
        self._random = random.Random(int.from_bytes(digest, "big"))

    def share(self) -> float:
        """Uniform in [0, 1)."""
        return self._random.random()

    def below(self, n: int) -> int:
        """Uniform in 0 .. n - 1."""
        return int(self._random.random() * n)

    def between(self, low: int, high: int) -> int:
        """Uniform in low .. high, both included."""
        return low + self.below(high - low + 1)

    def normal(self) -> float:
        """Standard normal, by inversion."""
        return _NORMAL.inv_cdf(min(max(self._random.random(), 1e-12), 1 - 1e-12))


class World(ABC, Generic[S, E]):
    """A world; S are its states, E the effects of single actions."""

    apply: Apply

    @property
    @abstractmethod
    def name(self) -> str:
        """Short stable name."""

    @property
    @abstractmethod
    def agents(self) -> tuple[str, ...]:
        """Names of the robots, in speaking order."""

    @property
    @abstractmethod
    def step_limit(self) -> int:
        """Steps that the paper allows for this size."""

    @property
    @abstractmethod
    def history_tokens(self) -> int:
        """Tokens that the paper allows for prompt and history."""

    @abstractmethod
    def reset(self, seed: int) -> S:
        """The instance of `seed`."""

    @abstractmethod
    def solved(self, state: S) -> bool:
        """True when nothing is left to do."""

    @abstractmethod
    def actions(self, state: S) -> dict[str, tuple[str, ...]]:
        """What every robot can do alone; robots that can do nothing have ()."""

    @abstractmethod
    def table(self, agent: str) -> tuple[str, ...]:
        """Every action that the robot may ever do, in a fixed order (for learners)."""

    @abstractmethod
    def encode(self, state: S) -> tuple[int, ...]:
        """The observable state as integers; the length depends on the world alone."""

    @abstractmethod
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """Least and greatest value of every integer of `encode`."""

    @abstractmethod
    def rules(self) -> str:
        """The task description of the prompt."""

    @abstractmethod
    def example(self) -> str:
        """A plan in the output format."""

    @abstractmethod
    def shared_text(self, state: S) -> str:
        """What all robots see, "" where every robot sees its own part only."""

    @abstractmethod
    def agent_lines(self, state: S) -> dict[str, str]:
        """Per robot: where it is, what it observes, what it can do."""

    @abstractmethod
    def brief(self, state: S) -> str:
        """The state in one line, for the history."""

    @abstractmethod
    def read(self, text: str) -> S:
        """The state behind `shared_text` and `agent_lines`, in any order of lines.

        What the text does not tell (BoxLift's weights) is filled with the best guess.
        """

    @abstractmethod
    def judge(self, state: S, key: str, action: str) -> E | str:
        """The effect of one action in `state`, or why it is impossible."""

    @abstractmethod
    def objects(self, effect: E) -> tuple[str, ...]:
        """Names of what the action uses up or moves; shared use is a conflict."""

    @abstractmethod
    def put(self, state: S, effects: Sequence[E]) -> S:
        """The state after `effects`, all of which were judged."""

    def collisions(self, before: S, after: S, plan: Plan) -> tuple[Collision, ...]:
        """Collisions that a plan led to; a world without places to share has none."""
        return ()

    def feedback(self, before: S, plan: Plan) -> tuple[str, ...]:
        """What the world reports after a plan was taken."""
        return ()

    def canonical(self, key: str) -> str:
        """A plan's key as this world writes it, where it can be understood."""
        return key.strip()

    def named(self, plan: Plan) -> tuple[str, ...]:
        """Robots that `plan` gives something to do, in the world's order."""
        return tuple(self.split(plan))

    def join(self, choices: Mapping[str, str]) -> dict[str, str]:
        """The plan in which every robot does what it chose."""
        return {agent: choices[agent] for agent in self.agents if agent in choices}

    def split(self, plan: Plan) -> dict[str, str]:
        """What every robot named in `plan` does; the inverse of `join`."""
        return {agent: plan[agent] for agent in self.agents if agent in plan}

    def check(self, state: S, plan: Plan) -> tuple[Refusal, ...]:
        """Why `plan` would be refused; () if a step takes it."""
        return self._resolve(state, plan)[1]

    def step(self, state: S, plan: Plan) -> Step[S]:
        """Take the whole plan or refuse it."""
        after, refusals = self._resolve(state, plan)
        if refusals:
            return Step(state, refusals)
        return Step(after, (), self.collisions(state, after, plan), self.feedback(state, plan))

    def foresee(self, state: S, plan: Plan) -> tuple[Collision, ...]:
        """Collisions that `plan` would lead to; () for a plan that is refused."""
        return self.step(state, plan).collisions

    def plans(self, state: S, *, limit: int = MAX_PLANS) -> Iterator[dict[str, str]]:
        """Every plan that a step takes in `state` under simultaneous application, {} included.

        Raises:
            InputError: if there are more than `limit` combinations to try.
        """
        options = self.actions(state)
        size = 1
        for actions in options.values():
            size *= 1 + len(actions)
            if size > limit:
                raise InputError(
                    f"{self.name} has more than {limit} joint plans here; "
                    "take a smaller world or raise limit="
                )
        rows = [[None, *actions] for actions in options.values()]
        for chosen in itertools.product(*rows):
            pairs = zip(options, chosen, strict=True)
            plan = self.join({agent: action for agent, action in pairs if action is not None})
            if not self.check(state, plan):
                yield plan

    def _resolve(self, state: S, plan: Plan) -> tuple[S, tuple[Refusal, ...]]:
        refusals: list[Refusal] = []
        effects: list[E] = []
        users: dict[str, str] = {}
        now = state
        together = self.apply == "simultaneous"
        for key, action in plan.items():
            effect = self.judge(now, key, action)
            if isinstance(effect, str):
                refusals.append(Refusal(key, action, effect))
                continue
            if not together:
                now = self.put(now, [effect])
                continue
            for name in self.objects(effect):
                if name in users:
                    refusals.append(Refusal(key, action, f"{users[name]} uses {name} already"))
                users.setdefault(name, key)
            effects.append(effect)
        if refusals:
            return state, tuple(refusals)
        return (self.put(state, effects) if together else now), ()


def check_apply(apply: str) -> None:
    """Raise `InputError` for an unknown rule of application."""
    if apply not in get_args(Apply):
        raise InputError(f"apply={apply!r}; choose one of {', '.join(get_args(Apply))}")


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Raise `InputError` unless `value` is an int in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"{name}={value!r}; give an int from {least} to {most}")


def check_grid(rows: object, columns: object, force: bool) -> None:
    """Raise `InputError` for an empty grid, or a large one without `force`."""
    check_whole("rows", rows, 1, 1024)
    check_whole("columns", columns, 1, 1024)
    assert isinstance(rows, int)
    assert isinstance(columns, int)
    if rows * columns > MAX_CELLS and not force:
        raise InputError(
            f"a grid of {rows} x {columns} has {rows * columns} cells, more than {MAX_CELLS}; "
            "prompts grow with every cell: take a smaller grid, or force=True"
        )
