"""The three regimes of complexity, at equal tokens.

The paper tells them apart by eye: without thinking as good and cheaper (low), thinking better
(medium), both at zero (high). This is an operational form of it, with intervals; `undetermined` is
an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np

from outlay.errors import InputError
from outlay.evals.puzzles.curves import (
    AtTokens,
    FloatArray,
    Sample,
    by_instance,
    by_level,
    mean_tokens,
    pass_at_fraction,
    pass_at_tokens,
)
from outlay.evals.puzzles.fairness import REASONED
from outlay.stats import check_level, percentiles, wilson

Regime = Literal["low", "medium", "high", "undetermined"]

_FEW = 5  # instances below which samples, not instances, are resampled


@dataclass(frozen=True)
class Level:
    """One level of a comparison at equal tokens.

    Args:
        n: the level.
        regime: "low", "medium", "high" or "undetermined".
        tokens: T, the mean tokens of a thinking sample.
        thinking, plain: pass@k at T tokens.
        difference, lo, hi: thinking minus plain, with its interval.
        unmatched: plain pass@1 minus thinking pass@1: the comparison without equal tokens.
        left_out: truncated and output-bound samples of both.
    """

    n: int
    regime: Regime
    tokens: float
    thinking: AtTokens
    plain: AtTokens
    difference: float
    lo: float
    hi: float
    unmatched: float
    left_out: int


def regimes(
    thinking: Iterable[Sample],
    plain: Iterable[Sample],
    *,
    margin: float = 0.05,
    collapse: float = 0.05,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Level]:
    """Name the regime of every level that both answered.

    - high: both success rates lie below `collapse` (upper Wilson bounds; needs about 75 samples).
    - medium: thinking is better at equal tokens, the interval of the difference above 0.
    - low: plain is worse by less than `margin` (the interval says so) with fewer tokens a sample,
      and it does succeed: its lower Wilson bound lies above `collapse`.

    The interval comes from a paired bootstrap over instances; below 5 shared instances, or where
    all differences are equal, from the posterior of both success rates (Jeffreys' prior).

    Args:
        thinking, plain: samples of both ways.
        margin: loss that counts as none.
        collapse: success that counts as none.
        confidence: of all intervals.
        resamples, seed: of the interval.

    Raises:
        InputError: for shares out of range, or if no level is shared.
    """
    check_level(confidence, resamples)
    for knob, share in (("margin", margin), ("collapse", collapse)):
        if not 0 <= share < 1:
            raise InputError(f"{knob}={share}; give a share in [0, 1)")
    levels, others = by_level(thinking), by_level(plain)
    shared = [n for n in levels if n in others]
    if not shared:
        raise InputError(f"thinking has levels {[*levels]}, plain {[*others]}: none is shared")
    rng = np.random.default_rng(seed)
    made = []
    for n in shared:
        ours = [sample for sample in levels[n] if sample.fate in REASONED]
        theirs = [sample for sample in others[n] if sample.fate in REASONED]
        if not ours or not theirs:
            continue
        left_out = len(levels[n]) + len(others[n]) - len(ours) - len(theirs)
        tokens = mean_tokens(ours)
        here, there = pass_at_tokens(ours, tokens), pass_at_tokens(theirs, tokens)
        lo, hi = percentiles(
            _differences(ours, theirs, here.k, there.k, resamples, rng), confidence
        )
        rates = [_rate(ours, confidence), _rate(theirs, confidence)]
        regime: Regime = "undetermined"
        if max(rate[1] for rate in rates) < collapse:
            regime = "high"
        elif lo > 0:
            regime = "medium"
        elif hi <= margin and mean_tokens(theirs) < tokens and rates[1][0] > collapse:
            regime = "low"
        unmatched = fmean(s.solved for s in theirs) - fmean(s.solved for s in ours)
        difference = here.value - there.value
        made.append(Level(n, regime, tokens, here, there, difference, lo, hi, unmatched, left_out))
    return made


def _rate(level: Sequence[Sample], confidence: float) -> tuple[float, float]:
    return wilson(sum(sample.solved for sample in level), len(level), confidence)


def _differences(
    ours: Sequence[Sample],
    theirs: Sequence[Sample],
    k_ours: float,
    k_theirs: float,
    resamples: int,
    rng: np.random.Generator,
) -> FloatArray:
    """Resampled differences in pass@k(T)."""
    mine, other = by_instance(ours), by_instance(theirs)
    shared = [name for name in mine if name in other]
    if len(shared) >= _FEW:
        gaps = np.array(
            [
                pass_at_fraction(mine[name], k_ours) - pass_at_fraction(other[name], k_theirs)
                for name in shared
            ]
        )
        if (gaps != gaps[0]).any():
            return gaps[rng.integers(0, len(gaps), size=(resamples, len(gaps)))].mean(axis=1)
    rates = []
    for level, k in ((ours, k_ours), (theirs, k_theirs)):
        solved = sum(sample.solved for sample in level)
        p_R = rng.beta(solved + 0.5, len(level) - solved + 0.5, size=resamples)
        rates.append(1 - (1 - p_R) ** k if k >= 1 else k * p_R)
    return rates[0] - rates[1]
