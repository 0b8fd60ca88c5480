"""Ranking metrics that are corrected for chance, for every claim about an order of items.

NDCG of a handful of items is near 1 for any order, so it says nothing without the value that a
random order gets. Every report here therefore carries four numbers beside it: the exact expectation
of a uniformly random order, the worst order's value, the *excess*
`(NDCG - random) / (1 - random)`, which is 0 for guessing and 1 for a perfect order, and the
number of items. Ties of the scores are averaged over all their orders, so a scorer that says the
same of everything has exactly the random value. Rank correlations of such a scorer are 0.

Shapes: E events (queries), N items of an event.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from outlay.errors import InputError
from outlay.paired import Difference
from outlay.stats import check_level, percentiles, resample_means, sign_flip_p

FloatArray = npt.NDArray[np.float64]
Gain = Literal["linear", "exponential"]
Metric = Literal["ndcg", "excess", "spearman", "kendall"]

MAX_ITEMS = 100_000
"""Items of one event that are accepted."""
_LARGEST_GRADE = 60.0  # 2^60 - 1 is exact enough; beyond it sums lose the small gains


def _vector(name: str, values: npt.ArrayLike) -> FloatArray:
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} are not numbers ({error}); give one number per item") from error
    if array.ndim != 1 or not 1 <= len(array) <= MAX_ITEMS:
        raise InputError(
            f"{name} have shape {array.shape}; give one row of 1 to {MAX_ITEMS} numbers"
        )
    if not np.isfinite(array).all():
        raise InputError(f"{name} hold NaN or infinity; leave such items out")
    return array


def _gains(relevance_EN: FloatArray, gain: Gain) -> FloatArray:
    if gain not in get_args(Gain):
        raise InputError(f"gain={gain!r}; choose one of {', '.join(get_args(Gain))}")
    if (relevance_EN < 0).any():
        raise InputError(
            f"relevance {relevance_EN.min():g} is negative; map it to >= 0 first (ranks, or a "
            "shift by the minimum), never by clipping, which hides the worst items"
        )
    if gain == "linear":
        return relevance_EN
    if (relevance_EN > _LARGEST_GRADE).any():
        raise InputError(
            f"relevance {relevance_EN.max():g} is too large for gain='exponential' "
            f"(at most {_LARGEST_GRADE:g}); use grades, or gain='linear'"
        )
    return np.exp2(relevance_EN) - 1.0


def _discounts(items: int, k: int | None) -> FloatArray:
    if k is not None and (isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1):
        raise InputError(f"k={k!r}; give a whole number >= 1, or None for all items")
    discount_N = 1.0 / np.log2(np.arange(2, items + 2))
    if k is not None:
        discount_N[k:] = 0.0
    return discount_N


def _dcg_rows(gain_EN: FloatArray, score_EN: FloatArray, discount_N: FloatArray) -> FloatArray:
    """DCG of every row; items of equal score share the mean gain of their places."""
    events, items = gain_EN.shape
    order_EN = np.argsort(-score_EN, axis=1, kind="stable")
    sorted_EN = np.take_along_axis(score_EN, order_EN, axis=1)
    gain_EN = np.take_along_axis(gain_EN, order_EN, axis=1)
    starts_EN = np.ones((events, items), dtype=bool)
    starts_EN[:, 1:] = sorted_EN[:, 1:] != sorted_EN[:, :-1]
    if starts_EN.all():  # no ties
        return np.asarray(gain_EN @ discount_N)
    group = np.cumsum(starts_EN.ravel()) - 1
    size = np.bincount(group)
    mean_gain = np.bincount(group, weights=gain_EN.ravel()) / size
    return np.asarray(mean_gain[group].reshape(events, items) @ discount_N)


def ndcg_rows(
    relevance_EN: npt.ArrayLike,
    scores_EN: npt.ArrayLike,
    *,
    k: int | None = None,
    gain: Gain = "linear",
) -> FloatArray:
    """NDCG@k of E events with N items each, at once; `ndcg` is one row of it.

    Args:
        relevance_EN: how good each item is, >= 0.
        scores_EN: what orders the items, highest first.
        k: places that count; None for all.
        gain: "linear" (the relevance itself) or "exponential" (2^relevance - 1).

    Returns:
        (E,) values in [0, 1]; NaN where no item of the event has any gain.

    Raises:
        InputError: for other shapes, values that are not finite, or negative relevance.
    """
    relevance, scores = np.asarray(relevance_EN, dtype=float), np.asarray(scores_EN, dtype=float)
    if relevance.ndim != 2 or relevance.shape != scores.shape or not relevance.shape[1]:
        raise InputError(
            f"relevance has shape {relevance.shape}, scores {scores.shape}; both need (E, N)"
        )
    if not (np.isfinite(relevance).all() and np.isfinite(scores).all()):
        raise InputError("relevance or scores hold NaN or infinity; leave such items out")
    gains = _gains(relevance, gain)
    discount_N = _discounts(relevance.shape[1], k)
    ideal_E = -np.sort(-gains, axis=1) @ discount_N
    with np.errstate(invalid="ignore", divide="ignore"):
        found_E = _dcg_rows(gains, scores, discount_N) / ideal_E
    return np.where(ideal_E > 0, np.minimum(found_E, 1.0), np.nan)


def _one(relevance: npt.ArrayLike, gain: Gain, k: int | None) -> tuple[FloatArray, FloatArray]:
    """Gains of one event in descending order, and discounts."""
    gain_N = -np.sort(-_gains(_vector("relevances", relevance), gain))
    if gain_N[0] == 0:
        raise InputError("no item has any relevance; leave this event out and count it")
    return gain_N, _discounts(len(gain_N), k)


def ndcg(
    relevance: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    k: int | None = None,
    gain: Gain = "linear",
) -> float:
    """NDCG@k of one event, ties of the scores averaged (as scikit-learn's `ndcg_score`).

    Raises:
        InputError: for lengths that differ, values that are not finite, negative relevance, or an
            event without any relevance.
    """
    relevance_N, scores_N = _vector("relevances", relevance), _vector("scores", scores)
    if len(relevance_N) != len(scores_N):
        raise InputError(f"{len(scores_N)} scores for {len(relevance_N)} items; give one per item")
    value = float(ndcg_rows(relevance_N[None], scores_N[None], k=k, gain=gain)[0])
    if math.isnan(value):
        raise InputError("no item has any relevance; leave this event out and count it")
    return value


def random_ndcg(relevance: npt.ArrayLike, *, k: int | None = None, gain: Gain = "linear") -> float:
    """The expected NDCG@k of a uniformly random order: mean gain times the discounts / ideal."""
    gain_N, discount_N = _one(relevance, gain, k)
    return float(gain_N.mean() * discount_N.sum() / (gain_N @ discount_N))


def worst_ndcg(relevance: npt.ArrayLike, *, k: int | None = None, gain: Gain = "linear") -> float:
    """The NDCG@k of the reversed ideal order."""
    gain_N, discount_N = _one(relevance, gain, k)
    return float(gain_N[::-1] @ discount_N / (gain_N @ discount_N))


def excess(value: float, random: float) -> float:
    """`(value - random) / (1 - random)`: 0 for guessing, 1 for a perfect order.

    Raises:
        InputError: if every order is perfect (`random` is 1): nothing can be measured.
    """
    if not random < 1:
        raise InputError("every order of these items is perfect; leave this event out")
    return (value - random) / (1.0 - random)


def spearman(relevance: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Spearman's rank correlation with shared ranks; 0 where one side says nothing."""
    return _correlation("spearmanr", relevance, scores)


def kendall(relevance: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Kendall's tau-b; 0 where one side says nothing."""
    return _correlation("kendalltau", relevance, scores)


def _correlation(name: str, relevance: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    from scipy import stats

    a_N, b_N = _vector("relevances", relevance), _vector("scores", scores)
    if len(a_N) != len(b_N):
        raise InputError(f"{len(b_N)} scores for {len(a_N)} items; give one per item")
    if len(a_N) < 2 or (a_N == a_N[0]).all() or (b_N == b_N[0]).all():
        return 0.0
    return float(getattr(stats, name)(a_N, b_N).statistic)


@dataclass(frozen=True)
class RankedEvent:
    """One event: what was best, and what a scorer said.

    Args:
        event: its name.
        relevance: (N,) of the items, >= 0.
        scores: (N,) of the items in the same order.
    """

    event: str
    relevance: FloatArray
    scores: FloatArray


@dataclass(frozen=True)
class EventScore:
    """One event's metrics."""

    event: str
    items: int
    ndcg: float
    random: float
    worst: float
    excess: float
    spearman: float
    kendall: float


@dataclass(frozen=True)
class RankingReport:
    """Metrics over events; the headline is `excess` and `spearman`, never NDCG alone.

    Args:
        events: scored events.
        excluded: names of events that say nothing, with the reason.
        k: places that count.
        gain: of the relevance.
    """

    events: tuple[EventScore, ...]
    excluded: Mapping[str, str]
    k: int | None = None
    gain: Gain = "linear"

    def mean(self, metric: str) -> float:
        """Mean over the events of a field of `EventScore`."""
        return float(np.mean([getattr(score, metric) for score in self.events]))

    def interval(
        self, metric: Metric = "excess", *, bootstrap: int = 1000, seed: int = 0
    ) -> tuple[float, float]:
        """The 95 % bootstrap interval of a mean over events."""
        check_level(0.95, bootstrap)
        values_E = np.array([getattr(score, metric) for score in self.events])
        return percentiles(resample_means(values_E[:, None], bootstrap, seed)[:, 0], 0.95)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready summary."""
        fields = ("excess", "spearman", "kendall", "ndcg", "random", "worst", "items")
        lo, hi = self.interval()
        return {
            **{name: self.mean(name) for name in fields},
            "excess_ci": [lo, hi],
            "events": len(self.events),
            "excluded": dict(self.excluded),
            "k": self.k,
            "gain": self.gain,
        }


def rank_report(
    events: Sequence[RankedEvent], *, k: int | None = None, gain: Gain = "linear"
) -> RankingReport:
    """Score every event; those with one item or equal relevances are excluded and counted.

    Raises:
        InputError: for no usable event, repeated names, or bad values in an event (named).
    """
    scored: list[EventScore] = []
    excluded: dict[str, str] = {}
    if len({event.event for event in events}) < len(events):
        raise InputError("two events have the same name; give every event its own")
    for event in events:
        try:
            relevance_N = _vector("relevances", event.relevance)
            if len(relevance_N) < 2:
                excluded[event.event] = "one item"
                continue
            if (relevance_N == relevance_N[0]).all():
                excluded[event.event] = "equal relevances"
                continue
            value = ndcg(relevance_N, event.scores, k=k, gain=gain)
            chance = random_ndcg(relevance_N, k=k, gain=gain)
            scored.append(
                EventScore(
                    event.event,
                    len(relevance_N),
                    value,
                    chance,
                    worst_ndcg(relevance_N, k=k, gain=gain),
                    excess(value, chance),
                    spearman(relevance_N, event.scores),
                    kendall(relevance_N, event.scores),
                )
            )
        except InputError as error:
            raise InputError(f"event {event.event!r}: {error}") from error
    if not scored:
        raise InputError(
            f"no event can be ranked ({len(excluded)} excluded: one item or equal relevances); "
            "give events with at least two items that differ"
        )
    return RankingReport(tuple(scored), excluded, k, gain)


def compare_rankings(
    ours: RankingReport,
    theirs: RankingReport,
    metric: Metric = "excess",
    *,
    confidence: float = 0.95,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Difference:
    """`ours` minus `theirs` over the events that both scored, by a paired bootstrap over events.

    Raises:
        InputError: for an unknown metric, other k or gain, or no shared event.
    """
    check_level(confidence, bootstrap)
    if metric not in get_args(Metric):
        raise InputError(f"metric={metric!r}; choose one of {', '.join(get_args(Metric))}")
    if (ours.k, ours.gain) != (theirs.k, theirs.gain):
        raise InputError("the two reports use another k or gain; score both the same way")
    left = {score.event: getattr(score, metric) for score in ours.events}
    right = {score.event: getattr(score, metric) for score in theirs.events}
    shared = sorted(left.keys() & right.keys())
    if not shared:
        raise InputError("the two reports share no event; score both on the same events")
    gap_E = np.array([left[name] - right[name] for name in shared])
    means_R = resample_means(gap_E[:, None], bootstrap, seed)[:, 0]
    lo, hi = percentiles(means_R, confidence)
    p = sign_flip_p(gap_E, resamples=bootstrap, seed=seed)
    return Difference(float(gap_E.mean()), lo, hi, len(shared), p, confidence)
