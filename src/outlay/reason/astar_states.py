"""The states of an A* search, what a step costs, and the queue that orders them."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from outlay.reason.search import Node

Cost = Literal["increase", "decrease", "zero", "length", "logprob"]
COSTS: tuple[Cost, ...] = get_args(Cost)


@dataclass(frozen=True)
class State:
    """A partial or finished solution in the queue.

    Args:
        node: the branch, its steps and their scores.
        reward: r, the verifier's score of the steps so far.
        h: what seems to be missing, 1 - r (centred where the search calibrates).
        g: cost of the path.
        depth: steps from the prompt.
        goal: it ended by itself and carries an answer.
    """

    node: Node
    reward: float = 0.0
    h: float = 1.0
    g: float = 0.0
    depth: int = 0
    goal: bool = False

    @property
    def f(self) -> float:
        """What the queue is ordered by."""
        return self.g + self.h

    @property
    def key(self) -> tuple[float, float, int, int]:
        """Order of the queue, ties included: f, h, deeper first, older first."""
        return self.f, self.h, -self.depth, self.node.order


def step_cost(
    cost: Cost, lam: float, parent: State, h: float, logprobs: Sequence[float] | None
) -> float:
    """Cost of the step from `parent` to a state with heuristic `h`.

    Args:
        cost: the rule, see `AStarDecoding`.
        lam: weight of the rules "length" and "logprob".
        parent: where the step starts; nothing is known about the prompt, so leaving it neither
            raises nor lowers h.
        h: of the new state.
        logprobs: of the step's tokens, for "logprob".
    """
    if cost == "length":
        return lam
    if cost == "logprob":
        return -lam * sum(logprobs) / len(logprobs) if logprobs else 0.0
    if cost == "zero" or parent.depth == 0:
        return 0.0
    return max(0.0, h - parent.h if cost == "increase" else parent.h - h)


class Frontier:
    """The open states, best first; keeps the `cap` best where there is a cap."""

    def __init__(self, cap: int | None = None) -> None:
        self.cap = cap
        self._heap: list[tuple[tuple[float, float, int, int], State]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, state: State) -> None:
        """Add a state."""
        heapq.heappush(self._heap, (state.key, state))

    def pop(self) -> State:
        """Take the best state out."""
        return heapq.heappop(self._heap)[1]

    def prune(self) -> list[State]:
        """Drop what is beyond the cap, and return it."""
        if self.cap is None or len(self._heap) <= self.cap:
            return []
        self._heap.sort()
        dropped = [state for _, state in self._heap[self.cap :]]
        del self._heap[self.cap :]
        return dropped

    def states(self) -> list[State]:
        """All open states, best first."""
        return [state for _, state in sorted(self._heap)]
