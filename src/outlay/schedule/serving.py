"""A server's loop: arrivals, plans, iterations, times. The engine and the simulator run in it.

    server = Server(Engine(network), LayeredPrefill(), num_blocks=512)
    run = server.serve(trace)
    run.summary.ttft_mean

One loop, one thread: `submit`, `cancel` and `lower` are called between steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from outlay.errors import InputError, ModelError
from outlay.schedule.base import End, Job, Plan, Request, Scheduler
from outlay.schedule.clock import Clock, ClockKind
from outlay.schedule.counters import Traffic
from outlay.schedule.pool import BlockPool
from outlay.schedule.state import State
from outlay.schedule.stopwatch import Summary, Timing, summarise


class Executor(Protocol):
    """What runs plans: `engine.Engine` or `simulator.Simulated`."""

    depth: int
    context: int

    def run(self, plan: Plan, jobs: Mapping[int, Job]) -> dict[int, int]:
        """Execute one iteration; the sampled tokens by job id."""
        ...

    def release(self, id_: int) -> None:
        """Free all that a request holds."""
        ...

    def counted(self) -> Traffic:
        """The traffic so far."""
        ...


@dataclass(frozen=True)
class Shape:
    """The work of one iteration, as a cost model sees it.

    Args:
        layers: of the model.
        group: layers that have prompt rows.
        prompt_rows: rows of prompts.
        prompts: how many prompts they belong to.
        prompt_pairs: pairs of a prompt row and a row that it attends to, in one layer.
        decode_rows: rows of decoding requests.
        decode_pairs: rows that they attend to, in one layer.
        sampled: rows that go through the head.
    """

    layers: int
    group: int = 0
    prompt_rows: int = 0
    prompts: int = 0
    prompt_pairs: int = 0
    decode_rows: int = 0
    decode_pairs: int = 0
    sampled: int = 0


def shape_of(plan: Plan, jobs: Mapping[int, Job], layers: int) -> Shape:
    """The work of a plan that was begun."""
    low, high = plan.group
    ready = [c for c in plan.prefill if plan.final and c.start + c.count == jobs[c.id].length]
    return Shape(
        layers,
        high - low,
        sum(chunk.count for chunk in plan.prefill),
        len(plan.prefill),
        sum(chunk.count * (chunk.start + (chunk.count + 1) // 2) for chunk in plan.prefill),
        len(plan.decode),
        sum(jobs[id_].length for id_ in plan.decode),
        len(plan.decode) + len(ready),
    )


Cost = Callable[[Shape], float]
"""Seconds of an iteration."""


@dataclass(frozen=True)
class Step:
    """One iteration that ran."""

    start: float
    seconds: float
    shape: Shape


@dataclass
class Run:
    """What serving a trace gave.

    Args:
        timings: by request id.
        steps: iterations.
        traffic: what they moved.
        clock: which clock the seconds are of.
        preemptions: how often a request gave up its blocks.
        cohorts: how many cohorts crossed the layers.
        peak_blocks: most blocks in use.
    """

    timings: dict[int, Timing]
    steps: list[Step]
    traffic: Traffic
    clock: ClockKind
    preemptions: int = 0
    cohorts: int = 0
    peak_blocks: int = 0

    @property
    def summary(self) -> Summary:
        """The run in numbers."""
        return summarise(self.timings.values())

    def tokens(self) -> dict[int, tuple[int, ...]]:
        """Generated token ids by request id."""
        return {id_: tuple(timing.token_ids) for id_, timing in self.timings.items()}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "clock": self.clock,
            "steps": len(self.steps),
            "cohorts": self.cohorts,
            "preemptions": self.preemptions,
            "peak_blocks": self.peak_blocks,
            **self.summary.to_dict(),
            **self.traffic.to_dict(),
        }


@dataclass
class Server:
    """Serves requests by a schedule.

    Args:
        executor: runs the plans.
        scheduler: makes them.
        num_blocks: KV blocks in all.
        block_size: tokens of a block.
        clock: "wall", "cpu" or "virtual".
        cost: seconds of an iteration; needed by the virtual clock.
        max_jobs: most unfinished requests.

    Raises:
        InputError: for knobs that do not fit the model, or a virtual clock without a cost.
    """

    executor: Executor
    scheduler: Scheduler
    num_blocks: int = 1024
    block_size: int = 16
    clock: ClockKind = "wall"
    cost: Cost | None = None
    max_jobs: int = 100_000
    timings: dict[int, Timing] = field(default_factory=dict, init=False)
    steps: list[Step] = field(default_factory=list, init=False)
    cohorts: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.scheduler.check(self.executor.depth)
        if self.clock == "virtual" and self.cost is None:
            raise InputError("clock='virtual' needs cost=, the seconds of an iteration")
        self.state = State(
            self.executor.depth,
            BlockPool(self.num_blocks, self.block_size),
            context=self.executor.context,
            max_jobs=self.max_jobs,
        )
        self.time = Clock(self.clock)

    def submit(self, request: Request) -> None:
        """Queue a request; its arrival counts as given.

        Raises:
            InputError: for a request that can never run; see `State.submit`.
        """
        if request.id in self.timings:
            raise InputError(f"request {request.id} was here before; give every request its own id")
        self.state.submit(request)
        self.timings[request.id] = Timing(request.arrival)

    def cancel(self, id_: int) -> bool:
        """End a request now and free its cache, whatever it is doing; False if it is not here."""
        return self._end(id_, "cancelled")

    def lower(self, id_: int, limit: int) -> None:
        """Lower a request's limit of prompt and output tokens; it ends where it is beyond that.

        Raises:
            InputError: for a request that is not here.
        """
        if id_ not in self.state.jobs:
            raise InputError(f"request {id_} is not in flight")
        self.state.jobs[id_].limit = limit

    def _end(self, id_: int, end: End) -> bool:
        if not self.state.drop(id_, end):
            return False
        self.executor.release(id_)
        self.timings[id_].end = end
        return True

    def step(self) -> Step | None:
        """One iteration; None if nothing is to do.

        Raises:
            ModelError: if the schedule leaves jobs and does nothing.
        """
        for id_, end in self.state.expired(self.time.now()):
            self._end(id_, end)
        if self.state.idle:
            return None
        plan = self.scheduler.plan(self.state)
        if plan.empty and not plan.preempt:
            raise ModelError(
                f"{type(self.scheduler).__name__} planned nothing while {len(self.state.jobs)} "
                "requests are in flight; this is a bug of the scheduler"
            )
        self.cohorts += bool(plan.prefill) and self.state.cohort is None
        self.state.begin(plan)
        for id_ in plan.preempt:
            self.executor.release(id_)
        shape = shape_of(plan, self.state.jobs, self.state.layers)
        start = self.time.now()
        tokens = {} if plan.empty else self.executor.run(plan, self.state.jobs)
        if self.cost is not None:
            self.time.spend(self.cost(shape))
        now = self.time.now()
        for id_, token in tokens.items():
            self.timings[id_].tokens.append(now)
            self.timings[id_].token_ids.append(token)
        for job in self.state.commit(plan, tokens):
            self.executor.release(job.id)
            self.timings[job.id].end = job.end
        self.steps.append(Step(start, now - start, shape))
        return self.steps[-1]

    def serve(self, requests: Sequence[Request]) -> Run:
        """Serve an open-loop trace to its end: arrivals do not wait for answers.

        Raises:
            InputError: for a request that can never run.
        """
        coming = sorted(requests, key=lambda request: request.arrival)
        self.time = Clock(self.clock)
        at = 0
        while at < len(coming) or not self.state.idle:
            now = self.time.now()
            while at < len(coming) and coming[at].arrival <= now:
                self.submit(coming[at])
                at += 1
            if self.step() is None and at < len(coming):
                self.time.skip_to(coming[at].arrival)
        return self.result()

    def result(self) -> Run:
        """What was served so far."""
        return Run(
            self.timings,
            self.steps,
            self.executor.counted(),
            self.clock,
            self.state.preemptions,
            self.cohorts,
            self.state.pool.peak,
        )
