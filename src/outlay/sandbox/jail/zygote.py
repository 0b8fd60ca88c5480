"""The zygote: isolates itself once, then forks one fresh child for each program.

It never sees a program: code and input travel as file descriptors that only the child reads, so
that no program finds another one's text in the memory that it inherits.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import errno
import gc
import importlib
import json
import os
import platform
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from math import ceil
from typing import Any, NoReturn

from . import confine, linux, program
from .seccomp import MACHINES, Filter

MESSAGE_BYTES = 1 << 16
DESCRIPTORS = 4  # code, stdin, stdout, stderr
# What the standard library imports only when it is needed: too late for a program.
_LATE_MODULES = ("_strptime", "unicodedata", "traceback", "linecache", "tokenize")
_LATE_CODECS = (
    "ascii",
    "cp1252",
    "latin-1",
    "unicode_escape",
    "utf-8-sig",
    *(f"utf-{bits}{order}" for bits in (16, 32) for order in ("", "-le", "-be")),
)


class _RefusedError(Exception):
    """A reason not to start, for the caller."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def main(descriptor: int) -> NoReturn:
    """Start: read the configuration, isolate, answer, serve until the other end closes.

    Args:
        descriptor: of the control socket.
    """
    number = os.dup(descriptor)  # a low one, below the limit that is set later
    os.close(descriptor)
    control = socket.socket(fileno=number)
    try:
        configuration = json.loads(control.recv(MESSAGE_BYTES * 8))
        if configuration.get("probe"):
            _send(control, probe())
        else:
            _start(control, configuration)
    except _RefusedError as refusal:
        _send(control, {"refused": refusal.kind, "message": str(refusal)})
    except OSError as error:
        _send(control, _failure(error))
    os._exit(0)


def _failure(error: OSError) -> dict[str, str]:
    return {"refused": "capability", "message": f"isolation failed: {error}"}


def _send(control: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # nobody is left to tell
        control.send(json.dumps(message).encode())


def probe() -> dict[str, bool]:
    """What this machine offers."""
    machine = platform.machine()
    known = sys.platform == "linux" and machine in MACHINES and sys.maxsize > 1 << 32
    seccomp = known and _filter_holds(Filter(machine, files=False))
    return {
        "linux": sys.platform == "linux",
        "seccomp": seccomp,
        "user_namespaces": known and confine.works(confine.user_namespace),
        "root_namespaces": known and confine.works(confine.root_namespace),
        "root": os.geteuid() == 0,
    }


def _start(control: socket.socket, configuration: dict[str, Any]) -> None:
    machine = platform.machine()
    if machine not in MACHINES or sys.maxsize <= 1 << 32:
        raise _RefusedError(
            "capability", f"the system-call filter knows {', '.join(MACHINES)}, not {machine!r}"
        )
    filters = {files: Filter(machine, files=files) for files in (False, True)}
    modules: list[str] = configuration["modules"]
    _import(modules, configuration["path"])
    kind = _enter(configuration["namespaces"])
    importer = program.guarded_import(modules)
    program.clean_interpreter()
    pid = os.fork()
    if pid == 0:
        try:
            _serve(control, kind, filters, importer)
        except _RefusedError as refusal:
            _send(control, {"refused": refusal.kind, "message": str(refusal)})
        except OSError as error:
            _send(control, _failure(error))
        os._exit(0)
    control.close()
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGKILL))
    os.waitpid(pid, 0)


def _import(modules: list[str], path: list[str]) -> None:
    """Import all that programs may use, while there still is a file system."""
    own = sys.path
    sys.path = [*own, *path]
    for name in (*_LATE_MODULES, *modules):
        try:
            importlib.import_module(name)
        except BaseException as error:
            raise _RefusedError(
                "input", f"allow_imports: {name!r} cannot be imported: {error!r}"
            ) from error
    sys.path = own
    for name in _LATE_CODECS:
        codecs.lookup(name)
    if len(os.listdir("/proc/self/task")) > 1:
        raise _RefusedError(
            "input", "allow_imports names a module that starts threads when imported"
        )


def _enter(wanted: bool | None) -> str:
    """Leave for the best namespaces that there are: "user", "root" or "none"."""
    if wanted is not False:
        for kind, step in (("user", confine.user_namespace), ("root", confine.root_namespace)):
            if confine.works(step):
                step()
                return kind
        if wanted:
            raise _RefusedError(
                "capability",
                "namespaces=True, but this machine allows neither user namespaces nor, to this"
                " process, others; allow unprivileged user namespaces, give the container"
                " CAP_SYS_ADMIN, or let namespaces be None",
            )
    return "none"


