"""The P-Sigmoid meets its budget exactly, and tends to the right limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.vision.counts import check_schedule
from outlay.vision.gsearch import p_sigmoid
from outlay.vision.gsearch.schedule import mean_rate

steep = st.floats(1e-8, 1e6)


@given(steep, st.floats(0, 1), st.integers(1, 80), st.data())
def test_the_mean_meets_any_feasible_budget_for_any_steepness(
    k: float, share: float, layers: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, layers))
    budget = (first + share * (layers - first)) / layers
    if budget == 0:
        return
    curve = p_sigmoid(k, budget, layers, first)
    assert abs(mean_rate(curve.rates) - budget) < 1e-6
    assert curve.rates[:first] == (1.0,) * first
    check_schedule(curve.rates, layers)


@given(steep, st.floats(0.3, 0.9), st.floats(0, 0.2), st.floats(0.8, 1))
def test_a_scaled_curve_stays_between_its_ends_and_meets_its_budget(
    k: float, share: float, lo: float, hi: float
) -> None:
    layers, first = 10, 2
    budget = (first + (layers - first) * (lo + share * (hi - lo))) / layers
    curve = p_sigmoid(k, budget, layers, first, lo=lo, hi=hi)
    assert abs(mean_rate(curve.rates) - budget) < 1e-6
    assert all(lo <= rate <= hi for rate in curve.rates[first:])


@given(st.floats(0.05, 5), st.floats(0.3, 0.9))
def test_rates_are_the_papers_formula_at_the_solved_middle(k: float, budget: float) -> None:
    curve = p_sigmoid(k, budget, 12, 2)
    for layer in range(2, 12):
        assert curve.rates[layer] == pytest.approx(1 / (1 + math.exp(k * (layer - curve.alpha))))


@pytest.mark.parametrize(("first", "budget"), [(0, 0.4), (2, 0.4), (2, 0.8)])
def test_a_flat_curve_keeps_the_same_share_in_all_layers_that_drop(
    first: int, budget: float
) -> None:
    rates = p_sigmoid(1e-7, budget, 8, first).rates
    uniform = (budget * 8 - first) / (8 - first)
    np.testing.assert_allclose(rates[first:], uniform, atol=1e-5)


def test_a_steep_curve_keeps_all_up_to_alpha_and_nothing_after() -> None:
    curve = p_sigmoid(1e4, 0.5, 8, 2)
    assert curve.rates == pytest.approx((1, 1, 1, 1, 0, 0, 0, 0), abs=1e-9)
    assert 3 < curve.alpha < 4
    between = p_sigmoid(1e4, 0.45, 8, 2).rates  # 3.6 layers' worth
    assert between == pytest.approx((1, 1, 1, 0.6, 0, 0, 0, 0), abs=1e-6)


def test_the_ends_of_the_budget_keep_everything_and_nothing() -> None:
    assert p_sigmoid(1.0, 1.0, 6, 2).rates == (1.0,) * 6
    assert p_sigmoid(1.0, 2 / 6, 6, 2).rates == (1, 1, 0, 0, 0, 0)
    assert p_sigmoid(1.0, 1.0, 6, 6).rates == (1.0,) * 6


def test_alpha_by_bisection_agrees_with_the_root_finder() -> None:
    k, budget, layers = 0.7, 0.45, 9

    def total(alpha: float) -> float:
        return sum(1 / (1 + math.exp(k * (i - alpha))) for i in range(layers))

    low, high = -100.0, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if total(middle) > budget * layers else (middle, high)
    assert p_sigmoid(k, budget, layers, 0).alpha == pytest.approx(low, abs=1e-9)


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.01, math.nan, True, "half"])
def test_a_budget_outside_its_range_is_refused(budget: float) -> None:
    with pytest.raises(InputError, match=r"budget=.*\(0, 1\]"):
        p_sigmoid(1.0, budget, 8, 2)


def test_an_infeasible_budget_is_told_the_minimum() -> None:
    with pytest.raises(InputError, match=r"smallest budget is 0\.25.*lower first_drop"):
        p_sigmoid(1.0, 0.2, 8, 2)
    with pytest.raises(InputError, match=r"smallest budget is 0\.4.*min_rate"):
        p_sigmoid(1.0, 0.3, 8, 2, lo=0.2)
    with pytest.raises(InputError, match=r"the most is 0\.625"):
        p_sigmoid(1.0, 0.7, 8, 2, hi=0.5)


@pytest.mark.parametrize("k", [0.0, -1.0, 1e7, math.nan, math.inf, True])
def test_a_steepness_out_of_range_is_refused(k: float) -> None:
    with pytest.raises(InputError, match="k="):
        p_sigmoid(k, 0.5, 8, 2)


@pytest.mark.parametrize(
    ("layers", "first", "lo", "hi", "match"),
    [
        (0, 0, 0.0, 1.0, "n_layers"),
        (8, -1, 0.0, 1.0, "first_drop"),
        (8, 9, 0.0, 1.0, "first_drop"),
        (8, 1.5, 0.0, 1.0, "first_drop"),
        (8, 2, 0.6, 0.5, "lo="),
        (8, 2, -0.1, 1.0, "lo="),
    ],
)
def test_a_curve_of_nothing_sensible_is_refused(
    layers: int, first: int, lo: float, hi: float, match: str
) -> None:
    with pytest.raises(InputError, match=match):
        p_sigmoid(1.0, 0.5, layers, first, lo=lo, hi=hi)
