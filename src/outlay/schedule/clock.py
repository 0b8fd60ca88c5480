"""Three clocks for one server: wall time, the process's own CPU time, and a computed one.

"wall" waits for arrivals as a real server does. "cpu" counts the CPU seconds of this process and
skips idle time, so that other work on the machine does not show; with one thread on an idle machine
it agrees with "wall". "virtual" adds up the costs of a cost model: the same trace gives the same
times everywhere. A report always says which clock it is from.
"""

from __future__ import annotations

import time
from typing import Literal, get_args

from outlay.errors import InputError

ClockKind = Literal["wall", "cpu", "virtual"]


class Clock:
    """Seconds since it was made.

    Args:
        kind: "wall", "cpu" or "virtual".

    Raises:
        InputError: for another kind.
    """

    def __init__(self, kind: ClockKind = "wall") -> None:
        if kind not in get_args(ClockKind):
            raise InputError(f"clock={kind!r}; choose wall, cpu or virtual")
        self.kind = kind
        self._read = time.process_time if kind == "cpu" else time.perf_counter
        self._added = 0.0
        self._began = self._read()

    def now(self) -> float:
        """Seconds since the start."""
        return self._added + (0.0 if self.kind == "virtual" else self._read() - self._began)

    def spend(self, seconds: float) -> None:
        """Let computed time pass; the measuring clocks ignore it."""
        if self.kind == "virtual":
            self._added += seconds

    def skip_to(self, when: float) -> None:
        """Nothing to do before `when`: wait (wall), or jump there."""
        left = when - self.now()
        if left <= 0:
            return
        if self.kind == "wall":
            time.sleep(left)
        else:
            self._added += left
