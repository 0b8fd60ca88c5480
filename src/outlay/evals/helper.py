"""Helper processes that answer requests, one JSON line each, and are ended when they take too long.

Foreign code that raises, hangs or eats memory then does so in a process of its own. `Helper` asks
such a process; `answering` is the other end of its pipes. No torch.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

from outlay.errors import OutlayError


class Helper:
    """One process, started on first use and again after it ended; for one thread at a time.

    Args:
        module: what runs as `python -m`; it prints a line once it is ready.
        arguments: of its command line.
        seconds: how long it may take to start.
        refusal: what to say if it does not.
    """

    def __init__(self, module: str, arguments: Sequence[str], seconds: float, refusal: str) -> None:
        self._command = ["-m", module, *arguments]
        self._seconds, self._refusal = seconds, refusal
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._owner = 0

    def ask(self, request: object, seconds: float) -> Any:
        """The answer to one request; None if it did not come in time, or the process ended.

        Raises:
            OutlayError: if the process does not start.
        """
        line = json.dumps(request)
        process = self._process
        if process is None or self._owner != os.getpid() or process.poll() is not None:
            process = self._start()
        try:
            assert process.stdin is not None
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer = self._lines.get(timeout=seconds)
        except (queue.Empty, OSError):
            answer = ""
        if not answer:  # too slow, or the process ended (out of memory)
            self.stop()
            return None
        return json.loads(answer)

    def stop(self) -> None:
        """End the process; one that was inherited through a fork belongs to the parent."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        atexit.unregister(process.kill)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
        atexit.register(process.kill)
        self._process, self._lines, self._owner = process, lines, os.getpid()
        try:
            ready = lines.get(timeout=self._seconds)
        except queue.Empty:
            ready = ""
        if not ready:
            self.stop()
            raise OutlayError(
                f"{self._refusal}; check that `python {' '.join(self._command)}` runs"
            )
        return process


def _pump(stream: IO[str], lines: queue.Queue[str]) -> None:
    try:
        for line in stream:
            lines.put(line)
    except ValueError:  # closed by stop
        pass
    lines.put("")


def answering(memory: int) -> IO[str]:
    """In a helper process: the stream for answers, nothing but answers.

    Args:
        memory: most bytes of address space, where the system can limit it.
    """
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not break the protocol
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    except (ImportError, ValueError, OSError):
        pass  # a system without such limits: the time limit remains
    return out
