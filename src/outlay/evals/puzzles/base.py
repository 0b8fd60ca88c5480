"""Puzzle worlds with one complexity knob N: the package's one protocol.

"The Illusion of Thinking" (arXiv 2506.06941) measures reasoning on puzzles whose rules are short,
whose size is one number, and whose every move can be checked. A `Puzzle` is one instance: immutable
and hashable, with a start, legal moves, a goal, and what is known about its shortest solution. A
list of moves is *replayed*: the verdict says how far it is legal, why it stops there, and whether
it ends at the goal. Positions count from 0 everywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

from outlay.errors import InputError

Move = tuple[Any, ...]
State = Hashable
LARGEST = 10_000
"""No puzzle takes a larger N, whatever its solution costs."""


class IllegalMoveError(InputError):
    """A move that the rules forbid here; the message is the reason."""


@dataclass(frozen=True)
class Verdict:
    """What came of replaying a list of moves.

    Args:
        solved: every move is legal and the last one ends at the goal.
        n_moves: moves given; of a stream, moves read until it was decided.
        first_bad_move: index of the first illegal move, None where all are legal.
        reason: why the list fails, "" where it does not.
        state: the state before the bad move, else the last one, as text.
        min_moves: length of a shortest solution, None where unknown or none exists.
    """

    solved: bool
    n_moves: int
    first_bad_move: int | None
    reason: str
    state: str
    min_moves: int | None

    @property
    def excess(self) -> int | None:
        """Moves beyond the shortest solution; None unless solved and the optimum is known."""
        return self.n_moves - self.min_moves if self.solved and self.min_moves is not None else None

    @property
    def optimal(self) -> bool:
        """True for a solution that is known to be a shortest one."""
        return self.excess == 0


class Puzzle(ABC):
    """One instance of a puzzle."""

    n: int

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the world: "hanoi", "checkers", "river" or "blocks"."""

    @property
    @abstractmethod
    def key(self) -> str:
        """What distinguishes this instance from others of its world, in a few characters."""

    @abstractmethod
    def start_state(self) -> State:
        """Where every solution begins."""

    @abstractmethod
    def is_goal(self, state: State) -> bool:
        """True where a solution may end."""

    @abstractmethod
    def moves_from(self, state: State) -> Iterator[Move]:
        """All legal moves, in a fixed order."""

    @abstractmethod
    def clean(self, raw: Any) -> Move:
        """A move in canonical form, from what a parser gives.

        Raises:
            IllegalMoveError: if it has not the form of a move of this puzzle.
        """

    @abstractmethod
    def apply(self, state: State, move: Move) -> State:
        """The state after a move in canonical form.

        Raises:
            IllegalMoveError: if the rules forbid it.
        """

    def solvable(self) -> bool:
        """True if a solution exists; in most worlds one always does."""
        return True

    def bound(self) -> str:
        """What is known about solvability, for error messages."""
        return "every n is solvable"

    @abstractmethod
    def min_moves(self) -> int | None:
        """Length of a shortest solution; None for an unsolvable instance.

        Raises:
            InputError: above the limit of a solver that has no closed form.
        """

    @abstractmethod
    def solution(self) -> Iterator[Move]:
        """The canonical shortest solution, move by move.

        Raises:
            InputError: for an unsolvable instance, or above the solver's limit.
        """

    @abstractmethod
    def unique(self) -> bool:
        """True if "the shortest solution" names one list (`canonical` may say which of two)."""

    @abstractmethod
    def describe(self, state: State) -> str:
        """A state as text that a model can read."""

    @property
    def canonical(self) -> str:
        """Which shortest solution is meant, in words, where two exist."""
        return ""

    def at(self, step: int) -> tuple[Move, State]:
        """Move number `step` (from 1) of the canonical solution, and the state after it.

        Raises:
            InputError: outside 1..min_moves.
        """
        self.check_step(step)
        state, move = self.start_state(), ()
        for _, move in zip(range(step), self.solution(), strict=False):
            state = self.apply(state, move)
        return move, state

    def check_step(self, step: int) -> None:
        """Raise `InputError` unless `step` is a move of the shortest solution."""
        total = self.min_moves()
        if total is None or not 1 <= step <= total:
            raise InputError(f"step={step} of {self.key}, whose shortest solution has {total}")

    def run(self, moves: Iterable[Any], state: State) -> tuple[State, int, str]:
        """Replay moves until the first illegal one.

        Returns:
            The state reached, the number of legal moves, and why the next one is illegal ("" where
            there is none).
        """
        return self.run_plainly(moves, state)

    def run_plainly(self, moves: Iterable[Any], state: State) -> tuple[State, int, str]:
        """`run` by `clean` and `apply` alone: the reference that faster ones are tested against."""
        done = 0
        for raw in moves:
            try:
                state = self.apply(state, self.clean(raw))
            except IllegalMoveError as error:
                return state, done, str(error)
            done += 1
        return state, done, ""

    def why(self, raw: Any, state: State) -> str:
        """Why a move is illegal in `state`; "" for a legal one."""
        try:
            self.apply(state, self.clean(raw))
        except IllegalMoveError as error:
            return str(error)
        return ""

    def replay(self, moves: Iterable[Any], *, limit: int | None = None) -> Verdict:
        """Judge a list or a stream of moves in one pass, in constant memory.

        Args:
            moves: raw moves, in order; anything after the first illegal one is not read.
            limit: read at most this many; a longer stream fails.
        """
        known = self.known_optimum()
        given = len(moves) if isinstance(moves, Sized) else None
        stream = iter(moves)
        state, done, reason = self.run(_take(stream, limit), self.start_state())
        shown = self.describe(state)
        if reason:
            return Verdict(False, given or done + 1, done, reason, shown, known)
        if limit is not None and done == limit and next(stream, None) is not None:
            why = f"more than {limit} moves were given"
            return Verdict(False, given or done, None, why, shown, known)
        solved = self.is_goal(state)
        why = "" if solved else "the moves are legal but do not end at the goal"
        return Verdict(solved, done, None, why, shown, known)

    def known_optimum(self) -> int | None:
        """`min_moves`, or None where it is out of the solver's reach."""
        try:
            return self.min_moves()
        except InputError:
            return None


