"""The measures of the think-prm proof: first-error F1, and gaps with intervals over questions."""

from __future__ import annotations

import numpy as np

from outlay.proofs.think_prm_runs import Verdicts
from outlay.stats import FloatArray, mean_interval, percentiles, resample_means


def f1(counts_3: FloatArray) -> float:
    """First-error F1 of (found, false alarms, missed)."""
    hit, alarm, missed = (float(value) for value in counts_3)
    return 2 * hit / max(1e-9, 2 * hit + alarm + missed)


def f1s(verdicts: Verdicts) -> FloatArray:
    """F1 of the whole bench, then of 1000 resamples of its questions."""
    counts_Q3 = verdicts.found
    means_R3 = resample_means(counts_Q3, 1000, 0)
    return np.array([f1(counts_Q3.sum(axis=0)), *(f1(row) for row in means_R3)])


def f1_gap(ours: Verdicts, theirs: Verdicts) -> tuple[float, tuple[float, float]]:
    """Our F1 less theirs, both on the same resamples."""
    gap_R = f1s(ours) - f1s(theirs)
    return float(gap_R[0]), percentiles(gap_R[1:], 0.95)


def gap_of(ours_Q: FloatArray, theirs_Q: FloatArray) -> tuple[float, tuple[float, float]]:
    """The mean of a paired difference."""
    interval = mean_interval(ours_Q - theirs_Q)
    lo = interval.mean if interval.lo is None else interval.lo
    hi = interval.mean if interval.hi is None else interval.hi
    return interval.mean, (lo, hi)


def interval_of(values_Q: FloatArray) -> tuple[float, float]:
    """The interval of a share."""
    interval = mean_interval(values_Q)
    return interval.lo or 0.0, 1.0 if interval.hi is None else interval.hi
