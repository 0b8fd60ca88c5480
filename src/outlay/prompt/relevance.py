"""What a causal language model says about text: relevance to a query, and surprise by line.

LongCodeZip, arXiv 2510.00446, equation 1: a text is relevant when the query is more predictable
after it, AMI(c, q) = PPL(q) - PPL(q | c). `score="nll"` takes the difference of mean
log-likelihoods instead, which one rare token of the query cannot dominate; for one query both rank
alike. The query's tokens are found by their offsets in the joined text, and its first token is left
out on both sides where the model cannot score it without context.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from outlay.errors import InputError, ModelError
from outlay.models.base import Account, Scorer, TokenLosses

Score = Literal["nll", "ppl"]

JOINT = "\n\n"
_SPARE = 2  # tokens kept free in a window, for special tokens that a scorer may add


@dataclass
class Relevance:
    """AMI of texts with one query.

    Args:
        scorer: the language model.
        query: the query, not blank; blank lines around it do not count.
        score: difference of perplexities ("ppl", the paper) or of mean log-likelihoods ("nll").
        account: where the scorer's work is booked.

    Raises:
        InputError: if the query does not fit the scorer's window.
    """

    scorer: Scorer
    query: str
    score: Score = "ppl"
    account: Account | None = None
    warnings: list[str] = field(default_factory=list)
    passes: int = 0

    def __post_init__(self) -> None:
        self.query = self.query.strip("\n").rstrip()
        self._size = self.scorer.count(self.query)
        window = self.scorer.context_length
        if self._size + _SPARE > window:
            raise InputError(
                f"the query has {self._size} tokens, the scorer's window {window}; shorten the "
                "question or take a scorer with a longer window"
            )
        alone = self.scorer.losses([self.query], account=self.account)[0]
        self.passes += 1
        scored = np.isfinite(alone.nll)
        if not scored.any():
            raise InputError(
                "the query has no token that the scorer can score without context; "
                "give a question of two words or more"
            )
        self._skip = int(alone.ends[0]) if not scored[0] else 0
        self.nll = self._mean(alone, self._skip, "the query")

    @property
    def perplexity(self) -> float:
        """PPL(q)."""
        return math.exp(self.nll)

    def ami(self, texts: Sequence[str], names: Sequence[str]) -> list[float]:
        """AMI of every text with the query; 0 for blank texts, which are not scored.

        Args:
            texts: contexts, each scored on its own.
            names: what to call each in an error.

        Raises:
            ModelError: if a score is not a number.
        """
        live = [i for i, text in enumerate(texts) if text.strip()]
        heads = [self._fit(texts[i], names[i]) + JOINT for i in live]
        losses = self.scorer.losses(
            [head + self.query for head in heads],
            keep_from=[len(head) + self._skip for head in heads],
            account=self.account,
        )
        self.passes += len(live)
        result = [0.0] * len(texts)
        for i, head, loss in zip(live, heads, losses, strict=True):
            nll = self._mean(loss, len(head) + self._skip, names[i])
            result[i] = (
                self.nll - nll if self.score == "nll" else math.exp(self.nll) - math.exp(nll)
            )
        return result

    def _mean(self, loss: TokenLosses, start: int, name: str) -> float:
        nll = loss.nll[loss.ends > start]
        mean = float(nll.mean()) if len(nll) else math.nan
        if not math.isfinite(mean):
            raise ModelError(
                f"the scorer {self.scorer.name} gave a score that is not a number for {name}; "
                "check the model's weights and precision (fp16 overflows: try float32)"
            )
        return mean

    def _fit(self, text: str, name: str) -> str:
        """`text`, cut from the left until it fits the window with the query."""
        text = text.rstrip()
        room = self.scorer.context_length - self._size - self.scorer.count(JOINT) - _SPARE
        tail = text
        while tail and (size := self.scorer.count(tail)) > room:
            tail = tail[len(tail) - int(len(tail) * max(0.0, room / size) * 0.98) :]
        if len(tail) < len(text):
            self.warnings.append(
                f"{name} is longer than the scorer's window of {self.scorer.context_length} "
                f"tokens: only its last {len(tail)} of {len(text)} characters were scored"
            )
        return tail


def line_bits(
    scorer: Scorer,
    texts: Sequence[str],
    *,
    account: Account | None = None,
    warnings: list[str] | None = None,
) -> list[list[float]]:
    """Mean bits per token of every line given all earlier lines of its text: one pass a text.

    A token belongs to the line that its last character is on, a line break to the line after it.
    A blank line has 0 bits, a line without scored token inf. A text longer than the window is
    scored in windows that overlap by half.

    Returns:
        h[text][line].
    """
    spans = [_windows(scorer, text) for text in texts]
    if warnings is not None and (long := sum(len(span) > 1 for span in spans)):
        warnings.append(
            f"{long} function(s) are longer than the scorer's window of {scorer.context_length} "
            "tokens: line losses come from overlapping windows"
        )
    pieces = [(i, a, b) for i, span in enumerate(spans) for a, b in span]
    losses = scorer.losses([texts[i][a:b] for i, a, b in pieces], account=account)
    sums = [np.zeros(text.count("\n") + 1) for text in texts]
    counts = [np.zeros(len(s)) for s in sums]
    borders = [[k for k, char in enumerate(text) if char == "\n"] for text in texts]
    done = [0] * len(texts)
    for (i, a, b), loss in zip(pieces, losses, strict=True):
        ends = loss.ends + a
        fresh = (ends > done[i]) & np.isfinite(loss.nll)
        for end, nll in zip(ends[fresh], loss.nll[fresh], strict=True):
            line = bisect_right(borders[i], int(end) - 1)
            sums[i][line] += nll
            counts[i][line] += 1
        done[i] = b
    return [
        [
            0.0 if not line.strip() else float(s / n / math.log(2)) if n else math.inf
            for line, s, n in zip(text.split("\n"), total, number, strict=True)
        ]
        for text, total, number in zip(texts, sums, counts, strict=True)
    ]


def _windows(scorer: Scorer, text: str) -> list[tuple[int, int]]:
    """Character spans that each fit the scorer's window and overlap by half."""
    room = scorer.context_length - _SPARE
    size = scorer.count(text)
    if size <= room:
        return [(0, len(text))]
    width = max(1, int(len(text) * room / size * 0.9))
    spans: list[tuple[int, int]] = []
    first = 0
    while not spans or spans[-1][1] < len(text):
        stop = min(len(text), first + width)
        while (size := scorer.count(text[first:stop])) > room:
            stop = first + max(1, int((stop - first) * room / size * 0.9))
        line_end = text.rfind("\n", first + (stop - first) // 2 + 1, stop)
        if stop < len(text) and line_end > first:
            stop = line_end
        spans.append((first, stop))
        middle = first + max(1, (stop - first) // 2)
        line_start = text.find("\n", middle, stop)
        first = line_start + 1 if line_start >= 0 else middle
    return spans
