"""Judging an answer: a list of moves, one move or state (`kth`), or a program.

A program runs in the sandbox without imports; what it prints is replayed move by move while it
runs, so that a million moves need no memory and an illegal one ends the program. A program is
evidence that the model knows a method, not that it can carry it out: report it in its own column.
An unsolvable instance (`allow_unsolvable`) is answered right only by saying that it is impossible.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from outlay.errors import CapabilityError, InputError, OutlayError
from outlay.evals.checks import check_whole
from outlay.evals.puzzles.base import IllegalMoveError, Puzzle, Verdict
from outlay.evals.puzzles.checkers import Checkers
from outlay.evals.puzzles.parsing import (
    Failure,
    Moves,
    Parser,
    claims_impossible,
    nested_lists,
    parse_moves,
    parse_named,
    parse_program,
)
from outlay.evals.puzzles.prompts import Ask

Outcome = Literal["solved", "impossible", "not optimal", "wrong", "unparsed"]
_COPIED = 0.5  # share of the needed moves from which a list in a program counts as written out
_HEAD = """_outlay_print = print
_outlay_printed = False


def print(*values, **knobs):
    global _outlay_printed
    _outlay_printed = True
    _outlay_print(*values, **knobs)


"""
_TAIL = """

if not _outlay_printed and "solve" in globals():
    for _outlay_move in solve():
        _outlay_print(list(_outlay_move))
