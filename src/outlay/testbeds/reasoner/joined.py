"""JoinedArith: several chains of unequal length in one question, added up at the end. No torch.

The task of experiments that share one budget over sub-problems: starving a chain breaks the sum.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from outlay.errors import InputError
from outlay.evals.base import Kind, Problem
from outlay.testbeds.reasoner.chains import (
    MAX_CHAINS,
    MODULUS,
    SIGNS,
    Split,
    sample_problem,
)
from outlay.testbeds.reasoner.tasks import Chained, Template, check_template

Order = Literal["random", "ascending", "descending"]
LEVELS = 5
_TRIES = 1000


def level_of(operations: int, total: int) -> int:
    """Difficulty 1 to 5, by the share of `total` operations that a problem needs."""
    return min(LEVELS, max(1, -(-LEVELS * operations // total)))


@dataclass(frozen=True)
class JoinedArith(Chained):
    """Compute: sums of `chains` chains whose lengths differ.

    Args:
        chains: fewest and most chains of a problem; every number equally often.
        operations: fewest and most operations of one chain. No chain is longer than twice the
            mean that `total` allows, as in the reasoner's training.
        total: most operations of a problem, the final sum's included.
        unequal: the longest chain has at least twice the operations of the shortest.
        order: of the lengths within a problem.
        modulus: of all chains; the shipped model knows `MODULUS` only.
        signs: which operations occur.
        split: "heldout" problems were never trained on.
        template: "reasoner" gives the whole prompt up to the open think tag; "plain" the question
            alone.

    Raises:
        InputError: for ranges that no problem fits, or an unknown order or template.
    """

    chains: tuple[int, int] = (2, 4)
    operations: tuple[int, int] = (1, 12)
    total: int = 18
    unequal: bool = True
    order: Order = "random"
    modulus: int = MODULUS
    signs: str = SIGNS
    split: Split = "heldout"
    template: Template = "reasoner"
    name: str = field(default="joinedarith", init=False)
    kind: Kind = field(default="generation", init=False)
    metric: str = field(default="accuracy", init=False)
    higher_is_better: bool = field(default=True, init=False)
    chat: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        few, many = self.chains
        if not 2 <= few <= many <= MAX_CHAINS:
            raise InputError(f"chains={self.chains}; must be a range within 2..{MAX_CHAINS}")
        self.check_operations()
        low = self.operations[0]
        if self.order not in ("random", "ascending", "descending"):
            raise InputError(f"order={self.order!r}; choose random, ascending or descending")
        least, longest = many * low + many - 1, self._longest(many)
        if self.unequal:
            least += low  # one chain of twice the length
        if least > self.total or longest < low * (2 if self.unequal else 1):
            raise InputError(
                f"total={self.total} operations are too few for {many} chains of {low} or more"
                f"{' and of unequal length' if self.unequal else ''}; raise total="
            )
        check_template(self.template)

    def _longest(self, chains: int) -> int:
        return min(self.operations[1], 2 * ((self.total - chains + 1) // chains) - 1)

    def sample(self, seed: int, n: int) -> Sequence[Problem]:
        """`n` problems; the number of chains cycles, so that every prefix is balanced."""
        few, many = self.chains
        problems = []
        for index in range(n):
            rng = random.Random(f"joinedarith:{seed}:{index}")
            lengths = self._lengths(rng, few + index % (many - few + 1))
            joined = sample_problem(rng, lengths, self.modulus, self.signs, self.split)
            problems.append(
                Problem(
                    id=f"joinedarith-{seed}-{index}",
                    question=joined.question,
                    answer=joined.answer,
                    meta={
                        "family": "joined",
                        "difficulty": joined.operations,
                        "lengths": list(lengths),
                        "level": level_of(joined.operations, self.total),
                        "modulus": self.modulus,
                    },
                )
            )
        return problems

    def _lengths(self, rng: random.Random, chains: int) -> list[int]:
        low, high = self.operations[0], self._longest(chains)
        for _ in range(_TRIES):
            lengths = [rng.randint(low, high) for _ in range(chains)]
            fits = sum(lengths) + chains - 1 <= self.total
            if fits and (not self.unequal or max(lengths) >= 2 * min(lengths)):
                break
        else:
            raise InputError(
                f"no lengths found for {chains} chains within total={self.total}; raise total="
            )
        if self.order != "random":
            lengths.sort(reverse=self.order == "descending")
        return lengths

    def blocks(self, problem: Problem, completion: str) -> list[bool]:
        """Per chain, whether the value that its block states last is the chain's value."""
        stated: dict[str, str] = {}
        for heading, body in _BLOCK.findall(completion.split("</think>")[0]):
            if values := _RESULT.findall(body):
                stated[heading] = values[-1]
        chains = self.chain(problem).chains
        return [stated.get(str(i)) == str(chain.value) for i, chain in enumerate(chains, 1)]


_BLOCK = re.compile(r"\[(\d)\]([^\[]*)")
_RESULT = re.compile(r"=(\d+);")
