"""Curves, the decline test, equal compute and regimes on samples with known truth."""

import numpy as np
import pytest

from outlay.errors import InputError
from outlay.evals.passk import pass_at_k
from outlay.evals.puzzles.curves import (
    Sample,
    accuracy,
    decline,
    effort,
    majority_at_tokens,
    mean_tokens,
    pass_at_tokens,
    table,
)
from outlay.evals.puzzles.plot import draw_regimes
from outlay.evals.puzzles.regimes import regimes
from outlay.stats import wilson


def level(n, solved, wrong=0, tokens=100, thinking=80, instance="one", **fates):
    plan = {"solved": solved, "wrong": wrong, **fates}
    return [
        Sample(n, f"{instance}:{n}", fate, tokens, thinking, vote=fate, moves=2**n - 1)
        for fate, count in plan.items()
        for _ in range(count)
    ]


def test_truncated_and_output_bound_samples_are_no_failures_of_reasoning():
    (at,) = accuracy(level(3, 6, 2, truncated=5, output_bound=7))
    assert (at.solved, at.reasoned, at.truncated, at.output_bound) == (6, 8, 5, 7)
    assert at.accuracy == 0.75
    assert (at.lo, at.hi) == wilson(6, 8)
    (none,) = accuracy(level(3, 0, 0, truncated=5))
    assert (none.accuracy, none.lo, none.hi) == (None, None, None)
    assert "| - | - |" in table({"way": [none]})
    assert "6/8" in table({"way": [at]})


def test_levels_are_kept_apart_and_sorted():
    curve = accuracy([*level(5, 0, 9), *level(1, 9)])
    assert [(at.n, at.moves, at.accuracy) for at in curve] == [(1, 1, 1.0), (5, 31, 0.0)]


def test_effort_can_leave_out_and_keep_truncated_samples():
    samples = [*level(2, 5, thinking=10), *level(2, 0, truncated=5, thinking=90)]
    assert effort(samples)[2].mean == 10
    assert effort(samples, truncated=True)[2].mean == 50
    with pytest.raises(InputError, match="no count of thinking"):
        effort([Sample(1, "x", "solved", 5)])


def noisy(means, samples, rng, sd=20):
    return [
        Sample(n, f"i:{n}", "solved", 100, max(1, round(rng.normal(mean, sd))))
        for n, mean in means.items()
        for _ in range(samples)
    ]


RISING = {1: 50, 2: 100, 3: 200, 4: 300, 5: 400}
FALLING = {1: 50, 2: 100, 3: 300, 4: 180, 5: 60}
FLAT = dict.fromkeys(range(1, 6), 200)


def test_a_fall_after_the_peak_is_found_and_a_rise_is_none():
    rng = np.random.default_rng(0)
    fall = decline(noisy(FALLING, 25, rng))
    assert fall.declines
    assert fall.peak == 3
    assert fall.slope == pytest.approx(-120, abs=15)
    rise = decline(noisy(RISING, 25, rng))
    assert not rise.declines
    assert rise.peak == 5


def test_flat_effort_is_no_decline_although_some_level_is_the_highest():
    found = [
        decline(noisy(FLAT, 25, np.random.default_rng(s)), resamples=200).declines
        for s in range(60)
    ]
    assert sum(found) <= 4  # 2.5 % of 60, give or take
    naive = []
    for s in range(60):
        means = [at.mean for at in effort(noisy(FLAT, 25, np.random.default_rng(s))).values()]
        peak = means.index(max(means))
        naive.append(means[-1] < means[peak])
    assert sum(naive) > 40  # what looking at the highest level alone would say


def test_the_decline_test_needs_levels_and_samples():
    with pytest.raises(InputError, match="at least two"):
        decline(level(1, 9))
    with pytest.raises(InputError, match="level 2 has 3"):
        decline([*level(1, 9), *level(2, 3)])


def test_tokens_buy_fractional_samples():
    samples = level(1, 3, 7, tokens=100)
    assert mean_tokens(samples) == 100
    whole = pass_at_tokens(samples, 300)
    assert (whole.value, whole.k, whole.capped) == (pass_at_k(10, 3, 3), 3.0, False)
    mixed = pass_at_tokens(samples, 340)
    assert mixed.value == pytest.approx(0.6 * pass_at_k(10, 3, 3) + 0.4 * pass_at_k(10, 3, 4))
    assert pass_at_tokens(samples, 50).value == pytest.approx(0.5 * 0.3)
    top = pass_at_tokens(samples, 5_000)
    assert (top.value, top.k, top.capped) == (1.0, 10.0, True)


