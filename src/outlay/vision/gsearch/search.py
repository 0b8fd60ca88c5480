"""Searching keep rates: layer by layer (mode I), or one steepness under a budget (mode II).

Both need nothing but a callable that measures keep rates, so that they serve other droppers, too.

Mode I goes from shallow to deep. Layer by layer it asks how few tokens this layer and all deeper
ones can do with, fixes the answer and goes on: a token that a layer does not need is needed by no
deeper one. Where "good enough" is all or nothing this greedy walk is optimal; with an allowed loss,
or a weight on cost, shallow layers spend the slack first, and the result is greedy only.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

from outlay.errors import InputError
from outlay.vision.gsearch.measure import Measure, Perf, Value, shortfall
from outlay.vision.gsearch.propose import propose
from outlay.vision.gsearch.schedule import Rates, check_layers, mean_rate
from outlay.vision.gsearch.sigmoid import Curve, check_budget, least_budget, p_sigmoid

Sampler = Literal["bisect", "grid", "gp", "tpe"]
"""How the rate of a layer is found: halving (where fewer tokens are never better), every level from
the lowest, or Optuna's Gaussian process or Parzen estimator."""
Progress = Callable[[str], None]
STEEPNESS = (0.05, 5.0)
"""Range of k in which mode II searches, on a logarithmic scale."""
MAX_TRIALS, MAX_GRID = 10_000, 10_000


