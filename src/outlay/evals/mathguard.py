"""math-verify behind a guard: a process of its own that is ended when it takes too long.

The library's own time limits use SIGALRM, which works in the main thread only. Here they are
switched off, and every request goes over a pipe to one helper process, limited in time and, where
the system can, in memory. It is started on first use and again after a time-out.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from functools import cache
from typing import Any

from outlay.errors import DependencyError
from outlay.evals.helper import Helper, answering

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
        self._helper = Helper(
            "outlay.evals.mathguard",
            (),
            _START_SECONDS,
            f"the helper process of math-verify did not start within {_START_SECONDS:g} s",
        )

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
            self._helper.stop()

    def _ask(self, request: dict[str, str]) -> object:
        _check_installed()
        with self._lock:
            return self._helper.ask(request, self.seconds)


@cache
def _check_installed() -> None:
    if importlib.util.find_spec("math_verify") is None:
        raise DependencyError("mathematical answers need math-verify; pip install 'outlay[eval]'")


GUARD = MathGuard()
"""The guard that `outlay.evals.answers` uses."""


def equal(gold: str, answer: str) -> bool:
    """math-verify's judgement in this process, gold first: the comparison is not symmetric."""
    from math_verify import verify

    expected, given = _parse(gold), _parse(answer)
    return bool(expected and given and verify(expected, given, timeout_seconds=None))


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
    from math_verify import parse

    if request["op"] == "extract":
        found = parse(request["text"], parsing_timeout=None)
        return str(found[-1]) if found else None
    return equal(request["gold"], request["answer"])


def _serve() -> None:
    """Answer requests, one JSON line each, until standard input ends."""
    out = answering(_MEMORY)
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
