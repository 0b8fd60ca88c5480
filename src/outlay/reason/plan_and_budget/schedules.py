"""Position weights: how much of a budget a sub-question gets for where it stands (section on decay
schedules, arXiv 2505.16122)."""

from __future__ import annotations

import math
from typing import Literal, get_args

from outlay.errors import InputError

Schedule = Literal["constant", "linear", "polynomial", "exponential", "cosine"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


def check_schedule(schedule: str, *, power: float, base: float, cosine_floor: float) -> None:
    """Refuse what gives no usable weights.

    Raises:
        InputError: for an unknown schedule, power < 0, base <= 0, or cosine_floor <= 0.
    """
    if schedule not in SCHEDULES:
        raise InputError(f"schedule={schedule!r}; choose one of {', '.join(SCHEDULES)}")
    if not (math.isfinite(power) and power >= 0):
        raise InputError(f"power={power}; must be finite and >= 0 (0 is the constant schedule)")
    if not (math.isfinite(base) and base > 0):
        raise InputError(f"base={base}; must be finite and > 0 (1 is the constant schedule)")
    if not (math.isfinite(cosine_floor) and cosine_floor > 0):
        raise InputError(
            f"cosine_floor={cosine_floor}; must be finite and > 0, or the last step gets nothing"
        )


def position_weights(
    steps: int,
    schedule: Schedule = "polynomial",
    *,
    power: float = 2,
    base: float = 0.9,
    cosine_floor: float = 0.1,
) -> list[float]:
    """d_j of the steps j = 0 .. m-1.

    constant: 1; linear: m - j; polynomial: (m - j)^power; exponential: base^j; cosine:
    0.5 (1 + cos(pi j / (m - 1))) + cosine_floor, and 1 for a single step.

    Raises:
        InputError: for no steps, and as `check_schedule` does.
    """
    check_schedule(schedule, power=power, base=base, cosine_floor=cosine_floor)
    if steps < 1:
        raise InputError(f"{steps} steps; a plan has at least 1")
    if schedule == "constant":
        return [1.0] * steps
    if schedule == "linear":
        return [float(steps - j) for j in range(steps)]
    if schedule == "polynomial":
        return [float(steps - j) ** power for j in range(steps)]
    if schedule == "exponential":
        return [base**j for j in range(steps)]
    if steps == 1:
        return [1.0]
    return [0.5 * (1 + math.cos(math.pi * j / (steps - 1))) + cosine_floor for j in range(steps)]
