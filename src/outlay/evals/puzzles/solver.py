"""Breadth-first search over a puzzle's states: shortest solutions, their number, certificates.

Every closed form of this package is tested against it. A search that ends without the goal has
visited all reachable states: their number is the certificate that no solution exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from random import Random

from outlay.errors import InputError
from outlay.evals.puzzles.base import Move, Puzzle, State
from outlay.evals.puzzles.river import River

LIMIT = 500_000
"""States after which a search gives up."""

_WALKED = 20_000  # moves of the canonical solution that are looked at for the branching factor


@dataclass(frozen=True)
class Search:
    """What a breadth-first search found.

    Args:
        path: a shortest solution, None where none exists.
        solutions: how many shortest solutions exist.
        states: states visited; where `path` is None, all reachable ones.
    """

    path: tuple[Move, ...] | None
    solutions: int
    states: int

    @property
    def length(self) -> int | None:
        """Moves of a shortest solution."""
        return None if self.path is None else len(self.path)


@lru_cache(maxsize=64)
def shortest(puzzle: Puzzle, *, limit: int = LIMIT) -> Search:
    """Search from the start, level by level, until a level holds the goal.

    Raises:
        InputError: if more than `limit` states are met before the goal.
    """
    start = puzzle.start_state()
    parent: dict[State, tuple[State, Move] | None] = {start: None}
    depth, ways = {start: 0}, {start: 1}
    frontier = [start]
    goal = start if puzzle.is_goal(start) else None
    while frontier and goal is None:
        following: list[State] = []
        for state in frontier:
            for move in puzzle.moves_from(state):
                after = puzzle.apply(state, move)
                if after not in parent:
                    if len(parent) >= limit:
                        raise InputError(
                            f"{puzzle.key} has more than {limit} states; raise limit= or lower n"
                        )
                    parent[after] = state, move
                    depth[after], ways[after] = depth[state] + 1, 0
                    following.append(after)
                if depth[after] == depth[state] + 1:
                    ways[after] += ways[state]
        frontier = following
        goal = next((state for state in frontier if puzzle.is_goal(state)), None)
    if goal is None:
        return Search(None, 0, len(parent))
    moves: list[Move] = []
    at: State = goal
    while (step := parent[at]) is not None:
        at = step[0]
        moves.append(step[1])
    return Search(tuple(reversed(moves)), ways[goal], len(parent))


def random_walk(puzzle: Puzzle, length: int, seed: int) -> list[Move]:
    """`length` random legal moves from the start: a baseline, and material for tests."""
    random, state, moves = Random(f"{puzzle.key}:{seed}"), puzzle.start_state(), []
    for _ in range(length):
        options = list(puzzle.moves_from(state))
        if not options:
            break
        move = random.choice(options)
        state = puzzle.apply(state, move)
        moves.append(move)
    return moves


@dataclass(frozen=True)
class Difficulty:
    """How hard an instance is; the length of a solution alone does not say it.

    Args:
        moves: of a shortest solution, None where none exists.
        branching: legal moves per state, on average along the canonical solution (its first 20,000
            states).
        solutions: how many shortest solutions exist; None where that is out of reach.
        depth: states of the search tree's levels up to the goal: states that a breadth-first search
            visits; None where that is out of reach.
    """

    moves: int | None
    branching: float | None
    solutions: int | None
    depth: int | None


@lru_cache(maxsize=128)
def difficulty(puzzle: Puzzle, *, limit: int = 100_000) -> Difficulty:
    """The difficulty triple: moves, branching, and the number of solutions with the search's size.

    Args:
        puzzle: any instance.
        limit: states that may be visited.
    """
    solutions: int | None
    depth: int | None
    if isinstance(puzzle, River):
        certificate = puzzle.certificate()
        solutions, depth = certificate.solutions, certificate.states
    else:
        solutions, depth = {"hanoi": 1, "checkers": 2}.get(puzzle.name), None
        # A level doubles the states at least: a search of larger ones only wastes its limit.
        if 2**puzzle.n <= limit:
            with suppress(InputError):
                search = shortest(puzzle, limit=limit)
                solutions, depth = search.solutions, search.states
    if not puzzle.solvable():
        return Difficulty(None, None, solutions, depth)
    branching = None
    if puzzle.name != "river" or puzzle.n <= 8:  # loads of a large boat are too many to list
        state, counts = puzzle.start_state(), []
        for move in islice(_steps(puzzle), _WALKED):
            counts.append(sum(1 for _ in puzzle.moves_from(state)))
            state = puzzle.apply(state, move)
        branching = sum(counts) / len(counts) if counts else None
    return Difficulty(puzzle.known_optimum(), branching, solutions, depth)


def _steps(puzzle: Puzzle) -> Iterator[Move]:
    try:
        yield from puzzle.solution()
    except InputError:
        return
