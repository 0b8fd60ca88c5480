"""The searches: greedy finds a known need, within its calls; noise and order do not fool it."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.vision.gsearch import greedy, p_sigmoid, steepness
from outlay.vision.gsearch.measure import Measure, Value, shortfall, standard_error
from outlay.vision.gsearch.propose import propose
from outlay.vision.gsearch.schedule import Rates, mean_rate
from outlay.vision.gsearch.search import Sampler


def needs(wanted: Sequence[float]) -> Callable[[Rates], float]:
    """All or nothing: 1 where every layer has at least what it needs."""

    def perf(rates: Rates) -> float:
        return float(all(rate >= need for rate, need in zip(rates, wanted, strict=True)))

    return perf


@st.composite
def needed(draw: st.DrawFn, grid: int = 20) -> tuple[float, ...]:
    """Falling needs on a grid, the first two layers whole."""
    levels = draw(st.lists(st.integers(0, grid), min_size=1, max_size=10))
    return (1.0, 1.0, *(level / grid for level in sorted(levels, reverse=True)))


@given(needed())
def test_halving_finds_a_known_need_exactly_within_its_calls(wanted: tuple[float, ...]) -> None:
    found = greedy(needs(wanted), len(wanted), trials=6)
    assert found.rates == wanted
    assert found.calls <= len(wanted) * 6
    assert found.kept.mean == 1.0


@given(needed(7))
@settings(max_examples=30)
def test_the_grid_finds_a_known_need_exactly(wanted: tuple[float, ...]) -> None:
    found = greedy(needs(wanted), len(wanted), sampler="grid", grid=7, trials=8)
    assert found.rates == wanted
    assert found.calls <= len(wanted) * 8


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_a_need_off_the_grid_is_rounded_up_to_it(levels: list[float]) -> None:
    wanted = (1.0, 1.0, *sorted(levels, reverse=True))
    found = greedy(needs(wanted), len(wanted))
    for rate, need in zip(found.rates, wanted, strict=True):
        assert need <= rate < need + 1 / 20 + 1e-9


@pytest.mark.parametrize("sampler", ["gp", "tpe"])
def test_optuna_finds_a_known_need_within_its_calls(sampler: Sampler) -> None:
    wanted = (1.0, 1.0, 0.75, 0.25)
    found = greedy(needs(wanted), 4, sampler=sampler, trials=7, grid=6, seed=3)
    assert found.rates == pytest.approx((1, 1, 5 / 6, 2 / 6))
    assert found.calls <= 4 * 7
    assert greedy(needs(wanted), 4, sampler=sampler, trials=7, grid=6, seed=3) == found


@pytest.mark.parametrize("seed", range(3))
def test_optuna_with_few_trials_returns_a_good_level_that_it_has_tried(seed: int) -> None:
    wanted = (1.0, 1.0, 0.7, 0.2)
    found = greedy(needs(wanted), 4, sampler="tpe", trials=6, seed=seed)
    assert found.kept.mean == 1.0
    assert found.rates in {trial.rates for trial in found.trials}
    assert found.calls <= 4 * 6


def test_brute_force_agrees_on_three_layers_and_five_levels() -> None:
    levels = [level / 4 for level in range(5)]
    for need in itertools.combinations_with_replacement(reversed(levels), 2):
        perf = needs((1.0, *need))
        every = [(1.0, a, b) for a in levels for b in levels if b <= a]
        best = min((rates for rates in every if perf(rates) == 1), key=mean_rate)
        for sampler in ("bisect", "grid"):
            found = greedy(perf, 3, first_drop=1, grid=4, sampler=sampler, trials=5)
            assert found.rates == best


def test_brute_force_agrees_with_the_weighted_form_on_a_separable_gain() -> None:
    # Each layer's gain is concave in its own rate and peaks at a known level.
    peaks = (1.0, 0.75, 0.5)
    weight = 0.3

    def perf(rates: Rates) -> float:
        loss = sum((rate - peak) ** 2 for rate, peak in zip(rates, peaks, strict=True))
        return -loss + weight * mean_rate(rates)

    found = greedy(perf, 3, first_drop=2, lam=weight, sampler="grid", grid=4)
    levels = [level / 4 for level in range(5)]
    best = max(levels, key=lambda x: perf((1, 1, x)) - weight * mean_rate((1, 1, x)))
    assert found.rates == (1.0, 1.0, best) == (1.0, 1.0, 0.5)
    for sampler in ("gp", "tpe"):
        assert greedy(perf, 3, lam=weight, sampler=sampler, grid=4, seed=1).rates == found.rates


def test_a_heavier_weight_never_keeps_more() -> None:
    def perf(rates: Rates) -> float:
        return 1 - (1 - mean_rate(rates)) ** 2

    kept = [
        mean_rate(greedy(perf, 6, lam=lam, sampler="grid", trials=21).rates)
        for lam in (0.0, 0.5, 1.0, 2.0, 4.0)
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == 1.0
    assert kept[-1] == pytest.approx(2 / 6)


def test_equal_gains_take_the_cheapest_level() -> None:
    found = greedy(lambda rates: 0.5, 4, lam=0.0, sampler="grid", trials=21)
    assert found.rates == (1, 1, 0, 0)


def test_the_grid_finds_what_halving_misses_where_perf_is_not_monotone() -> None:
    good = {1.0, 0.2}

    def perf(rates: Rates) -> float:
        return float(rates[-1] in good)

    assert greedy(perf, 3, grid=5, sampler="grid").rates == (1, 1, 0.2)
    for sampler in ("gp", "tpe"):
        assert greedy(perf, 3, grid=5, sampler=sampler).rates == (1, 1, 0.2)
    assert greedy(perf, 3, grid=5, sampler="bisect").rates == (1, 1, 1)


@given(needed(), st.integers(1, 4))
@settings(max_examples=30)
def test_a_stride_keeps_the_need_of_the_first_layer_of_each_group(
    wanted: tuple[float, ...], stride: int
) -> None:
    found = greedy(needs(wanted), len(wanted), stride=stride)
    for layer in range(2, len(wanted)):
        assert found.rates[layer] == wanted[2 + (layer - 2) // stride * stride]


@given(needed(), st.floats(0, 1))
@settings(max_examples=30)
def test_no_layer_goes_below_the_lowest_rate(wanted: tuple[float, ...], least: float) -> None:
    found = greedy(needs(wanted), len(wanted), min_rate=least)
    assert all(rate >= least for rate in found.rates)
    assert all(rate >= need for rate, need in zip(found.rates, wanted, strict=True))


def test_few_trials_stop_early_at_a_level_that_is_known_to_be_good() -> None:
    wanted = (1.0, 1.0, 0.4, 0.1)
    found = greedy(needs(wanted), 4, trials=2)
    assert found.kept.mean == 1.0
    assert found.calls <= 4 * 2
    assert mean_rate(found.rates) > mean_rate(wanted)


def test_every_layer_before_the_first_drop_keeps_everything() -> None:
    for first in (1, 2, 3):
        assert greedy(lambda rates: 1.0, 4, first_drop=first).rates == (
            (1.0,) * first + (0.0,) * (4 - first)
        )


def test_no_schedule_is_measured_twice() -> None:
    seen: list[Rates] = []

    def perf(rates: Rates) -> float:
        seen.append(rates)
        return needs((1, 1, 0.5, 0.5, 0))(rates)

    found = greedy(perf, 5, sampler="tpe", trials=15)
    assert len(seen) == len(set(seen)) == found.calls


def noisy(n: int, loss: float, seed: int) -> Callable[[Rates], list[float]]:
    """Per-sample figures: right at random, with `loss` more mistakes per unit of rate dropped."""
    luck = np.random.default_rng(seed).random(n)

    def perf(rates: Rates) -> list[float]:
        threshold = 0.8 - loss * (1 - mean_rate(rates))
        return (luck < threshold).astype(float).tolist()

    return perf


def test_the_order_of_samples_does_not_matter() -> None:
    perf = noisy(101, 0.3, 5)
    order = np.random.default_rng(0).permutation(101)

    def shuffled(rates: Rates) -> list[float]:
        found = perf(rates)
        return [found[i] for i in order]

    for sampler in ("bisect", "tpe"):
        ours = greedy(perf, 5, sampler=sampler, eps=0.05, trials=8)
        theirs = greedy(shuffled, 5, sampler=sampler, eps=0.05, trials=8)
        assert ours.rates == theirs.rates
        assert ours.kept.mean == theirs.kept.mean


def test_a_larger_margin_accepts_more_and_a_negative_one_less() -> None:
    perf = noisy(400, 0.1, 1)
    kept = [mean_rate(greedy(perf, 8, margin=margin).rates) for margin in (-1, 0, 1, 3)]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[-1]


def test_the_standard_error_is_that_of_paired_differences() -> None:
    rng = np.random.default_rng(0)
    full, kept = rng.random(50), rng.random(50)
    values = [Value(float(x.mean()), tuple(x.tolist())) for x in (full, kept)]
    expected = (kept - full).std(ddof=1) / math.sqrt(50)
    assert standard_error(*values) == pytest.approx(expected, rel=1e-12)
    assert standard_error(values[0], values[0]) == 0.0
    single = Value(0.5, (0.5,))
    assert standard_error(single, single) == 0.0
    short = shortfall(*values, eps=0.02, margin=1.5)
    assert short == pytest.approx(full.mean() - kept.mean() - 0.02 - 1.5 * expected)


def test_a_single_figure_has_no_margin() -> None:
    def perf(rates: Rates) -> float:
        return 1.0 if mean_rate(rates) > 0.5 else 0.999

    found = greedy(perf, 4, margin=5.0)
    assert found.kept.mean == 1.0


def wavy(budget: float) -> Callable[[Rates], float]:
    """Peaks where k is near 1."""
    target = np.array(p_sigmoid(1.0, budget, 8, 2).rates)
    return lambda rates: -float(np.abs(np.array(rates) - target).sum())


@pytest.mark.parametrize("sampler", ["gp", "tpe"])
def test_the_steepness_of_a_known_curve_is_found(sampler: Sampler) -> None:
    found = steepness(wavy(0.5), 8, 0.5, sampler=sampler, trials=25, seed=0)
    assert found.curve is not None
    assert 0.6 < found.curve.k < 1.6
    assert abs(mean_rate(found.rates) - 0.5) < 1e-6
    assert found.kept.mean == max(trial.perf for trial in found.trials)
    assert found.calls <= 26


def test_the_ends_of_a_budget_need_no_search() -> None:
    for budget, rates in ((1.0, (1.0,) * 4), (0.5, (1.0, 1.0, 0.0, 0.0))):
        found = steepness(lambda rates: 0.0, 4, budget)
        assert found.rates == rates
        assert found.calls <= 2


def test_a_seed_gives_the_same_steepness() -> None:
    runs = [steepness(wavy(0.4), 8, 0.4, trials=8, seed=s).curve for s in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 3))
@settings(max_examples=20)
def test_whole_numbers_are_tried_once_each_as_long_as_there_are_any(
    count: int, trials: int, seed: int
) -> None:
    seen: list[float] = []
    propose(lambda x: seen.append(x) or -x, (0, count), "tpe", trials, seed)
    assert len(set(seen)) == min(trials, count + 1)
    assert all(0 <= x <= count for x in seen)


def test_a_search_leaves_optunas_settings_and_the_warnings_filters_alone() -> None:
    before = optuna.logging.get_verbosity()
    filters = list(warnings.filters)
    greedy(needs((1, 1, 0.5)), 3, sampler="tpe", trials=3)
    assert optuna.logging.get_verbosity() == before
    assert list(warnings.filters) == filters


@pytest.mark.parametrize("bad", [math.nan, math.inf, [0.5, math.nan]])
def test_a_metric_that_is_no_number_is_refused_with_its_rates(bad: float | list[float]) -> None:
    with pytest.raises(InputError, match=r"gave (nan|inf) under rates 1, 1, 1"):
        greedy(lambda rates: bad, 3)


def test_a_metric_with_other_samples_than_before_is_refused() -> None:
    sizes = iter((5, 4))
    with pytest.raises(InputError, match="4 figures, and 5 before"):
        greedy(lambda rates: [1.0] * next(sizes), 3)


@pytest.mark.parametrize("bad", [None, "good", ["good", "bad"], {"a": 1}])
def test_a_metric_that_gives_something_else_is_refused(bad: object) -> None:
    with pytest.raises(InputError, match="it must be a number, or one for each sample"):
        greedy(lambda rates: bad, 3)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("container", [list, tuple, np.array, torch.tensor])
def test_figures_of_samples_may_come_in_any_container(container: Callable[..., object]) -> None:
    def perf(rates: Rates) -> object:
        return container([float(rates[-1] >= 0.5), 1.0, 1.0])

    assert greedy(perf, 3, margin=0.0).rates == (1, 1, 0.5)  # type: ignore[arg-type]


def test_a_metric_without_figures_is_refused() -> None:
    with pytest.raises(InputError, match="no figure"):
        greedy(lambda rates: [], 3)


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be called"):
        Measure(0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"first_drop": 0}, "first_drop=0"),
        ({"first_drop": True}, "first_drop=True"),
        ({"first_drop": 6}, "leaves no layer"),
        ({"eps": -0.1}, "eps"),
        ({"eps": math.nan}, "eps"),
        ({"margin": math.inf}, "margin"),
        ({"lam": -1.0, "sampler": "gp"}, "lam"),
        ({"lam": 0.1, "sampler": "bisect"}, "highest gain"),
        ({"sampler": "cma"}, "sampler='cma'"),
        ({"sampler": "grid", "trials": 5}, "trials=21"),
        ({"trials": 0}, "trials"),
        ({"trials": 2.5}, "trials"),
        ({"grid": 0}, "grid"),
        ({"stride": 0}, "stride"),
        ({"min_rate": 1.5}, "min_rate"),
        ({"min_rate": "low"}, "min_rate"),
        ({"eps": "none"}, "eps"),
    ],
)
def test_knobs_of_the_greedy_search_out_of_range_are_named(
    knobs: dict[str, object], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        greedy(lambda rates: 1.0, 6, **knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("budget", "knobs", "match"),
    [
        (0.2, {}, r"smallest budget is 0\.25"),
        (0.0, {}, r"\(0, 1\]"),
        (1.2, {}, r"\(0, 1\]"),
        (0.5, {"first_drop": 0}, "first_drop"),
        (0.5, {"sampler": "bisect"}, "steepness"),
        (0.5, {"trials": 0}, "trials"),
        (0.3, {"min_rate": 0.2}, "min_rate"),
    ],
)
def test_knobs_of_the_budget_search_out_of_range_are_named(
    budget: float, knobs: dict[str, object], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        steepness(lambda rates: 1.0, 8, budget, **knobs)  # type: ignore[arg-type]
