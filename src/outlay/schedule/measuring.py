"""Measuring schedules on an engine: the unit of time, and one run of a trace.

Rates and limits are not seconds: they are multiples of an iteration that is timed first, so that a
trace loads a slow machine as it loads a fast one.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from outlay.errors import InputError
from outlay.schedule.base import Request, Scheduler
from outlay.schedule.chunked import ChunkedPrefill
from outlay.schedule.clock import ClockKind
from outlay.schedule.engine import Engine
from outlay.schedule.serving import Run, Server
from outlay.schedule.traces import Trace

BESIDE = 4  # requests that decode beside the timed iterations


def blocks_for(requests: Sequence[Request], block: int) -> int:
    """Blocks that hold all requests at once, at their longest."""
    return sum(-(-(len(each.prompt) + each.max_new) // block) for each in requests)


def iteration(
    engine: Engine, ref_chunk: int, *, clock: ClockKind, past: int | None = None, repeats: int = 6
) -> tuple[float, float]:
    """Median seconds of an iteration with a whole chunk of prompt, and of one without any.

    Args:
        engine: to time; it is reset before and after.
        ref_chunk: prompt tokens of the iteration.
        clock: that the seconds are of.
        past: tokens that the decoding requests have; four chunks unless given.
        repeats: timed iterations of each kind.

    Raises:
        InputError: if the chunks do not fit the model's context.
    """
    size = 4 * ref_chunk if past is None else past
    short = tuple(i % engine.vocabulary for i in range(size))
    long = tuple(i % engine.vocabulary for i in range(ref_chunk * (repeats + 1)))
    requests = [Request(i, short, 8 * repeats + 40) for i in range(BESIDE)]
    last = Request(BESIDE, long, 1)
    most = max(len(request.prompt) + request.max_new for request in (requests[0], last))
    if most > engine.context:
        raise InputError(
            f"ref_chunk={ref_chunk} is timed on sequences of {most} tokens, the model's context is "
            f"{engine.context}; lower it"
        )
    blocks = blocks_for([*requests, last], engine.block)
    engine.reset()
    server = Server(engine, ChunkedPrefill(ref_chunk + BESIDE), blocks, engine.block, clock)
    for request in requests:
        server.submit(request)
    while any(job.status != "decoding" for job in server.state.jobs.values()):
        server.step()
    alone = _median(server, repeats)
    server.submit(last)
    mixed = _median(server, repeats)
    for request_id in list(server.state.jobs):
        server.cancel(request_id)
    engine.reset()
    return mixed, alone


def _median(server: Server, repeats: int) -> float:
    """Median seconds of the next iterations, after one that warms up."""
    server.step()
    before = len(server.steps)
    for _ in range(repeats):
        server.step()
    return statistics.median(step.seconds for step in server.steps[before:])


def paced(trace: Trace, ref_chunk: int, seconds: float, load: float) -> Trace:
    """The trace at a rate whose prompts alone keep chunked prefill busy for `load` of the time.

    Args:
        trace: any rate.
        ref_chunk: tokens of a chunk.
        seconds: of an iteration with a chunk.
        load: share of the time.
    """
    chunks = trace.prompt_tokens / len(trace.requests) / ref_chunk
    return trace.at_rate(load / (chunks * seconds))


def run(
    engine: Engine, scheduler: Scheduler, requests: Sequence[Request], *, clock: ClockKind
) -> Run:
    """Serve a trace with blocks for all of its requests at once."""
    engine.reset()
    blocks = blocks_for(requests, engine.block)
    server = Server(engine, scheduler, blocks, engine.block, clock)
    result = server.serve(requests)
    engine.reset()
    return result