def _take(stream: Iterator[Any], limit: int | None) -> Iterator[Any]:
    if limit is None:
        return stream
    return (move for _, move in zip(range(limit), stream, strict=False))


def check_size(n: object, *, most: int = LARGEST) -> None:
    """Raise `InputError` unless n is an int from 1 to `most`."""
    if isinstance(n, bool) or not isinstance(n, int):
        raise InputError(f"n={n!r} is not a whole number; give an int >= 1")
    if n < 1:
        raise InputError(f"n={n} is too small; a puzzle has n >= 1")
    if n > most:
        raise InputError(f"n={n} is too large; the limit here is {most}")


def check_letters(**letters: object) -> None:
    """Raise `InputError` unless the two knobs are single, different letters."""
    for knob, letter in letters.items():
        if not (isinstance(letter, str) and len(letter) == 1 and letter.isalpha()):
            raise InputError(f"{knob}={letter!r}; give one letter")
    first, second = letters
    if letters[first] == letters[second]:
        raise InputError(f"{first} and {second} are both {letters[first]!r}; give two letters")


def check_solvable(puzzle: Puzzle) -> None:
    """Raise `InputError` for an instance without a solution, naming the bound."""
    if not puzzle.solvable():
        raise InputError(
            f"{puzzle.key} has no solution: {puzzle.bound()}; change n or k, or give "
            "allow_unsolvable=True, and 'impossible' becomes the right answer"
        )


def fields_of(raw: Any, form: str, size: int) -> Sequence[Any]:
    """The parts of a move that must have `size` of them.

    Raises:
        IllegalMoveError: for anything else.
    """
    if not isinstance(raw, (list, tuple)) or len(raw) != size:
        raise IllegalMoveError(f"{short(raw)} is not a move {form}")
    return raw


def check_place(name: str, value: Any, size: int) -> int:
    """A position 0..size-1.

    Raises:
        IllegalMoveError: for other types (bool and float too) and positions outside.
    """
    if type(value) is not int:
        raise IllegalMoveError(f"{name} {short(value)} is not a whole number")
    if not 0 <= value < size:
        raise IllegalMoveError(f"{name} {short(value)} is outside 0..{size - 1}")
    return value


def short(value: Any) -> str:
    """A value in at most 60 characters, for messages."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no whole number of more than 4,300 digits
        return f"a {type(value).__name__} too long to print"
    return text if len(text) <= 60 else text[:57] + "..."
