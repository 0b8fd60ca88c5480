"""F1, thresholds, prices and relevance: against scikit-learn and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import f1_score

from outlay.errors import InputError
from outlay.evals.basir.f1 import f1_report
from outlay.evals.basir.labels import Label, LabelSet
from outlay.evals.basir.prices import Price, Quote, around, read_prices, read_quotes, sector_returns
from outlay.evals.basir.relevance import relevance
from outlay.evals.basir.threshold import best_threshold, fixed, grid, tune

TABLE = hnp.arrays(bool, (7, 5))


@given(TABLE, TABLE)
def test_every_f1_is_scikit_learns(truth, said):
    report = f1_report(truth, said, list("abcde"))
    for average in ("micro", "macro", "weighted", "samples"):
        wanted = f1_score(truth, said, average=average, zero_division=0)
        assert getattr(report, average) == pytest.approx(wanted, abs=1e-12)
    each = f1_score(truth, said, average=None, zero_division=0)
    assert [score.f1 for score in report.per_label] == pytest.approx(list(each), abs=1e-12)
    never = int((truth.any(axis=0) & ~said.any(axis=0)).sum())
    assert report.never_predicted == never


@given(TABLE, TABLE, st.randoms(use_true_random=False))
def test_the_order_of_rows_and_labels_does_not_matter(truth, said, random):
    rows, columns = random.sample(range(7), 7), random.sample(range(5), 5)
    before = f1_report(truth, said, list("abcde"))
    after = f1_report(truth[rows][:, columns], said[rows][:, columns], list("abcde"))
    for name in ("micro", "macro", "weighted", "samples"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), abs=1e-12)


def test_a_label_without_texts_counts_in_macro():
    truth = np.array([[True, False]])
    assert f1_report(truth, truth, ["a", "b"]).macro == 0.5
    with pytest.raises(InputError, match="labels"):
        f1_report(truth, truth, ["a"])
    with pytest.raises(InputError, match="no text"):
        f1_report(truth[:0], truth[:0], ["a", "b"])


# -- thresholds -----------------------------------------------------------------------------------

SCORES = hnp.arrays(float, (6, 4), elements=st.sampled_from([-2.0, -0.5, 0.0, 0.25, 0.5, 3.0]))
TRUTH = hnp.arrays(bool, (6, 4))


def micro(truth, said):
    return f1_report(truth, said, list("abcd")).micro


@given(SCORES, TRUTH, st.booleans())
def test_the_tuned_threshold_beats_every_other_and_is_the_lowest(scores, truth, min_one):
    rule = tune(scores, truth, min_one=min_one)
    best = micro(truth, rule.decide(scores))
    for value in np.linspace(-3, 4, 57):
        other = fixed(value, 4, min_one=min_one)
        assert micro(truth, other.decide(scores)) <= best + 1e-12
    if not min_one:
        same = [v for v in grid(scores) if micro(truth, scores > v) >= best - 1e-12]
        assert rule.values[0] == min(same)


@given(SCORES, TRUTH)
def test_at_least_one_label_is_chosen_where_asked(scores, truth):
    assert tune(scores, truth, min_one=True).decide(scores).any(axis=1).all()


def test_few_positives_draw_a_labels_threshold_to_the_global_one():
    random = np.random.default_rng(0)
    truth = np.zeros((40, 3), dtype=bool)
    truth[:20, 0], truth[:5, 1] = True, True
    scores = random.random((40, 3)) + truth * np.array([1.0, 4.0, 0.0])
    common, own = tune(scores, truth).values, tune(scores, truth, per_label=True).values
    alone = [best_threshold(scores[:, i], truth[:, i]) for i in range(3)]
    assert own[0] == alone[0]  # 20 positives
    assert own[1] == pytest.approx((common[1] + alone[1]) / 2)  # 5 of 10
    assert own[2] == common[2]  # none


def test_labels_that_cannot_be_predicted_never_are():
    scores = np.array([[0.4, -np.inf], [0.6, -np.inf]])
    truth = np.array([[False, True], [True, False]])
    rule = tune(scores, truth, per_label=True)
    assert np.isfinite(rule.values).all()
    assert rule.decide(scores).tolist() == [[False, False], [True, False]]


def test_thresholds_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="do not belong together"):
        fixed(0.5, 3).decide(np.zeros((2, 4)))
    with pytest.raises(InputError, match="finite"):
        fixed(math.nan, 3)
    with pytest.raises(InputError, match="NaN"):
        best_threshold([math.nan], [True])
    with pytest.raises(InputError, match="at least one text"):
        tune(np.zeros((0, 3)), np.zeros((0, 3), dtype=bool))


# -- prices ---------------------------------------------------------------------------------------

LABELS = LabelSet((Label("steel", "Steel"), Label("banks", "Banks")))


def price(company, sector, before, after, **more):
    return Price("e", company, sector, before, after, **more)


def test_a_sectors_return_is_the_mean_median_or_weighted_mean():
    prices = [
        price("a", "steel", 100, 110, cap=1),
        price("b", "steel", 100, 90, cap=3),
        price("c", "steel", 100, 130, cap=1),
        price("d", "banks", 50, None),
        price("e", "Banks", 50, 55, cap=1),
    ]
    found = sector_returns(prices, LABELS)
    assert found.returns == {"e": {"steel": pytest.approx(0.1), "banks": pytest.approx(0.1)}}
    assert found.untraded == 1
    median = sector_returns(prices, LABELS, agg="median").returns["e"]
    assert median["steel"] == pytest.approx(0.1)
    cap = sector_returns(prices, LABELS, agg="cap").returns["e"]
    assert cap["steel"] == pytest.approx((0.1 - 0.3 + 0.3) / 5)
    thin = sector_returns(prices, LABELS, min_companies=2)
    assert (thin.returns["e"].keys(), thin.thin) == ({"steel"}, (("e", "banks"),))


def test_unadjusted_prices_are_reported():
    found = sector_returns([price("split", "steel", 100, 50)], LABELS)
    assert found.suspicious == ("split at e: -50%",)


@pytest.mark.parametrize("bad", [0, -3, math.nan, math.inf, "x", True])
def test_a_price_that_is_none_is_refused(bad):
    with pytest.raises(InputError, match="positive price"):
        price("a", "steel", 100, bad)


def test_prices_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="unknown sector 'moon'"):
        sector_returns([price("a", "moon", 1, 2)], LABELS)
    with pytest.raises(InputError, match="twice"):
        sector_returns([price("a", "steel", 1, 2)] * 2, LABELS)
    with pytest.raises(InputError, match="no cap"):
        sector_returns([price("a", "steel", 1, 2)], LABELS, agg="cap")
    with pytest.raises(InputError, match="agg"):
        sector_returns([price("a", "steel", 1, 2)], LABELS, agg="best")


def quotes(**opens):
    return [Quote("a", "steel", f"2020-02-0{day[1]}", value) for day, value in opens.items()]


def test_the_window_takes_trading_days_around_the_event():
    days = quotes(d1=10.0, d3=20.0, d5=40.0, d6=80.0)

    def pair(date, window):
        (found,) = around(days, {"e": date}, window)
        return found.open_before, found.open_after

    assert pair("2020-02-03", (-1, 1)) == (10.0, 40.0)
    assert pair("2020-02-04", (-1, 1)) == (20.0, 40.0)
    assert pair("2020-02-03", (0, 1)) == (20.0, 40.0)
    assert pair("2020-02-04", (-2, 2)) == (10.0, 80.0)
    with pytest.raises(InputError, match="prices cover 2020-02-01 to 2020-02-06"):
        pair("2020-02-01", (-1, 1))
    with pytest.raises(InputError, match="window"):
        pair("2020-02-03", (1, 2))
    with pytest.raises(InputError, match="two prices"):
        around(days + days[:1], {"e": "2020-02-03"})


def test_prices_and_quotes_are_read_from_files(tmp_path):
    (tmp_path / "p.csv").write_text(
        "event,company,sector,open_before,open_after\ne,a,steel,10,11\ne,b,steel,10,\n"
    )
    assert read_prices(tmp_path / "p.csv") == [
        price("a", "steel", 10, 11),
        price("b", "steel", 10, None),
    ]
    (tmp_path / "q.jsonl").write_text(
        '{"company":"a","sector":"steel","date":"2020-02-03","open":3}\n'
    )
    assert read_quotes(tmp_path / "q.jsonl") == [Quote("a", "steel", "2020-02-03", 3.0)]
    (tmp_path / "r.csv").write_text("event,company,sector,open_before,open_after\ne,a,steel,-1,2\n")
    with pytest.raises(InputError, match="positive price"):
        read_prices(tmp_path / "r.csv")


# -- relevance ------------------------------------------------------------------------------------

RETURNS = hnp.arrays(
    float, st.integers(1, 12), elements=st.integers(-40, 40).map(lambda i: i / 100)
)


@given(RETURNS)
def test_rank_relevance_survives_every_increasing_transform(returns):
    ranks = relevance(returns)
    assert (relevance(np.tanh(3 * returns)) == ranks).all()
    assert (relevance(np.exp(returns) - 0.2) == ranks).all()
    assert ranks.tolist() == [sum(other < mine for other in returns) for mine in returns]


@given(RETURNS, st.integers(-30, 30))
def test_a_constant_added_to_all_returns_changes_nothing(returns, percent):
    moved = np.round(returns + percent / 100, 6)
    assert (relevance(moved) == relevance(returns)).all()
    assert relevance(moved, "shift") == pytest.approx(relevance(returns, "shift"), abs=1e-9)


@given(RETURNS, st.sampled_from(["rank", "shift", "quantile", "price_relative"]))
def test_relevance_is_never_negative_and_keeps_the_order(returns, how):
    values = relevance(returns, how)
    assert (values >= 0).all()
    assert (np.diff(values[np.argsort(returns, kind="stable")]) >= 0).all()


def test_returns_that_cannot_be_are_refused():
    for bad, words in (([], "row"), ([math.nan], "finite"), ([-1.0, 0.1], "-1")):
        with pytest.raises(InputError, match=words):
            relevance(bad)
    with pytest.raises(InputError, match="relevance='best'"):
        relevance([0.1], "best")
