"""The books of a server: lists of jobs, the cohort in flight, the KV pool.

The same books serve the engine and the simulator. A scheduler reads them; `begin` checks a plan
against them and applies what it takes (preemptions, admissions, blocks), `commit` applies what came
of it, `drop` ends a job at any time and frees all that it held.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from outlay.errors import InputError
from outlay.schedule.base import Cohort, End, Job, Plan, Request, check_sizes, positive
from outlay.schedule.pool import BlockPool


class State:
    """Jobs by list and the pool that they live in.

    Args:
        layers: of the model.
        pool: blocks for keys and values.
        context: most tokens of a sequence.
        max_jobs: most unfinished jobs; a submission beyond it is refused.
    """

    def __init__(
        self, layers: int, pool: BlockPool, *, context: int = 2**20, max_jobs: int = 100_000
    ) -> None:
        positive(layers=layers, context=context, max_jobs=max_jobs)
        self.layers = layers
        self.pool = pool
        self.context = context
        self.max_jobs = max_jobs
        self.jobs: dict[int, Job] = {}
        self.waiting: list[Job] = []
        self.prefilling: list[Job] = []
        self.decoding: list[Job] = []
        self.cohort: Cohort | None = None
        self.preemptions = 0

    @property
    def idle(self) -> bool:
        """True if no job is left."""
        return not self.jobs

    def submit(self, request: Request) -> Job:
        """Put a request at the end of the queue.

        Raises:
            InputError: for an id in use, a full queue, or a request that can never fit the context
                or the pool: it is refused here, so that it cannot block the queue later.
        """
        if request.id in self.jobs:
            raise InputError(f"request {request.id} is here already; give every request its own id")
        if len(self.jobs) >= self.max_jobs:
            raise InputError(f"{self.max_jobs} requests are in flight; try later or raise max_jobs")
        most = len(request.prompt) + request.max_new
        if most > self.context:
            raise InputError(
                f"request {request.id}: {len(request.prompt)} prompt and {request.max_new} new "
                f"tokens exceed the context of {self.context}; shorten the prompt or lower max_new"
            )
        room = self.pool.num_blocks * self.pool.block_size
        if self.pool.blocks(most) > self.pool.num_blocks:
            raise InputError(
                f"request {request.id} needs {most} rows of KV cache, the whole pool has {room}; "
                "raise num_blocks, shorten the prompt or lower max_new"
            )
        job = Job(request, limit=request.limit)
        self.jobs[request.id] = job
        self.waiting.append(job)
        return job

    # -- one iteration --------------------------------------------------------------------------

    def begin(self, plan: Plan) -> None:
        """Check a plan and take what it needs.

        Raises:
            InputError: for a plan that breaks a rule: a bug of its scheduler.
        """
        for id_ in plan.preempt:
            self._preempt(self._in(self.decoding, id_, "preempted"))
        for id_ in plan.decode:
            job = self._in(self.decoding, id_, "decoded")
            self.pool.allocate(id_, job.length)
        if len(set(plan.decode)) != len(plan.decode):
            raise InputError("a plan decodes a job twice in one iteration")
        if not plan.prefill:
            if self.cohort is not None:
                raise InputError("a plan forgets the cohort in flight; return its next stage")
            return
        check_sizes(plan.sizes, self.layers)
        if plan.span < 1 or plan.stage + plan.span > len(plan.sizes):
            raise InputError(f"stage {plan.stage} + {plan.span} of {len(plan.sizes)} groups")
        current = self.cohort
        if current is not None:
            if (plan.prefill, plan.sizes, plan.stage) != (
                current.chunks,
                current.sizes,
                current.stage,
            ):
                raise InputError("a plan mixes stages: a cohort in flight goes on unchanged")
            return
        if plan.stage:
            raise InputError(f"a new cohort starts at stage 0, not {plan.stage}")
        self._admit(plan)
        self.cohort = Cohort(plan.prefill, plan.sizes)

    def _admit(self, plan: Plan) -> None:
        entering = {chunk.id for chunk in plan.prefill}
        if len(entering) != len(plan.prefill):
            raise InputError("a plan has two chunks of one job in a cohort")
        last = max((i for i, job in enumerate(self.waiting) if job.id in entering), default=-1)
        for job in self.waiting[: last + 1]:
            job.passed += job.id not in entering
        for chunk in plan.prefill:
            job = self.jobs[chunk.id]
            if job.status == "waiting":
                self.waiting.remove(job)
                job.status = "prefilling"
                self.prefilling.append(job)
                self.pool.allocate(job.id, job.length)
            if job.status != "prefilling" or chunk.start != job.done:
                raise InputError(f"a plan reads job {job.id} from token {chunk.start}, not in turn")
            if not 1 <= chunk.count <= job.length - job.done:
                raise InputError(f"a plan reads {chunk.count} tokens of job {job.id}")

    def commit(self, plan: Plan, tokens: Mapping[int, int]) -> list[Job]:
        """Book the iteration's tokens, by job id; returns the jobs that finished.

        Raises:
            InputError: if a job that must have a token got none: a bug of the executor.
        """
        finished: list[Job] = []
        if plan.prefill:
            cohort = self.cohort
            assert cohort is not None
            self.cohort = None if plan.final else replace(cohort, stage=plan.stage + plan.span)
            if plan.final:
                for chunk in plan.prefill:
                    job = self.jobs[chunk.id]
                    job.done += chunk.count
                    if job.done == job.length:
                        self.prefilling.remove(job)
                        job.status = "decoding"
                        self.decoding.append(job)
                        self._token(job, tokens, finished)
        for id_ in plan.decode:
            job = self.jobs[id_]
            job.done += 1
            self._token(job, tokens, finished)
        return finished

    def _token(self, job: Job, tokens: Mapping[int, int], finished: list[Job]) -> None:
        if job.id not in tokens:
            raise InputError(f"the executor returned no token for job {job.id}")
        token = tokens[job.id]
        job.generated.append(token)
        end: End | None = None
        if token in job.request.eos:
            end = "eos"
        elif len(job.generated) >= job.request.max_new:
            end = "length"
        elif job.limit is not None and job.length >= job.limit:
            end = "limit"
        if end is not None:
            self.drop(job.id, end)
            finished.append(job)

    # -- ends -----------------------------------------------------------------------------------

    def drop(self, id_: int, end: End) -> bool:
        """End a job wherever it is and free its blocks; False if it is not here.

        A job in a cohort leaves it; the others go on.
        """
        job = self.jobs.pop(id_, None)
        if job is None:
            return False
        for jobs in (self.waiting, self.prefilling, self.decoding):
            if job in jobs:
                jobs.remove(job)
        if self.cohort is not None:
            chunks = tuple(chunk for chunk in self.cohort.chunks if chunk.id != id_)
            self.cohort = replace(self.cohort, chunks=chunks) if chunks else None
        self.pool.release(id_)
        job.status, job.end = "finished", end
        return True

    def expired(self, now: float) -> list[tuple[int, End]]:
        """Jobs to give up at `now`: timed out, or over a limit that was lowered since."""
        found: list[tuple[int, End]] = []
        for job in self.jobs.values():
            request = job.request
            if request.timeout is not None and now - request.arrival >= request.timeout:
                found.append((job.id, "timeout"))
            elif job.limit is not None and job.length > job.limit:
                found.append((job.id, "limit"))
        return found

    def _preempt(self, job: Job) -> None:
        self.decoding.remove(job)
        self.pool.release(job.id)
        job.done, job.status = 0, "waiting"
        self.waiting.insert(0, job)
        self.preemptions += 1

    @staticmethod
    def _in(jobs: list[Job], id_: int, what: str) -> Job:
        for job in jobs:
            if job.id == id_:
                return job
        raise InputError(f"job {id_} cannot be {what}: it is not decoding")
