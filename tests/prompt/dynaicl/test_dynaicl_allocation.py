"""Allocation: exact budgets, exact optima, independence of order and scale."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.prompt.dynaicl.allocation import (
    _greedy,
    floor,
    mean_budget,
    proportional,
    spent,
    uniform,
    utility,
)
from outlay.prompt.dynaicl.stream import Price, Stream, at_price


@st.composite
def workloads(draw, most=6, K=4):
    """(needed, curves, costs, budget) of a few inputs."""
    n = draw(st.integers(1, most))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    steps = rng.integers(draw(st.integers(0, 1)), 9, size=(n, K))
    costs = np.concatenate([np.zeros((n, 1), dtype=np.int64), steps.cumsum(axis=1)], axis=1)
    curves = rng.random((n, K + 1))
    needed = rng.random(n) * K * (rng.random(n) < 0.8)
    return needed, curves, costs, draw(st.integers(0, int(costs[:, -1].sum()) + 3))


def unit_costs(n, K, size=1):
    return np.tile(np.arange(K + 1) * size, (n, 1))


def brute_force(curves, costs, budget):
    """The best sum over every allocation."""
    n, K1 = curves.shape
    best = -np.inf
    for ks in itertools.product(range(K1), repeat=n):
        if sum(costs[i, k] for i, k in enumerate(ks)) <= budget:
            best = max(best, sum(curves[i, k] for i, k in enumerate(ks)))
    return best


def value(curves, k):
    return float(np.take_along_axis(curves, k[:, None], axis=1).sum())


# -- proportional ---------------------------------------------------------------------------------


@given(st.integers(1, 30), st.integers(0, 250), st.floats(0.1, 9))
def test_equal_predictions_give_everybody_the_same_up_to_one(n, budget, level):
    k = proportional(np.full(n, level), unit_costs(n, 8), budget)
    assert k.max() - k.min() <= 1
    assert k.sum() == min(budget, 8 * n)
    assert (k == uniform(unit_costs(n, 8), budget)).all()


@given(workloads(most=12), st.floats(0.05, 1))
def test_the_budget_is_never_exceeded(load, beta):
    needed, _, costs, budget = load
    assert spent(costs, proportional(needed, costs, budget, beta=beta)) <= beta * budget + 1e-6


@given(workloads(most=12), st.floats(0.05, 1))
def test_any_further_demonstration_would_exceed_the_budget(load, beta):
    needed, _, costs, budget = load
    k = proportional(needed, costs, budget, beta=beta)
    room = int(beta * budget + 1e-9) - spent(costs, k)
    for i in range(len(k)):
        if needed[i] > 0 and k[i] < costs.shape[1] - 1:
            assert costs[i, k[i] + 1] - costs[i, k[i]] > room


@given(workloads(most=10), st.randoms())
def test_a_permuted_batch_gets_the_permuted_answer(load, rng):
    needed, curves, costs, budget = load
    keys = [f"input {i}" for i in range(len(needed))]
    order = list(range(len(needed)))
    rng.shuffle(order)
    moved = [keys[i] for i in order]
    k = proportional(needed, costs, budget, keys=keys)
    assert (k[order] == proportional(needed[order], costs[order], budget, keys=moved)).all()
    best = utility(curves, costs, budget, keys=keys)
    assert (best[order] == utility(curves[order], costs[order], budget, keys=moved)).all()


@given(workloads(most=10), st.sampled_from([0.125, 0.5, 3.0, 10.0, 64.0]))
def test_scaling_all_predictions_changes_nothing(load, factor):
    needed, _, costs, budget = load
    k = proportional(needed, costs, budget)
    assert (k == proportional(needed * factor, costs, budget)).all()


def test_no_predicted_need_gives_nobody_anything():
    assert not proportional(np.zeros(5), unit_costs(5, 4), 100).any()


def test_what_clipped_inputs_cannot_use_goes_to_the_others():
    k = proportional(np.array([100.0, 1.0, 1.0]), unit_costs(3, 4), 8)
    assert k.tolist() == [4, 2, 2]


def test_half_of_beta_spends_half_of_the_tokens():
    rng = np.random.default_rng(0)
    needed, costs = rng.random(200) * 8, unit_costs(200, 8, size=7)
    whole = spent(costs, proportional(needed, costs, 3500))
    half = spent(costs, proportional(needed, costs, 3500, beta=0.5))
    assert abs(half - whole / 2) <= 7


def test_the_papers_formula_may_break_the_budget_and_the_repair_does_not():
    needed = np.array([0.6, 0.6, 0.6, 2.2])
    costs = unit_costs(4, 3, size=10)
    loose = proportional(needed, costs, 60, exact=False)
    mean = needed.mean()
    assert loose.tolist() == [min(3, round(x / mean * 60 / (4 * 10))) for x in needed]
    assert spent(costs, loose) > 50
    assert spent(costs, proportional(needed, costs, 50)) <= 50


def test_longer_demonstrations_are_counted_as_they_are():
    costs = np.array([[0, 30, 60], [0, 5, 10]])
    assert proportional(np.ones(2), costs, 40).tolist() == [1, 2]


# -- utility --------------------------------------------------------------------------------------


@given(workloads(most=4, K=3))
@settings(max_examples=80)
def test_utility_equals_brute_force(load):
    _, curves, costs, budget = load
    k = utility(curves, costs, budget)
    assert spent(costs, k) <= budget
    assert value(curves, k) == pytest.approx(brute_force(curves, costs, budget), abs=1e-9)


@given(workloads(most=8))
def test_a_larger_budget_never_lowers_predicted_utility(load):
    _, curves, costs, budget = load
    for method in (utility, _greedy):
        values = [value(curves, method(curves, costs, b)) for b in range(budget, budget + 6)]
        assert all(a <= b + 1e-9 for a, b in itertools.pairwise(values))


@given(workloads(most=8))
def test_greed_stays_within_the_budget_and_one_step_of_the_optimum(load):
    _, curves, costs, budget = load
    k = _greedy(curves, costs, budget)
    assert spent(costs, k) <= budget
    best = value(curves, utility(curves, costs, budget))
    step = (curves.max(axis=1) - curves[:, 0]).max()
    assert best - max(step, 0) - 1e-9 <= value(curves, k) <= best + 1e-9


@given(st.integers(1, 8), st.integers(0, 10**6))
def test_concave_curves_get_more_as_the_budget_grows(n, seed):
    gains = -np.sort(-np.random.default_rng(seed).random((n, 4)), axis=1)
    curves = np.concatenate([np.zeros((n, 1)), gains.cumsum(axis=1)], axis=1)
    found = [utility(curves, unit_costs(n, 4), b) for b in range(4 * n + 1)]
    assert all((a <= b).all() for a, b in itertools.pairwise(found))


def test_inputs_that_nothing_helps_get_nothing():
    curves = np.array([[0.0, 0.0, 0.0], [0.1, 0.6, 0.9]])
    assert utility(curves, unit_costs(2, 2), 4).tolist() == [0, 2]


def test_large_workloads_take_the_greedy_way_and_stay_close():
    rng = np.random.default_rng(1)
    curves = np.sort(rng.random((300, 9)), axis=1)
    costs = np.concatenate(
        [np.zeros((300, 1), dtype=np.int64), rng.integers(5, 9, (300, 8)).cumsum(axis=1)], axis=1
    )
    exact = value(curves, utility(curves, costs, 4000))
    quick = value(curves, utility(curves, costs, 4000, max_exact=0))
    assert exact - 1 <= quick <= exact


# -- floor ----------------------------------------------------------------------------------------


@given(workloads(most=4, K=3), st.floats(0, 1))
def test_floor_gives_the_smallest_budget_that_reaches_the_target(load, target):
    _, curves, costs, _ = load
    n = len(curves)
    reachable = brute_force(curves, costs, int(costs[:, -1].sum())) / n
    if target > reachable:
        with pytest.raises(InputError, match=r"at most"):
            floor(curves, costs, target)
        return
    budget, k = floor(curves, costs, target)
    assert value(curves, k) / n >= target - 1e-9
    if budget:
        assert brute_force(curves, costs, budget - 1) / n < target


# -- stream and price -----------------------------------------------------------------------------


def families(rng, n):
    """Curves of three kinds of inputs, with demonstrations of six or seven tokens."""
    k = np.arange(9)
    kinds = np.array([np.full(9, 0.99), np.where(k > 0, 0.95, 0.02), 1 - 0.65**k])
    costs = np.concatenate(
        [np.zeros((n, 1), dtype=np.int64), rng.integers(6, 8, (n, 8)).cumsum(axis=1)], axis=1
    )
    return kinds[rng.integers(0, 3, n)], costs


@pytest.mark.parametrize("mean_k", [0.5, 1.0, 2.0, 3.0])
def test_a_streams_mean_cost_meets_the_budget_within_five_percent(mean_k):
    curves, costs = families(np.random.default_rng(int(mean_k * 2)), 500)
    target = 6.5 * mean_k
    start = Price.of(curves[:100], mean_k).low * 8
    stream = Stream(target, 52.0, price=start)
    for curve, cost in zip(curves, costs, strict=True):
        stream.take(curve, cost)
    wanted = min(target, at_price_mean(curves, costs))
    assert abs(stream.mean - wanted) <= 0.05 * wanted


def at_price_mean(curves, costs):
    """Mean tokens where demonstrations are free."""
    free = at_price(curves, costs.astype(float), 0.0)
    return spent(costs, free) / len(curves)


@given(st.floats(0, 4), st.integers(0, 1000))
def test_a_fixed_price_meets_the_mean_on_the_inputs_that_set_it(mean_k, seed):
    curves, _ = families(np.random.default_rng(seed), 300)
    price = Price.of(curves, mean_k)
    taken = [price.take(f"{seed} {i}", curve, 8) for i, curve in enumerate(curves)]
    most = at_price(curves, np.tile(np.arange(9.0), (300, 1)), 0.0).mean()
    assert abs(np.mean(taken) - min(mean_k, most)) < 0.45  # hashes draw, 300 inputs


def test_a_price_decides_by_the_text_and_its_own_curve_alone():
    curves, _ = families(np.random.default_rng(0), 50)
    price = Price.of(curves, 2.0)
    assert [price.take("x", c, 8) for c in curves] == [price.take("x", c, 8) for c in curves]
    assert all(price.take(f"{i}", curves[0], 3) <= 3 for i in range(20))


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda: proportional(np.ones(2), unit_costs(2, 3), -1),
        lambda: proportional(np.ones(0), np.zeros((0, 4), dtype=int), 5),
        lambda: proportional(np.array([1.0, np.nan]), unit_costs(2, 3), 5),
        lambda: proportional(np.array([1.0, -1.0]), unit_costs(2, 3), 5),
        lambda: proportional(np.ones(2), unit_costs(2, 3), 5, beta=0),
        lambda: proportional(np.ones(2), unit_costs(2, 3), 5, keys=["a"]),
        lambda: proportional(np.ones(1), np.array([[0, 5, 3]]), 5),
        lambda: proportional(np.ones(1), np.array([[1, 5, 7]]), 5),
        lambda: utility(np.full((2, 4), np.nan), unit_costs(2, 3), 5),
        lambda: utility(np.ones((2, 3)), unit_costs(2, 3), 5),
        lambda: utility(np.ones((2, 4)), unit_costs(2, 3), -5),
        lambda: floor(np.ones((2, 4)), unit_costs(2, 3), 1.5),
        lambda: mean_budget(unit_costs(2, 3), 4),
        lambda: Price.of(np.ones((2, 4)), -1),
        lambda: Stream(-1, 5),
        lambda: Stream(1, 0),
    ],
)
def test_what_cannot_be_allocated_is_refused(call):
    with pytest.raises(InputError):
        call()


def test_a_budget_of_nothing_answers_everything_zero_shot():
    assert not uniform(unit_costs(3, 4), 0).any()
    assert not utility(np.tile([0.1, 0.5, 0.9], (3, 1)), unit_costs(3, 2), 0).any()


def test_a_fractional_mean_lies_between_two_whole_ones():
    costs = np.array([[0, 4, 10], [0, 6, 12]])
    assert mean_budget(costs, 1) == 10
    assert mean_budget(costs, 1.5) == 16
    assert mean_budget(costs, 2) == 22
