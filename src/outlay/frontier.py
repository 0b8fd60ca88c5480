"""The quality-per-token frontier: points, Pareto front, area under it, and readings of curves.

`points` averages records (`outlay.records`) into the points of a plot, on a named cost axis
computed from ledgers. Seeds of one example are averaged first: the example is the unit of every
interval. Comparisons of two methods live in `outlay.paired`. Nothing is extrapolated: a figure
outside the measured range is None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from outlay.budget import Budget
from outlay.errors import InputError
from outlay.figure import plot
from outlay.paired import CostRatio, Difference, Verdict, cost_ratio, paired, verdicts
from outlay.records import (
    KINDS,
    Axis,
    Key,
    Prices,
    Record,
    budget_dict,
    cost_of,
    per_example,
    unique,
)
from outlay.stats import (
    FloatArray,
    Interval,
    Method,
    check_level,
    check_log,
    first_crossing,
    mean_interval,
)

__all__ = [
    "Axis",
    "CostRatio",
    "Difference",
    "Point",
    "Record",
    "Verdict",
    "area",
    "cost_at",
    "cost_of",
    "cost_ratio",
    "paired",
    "pareto",
    "plot",
    "points",
    "quality_at",
    "verdicts",
]


@dataclass(frozen=True)
class Point:
    """Mean outcome of one method at one budget.

    Args:
        stack: label of what ran.
        budget: what it was allowed.
        quality: mean over examples.
        lo, hi: confidence interval of `quality`; None where the sample allows none.
        n: number of examples.
        tokens: mean of all tokens paid for per example, every role and kind.
        flops, seconds: means per example.
        kv_bytes, ttft, tbt: means over records that measured them, None where none did.
        task: name of the task.
        axis: name of the cost axis.
        cost: mean cost per example on that axis.
        interval: how `lo, hi` were made (see `stats.mean_interval`).
        kinds: mean tokens per example by kind (`KINDS`).
        estimated: True where some counts are estimates.
    """

    stack: str
    budget: Budget
    quality: float
    lo: float | None
    hi: float | None
    n: int
    tokens: float
    flops: float
    kv_bytes: float | None
    seconds: float
    ttft: float | None
    tbt: float | None
    task: str = ""
    axis: Axis = "generated+forced"
    cost: float = 0.0
    interval: str = "bootstrap"
    kinds: Mapping[str, float] = field(default_factory=dict, hash=False)
    estimated: bool = False

    @property
    def group(self) -> Key:
        """Task, stack and budget label."""
        return self.task, self.stack, self.budget.label()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**row, "budget": budget_dict(self.budget), "kinds": dict(self.kinds)}


def points(
    records: Iterable[Record],
    *,
    axis: Axis = "generated+forced",
    confidence: float = 0.95,
    bootstrap: int = 1000,
    seed: int = 0,
    interval: Method = "auto",
    price: Prices | None = None,
) -> list[Point]:
    """One point per (task, method, budget), in order of first appearance.

    Args:
        records: any number of examples and seeds; a key that appears twice counts once (the last).
        axis: the cost axis (see `cost_of`).
        confidence: of the intervals.
        bootstrap: resamples.
        seed: of the resampling.
        interval: "auto", "bootstrap" or "wilson" (see `stats.mean_interval`).
        price: for the axis "usd".
    """
    check_level(confidence, bootstrap)
    groups: dict[Key, list[Record]] = {}
    for record in unique(records):
        groups.setdefault(record.group, []).append(record)
    return [
        _point(
            group,
            mean_interval(
                np.array(list(per_example(group).values())),
                confidence=confidence,
                resamples=bootstrap,
                seed=seed,
                method=interval,
            ),
            axis,
            price,
        )
        for group in groups.values()
    ]


def _point(group: list[Record], found: Interval, axis: Axis, price: Prices | None) -> Point:
    """The point of records that share task, method and budget."""
    totals = {record.key: record.ledger.totals() for record in group}

    def mean(value: Callable[[Record], float]) -> float:
        return float(np.mean(list(per_example(group, value).values())))

    def kind_mean(kind: str) -> float:
        return mean(lambda record: float(getattr(totals[record.key], kind)))

    def measured(name: str) -> float | None:
        values = [v for record in group if (v := getattr(record, name)) is not None]
        return float(np.mean(values)) if values else None

    return Point(
        stack=group[0].method_stack,
        budget=group[0].budget,
        quality=found.mean,
        lo=found.lo,
        hi=found.hi,
        n=found.n,
        tokens=kind_mean("all"),
        flops=kind_mean("flops"),
        kv_bytes=measured("kv_bytes"),
        seconds=kind_mean("seconds"),
        ttft=measured("ttft"),
        tbt=measured("tbt"),
        task=group[0].task,
        axis=axis,
        cost=mean(lambda record: record.cost(axis, price)),
        interval=found.method,
        kinds={kind: kind_mean(kind) for kind in KINDS},
        estimated=any(total.estimated for total in totals.values()),
    )


def pareto(points: Iterable[Point], *, higher_is_better: bool = True) -> list[Point]:
    """Points that no other point beats: none is as cheap and better, or as good and cheaper.

    Sorted by cost; equal points all stay.
    """
    sign = -1.0 if higher_is_better else 1.0
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, sign * p.quality)):
        better = not front or sign * point.quality < sign * front[-1].quality
        if better or (point.cost, point.quality) == (front[-1].cost, front[-1].quality):
            front.append(point)
    return front


def area(
    points: Sequence[Point],
    *,
    lo: float | None = None,
    hi: float | None = None,
    log: bool = True,
    higher_is_better: bool = True,
) -> float | None:
    """Mean of the best quality that cost x buys, for x over [lo, hi] (log-uniform if `log`).

    The frontier is a staircase: between two points, the cheaper one is what can be had. Give the
    same `lo, hi` to all methods that are compared; the default is the points' own range.

    Returns:
        The mean, or None where nothing can be had at `lo` or the range is empty.
    """
    front = pareto(points, higher_is_better=higher_is_better)
    if not front:
        return None
    lo = front[0].cost if lo is None else lo
    hi = max(p.cost for p in points) if hi is None else hi
    if log and lo <= 0:
        raise InputError(f"lo={lo} has no logarithm; use log=False or another axis")
    if lo < front[0].cost or hi <= lo:
        return None
    steps = [p for p in front if p.cost <= lo][-1:] + [p for p in front if lo < p.cost < hi]
    edges = np.array([lo, *(p.cost for p in steps[1:]), hi])
    if log:
        edges = np.log(edges)
    return float(np.diff(edges) @ [p.quality for p in steps] / (edges[-1] - edges[0]))


def quality_at(points: Sequence[Point], cost: float, *, log: bool = True) -> float | None:
    """One method's quality at `cost`, interpolated (log-linearly); None outside its range."""
    curve = _curve([p.cost for p in points], [p.quality for p in points], log)
    if curve is None:
        return None
    costs, qualities = curve
    x = np.log(cost) if log and cost > 0 else cost
    if not costs[0] <= x <= costs[-1]:
        return None
    return float(np.interp(x, costs, qualities))


def cost_at(
    points: Sequence[Point], quality: float, *, log: bool = True, higher_is_better: bool = True
) -> float | None:
    """The cost at which one method's curve first reaches `quality`; None where it does not.

    None, too, if the cheapest point is already better: what less would buy was not measured.
    """
    cost = first_crossing(
        np.array([[p.cost for p in points]]),
        np.array([[p.quality for p in points]]),
        quality,
        log,
        higher_is_better,
    )
    return None if np.isnan(cost[0]) else float(cost[0])


def _curve(
    costs: Sequence[float], qualities: Sequence[float], log: bool
) -> tuple[FloatArray, FloatArray] | None:
    """Sorted by cost, equal costs averaged; None without points."""
    if not len(costs):
        return None
    check_log(np.array(costs), log)
    unique_, inverse = np.unique(np.array(costs, dtype=float), return_inverse=True)
    sums = np.bincount(inverse, weights=np.array(qualities, dtype=float))
    return np.log(unique_) if log else unique_, sums / np.bincount(inverse)