"""


@dataclass(frozen=True)
class ProgramLimits:
    """What a program may take.

    Args:
        seconds: processor time; the wall clock gets twice that.
        memory_mb: memory.
        moves: moves that it may print.

    Raises:
        InputError: for limits that are not positive.
    """

    seconds: float = 10.0
    memory_mb: int = 256
    moves: int = 2**21

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise InputError(f"seconds={self.seconds!r} of sandbox_limits must be > 0")
        check_whole("memory_mb of sandbox_limits", self.memory_mb, least=16)
        check_whole("moves of sandbox_limits", self.moves, least=1)


@dataclass(frozen=True)
class Judgement:
    """What an answer is worth.

    Args:
        correct: it counts as right.
        outcome: "solved", "impossible" (said so, and it is), "not optimal" (solved, but a shortest
            solution was required), "wrong", or "unparsed" (nothing could be read).
        reason: why it is not right, "" where it is.
        verdict: of the replay, where there was a list.
        hard_coded: of a program: it holds a list of at least half of the needed moves.
    """

    correct: bool
    outcome: Outcome
    reason: str = ""
    verdict: Verdict | None = None
    hard_coded: bool = False


def judge_moves(
    puzzle: Puzzle,
    text: str,
    *,
    parser: Parser = "lenient",
    optimal_required: bool = False,
    exclude: Sequence[Moves] = (),
) -> Judgement:
    """Judge the last list of moves of a reply.

    Args:
        puzzle: the instance.
        text: the reply.
        parser: see `parse_moves`.
        optimal_required: a solution that is longer than necessary is wrong.
        exclude: lists that are echoes of the prompt.
    """
    if (said := _impossibility(puzzle, text)) is not None:
        return said
    parsed = parse_moves(text, parser, exclude=exclude)
    if isinstance(parsed, Failure):
        return Judgement(False, "unparsed", parsed.reason)
    return of_verdict(puzzle.replay(parsed.moves), optimal_required)


def of_verdict(verdict: Verdict, optimal_required: bool) -> Judgement:
    """The judgement on a replayed list."""
    if not verdict.solved:
        return Judgement(False, "wrong", verdict.reason, verdict)
    if optimal_required and not verdict.optimal:
        if verdict.min_moves is None:
            return Judgement(False, "not optimal", "the optimum is out of reach", verdict)
        why = f"{verdict.n_moves} moves, {verdict.min_moves} would do"
        return Judgement(False, "not optimal", why, verdict)
    return Judgement(True, "solved", "", verdict)


def judge_kth(
    puzzle: Puzzle, text: str, step: int, *, ask: Ask = "move", parser: Parser = "lenient"
) -> Judgement:
    """Judge an answer about move number `step` (from 1) of the shortest solution.

    Raises:
        InputError: if the instance has several shortest solutions and no canonical one.
    """
    if not puzzle.unique():
        raise InputError(
            f"{puzzle.key} has several shortest solutions, so 'move number {step}' names none; use "
            "answer='list', or blocks with goal_stack=2"
        )
    move, state = puzzle.at(step)
    if ask == "move":
        given = parse_named(text, "move", 1, parser)
        if isinstance(given, Failure):
            return Judgement(False, "unparsed", given.reason)
        try:
            right = puzzle.clean(given) == move
        except IllegalMoveError as error:
            return Judgement(False, "wrong", str(error))
        return _equal(right, f"move {step} is {list(move)}")
    given = parse_named(text, "state", 0 if isinstance(puzzle, Checkers) else 2, parser)
    if isinstance(given, Failure):
        return Judgement(False, "unparsed", given.reason)
    wanted = state if isinstance(puzzle, Checkers) else json.loads(json.dumps(state))
    return _equal(given == wanted, f"the state after move {step} is {puzzle.describe(state)}")


def judge_program(
    puzzle: Puzzle,
    text: str,
    *,
    optimal_required: bool = False,
    limits: ProgramLimits = ProgramLimits(),
) -> Judgement:
    """Run the program of a reply in the sandbox and judge the moves that it prints.

    Raises:
        CapabilityError: where the sandbox cannot isolate.
    """
    if (said := _impossibility(puzzle, text)) is not None:
        return said
    program = parse_program(text)
    if isinstance(program, Failure):
        return Judgement(False, "unparsed", program.reason)
    needed = puzzle.known_optimum() or 0
    copied = max((len(found.moves) for found in nested_lists(program)), default=0)
    hard_coded = needed > 1 and copied >= _COPIED * needed
    try:
        verdict = _run(puzzle, program, limits)
    except CapabilityError:
        raise
    except OutlayError as error:  # the program failed; what it printed before does not count
        return Judgement(False, "wrong", f"the program failed: {error}", None, hard_coded)
    made = of_verdict(verdict, optimal_required)
    return Judgement(made.correct, made.outcome, made.reason, verdict, hard_coded)


def _run(puzzle: Puzzle, program: str, limits: ProgramLimits) -> Verdict:
    from outlay.sandbox import Limits, Sandbox

    allowed = Limits(
        cpu_seconds=limits.seconds,
        wall_seconds=2 * limits.seconds,
        memory_mb=limits.memory_mb,
        output_bytes=max(1_000_000, 64 * limits.moves),
    )
    with Sandbox(allowed, allow_imports=()) as box:
        lines = box.stream(_HEAD + program + _TAIL)
        try:
            return puzzle.replay(_printed(lines), limit=limits.moves)
        finally:
            close = getattr(lines, "close", None)  # an iterator need not have one
            if close is not None:
                close()


def _printed(lines: Iterator[str]) -> Iterator[Any]:
    """Moves from printed lines: a list each; a line that is none is an illegal move."""
    for line in lines:
        line = line.strip().removeprefix("moves = ")
        if not line:
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            try:
                value = json.loads(line.translate(_PYTHON))
            except (ValueError, RecursionError):
                value = line
        if isinstance(value, list) and value and isinstance(value[0], list):
            yield from value
        else:
            yield value


_PYTHON = str.maketrans({"'": '"', "(": "[", ")": "]"})


def _impossibility(puzzle: Puzzle, text: str) -> Judgement | None:
    """The judgement where it turns on solvability, else None."""
    claimed = claims_impossible(text)
    if not puzzle.solvable():
        if claimed:
            return Judgement(True, "impossible")
        return Judgement(False, "wrong", f"there is no solution: {puzzle.bound()}")
    if claimed:
        return Judgement(False, "wrong", "it says that there is no solution, but there is one")
    return None


def _equal(right: bool, truth: str) -> Judgement:
    return Judgement(True, "solved") if right else Judgement(False, "wrong", truth)
