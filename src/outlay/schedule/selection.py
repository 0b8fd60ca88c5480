"""What all schedulers share: who decodes, and whose prompt is read next.

Running requests come first in every policy: they take their slots before a prompt is admitted, and
an iteration that had to preempt admits nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from outlay.schedule.base import Chunk, Job
from outlay.schedule.state import State


@dataclass
class Chosen:
    """The decoding side of a plan, and the blocks that are left."""

    decode: list[Job] = field(default_factory=list)
    preempt: list[Job] = field(default_factory=list)
    free: int = 0

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of the jobs that decode."""
        return tuple(job.id for job in self.decode)

    @property
    def gone(self) -> tuple[int, ...]:
        """Ids of the jobs that are preempted."""
        return tuple(job.id for job in self.preempt)


def decoders(state: State, most: int) -> Chosen:
    """Jobs that decode in this iteration, in order.

    Each needs a slot for one token. Where none is free, the last job of the list gives up its
    blocks; a job with nobody behind it gives up its own.
    """
    chosen = Chosen(free=state.pool.free)
    running = list(state.decoding)
    position = 0
    while position < len(running) and len(chosen.decode) < most:
        job = running[position]
        wanted = state.pool.missing(job.id, job.length)
        while wanted > chosen.free and position < len(running):
            victim = running.pop()  # ends with the job itself
            chosen.free += state.pool.lent.get(victim.id, 0)
            chosen.preempt.append(victim)
        if position < len(running):
            chosen.free -= wanted
            chosen.decode.append(job)
        position += 1
    return chosen


def prompts(
    state: State,
    chosen: Chosen,
    *,
    seats: int,
    tokens: int,
    whole: bool = False,
    order: Callable[[Sequence[Job]], Sequence[Job]] = list,
) -> tuple[Chunk, ...]:
    """Chunks of a new cohort: leftovers first, then the queue, while seats and tokens remain.

    Args:
        state: of the server.
        chosen: what decoding took.
        seats: most jobs that run at once, decoding ones included.
        tokens: most prompt tokens.
        whole: prompts are never cut; the first one goes in whatever its length.
        order: of the queue; FIFO unless given.
    """
    chunks: list[Chunk] = []
    left = tokens
    for job in state.prefilling:
        count = min(job.length - job.done, left)
        if count < 1:
            return tuple(chunks)
        chunks.append(Chunk(job.id, job.done, count))
        left -= count
    if chosen.preempt:
        return tuple(chunks)
    running = len(state.decoding) + len(state.prefilling)
    free = chosen.free
    for job in order(state.waiting):
        blocks = state.pool.blocks(job.length)
        room = left >= job.length or not chunks if whole else left > 0
        if running >= seats or not room or blocks > free:
            break  # nobody overtakes the first that does not fit
        count = job.length if whole else min(job.length, left)
        chunks.append(Chunk(job.id, 0, count))
        left -= count
        running += 1
        free -= blocks
    return tuple(chunks)
