"""Chunked prefill: the usual cure for stalls, and the baseline of layered prefill.

Every iteration has one budget of tokens. Decoding rows come first and cost one token each; unread
pieces of prompts, then new prompts, fill the rest; all of it goes through all layers
(Sarathi-Serve, arXiv 2403.02310, as in the `chunked` mode of the layered-prefill code).
"""

from __future__ import annotations

from dataclasses import dataclass

from outlay.schedule.base import Plan, positive
from outlay.schedule.selection import decoders, prompts
from outlay.schedule.state import State


@dataclass(frozen=True)
class ChunkedPrefill:
    """The baseline scheduler.

    Args:
        max_num_batched_tokens: tokens of an iteration, decoding rows included.
        max_num_seqs: most requests that run at once.

    Raises:
        InputError: for knobs below 1.
    """

    max_num_batched_tokens: int = 512
    max_num_seqs: int = 256

    def __post_init__(self) -> None:
        positive(max_num_batched_tokens=self.max_num_batched_tokens, max_num_seqs=self.max_num_seqs)

    def check(self, layers: int) -> None:
        """Fits models of any depth."""

    def plan(self, state: State) -> Plan:
        """The next iteration: decoding rows, then as many prompt tokens as the budget has left."""
        budget = self.max_num_batched_tokens
        chosen = decoders(state, min(self.max_num_seqs, budget))
        left = budget - len(chosen.decode)
        chunks = prompts(state, chosen, seats=self.max_num_seqs, tokens=left) if left else ()
        sizes = (state.layers,) if chunks else ()
        return Plan(chosen.ids, chunks, sizes, preempt=chosen.gone)
