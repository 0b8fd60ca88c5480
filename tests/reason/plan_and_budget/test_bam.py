"""BAM: the exact split is optimal, the printed one only where all rates are equal."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.reason.plan_and_budget import Curve, closed_form, fit, optimal
from outlay.reason.plan_and_budget.bam import kkt_residual, total_uncertainty

CURVE = st.builds(Curve, st.floats(1e-3, 1e3), st.floats(0.02, 8))
CURVES = st.lists(CURVE, min_size=1, max_size=8)
BUDGET = st.floats(1, 1e5)


@given(CURVES, BUDGET)
def test_marginal_values_are_equal_and_the_budget_is_spent(
    curves: list[Curve], budget: float
) -> None:
    found = optimal(curves, budget)
    assert math.fsum(found) == pytest.approx(budget, rel=1e-12)
    assert all(share > 0 for share in found)
    assert kkt_residual(curves, found) < 1e-6


@given(CURVES, BUDGET, st.integers(0, 2**30))
def test_no_random_split_leaves_less_uncertainty(
    curves: list[Curve], budget: float, seed: int
) -> None:
    best = total_uncertainty(curves, optimal(curves, budget))
    rng = random.Random(seed)
    for _ in range(100):
        parts = [rng.expovariate(1) + 1e-9 for _ in curves]
        split = [budget * part / sum(parts) for part in parts]
        assert best <= total_uncertainty(curves, split) * (1 + 1e-9)


@given(CURVE, CURVE, st.floats(10, 1000))
def test_a_grid_over_two_steps_finds_nothing_better(one: Curve, other: Curve, b: float) -> None:
    curves = [one, other]
    found = optimal(curves, b)
    grid = [b * k / 2000 for k in range(1, 2000)]
    best = min(grid, key=lambda first: total_uncertainty(curves, [first, b - first]))
    assert total_uncertainty(curves, found) <= total_uncertainty(curves, [best, b - best]) * (
        1 + 1e-9
    )
    if b / 100 < found[0] < b - b / 100:
        assert best == pytest.approx(found[0], abs=b / 1000)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8), st.floats(0.02, 8), BUDGET)
def test_with_equal_rates_the_printed_form_is_the_optimum(
    levels: list[float], rate: float, budget: float
) -> None:
    curves = [Curve(c, rate) for c in levels]
    assert closed_form(curves, budget) == pytest.approx(optimal(curves, budget), rel=1e-6)


@given(CURVES, BUDGET)
def test_doubling_all_uncertainties_moves_nothing(curves: list[Curve], budget: float) -> None:
    doubled = [Curve(2 * curve.c, curve.a) for curve in curves]
    assert optimal(doubled, budget) == pytest.approx(optimal(curves, budget), rel=1e-6)


def test_with_unequal_rates_the_printed_form_can_lose_to_an_even_split() -> None:
    curves = [Curve(1, 0.2), Curve(1, 3)]
    even = total_uncertainty(curves, [50, 50])
    assert total_uncertainty(curves, closed_form(curves, 100)) > even
    assert total_uncertainty(curves, optimal(curves, 100)) < even


def test_more_uncertainty_gets_more_until_nothing_helps() -> None:
    """The share rises with c; as the rate falls it rises, and vanishes for hopeless steps."""
    assert optimal([Curve(1, 1), Curve(4, 1)], 90) == pytest.approx([30, 60])
    rates = (4, 1, 0.3, 0.1, 0.01, 1e-3, 1e-5)
    shares = [optimal([Curve(1, 1), Curve(4, a)], 90)[1] for a in rates]
    top = shares.index(max(shares))
    assert 0 < top < len(rates) - 1
    assert shares[: top + 1] == sorted(shares[: top + 1])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert shares[-1] < 1


@given(CURVE, st.lists(st.integers(1, 500), min_size=2, max_size=9, unique=True))
def test_a_fit_through_exact_points_gives_their_curve(curve: Curve, budgets: list[int]) -> None:
    found = fit(budgets, [curve.uncertainty(b) for b in budgets])
    assert found is not None
    assert found.a == pytest.approx(curve.a, rel=1e-6)
    assert found.c == pytest.approx(curve.c, rel=1e-4)


def test_uncertainty_that_does_not_fall_has_no_curve() -> None:
    assert fit([8, 16], [0.5, 0.5]) is None
    assert fit([8, 16, 32], [0.5, 0.6, 0.7]) is None
    assert fit([1000, 1001], [1.0, 1e-300]) is None  # c would overflow


def test_no_tokens_leave_everything_uncertain() -> None:
    assert Curve(1, 1).uncertainty(0) == math.inf


@pytest.mark.parametrize(
    ("c", "a"), [(0, 1), (-1, 1), (1, 0), (1, -2), (math.nan, 1), (1, math.inf)]
)
def test_curves_need_positive_numbers(c: float, a: float) -> None:
    with pytest.raises(InputError, match="a curve needs finite c > 0 and a > 0"):
        Curve(c, a)


def test_bad_input_is_refused() -> None:
    one = [Curve(1, 1)]
    for split in (optimal, closed_form):
        with pytest.raises(InputError, match="no curves"):
            split([], 10)
        with pytest.raises(InputError, match="budget=0"):
            split(one, 0)
    with pytest.raises(InputError, match="2 budgets for 1 curves"):
        total_uncertainty(one, [1, 2])
    with pytest.raises(InputError, match="two different"):
        fit([8, 8], [1, 1])
    with pytest.raises(InputError, match="1 uncertainties for 2 budgets"):
        fit([8, 16], [1])
    with pytest.raises(InputError, match="not finite and > 0"):
        fit([8, 16], [1, 0])
