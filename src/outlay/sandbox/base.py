"""What a program may use, and what became of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from outlay.errors import InputError, OutlayError

Status = Literal["ok", "error", "cpu", "wall", "memory", "output", "processes", "killed"]
"""How a program ended.

- "ok": by itself, with exit code 0.
- "error": by an uncaught exception, or with another exit code.
- "cpu", "wall", "memory", "output": at the limit of that name.
- "processes": stopped when it tried to start a process or a thread.
- "killed": by a signal (a crash of the interpreter), or because its caller let go of it.
"""

_RANGES: dict[str, tuple[float, float]] = {
    "cpu_seconds": (0.01, 86_400),
    "wall_seconds": (0.01, 86_400),
    "memory_mb": (1, 1 << 20),
    "output_bytes": (0, 1 << 34),
    "file_bytes": (0, 1 << 34),
    "code_bytes": (1, 1 << 26),
}


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Args:
        cpu_seconds: processor time.
        wall_seconds: time from start to end, waiting included.
        memory_mb: MiB of address space on top of what the bare interpreter has.
        output_bytes: of standard output, and as many of standard error. All of standard output is
            returned up to here, of standard error the first and last 32 KiB.
        file_bytes: what all files in the program's own empty folder may hold, rounded up to whole
            pages. 0: no file can be opened at all. More than 0 needs namespaces.
        code_bytes: longest program, in bytes of UTF-8.

    Raises:
        InputError: if a limit is out of its range or not a number.
    """

    cpu_seconds: float = 5.0
    wall_seconds: float = 10.0
    memory_mb: int = 256
    output_bytes: int = 1_000_000
    file_bytes: int = 0
    code_bytes: int = 100_000

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            number = (int, float) if field.type == "float" else int
            if isinstance(value, bool) or not isinstance(value, number) or not math.isfinite(value):
                kind = "a number" if field.type == "float" else "a whole number"
                raise InputError(f"{field.name} must be {kind}, got {value!r}")
            low, high = _RANGES[field.name]
            if not low <= value <= high:
                raise InputError(f"{field.name} must be from {low:g} to {high:g}, got {value!r}")


@dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Args:
        status: how it ended (see `Status`).
        stdout: its standard output, decoded as UTF-8; empty after `Sandbox.stream`.
        stderr: its standard error; the middle is left out where it is long.
        seconds: from start to end.
        detail: the reason in a line; "" where the status says it all.
    """

    status: Status
    stdout: str
    stderr: str
    seconds: float
    detail: str = ""


class SandboxError(OutlayError, RuntimeError):
    """A program failed where only success was asked for, or the sandbox cannot run it.

    Args:
        message: what happened and what to do.
        outcome: of the program, if it ran.
    """

    def __init__(self, message: str, outcome: Outcome | None = None) -> None:
        super().__init__(message)
        self.outcome = outcome
