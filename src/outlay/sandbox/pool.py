"""The sandbox itself: a pool of workers, shared by threads."""

from __future__ import annotations

import os
import queue
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from types import TracebackType

from outlay.errors import CapabilityError, InputError
from outlay.sandbox.base import Limits, Outcome, SandboxError
from outlay.sandbox.execution import STDIN_BYTES, Execution, encoded
from outlay.sandbox.worker import Worker, WorkerDiedError, probe

DEFAULT_IMPORTS = (
    "__future__",
    "abc",
    "array",
    "ast",
    "base64",
    "bisect",
    "calendar",
    "cmath",
    "collections",
    "collections.abc",
    "contextlib",
    "copy",
    "dataclasses",
    "datetime",
    "decimal",
    "enum",
    "fractions",
    "functools",
    "graphlib",
    "heapq",
    "io",
    "itertools",
    "json",
    "math",
    "numbers",
    "operator",
    "pprint",
    "random",
    "re",
    "statistics",
    "string",
    "struct",
    "sys",
    "textwrap",
    "time",
    "traceback",
    "types",
    "typing",
    "unicodedata",
    "warnings",
)
"""What programs may import unless told otherwise: pure computation, text and time."""

MAX_WORKERS = 256
LINE_BYTES = 1 << 20  # the longest line of a stream
_DEFAULT_LIMITS = Limits()


def isolation() -> dict[str, bool]:
    """What this machine offers to isolate programs with.

    Returns:
        "linux"; "seccomp" (a filter can be installed and holds: the sandbox needs it); "rlimits";
        "user_namespaces" (a process without rights can make namespaces); "root_namespaces" (this
        process can make them with its own rights); "root" (the sandbox becomes nobody).

    Raises:
        CapabilityError: on Linux, if the interpreter cannot be started.
    """
    names = ("linux", "seccomp", "user_namespaces", "root_namespaces", "root")
    found = probe() if sys.platform == "linux" else dict.fromkeys(names, False)
    return {**found, "rlimits": found["linux"]}


