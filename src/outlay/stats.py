"""Intervals and tests over examples: bootstrap, Wilson, sign-flip, pass@k, AUC.

Everything works on plain arrays: N examples, R resamples, M columns. Resampling is vectorised; the
resamples are those that `numpy.random.default_rng(seed)` draws row by row, so that a loop over R
gives the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from outlay.errors import InputError

FloatArray = npt.NDArray[np.float64]
Method = Literal["auto", "bootstrap", "wilson"]

_BLOCK = 4_000_000  # drawn indices held at once
_EXACT_FLIPS = 12  # examples up to which all 2^N sign patterns are enumerated
_SMALL = 30  # 0/1 samples smaller than this get Wilson's interval


@dataclass(frozen=True)
class Interval:
    """A confidence interval of a mean.

    Args:
        mean: the sample mean.
        lo, hi: ends, or None where the sample says nothing about its own spread.
        n: number of examples.
        method: how it was made: "bootstrap", "wilson", "bound" or "none".
    """

    mean: float
    lo: float | None
    hi: float | None
    n: int
    method: str


def check_level(confidence: float, resamples: int) -> None:
    """Raise `InputError` unless `0 < confidence < 1` and `resamples >= 1`."""
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence} is outside (0, 1); 0.95 is usual")
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 1:
        raise InputError(f"bootstrap={resamples!r}; need an int >= 1, 1000 is usual")


def draw_counts(n: int, resamples: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Blocks of (r, N) counts: how often each of N examples is drawn; R rows of sum N in all."""
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK // max(1, n))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        index_RN = rng.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(index_RN.ravel(), minlength=rows * n).reshape(rows, n)


def resample_means(values_NM: FloatArray, resamples: int, seed: int) -> FloatArray:
    """Means of R bootstrap resamples of N examples: (N, M) -> (R, M)."""
    blocks = [
        block @ values_NM / len(values_NM) for block in draw_counts(len(values_NM), resamples, seed)
    ]
    return np.concatenate(blocks)


