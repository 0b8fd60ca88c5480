from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.prompt import knapsack as module
from outlay.prompt.knapsack import greedy, knapsack
from outlay.prompt.rates import adaptive_rates, minmax

items = st.lists(st.tuples(st.integers(0, 12), st.floats(-2, 5)), max_size=9)


def brute_force(weights, values, capacity):
    return max(
        sum(values[i] for i in chosen)
        for size in range(len(weights) + 1)
        for chosen in combinations(range(len(weights)), size)
        if sum(weights[i] for i in chosen) <= max(0, capacity)
    )


@given(items, st.integers(-3, 40))
def test_the_table_is_as_good_as_brute_force(pairs, capacity: int) -> None:
    weights, values = [w for w, _ in pairs], [v for _, v in pairs]
    chosen = knapsack(weights, values, capacity)
    assert chosen == sorted(set(chosen))
    assert sum(weights[i] for i in chosen) <= max(0, capacity)
    best = brute_force(weights, values, capacity)
    assert sum(values[i] for i in chosen) == pytest.approx(best, abs=1e-9)


def test_fifteen_items_match_brute_force() -> None:
    weights = [(7 * i) % 13 + 1 for i in range(15)]
    values = [((5 * i) % 11 + 1) / 3 for i in range(15)]
    chosen = knapsack(weights, values, 40)
    assert sum(values[i] for i in chosen) == pytest.approx(brute_force(weights, values, 40))


@given(items, st.integers(0, 40), st.integers(2, 5))
def test_scaling_weights_and_capacity_changes_nothing(pairs, capacity: int, scale: int) -> None:
    weights, values = [w for w, _ in pairs], [v for _, v in pairs]
    scaled = knapsack([w * scale for w in weights], values, capacity * scale)
    assert scaled == knapsack(weights, values, capacity)


def test_capacity_zero_and_negative_values_take_nothing() -> None:
    assert knapsack([1, 2], [1.0, 1.0], 0) == []
    assert knapsack([1, 2], [-1.0, 0.0], 10) == []


@given(items, st.integers(0, 40))
def test_greedy_stays_within_capacity(pairs, capacity: int) -> None:
    weights, values = [w for w, _ in pairs], [v for _, v in pairs]
    chosen = greedy(weights, values, capacity)
    assert sum(weights[i] for i in chosen) <= capacity
    assert all(values[i] > 0 for i in chosen)


def test_beyond_the_table_the_choice_is_greedy(monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_ITEMS", 2)
    assert knapsack([3, 2, 2], [3.1, 2.0, 2.0], 4) == greedy([3, 2, 2], [3.1, 2.0, 2.0], 4) == [0]


def test_bad_items_are_errors() -> None:
    with pytest.raises(InputError, match="one of each"):
        knapsack([1], [], 3)
    with pytest.raises(InputError, match="finite"):
        knapsack([1], [float("nan")], 3)


sizes = st.lists(st.tuples(st.integers(1, 500), st.floats(-3, 3)), min_size=1, max_size=12)


@given(sizes, st.floats(0, 4000), st.floats(0, 1))
def test_rates_spend_exactly_the_budget_or_keep_everything(pairs, budget, beta) -> None:
    tokens, amis = [t for t, _ in pairs], [a for _, a in pairs]
    rates = adaptive_rates(tokens, amis, budget, beta=beta)
    assert all(0 <= r <= 1 for r in rates)
    spent = sum(t * r for t, r in zip(tokens, rates, strict=True))
    assert spent == pytest.approx(min(budget, sum(tokens)), abs=1e-3)


@given(sizes, st.floats(1, 4000), st.floats(0, 1))
def test_one_rescale_never_overspends(pairs, budget, beta) -> None:
    tokens, amis = [t for t, _ in pairs], [a for _, a in pairs]
    rates = adaptive_rates(tokens, amis, budget, beta=beta, alloc="paper")
    assert sum(t * r for t, r in zip(tokens, rates, strict=True)) <= budget + 1e-6


def test_beta_zero_gives_one_rate_and_equal_relevance_ignores_beta() -> None:
    assert adaptive_rates([10, 30], [0.1, 2.0], 20, beta=0) == pytest.approx([0.5, 0.5])
    assert adaptive_rates([10, 30], [1.0, 1.0], 20, beta=1) == pytest.approx([0.5, 0.5])


def test_more_relevant_functions_keep_more_and_nan_counts_as_least() -> None:
    nan = float("nan")
    low, high, lost = adaptive_rates([100, 100, 100], [0.0, 1.0, nan], 120)
    assert high > low == lost
    assert minmax([1.0, nan, 3.0]) == [0.0, 0.0, 1.0]
    assert minmax([2.0, 2.0]) is None
