"""Orca: iteration-level scheduling without chunks.

"Orca: A Distributed Serving System for Transformer-Based Generative Models" (OSDI 2022), as in the
`orca` mode of the layered-prefill code: whole prompts join the running batch, so everybody's next
token waits for them.
"""

from __future__ import annotations

from dataclasses import dataclass

from outlay.schedule.base import Plan, positive
from outlay.schedule.selection import decoders, prompts
from outlay.schedule.state import State


@dataclass(frozen=True)
class Orca:
    """The baseline that stalls.

    Args:
        max_num_batched_tokens: most prompt tokens of an iteration; a longer prompt runs alone.
        max_num_seqs: most requests that run at once.

    Raises:
        InputError: for knobs below 1.
    """

    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256

    def __post_init__(self) -> None:
        positive(max_num_batched_tokens=self.max_num_batched_tokens, max_num_seqs=self.max_num_seqs)

    def check(self, layers: int) -> None:
        """Fits models of any depth."""

    def plan(self, state: State) -> Plan:
        """The next iteration: whole prompts and everyone who decodes, in one batch."""
        chosen = decoders(state, self.max_num_seqs)
        chunks = prompts(
            state,
            chosen,
            seats=self.max_num_seqs,
            tokens=self.max_num_batched_tokens,
            whole=True,
        )
        sizes = (state.layers,) if chunks else ()
        return Plan(chosen.ids, chunks, sizes, preempt=chosen.gone)
