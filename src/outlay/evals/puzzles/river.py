"""River crossing: N actors and their N agents cross with a boat for k, nobody left unprotected.

A move is the list of 1..k passengers. A group is safe if no actor in it is with a foreign agent
while its own agent is absent; both banks must be safe after every move, and the boat during it.

Solvable exactly for k = 2 with N <= 3, k = 3 with N <= 5, and k >= 4 with any N (k = 1 never). The
paper's k = 3 with N >= 6 has no solution, which arXiv 2506.09250 and 2507.01231 point out. All
lengths come from a breadth-first search over *counts*: pairs are interchangeable, and a safe state
has all pairs together, or all agents on one bank; so the search has O(N) states and is exact for
any N. An unsolvable instance gets a certificate: the number of states that were exhausted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb, factorial
from typing import Any, cast

from outlay.errors import InputError
from outlay.evals.puzzles.base import (
    IllegalMoveError,
    Move,
    Puzzle,
    State,
    check_letters,
    check_size,
    short,
)

_MOST = 500
_BOAT = 12
_INDEX = re.compile("[1-9][0-9]{0,5}")

Banks = tuple[int, int, int]  # side of the boat, actors left (bits), agents left (bits)
# Pairs with both left, actor left only, agent left only, both right; then the boat's side.
Counts = tuple[int, int, int, int, int]
# Of the bank with the boat: pairs together from which the actor, the agent, both go; single actors,
# single agents.
Load = tuple[int, int, int, int, int]


def paper_boat(n: int) -> int:
    """The paper's boat: 2 places for N <= 3, 3 places above."""
    return 2 if n <= 3 else 3


