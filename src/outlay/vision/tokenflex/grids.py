"""How many visual tokens an image gets: a count, or a grid of rows and columns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from outlay.errors import InputError

Count = int | tuple[int, int]
"""Visual tokens of an image: a square number, or rows and columns."""


@dataclass(frozen=True)
class Grid:
    """Rows and columns of visual tokens.

    Args:
        rows, columns: at least 1.
    """

    rows: int
    columns: int

    @property
    def count(self) -> int:
        """Tokens."""
        return self.rows * self.columns


def grid_of(count: Count, most: Grid | None = None, *, knob: str = "n") -> Grid:
    """The grid of a count.

    Args:
        count: a square number, or (rows, columns).
        most: the encoder's grid; None checks nothing against it.
        knob: named in errors.

    Raises:
        InputError: for a count that is not a square, or out of range.
    """
    if isinstance(count, tuple):
        if len(count) != 2 or not all(_positive(side) for side in count):
            raise InputError(f"{knob}={count!r}; a grid is (rows, columns), both at least 1")
        grid = Grid(*count)
    else:
        if not _positive(count):
            raise InputError(f"{knob}={count!r}; must be an int of at least 1, or (rows, columns)")
        if most is not None and count > most.count:
            raise InputError(
                f"{knob}={count}; the encoder gives {most.rows} x {most.columns} = {most.count} "
                f"tokens, so choose 1 to {most.count}"
            )
        side = math.isqrt(count)
        if side * side != count:
            raise InputError(
                f"{knob}={count} is not a square number; the nearest is {_nearest(count, most)}, "
                "or give (rows, columns)"
            )
        grid = Grid(side, side)
    if most is not None and (grid.rows > most.rows or grid.columns > most.columns):
        raise InputError(
            f"{knob}={count!r} asks for {grid.rows} x {grid.columns} tokens; the encoder gives "
            f"{most.rows} x {most.columns}, and pooling cannot add any"
        )
    return grid


def check_counts(counts: Iterable[Count], most: Grid | None = None) -> tuple[Grid, ...]:
    """The grids of several counts, which must rise.

    Raises:
        InputError: for none, for a count that cannot be, or for counts that do not rise.
    """
    grids = tuple(grid_of(count, most, knob="counts") for count in counts)
    if not grids:
        raise InputError("counts is empty; give at least one, such as counts=(64, 144, 256)")
    sizes = [grid.count for grid in grids]
    if any(a >= b for a, b in pairwise(sizes)):
        raise InputError(f"counts={tuple(sizes)}; give every count once, from few to many")
    return grids


def bins(before: int, after: int) -> list[tuple[int, int]]:
    """Where adaptive pooling cuts one axis: [floor(i g / n), ceil((i + 1) g / n)).

    Bins overlap where `after` does not divide `before`, so patches at their borders count twice.
    """
    return [(i * before // after, -(-(i + 1) * before // after)) for i in range(after)]


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _nearest(count: int, most: Grid | None) -> int:
    side = math.isqrt(count)
    above = (side + 1) ** 2
    fits = most is None or side + 1 <= min(most.rows, most.columns)
    return above if fits and above - count < count - side * side else side * side
