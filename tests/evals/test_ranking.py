"""Ranking metrics: closed forms, ties, chance, and scikit-learn as the judge."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import ndcg_score

from outlay.errors import InputError
from outlay.evals.ranking import (
    RankedEvent,
    compare_rankings,
    excess,
    kendall,
    ndcg,
    ndcg_rows,
    random_ndcg,
    rank_report,
    spearman,
    worst_ndcg,
)


def plain_ndcg(relevance, scores, k, gain):
    """The mean over all orders that the scores allow, written out."""
    gains = [2.0**r - 1 if gain == "exponential" else r for r in relevance]

    def dcg(order):
        return sum(gains[i] / math.log2(place + 2) for place, i in enumerate(order[:k]))

    allowed = [
        order
        for order in itertools.permutations(range(len(gains)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    ideal = sorted(range(len(gains)), key=lambda i: -gains[i])
    return sum(map(dcg, allowed)) / len(allowed) / dcg(ideal)


@given(st.data())
def test_ndcg_is_the_mean_over_all_orders_that_ties_allow(data):
    size = data.draw(st.integers(1, 5))
    grades = st.lists(st.integers(0, 4), min_size=size, max_size=size)
    relevance = data.draw(grades.filter(any))
    scores = data.draw(grades)
    k = data.draw(st.one_of(st.none(), st.integers(1, size + 1)))
    gain = data.draw(st.sampled_from(["linear", "exponential"]))
    wanted = plain_ndcg(relevance, scores, k, gain)
    assert ndcg(relevance, scores, k=k, gain=gain) == pytest.approx(wanted, abs=1e-12)


TABLES = hnp.arrays(float, (4, 7), elements=st.floats(0, 10, width=16))


@given(TABLES, TABLES, st.one_of(st.none(), st.integers(1, 9)))
def test_rows_equal_scikit_learn(relevance, scores, k):
    found = ndcg_rows(relevance, scores, k=k)
    for row in range(len(relevance)):
        if not relevance[row].any():
            assert math.isnan(found[row])
            continue
        wanted = ndcg_score(relevance[row : row + 1], scores[row : row + 1], k=k)
        assert found[row] == pytest.approx(wanted, abs=1e-12)


GRADES = st.lists(st.floats(0, 5, width=16), min_size=2, max_size=30).filter(any)
K = st.one_of(st.none(), st.integers(1, 8))
GAIN = st.sampled_from(["linear", "exponential"])


@given(GRADES, K, GAIN)
def test_a_constant_scorer_has_exactly_the_random_level(relevance, k, gain):
    constant = ndcg(relevance, np.zeros(len(relevance)), k=k, gain=gain)
    assert constant == pytest.approx(random_ndcg(relevance, k=k, gain=gain), abs=1e-12)


@given(GRADES, K, GAIN)
def test_perfect_is_one_and_reversed_is_worst(relevance, k, gain):
    values = np.array(relevance)
    assert ndcg(values, values, k=k, gain=gain) == pytest.approx(1.0, abs=1e-12)
    reversed_ = ndcg(values, -values, k=k, gain=gain)
    worst = worst_ndcg(values, k=k, gain=gain)
    assert reversed_ == pytest.approx(worst, abs=1e-12)
    assert worst <= random_ndcg(values, k=k, gain=gain) + 1e-12


@given(GRADES, st.integers(0, 99), K)
def test_the_order_of_the_items_does_not_matter(relevance, seed, k):
    random = np.random.default_rng(seed)
    scores = random.integers(0, 4, len(relevance)).astype(float)
    order = random.permutation(len(relevance))
    values = np.array(relevance)
    assert ndcg(values[order], scores[order], k=k) == pytest.approx(
        ndcg(values, scores, k=k), abs=1e-12
    )
    assert kendall(values[order], scores[order]) == pytest.approx(kendall(values, scores))


def test_random_orders_average_to_the_closed_form():
    random = np.random.default_rng(0)
    for items, k in ((12, None), (12, 5), (81, None)):
        relevance = np.tile(np.arange(float(items)), (20_000, 1))
        values = ndcg_rows(relevance, random.random(relevance.shape), k=k)
        error = values.std(ddof=1) / math.sqrt(len(values))
        assert abs(values.mean() - random_ndcg(relevance[0], k=k)) < 3 * error


def test_81_items_in_random_order_score_high():
    ranks = np.arange(81.0)
    assert random_ndcg(ranks) == pytest.approx(0.838, abs=1e-3)
    assert worst_ndcg(ranks) == pytest.approx(0.676, abs=1e-3)


def test_excess_is_zero_for_guessing_and_one_for_perfect():
    assert excess(0.84, 0.84) == 0.0
    assert excess(1.0, 0.84) == pytest.approx(1.0)
    with pytest.raises(InputError, match="every order"):
        excess(1.0, 1.0)


def event(name, relevance, scores):
    return RankedEvent(name, np.array(relevance, float), np.array(scores, float))


def test_a_report_corrects_for_chance_and_counts_what_it_leaves_out():
    report = rank_report(
        [
            event("perfect", [0, 1, 2], [5, 6, 7]),
            event("constant", [0, 1, 2], [1, 1, 1]),
            event("one item", [3], [1]),
            event("equal", [2, 2, 2], [1, 2, 3]),
        ]
    )
    perfect, constant = report.events
    assert (perfect.excess, perfect.spearman, perfect.kendall) == pytest.approx((1, 1, 1))
    assert (constant.excess, constant.spearman, constant.kendall) == pytest.approx((0, 0, 0))
    assert perfect.items == 3
    assert dict(report.excluded) == {"one item": "one item", "equal": "equal relevances"}
    assert report.to_dict()["excess"] == pytest.approx(0.5)


def test_a_paired_comparison_separates_good_from_random():
    random = np.random.default_rng(1)
    truth = [random.permutation(8).astype(float) for _ in range(40)]
    good = rank_report([event(str(i), t, t + random.normal(0, 2, 8)) for i, t in enumerate(truth)])
    bad = rank_report([event(str(i), t, random.random(8)) for i, t in enumerate(truth)])
    assert compare_rankings(good, bad).separable
    same = compare_rankings(good, good)
    assert (same.mean, same.lo, same.hi) == (0.0, 0.0, 0.0)
    assert not same.separable


@pytest.mark.parametrize(
    ("relevance", "scores", "knobs", "words"),
    [
        ([-1.0, 2.0], [1, 2], {}, "negative"),
        ([1.0, 2.0], [1, 2, 3], {}, "3 scores for 2"),
        ([1.0, math.nan], [1, 2], {}, "NaN"),
        ([1.0, 2.0], [1, math.inf], {}, "infinity"),
        ([0.0, 0.0], [1, 2], {}, "no item"),
        ([], [], {}, "shape"),
        (["a", "b"], [1, 2], {}, "numbers"),
        ([1.0, 2.0], [1, 2], {"k": 0}, "k=0"),
        ([1.0, 2.0], [1, 2], {"gain": "cubic"}, "gain"),
        ([1.0, 99.0], [1, 2], {"gain": "exponential"}, "too large"),
    ],
)
def test_what_cannot_be_ranked_is_refused_by_name(relevance, scores, knobs, words):
    with pytest.raises(InputError, match=words):
        ndcg(relevance, scores, **knobs)


def test_reports_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="no event can be ranked"):
        rank_report([event("a", [1], [1])])
    with pytest.raises(InputError, match="same name"):
        rank_report([event("a", [1, 2], [1, 2]), event("a", [1, 2], [1, 2])])
    with pytest.raises(InputError, match="event 'a'"):
        rank_report([event("a", [1, 2], [1, 2, 3])])
    one = rank_report([event("a", [1, 2], [1, 2])])
    with pytest.raises(InputError, match="another k"):
        compare_rankings(one, rank_report([event("a", [1, 2], [1, 2])], k=1))
    with pytest.raises(InputError, match="no event"):
        compare_rankings(one, rank_report([event("b", [1, 2], [1, 2])]))


def test_correlations_of_a_scorer_that_says_nothing_are_zero():
    assert spearman([1, 2, 3], [0, 0, 0]) == 0.0
    assert kendall([1, 1], [1, 2]) == 0.0