@dataclass(frozen=True)
class River(Puzzle):
    """One instance.

    Args:
        n: pairs.
        k: places in the boat.
        actor, agent: letters of the names, as in "a_1" and "A_1".

    Raises:
        InputError: for n outside 1..500, k outside 1..12, or letters that are not two.
    """

    n: int
    k: int
    actor: str = "a"
    agent: str = "A"

    def __post_init__(self) -> None:
        check_size(self.n, most=_MOST)
        if type(self.k) is not int or not 1 <= self.k <= _BOAT:
            raise InputError(f"k={self.k!r}; give the boat 1 to {_BOAT} places")
        check_letters(actor=self.actor, agent=self.agent)

    @property
    def name(self) -> str:
        """ "river"."""
        return "river"

    @property
    def key(self) -> str:
        """Pairs, boat and letters."""
        return f"river:n={self.n},k={self.k},names={self.actor}{self.agent}"

    def start_state(self) -> Banks:
        """The boat's side (0 left), and who is on the left bank, as bits."""
        everyone = (1 << self.n) - 1
        return 0, everyone, everyone

    def is_goal(self, state: State) -> bool:
        """Nobody is left."""
        return state == (1, 0, 0)

    def moves_from(self, state: State) -> Iterator[Move]:
        """All legal loads."""
        side, actors, agents = cast(Banks, state)
        everyone = (1 << self.n) - 1
        here = (actors, agents) if side == 0 else (everyone & ~actors, everyone & ~agents)
        people = [
            f"{letter}_{index + 1}"
            for letter, mask in ((self.actor, here[0]), (self.agent, here[1]))
            for index in range(self.n)
            if mask >> index & 1
        ]
        for size in range(1, self.k + 1):
            for load in combinations(people, size):
                if not self.why(load, state):
                    yield load

    def clean(self, raw: Any) -> Move:
        """Distinct passengers, in the order given."""
        if not isinstance(raw, (list, tuple)):
            raise IllegalMoveError(f"{short(raw)} is not a list of passengers")
        if not 1 <= len(raw) <= self.k:
            raise IllegalMoveError(f"{len(raw)} passengers; the boat takes 1 to {self.k}")
        names = []
        for item in raw:
            name = item.strip() if isinstance(item, str) else item
            self._person(name)
            if name in names:
                raise IllegalMoveError(f"{name} is named twice")
            names.append(name)
        return tuple(names)

    def apply(self, state: State, move: Move) -> Banks:
        """The state after a crossing."""
        side, actors, agents = cast(Banks, state)
        everyone = (1 << self.n) - 1
        load_actors = load_agents = 0
        for name in move:
            is_agent, index = self._person(name)
            bank = agents if is_agent else actors
            if (bank >> index & 1) == side:
                raise IllegalMoveError(f"{name} is not on the {('left', 'right')[side]} bank")
            if is_agent:
                load_agents |= 1 << index
            else:
                load_actors |= 1 << index
        actors ^= load_actors
        agents ^= load_agents
        groups = (
            ("the left bank", actors, agents),
            ("the right bank", everyone & ~actors, everyone & ~agents),
            ("the boat", load_actors, load_agents),
        )
        for place, some_actors, some_agents in groups:
            if some_agents and (alone := some_actors & ~some_agents):
                who = (alone & -alone).bit_length()
                raise IllegalMoveError(
                    f"on {place}, {self.actor}_{who} would be with another agent without "
                    f"{self.agent}_{who}"
                )
        return 1 - side, actors, agents

    def solvable(self) -> bool:
        """k = 2: N <= 3; k = 3: N <= 5; k >= 4: always; k = 1: never."""
        return self.k >= 4 or (self.k == 3 and self.n <= 5) or (self.k == 2 and self.n <= 3)

    def bound(self) -> str:
        """The rule of solvability."""
        return (
            "river crossing is solvable only for k=2 with n <= 3, k=3 with n <= 5, and k >= 4 "
            f"(here n={self.n}, k={self.k}; a search over all states confirms it)"
        )

    def min_moves(self) -> int | None:
        """Exact, by search over counts."""
        return _search(self.n, self.k).length

    def solution(self) -> Iterator[Move]:
        """One shortest solution."""
        if not self.solvable():
            raise InputError(f"{self.key} has no solution: {self.bound()}")
        state: State = self.start_state()
        for load in _search(self.n, self.k).loads:
            move = self._people(cast(Banks, state), load)
            state = self.apply(state, move)
            yield move

    def unique(self) -> bool:
        """True where one list of loads alone is shortest."""
        return _search(self.n, self.k).solutions == 1

    def describe(self, state: State) -> str:
        """Both banks and the boat."""
        side, actors, agents = cast(Banks, state)
        banks: list[list[str]] = [[], []]
        for letter, mask in ((self.actor, actors), (self.agent, agents)):
            for index in range(self.n):
                banks[0 if mask >> index & 1 else 1].append(f"{letter}_{index + 1}")
        return (
            f"left bank: [{', '.join(banks[0])}], right bank: [{', '.join(banks[1])}], boat: "
            f"{('left', 'right')[side]}"
        )

    def certificate(self) -> Certificate:
        """What the search exhausted: proof of the optimum, or that there is no solution."""
        return _search(self.n, self.k)

    def _person(self, name: Any) -> tuple[bool, int]:
        if isinstance(name, str):
            letter, _, number = name.partition("_")
            if letter in (self.actor, self.agent) and _INDEX.fullmatch(number):
                index = int(number) - 1
                if index < self.n:
                    return letter == self.agent, index
        raise IllegalMoveError(
            f"{short(name)} is nobody here; passengers are {self.actor}_1..{self.actor}_{self.n} "
            f"and {self.agent}_1..{self.agent}_{self.n}"
        )

    def _people(self, state: Banks, load: Load) -> Move:
        """Named passengers for a load, the lowest numbers first."""
        side, actors, agents = state
        everyone = (1 << self.n) - 1
        if side:
            actors, agents = everyone & ~actors, everyone & ~agents
        together = [i for i in range(self.n) if actors >> i & agents >> i & 1]
        lone_actors = [i for i in range(self.n) if actors >> i & ~(agents >> i) & 1]
        lone_agents = [i for i in range(self.n) if agents >> i & ~(actors >> i) & 1]
        only_actor, only_agent, both, single_actor, single_agent = load
        pick = iter(together)
        names = []
        for _ in range(both):
            index = next(pick)
            names += [f"{self.actor}_{index + 1}", f"{self.agent}_{index + 1}"]
        names += [f"{self.actor}_{next(pick) + 1}" for _ in range(only_actor)]
        names += [f"{self.agent}_{next(pick) + 1}" for _ in range(only_agent)]
        names += [f"{self.actor}_{index + 1}" for index in lone_actors[:single_actor]]
        names += [f"{self.agent}_{index + 1}" for index in lone_agents[:single_agent]]
        return tuple(names)


