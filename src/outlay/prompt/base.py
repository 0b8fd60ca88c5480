"""Fewer tokens in: the room's one protocol and its result.

A compressor turns a context into a shorter one that fits a token budget, counted with the *target*
model's own tokenizer. The budget is a promise: the result never exceeds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from outlay.budget import Budget
from outlay.errors import BudgetError, InputError
from outlay.ledger import Ledger

CountTokens = Callable[[str], int]


@dataclass(frozen=True)
class Compressed:
    """A shortened context and what it cost.

    Args:
        text: the shortened context.
        tokens: its size in target tokens.
        original_tokens: size of the source in target tokens.
        kept: character spans (start, end) of the source that survive, in order.
        ledger: what the compressor's own models spent.
        report: how the choice was made (JSON-ready), for people and for tests.
        warnings: what the user should know (truncated scoring, pins that eat the budget).
    """

    text: str
    tokens: int
    original_tokens: int
    kept: tuple[tuple[int, int], ...] = ()
    ledger: Ledger = field(default_factory=Ledger)
    report: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """Compression ratio: original size over new size."""
        return self.original_tokens / max(1, self.tokens)


@runtime_checkable
class Compressor(Protocol):
    """Shortens a context for one question within a budget."""

    def compress(
        self, prompt: str, question: str, budget: Budget, *, count: CountTokens, language: str = ""
    ) -> Compressed:
        """Shorten `prompt` to at most `budget.tokens`, keeping what `question` needs.

        Args:
            prompt: the context to shorten.
            question: what will be asked about it; "" where unknown.
            budget: with counts="prompt".
            count: token counter of the target model.
            language: of the context; "" to detect.

        Raises:
            BudgetError: for a budget without a prompt token limit, or below the fixed parts.
            InputError: for an empty or binary context.
        """
        ...


def prompt_limit(budget: Budget) -> int:
    """The token limit of a compressor's budget.

    Raises:
        BudgetError: if the budget does not limit prompt tokens.
    """
    if budget.tokens is None or budget.counts != "prompt":
        raise BudgetError(
            f"a compressor needs a prompt budget, got {budget.label()!r}; "
            'use Budget(tokens=..., counts="prompt")'
        )
    return budget.tokens


def check_text(text: str, what: str = "context") -> str:
    """`text` with line ends normalised to "\\n".

    Raises:
        InputError: if it is empty or holds NUL characters (binary data).
    """
    if not text.strip():
        raise InputError(f"the {what} is empty; give text to compress")
    if "\x00" in text:
        raise InputError(f"the {what} holds NUL characters, so it is binary; give source text")
    return text.replace("\r\n", "\n").replace("\r", "\n")