class Sandbox:
    """Runs Python programs that nobody has read.

    Each program runs in a process of its own, forked from an interpreter that was isolated before:
    no files, no network, no other processes, limited time, memory and output. Programs share
    nothing. Threads may share a sandbox. Close it, or use it as a context manager.

    Args:
        limits: of each program, unless a run has its own.
        workers: how many programs can run at the same time.
        allow_imports: modules that programs may import, dotted names for submodules; None is
            `DEFAULT_IMPORTS`. They are imported once, before isolation, with your rights.
        namespaces: True demands them, False goes without, None takes what there is. Without them
            the system-call filter alone keeps programs in.

    Raises:
        CapabilityError: if this machine cannot isolate, with what to do.
        InputError: if an argument is out of range, or a module cannot be imported.
    """

    def __init__(
        self,
        limits: Limits = _DEFAULT_LIMITS,
        *,
        workers: int = 1,
        allow_imports: tuple[str, ...] | None = None,
        namespaces: bool | None = None,
    ) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int):
            raise InputError(f"workers must be a whole number, got {workers!r}")
        if not 1 <= workers <= MAX_WORKERS:
            raise InputError(f"workers must be from 1 to {MAX_WORKERS}, got {workers}")
        if namespaces not in (True, False, None):
            raise InputError(f"namespaces must be True, False or None, got {namespaces!r}")
        self._limits = _checked(limits)
        self._modules = DEFAULT_IMPORTS if allow_imports is None else _names(allow_imports)
        self._wanted = namespaces
        self._size = workers
        self._owner = os.getpid()
        self._closed = False
        self._lock = threading.Lock()
        self._streams: Counter[int] = Counter()  # open streams by thread
        self._workers: set[Worker] = set()  # all that have not ended
        self._idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()  # None: to be started
        self._finalizer = weakref.finalize(self, _close_all, self._workers, self._owner)
        try:
            started = [self._start() for _ in range(workers)]
            for worker in started:
                worker.wait_ready()
                self._idle.put(worker)
            self._kind = started[0].kind
            self._possible(limits)
        except BaseException:
            self.close()
            for worker in self._workers:  # those that were not ready yet
                worker.close()
            raise

    @property
    def namespaces(self) -> str:
        """Of which kind the namespaces are: "user", "root", or "none"."""
        return self._kind

    def run(self, code: str, stdin: str = "", *, limits: Limits | None = None) -> Outcome:
        """Run a program to its end.

        Waits for a free worker first. A program that fails or is stopped is an outcome, not an
        exception.

        Args:
            code: Python source.
            stdin: its standard input.
            limits: in place of the sandbox's.

        Raises:
            InputError: if the code or its input is too long or not text.
            CapabilityError: if it may write files and the sandbox has no namespaces.
            SandboxError: if the sandbox is closed or its process dies repeatedly.
        """
        limits = self._limits if limits is None else self._possible(_checked(limits))
        source = encoded(code, "code", limits.code_bytes, "code_bytes")
        data = encoded(stdin, "stdin", STDIN_BYTES, "the sandbox")
        for _ in range(2):  # once more if the worker dies: the program had no effect outside
            try:
                return self._run(source, data, limits)
            except WorkerDiedError:
                self._check()
        raise SandboxError("the sandbox's process was killed twice during this program; see memory")

    def _run(self, source: bytes, stdin: bytes, limits: Limits) -> Outcome:
        worker = self._take()
        healthy = False
        try:
            execution = Execution(worker, source, stdin, limits)
            try:
                stdout = bytearray()
                while data := execution.read():
                    stdout += data
                outcome = execution.outcome(bytes(stdout))
            finally:
                execution.release()
            healthy = True
            return outcome
        finally:
            self._give(worker, healthy)

    def stream(self, code: str, *, limits: Limits | None = None) -> Iterator[str]:
        """Run a program and yield the lines of its standard output while it runs.

        The program starts with the first line asked for, and waits when its output is not read;
        this waiting counts as wall-clock time. Closing the iterator kills it. A line comes without
        its end and may have up to 1 MiB; `output_bytes` holds for all lines together.

        Args:
            code: Python source.
            limits: in place of the sandbox's.

        Raises:
            InputError: if the code is too long or not text.
            CapabilityError: if it may write files and the sandbox has no namespaces.
            SandboxError: after the last whole line, if the program fails or is stopped: its
                `outcome` tells how. Also if the sandbox is closed.
        """
        limits = self._limits if limits is None else self._possible(_checked(limits))
        source = encoded(code, "code", limits.code_bytes, "code_bytes")
        return self._stream(source, limits)

    def _stream(self, source: bytes, limits: Limits) -> Iterator[str]:
        thread = threading.get_ident()
        worker = self._take()
        self._count_stream(thread, 1)
        healthy = False
        try:
            execution = Execution(worker, source, b"", limits, streaming=True)
            try:
                yield from _lines(execution)
            finally:
                try:
                    execution.abandon()
                    healthy = True
                finally:
                    execution.release()
        except WorkerDiedError:
            self._check()
            raise SandboxError("the sandbox's process was killed; run the program again") from None
        finally:
            self._count_stream(thread, -1)
            self._give(worker, healthy)

    def close(self) -> None:
        """Kill what runs and end all processes. Can be called again."""
        self._closed = True
        if os.getpid() != self._owner:  # the processes belong to the parent of this fork
            return
        self._finalizer.detach()
        with self._lock:
            workers = list(self._workers)
        for worker in workers:  # the threads that use one will close it
            worker.end()
        while True:
            try:
                idle = self._idle.get_nowait()
            except queue.Empty:
                break
            if idle is not None:
                self._end(idle)
        self._idle.put(None)  # wakes a thread that waits; it wakes the next

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check(self) -> None:
        if self._closed:
            raise SandboxError("the sandbox is closed; make a new one")
        if os.getpid() != self._owner:
            raise SandboxError("the sandbox belongs to another process; make one after the fork")

    def _possible(self, limits: Limits) -> Limits:
        if limits.file_bytes and self._kind != "user":
            raise CapabilityError(
                "file_bytes needs unprivileged user namespaces, which are not available or were"
                " turned off; set file_bytes=0 or allow them"
            )
        return limits

    def _count_stream(self, thread: int, change: int) -> None:
        with self._lock:
            self._streams[thread] += change

    def _start(self) -> Worker:
        worker = Worker(self._modules, self._wanted)
        with self._lock:
            self._workers.add(worker)
        return worker

    def _take(self) -> Worker:
        """A free worker that is ready; waits for one."""
        self._check()
        if self._streams[threading.get_ident()] >= self._size:
            raise SandboxError(
                f"this thread's open streams hold all {self._size} workers: close a stream first,"
                " or give the sandbox more workers"
            )
        worker = self._idle.get()
        try:
            self._check()
            if worker is None or not worker.alive():
                if worker is not None:
                    self._end(worker)
                worker = None
                worker = self._start()
                worker.wait_ready()
                self._check()  # it may have been closed meanwhile, without knowing of this one
        except BaseException:
            if worker is not None:
                self._end(worker)
            self._idle.put(None)
            raise
        return worker

    def _give(self, worker: Worker, healthy: bool) -> None:
        if not healthy or self._closed:
            self._end(worker)
        self._idle.put(worker if healthy and not self._closed else None)

    def _end(self, worker: Worker) -> None:
        worker.close()
        with self._lock:
            self._workers.discard(worker)


def _lines(execution: Execution) -> Iterator[str]:
    rest = b""
    while data := execution.read():
        head, newline, tail = data.rpartition(b"\n")
        if newline:
            yield from (rest + head).decode("utf-8", "replace").split("\n")
            rest = tail
        else:
            rest += tail
        if len(rest) > LINE_BYTES:
            execution.stop(f"a line of more than {LINE_BYTES} bytes")
            execution.abandon()
    outcome = execution.outcome()
    if outcome.status != "ok":  # a line that was cut off is not a line
        about = f": {outcome.detail}" if outcome.detail else ""
        raise SandboxError(f"the program ended with status {outcome.status!r}{about}", outcome)
    if rest:
        yield rest.decode("utf-8", "replace")


def _close_all(workers: set[Worker], owner: int) -> None:
    """End what a forgotten sandbox has left, but not from a fork of its owner."""
    if os.getpid() == owner:
        for worker in workers:
            worker.close()


def _checked(limits: Limits) -> Limits:
    if not isinstance(limits, Limits):
        raise InputError(f"limits must be a Limits, got {type(limits).__name__}")
    return limits


def _names(modules: tuple[str, ...]) -> tuple[str, ...]:
    """Checked names of modules."""
    if isinstance(modules, str):
        raise InputError(f"allow_imports must be a tuple of names, got the string {modules!r}")
    for name in modules:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise InputError(f"allow_imports must hold names of modules, got {name!r}")
    return tuple(modules)
