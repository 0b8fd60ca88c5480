"""A draft without a network: back-off counts over the prompt and the text so far.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from outlay.errors import InputError
from outlay.models.base import FloatArray

_MOST_CORPUS = 20_000_000


@dataclass(frozen=True)
class NGram:
    """Smoothed n-gram counts; every token keeps a little probability.

    `P_n(x | context) = (count(context, x) + k P_{n-1}(x)) / (count(context) + k)`, down to the
    uniform law.

    Args:
        order: longest n-gram, context and token together.
        k: weight of the shorter context.
        corpus: token ids counted beside the prompt.

    Raises:
        InputError: for order < 1, k <= 0 or a corpus that is too long.
    """

    order: int = 4
    k: float = 0.1
    corpus: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 16:
            raise InputError(f"order={self.order}; must be between 1 and 16")
        if not self.k > 0:
            raise InputError(f"k={self.k}; must be > 0, so that no token is impossible")
        if len(self.corpus) > _MOST_CORPUS:
            raise InputError(f"corpus= has {len(self.corpus)} tokens; at most {_MOST_CORPUS}")


class Counts:
    """The counts of one sequence.

    Args:
        knobs: order and smoothing.
        vocabulary: V.
    """

    def __init__(self, knobs: NGram, vocabulary: int) -> None:
        self._knobs, self._vocabulary = knobs, vocabulary
        self._table: dict[tuple[int, ...], dict[int, int]] = {}
        self.tokens: list[int] = []
        self.extend(knobs.corpus)
        self.tokens = []  # the prompt does not continue the corpus

    def extend(self, tokens: Iterable[int]) -> None:
        """Count further tokens of the sequence."""
        for token in tokens:
            for size in range(self._knobs.order):
                if size <= len(self.tokens):
                    context = tuple(self.tokens[len(self.tokens) - size :])
                    row = self._table.setdefault(context, {})
                    row[token] = row.get(token, 0) + 1
            self.tokens.append(token)

    def law(self, ahead: Sequence[int] = ()) -> FloatArray:
        """Probabilities of the token after the sequence and `ahead`, which is not counted."""
        tail = [*self.tokens[-self._knobs.order :], *ahead]
        law_V = np.full(self._vocabulary, 1.0 / self._vocabulary)
        for size in range(self._knobs.order):
            if size > len(tail):
                break
            row = self._table.get(tuple(tail[len(tail) - size :]))
            if row is None:
                break  # a longer context has not been seen either
            k, total = self._knobs.k, sum(row.values())
            law_V *= k / (total + k)
            law_V[list(row)] += np.fromiter(row.values(), dtype=float) / (total + k)
        return law_V
