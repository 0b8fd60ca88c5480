"""The ladder: which rows each layer of a cache keeps, as arithmetic on integers.

From "LaCache: Ladder-Shaped KV Caching for Efficient Long-Context Modeling of Large Language
Models", arXiv 2507.14204, section 3, in the form of its published code. All layers hold the same
number of rows; one ladder replaces P consecutive rows by A of them, another A in every layer, and
so frees R = P - A rows. Ladders are cut at a cursor that moves on from pass to pass; at the end of
the cache it goes back to the start, and what was thinned before is thinned again.

Where this differs from the published code: a pass whose last ladder would reach into the newest
rows starts over instead, so that these rows are always there; and when a prompt far above the
capacity is thinned by a stride t > 1 with A > 1, offsets end at t * R, since larger ones name rows
of the next ladder twice.

Letters: L layers, N rows, J ladders, A rows kept of each, C capacity, S span, O overlap.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from outlay.errors import BudgetError, InputError

Order = Literal["modulo", "staircase", "shuffled"]
ORDERS: tuple[Order, ...] = get_args(Order)
State = tuple[int, ...]
IntArray = npt.NDArray[np.int64]

MOST = 2**24  # rows or layers; beyond it a number is a mistake


def whole(name: str, value: object, least: int) -> int:
    """`value`, if it is an int of at least `least`.

    Raises:
        InputError: naming the knob.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
        raise InputError(f"{name}={value!r}; give a whole number from {least} to {MOST}")
    return value