def percentiles(means_R: FloatArray, confidence: float) -> tuple[float, float]:
    """The central `confidence` share of resampled values."""
    lo, hi = np.quantile(means_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(lo), float(hi)


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; never empty, also at 0 and n successes."""
    check_level(confidence, 1)
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"{successes} successes of {n}; need 0 <= successes <= n, n >= 1")
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # The ends are exact at 0 and n successes; rounding must not move them inside.
    lo = 0.0 if successes == 0 else centre - half
    return lo, 1.0 if successes == n else centre + half


def mean_interval(
    values_N: FloatArray,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    method: Method = "auto",
) -> Interval:
    """A confidence interval of the mean over examples.

    A bootstrap of equal values has no width, which is no evidence of certainty. "auto" therefore
    gives 0/1 samples that are small (< 30) or all equal Wilson's interval; other equal values in
    [0, 1] get the bound that lets the unseen share of outcomes, at most `1 - a^(1/n)` at level
    `a = (1 - confidence) / 2`, lie at either end; equal values outside [0, 1] get no interval.

    Raises:
        InputError: for no values, a value that is not finite, or "wilson" on values not 0/1.
    """
    check_level(confidence, resamples)
    values_N = np.asarray(values_N, dtype=float)
    n = len(values_N)
    if n == 0:
        raise InputError("no examples to average; give at least one")
    if not np.isfinite(values_N).all():
        raise InputError("a quality is not finite; score failed examples with the worst value")
    mean = float(values_N.mean())
    binary = bool(np.isin(values_N, (0.0, 1.0)).all())
    equal = bool((values_N == values_N[0]).all())
    if method == "wilson" or (method == "auto" and binary and (equal or n < _SMALL)):
        if not binary:
            raise InputError("Wilson's interval needs 0/1 qualities; use interval='bootstrap'")
        return Interval(mean, *wilson(float(values_N.sum()), n, confidence), n, "wilson")
    if equal and method == "auto":
        if not 0 <= mean <= 1:
            return Interval(mean, None, None, n, "none")
        unseen = 1 - ((1 - confidence) / 2) ** (1 / n)
        return Interval(mean, mean * (1 - unseen), mean + (1 - mean) * unseen, n, "bound")
    lo, hi = percentiles(resample_means(values_N[:, None], resamples, seed)[:, 0], confidence)
    return Interval(mean, lo, hi, n, "bootstrap")


def sign_flip_p(differences_N: FloatArray, *, resamples: int = 1000, seed: int = 0) -> float:
    """Two-sided p of "the paired differences are symmetric around 0", by flipping their signs.

    Exact for up to 12 examples, else from `resamples` random patterns (the observed one counts).
    """
    values_N = np.asarray(differences_N, dtype=float)
    n, observed = len(values_N), abs(float(values_N.sum()))
    # Sums of the same numbers in another order differ by rounding.
    least = observed - 1e-12 * float(np.abs(values_N).sum())
    if n <= _EXACT_FLIPS:
        bits_RN = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float((np.abs((1 - 2 * bits_RN) @ values_N) >= least).mean())
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK // n)
    hits = 0
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        signs_RN = 1 - 2 * rng.integers(0, 2, size=(rows, n))
        hits += int((np.abs(signs_RN @ values_N) >= least).sum())
    return (1 + hits) / (1 + resamples)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased chance that one of k samples is correct: `1 - C(n - c, k) / C(n, k)`.

    Args:
        n: samples drawn.
        correct: samples that were correct.
        k: samples that may be looked at, at most n.

    Raises:
        InputError: unless `0 <= correct <= n` and `1 <= k <= n`.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise InputError(f"n={n}, correct={correct}, k={k}; need 0 <= correct <= n, 1 <= k <= n")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def check_log(costs: FloatArray, log: bool) -> None:
    """Raise `InputError` if `log` is asked for and a cost is not positive."""
    if log and costs.size and costs.min() <= 0:
        raise InputError(f"a point costs {costs.min():g}: no logarithm; use log=False")


def first_crossing(
    cost_RB: FloatArray, quality_RB: FloatArray, target: float, log: bool, higher: bool
) -> FloatArray:
    """Per row, the cost at which the curve over B budgets first reaches `target`; else NaN."""
    check_log(cost_RB, log)
    out_R = np.full(len(cost_RB), np.nan)
    if not cost_RB.shape[1]:
        return out_R
    order_RB = np.argsort(cost_RB, axis=1, kind="stable")
    x_RB = np.take_along_axis(np.log(cost_RB) if log else cost_RB, order_RB, axis=1)
    gain_RB = np.take_along_axis(quality_RB, order_RB, axis=1) - target
    gain_RB = gain_RB if higher else -gain_RB
    reached_RB = gain_RB >= 0
    first_R = reached_RB.argmax(axis=1)
    at_start_R = reached_RB[:, 0] & (gain_RB[:, 0] == 0)
    out_R[at_start_R] = x_RB[at_start_R, 0]
    rows = np.flatnonzero(reached_RB.any(axis=1) & ~reached_RB[:, 0])
    j = first_R[rows]
    below, above = gain_RB[rows, j - 1], gain_RB[rows, j]
    left, right = x_RB[rows, j - 1], x_RB[rows, j]
    out_R[rows] = left + (right - left) * below / (below - above)
    return np.exp(out_R) if log else out_R


def auc(values: npt.ArrayLike, right: npt.ArrayLike, groups: Sequence[Any] | None = None) -> float:
    """How often a right sample has the higher value than a wrong one; ties count half.

    Args:
        values: of the samples; those that are NaN are left out.
        right: whether each sample is right.
        groups: where given, only samples of one group are compared: within questions, so that
            easy ones do not pass for good ones. Every pair counts alike.

    Returns:
        NaN where there is no pair.
    """
    value_S, right_S = np.asarray(values, float), np.asarray(right, bool)
    known_S = np.isfinite(value_S)
    names = np.zeros(len(value_S), int)
    if groups is not None:
        names = np.unique(np.asarray(groups), return_inverse=True)[1]
    won = pairs = 0.0
    order = np.argsort(names, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(names[order])) + 1):
        kept = part[known_S[part]]
        good, bad = np.sort(value_S[kept[right_S[kept]]]), np.sort(value_S[kept[~right_S[kept]]])
        below = np.searchsorted(bad, good, "left").sum() + np.searchsorted(bad, good, "right").sum()
        won, pairs = won + below / 2, pairs + len(good) * len(bad)
    return float(won / pairs) if pairs else math.nan
