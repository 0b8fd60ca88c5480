"""Contexts that consist of demonstrations: cut apart, shortened to whole ones. And the baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from outlay.budget import Budget
from outlay.errors import InputError
from outlay.ledger import Ledger
from outlay.prompt.base import Compressed, CountTokens, check_text, prompt_limit

MAX_DEMONSTRATIONS = 10_000


def pieces(context: str, delimiter: str) -> list[tuple[int, int]]:
    """Character spans of the demonstrations of a context, delimiters included; blank ones joined
    to their neighbour before.

    Raises:
        InputError: for more than 10 000 of them.
    """
    spans: list[tuple[int, int]] = []
    start = 0
    while start < len(context):
        found = context.find(delimiter, start)
        stop = len(context) if found < 0 else found + len(delimiter)
        if spans and not context[start:stop].replace(delimiter, "").strip():
            spans[-1] = (spans[-1][0], stop)
        else:
            spans.append((start, stop))
        start = stop
    if len(spans) > MAX_DEMONSTRATIONS:
        raise InputError(f"{len(spans)} demonstrations; at most {MAX_DEMONSTRATIONS} fit")
    return spans


def shortened(
    context: str,
    delimiter: str,
    budget: Budget,
    count: CountTokens,
    *,
    choose: Callable[[int], int],
    first: bool,
    ledger: Ledger,
    report: dict[str, Any],
) -> Compressed:
    """A context cut to whole demonstrations at one end.

    Args:
        context: the demonstrations.
        delimiter: ends each of them.
        budget: most tokens of the result.
        count: token counter.
        choose: gives the number to keep from the largest number that fits.
        first: keep the first ones, else the last.
        ledger: of the result.
        report: of the result; what was kept is added.
    """
    limit = prompt_limit(budget)
    check_text(context, "context of demonstrations")
    spans = pieces(context, delimiter)

    def kept(k: int) -> tuple[int, int]:
        if not k:
            return (0, 0)
        return (0, spans[k - 1][1]) if first else (spans[-k][0], len(context))

    def size(k: int) -> int:
        start, stop = kept(k)
        return count(context[start:stop]) if k else 0

    low, high = 0, len(spans) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= limit else (low, middle)
    k = choose(low)
    start, stop = kept(k)
    return Compressed(
        text=context[start:stop],
        tokens=size(k),
        original_tokens=count(context),
        kept=((start, stop),) if k else (),
        ledger=ledger,
        report={"limit": limit, "k": k, "fits": low, "demonstrations": len(spans), **report},
    )


@dataclass(frozen=True)
class UniformDemonstrations:
    """Keeps as many whole demonstrations as fit: the same number for every input.

    Args:
        k: at most this many; None for as many as fit.
        delimiter: ends a demonstration.
        first: keep the first ones, else the last.

    Raises:
        InputError: for a negative k or an empty delimiter.
    """

    k: int | None = None
    delimiter: str = "\n\n"
    first: bool = False

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 0:
            raise InputError(f"k={self.k}; must be >= 0, or None for as many as fit")
        if not self.delimiter:
            raise InputError("delimiter is empty; give the text that ends a demonstration")

    def compress(
        self, prompt: str, question: str, budget: Budget, *, count: CountTokens, language: str = ""
    ) -> Compressed:
        """See `Compressor.compress`; `question` and `language` are not used."""
        return shortened(
            prompt,
            self.delimiter,
            budget,
            count,
            choose=lambda fits: fits if self.k is None else min(fits, self.k),
            first=self.first,
            ledger=Ledger(),
            report={},
        )
