"""Tower of Hanoi: N disks, three pegs, no larger disk on a smaller one.

Disk 1 is the smallest. A move is `[disk, from, to]`. The shortest solution has 2^N - 1 moves and is
the only one of that length; move number t and the state after it have closed forms, so that N in
the thousands can be asked about without being solved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from outlay.errors import InputError
from outlay.evals.puzzles.base import (
    IllegalMoveError,
    Move,
    Puzzle,
    State,
    check_place,
    check_size,
    fields_of,
    short,
)

Pegs = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
_PRINTED = 30
"""Disks up to which the whole solution may be listed (2^30 moves)."""


@dataclass(frozen=True)
class Hanoi(Puzzle):
    """One instance.

    Args:
        n: disks.
        start: peg that they lie on.
        goal: peg that they shall lie on.

    Raises:
        InputError: for n outside 1..10000 or pegs that are equal or not 0, 1 or 2.
    """

    n: int
    start: int = 0
    goal: int = 2

    def __post_init__(self) -> None:
        check_size(self.n)
        for knob in ("start", "goal"):
            if type(getattr(self, knob)) is not int or not 0 <= getattr(self, knob) <= 2:
                raise InputError(f"{knob}={getattr(self, knob)!r}; give a peg: 0, 1 or 2")
        if self.start == self.goal:
            raise InputError(f"start and goal are both peg {self.start}; give two pegs")

    @property
    def name(self) -> str:
        """ "hanoi"."""
        return "hanoi"

    @property
    def key(self) -> str:
        """Disks and pegs."""
        return f"hanoi:n={self.n},pegs={self.start}{self.goal}"

    @property
    def spare(self) -> int:
        """The third peg."""
        return 3 - self.start - self.goal

    def start_state(self) -> Pegs:
        """Three pegs, each from bottom to top."""
        return self._tower(self.start)

    def is_goal(self, state: State) -> bool:
        """All disks lie on the goal peg (in order: nothing else is reachable)."""
        return state == self._tower(self.goal)

    def moves_from(self, state: State) -> Iterator[Move]:
        """At most three: the smallest disk twice, another one once."""
        pegs = cast(Pegs, state)
        for source in range(3):
            for target in range(3):
                top = pegs[source][-1:]
                if top and source != target and (not pegs[target] or pegs[target][-1] > top[0]):
                    yield (top[0], source, target)

    def clean(self, raw: Any) -> Move:
        """A `(disk, from, to)`."""
        disk, source, target = fields_of(raw, "[disk, from, to]", 3)
        if type(disk) is not int:
            raise IllegalMoveError(f"disk {short(disk)} is not a whole number")
        if not 1 <= disk <= self.n:
            raise IllegalMoveError(f"disk {short(disk)} is outside 1..{self.n}")
        return disk, check_place("peg", source, 3), check_place("peg", target, 3)

    def apply(self, state: State, move: Move) -> Pegs:
        """The state after a move."""
        pegs = cast(Pegs, state)
        disk, source, target = move
        if source == target:
            raise IllegalMoveError(f"disk {disk} would stay on peg {source}")
        if not pegs[source]:
            raise IllegalMoveError(f"peg {source} is empty")
        if pegs[source][-1] != disk:
            raise IllegalMoveError(
                f"disk {disk} is not on top of peg {source}; disk {pegs[source][-1]} is"
            )
        if pegs[target] and pegs[target][-1] < disk:
            raise IllegalMoveError(
                f"disk {disk} would lie on the smaller disk {pegs[target][-1]} of peg {target}"
            )
        changed = list(pegs)
        changed[source] = pegs[source][:-1]
        changed[target] = (*pegs[target], disk)
        return cast(Pegs, tuple(changed))

    def run(self, moves: Iterable[Any], state: State) -> tuple[State, int, str]:
        """As `run_plainly`, in one tight loop over mutable pegs."""
        floor = self.n + 1  # a bottom that every disk may lie on
        pegs = [[floor, *peg] for peg in cast(Pegs, state)]
        done = 0
        for raw in moves:
            try:
                disk, source, target = raw
                # A peg's own top is never larger than itself: from == to fails here, too.
                if (
                    type(disk) is int
                    and type(source) is int
                    and type(target) is int
                    and 0 <= source <= 2
                    and target >= 0
                    and (peg := pegs[source])[-1] == disk < pegs[target][-1]
                ):
                    if type(raw) is not list and type(raw) is not tuple:
                        break
                    peg.pop()
                    pegs[target].append(disk)
                    done += 1
                    continue
            except (TypeError, ValueError, IndexError):
                pass
            break
        else:
            return self._frozen(pegs), done, ""
        reached = self._frozen(pegs)
        return reached, done, self.why(raw, reached)

    def min_moves(self) -> int:
        """2^N - 1."""
        return 2**self.n - 1

    def solution(self) -> Iterator[Move]:
        """The only shortest solution."""
        if self.n > _PRINTED:
            raise InputError(
                f"n={self.n} needs 2^{self.n} - 1 moves; list solutions of n <= {_PRINTED}, or ask "
                "for one move with answer='kth'"
            )
        # The well-known bit formula moves a tower from 0 to 2 for odd n, to 1 for even n.
        names = (
            (self.start, self.spare, self.goal)
            if self.n % 2
            else (self.start, self.goal, self.spare)
        )
        for step in range(1, 2**self.n):
            disk = (step & -step).bit_length()
            yield disk, names[(step & (step - 1)) % 3], names[((step | (step - 1)) + 1) % 3]

    def at(self, step: int) -> tuple[Move, State]:
        """Move number `step` (from 1) and the state after it, in O(n)."""
        self.check_step(step)
        disk = (step & -step).bit_length()
        move = (disk, self._peg(disk, step - 1), self._peg(disk, step))
        pegs: list[list[int]] = [[], [], []]
        for each in range(self.n, 0, -1):
            pegs[self._peg(each, step)].append(each)
        return move, cast(Pegs, tuple(map(tuple, pegs)))

    def unique(self) -> bool:
        """Always True."""
        return True

    def describe(self, state: State) -> str:
        """Three pegs, each from bottom to top."""
        return ", ".join(f"peg {index}: {list(peg)}" for index, peg in enumerate(cast(Pegs, state)))

    def _peg(self, disk: int, step: int) -> int:
        """Where `disk` lies after `step` moves of the solution: it moves every 2^disk moves, always
        round the same way."""
        moved = (step + (1 << (disk - 1))) >> disk
        way = (
            (self.start, self.goal, self.spare)
            if (self.n - disk) % 2 == 0
            else (self.start, self.spare, self.goal)
        )
        return way[moved % 3]

    def _tower(self, peg: int) -> Pegs:
        disks = tuple(range(self.n, 0, -1))
        return cast(Pegs, tuple(disks if index == peg else () for index in range(3)))

    @staticmethod
    def _frozen(pegs: list[list[int]]) -> Pegs:
        return cast(Pegs, tuple(tuple(peg[1:]) for peg in pegs))
