"""The schedules that are compared everywhere, at any reference chunk."""

from __future__ import annotations

from collections.abc import Mapping

from outlay.schedule.base import Scheduler, positive
from outlay.schedule.chunked import ChunkedPrefill
from outlay.schedule.layered import LayeredPrefill
from outlay.schedule.orca import Orca

GROUPS = 16


def layered(ref_chunk: int, *, groups: int = GROUPS) -> LayeredPrefill:
    """Layered prefill as in the paper: cohorts of at most `groups` reference chunks."""
    return LayeredPrefill(
        ref_chunk=ref_chunk, max_groups=groups, max_num_batched_tokens=groups * ref_chunk
    )


def compared(ref_chunk: int) -> Mapping[str, Scheduler]:
    """Layered prefill and its baselines at equal work per iteration, by name."""
    positive(ref_chunk=ref_chunk)
    return {
        "layered": layered(ref_chunk),
        "chunked": ChunkedPrefill(ref_chunk),
        "chunked 2x": ChunkedPrefill(2 * ref_chunk),
        "chunked 4x": ChunkedPrefill(4 * ref_chunk),
        "orca": Orca(GROUPS * ref_chunk),
    }