def test_instances_count_equally():
    samples = [*level(1, 4, instance="a"), *level(1, 0, 4, instance="b")]
    assert pass_at_tokens(samples, 400).value == 0.5


def test_majority_at_tokens_votes_over_lists():
    samples = level(1, 3, 2)
    assert majority_at_tokens(samples, 500).value == 1.0
    assert majority_at_tokens(samples, 100).value == pytest.approx(0.6)
    assert majority_at_tokens(level(1, 2, 3), 500).value == 0.0
    with pytest.raises(InputError, match="equal compute"):
        mean_tokens([])


def named(thinking, plain, **knobs):
    return {at.n: at.regime for at in regimes(thinking, plain, **knobs)}


def test_regimes_are_the_designed_ones():
    thinking, plain = [], []
    for n, think, no in ((1, 98, 97), (2, 90, 3), (3, 0, 0)):
        thinking += level(n, think, 100 - think, tokens=1_000)
        plain += level(n, no, 100 - no, tokens=100)
    assert named(thinking, plain) == {1: "low", 2: "medium", 3: "high"}


def test_few_failures_are_not_yet_a_collapse():
    assert named(level(3, 0, 25), level(3, 0, 25, tokens=10)) == {3: "undetermined"}


def test_a_cheaper_way_that_is_not_cheaper_is_not_low():
    assert named(level(1, 98, 2, tokens=100), level(1, 98, 2, tokens=100)) == {1: "undetermined"}


def test_matching_tokens_changes_the_verdict():
    thinking, plain = level(2, 90, 10, tokens=1_000), level(2, 40, 60, tokens=100)
    (at,) = regimes(thinking, plain)
    assert at.unmatched == pytest.approx(-0.5)  # one sample each: thinking looks far better
    assert at.plain.k == 10
    assert at.regime == "low"


def test_many_instances_are_resampled_in_pairs():
    thinking, plain = [], []
    for index in range(30):
        good = index % 3 != 0
        thinking += level(4, 4 if good else 1, 0 if good else 3, tokens=100, instance=f"i{index}")
        plain += level(4, 1 if good else 0, 3 if good else 4, tokens=90, instance=f"i{index}")
    (at,) = regimes(thinking, plain)
    assert at.regime == "medium"
    assert at.lo > 0.4


def test_regimes_leave_out_what_is_no_reasoning():
    thinking = [*level(1, 90, 10, tokens=500), *level(1, 0, 0, truncated=20)]
    (at,) = regimes(thinking, level(1, 90, 10))
    assert at.left_out == 20
    assert regimes(level(1, 0, 0, truncated=5), level(1, 5)) == []


@pytest.mark.parametrize(
    ("knobs", "match"), [({"margin": 1.0}, "margin="), ({"collapse": -0.1}, "collapse=")]
)
def test_shares_out_of_range_are_refused(knobs, match):
    with pytest.raises(InputError, match=match):
        regimes(level(1, 5), level(1, 5), **knobs)


def test_levels_that_are_not_shared_are_refused():
    with pytest.raises(InputError, match="none is shared"):
        regimes(level(1, 5), level(2, 5))
    with pytest.raises(InputError, match="no samples"):
        accuracy([])


def test_the_picture_is_drawn(tmp_path):
    ways = {"thinking": level(1, 9, 1) + level(2, 1, 9), "plain": level(1, 5, 5, thinking=0)}
    levels = regimes(ways["thinking"], ways["plain"])
    draw_regimes(tmp_path / "p.png", ways, levels, title="Test")
    draw_regimes(tmp_path / "moves.png", ways, levels, title="Test", x="moves")
    for name in ("p.png", "moves.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    unknown = {"way": [Sample(1, "a", "solved", 5)]}
    with pytest.raises(InputError, match="use x='n'"):
        draw_regimes(tmp_path / "q.png", unknown, [], title="Test", x="moves")
