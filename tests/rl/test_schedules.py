"""Budget schedules as functions of optimiser steps."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import BudgetError, InputError
from outlay.rl.schedules import (
    called,
    changes,
    constant,
    exp_endpoints,
    exp_interval,
    linear,
    rising,
    stage,
)

PAPER: Any = {"b0": 256, "b_final": 87, "total_steps": 600}
ENDS = st.tuples(st.floats(1, 1e5), st.floats(1, 1e5)).map(sorted)
LENGTHS = st.integers(0, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(n + 1, 80)))


def test_the_papers_default_budgets_and_their_steps() -> None:
    found = changes(lambda t: exp_endpoints(t, n_decays=3, **PAPER), 600)
    assert [step for step, _ in found] == [0, 150, 300, 450]
    assert [round(b) for _, b in found] == [256, 179, 125, 87]
    assert found[1][1] / found[0][1] == pytest.approx(0.70, abs=0.005)


@pytest.mark.parametrize(("n", "factor", "every"), [(1, 0.340, 300), (7, 0.857, 75)])
def test_the_papers_ablations(n: int, factor: float, every: int) -> None:
    found = changes(lambda t: exp_endpoints(t, n_decays=n, **PAPER), 600)
    assert [step for step, _ in found] == [k * every for k in range(n + 1)]
    for (_, a), (_, b) in pairwise(found):
        assert b / a == pytest.approx(factor, abs=5e-4)


def test_the_papers_linear_budgets() -> None:
    found = changes(lambda t: linear(t, n_decays=3, **PAPER), 600)
    assert [step for step, _ in found] == [0, 150, 300, 450]
    assert [round(b, 1) for _, b in found] == [256, 199.7, 143.3, 87]


def test_the_overview_figures_interval_schedule() -> None:
    at = [exp_interval(t, b0=256, gamma=0.7, interval=100) for t in range(601)]
    assert at[0] == at[99] == 256
    assert at[100] == pytest.approx(179.2)
    assert math.floor(at[600]) == 30
    assert exp_interval(10_000_000, b0=256, gamma=0.7, interval=100) == 1


@given(ENDS, LENGTHS)
def test_falling_schedules_fall_from_first_to_last_budget_in_equal_stages(
    ends: list[float], lengths: tuple[int, int]
) -> None:
    low, high = ends
    n, total = lengths
    for schedule in (exp_endpoints, linear):
        at = [
            schedule(t, b0=high, b_final=low, n_decays=n, total_steps=total)
            for t in range(total + 3)
        ]
        assert all(a >= b * (1 - 1e-12) for a, b in pairwise(at))
        assert at[0] == (high if n else low)
        assert set(at[total - 1 :]) == {low}
        for k in range(n + 1):  # one value a stage, by the definition of a stage
            inside = [at[t] for t in range(total) if k * total <= t * (n + 1) < (k + 1) * total]
            assert len(set(inside)) == 1


@given(ENDS, LENGTHS)
def test_a_stage_is_what_its_formula_says(ends: list[float], lengths: tuple[int, int]) -> None:
    low, high = ends
    n, total = lengths
    if not n:
        return
    d = (low / high) ** (1 / n)
    for t in range(total):
        k = math.floor(t * (n + 1) / total + 1e-9)
        given_ends: Any = {"b0": high, "b_final": low, "n_decays": n, "total_steps": total}
        assert exp_endpoints(t, **given_ends) == pytest.approx(high * d**k, rel=1e-9)
        assert linear(t, **given_ends) == pytest.approx(high - k * (high - low) / n, rel=1e-9)


@given(ENDS, LENGTHS)
def test_a_rising_schedule_is_the_falling_one_in_the_other_order(
    ends: list[float], lengths: tuple[int, int]
) -> None:
    low, high = ends
    n, total = lengths
    up = changes(lambda t: rising(t, b0=low, b_final=high, n_decays=n, total_steps=total), total)
    down = changes(
        lambda t: exp_endpoints(t, b0=high, b_final=low, n_decays=n, total_steps=total), total
    )
    if n:
        assert [b for _, b in up] == pytest.approx([b for _, b in reversed(down)], rel=1e-9)
        assert up[0] == (0, low)
    assert up[-1][1] == high


@given(st.floats(1, 1e5), st.floats(0.01, 0.999), st.integers(1, 50), st.integers(0, 500))
def test_the_interval_form_is_its_formula(b0: float, gamma: float, every: int, t: int) -> None:
    at = exp_interval(t, b0=b0, gamma=gamma, interval=every)
    assert at == max(1, b0 * gamma ** math.floor(t / every))
    assert at >= exp_interval(t + 1, b0=b0, gamma=gamma, interval=every)


@given(st.integers(0, 9), st.integers(1, 200), st.integers(0, 400))
def test_stages_by_counting_them(n: int, total: int, step: int) -> None:
    if n + 1 > total:
        return
    passed = sum(step * (n + 1) >= k * total for k in range(1, n + 1))
    assert stage(step, total, n) == passed


def test_no_decay_is_the_last_budget_all_the_time() -> None:
    for t in (0, 7, 599):
        assert exp_endpoints(t, n_decays=0, **PAPER) == linear(t, n_decays=0, **PAPER) == 87
    assert constant(5, budget=87) == 87


def test_functions_of_ones_own_are_called_with_step_and_total() -> None:
    assert called(lambda step, total: 100 - 50 * step / total, 5, 10) == 75.0


CASES: list[tuple[Any, type[Exception], str]] = [
    (lambda: exp_endpoints(0, n_decays=3, b0=50, b_final=60, total_steps=9), BudgetError, "rising"),
    (lambda: linear(0, n_decays=3, b0=50, b_final=60, total_steps=9), BudgetError, "rising"),
    (lambda: rising(0, n_decays=3, b0=60, b_final=50, total_steps=9), BudgetError, "exp_endpoints"),
    (lambda: linear(0, n_decays=3, b0=50, b_final=0.5, total_steps=9), BudgetError, "b_final=0.5"),
    (lambda: constant(0, budget=math.nan), BudgetError, "budget=nan"),
    (lambda: constant(0, budget=2e7), BudgetError, "10,000,000"),
    (lambda: constant(0, budget=True), BudgetError, "True"),
    (lambda: constant(-1, budget=5), InputError, "step=-1"),
    (lambda: exp_endpoints(0, n_decays=-1, **PAPER), InputError, "n_decays=-1"),
    (lambda: linear(0, n_decays=1.5, **PAPER), InputError, "n_decays=1.5"),  # type: ignore[arg-type]
    (lambda: stage(0, 3, 3), InputError, "4 stages of 3 steps"),
    (lambda: stage(0, 0, 0), InputError, "total_steps=0"),
    (lambda: exp_interval(0, b0=9, gamma=1.0, interval=5), InputError, "gamma=1.0"),
    (lambda: exp_interval(0, b0=9, gamma=0.0, interval=5), InputError, "gamma=0.0"),
    (lambda: exp_interval(0, b0=9, gamma=math.nan, interval=5), InputError, "gamma=nan"),
    (lambda: exp_interval(0, b0=9, gamma=0.5, interval=0), InputError, "interval=0"),
    (lambda: exp_interval(0, b0=0, gamma=0.5, interval=5), BudgetError, "b0=0"),
    (lambda: called(lambda step, total: -3, 2, 9), BudgetError, r"schedule\(2, 9\)=-3"),
    (lambda: called(lambda step, total: "many", 2, 9), BudgetError, "many"),  # type: ignore[arg-type, return-value]
    (lambda: changes(lambda t: 5.0, 0), InputError, "total_steps=0"),
]


@pytest.mark.parametrize(("call", "kind", "said"), CASES)
def test_what_cannot_be_is_refused(call: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        call()
