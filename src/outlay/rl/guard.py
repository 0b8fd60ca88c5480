"""Calling foreign code that may raise, hang or eat memory: in helper processes, with a time limit.

A call that fails is counted and answered with None; a helper that takes too long is ended and
started again. Usable from any thread. No torch.
"""

from __future__ import annotations

import atexit
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from outlay.errors import InputError, OutlayError

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
        self._idle: queue.Queue[_Helper] = queue.Queue()
        self._helpers = [_Helper(target) for _ in range(workers)]
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
            answer = helper.ask(json.dumps(list(arguments)), self.seconds)
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


class _Helper:
    """One process."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()

    def ask(self, line: str, seconds: float) -> list[Any] | None:
        """The answer to one request; None if it did not come in time."""
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
        try:
            assert process.stdin is not None
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer = self._lines.get(timeout=seconds)
        except (queue.Empty, OSError):
            answer = ""
        if not answer:
            self.stop()
            return None
        parsed: list[Any] = json.loads(answer)
        return parsed

    def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        atexit.unregister(process.kill)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "outlay.rl.worker", self._target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
        atexit.register(process.kill)
        self._process, self._lines = process, lines
        try:
            ready = lines.get(timeout=_START_SECONDS)
        except queue.Empty:
            ready = ""
        if not ready:
            self.stop()
            raise OutlayError(
                f"the helper process for {self._target} did not start; check that "
                f"`python -m outlay.rl.worker {self._target}` runs"
            )
        return process


def _pump(stream: IO[str], lines: queue.Queue[str]) -> None:
    try:
        for line in stream:
            lines.put(line)
    except ValueError:  # closed by stop
        pass
    lines.put("")
