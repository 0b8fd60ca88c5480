"""Measuring a schedule: any callable, remembered, with a margin for the noise of few samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from outlay.errors import InputError
from outlay.vision.gsearch.schedule import Rates

Perf = Callable[[Rates], float | Sequence[float]]
"""How well a model does under keep rates, higher is better: one figure, or one for each sample."""


@dataclass(frozen=True)
class Value:
    """What was measured.

    Args:
        mean: over samples.
        each: sample's figure, in one order for all schedules; one where there is a single figure.
    """

    mean: float
    each: tuple[float, ...]


class Measure:
    """A Perf that is called once for every schedule, and checked.

    Args:
        perf: to call.

    Raises:
        InputError: if it cannot be called.
    """

    def __init__(self, perf: Perf) -> None:
        if not callable(perf):
            raise InputError(f"perf={perf!r} cannot be called; give a function of keep rates")
        self.perf = perf
        self.calls = 0
        self._known: dict[Rates, Value] = {}
        self._samples: int | None = None

    def __call__(self, rates: Rates) -> Value:
        """Measure, or remember.

        Raises:
            InputError: for NaN, infinity, no figure, or another number of them than before.
        """
        if rates not in self._known:
            self.calls += 1
            self._known[rates] = self._checked(self.perf(rates), rates)
        return self._known[rates]

    def _checked(self, found: Any, rates: Rates) -> Value:
        shown = ", ".join(f"{rate:g}" for rate in rates)
        each: tuple[float, ...]
        try:
            each = (float(found),)
        except (TypeError, ValueError, RuntimeError):  # more than one figure, in some container
            try:
                each = tuple(map(float, found))
            except (TypeError, ValueError) as error:
                raise InputError(
                    f"the metric gave {found!r} under rates {shown}; it must be a number, or one "
                    "for each sample"
                ) from error
        if not each:
            raise InputError(f"the metric gave no figure under rates {shown}; give samples")
        for value in each:
            if not math.isfinite(value):
                raise InputError(
                    f"the metric gave {value} under rates {shown}; it must be finite, also where "
                    "the model fails"
                )
        if self._samples is not None and len(each) != self._samples:
            raise InputError(
                f"the metric gave {len(each)} figures, and {self._samples} before; it must "
                "measure the same samples every time"
            )
        self._samples = len(each)
        return Value(math.fsum(each) / len(each), each)


def standard_error(full: Value, kept: Value) -> float:
    """Of the mean difference between two schedules on the same samples; 0 for a single figure."""
    n = len(full.each)
    if n < 2:
        return 0.0
    gaps = [b - a for a, b in zip(full.each, kept.each, strict=True)]
    mean = math.fsum(gaps) / n
    return math.sqrt(math.fsum((gap - mean) ** 2 for gap in gaps) / (n - 1) / n)


def shortfall(full: Value, kept: Value, eps: float, margin: float) -> float:
    """How far a schedule is below what is allowed; at most 0 where it is good enough.

    Args:
        full: nothing dropped.
        kept: under the schedule.
        eps: loss that is allowed.
        margin: standard errors of the paired difference that count as noise; negative ones demand
            that the schedule is better by so much.
    """
    loss = full.mean - kept.mean
    return loss - eps - margin * standard_error(full, kept)