@dataclass(frozen=True)
class Trial:
    """One schedule that was measured.

    Args:
        layer: whose rate was searched; None in mode II.
        rates: of every layer.
        perf: mean figure.
        good: whether it was good enough; None where nothing was demanded.
    """

    layer: int | None
    rates: Rates
    perf: float
    good: bool | None


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Args:
        rates: of every layer.
        full: measured with nothing dropped.
        kept: measured under `rates`.
        calls: of the callable, each for another schedule.
        trials: in order.
        curve: of mode II.
    """

    rates: Rates
    full: Value
    kept: Value
    calls: int
    trials: tuple[Trial, ...]
    curve: Curve | None = None


def silent(message: str) -> None:
    """A progress callback that says nothing."""


def greedy(
    perf: Perf,
    n_layers: int,
    *,
    first_drop: int = 2,
    eps: float = 0.0,
    margin: float = 1.0,
    lam: float | None = None,
    sampler: Sampler | None = None,
    trials: int = 20,
    grid: int = 20,
    stride: int = 1,
    min_rate: float = 0.0,
    cost: Callable[[Rates], float] = mean_rate,
    seed: int = 0,
    progress: Progress = silent,
) -> Found:
    """Mode I: the smallest keep rates that are good enough, layer by layer.

    Args:
        perf: measures rates; higher is better.
        n_layers: decoder layers.
        first_drop: the first layer that may have fewer tokens, from 1.
        eps: loss against the full model that is allowed.
        margin: standard errors of that loss that count as noise, where `perf` gives a figure for
            each sample.
        lam: weight of cost; given, each layer takes the highest `perf - lam * cost` instead.
        sampler: None takes "bisect", or "gp" with `lam`.
        trials: most calls for a layer; halving and the grid may need fewer.
        grid: levels of a rate are multiples of 1 / grid.
        stride: layers that share a rate.
        min_rate: lowest rate.
        cost: of rates, for `lam`.
        seed: of Optuna's samplers.
        progress: gets a line a layer.

    Raises:
        InputError: for numbers out of range, or a figure that is not finite.
        DependencyError: without Optuna, where a sampler needs it.
    """
    check_layers(n_layers)
    check_first_drop(first_drop, n_layers)
    check_numbers(eps, margin, trials, grid, stride, min_rate, lam)
    chosen = sampler or ("bisect" if lam is None else "gp")
    check_sampler(chosen, trials, grid, lam)
    measure = Measure(perf)
    rates: Rates = (1.0,) * n_layers
    walk = _Walk(n_layers, measure, measure(rates), eps, margin, lam, cost)
    levels = sorted({max(min_rate, level / grid) for level in range(grid + 1)})
    for layer in range(first_drop, n_layers, stride):
        open_ = [level for level in levels if level <= rates[layer]]
        head = rates[:layer]
        if lam is not None:
            gain = partial(walk.gain, head)
            best = _highest(open_, gain, chosen, trials, seed + layer)
        else:
            short = partial(walk.short, head)
            if chosen == "bisect":
                best = _halve(open_, short, trials)
            elif chosen == "grid":
                best = _scan(open_, short)
            else:
                best = _least(open_, short, chosen, trials, seed + layer)
        rates = walk.at(head, best)
        progress(f"layer {layer} and deeper: {best:g} of the visual tokens")
    return Found(rates, walk.full, measure(rates), measure.calls, tuple(walk.seen))


@dataclass
class _Walk:
    """What the greedy walk asks of a level of the layer at hand and all deeper ones."""

    n_layers: int
    measure: Measure
    full: Value
    eps: float
    margin: float
    lam: float | None
    cost: Callable[[Rates], float]
    seen: list[Trial] = field(default_factory=list)

    def at(self, head: Rates, level: float) -> Rates:
        """Rates that are fixed already, then one level."""
        return head + (level,) * (self.n_layers - len(head))

    def short(self, head: Rates, level: float) -> float:
        """At most 0 where the level is good enough."""
        rates = self.at(head, level)
        kept = self.measure(rates)
        short = shortfall(self.full, kept, self.eps, self.margin)
        self.seen.append(Trial(len(head), rates, kept.mean, short <= 0))
        return short

    def gain(self, head: Rates, level: float) -> float:
        """Perf less weighted cost."""
        assert self.lam is not None
        rates = self.at(head, level)
        kept = self.measure(rates)
        self.seen.append(Trial(len(head), rates, kept.mean, None))
        return kept.mean - self.lam * self.cost(rates)


def steepness(
    perf: Perf,
    n_layers: int,
    budget: float,
    *,
    first_drop: int = 2,
    sampler: Sampler | None = None,
    trials: int = 20,
    min_rate: float = 0.0,
    seed: int = 0,
    progress: Progress = silent,
) -> Found:
    """Mode II: the best P-Sigmoid of a budget; of equal ones, the least steep.

    Args:
        perf: measures rates; higher is better.
        n_layers: decoder layers.
        budget: mean keep rate over layers.
        first_drop: layers that keep everything.
        sampler: "gp" (None takes it) or "tpe".
        trials: values of k that are tried.
        min_rate: lowest rate of the curve.
        seed: of the sampler.
        progress: gets a line a new best.

    Raises:
        InputError: for a budget that no curve meets, or numbers out of range.
        DependencyError: without Optuna.
    """
    check_layers(n_layers)
    check_first_drop(first_drop, n_layers)
    check_budget(budget, n_layers, first_drop, min_rate)
    if sampler not in (None, "gp", "tpe"):
        raise InputError(f"sampler={sampler!r} cannot tune a steepness; use 'gp' or 'tpe'")
    _whole("trials", trials, 1, MAX_TRIALS)
    measure = Measure(perf)
    full = measure((1.0,) * n_layers)
    seen: list[Trial] = []
    curves: dict[float, Curve] = {}

    def value(k: float) -> float:
        curves[k] = p_sigmoid(k, budget, n_layers, first_drop, lo=min_rate)
        found = measure(curves[k].rates).mean
        if found > max((trial.perf for trial in seen), default=-math.inf):
            progress(f"k={k:.3g}: {found:.4g}")
        seen.append(Trial(None, curves[k].rates, found, None))
        return found

    fixed = budget >= 1 or budget <= least_budget(n_layers, first_drop, min_rate)
    if fixed:  # one curve only
        value(1.0)
    else:
        propose(value, STEEPNESS, sampler or "gp", trials, seed, log=True)
    best = max(sorted(curves), key=lambda k: measure(curves[k].rates).mean)
    kept = measure(curves[best].rates)
    return Found(curves[best].rates, full, kept, measure.calls, tuple(seen), curves[best])


def _halve(levels: Sequence[float], good: Callable[[float], float], trials: int) -> float:
    """The smallest good level, if goodness never ends as levels rise; the highest is good."""
    low, high = 0, len(levels) - 1
    for _ in range(trials):
        if low >= high:
            break
        middle = (low + high) // 2
        low, high = (low, middle) if good(levels[middle]) <= 0 else (middle + 1, high)
    return levels[high]


def _scan(levels: Sequence[float], good: Callable[[float], float]) -> float:
    """The smallest good level, whatever the others are; the highest is good."""
    return next((level for level in levels[:-1] if good(level) <= 0), levels[-1])


def _least(
    levels: Sequence[float],
    good: Callable[[float], float],
    sampler: Literal["gp", "tpe"],
    trials: int,
    seed: int,
) -> float:
    """The smallest good level that Optuna finds; the highest is good."""
    best = len(levels) - 1

    def short(index: float) -> float:
        nonlocal best
        by = good(levels[int(index)])
        best = min(best, int(index)) if by <= 0 else best
        return by

    span = (0, best)
    propose(
        operator.neg, span, sampler, trials, seed, limit=short, worth=lambda index: index < best
    )
    return levels[best]


def _highest(
    levels: Sequence[float],
    gain: Callable[[float], float],
    sampler: Sampler,
    trials: int,
    seed: int,
) -> float:
    """The level of most gain; the lowest of equal ones."""
    known: dict[int, float] = {}

    def value(index: float) -> float:
        known[int(index)] = gain(levels[int(index)])
        return known[int(index)]

    if sampler not in ("gp", "tpe") or len(levels) == 1:
        for index in range(len(levels)):
            value(index)
    else:
        propose(value, (0, len(levels) - 1), sampler, trials, seed)
    return levels[max(sorted(known), key=lambda index: known[index])]


def check_sampler(sampler: str, trials: int, grid: int, lam: float | None) -> None:
    """Raise `InputError` for a sampler that is unknown or does not fit."""
    if sampler not in get_args(Sampler):
        raise InputError(f"sampler={sampler!r}; use one of {', '.join(get_args(Sampler))}")
    if lam is not None and sampler == "bisect":
        raise InputError(
            "sampler='bisect' finds where good enough ends, and lam asks for the highest gain; "
            "use sampler='gp', 'tpe' or 'grid', or leave lam out"
        )
    if sampler == "grid" and trials <= grid:
        raise InputError(
            f"sampler='grid' may measure {grid + 1} levels of a layer, more than trials={trials}; "
            f"set trials={grid + 1} or a coarser grid"
        )


def check_first_drop(first_drop: int, n_layers: int | None = None) -> None:
    """Raise `InputError` unless tokens can be dropped from this layer on by attention."""
    if isinstance(first_drop, bool) or not isinstance(first_drop, int) or first_drop < 1:
        raise InputError(
            f"first_drop={first_drop!r}; before layer 1 no attention has ranked the tokens, so it "
            "is an int >= 1"
        )
    if n_layers is not None and first_drop >= n_layers:
        raise InputError(
            f"first_drop={first_drop} leaves no layer to drop before: the decoder has {n_layers}"
        )


def check_numbers(
    eps: float,
    margin: float,
    trials: int,
    grid: int,
    stride: int,
    min_rate: float,
    lam: float | None,
) -> None:
    """Raise `InputError` for knobs of a search that are out of range."""
    for name, value, least in (("eps", eps, 0.0), ("margin", margin, -10.0), ("lam", lam, 0.0)):
        if value is None and name == "lam":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"{name}={value!r}; need a number")
        if not least <= value < math.inf:
            raise InputError(f"{name}={value}; need a finite number >= {least:g}")
    _whole("trials", trials, 1, MAX_TRIALS)
    _whole("grid", grid, 1, MAX_GRID)
    _whole("stride", stride, 1, MAX_TRIALS)
    if isinstance(min_rate, bool) or not isinstance(min_rate, (int, float)):
        raise InputError(f"min_rate={min_rate!r}; need a number")
    if not 0 <= min_rate <= 1:
        raise InputError(f"min_rate={min_rate}; the lowest keep rate is in [0, 1]")


def _whole(name: str, value: int, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"{name}={value!r}; need an int of {least} to {most}")
