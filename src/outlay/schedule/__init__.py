"""Many requests at once: schedules, an engine that runs them, a simulator for bigger machines."""

from outlay.schedule.base import Chunk, Cohort, Job, Plan, Request, Scheduler
from outlay.schedule.chunked import ChunkedPrefill
from outlay.schedule.layered import LayeredPrefill
from outlay.schedule.orca import Orca
from outlay.schedule.pool import BlockPool
from outlay.schedule.state import State

__all__ = [
    "BlockPool",
    "ChunkedPrefill",
    "Chunk",
    "Cohort",
    "Job",
    "LayeredPrefill",
    "Orca",
    "Plan",
    "Request",
    "Scheduler",
    "State",
]
