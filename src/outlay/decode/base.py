"""Cheaper steps out: the room's one protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from outlay.budget import Budget
from outlay.models.base import Account, Finish, Generation, Model, Prompt, SamplingParams


@dataclass(frozen=True)
class ThinkResult(Generation):
    """An answer and the thinking before it; `text` and `token_ids` are the answer's.

    Args:
        thinking: its text, forced "Wait"s included, delimiters not.
        think_finish: why it ended: "stop" by its end marker, "eos" by end-of-text, "length" or
            "budget" by force.
        waits: continuations that were forced.
        tokens: by kind: "thinking" (sampled while thinking, end markers included), "forced"
            (waits, close and answer prefix), "answer" (sampled after that).
    """

    thinking: str = ""
    think_finish: Finish = "length"
    waits: int = 0
    tokens: Mapping[str, int] = field(default_factory=dict)


@runtime_checkable
class Decoder(Protocol):
    """A way of decoding an answer within a budget."""

    def generate(
        self,
        model: Model,
        prompt: Prompt,
        budget: Budget,
        sampling: SamplingParams = ...,
        *,
        account: Account | None = None,
    ) -> Generation:
        """Answer `prompt`, spending at most `budget`."""
        ...
