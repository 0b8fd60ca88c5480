"""What the opened blocks of one audit say: scores, duplicates, evidence."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from outlay.audit.fingerprints import Vectors
from outlay.audit.heads import Heads
from outlay.audit.verifiers import Verifier, binomial_p
from outlay.errors import InputError

SAME = 0.999  # cosine from which two opened blocks are one text


@dataclass(frozen=True)
class Judged:
    """One opened block.

    Args:
        block: its number.
        tokens: how many of its tokens were opened.
        a, b: probabilities that the tokens belong to it, and it to the answer.
        duplicate: whether an earlier opened block has the same embedding.
        bad: by the rule.
    """

    block: int
    tokens: int
    a: float
    b: float
    duplicate: bool
    bad: bool


@dataclass
class Judge:
    """Judges blocks as they are opened.

    Args:
        heads: with their thresholds.
        verifier: whose evidence counts.
        answer_D: the answer's embedding.
        dedup: whether duplicates count as bad.
    """

    heads: Heads
    verifier: Verifier
    answer_D: Vectors = field(repr=False)
    dedup: bool = True
    seen: list[Judged] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.answer_D.shape != (self.heads.dimension,):
            raise InputError(
                f"embeddings have the shape {self.answer_D.shape}; the heads read "
                f"{self.heads.dimension} numbers"
            )
        self._blocks: list[Vectors] = []

    def see(self, block: int, block_D: Vectors, tokens_KD: Vectors) -> Judged:
        """Judge a block by its embedding and its opened tokens.

        Raises:
            InputError: for no opened token.
        """
        if not len(tokens_KD):
            raise InputError(f"block {block}: no token of it was opened")
        a = float(self.heads.tokens(tokens_KD.mean(axis=0)[None], block_D[None])[0])
        b = float(self.heads.answer(block_D[None], self.answer_D[None])[0])
        unit = block_D / np.linalg.norm(block_D)
        duplicate = any(float(unit @ other) > SAME for other in self._blocks)
        self._blocks.append(unit)
        low_a, low_b = self.heads.thresholds
        bad = a < low_a or b < low_b or (duplicate and self.dedup)
        judged = Judged(block, len(tokens_KD), a, b, duplicate, bad)
        self.seen.append(judged)
        return judged

    @property
    def evidence(self) -> float:
        """Log-odds of inflation so far. A duplicate that counts has no match with anything."""
        scores = [
            (0.0, 0.0) if each.duplicate and self.dedup else (each.a, each.b) for each in self.seen
        ]
        return self.verifier.evidence(scores, [each.bad for each in self.seen])

    @property
    def p_value(self) -> float:
        """Chance of so many bad blocks, were they independent and honest."""
        rate = self.verifier.prior[0]
        return binomial_p(sum(each.bad for each in self.seen), len(self.seen), rate)
