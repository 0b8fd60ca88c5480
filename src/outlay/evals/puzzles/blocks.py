"""Blocks world: three stacks, N labelled blocks, only tops move.

Stack 0 holds the first half of the labels (bottom to top, the odd one too), stack 1 the rest, stack
2 nothing. The goal is one stack that interleaves both from their tops down: N = 4 gives D B C A,
and for odd N the longer stack begins (C E B D A). A move is `[block, from, to]`.

Sources disagree about the goal stack, and it matters: on stack 0 the shortest solution has 2N - 1
moves (0 for N = 1), on stack 2 only N. Proof of 2N - 1: when stack 0 is empty for the last time,
blocks of stack 0 that moved once lie reversed, so of those on one stack only the lowest can do with
one more move: all but two of them need three moves. For even N the second exception costs a move,
too: the top block of stack 1 must leave from under it. `solution` attains the bound. Other layouts
(`layout`, `target`) are solved by search, up to 7 blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
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

_MOST = 2_000
_SEARCHED = 7
_LONGEST_LABEL = 20

Stacks = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


def block_names(n: int) -> tuple[str, ...]:
    """A, B, C, ... Z; above 26 blocks A1, A2, ..."""
    if n <= 26:
        return tuple(chr(ord("A") + index) for index in range(n))
    return tuple(f"A{index + 1}" for index in range(n))


@dataclass(frozen=True)
class Blocks(Puzzle):
    """One instance.

    Args:
        n: blocks.
        goal_stack: where the goal is built: 0 (2N - 1 moves) or 2 (N moves).
        labels: names in the order A, B, C, ...; () for those.
        layout: three stacks to start from, each from bottom to top; None for the paper's.
        target: three stacks to end with; None for the paper's. Both or none are given.

    Raises:
        InputError: for sizes, stacks or labels that do not fit, or a target that is not a
            rearrangement of the layout.
    """

    n: int
    goal_stack: int = 0
    labels: tuple[str, ...] = ()
    layout: Stacks | None = None
    target: Stacks | None = None

    def __post_init__(self) -> None:
        check_size(self.n, most=_MOST)
        if type(self.goal_stack) is not int or self.goal_stack not in (0, 2):
            raise InputError(
                f"goal_stack={self.goal_stack!r}; give 0 or 2: their shortest solutions differ in "
                "length, so results must not be mixed"
            )
        object.__setattr__(self, "labels", tuple(self.labels) or block_names(self.n))
        self._check_labels()
        if (self.layout is None) != (self.target is None):
            raise InputError("layout and target belong together; give both or none")
        if self.layout is not None and self.target is not None:
            for knob, stacks in (("layout", self.layout), ("target", self.target)):
                if len(stacks) != 3:
                    raise InputError(f"{knob} has {len(stacks)} stacks; give three")
                object.__setattr__(self, knob, tuple(map(tuple, stacks)))
            given = sorted(block for stack in self.layout for block in stack)
            if given != sorted(self.labels):
                raise InputError(f"layout holds {given}, the labels are {sorted(self.labels)}")
            wanted = sorted(block for stack in self.target for block in stack)
            if wanted != given:
                raise InputError(
                    f"target holds {wanted}, which is not a rearrangement of the layout's {given}"
                )

    def _check_labels(self) -> None:
        if len(self.labels) != self.n or len(set(self.labels)) != self.n:
            raise InputError(f"labels={self.labels!r:.80}; give {self.n} different names")
        for label in self.labels:
            if not isinstance(label, str) or not label.isalnum() or len(label) > _LONGEST_LABEL:
                raise InputError(
                    f"label {label!r}; use letters and digits, {_LONGEST_LABEL} at most"
                )
            if label.isdigit():
                raise InputError(f"label {label!r} reads as a number; begin with a letter")

    @property
    def name(self) -> str:
        """ "blocks"."""
        return "blocks"

    @property
    def key(self) -> str:
        """Blocks, goal stack, and what else differs from the paper."""
        text = f"blocks:n={self.n},goal_stack={self.goal_stack}"
        if self.layout is not None:
            return f"{text},layout={self.layout},target={self.target}"
        return text if self.labels == block_names(self.n) else f"{text},labels={self.labels}"

    def start_state(self) -> Stacks:
        """Three stacks, each from bottom to top."""
        if self.layout is not None:
            return self.layout
        first, second = self._halves()
        return first, second, ()

    def goal_state(self) -> Stacks:
        """The one state that solves it."""
        if self.target is not None:
            return self.target
        first, second = self._halves()
        order: list[str] = []
        longer, shorter = (first, second) if len(first) > len(second) else (second, first)
        for index in range(len(longer)):
            order.append(longer[-1 - index])
            order += shorter[len(shorter) - 1 - index : len(shorter) - index]
        built = tuple(order)
        return cast(Stacks, tuple(built if s == self.goal_stack else () for s in range(3)))

    def is_goal(self, state: State) -> bool:
        """The goal stack is built."""
        return state == self.goal_state()

    def moves_from(self, state: State) -> Iterator[Move]:
        """At most six."""
        stacks = cast(Stacks, state)
        for source in range(3):
            for target in range(3):
                if source != target and stacks[source]:
                    yield stacks[source][-1], source, target

    def clean(self, raw: Any) -> Move:
        """A `(block, from, to)`."""
        block, source, target = fields_of(raw, "[block, from, to]", 3)
        name = block.strip() if isinstance(block, str) else block
        if not isinstance(name, str) or name not in self.labels:
            raise IllegalMoveError(f"block {short(block)} does not exist")
        return name, check_place("stack", source, 3), check_place("stack", target, 3)

    def apply(self, state: State, move: Move) -> Stacks:
        """The state after a move."""
        stacks = cast(Stacks, state)
        block, source, target = move
        if source == target:
            raise IllegalMoveError(f"block {block} would stay on stack {source}")
        if not stacks[source]:
            raise IllegalMoveError(f"stack {source} is empty")
        if stacks[source][-1] != block:
            raise IllegalMoveError(
                f"block {block} is not on top of stack {source}; {stacks[source][-1]} is"
            )
        changed = list(stacks)
        changed[source] = stacks[source][:-1]
        changed[target] = (*stacks[target], block)
        return cast(Stacks, tuple(changed))

    def min_moves(self) -> int:
        """2N - 1 on stack 0 (0 for one block), N on stack 2; by search for other layouts."""
        if self.layout is not None:
            return len(self._searched())
        if self.goal_stack == 2:
            return self.n
        return 2 * self.n - 1 if self.n > 1 else 0

    def solution(self) -> Iterator[Move]:
        """One shortest solution."""
        if self.layout is not None:
            yield from self._searched()
            return
        first, second = self._halves()
        if self.goal_stack == 2:
            place = {block: stack for stack, half in enumerate((first, second)) for block in half}
            yield from ((block, place[block], 2) for block in self.goal_state()[2])
            return
        if self.n == 1:
            return
        # Stack 0 is turned over onto stack 2 by way of stack 1; for odd n its top stays on stack 1,
        # as it is the first block of the goal. Then both stacks are taken from their tops.
        yield from ((block, 0, 1) for block in reversed(first[1:]))
        yield first[0], 0, 2
        odd = self.n % 2
        turned = first[1 : len(first) - odd]
        yield from ((block, 1, 2) for block in turned)
        place = dict.fromkeys((first[0], *turned), 2)
        yield from ((block, place.get(block, 1), 0) for block in self.goal_state()[0])

    def unique(self) -> bool:
        """True on stack 2, where every block moves once, in the order of the goal; on stack 0 up to
        7 blocks, where a search finds one shortest solution."""
        return self.layout is None and (self.goal_stack == 2 or self.n <= _SEARCHED)

    def describe(self, state: State) -> str:
        """Three stacks, each from bottom to top."""
        return ", ".join(
            f"stack {index}: [{', '.join(stack)}]"
            for index, stack in enumerate(cast(Stacks, state))
        )

    def _halves(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        half = (self.n + 1) // 2
        return self.labels[:half], self.labels[half:]

    def _searched(self) -> tuple[Move, ...]:
        from outlay.evals.puzzles.solver import shortest

        if self.n > _SEARCHED:
            raise InputError(
                f"n={self.n} with a layout of its own has no closed form; the search stops at "
                f"n={_SEARCHED}: lower n, or leave layout and target out"
            )
        path = shortest(self).path
        assert path is not None  # any arrangement can be reached
        return path
