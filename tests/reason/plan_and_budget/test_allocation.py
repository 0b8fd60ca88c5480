"""Schedules and shares: exact sums, exact symmetry, and the rules of the published code."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.budget import split_weighted
from outlay.errors import BudgetError, InputError
from outlay.reason.plan_and_budget import SCHEDULES, allocate, position_weights, uniform
from outlay.reason.plan_and_budget.allocation import roll_over

CREDITS = st.lists(st.integers(0, 100), min_size=1, max_size=8).filter(any)
BUDGETS = st.integers(0, 3000)
REMAINDERS = st.sampled_from(["priority", "largest"])


def by_hand(budget: int, weights: list[int], remainder: str) -> list[int]:
    """Whole weights, whole numbers, one left-over token at a time."""
    whole = sum(weights)
    shares = [budget * w // whole for w in weights]
    order = list(range(len(weights)))
    if remainder == "priority":
        order.sort(key=lambda j: (-weights[j], j))
    else:
        order.sort(key=lambda j: (-(budget * weights[j] % whole), j))
    while sum(shares) < budget:
        shares[order.pop(0)] += 1
    return shares


@given(BUDGETS, CREDITS, st.sampled_from(SCHEDULES), REMAINDERS)
def test_shares_are_whole_and_sum_to_the_budget(
    budget: int, credits: list[int], schedule: Any, remainder: Any
) -> None:
    shares = allocate(
        budget, credits, position_weights(len(credits), schedule), remainder=remainder
    )
    assert sum(shares) == budget
    assert all(isinstance(share, int) and share >= 0 for share in shares)


@given(BUDGETS, CREDITS, REMAINDERS)
def test_shares_are_those_counted_by_hand(budget: int, credits: list[int], remainder: Any) -> None:
    positions = position_weights(len(credits), "polynomial")
    products = [w * int(d) for w, d in zip(credits, positions, strict=True)]
    assert allocate(budget, credits, positions, remainder=remainder) == by_hand(
        budget, products, remainder
    )


@given(BUDGETS, st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_shares_differ_from_those_of_any_budget_by_rounding_only(
    budget: int, weights: list[float]
) -> None:
    ours, theirs = allocate(budget, weights), split_weighted(budget, weights, remainder="priority")
    assert all(abs(a - b) <= 1 for a, b in zip(ours, theirs, strict=True))


@given(BUDGETS, CREDITS, st.integers(1, 1000), st.sampled_from(SCHEDULES), REMAINDERS)
def test_scaling_all_credits_moves_no_token(
    budget: int, credits: list[int], factor: int, schedule: Any, remainder: Any
) -> None:
    positions = position_weights(len(credits), schedule)
    scaled = [factor * credit for credit in credits]
    one = allocate(budget, credits, positions, remainder=remainder)
    assert allocate(budget, scaled, positions, remainder=remainder) == one


@given(
    BUDGETS,
    st.lists(st.integers(1, 10**6), min_size=2, max_size=7, unique=True),
    st.randoms(use_true_random=False),
)
def test_permuting_credits_with_the_schedule_permutes_the_shares(
    budget: int, credits: list[int], rng: Any
) -> None:
    positions = [1.0] * len(credits)
    order = list(range(len(credits)))
    rng.shuffle(order)
    shares = allocate(budget, credits, positions)
    moved = allocate(budget, [credits[i] for i in order], [positions[i] for i in order])
    assert moved == [shares[i] for i in order]


@given(BUDGETS, st.integers(1, 9), REMAINDERS)
def test_equal_credits_and_no_schedule_are_the_uniform_rung_up_to_its_remainder(
    budget: int, steps: int, remainder: Any
) -> None:
    shares = allocate(budget, [100 / steps] * steps, remainder=remainder)
    assert max(shares) - min(shares) <= 1
    rung = uniform(budget, steps)
    assert rung == [budget // steps] * steps
    assert all(share - part in (0, 1) for share, part in zip(shares, rung, strict=True))


@given(BUDGETS, st.sampled_from(SCHEDULES), st.floats(0.1, 100))
def test_one_step_gets_everything(budget: int, schedule: Any, credit: float) -> None:
    assert allocate(budget, [credit], position_weights(1, schedule)) == [budget]


@given(BUDGETS, st.integers(1, 9), st.sampled_from(SCHEDULES), REMAINDERS)
def test_decaying_schedules_never_give_a_later_step_more(
    budget: int, steps: int, schedule: Any, remainder: Any
) -> None:
    weights = position_weights(steps, schedule)
    assert weights == sorted(weights, reverse=True)
    shares = allocate(budget, [1.0] * steps, weights, remainder="priority")
    assert shares == sorted(shares, reverse=True)


def test_schedules_are_the_published_formulas() -> None:
    assert position_weights(4, "constant") == [1, 1, 1, 1]
    assert position_weights(4, "linear") == [4, 3, 2, 1]
    assert position_weights(4, "polynomial") == [16, 9, 4, 1]
    assert position_weights(3, "polynomial", power=0) == [1, 1, 1]
    assert position_weights(3, "exponential") == pytest.approx([1, 0.9, 0.81])
    assert position_weights(3, "cosine") == pytest.approx([1.1, 0.6, 0.1])
    assert position_weights(1, "cosine") == [1]


def test_left_over_tokens_go_to_the_largest_share_or_the_largest_fraction() -> None:
    # Exact shares of 10 by 52, 29 and 19 are 5.2, 2.9 and 1.9: two tokens are left over.
    assert allocate(10, [52, 29, 19]) == [6, 3, 1]
    assert allocate(10, [52, 29, 19], remainder="largest") == [5, 3, 2]


@given(st.integers(0, 200), st.lists(st.integers(0, 50), max_size=5))
def test_roll_over_keeps_or_drops_every_unspent_token(unspent: int, rest: list[int]) -> None:
    weights = [float(j + 1) for j in range(len(rest))]
    for how in ("proportional", "next"):
        after = roll_over(unspent, rest, weights, how)
        assert sum(after) == sum(rest) + (unspent if rest else 0)
        assert all(a >= b for a, b in zip(after, rest, strict=True))
    assert roll_over(unspent, rest, weights, "none") == rest


def test_roll_over_follows_its_rule() -> None:
    assert roll_over(9, [10, 20], [1, 2], "proportional") == [13, 26]
    assert roll_over(9, [10, 20], [1, 2], "next") == [19, 20]
    assert roll_over(9, [0, 0], [0, 0], "proportional") == [9, 0]


@pytest.mark.parametrize(
    ("credits", "said"),
    [
        ([], "no credits"),
        ([0, 0], "all credits are zero"),
        ([1, -1], "credit 2 is -1"),
        ([1, math.nan], "credit 2 is nan"),
        ([math.inf], "credit 1 is inf"),
    ],
)
def test_credits_that_share_nothing_are_refused(credits: list[float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        allocate(10, credits)


def test_bad_budgets_lengths_and_names_are_refused() -> None:
    with pytest.raises(BudgetError, match="-1"):
        allocate(-1, [1])
    with pytest.raises(BudgetError, match="whole number"):
        allocate(1.5, [1])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="2 credits for 3 steps"):
        allocate(10, [1, 1], [1, 1, 1])
    with pytest.raises(InputError, match="remainder="):
        allocate(10, [1], remainder="smallest")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="0 steps"):
        uniform(10, 0)
    with pytest.raises(InputError, match="rollover="):
        roll_over(1, [1], [1], "sideways")


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"schedule": "quadratic"}, "schedule='quadratic'; choose one of constant"),
        ({"schedule": "polynomial", "power": -1}, "power=-1"),
        ({"schedule": "exponential", "base": 0}, "base=0"),
        ({"schedule": "cosine", "cosine_floor": 0}, "cosine_floor=0"),
        ({"schedule": "linear", "power": math.nan}, "power=nan"),
    ],
)
def test_unusable_schedules_are_refused(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        position_weights(3, **knobs)
    with pytest.raises(InputError, match="0 steps"):
        position_weights(0)
