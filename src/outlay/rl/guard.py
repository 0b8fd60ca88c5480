"""Calling foreign code that may raise, hang or eat memory: in helper processes, with a time limit.

A call that fails is counted and answered with None; a helper that takes too long is ended and
started again. Usable from any thread. No torch.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from outlay.errors import InputError
from outlay.evals.helper import Helper

_START_SECONDS = 120.0
MAX_WORKERS = 64


class Guard:
    """A pool of helper processes that call one function with JSON arguments.

    Processes start on first use.

    Args:
        target: `module:function`, importable in a fresh process.
        workers: how many processes.
        seconds: time limit of one call.

    Raises:
        InputError: for a number out of range.
    """

    def __init__(self, target: str, workers: int = 2, seconds: float = 5.0) -> None:
        if not 1 <= workers <= MAX_WORKERS:
            raise InputError(f"workers={workers}; must be in 1..{MAX_WORKERS}")
        if not 0 < seconds <= 3600:
            raise InputError(f"seconds={seconds}; must be in (0, 3600]")
        self.target, self.seconds = target, seconds
        self.calls = 0
        self.raised = 0
        self.timeouts = 0
        self.last_failure = ""
        self._lock = threading.Lock()
        self._idle: queue.Queue[Helper] = queue.Queue()
        refusal = f"the helper process for {target} did not start"
        self._helpers = [
            Helper("outlay.rl.worker", (target,), _START_SECONDS, refusal) for _ in range(workers)
        ]
        for helper in self._helpers:
            self._idle.put(helper)
        self._threads = ThreadPoolExecutor(workers)

    @property
    def failures(self) -> int:
        """Calls that raised or took too long."""
        return self.raised + self.timeouts

    def map(self, calls: Sequence[Sequence[Any]]) -> list[tuple[bool, Any]]:
        """`(True, result)` of each call, `(False, None)` where it failed; in order."""
        return list(self._threads.map(self._call, calls))

    def close(self) -> None:
        """End the helper processes."""
        self._threads.shutdown(wait=True)
        for helper in self._helpers:
            helper.stop()

    def _call(self, arguments: Sequence[Any]) -> tuple[bool, Any]:
        helper = self._idle.get()
        try:
            answer = helper.ask(list(arguments), self.seconds)
        finally:
            self._idle.put(helper)
        with self._lock:
            self.calls += 1
            if answer is None:
                self.timeouts += 1
                self.last_failure = f"no answer within {self.seconds:g} s"
                return False, None
            fine, result = answer
            if not fine:
                self.raised += 1
                self.last_failure = str(result)
                return False, None
        return True, result
