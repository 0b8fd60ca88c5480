"""One run of a program, seen from outside: its pipes, its limits, its outcome."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import time
from typing import Any

from outlay.errors import InputError
from outlay.sandbox.base import Limits, Outcome, Status
from outlay.sandbox.jail import EXIT_MEMORY
from outlay.sandbox.worker import Worker, WorkerDiedError

STDIN_BYTES = 1 << 26
STDERR_PART = 1 << 15  # of standard error, this much of its start and of its end is kept
_CHUNK = 1 << 16
_GRACE_SECONDS = 5.0  # the zygote enforces the wall limit; after this much more it is killed


def encoded(text: str, what: str, limit: int, knob: str) -> bytes:
    """Text as UTF-8.

    Raises:
        InputError: if it is not a string, cannot be encoded, or is too long.
    """
    if not isinstance(text, str):
        raise InputError(f"{what} must be a string, got {type(text).__name__}")
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{what} cannot be encoded as UTF-8: {error}") from error
    if len(data) > limit:
        raise InputError(f"{what} has {len(data)} bytes, more than {knob} allows ({limit})")
    return data


def _sealed(name: str, data: bytes) -> int:
    """A file in memory that nobody can change, read from its start."""
    import fcntl  # only where there is one

    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


class Execution:
    """A program that has been started on a worker.

    Args:
        worker: one that runs nothing.
        code: of the program.
        stdin: its standard input.
        limits: of the program.
        streaming: its output is read while it runs.

    Raises:
        WorkerDiedError: if the zygote is gone.
    """

    def __init__(
        self,
        worker: Worker,
        code: bytes,
        stdin: bytes,
        limits: Limits,
        *,
        streaming: bool = False,
    ) -> None:
        self._worker = worker
        self._limits = limits
        self._result: dict[str, Any] | None = None
        self._overflow = ""
        self._stdout_bytes = 0
        self._stderr_bytes = 0
        self._stderr_head = bytearray()
        self._stderr_tail = bytearray()
        self._pipes: dict[int, str] = {}
        self._poll = select.poll()
        given: list[int] = []
        try:
            given.append(_sealed("code", code))
            given.append(_sealed("stdin", stdin))
            for name in ("stdout", "stderr"):
                own, other = os.pipe()
                self._pipes[own] = name
                given.append(other)
                self._poll.register(own, select.POLLIN)
            self._poll.register(worker.descriptor(), select.POLLIN)
            worker.start(dataclasses.asdict(limits), given, streaming=streaming)
        except BaseException:
            self.release()
            raise
        finally:
            for descriptor in given:
                os.close(descriptor)
        self._deadline = time.monotonic() + limits.wall_seconds + _GRACE_SECONDS

    def read(self) -> bytes:
        """The next piece of standard output; b"" after the last, when the program has ended.

        Raises:
            WorkerDiedError: if the zygote is gone, or does not keep to the wall limit.
        """
        while self._pipes or self._result is None:
            left = max(self._deadline - time.monotonic(), _GRACE_SECONDS)
            events = self._poll.poll(left * 1000)
            if not events:
                raise WorkerDiedError
            out = b""
            for descriptor, _ in events:
                if descriptor not in self._pipes:
                    self._result = self._worker.result()
                    self._poll.unregister(descriptor)
                    continue
                data = os.read(descriptor, _CHUNK)
                if not data:
                    self._close(descriptor)
                elif self._pipes[descriptor] == "stdout":
                    out = data[: max(0, self._limits.output_bytes - self._stdout_bytes)]
                    self._count("stdout", len(data))
                else:
                    self._keep_stderr(data)
            if out:
                return out
        return b""

    def _count(self, name: str, size: int) -> None:
        if name == "stdout":
            self._stdout_bytes += size
        else:
            self._stderr_bytes += size
        seen = max(self._stdout_bytes, self._stderr_bytes)
        if seen > self._limits.output_bytes and not self._overflow:
            self.stop(f"more than output_bytes={self._limits.output_bytes} on {name}")

    def _keep_stderr(self, data: bytes) -> None:
        room = STDERR_PART - len(self._stderr_head)
        self._stderr_head += data[:room]
        self._stderr_tail += data[room:]
        del self._stderr_tail[:-STDERR_PART]
        self._count("stderr", len(data))

    def stop(self, reason: str) -> None:
        """Kill the program, and say that it went over the output limit for this reason."""
        self._overflow = reason
        self._worker.stop()

    def abandon(self) -> None:
        """Kill the program, throw away its output and wait until it has gone.

        Raises:
            WorkerDiedError: if the zygote is gone.
        """
        if self._result is None:
            self._worker.stop()
        while self.read():
            pass

    def release(self) -> None:
        """Close the pipes."""
        for descriptor in list(self._pipes):
            self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        del self._pipes[descriptor]
        with contextlib.suppress(KeyError):  # it may not have been registered yet
            self._poll.unregister(descriptor)
        os.close(descriptor)

    def outcome(self, stdout: bytes = b"") -> Outcome:
        """What became of the program; call it after `read` has returned b""."""
        assert self._result is not None
        stderr = self._stderr()
        status, detail = self._status(stderr)
        return Outcome(
            status, stdout.decode("utf-8", "replace"), stderr, self._result["seconds"], detail
        )

    def _stderr(self) -> str:
        left_out = self._stderr_bytes - len(self._stderr_head) - len(self._stderr_tail)
        parts = [bytes(self._stderr_head), bytes(self._stderr_tail)]
        if left_out:
            parts.insert(1, f"\n[{left_out} bytes left out]\n".encode())
        return b"".join(parts).decode("utf-8", "replace")

    def _status(self, stderr: str) -> tuple[Status, str]:
        assert self._result is not None
        code, stopped_by = self._result["code"], self._result["stopped_by"]
        limits = self._limits
        if self._overflow:
            return "output", self._overflow
        if stopped_by == "wall":
            return "wall", f"still running after wall_seconds={limits.wall_seconds:g}"
        if stopped_by == "cpu" or (
            code in (-signal.SIGXCPU, -signal.SIGKILL)
            and self._result["cpu_seconds"] >= limits.cpu_seconds
        ):
            return "cpu", f"still running after cpu_seconds={limits.cpu_seconds:g} of processor"
        if code == 0:
            return "ok", ""
        if code == EXIT_MEMORY:
            return "memory", f"more than memory_mb={limits.memory_mb}"
        if code == -signal.SIGSYS:
            return "processes", "it tried to start a process or a thread, or used a foreign ABI"
        if code < 0:
            return "killed", f"by signal {-code} ({signal.strsignal(-code)})"
        lines = stderr.strip().splitlines()
        return "error", lines[-1][:500] if lines else f"exit code {code}"