@dataclass(frozen=True)
class Certificate:
    """What an exhaustive search over counts found.

    Args:
        length: moves of a shortest solution, None where none exists.
        loads: one shortest solution, as loads.
        solutions: number of shortest solutions with named passengers.
        classes: count states visited.
        states: states with named people that they stand for.
    """

    length: int | None
    loads: tuple[Load, ...]
    solutions: int
    classes: int
    states: int


def _safe(counts: Counts) -> bool:
    both_left, actor_left, agent_left, both_right, _ = counts
    # Left: an actor without its agent, and any agent; right: likewise.
    left = actor_left and (both_left or agent_left)
    right = agent_left and (both_right or actor_left)
    return not left and not right


def _loads(counts: Counts, k: int) -> Iterator[tuple[Load, Counts, int]]:
    """Legal loads of the boat, the counts after each, and in how many ways it can be named."""
    both_left, actor_left, agent_left, both_right, side = counts
    if side == 0:
        pairs, actors, agents = both_left, actor_left, agent_left
    else:
        pairs, actors, agents = both_right, agent_left, actor_left
    for both in range(min(pairs, k // 2) + 1):
        for single_actor in range(min(actors, k - 2 * both) + 1):
            room = k - 2 * both - single_actor
            for single_agent in range(min(agents, room) + 1):
                rest = room - single_agent
                for only_actor in range(min(pairs - both, rest) + 1):
                    for only_agent in range(min(pairs - both - only_actor, rest - only_actor) + 1):
                        load = (only_actor, only_agent, both, single_actor, single_agent)
                        if not any(load):
                            continue
                        boat_actors = only_actor + single_actor
                        if boat_actors and (both or only_agent or single_agent):
                            continue  # an actor without its own agent, and a foreign one
                        after = _after(counts, load)
                        if _safe(after):
                            ways = (
                                comb(pairs, both)
                                * comb(pairs - both, only_actor)
                                * comb(pairs - both - only_actor, only_agent)
                                * comb(actors, single_actor)
                                * comb(agents, single_agent)
                            )
                            yield load, after, ways


def _after(counts: Counts, load: Load) -> Counts:
    both_left, actor_left, agent_left, both_right, side = counts
    only_actor, only_agent, both, single_actor, single_agent = load
    if side == 0:
        return (
            both_left - both - only_actor - only_agent,
            actor_left + only_agent - single_actor,
            agent_left + only_actor - single_agent,
            both_right + both + single_actor + single_agent,
            1,
        )
    return (
        both_left + both + single_actor + single_agent,
        actor_left + only_actor - single_agent,
        agent_left + only_agent - single_actor,
        both_right - both - only_actor - only_agent,
        0,
    )


@lru_cache(maxsize=256)
def _search(n: int, k: int) -> Certificate:
    """Breadth-first search over counts from everyone left to everyone right."""
    start, goal = (n, 0, 0, 0, 0), (0, 0, 0, n, 1)
    parent: dict[Counts, tuple[Counts, Load] | None] = {start: None}
    depth, named = {start: 0}, {start: 1}
    frontier = [start]
    while frontier:
        following: list[Counts] = []
        for counts in frontier:
            for load, after, ways in _loads(counts, k):
                if after not in parent:
                    parent[after] = counts, load
                    depth[after], named[after] = depth[counts] + 1, 0
                    following.append(after)
                if depth[after] == depth[counts] + 1:
                    named[after] += named[counts] * ways
        frontier = following
    states = sum(
        factorial(n) // (factorial(a) * factorial(b) * factorial(c) * factorial(d))
        for a, b, c, d, _ in parent
    )
    if goal not in parent:
        return Certificate(None, (), 0, len(parent), states)
    loads: list[Load] = []
    at: Counts = goal
    while (step := parent[at]) is not None:
        at = step[0]
        loads.append(step[1])
    return Certificate(depth[goal], tuple(reversed(loads)), named[goal], len(parent), states)