@dataclass(frozen=True)
class LadderPolicy:
    """Which rows stay when a cache of `layers` layers overflows.

    Args:
        layers: L.
        capacity: C, rows per layer.
        span: S, layers that keep a token.
        overlap: O, layers that two neighbours share; below S.
        start: the first rows, never dropped.
        protect_last: the newest rows, never dropped; None for L.
        ladder: "modulo" puts layer i on rung i mod (R + 1), as the published code does;
            "staircase" groups neighbouring layers, as the paper's figures do; "shuffled" (ours)
            deals the rungs of every ladder anew, evenly over the layers, so that no two layers
            lose the same tokens for ever.
        compensate: after the first overflow the capacity is C + R // 2. The length swings by up
            to R rows, and its average is then C.

    Raises:
        InputError: for sizes that are no whole numbers, or a ladder that frees nothing.
        BudgetError: for a capacity that leaves no room for a ladder; names the least one.
    """

    layers: int
    capacity: int
    span: int
    overlap: int = 0
    start: int = 4
    protect_last: int | None = None
    ladder: Order = "modulo"
    compensate: bool = True

    def __post_init__(self) -> None:
        whole("layers", self.layers, 1)
        whole("capacity", self.capacity, 1)
        whole("start", self.start, 0)
        if self.protect_last is not None:
            whole("protect_last", self.protect_last, 1)
        check_order(self.ladder)
        whole("span", self.span, 1)
        if self.span > self.layers:
            raise InputError(f"span={self.span} is more than the model's {self.layers} layers")
        whole("overlap", self.overlap, 0)
        if self.overlap >= self.span:
            raise InputError(f"overlap={self.overlap}; must be below span={self.span}")
        if self.freed < 1:
            raise InputError(
                f"span={self.span} with overlap={self.overlap} on {self.layers} layers keeps every "
                "row: a ladder frees nothing; lower span= or overlap="
            )
        if self.capacity < self.least:
            raise BudgetError(
                f"capacity={self.capacity} rows leave no room for a ladder between "
                f"start={self.start} and the newest {self.tail} rows: the least is {self.least}; "
                "raise capacity= or budget=, or lower start= or protect_last="
            )

    @property
    def consumed(self) -> int:
        """P, rows that one ladder replaces."""
        return 1 + _ceil(self.layers - self.span, self.span - self.overlap)

    @property
    def kept(self) -> int:
        """A, rows that each layer keeps of them."""
        return min(_ceil(self.span, self.span - self.overlap), self.consumed)

    @property
    def freed(self) -> int:
        """R, rows that one ladder frees in every layer."""
        return self.consumed - self.kept

    @property
    def tail(self) -> int:
        """The newest rows, never dropped."""
        return self.layers if self.protect_last is None else self.protect_last

    @property
    def least(self) -> int:
        """The smallest feasible capacity."""
        return self.start + self.tail + self.kept + max(0, self.consumed - 2)

    @property
    def ceiling(self) -> int:
        """C', rows that may stay after a pass."""
        return self.capacity + (self.freed // 2 if self.compensate else 0)

    def begin(self) -> State:
        """The state of an empty cache: cursor, and 1 once it has overflowed."""
        return self.start, 0

    def keep(self, rows: int, state: State) -> tuple[IntArray | None, State]:
        """What stays of `rows` rows.

        Args:
            rows: N, in every layer.
            state: from `begin` or the last call.

        Returns:
            Indices of the rows that stay, (L, N') and increasing in every layer, or None where
            all stay; and the new state.
        """
        cursor, overflowed = state
        if rows <= (self.ceiling if overflowed else self.capacity):
            return None, state
        excess = rows - self.ceiling
        if excess <= 0:
            return None, (cursor, 1)
        count = _ceil(excess, self.freed)
        fits = (rows - self.tail - cursor) // self.consumed
        if count <= fits:
            return self._cut(rows, cursor, count, 1), (cursor + count * self.kept, 1)
        # Start over: to the end first, then the oldest rows once more.
        first = min(fits, (self.ceiling - cursor - self.tail) // self.kept)
        once_LN = self._cut(rows, cursor, first, 1)
        excess -= first * self.freed
        stride, count = self._stride(once_LN.shape[1], excess)
        again_LN = self._cut(once_LN.shape[1], self.start, count, stride)
        return np.take_along_axis(once_LN, again_LN, axis=1), (self.start + count * self.kept, 1)

    def indices(self, rows: int, state: State | None = None) -> IntArray:
        """`keep`'s indices alone, (L, N'); all rows where nothing is dropped."""
        kept_LN, _ = self.keep(rows, self.begin() if state is None else state)
        if kept_LN is None:
            return np.tile(np.arange(rows), (self.layers, 1))
        return kept_LN

    def _cut(self, rows: int, cursor: int, count: int, stride: int) -> IntArray:
        """`count` ladders of rows `stride` apart, cut at the cursor."""
        wide = 1 + stride * (self.consumed - 1)
        rungs = stride * self.freed + 1
        place_LJ = np.tile(np.arange(self.layers)[:, None], count)
        if self.ladder == "shuffled":
            place_LJ = np.random.default_rng([cursor, rows]).permuted(place_LJ, axis=0)
        staircase = self.ladder == "staircase"
        offset_LJ = place_LJ * rungs // self.layers if staircase else place_LJ % rungs
        foot_LJ = cursor + wide * np.arange(count) + offset_LJ
        ladders_LJA = foot_LJ[..., None] + stride * np.arange(self.kept)
        ladders_LM = ladders_LJA.reshape(self.layers, count * self.kept)
        before_LK = np.tile(np.arange(cursor), (self.layers, 1))
        after_LK = np.tile(np.arange(cursor + wide * count, rows), (self.layers, 1))
        return np.concatenate([before_LK, ladders_LM, after_LK], axis=1)

    def _stride(self, rows: int, excess: int) -> tuple[int, int]:
        """Stride and number of ladders that free `excess` rows from the start on."""
        room = self.ceiling - self.start - self.tail
        asked = _ceil(excess, room // self.kept * self.freed)
        # From this stride on one ladder is enough; it fits in any feasible capacity.
        widest = max(1, _ceil(excess + self.kept - 1, self.consumed - 1))
        strides: Iterable[int] = itertools.chain(range(asked, widest + 1), range(1, widest + 1))
        for stride in strides:
            wide = 1 + stride * (self.consumed - 1)
            count = _ceil(excess, wide - self.kept)
            if self.start + count * wide <= rows - self.tail:
                return stride, count
        raise AssertionError("a feasible capacity has room for one ladder")


def check_order(ladder: str) -> None:
    """Raise `InputError` unless `ladder` is an order."""
    if ladder not in ORDERS:
        raise InputError(f"ladder={ladder!r}; choose {', '.join(ORDERS[:-1])} or {ORDERS[-1]}")


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
