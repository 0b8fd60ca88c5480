"""Intervals, sign flips and pass@k."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.stats import mean_interval, pass_at_k, resample_means, sign_flip_p, wilson

QUALITIES = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=2, max_size=30)


@settings(max_examples=30)
@given(QUALITIES, st.integers(0, 5))
def test_resampling_equals_a_loop_over_the_same_draws(values, seed):
    fast = resample_means(np.array(values)[:, None], 40, seed)[:, 0]
    rng = np.random.default_rng(seed)
    slow = [np.mean([values[i] for i in rng.integers(0, len(values), len(values))]) for _ in fast]
    assert np.allclose(fast, slow)


def test_resampling_in_blocks_changes_nothing(monkeypatch):
    values = np.linspace(0, 1, 7)[:, None]
    whole = resample_means(values, 50, 1)
    monkeypatch.setattr("outlay.stats._BLOCK", 20)
    assert np.array_equal(resample_means(values, 50, 1), whole)


@settings(max_examples=50)
@given(QUALITIES)
def test_an_interval_holds_its_mean_and_stays_in_range(values):
    found = mean_interval(np.array(values), resamples=200)
    assert 0 <= found.lo <= found.hi <= 1 + 1e-12
    assert min(values) - 1e-12 <= found.mean <= max(values) + 1e-12


def test_the_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        found = mean_interval(rng.beta(2, 5, size=60), resamples=300, seed=trial)
        hits += found.lo <= 2 / 7 <= found.hi
    assert 0.88 <= hits / 200 <= 0.99


def test_wilson_agrees_with_published_values():
    # Newcombe (1998), table I, method 3: 81/263 and 15/148, 0/20, 1/29.
    for successes, n, lo, hi in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(successes, n) == pytest.approx((lo, hi), abs=6e-5)


def test_all_right_is_not_certainty():
    found = mean_interval(np.ones(5))
    assert (found.mean, found.hi, found.method) == (1.0, 1.0, "wilson")
    assert found.lo == pytest.approx(0.5655, abs=1e-4)
    many = mean_interval(np.ones(400))
    assert many.method == "wilson"
    assert many.lo < 1


def test_equal_values_get_a_bound_or_no_interval_at_all():
    found = mean_interval(np.full(4, 0.5))
    assert found.method == "bound"
    assert 0 < found.lo < 0.5 < found.hi < 1
    assert mean_interval(np.full(40, 0.5)).lo > found.lo
    nats = mean_interval(np.full(4, 2.5))
    assert (nats.lo, nats.hi, nats.method) == (None, None, "none")
    forced = mean_interval(np.full(4, 2.5), method="bootstrap")
    assert forced.lo == forced.hi == 2.5


def test_small_binary_samples_use_wilson_and_large_mixed_ones_the_bootstrap():
    assert mean_interval(np.array([0.0, 1.0] * 5)).method == "wilson"
    assert mean_interval(np.array([0.0, 1.0] * 50)).method == "bootstrap"
    with pytest.raises(InputError, match="0/1 qualities"):
        mean_interval(np.array([0.0, 0.5]), method="wilson")


@pytest.mark.parametrize("values", [[], [float("nan")]])
def test_no_or_broken_values_are_refused(values):
    with pytest.raises(InputError):
        mean_interval(np.array(values))


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=9))
def test_sign_flip_p_counts_all_patterns(gaps):
    sums = [
        abs(sum(s * g for s, g in zip(signs, gaps, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(gaps))
    ]
    exact = sum(value >= abs(sum(gaps)) for value in sums) / len(sums)
    assert sign_flip_p(np.array(gaps)) == pytest.approx(exact)


def test_sampled_sign_flips_approach_the_exact_value(monkeypatch):
    gaps = np.array([1.0, 2.0, -1.0, 3.0, 0.5, 2.5, -0.5, 1.5, 1.0, 2.0])
    exact = sign_flip_p(gaps)
    monkeypatch.setattr("outlay.stats._EXACT_FLIPS", 3)
    assert sign_flip_p(gaps, resamples=20_000) == pytest.approx(exact, abs=0.01)


@given(st.integers(1, 8), st.data())
def test_pass_at_k_equals_enumeration(n, data):
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    draws = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize("bad", [(5, 6, 1), (5, -1, 1), (5, 2, 0), (5, 2, 6)])
def test_pass_at_k_refuses_impossible_counts(bad):
    with pytest.raises(InputError):
        pass_at_k(*bad)