def _serve(
    control: socket.socket,
    kind: str,
    filters: dict[bool, Filter],
    importer: Callable[..., Any],
) -> None:
    with open("/proc/self/statm", "rb") as file:
        base_bytes = int(file.read().split()[0]) * resource.getpagesize()
    if kind == "none":
        confine.bare()
    else:
        confine.empty_root(folder=kind == "user")
    if kind == "root":
        confine.become_nobody()
    linux.no_new_privileges()
    # In a user namespace one capability is left, over that namespace only, to mount the folders of
    # programs; each program gives it up before its filter is installed.
    linux.keep_capabilities(1 << linux.CAP_SYS_ADMIN if kind == "user" else 0)
    confine.follow_parent()
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    if not _filter_holds(filters[False]):
        raise _RefusedError(
            "capability",
            "the system-call filter (seccomp) cannot be installed or does not hold here;"
            " run on a Linux kernel with CONFIG_SECCOMP_FILTER, not under an emulator",
        )
    gc.collect()
    gc.freeze()
    _send(control, {"ready": kind})
    Zygote(control, base_bytes, filters, importer).serve()


def _filter_holds(filter: Filter) -> bool:
    """Whether the filter stops what it should, tried in children."""

    def denied(number: int, *arguments: int | bytes) -> bool:
        libc = ctypes.CDLL(None, use_errno=True)
        values = [a if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]
        result = libc.syscall(ctypes.c_long(number), *values)
        return result == -1 and ctypes.get_errno() == errno.EPERM

    def refuses_calls() -> bool:
        x86 = platform.machine() == "x86_64"
        return (
            denied(257 if x86 else 56, -100, b"/", 0)
            and denied(41 if x86 else 198, 1, 1, 0)
            and denied(101 if x86 else 117, 0, 0, 0, 0)
        )

    def forks() -> bool:
        return os.fork() >= 0

    for act, expected in ((refuses_calls, 0), (forks, -signal.SIGSYS)):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                filter.install()
                code = 0 if act() else 1
            finally:
                os._exit(code)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != expected:
            return False
    return True


class Zygote:
    """Serves programs one at a time.

    Args:
        control: socket to the owner of the sandbox.
        base_bytes: address space of the bare interpreter.
        filters: by whether the program may use files.
        importer: the `__import__` of programs.
    """

    def __init__(
        self,
        control: socket.socket,
        base_bytes: int,
        filters: dict[bool, Filter],
        importer: Callable[..., Any],
    ) -> None:
        self._control = control
        self._base_bytes = base_bytes
        self._filters = filters
        self._importer = importer
        self._wake, wake_write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Run programs until the owner goes away."""
        while True:
            message, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, DESCRIPTORS)
            if not message:
                return
            job = json.loads(message)
            if "run" not in job:  # a late word to stop a program that has already ended
                continue
            try:
                pid = os.fork()
            except OSError as error:
                pid = -1
                _send(self._control, {"run": job["run"], "failed": str(error)})
            if pid == 0:
                program.child(job, descriptors, self._base_bytes, self._filters, self._importer)
            for descriptor in descriptors:
                os.close(descriptor)
            if pid > 0:
                self._supervise(pid, job)

    def _supervise(self, pid: int, job: dict[str, Any]) -> None:
        limits = job["limits"]
        start = time.monotonic()
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        stopped_by = ""
        while True:
            done, status, usage = os.wait4(pid, os.WNOHANG)
            if done:
                break
            wall_left = limits["wall_seconds"] - (time.monotonic() - start)
            cpu_left = limits["cpu_seconds"] - _cpu_seconds(pid)
            if not stopped_by and min(wall_left, cpu_left) <= 0:
                stopped_by = "wall" if wall_left <= 0 else "cpu"
                os.kill(pid, signal.SIGKILL)
            wait = 1.0 if stopped_by else max(0.002, min(wall_left, cpu_left))
            for descriptor, _ in poll.poll(ceil(wait * 1000)):
                if descriptor == self._wake:
                    os.read(self._wake, 4096)
                elif self._told_to_stop(pid, job["run"]):
                    stopped_by = stopped_by or "owner"
                    os.kill(pid, signal.SIGKILL)
        _send(
            self._control,
            {
                "run": job["run"],
                "code": os.waitstatus_to_exitcode(status),
                "stopped_by": stopped_by,
                "seconds": time.monotonic() - start,
                "cpu_seconds": usage.ru_utime + usage.ru_stime,
            },
        )

    def _told_to_stop(self, pid: int, run: int) -> bool:
        message = self._control.recv(MESSAGE_BYTES)
        if not message:  # the owner is gone
            os.kill(pid, signal.SIGKILL)
            os._exit(0)
        return bool(json.loads(message).get("stop") == run)


def _cpu_seconds(pid: int) -> float:
    """Processor time of a child: the clock that clock_getcpuclockid(3) names."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:  # it has just ended
        return 0.0
