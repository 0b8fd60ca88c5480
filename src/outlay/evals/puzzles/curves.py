"""Accuracy and effort against complexity, and what equal tokens buy.

What the paper shows by eye is computed here. Accuracy has Wilson's interval and counts reasoning
only: truncated and output-bound samples are reported beside it. The decline of effort is a test:
half of the samples choose the peak, the other half give the slope after it, over random halves and
bootstrap resamples, so that the highest of equal levels is no "peak". Two ways of answering are
compared at equal tokens: k(T) = T / mean tokens per sample, the fraction by mixing the two whole k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import numpy.typing as npt

from outlay.errors import InputError
from outlay.evals.passk import majority_at_k, pass_at_k
from outlay.evals.puzzles.fairness import REASONED, Fate
from outlay.stats import Interval, check_level, mean_interval, percentiles, wilson

FloatArray = npt.NDArray[np.float64]

_HALVES = 4  # samples a level needs for the decline test


@dataclass(frozen=True)
class Sample:
    """One answer to one instance.

    Args:
        n: complexity.
        instance: what was asked; samples of one instance share it.
        fate: see `outlay.evals.puzzles.fairness`.
        tokens: generated for it, thinking included.
        thinking: tokens of the thinking; None where the provider does not say.
        vote: the answer in canonical form, None where nothing could be read.
        moves: of the shortest solution, None where none exists.
    """

    n: int
    instance: str
    fate: Fate
    tokens: int
    thinking: int | None = None
    vote: str | None = None
    moves: int | None = None

    @property
    def solved(self) -> bool:
        """True if it is right and neither truncated nor output-bound."""
        return self.fate == "solved"


def by_level(samples: Iterable[Sample]) -> dict[int, list[Sample]]:
    """Samples of each level, lowest first.

    Raises:
        InputError: without samples.
    """
    levels: dict[int, list[Sample]] = {}
    for sample in samples:
        levels.setdefault(sample.n, []).append(sample)
    if not levels:
        raise InputError("no samples; give at least one")
    return dict(sorted(levels.items()))


@dataclass(frozen=True)
class Accuracy:
    """One level of the accuracy curve.

    Args:
        n: the level.
        moves: of a shortest solution: the other x axis.
        solved, reasoned: right ones, and all that enter.
        truncated, output_bound: those that do not.
        accuracy, lo, hi: with Wilson's interval; None where nothing entered.
    """

    n: int
    moves: int | None
    solved: int
    reasoned: int
    truncated: int
    output_bound: int
    accuracy: float | None
    lo: float | None
    hi: float | None


def accuracy(samples: Iterable[Sample], *, confidence: float = 0.95) -> list[Accuracy]:
    """The accuracy of reasoning at each level; never averaged over levels."""
    check_level(confidence, 1)
    curve = []
    for n, level in by_level(samples).items():
        fates = [sample.fate for sample in level]
        solved, reasoned = fates.count("solved"), sum(fate in REASONED for fate in fates)
        lo, hi = wilson(solved, reasoned, confidence) if reasoned else (None, None)
        curve.append(
            Accuracy(
                n,
                level[0].moves,
                solved,
                reasoned,
                fates.count("truncated"),
                fates.count("output_bound"),
                solved / reasoned if reasoned else None,
                lo,
                hi,
            )
        )
    return curve


def effort(
    samples: Iterable[Sample], *, truncated: bool = False, confidence: float = 0.95
) -> dict[int, Interval]:
    """Mean thinking tokens at each level with an interval.

    Args:
        samples: any.
        truncated: keep truncated samples, whose tokens are cut: a decline with them may be an
            artefact. Show both.
        confidence: of the intervals.

    Raises:
        InputError: if a sample's thinking was not counted.
    """
    return {
        n: mean_interval(np.array(values), confidence=confidence)
        for n, values in _thinking(samples, truncated).items()
    }


@dataclass(frozen=True)
class Decline:
    """Whether effort falls as puzzles get harder.

    Args:
        peak: level with the largest mean.
        slope: tokens per level after the peak, averaged over random halves.
        lo, hi: interval of that slope.
        declines: the interval lies below 0.
    """

    peak: int
    slope: float
    lo: float
    hi: float

    @property
    def declines(self) -> bool:
        """True if the effort falls after its peak beyond chance."""
        return self.hi < 0


def decline(
    samples: Iterable[Sample],
    *,
    truncated: bool = False,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Decline:
    """Test for a decline of thinking tokens after the peak.

    A half in which the last level is the highest gives slope 0: no evidence for a decline.

    Args:
        samples: of at least two levels.
        truncated: as in `effort`.
        confidence: of the interval.
        resamples: random halves.
        seed: of the halves.

    Raises:
        InputError: for one level only, or fewer than 4 samples at one.
    """
    check_level(confidence, resamples)
    levels = _thinking(samples, truncated)
    if len(levels) < 2:
        raise InputError(f"only level {[*levels]} has samples; a decline needs at least two")
    for n, values in levels.items():
        if len(values) < _HALVES:
            raise InputError(f"level {n} has {len(values)} samples; give at least {_HALVES}")
    rng = np.random.default_rng(seed)
    choosing_LR, judging_LR = [], []
    for values in levels.values():
        values_N = np.array(values, dtype=float)
        mixed_RN = values_N[rng.random((resamples, len(values_N))).argsort(axis=1)]
        half = len(values_N) // 2
        choosing_LR.append(mixed_RN[:, :half].mean(axis=1))
        rest_RN = mixed_RN[:, half:]
        again_RN = rng.integers(0, rest_RN.shape[1], size=rest_RN.shape)
        judging_LR.append(np.take_along_axis(rest_RN, again_RN, axis=1).mean(axis=1))
    peaks_R = np.array(choosing_LR).argmax(axis=0)
    x = np.array([*levels], dtype=float)
    judged_RL = np.array(judging_LR).T
    slopes_R = np.array([_slope(x[p:], y[p:]) for p, y in zip(peaks_R, judged_RL, strict=True)])
    means = [fmean(values) for values in levels.values()]
    lo, hi = percentiles(slopes_R, confidence)
    return Decline([*levels][means.index(max(means))], float(slopes_R.mean()), lo, hi)


def _slope(x: FloatArray, y: FloatArray) -> float:
    if len(x) < 2:
        return 0.0
    centred = x - x.mean()
    return float(centred @ y / (centred @ centred))


def _thinking(samples: Iterable[Sample], truncated: bool) -> dict[int, list[int]]:
    levels: dict[int, list[int]] = {}
    for sample in samples:
        if sample.thinking is None:
            raise InputError(
                f"a sample of {sample.instance} has no count of thinking tokens; use a model that "
                "reports it, or leave effort out"
            )
        if sample.fate != "truncated" or truncated:
            levels.setdefault(sample.n, []).append(sample.thinking)
    return dict(sorted(levels.items()))


# -- equal compute ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class AtTokens:
    """What a number of tokens buys at one level.

    Args:
        value: pass@k or the majority vote's accuracy at the fractional k.
        k: samples that the tokens pay for.
        capped: k is larger than the number of samples drawn, so `value` is a lower bound.
    """

    value: float
    k: float
    capped: bool


def mean_tokens(level: Sequence[Sample]) -> float:
    """Mean tokens per sample.

    Raises:
        InputError: without samples or tokens.
    """
    total = sum(sample.tokens for sample in level)
    if not level or total < 1:
        raise InputError(f"{len(level)} samples with {total} tokens; equal compute needs both")
    return total / len(level)


def pass_at_fraction(group: Sequence[Sample], k: float) -> float:
    """pass@k of one instance; between two whole k, the mixture of both.

    Args:
        group: samples of the instance.
        k: samples that are paid for; more than there are count as all.
    """

    def value(k: int) -> float:
        return pass_at_k(len(group), sum(sample.solved for sample in group), k)

    return _mixture(value, min(k, float(len(group))))


def _mixture(value: Callable[[int], float], k: float) -> float:
    low, share = math.floor(k), k - math.floor(k)
    below = value(low) if low else 0.0
    return below if not share else (1 - share) * below + share * value(low + 1)


def pass_at_tokens(level: Sequence[Sample], tokens: float) -> AtTokens:
    """pass@k(T) of one level: unbiased per instance, averaged over instances."""
    return _at_tokens(level, tokens, pass_at_fraction)


def majority_at_tokens(level: Sequence[Sample], tokens: float, *, seed: int = 0) -> AtTokens:
    """The majority vote of lists of moves over k(T) samples of one level."""

    def value(group: Sequence[Sample], k: float) -> float:
        votes, right = [sample.vote for sample in group], [sample.solved for sample in group]
        return _mixture(lambda whole: majority_at_k(votes, right, whole, seed=seed), k)

    return _at_tokens(level, tokens, value)


def _at_tokens(
    level: Sequence[Sample], tokens: float, value: Callable[[Sequence[Sample], float], float]
) -> AtTokens:
    groups = list(by_instance(level).values())
    wanted = tokens / mean_tokens(level)
    most = min(map(len, groups))
    k = min(wanted, float(most))
    return AtTokens(fmean(value(group, k) for group in groups), k, wanted > most)


def by_instance(level: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Samples of each instance."""
    groups: dict[str, list[Sample]] = {}
    for sample in level:
        groups.setdefault(sample.instance, []).append(sample)
    return groups


def table(levels: Mapping[str, Sequence[Accuracy]]) -> str:
    """Accuracy curves of several ways as a Markdown table."""
    rows = ["| way | N | moves | solved | accuracy | 95 % | truncated | output-bound |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    for name, curve in levels.items():
        for at in curve:
            value = "-" if at.accuracy is None else f"{at.accuracy:.3f}"
            span = "-" if at.lo is None or at.hi is None else f"{at.lo:.3f} to {at.hi:.3f}"
            rows.append(
                f"| {name} | {at.n} | {at.moves} | {at.solved}/{at.reasoned} | {value} | {span} | "
                f"{at.truncated} | {at.output_bound} |"
            )
    return "\n".join(rows) + "\n"
