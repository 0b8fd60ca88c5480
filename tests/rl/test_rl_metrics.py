"""Metrics equal a plain reference; what is undefined is None."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from outlay.errors import InputError
from outlay.rl.base import Judgement
from outlay.rl.metrics import Sample, budget_curve, by_bin, percentile, spearman, summarise


def sample(
    n: int, group: int, budget: float | None, right: bool, reward: float, ops: float | None
) -> Sample:
    judgement = Judgement(right, float(right), n % 3 > 0, n, n // 2, n - n // 2, n % 5 == 0)
    return Sample(n, group, reward, budget, judgement, ops)


rollouts = st.lists(
    st.builds(
        sample,
        st.integers(1, 60),
        st.integers(0, 4),
        st.none() | st.integers(1, 50),
        st.booleans(),
        st.sampled_from([0.0, 0.5, 1.0]),
        st.none() | st.integers(1, 5),
    ),
    min_size=1,
    max_size=40,
)


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def reference(samples: list[Sample]) -> dict[str, float | None]:
    """Every metric again, one obvious loop each."""
    n_all = [s.tokens for s in samples]
    right = [s.tokens for s in samples if s.judgement and s.judgement.correct]
    with_budget = [s for s in samples if s.budget is not None]
    acc = len(right) / len(samples)
    groups = [[s for s in samples if s.group == g] for g in {s.group for s in samples}]
    pairs = [(s.difficulty, s.tokens) for s in samples if s.difficulty is not None]
    varied = len({x for x, _ in pairs}) > 1 and len({y for _, y in pairs}) > 1
    return {
        "acc": acc,
        "tokens_mean": float(np.mean(n_all)),
        "tokens_p50": float(np.percentile(n_all, 50)),
        "tokens_p90": float(np.percentile(n_all, 90)),
        "thinking_mean": mean([s.tokens // 2 for s in samples]),
        "answer_mean": mean([s.tokens - s.tokens // 2 for s in samples]),
        "tokens_correct": mean([float(n) for n in right]),
        "tokens_per_correct": sum(n_all) / len(right) if right else None,
        "violation": mean([float(s.tokens > s.budget) for s in with_budget]),
        "overshoot": mean([max(0, s.tokens - s.budget) / s.budget for s in with_budget]),
        "utilisation": mean([min(s.tokens, s.budget) / s.budget for s in with_budget]),
        "truncated": mean([float(n % 5 == 0) for n in n_all]),
        "format_ok": mean([float(n % 3 > 0) for n in n_all]),
        "verifier_failed": 0.0,
        "e3": (100 * acc) ** 2 / float(np.mean(n_all)),
        "spearman": float(spearmanr(*zip(*pairs, strict=True)).statistic) if varied else None,
        "group_tokens_std": mean(
            [float(np.std([s.tokens for s in g], ddof=1)) for g in groups if len(g) > 1]
        ),
        "zero_variance": mean(
            [float(len({s.reward for s in g}) == 1) for g in groups if len(g) > 1]
        ),
        "reward_mean": mean([s.reward for s in samples if s.reward is not None]),
    }


@settings(max_examples=40)
@given(rollouts)
def test_metrics_equal_a_plain_reference(samples: list[Sample]) -> None:
    found, expected = summarise(samples), reference(samples)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (None if value is None else pytest.approx(value, abs=1e-9)), name


@settings(max_examples=40)
@given(rollouts)
def test_bins_are_the_metrics_of_their_own_samples(samples: list[Sample]) -> None:
    bins = by_bin(samples, (2, 4))
    for name, rule in (
        ("<=2", lambda d: d <= 2),
        ("<=4", lambda d: 2 < d <= 4),
        (">4", lambda d: d > 4),
    ):
        own = [s for s in samples if s.difficulty is not None and rule(s.difficulty)]
        assert bins.get(name) == (summarise(own) if own else None)
    known = {f"{s.difficulty:g}" for s in samples if s.difficulty is not None}
    assert set(by_bin(samples, ())) == known


def test_what_is_undefined_is_none() -> None:
    nothing = summarise([])
    assert set(nothing.values()) == {None}
    wrong = summarise([sample(4, 0, None, False, 0.0, None)])
    assert wrong["acc"] == 0
    for name in ("tokens_correct", "tokens_per_correct", "violation", "spearman", "zero_variance"):
        assert wrong[name] is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_percentiles_are_numpys(values: list[float], q: float) -> None:
    assert percentile(values, q) == pytest.approx(np.quantile(values, q), rel=1e-9, abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=20))
def test_rank_correlation_is_scipys(pairs: list[tuple[int, int]]) -> None:
    found = spearman([(float(a), float(b)) for a, b in pairs])
    if found is None:
        assert len({a for a, _ in pairs}) == 1 or len({b for _, b in pairs}) == 1
    else:
        assert found == pytest.approx(spearmanr(*zip(*pairs, strict=True)).statistic, abs=1e-9)


def test_a_curve_is_averaged_under_its_prior() -> None:
    points = [(16.0, 0.5), (8.0, 0.2), (32.0, 0.8)]
    assert budget_curve(points) == ([(8.0, 0.2), (16.0, 0.5), (32.0, 0.8)], pytest.approx(0.5))
    assert budget_curve(points, {32.0: 3, 8.0: 1})[1] == pytest.approx(0.65)
    with pytest.raises(InputError, match="each once"):
        budget_curve([(8, 0.1), (8, 0.2)])
    with pytest.raises(InputError, match="positive sum"):
        budget_curve(points, {64.0: 1.0})


def test_bins_must_ascend() -> None:
    with pytest.raises(InputError, match="must ascend"):
        by_bin([], (4, 2))


def test_a_reward_that_nobody_paid_is_no_reward() -> None:
    from outlay.rl.metrics import samples_of

    rows = [{"ops": 2}, {"ops": 3, "budget": 4}]
    found = samples_of(rows, [[1], [1, 2]], [math.nan, 1.0], 2, "ops")
    assert [s.reward for s in found] == [None, 1.0]
    assert [s.group for s in found] == [0, 0]
    assert [s.budget for s in found] == [None, 4]
    assert [s.difficulty for s in found] == [2, 3]
