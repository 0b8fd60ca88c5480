"""Layered prefill: read a long prompt one group of layers per iteration, while all others decode.

"From Tokens to Layers: Redefining Stall-Free Scheduling for LLM Serving with Layered Prefill",
arXiv 2510.08055. Chunked prefill cuts a prompt along its tokens and sends every chunk through all
layers, so a mixture-of-experts model reads nearly all its expert weights once per chunk. Here the
prompt is cut along the layers: it crosses every layer once, and decoding never pauses.

Where this differs from the paper and its code:

- the number of groups is `ceil(T / ref_chunk)`, at most `max_groups` and the number of layers
  (`rule="paper"`); `rule="official"` is the code's table of powers of two;
- `groups_per_step` (several groups an iteration while nobody decodes) and `short_first` are ours
  and off by default;
- running requests take their blocks first, and an iteration that preempted admits nobody;
- prompt tokens are not charged for decoding rows, as in the paper (chunked prefill charges them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from outlay.errors import InputError
from outlay.schedule.base import Job, Plan, check_sizes, even_groups, positive
from outlay.schedule.selection import decoders, prompts
from outlay.schedule.state import State

Rule = Literal["paper", "official"]
OFFICIAL: dict[int, tuple[int, ...]] = {
    4: (1, 2, 4),
    12: (1, 2, 4, 6, 12),
    16: (1, 2, 4, 8, 16),
    24: (1, 2, 4, 8, 24),
}
"""num_stages -> groups for cohorts of up to 1, 2, 4, 8, ... times `ref_chunk` tokens."""
PATIENCE = 4
"""With `short_first`, a request that was passed over so often goes first."""


@dataclass(frozen=True)
class LayeredPrefill:
    """The scheduler of the paper.

    Args:
        ref_chunk: the chunk of chunked prefill whose work per iteration is matched.
        rule: how the number of groups follows from a cohort's tokens: "paper" or "official".
        num_stages: most groups under rule="official": 4, 12, 16 or 24.
        max_groups: most groups under rule="paper".
        max_num_batched_tokens: most prompt tokens of a cohort; longer prompts are cut, and every
            piece is layered.
        max_num_seqs: most requests that run at once.
        group_split: "even", or the number of layers of every group, which fixes their number.
        groups_per_step: groups that advance in an iteration in which nobody decodes.
        short_first: shorter prompts enter the next cohort first.

    Raises:
        InputError: for knobs out of range.

    Example:
        >>> from outlay.schedule import LayeredPrefill
        >>> LayeredPrefill(ref_chunk=32).groups(100, layers=30)
        (8, 8, 7, 7)
    """

    ref_chunk: int = 512
    rule: Rule = "paper"
    num_stages: int = 16
    max_groups: int = 16
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    group_split: Literal["even"] | tuple[int, ...] = "even"
    groups_per_step: int = 1
    short_first: bool = False

    def __post_init__(self) -> None:
        positive(
            ref_chunk=self.ref_chunk,
            max_groups=self.max_groups,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_num_seqs=self.max_num_seqs,
            groups_per_step=self.groups_per_step,
        )
        if self.rule not in ("paper", "official"):
            raise InputError(f"rule={self.rule!r}; choose paper or official")
        if self.rule == "official" and self.num_stages not in OFFICIAL:
            known = ", ".join(map(str, OFFICIAL))
            raise InputError(f"num_stages={self.num_stages}; rule='official' knows {known}")
        if isinstance(self.group_split, str) and self.group_split != "even":
            raise InputError(f"group_split={self.group_split!r}; give 'even' or sizes of groups")

    def check(self, layers: int) -> None:
        """Raise `InputError` if the knobs do not fit a model of so many layers."""
        if not isinstance(self.group_split, str):
            check_sizes(self.group_split, layers)
        elif self.rule == "official" and self.num_stages > layers:
            raise InputError(
                f"num_stages={self.num_stages} is more than the model's {layers} layers; "
                "lower it, or use rule='paper'"
            )

    def groups(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Layers of every group for a cohort of so many tokens."""
        if not isinstance(self.group_split, str):
            return self.group_split
        if self.rule == "official":
            table = OFFICIAL[self.num_stages]
            return even_groups(
                layers,
                next(
                    (
                        groups
                        for power, groups in enumerate(table[:-1])
                        if tokens <= self.ref_chunk * 2**power
                    ),
                    table[-1],
                ),
            )
        wanted = -(-tokens // self.ref_chunk)
        return even_groups(layers, max(1, min(wanted, layers, self.max_groups)))

    def plan(self, state: State) -> Plan:
        """The next iteration: everyone decodes, the cohort enters its next group."""
        chosen = decoders(state, self.max_num_seqs)
        cohort = state.cohort
        if cohort is None:
            chunks = prompts(
                state,
                chosen,
                seats=self.max_num_seqs,
                tokens=self.max_num_batched_tokens,
                order=_short_first if self.short_first else list,
            )
            sizes = self.groups(sum(c.count for c in chunks), state.layers) if chunks else ()
            stage = 0
        else:
            chunks, sizes, stage = cohort.chunks, cohort.sizes, cohort.stage
        span = 1 if chosen.decode else min(self.groups_per_step, max(1, len(sizes) - stage))
        return Plan(chosen.ids, chunks, sizes, stage, span, chosen.gone)


def _short_first(waiting: Sequence[Job]) -> list[Job]:
    # Preempted requests and those that were passed over too often keep their turn.
    return sorted(
        waiting,
        key=lambda job: 0 if job.generated or job.passed >= PATIENCE else job.length,
    )
