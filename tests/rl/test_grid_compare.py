"""Comparisons of cells: the crossed bootstrap, tables, frontiers; and the baselines' rewards."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.rl.base import Judgement, Plain
from outlay.rl.grid_baselines import (
    BASELINES,
    CosineGRPO,
    CosineLength,
    LengthGRPO,
    OverlongGRPO,
    method_of,
)
from outlay.rl.grid_compare import frontier, mean, points, rows, table, versus
from outlay.rl.grid_results import CellResult, EvalCell
from outlay.rl.pages_chart import smooth, step_chart


def cell(
    label: str, seed: int, right: list[int], tokens: list[int], steps: int = 10, problems: int = 0
) -> CellResult:
    """A result whose half budget halves what is right."""
    n = len(right)

    def evaluation(scale: float, budget: int, hits: list[int], spent: list[int]) -> EvalCell:
        metrics: dict[str, float | None] = {"acc": sum(hits) / n, "tokens_mean": sum(spent) / n}
        return EvalCell(
            scale, budget, 0.0, None, metrics, {"1": metrics}, hits, spent, spent, ["short"] * n
        )

    half = [hit if at % 2 else 0 for at, hit in enumerate(right)]
    return CellResult(
        label=label,
        key=f"{label}{seed}",
        method="Plain",
        task="chains",
        seed=seed,
        steps=steps,
        decides={"task": problems},
        curve={"step": [1.0, 2.0], "acc": [0.1, 0.2]},
        evaluation=[
            evaluation(0.5, 16, half, [min(t, 16) for t in tokens]),
            evaluation(1.0, 32, right, tokens),
        ],
        tokens={"rollouts": 100, "probe": 5},
        seconds={"train": 2.0},
        machine={},
        commit="",
        date="2026-01-01",
    )


RNG = np.random.default_rng(0)
A = [
    cell("A", s, RNG.integers(0, 2, 30).tolist(), RNG.integers(5, 30, 30).tolist()) for s in (0, 1)
]
B = [
    cell("B", s, RNG.integers(0, 2, 30).tolist(), RNG.integers(5, 30, 30).tolist()) for s in (0, 1)
]


def test_the_mean_is_that_of_all_seeds_and_problems() -> None:
    found = mean(A)
    assert found.value == pytest.approx((A[0].accuracy() + A[1].accuracy()) / 2)
    assert found.lo <= found.value <= found.hi
    assert (found.seeds, found.problems) == (2, 30)
    assert mean(A, what="tokens").value == pytest.approx(
        (A[0].mean_tokens() + A[1].mean_tokens()) / 2
    )


def test_the_interval_is_that_of_a_bootstrap_that_draws_seeds_and_problems() -> None:
    gap_SN = np.array([one.right() for one in A]) - np.array([one.right() for one in B])
    rng = np.random.default_rng(1)
    drawn = [gap_SN[rng.integers(0, 2, 2)][:, rng.integers(0, 30, 30)].mean() for _ in range(4000)]
    lo, hi = np.quantile(drawn, [0.025, 0.975])
    found = versus(A, B, resamples=4000).accuracy
    assert found.value == pytest.approx(gap_SN.mean())
    assert found.lo == pytest.approx(lo, abs=0.034)  # one problem of 30
    assert found.hi == pytest.approx(hi, abs=0.034)


def test_a_comparison_turned_round_has_the_opposite_sign() -> None:
    there, back = versus(A, B), versus(B, A)
    assert there.accuracy.value == pytest.approx(-back.accuracy.value)
    assert there.accuracy.lo == pytest.approx(-back.accuracy.hi)
    assert there.tokens.value == pytest.approx(1 / back.tokens.value)


@given(st.lists(st.integers(0, 1), min_size=2, max_size=12))
def test_a_method_is_not_better_than_itself(right: list[int]) -> None:
    mine = [cell("A", 0, right, [9] * len(right))]
    found = versus(mine, [replace(mine[0], label="B")], resamples=50)
    assert (found.accuracy.lo, found.accuracy.value, found.accuracy.hi) == (0, 0, 0)
    assert found.tokens.lo == pytest.approx(1)


def test_pairing_narrows_the_interval_of_methods_that_agree() -> None:
    right = [1, 0] * 15
    a = [cell("A", 0, [*right[:-1], 1], [9] * 30)]
    b = [cell("B", 0, right, [9] * 30)]
    paired = versus(a, b).accuracy
    alone = mean(a)
    assert paired.hi - paired.lo < (alone.hi - alone.lo) / 3


def test_seeds_that_only_one_has_are_left_out() -> None:
    assert versus([*A, replace(A[0], seed=7)], B).seeds == 2
    with pytest.raises(InputError, match="same seeds"):
        versus([replace(A[0], seed=7)], B)


def test_the_untrained_policy_stands_against_every_seed() -> None:
    sft = cell("SFT", 0, [1] * 30, [9] * 30, steps=0)
    found = versus(A, [sft])
    assert found.seeds == 2
    assert found.accuracy.value == pytest.approx(mean(A).value - 1)


def test_points_and_tables_have_a_row_for_every_method() -> None:
    found = points([*A, *B])
    assert [(p.stack, p.budget.tokens) for p in found] == [
        ("A", 16),
        ("A", 32),
        ("B", 16),
        ("B", 32),
    ]
    assert found[1].quality == pytest.approx(mean(A).value)
    assert found[1].cost == pytest.approx(mean(A, what="tokens").value)
    text = table([*A, *B], "B")
    assert len(text.splitlines()) == 4
    assert "accuracy - B" in text
    data = rows([*A, *B], "B")
    assert data[0]["training tokens"] == 105
    assert data[0]["versus"].b == "B"
    assert "versus" not in data[1]
    assert data[0]["over budgets"] == pytest.approx(
        sum(acc for one in A for _, acc in one.budget_curve()) / 4
    )


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_frontier_is_a_picture(tmp_path: Path, ending: str) -> None:
    path = frontier([*A, *B], tmp_path / f"f.{ending}")
    assert path.stat().st_size > 1000


def test_comparisons_that_cannot_be() -> None:
    with pytest.raises(InputError, match="no results"):
        mean([])
    with pytest.raises(InputError, match="what="):
        mean(A, what="speed")
    with pytest.raises(InputError, match="different problems"):
        mean([A[0], cell("A", 1, [1], [9])])
    with pytest.raises(InputError, match="different problems"):
        mean([A[0], replace(A[1], decides={"task": "another"})])
    with pytest.raises(InputError, match="nothing to compare"):
        versus(A, [])
    with pytest.raises(InputError, match="one task"):
        points([])
    with pytest.raises(InputError, match="no cells of"):
        rows(A, "C")


# -- baselines ------------------------------------------------------------------------------------


def judged(correct: bool, tokens: int) -> Judgement:
    return Judgement(correct, float(correct), True, tokens, tokens, 0, False)


def test_the_cosine_reward_is_trls() -> None:
    from trl.rewards import get_cosine_scaled_reward

    theirs = get_cosine_scaled_reward(max_len=112)
    cases = [(right, n) for right in (True, False) for n in (1, 5, 56, 111, 112)]
    expected = theirs(
        completions=[[{"content": r"\boxed{7}" if right else r"\boxed{8}"}] for right, _ in cases],
        solution=[r"\boxed{7}"] * len(cases),
        completion_ids=[[1] * n for _, n in cases],
    )
    ours = CosineLength(112)([judged(right, n) for right, n in cases])
    assert ours == pytest.approx(expected, abs=1e-12)


def test_the_length_reward_is_the_gated_one() -> None:
    (function,) = LengthGRPO(scale=100, slope=0.5).reward_functions()
    assert function([judged(True, 40), judged(False, 40), judged(True, 400)]) == [0.8, 0.0, 0.5]


def test_the_overlong_baseline_pays_answers_and_punishes_length() -> None:
    pay, punish = OverlongGRPO(max_len=100, cache=50).reward_functions()
    assert pay([judged(True, 9)]) == [1.0]
    assert punish(completion_ids=[[0] * 50, [0] * 75, [0] * 101]) == [0.0, -0.5, -1.0]


def test_specs_name_baselines() -> None:
    assert method_of("sft") is None
    assert method_of("grpo") == Plain()
    assert method_of("grpo:hard_cap=64") == Plain(hard_cap=64)
    assert method_of("grpo-length:scale=64,slope=0.25") == LengthGRPO(64, 0.25)
    assert method_of("grpo-cosine:max_len=50") == CosineGRPO(50)
    assert set(BASELINES) == {"grpo", "grpo-length", "grpo-cosine", "grpo-overlong"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sft:x=1", "no knobs"),
        ("grop", "known are: sft, grpo"),
        ("longcodezip", "unknown training method"),
        ("grpo-length:size=3", "no knob size"),
        ("grpo-length:scale=abc", "not usable"),
        ("grpo-length:scale=0", "scale=0"),
        ("grpo-length:slope=2", "slope=2"),
        ("grpo-cosine:max_len=0", "max_len=0"),
        ("grpo-overlong:cache=0", "cache=0"),
        ("grpo-overlong:cache=200", "cache=200"),
    ],
)
def test_specs_that_cannot_be(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        method_of(spec)


# -- curves of pages ------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.none(), st.floats(-5, 5)), max_size=30), st.integers(1, 8))
def test_smoothing_equals_plain_means(values: list[float | None], window: int) -> None:
    for end, found in enumerate(smooth(values, window), 1):
        known = [v for v in values[max(0, end - window) : end] if v is not None]
        assert found is None if not known else found == pytest.approx(np.mean(known), abs=1e-9)


def test_charts_stay_inside_their_frame_and_thin_out_long_curves() -> None:
    steps = [float(s) for s in range(5000)]
    chart = step_chart("t", {"wave": (steps, [math.sin(s / 300) for s in steps])})
    assert chart is not None
    pairs = [pair.split() for pair in chart.lines[0].path[1:].split(" L")]
    assert len(pairs) <= 400
    assert all(chart.left <= float(x) <= chart.right for x, _ in pairs)
    assert all(chart.top <= float(y) <= chart.bottom for _, y in pairs)
    assert step_chart("t", {"one": ([1.0], [2.0])}) is None
