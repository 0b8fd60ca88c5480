"""math-verify behind a guard: a process of its own that is ended when it takes too long.

The library's own time limits use SIGALRM, which works in the main thread only. Here they are
switched off, and every request goes over a pipe to one helper process, limited in time and, where
the system can, in memory. It is started on first use and again after a time-out.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
from typing import IO, Any

from outlay.errors import DependencyError, OutlayError

_START_SECONDS = 60.0
_MEMORY = 2 << 30  # bytes of address space


class MathGuard:
    """Asks a helper process; safe to share between threads.

    Args:
        seconds: time limit of one request.
    """

    def __init__(self, seconds: float = 5.0) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._owner = 0

    def extract(self, text: str) -> str | None:
        """The last mathematical answer in `text` (boxed first); None if there is none."""
        result = self._ask({"op": "extract", "text": text})
        return result if isinstance(result, str) else None

    def equivalent(self, gold: str, answer: str) -> bool:
        """Whether `answer` equals `gold`; False also when the comparison takes too long."""
        return self._ask({"op": "verify", "gold": gold, "answer": answer}) is True

    def close(self) -> None:
        """End the helper process."""
        with self._lock:
            self._stop()

    def _ask(self, request: dict[str, str]) -> object:
        with self._lock:
            if (
                self._process is None
                or self._owner != os.getpid()
                or self._process.poll() is not None
            ):
                self._start()
            process = self._process
            assert process is not None
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                line = self._lines.get(timeout=self.seconds)
            except (queue.Empty, OSError):
                line = ""
            if not line:  # too slow, or the process ended (out of memory)
                self._stop()
                return None
            return json.loads(line)

    def _start(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise DependencyError(
                "mathematical answers need math-verify; pip install 'outlay[eval]'"
            )
        process = subprocess.Popen(
            [sys.executable, "-m", "outlay.evals.mathguard"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
        self._process, self._lines, self._owner = process, lines, os.getpid()
        atexit.register(process.kill)
        try:
            ready = lines.get(timeout=_START_SECONDS)
        except queue.Empty:
            ready = ""
        if not ready:
            self._stop()
            raise OutlayError(
                f"the helper process of math-verify did not start within {_START_SECONDS:g} s; "
                "check that `python -m outlay.evals.mathguard` runs"
            )

    def _stop(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
            atexit.unregister(self._process.kill)
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
        self._process = None


def _pump(stream: IO[str], lines: queue.Queue[str]) -> None:
    try:
        for line in stream:
            lines.put(line)
    except ValueError:  # closed by _stop
        pass
    lines.put("")


GUARD = MathGuard()
"""The guard that `outlay.evals.answers` uses."""


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    # A bare expression needs an anchor, or only its last number would be seen.
    if "$" not in text and "\\boxed" not in text:
        escaped = text.replace("\\%", "%").replace("%", "\\%")
        anchored: list[Any] = parse(f"${escaped}$", parsing_timeout=None)
        if anchored:
            return anchored
    found: list[Any] = parse(text, parsing_timeout=None)
    return found


def _answer(request: dict[str, str]) -> object:
    from math_verify import parse, verify

    if request["op"] == "extract":
        found = parse(request["text"], parsing_timeout=None)
        return str(found[-1]) if found else None
    gold, answer = _parse(request["gold"]), _parse(request["answer"])
    # Gold first: the library's comparison is not symmetric.
    return bool(gold and answer and verify(gold, answer, timeout_seconds=None))


def _serve() -> None:
    """Answer requests, one JSON line each, until standard input ends."""
    out, sys.stdout = sys.stdout, sys.stderr  # libraries that print must not break the protocol
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    except (ImportError, ValueError, OSError):
        pass  # a system without such limits: the time limit remains
    import math_verify  # noqa: F401

    print("ready", file=out, flush=True)
    for line in sys.stdin:
        try:
            result = _answer(json.loads(line))
        except Exception:
            result = None
        print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    _serve()
