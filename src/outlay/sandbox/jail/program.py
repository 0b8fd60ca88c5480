"""One program: the child that the zygote forks for it, from limits and filter to its exit."""

from __future__ import annotations

import builtins
import contextlib
import io
import linecache
import os
import resource
import signal
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from math import ceil
from typing import Any, NamedTuple, NoReturn

from . import EXIT_MEMORY, EXIT_SETUP, confine, linux
from .seccomp import Filter

NAME = "<program>"
EXIT_ERROR = 1
_FLUSH_SECONDS = 0.02
_RESERVE = 4 << 20  # freed when memory has run out, to print the traceback with


class Streams(NamedTuple):
    """What the program writes to, however it changes `sys`."""

    stdout: io.TextIOWrapper
    stderr: io.TextIOWrapper


def open_streams(
    code_fd: int, descriptors: Sequence[int], *, streaming: bool
) -> tuple[bytes, Streams]:
    """Read the program, put its three streams in place, and close everything else.

    Standard output is flushed at each line, so that nothing printed before a kill is lost; when
    streaming, which is eight times as fast, by a timer.
    """
    with open(code_fd, "rb", closefd=False) as file:
        source = file.read()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r")), "utf-8")
    streams = Streams(
        io.TextIOWrapper(
            io.BufferedWriter(io.FileIO(1, "w")), "utf-8", line_buffering=not streaming
        ),
        io.TextIOWrapper(
            io.BufferedWriter(io.FileIO(2, "w")), "utf-8", "backslashreplace", line_buffering=True
        ),
    )
    for name, stream in zip(("stdin", "stdout", "stderr"), (stdin, *streams), strict=True):
        vars(sys)[name] = vars(sys)[f"__{name}__"] = stream
    if streaming:

        def flush(*_: object) -> None:
            with contextlib.suppress(BaseException):  # amid a write: the next tick will do
                streams.stdout.flush()

        signal.signal(signal.SIGALRM, flush)
        signal.setitimer(signal.ITIMER_REAL, _FLUSH_SECONDS, _FLUSH_SECONDS)
    return source, streams


def restrict(limits: dict[str, Any], base_bytes: int, filters: dict[bool, Filter]) -> None:
    """Apply all limits to this process and install the filter. There is no way back.

    Args:
        limits: fields of `Limits`.
        base_bytes: address space of the bare interpreter.
        filters: by whether the program may use files.

    Raises:
        OSError: if any of it is refused: the program must not run then.
    """
    files = limits["file_bytes"] > 0
    if files:
        confine.own_folder(limits["file_bytes"])
    linux.set_capabilities(0)  # the zygote has already given up what it could regain
    seconds = ceil(limits["cpu_seconds"])  # the zygote is more exact; this is what it falls back on
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, seconds + 1, seconds + 2),
        (resource.RLIMIT_FSIZE, limits["file_bytes"], limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64 if files else 3, 64 if files else 3),
        (resource.RLIMIT_NPROC, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
    ):
        _lower(kind, soft, hard)
    space = base_bytes + (limits["memory_mb"] << 20)
    _lower(resource.RLIMIT_AS, space, space)
    filters[files].install()


def _lower(kind: int, soft: int, hard: int) -> None:
    """Set a limit, or keep the one that this machine has set where that is lower."""
    ceiling = resource.getrlimit(kind)[1]
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(kind, (soft, hard))


def guarded_import(allowed: Sequence[str]) -> Callable[..., Any]:
    """The `__import__` of programs: the listed modules, their packages and submodules.

    It keeps programs to what was promised; the filter and the empty root keep them in.
    """
    names = set(allowed)
    parents = {name[:at] for name in allowed for at, sign in enumerate(name) if sign == "."}
    real = builtins.__import__

    def module(
        name: str,
        globals: Any = None,
        locals: Any = None,
        fromlist: Any = (),
        level: int = 0,
    ) -> Any:
        parts = name.split(".")
        listed = any(".".join(parts[:n]) in names for n in range(1, len(parts) + 1))
        # C code of the interpreter, such as strptime's, imports on behalf of the program, with a
        # list where the import statement has a tuple.
        own = isinstance(fromlist, list) and name in sys.modules
        if level == 0 and not listed and not own and name not in parents:
            raise ImportError(f"no module {name!r} here: allow_imports does not list it", name=name)
        return real(name, globals, locals, fromlist, level)

    return module


def clean_interpreter() -> None:
    """Leave nothing in `sys` that leads to the file system or tells about the machine."""
    sys.argv = [NAME]
    sys.orig_argv = [NAME]
    sys.path = []
    sys.path_hooks = []
    sys.path_importer_cache.clear()
    sys.meta_path = sys.meta_path[:2]  # built-in and frozen modules
    sys.executable = ""
    os.environ.clear()


def execute(source: bytes, streams: Streams, importer: Callable[..., Any]) -> NoReturn:
    """Run the program as `__main__` and leave with its exit code."""
    reserve = [bytes(_RESERVE)]
    code = EXIT_ERROR
    try:
        try:
            code = _run(source, streams, importer)
        except MemoryError as error:
            reserve.clear()
            code = EXIT_MEMORY
            _report(error, streams)
        except BaseException as error:
            _report(error, streams)
        try:
            if not streams.stdout.closed:
                streams.stdout.flush()
        except BaseException as error:
            code = code or EXIT_ERROR
            _report(error, streams)
        with contextlib.suppress(BaseException):
            streams.stderr.flush()
    finally:
        os._exit(code)


def _run(source: bytes, streams: Streams, importer: Callable[..., Any]) -> int:
    main = types.ModuleType("__main__")
    names = dict(vars(builtins), __import__=importer, exit=sys.exit, quit=sys.exit)
    main.__dict__["__builtins__"] = names
    sys.modules["__main__"] = main
    text = source.decode("utf-8")
    linecache.cache[NAME] = (len(text), None, text.splitlines(keepends=True), NAME)
    try:
        exec(compile(text, NAME, "exec", dont_inherit=True), main.__dict__)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            code = (error.code or 0) & 0xFF
            return EXIT_ERROR if code in (EXIT_MEMORY, EXIT_SETUP) else code
        print(error.code, file=streams.stderr)
        return EXIT_ERROR
    return 0


def _report(error: BaseException, streams: Streams) -> None:
    """Print a traceback without the frames of this file."""
    with contextlib.suppress(BaseException):
        report = traceback.TracebackException(type(error), error, error.__traceback__)
        frames = [frame for frame in report.stack if frame.filename != __file__]
        report.stack = traceback.StackSummary.from_list(frames)
        report.print(file=streams.stderr, chain=not isinstance(error, MemoryError))


def child(
    job: dict[str, Any],
    descriptors: Sequence[int],
    base_bytes: int,
    filters: dict[bool, Filter],
    importer: Callable[..., Any],
) -> NoReturn:
    """Become the program: what the zygote's fork does from its first line to its exit."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        source, streams = open_streams(descriptors[0], descriptors[1:], streaming=job["streaming"])
        restrict(job["limits"], base_bytes, filters)
    except BaseException as error:
        os.write(2, f"the program was not run, because its limits failed: {error!r}".encode())
        os._exit(EXIT_SETUP)
    execute(source, streams, importer)
