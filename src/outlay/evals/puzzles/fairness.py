"""What a failure may be blamed on: the token budget, the instance, or the reasoning.

The criticism of "The Illusion of Thinking" (arXiv 2506.09250, 2507.01231) in three gates. An
instance without a solution is refused (`check_solvable`). An instance whose shortest solution does
not fit into the output budget is `output_bound`: no reasoning could print it. A sample that ran
into its limit is `truncated`. Neither of the two enters the accuracy of reasoning; both are
counted. The tokens of a solution are counted with the model's tokenizer on the printed list; the
comment's quadratic formula is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from outlay.errors import BudgetError, InputError
from outlay.evals.puzzles.base import Puzzle
from outlay.evals.puzzles.parsing import print_moves

Fate = Literal["solved", "wrong", "truncated", "output_bound"]
REASONED: tuple[Fate, ...] = ("solved", "wrong")
"""Fates that enter the accuracy of reasoning."""
CUT = frozenset({"length", "budget"})
"""Finish reasons of a generation that ran into a limit."""

_COUNTED = 20_000  # moves that are printed and counted; longer solutions are extrapolated


@dataclass(frozen=True)
class OutputNeed:
    """Tokens that printing the shortest solution takes.

    Args:
        tokens: with the overhead.
        moves: of the solution.
        exact: counted on the whole list; False where the first 20,000 moves stand for the rest.
    """

    tokens: int
    moves: int
    exact: bool


def output_need(puzzle: Puzzle, count: Callable[[str], int], *, overhead: int = 0) -> OutputNeed:
    """Count the tokens of the shortest solution.

    Args:
        puzzle: a solvable instance.
        count: tokens of a text, usually `model.count`.
        overhead: tokens around the list.

    Raises:
        InputError: for a negative overhead or an instance without a known solution.
    """
    if overhead < 0:
        raise InputError(f"overhead={overhead}; give 0 or more tokens")
    moves = puzzle.min_moves()
    if moves is None:
        raise InputError(f"{puzzle.key} has no solution to print: {puzzle.bound()}")
    if moves <= _COUNTED:
        return OutputNeed(overhead + count(print_moves(list(puzzle.solution()))), moves, True)
    if puzzle.name == "hanoi":
        return OutputNeed(overhead + _hanoi_need(puzzle, count), moves, False)
    head = count(print_moves(list(islice(puzzle.solution(), _COUNTED))))
    return OutputNeed(overhead + head * moves // _COUNTED, moves, False)


def _hanoi_need(puzzle: Puzzle, count: Callable[[str], int]) -> int:
    """Doubling from the largest counted tower: N disks are two of N - 1 and one move."""
    from outlay.evals.puzzles.hanoi import Hanoi

    size = _COUNTED.bit_length() - 1
    tokens = count(print_moves(list(Hanoi(size).solution())))
    for _ in range(puzzle.n - size):
        tokens *= 2
    return tokens


def check_budget(max_tokens: int, prompt_tokens: int, context: int | None = None) -> int:
    """Tokens left for the answer.

    Args:
        max_tokens: what the model may generate.
        prompt_tokens: of the prompt.
        context: the model's window, where the prompt and the answer share it.

    Raises:
        BudgetError: if nothing can be generated.
    """
    room = max_tokens if context is None else min(max_tokens, context - prompt_tokens)
    if room < 1:
        window = "" if context is None else f", the window {context}"
        raise BudgetError(
            f"max_tokens={max_tokens}{window}: nothing is left after a prompt of {prompt_tokens} "
            "tokens; raise the budget or take a model with a larger window"
        )
    return room


def fate(
    correct: bool, finish_reason: str, need: OutputNeed | None, max_tokens: int | None
) -> Fate:
    """How a sample counts.

    Args:
        correct: what the verifier said.
        finish_reason: of the generation, as the provider reports it: caps may lie below the
            advertised ones.
        need: of its instance; None where the answer's length does not grow (`kth`, programs).
        max_tokens: the output budget; None for no limit.
    """
    if need is not None and max_tokens is not None and need.tokens > max_tokens:
        return "output_bound"
    if finish_reason in CUT:
        return "truncated"
    return "solved" if correct else "wrong"
