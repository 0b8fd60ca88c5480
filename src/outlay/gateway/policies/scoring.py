"""Local scoring outside the event loop: processes that can crash, hang and be stopped.

A job that finds no free process waits in a queue of limited length. One that takes too long has its
process stopped; the next job gets a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from outlay.errors import OutlayError
from outlay.gateway.policies.tables import Scoring

log = logging.getLogger("outlay.gateway")
_LONGEST_ANSWER = 64_000_000
_CACHE = "OUTLAY_CACHE"  # where models are
_NAMES = ("method", "verifier", "scorer")  # what a job says of the method that it needs


class ScoringError(OutlayError):
    """A job that was not done.

    Args:
        why: "busy", "timeout", "crashed" or "failed".
        message: without anything of the prompt.
        detail: what the method said, which may quote the prompt.
    """

    def __init__(self, why: str, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.why, self.detail = why, detail


@dataclass
class Scorers:
    """The processes of one worker.

    Args:
        table: how many, and their limits.
        hidden: variables of the environment that they do not get.
    """

    table: Scoring
    hidden: frozenset[str] = frozenset()
    _free: asyncio.LifoQueue[_Process] = field(init=False)
    _all: list[_Process] = field(init=False)
    _waiting: int = 0
    _warmed: list[_Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._all = [_Process(self.table.threads, self.hidden) for _ in range(self.table.processes)]
        self._free = asyncio.LifoQueue()
        for each in self._all:
            self._free.put_nowait(each)

    async def run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Do one job.

        Raises:
            ScoringError: if it could not be done in time, or at all.
        """
        if self._free.empty() and self._waiting >= self.table.queue:
            raise ScoringError("busy", f"{self._waiting} jobs wait already; raise scoring.queue")
        self._waiting += 1
        try:
            async with asyncio.timeout(self.table.seconds):
                process = await self._free.get()
        except TimeoutError:
            raise ScoringError("timeout", "no process was free in time") from None
        finally:
            self._waiting -= 1
        try:
            return await process.run(job, self.table.seconds, self.table.start_seconds)
        finally:
            self._free.put_nowait(process)

    async def warm(self, jobs: list[Mapping[str, Any]]) -> None:
        """Load what `jobs` need in every process; failures are logged."""
        try:
            for _ in self._all:
                process = await self._free.get()
                self._warmed.append(process)
                try:
                    for job in jobs:
                        await process.run(job, self.table.start_seconds, self.table.start_seconds)
                except ScoringError as error:
                    message = f"{error} {error.detail}".strip()  # no prompt has been read yet
                    log.error("a scoring process cannot load what a policy needs: %s", message)
        finally:
            for process in self._warmed:
                self._free.put_nowait(process)
            self._warmed.clear()

    async def close(self) -> None:
        """Stop all processes."""
        for each in self._all:
            await each.stop()


class _Process:
    """One child process; started by its first job, and again after it was stopped."""

    def __init__(self, threads: int, hidden: frozenset[str]) -> None:
        self._threads, self._hidden = threads, hidden
        self._child: asyncio.subprocess.Process | None = None

    async def run(
        self, job: Mapping[str, Any], seconds: float, start_seconds: float
    ) -> dict[str, Any]:
        child = self._child
        if child is None or child.returncode is not None:
            child = await self._start()
            named = {name: job[name] for name in _NAMES if name in job}
            await self._ask(child, {**named, "do": "load"}, start_seconds)
        return await self._ask(child, job, seconds)

    async def _ask(
        self, child: asyncio.subprocess.Process, job: Mapping[str, Any], seconds: float
    ) -> dict[str, Any]:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                child.stdin.write(json.dumps(job).encode() + b"\n")
                await child.stdin.drain()
                line = await child.stdout.readline()
        except TimeoutError:
            await self.stop()
            raise ScoringError("timeout", f"took longer than {seconds:g} s") from None
        except (ConnectionError, ValueError) as error:
            await self.stop()
            raise ScoringError("crashed", f"the scoring process broke ({error})") from error
        except BaseException:  # given up half-way: its answer would be the next job's
            await self.stop()
            raise
        if not line.endswith(b"\n"):
            await self.stop()
            raise ScoringError("crashed", "the scoring process ended without an answer")
        answer = json.loads(line)
        if "error" in answer:
            raise ScoringError("failed", f"it raised {answer['error']}", answer["detail"])
        found: dict[str, Any] = answer["ok"]
        return found

    async def _start(self) -> asyncio.subprocess.Process:
        arguments = (str(self._threads), str(os.getpid()))
        try:
            self._child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "outlay.gateway.policies.worker", *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LONGEST_ANSWER,
                env={**self._environment(), "OMP_NUM_THREADS": str(self._threads)},
            )
        except OSError as error:
            raise ScoringError("crashed", f"no process could be started ({error})") from error
        return self._child

    def _environment(self) -> dict[str, str]:
        """This process's, without the gateway's own settings, which may hold passwords."""
        return {
            name: value
            for name, value in os.environ.items()
            if name not in self._hidden and (name == _CACHE or not name.startswith("OUTLAY_"))
        }

    async def stop(self) -> None:
        child, self._child = self._child, None
        if child is not None and child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
