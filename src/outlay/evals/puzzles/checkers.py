"""Checker jumping: N red and N blue checkers in a row with one gap change sides.

Red moves right only, blue left only: a slide of one into the gap, or a jump of two over exactly one
checker of the other colour. A move is `[colour, from, to]`. Each pair of different colours passes
in exactly one jump (N^2 jumps) and 2N slides remain, so that every solution has (N+1)^2 - 1 moves;
two exist, mirror images of each other. The canonical one starts with red.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from outlay.evals.puzzles.base import (
    IllegalMoveError,
    Move,
    Puzzle,
    State,
    check_letters,
    check_place,
    check_size,
    fields_of,
    short,
)

_MOST = 1_000
GAP = "_"


@dataclass(frozen=True)
class Checkers(Puzzle):
    """One instance.

    Args:
        n: checkers of each colour.
        right: letter of those that start left and move right.
        left: letter of those that start right and move left.

    Raises:
        InputError: for n outside 1..1000 or letters that are not two different ones.
    """

    n: int
    right: str = "R"
    left: str = "B"

    def __post_init__(self) -> None:
        check_size(self.n, most=_MOST)
        check_letters(right=self.right, left=self.left)

    @property
    def name(self) -> str:
        """ "checkers"."""
        return "checkers"

    @property
    def key(self) -> str:
        """Size and letters."""
        return f"checkers:n={self.n},colours={self.right}{self.left}"

    @property
    def canonical(self) -> str:
        """The one that starts with the right-moving colour."""
        return (
            f"Of the two shortest solutions, take the one whose first move is made by {self.right}."
        )

    def start_state(self) -> str:
        """The row as text."""
        return self.right * self.n + GAP + self.left * self.n

    def is_goal(self, state: State) -> bool:
        """The colours have changed sides."""
        return state == self.left * self.n + GAP + self.right * self.n

    def moves_from(self, state: State) -> Iterator[Move]:
        """At most four: a slide and a jump from either side."""
        row = cast(str, state)
        gap = row.index(GAP)
        for colour, other, step in ((self.right, self.left, 1), (self.left, self.right, -1)):
            near, far = gap - step, gap - 2 * step
            if 0 <= near < len(row) and row[near] == colour:
                yield colour, near, gap
            if 0 <= far < len(row) and row[far] == colour and row[near] == other:
                yield colour, far, gap

    def clean(self, raw: Any) -> Move:
        """A `(colour, from, to)`."""
        colour, source, target = fields_of(raw, "[colour, from, to]", 3)
        if colour not in (self.right, self.left):
            raise IllegalMoveError(
                f"colour {short(colour)} is neither {self.right} nor {self.left}"
            )
        size = 2 * self.n + 1
        return colour, check_place("position", source, size), check_place("position", target, size)

    def apply(self, state: State, move: Move) -> str:
        """The state after a move."""
        row = cast(str, state)
        colour, source, target = move
        if row[source] != colour:
            raise IllegalMoveError(f"position {source} holds {row[source]!r}, not {colour!r}")
        if row[target] != GAP:
            raise IllegalMoveError(f"position {target} is not the gap; it holds {row[target]!r}")
        step = target - source if colour == self.right else source - target
        if step < 0:
            side = "right" if colour == self.right else "left"
            raise IllegalMoveError(f"{colour} moves {side} only")
        if step > 2:
            raise IllegalMoveError(f"{colour} would move {step} places; 1 or 2 are allowed")
        middle = row[(source + target) // 2]
        if step == 2 and middle == colour:
            raise IllegalMoveError(f"{colour} would jump over its own colour")
        cells = list(row)
        cells[source], cells[target] = GAP, colour
        return "".join(cells)

    def run(self, moves: Iterable[Any], state: State) -> tuple[State, int, str]:
        """As `run_plainly`, in one tight loop over a mutable row."""
        cells = list(cast(str, state))
        size, gap, right, left = len(cells), cells.index(GAP), self.right, self.left
        done = 0
        for raw in moves:
            try:
                colour, source, target = raw
                if (
                    type(source) is int
                    and type(target) is int
                    and target == gap
                    and 0 <= source < size
                    and cells[source] == colour
                ):
                    step = target - source if colour == right else source - target
                    if step == 1 or (
                        step == 2
                        and cells[(source + target) >> 1] == (left if colour == right else right)
                    ):
                        if type(raw) is not list and type(raw) is not tuple:
                            break
                        cells[target] = colour
                        cells[source] = GAP
                        gap = source
                        done += 1
                        continue
            except (TypeError, ValueError):
                pass
            break
        else:
            return "".join(cells), done, ""
        reached = "".join(cells)
        return reached, done, self.why(raw, reached)

    def min_moves(self) -> int:
        """(N+1)^2 - 1."""
        return (self.n + 1) ** 2 - 1

    def solution(self) -> Iterator[Move]:
        """The solution that starts with the right-moving colour.

        Colours take turns in runs of 1, 2, ..., N-1, N, N, N, N-1, ..., 1 moves; inside a run the
        mover is the only one of its colour that can reach the gap.
        """
        row = list(self.start_state())
        gap, n = self.n, self.n
        runs = [*range(1, n), n, n, n, *range(n - 1, 0, -1)]
        for index, length in enumerate(runs):
            colour, step = (self.right, 1) if index % 2 == 0 else (self.left, -1)
            for _ in range(length):
                source = gap - step
                if not 0 <= source < len(row) or row[source] != colour:
                    source -= step
                row[gap], row[source] = colour, GAP
                yield colour, source, gap
                gap = source

    def unique(self) -> bool:
        """True: `canonical` names one of the two."""
        return True

    def describe(self, state: State) -> str:
        """The row as a list of letters."""
        return "board: " + " ".join(cast(str, state))
