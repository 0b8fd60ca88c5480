"""Two methods compared over the examples that both answered.

The example is the unit: seeds (and budgets, where several are shared) are averaged first, and both
methods see the same resamples. A difference counts as separable only where the bootstrap interval
and a sign-flip test agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from outlay.errors import InputError
from outlay.records import Axis, Key, Prices, Record, per_example, unique
from outlay.stats import (
    FloatArray,
    check_level,
    first_crossing,
    percentiles,
    resample_means,
    sign_flip_p,
)


@dataclass(frozen=True)
class Difference:
    """Method A minus method B over shared examples.

    Args:
        mean: mean paired difference in quality.
        lo, hi: bootstrap interval.
        n: shared examples.
        p: two-sided sign-flip p-value; with n < 6 examples it cannot fall below 0.05.
        confidence: of the interval.
    """

    mean: float
    lo: float
    hi: float
    n: int
    p: float
    confidence: float = 0.95

    @property
    def separable(self) -> bool:
        """True if the interval excludes 0 and the test agrees; a bootstrap of few examples, or of
        equal differences, is too narrow to be believed alone."""
        return (self.lo > 0 or self.hi < 0) and self.p <= 1 - self.confidence

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {**asdict(self), "separable": self.separable}


def difference(
    gap_N: FloatArray, *, confidence: float = 0.95, bootstrap: int = 1000, seed: int = 0
) -> Difference:
    """The mean of paired differences, one an example, with its interval and test.

    Args:
        gap_N: A minus B of each example; seeds averaged before.
        confidence: of the interval.
        bootstrap: resamples of examples.
        seed: of the resampling.
    """
    means_R = resample_means(gap_N[:, None], bootstrap, seed)[:, 0]
    lo, hi = percentiles(means_R, confidence)
    p = sign_flip_p(gap_N, resamples=bootstrap, seed=seed)
    return Difference(float(gap_N.mean()), lo, hi, len(gap_N), p, confidence)


def paired(
    records_a: Iterable[Record],
    records_b: Iterable[Record],
    *,
    match_budget: bool = True,
    confidence: float = 0.95,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Difference:
    """Paired difference in quality between two methods over the examples that both answered.

    Args:
        records_a: of one method.
        records_b: of the other.
        match_budget: compare at equal budgets only; an example's differences at several shared
            budgets are averaged. False compares whatever each was given.
        confidence: of the interval.
        bootstrap: resamples of examples.
        seed: of the resampling.

    Raises:
        InputError: if the two share no example (at an equal budget).
    """
    check_level(confidence, bootstrap)
    tables = []
    for records in (records_a, records_b):
        table: dict[tuple[str, str, str], list[float]] = {}
        for record in unique(records):
            label = record.budget.label() if match_budget else ""
            table.setdefault((record.task, record.example, label), []).append(record.quality)
        tables.append(table)
    found: dict[tuple[str, str], list[float]] = {}
    for key in tables[0].keys() & tables[1].keys():
        gap = float(np.mean(tables[0][key]) - np.mean(tables[1][key]))
        found.setdefault(key[:2], []).append(gap)
    if not found:
        at = " at an equal budget" if match_budget else ""
        raise InputError(f"the two methods share no example{at}; run both on the same examples")
    gap_N = np.array([np.mean(found[key]) for key in sorted(found)])
    return difference(gap_N, confidence=confidence, bootstrap=bootstrap, seed=seed)


Verdict = Literal["best", "highest", "not separable", "worse", "alone"]


def verdicts(
    records: Iterable[Record],
    *,
    higher_is_better: bool | Mapping[str, bool] = True,
    confidence: float = 0.95,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[Key, Verdict]:
    """How each method stands at each budget of each task, by paired bootstrap against the leader.

    "best": the leader, and every other method is separably worse. "highest": the leader, but some
    other method is "not separable" from it. "alone": the only method at that budget.

    Args:
        records: of any number of tasks, methods and budgets.
        higher_is_better: for all tasks, or per task name.
        confidence, bootstrap, seed: as in `paired`.
    """
    groups: dict[Key, list[Record]] = {}
    for record in unique(records):
        groups.setdefault(record.group, []).append(record)
    contests: dict[tuple[str, str], list[Key]] = {}
    for key in groups:
        contests.setdefault((key[0], key[2]), []).append(key)
    result: dict[Key, Verdict] = {}
    for (task, _), keys in contests.items():
        higher = higher_is_better
        up = higher if isinstance(higher, bool) else higher.get(task, True)
        mean = {key: np.mean(list(per_example(groups[key]).values())) for key in keys}
        leader = max(keys, key=lambda key: mean[key] if up else -mean[key])
        if len(keys) == 1:
            result[leader] = "alone"
            continue
        others: dict[Key, Verdict] = {}
        for key in keys:
            if key == leader:
                continue
            try:
                gap = paired(
                    groups[leader],
                    groups[key],
                    confidence=confidence,
                    bootstrap=bootstrap,
                    seed=seed,
                )
            except InputError:  # no shared example: nothing can be said
                others[key] = "not separable"
                continue
            others[key] = "worse" if gap.separable else "not separable"
        result[leader] = "highest" if "not separable" in others.values() else "best"
        result.update(others)
    return {key: result[key] for key in groups}


@dataclass(frozen=True)
class CostRatio:
    """Cost of method A over method B at equal quality.

    Args:
        quality: the level at which both are read.
        ratio: cost A / cost B; None where a curve does not cross the level.
        lo, hi: paired bootstrap interval, None where too many resamples are undefined.
        n: shared examples.
        undefined: share of resamples in which a curve did not cross the level.
    """

    quality: float
    ratio: float | None
    lo: float | None
    hi: float | None
    n: int
    undefined: float


def cost_ratio(
    records_a: Iterable[Record],
    records_b: Iterable[Record],
    quality: float,
    *,
    axis: Axis = "generated+forced",
    log: bool = True,
    higher_is_better: bool = True,
    confidence: float = 0.95,
    bootstrap: int = 1000,
    seed: int = 0,
    price: Prices | None = None,
) -> CostRatio:
    """Tokens (or any cost) at iso-quality of A relative to B, with a paired bootstrap interval.

    Both methods' curves over their budgets are rebuilt for every resample of the examples that all
    of their points share, and read where they first reach `quality`. The interval is given only
    if at most `1 - confidence` of the resamples are undefined.

    Raises:
        InputError: if no example is shared by all points of both methods.
    """
    check_level(confidence, bootstrap)
    sides = [_tables(records, axis, price) for records in (records_a, records_b)]
    tables = [table for side in sides for table in side]
    shared = sorted(set.intersection(*(set(t) for t in tables))) if tables else []
    if not shared or not all(sides):
        raise InputError("no example has a record at every budget of both methods; run it there")
    columns = [[table[key] for key in shared] for table in tables]
    values_NM = np.array(columns).transpose(1, 0, 2).reshape(len(shared), -1)
    means_RM = np.concatenate(
        [values_NM.mean(axis=0, keepdims=True), resample_means(values_NM, bootstrap, seed)]
    )
    split = 2 * len(sides[0])
    costs = [
        first_crossing(side[:, 1::2], side[:, ::2], quality, log, higher_is_better)
        for side in (means_RM[:, :split], means_RM[:, split:])
    ]
    ratios_R = costs[0] / costs[1]
    good_R = ratios_R[1:][~np.isnan(ratios_R[1:])]
    undefined = 1 - len(good_R) / bootstrap
    lo, hi = None, None
    if undefined <= 1 - confidence:
        lo, hi = percentiles(good_R, confidence)
    value = None if np.isnan(ratios_R[0]) else float(ratios_R[0])
    return CostRatio(quality, value, lo, hi, len(shared), undefined)


def _tables(
    records: Iterable[Record], axis: Axis, price: Prices | None
) -> list[dict[tuple[str, str], tuple[float, float]]]:
    """Per budget: example -> (quality, cost), seeds averaged."""
    groups: dict[str, list[Record]] = {}
    for record in unique(records):
        groups.setdefault(record.budget.label(), []).append(record)
    result = []
    for group in groups.values():
        quality = per_example(group)
        cost = per_example(group, lambda r: r.cost(axis, price))
        result.append({key: (quality[key], cost[key]) for key in quality})
    return result
