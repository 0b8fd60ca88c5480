"""Rewards of length: their shape, what they count, whom they pay."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from outlay.errors import BudgetError, InputError
from outlay.rl.base import Judgement
from outlay.rl.length_rewards import ExactLength, GatedLength, LengthReward, band, triangular

LENGTHS, BUDGETS, PEAKS = st.integers(0, 5000), st.floats(1, 2000), st.floats(0.1, 5)


def judged(
    tokens: int, correct: bool = True, thinking: int | None = None, score: float = 1.0
) -> Any:
    thinking = tokens if thinking is None else thinking
    return Judgement(correct, score, True, tokens, thinking, tokens - thinking, False, "1")


def by_cases(length: float, budget: float, r_max: float) -> float:
    """The formula as it is printed."""
    if length <= budget:
        return r_max * length / budget
    if length <= 2 * budget:
        return r_max * (1 - (length - budget) / budget)
    return 0.0


@given(LENGTHS, BUDGETS, PEAKS)
def test_the_triangle_is_its_printed_formula(n: int, b: float, peak: float) -> None:
    assert triangular(n, b, peak) == pytest.approx(by_cases(n, b, peak), abs=1e-9)


@given(BUDGETS, PEAKS)
def test_the_triangle_is_zero_at_both_ends_and_peaks_at_the_budget(b: float, peak: float) -> None:
    assert triangular(0, b, peak) == 0
    assert triangular(2 * b, b, peak) == 0
    assert triangular(b, b, peak) == peak == band(b, b, peak) == band(0, b, peak)
    assert triangular(3 * b, b, peak) == band(3 * b, b, peak) == 0


@given(LENGTHS, BUDGETS, st.floats(0.5, 8))
def test_only_the_share_of_the_budget_counts(n: int, b: float, scale: float) -> None:
    assert triangular(n, b) == pytest.approx(triangular(n * scale, b * scale), abs=1e-9)
    assert band(n, b) == pytest.approx(band(n * scale, b * scale), abs=1e-9)


@given(LENGTHS, BUDGETS)
def test_the_band_pays_at_least_the_triangle_and_the_same_beyond_the_budget(
    n: int, b: float
) -> None:
    assert 0 <= triangular(n, b) <= band(n, b) <= 1
    if n >= b:
        assert triangular(n, b) == band(n, b)


@given(BUDGETS, st.floats(0.05, 1.9))
def test_slopes_are_one_over_the_budget(b: float, share: float) -> None:
    assume(abs(share - 1) > 0.01)
    h = b * 1e-6
    slope = (triangular(share * b + h, b) - triangular(share * b - h, b)) / (2 * h)
    assert slope * b == pytest.approx(1 if share < 1 else -1, rel=1e-6)


@given(BUDGETS, st.floats(0, 2.5))
def test_both_shapes_are_continuous(b: float, share: float) -> None:
    for shape in (triangular, band):
        assert shape((share + 1e-9) * b, b) == pytest.approx(shape(share * b, b), abs=1e-8)


@given(st.lists(st.tuples(LENGTHS, st.booleans(), BUDGETS), max_size=8))
def test_every_row_is_paid_by_its_own_budget(rows: list[tuple[int, bool, float]]) -> None:
    judgement = [judged(n, right) for n, right, _ in rows]
    budgets = [b for _, _, b in rows]
    paid = LengthReward()(judgement, budget=budgets)
    assert paid == [triangular(n, b) for n, _, b in rows]  # wrong answers, too
    gated = LengthReward(gate=True)(judgement, budget=budgets)
    assert gated == [right * pay for pay, (_, right, _) in zip(paid, rows, strict=True)]


def test_thinking_alone_can_count() -> None:
    judgement = [judged(100, thinking=50)]
    assert LengthReward(count="thinking")(judgement, budget=[50]) == [1.0]
    assert LengthReward(count="completion")(judgement, budget=[50]) == [0.0]


def test_a_soft_gate_multiplies_by_the_score() -> None:
    judgement = [judged(50, correct=False, score=0.25)]
    assert LengthReward(gate=True, soft=True)(judgement, budget=[50]) == [0.25]
    assert LengthReward(gate=True)(judgement, budget=[50]) == [0.0]


def test_a_fixed_budget_needs_no_column() -> None:
    assert LengthReward("band", 2.0, budget=40)([judged(10), judged(60)]) == [2.0, 1.0]


def test_budget_gap_and_violation_are_logged() -> None:
    logged: dict[str, float] = {}
    LengthReward()([judged(30), judged(60)], budget=[40, 40], log_metric=logged.__setitem__)
    assert logged == {"length/budget": 40, "length/gap": 0.375, "length/violation": 0.5}


@given(LENGTHS, st.booleans(), BUDGETS)
def test_the_exact_length_reward_is_l1s_equation(n: int, right: bool, target: float) -> None:
    (paid,) = ExactLength(alpha=0.01)([judged(n, right)], budget=[target])
    assert paid == pytest.approx((1 if right else 0) - 0.01 * abs(target - n))
    assert ExactLength(target, 0.01)([judged(n, right)]) == [paid]


def test_the_exact_length_reward_can_count_thinking() -> None:
    assert ExactLength(50, 0.01, "thinking")([judged(90, thinking=50)]) == [1.0]


@given(st.integers(0, 100), st.integers(0, 100))
def test_the_gated_baseline_pays_right_answers_more_the_shorter_they_are(a: int, b: int) -> None:
    reward = GatedLength(100)
    paid = reward([judged(a), judged(b), judged(a, correct=False)])
    assert (paid[0] > paid[1]) == (a < b)
    assert paid[2] == 0


def test_names_in_logs_differ() -> None:
    names = {LengthReward().__name__, ExactLength(9).__name__, GatedLength(9).__name__}
    assert names == {"length", "exact_length", "gated_length"}


CASES: list[tuple[Any, type[Exception], str]] = [
    (lambda: LengthReward(shape="square"), InputError, "shape='square'"),  # type: ignore[arg-type]
    (lambda: LengthReward(count="words"), InputError, "count='words'"),  # type: ignore[arg-type]
    (lambda: LengthReward(r_max=0), InputError, "r_max=0"),
    (lambda: LengthReward(r_max=math.nan), InputError, "r_max=nan"),
    (lambda: LengthReward(budget=0), BudgetError, "budget=0"),
    (lambda: LengthReward()([judged(3)]), BudgetError, "1 of 1 rows have no budget"),
    (lambda: LengthReward()([judged(3)] * 2, budget=[None, 4]), BudgetError, "1 of 2 rows"),
    (lambda: ExactLength(target=-1), BudgetError, "target=-1"),
    (lambda: ExactLength(5, alpha=-0.1), InputError, "alpha=-0.1"),
    (lambda: ExactLength(5, count="x"), InputError, "count='x'"),  # type: ignore[arg-type]
    (lambda: ExactLength()([judged(3)]), BudgetError, "no budget"),
]


@pytest.mark.parametrize(("call", "kind", "said"), CASES)
def test_what_cannot_be_is_refused(call: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        call()
