"""The searcher's task for `outlay compare`: find the hidden leaf. No torch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from outlay.errors import InputError
from outlay.evals.base import Kind, Problem
from outlay.testbeds.searcher.tokenizer import END_THINK, EOS, THINK, render_prompt
from outlay.testbeds.searcher.trees import (
    CHOICES,
    MAX_LEAVES,
    Puzzle,
    Split,
    parse_question,
    sample_puzzle,
)


@dataclass(frozen=True)
class HiddenLeaf:
    """Which candidate hangs below the root: forests of `leaves` leaves, every number equally often.

    Args:
        leaves: fewest and most leaves below the root.
        split: "heldout" problems were never trained on.

    Raises:
        InputError: for an empty range or trees that the names do not suffice for.
    """

    leaves: tuple[int, int] = (8, 12)
    split: Split = "heldout"
    name: str = field(default="hiddenleaf", init=False)
    kind: Kind = field(default="generation", init=False)
    metric: str = field(default="accuracy", init=False)
    higher_is_better: bool = field(default=True, init=False)
    chat: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        low, high = self.leaves
        if not CHOICES <= low <= high <= MAX_LEAVES:
            raise InputError(
                f"leaves={self.leaves}; must be a range within {CHOICES}..{MAX_LEAVES}"
            )

    def sample(self, seed: int, n: int) -> Sequence[Problem]:
        """`n` problems; sizes cycle through the range so that every prefix is balanced."""
        low, high = self.leaves
        problems = []
        for index in range(n):
            rng = random.Random(f"hiddenleaf:{seed}:{index}")
            leaves = low + index % (high - low + 1)
            puzzle = sample_puzzle(rng, leaves, self.split)
            problems.append(
                Problem(
                    id=f"hiddenleaf-{seed}-{index}",
                    question=puzzle.question,
                    answer=puzzle.answer,
                    choices=puzzle.candidates,
                    meta={"leaves": leaves},
                )
            )
        return problems

    def prompt(self, problem: Problem, context: str) -> str:
        """The prompt up to the open think tag; these problems have no context."""
        return render_prompt(problem.question)

    def verify(self, problem: Problem, answer: str) -> float:
        """1 if what follows the end of thinking (or the whole text without tags) is the answer."""
        return float(self.read(problem, answer) == problem.answer)

    @property
    def delimiter(self) -> str:
        """A walk ends with a line break."""
        return "\n"

    def read(self, problem: Problem, completion: str) -> str | None:
        """The answer in a completion, None where it never stopped thinking."""
        text = completion.split(EOS)[0]
        if END_THINK in text:
            text = text.split(END_THINK, 1)[1].replace(END_THINK, "")
        elif THINK in text:
            return None
        return text.strip() or None

    def puzzle(self, problem: Problem) -> Puzzle:
        """The puzzle behind a problem, to judge steps."""
        return parse_question(problem.question)
