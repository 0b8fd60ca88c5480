"""Cheaper steps out: the room's one protocol."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from outlay.budget import Budget
from outlay.models.base import Account, Generation, Model, Prompt, SamplingParams


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
