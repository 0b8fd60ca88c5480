"""Baselines of LaCache at equal rows: what else may stay, told from row numbers alone.

StreamingLLM ("Efficient Streaming Language Models with Attention Sinks", arXiv 2309.17453) keeps
the first rows and the most recent ones; a sliding window the most recent ones only; random
retention a random subset between both, one for all layers or one per layer; uniform retention every
so-many-th. All hold exactly `capacity` rows after a pass, and use the protocol of LaCache.

Letters: L layers, N rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from outlay.cache.compacted import Retention, RowPolicy
from outlay.cache.ladder import IntArray, State, whole
from outlay.errors import BudgetError

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Ends:
    """The first `start` rows and the most recent ones; see `LadderPolicy` for the arguments."""

    layers: int
    capacity: int
    start: int

    def __post_init__(self) -> None:
        _room(self.capacity, self.start, 1)

    def begin(self) -> State:
        """There is nothing to remember."""
        return ()

    def keep(self, rows: int, state: State) -> tuple[IntArray | None, State]:
        """See `RowPolicy`."""
        if rows <= self.capacity:
            return None, state
        recent = self.capacity - self.start
        kept_N = np.concatenate([np.arange(self.start), np.arange(rows - recent, rows)])
        return np.tile(kept_N, (self.layers, 1)), state


@dataclass(frozen=True)
class Subset:
    """Some rows between the first and the newest.

    Args:
        layers, capacity, start: as in `LadderPolicy`.
        tail: the newest rows, never dropped.
        choice: "uniform", "shared" (random, the same for all layers) or "per_layer" (random).
        seed: of random choices.
    """

    layers: int
    capacity: int
    start: int
    tail: int
    choice: str
    seed: int = 0

    def __post_init__(self) -> None:
        _room(self.capacity, self.start, self.tail)

    def begin(self) -> State:
        """The number of passes so far."""
        return (0,)

    def keep(self, rows: int, state: State) -> tuple[IntArray | None, State]:
        """See `RowPolicy`."""
        if rows <= self.capacity:
            return None, state
        (step,) = state
        middle = rows - self.start - self.tail
        gone = rows - self.capacity
        if self.choice == "uniform":
            # The phase moves, so that a stream that drops one row a step drops everywhere alike.
            phase = 0.5 if not step else step * _GOLDEN % 1
            dropped_G = np.floor((np.arange(gone) + phase) / gone * middle).astype(np.int64)
            kept_M = np.delete(np.arange(middle), dropped_G)
            kept_LM = np.tile(kept_M, (self.layers, 1))
        else:
            rng = np.random.default_rng([self.seed, step])
            sets = self.layers if self.choice == "per_layer" else 1
            order_LM = rng.random((sets, middle)).argsort(axis=1)
            kept_LM = np.sort(order_LM[:, : middle - gone], axis=1)
            kept_LM = np.broadcast_to(kept_LM, (self.layers, middle - gone))
        ends = np.arange(self.start), np.arange(rows - self.tail, rows)
        first_LN, last_LN = (np.tile(each, (self.layers, 1)) for each in ends)
        return np.concatenate([first_LN, self.start + kept_LM, last_LN], axis=1), (step + 1,)


def _room(capacity: int, start: int, tail: int) -> None:
    if capacity < start + tail:
        raise BudgetError(
            f"capacity={capacity} rows are fewer than the first {start} and the newest {tail}, "
            "which are never dropped; raise capacity= or budget=, or lower start= or protect_last="
        )


@dataclass(frozen=True)
class StreamingLLM(Retention):
    """Attention sinks and the most recent rows, in every layer the same.

    `protect_last` has no effect: all that is not at the start is recent.
    """

    def policy(self, layers: int, tokens: int) -> RowPolicy:
        """Sinks and recent rows."""
        return Ends(layers, self.rows(tokens), 4 if self.start is None else self.start)


@dataclass(frozen=True)
class SlidingWindow(Retention):
    """The most recent rows alone; `start` and `protect_last` have no effect."""

    def policy(self, layers: int, tokens: int) -> RowPolicy:
        """Recent rows."""
        return Ends(layers, self.rows(tokens), 0)


@dataclass(frozen=True)
class _Between(Retention):
    def _subset(self, layers: int, tokens: int, choice: str, seed: int) -> Subset:
        tail = layers if self.protect_last is None else self.protect_last
        start = self.first(tokens, tail + 1, tail)
        return Subset(layers, self.rows(tokens), start, tail, choice, seed)


@dataclass(frozen=True)
class RandomRetention(_Between):
    """Random rows between the first and the newest.

    Args:
        per_layer: every layer keeps a set of its own; else all keep the same.
        seed: of the choice.
    """

    per_layer: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("seed", self.seed, 0)

    def policy(self, layers: int, tokens: int) -> RowPolicy:
        """A random subset, drawn anew in every pass."""
        choice = "per_layer" if self.per_layer else "shared"
        return self._subset(layers, tokens, choice, self.seed)


@dataclass(frozen=True)
class UniformStride(_Between):
    """Evenly spaced rows between the first and the newest, the same in every layer."""

    def policy(self, layers: int, tokens: int) -> RowPolicy:
        """Every so-many-th row is dropped."""
        return self._subset(layers, tokens, "uniform", 0)
