"""Records, points, fronts, intervals, paired comparisons and pictures."""

import itertools
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.budget import Budget
from outlay.cost import Price
from outlay.errors import InputError, ResultsError
from outlay.figure import _look, linear_ticks, log_ticks, short, spread
from outlay.frontier import (
    Point,
    Record,
    area,
    cost_at,
    cost_of,
    cost_ratio,
    paired,
    pareto,
    plot,
    points,
    quality_at,
    verdicts,
)
from outlay.ledger import Ledger
from outlay.stats import mean_interval, pass_at_k, resample_means, sign_flip_p, wilson


def bill(generated=10, *, forced=0, prompt=5, verifier=0):
    ledger = Ledger()
    ledger.record(
        "answer",
        "target",
        prompt_new=prompt,
        prompt_cached=3,
        generated=generated,
        forced=forced,
        branch="b",
        seconds=0.5,
        flops=100.0,
    )
    if verifier:
        ledger.record("think", "verifier", prompt_new=verifier, generated=1, seconds=0.25)
    ledger.deliver(["b"])
    return ledger


def record(example, quality, *, stack="m", tokens=64, seed=0, generated=10, task="t", **more):
    return Record(
        task, f"e{example}", stack, Budget(tokens), seed, quality, bill(generated), **more
    )


def point(cost, quality, *, stack="m", lo=None, hi=None):
    return Point(
        stack, Budget(10), quality, lo, hi, 5, cost, 1.0, None, 0.1, None, None, cost=float(cost)
    )


# Records


def test_a_record_survives_json_and_pickling():
    budget = Budget(64, counts="think", stages={"think": 60}, usd=0.5)
    row = Record("t", "e", "m", budget, 3, 0.5, bill(), kv_bytes=12.0, ttft=0.1)
    assert Record.from_dict(json.loads(json.dumps(row.to_dict()))) == row
    assert pickle.loads(pickle.dumps(row)) == row  # noqa: S301 - our own bytes


@pytest.mark.parametrize("drop", ["task", "quality", "ledger", "budget"])
def test_an_incomplete_record_is_a_results_error(drop):
    data = record(0, 1.0).to_dict()
    del data[drop]
    with pytest.raises(ResultsError, match="delete it and run again"):
        Record.from_dict(data)


@pytest.mark.parametrize(
    "change",
    [{"unknown": 1}, {"budget": {"tokens": 0}}, {"quality": float("nan")}, {"ledger": 3}],
)
def test_a_damaged_record_is_a_results_error(change):
    with pytest.raises(ResultsError):
        Record.from_dict({**record(0, 1.0).to_dict(), **change})


def test_a_quality_that_is_not_finite_names_the_record():
    with pytest.raises(InputError, match=r"t \| e0 \| m \| 64 generated tokens \| 0"):
        record(0, math.inf)


# Axes


@pytest.mark.parametrize(
    ("axis", "cost"),
    [
        ("generated", 11),
        ("generated+forced", 13),
        ("generated+forced+verifier", 113),
        ("prompt", 8),
        ("all", 5 + 3 + 10 + 2 + 100 + 1),
        ("flops", 100.0),
        ("seconds", 0.75),
    ],
)
def test_every_axis_reads_its_part_of_the_ledger(axis, cost):
    assert cost_of(bill(10, forced=2, verifier=100), axis) == cost


def test_money_follows_the_price_list_of_each_role():
    ledger = bill(10, forced=2, verifier=100)
    one = Price(1.0, 0.5, 4.0)
    assert cost_of(ledger, "usd", one) == pytest.approx((5 + 2 + 100 + 1.5 + 44) / 1e6)
    roles = {"target": one, "verifier": Price(0.0, 0.0, 0.0)}
    assert cost_of(ledger, "usd", roles) == pytest.approx((5 + 2 + 1.5 + 40) / 1e6)
    with pytest.raises(InputError, match="price for role 'verifier'"):
        cost_of(ledger, "usd", {"target": one})
    with pytest.raises(InputError, match="give price="):
        cost_of(ledger, "usd")


def test_an_unknown_axis_names_the_known_ones():
    with pytest.raises(InputError, match="choose one of generated, generated"):
        cost_of(bill(), "tokens")


# Points


def test_seeds_of_an_example_are_averaged_before_anything_else():
    rows = [record(0, 1.0, seed=s) for s in range(9)] + [record(1, 0.0)]
    (found,) = points(rows)
    assert found.quality == 0.5
    assert found.n == 2


def test_a_key_counts_once_and_the_last_wins():
    (found,) = points([record(0, 0.0), record(1, 1.0), record(0, 1.0)])
    assert (found.quality, found.n) == (1.0, 2)


def test_a_point_carries_means_of_every_cost():
    rows = [record(0, 1.0, generated=10, kv_bytes=4.0), record(1, 0.0, generated=30, ttft=0.5)]
    (found,) = points(rows, axis="seconds")
    assert found.kinds["generated"] == 20
    assert found.tokens == 28
    assert (found.flops, found.seconds, found.cost) == (100.0, 0.5, 0.5)
    assert (found.kv_bytes, found.ttft, found.tbt) == (4.0, 0.5, None)
    assert found.kinds["delivered"] == 20
    assert json.loads(json.dumps(found.to_dict()))["budget"] == {
        "tokens": 64,
        "counts": "generated",
    }


def test_tasks_methods_and_budgets_make_points_in_order_of_appearance():
    rows = [record(0, 1.0, stack=s, tokens=b, task=t) for t in "xy" for s in "ba" for b in (8, 4)]
    keys = [(p.task, p.stack, p.budget.tokens) for p in points(rows)]
    assert keys == [(t, s, b) for t in "xy" for s in "ba" for b in (8, 4)]
    assert points([]) == []


@pytest.mark.parametrize("option", [{"confidence": 1.0}, {"confidence": 0}, {"bootstrap": 0}])
def test_impossible_levels_are_refused(option):
    with pytest.raises(InputError):
        points([record(0, 1.0)], **option)


# Intervals

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


# Fronts and curves

CLOUD = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=14)


@given(CLOUD, st.booleans())
def test_the_front_is_what_no_other_point_beats(cloud, higher):
    cloud = [point(cost, quality) for cost, quality in cloud]

    def beats(a, b):
        better = a.quality > b.quality if higher else a.quality < b.quality
        return (a.cost <= b.cost and better) or (a.cost < b.cost and a.quality == b.quality)

    slow = [p for p in cloud if not any(beats(other, p) for other in cloud)]
    found = pareto(cloud, higher_is_better=higher)
    assert sorted((p.cost, p.quality) for p in found) == sorted((p.cost, p.quality) for p in slow)
    assert [p.cost for p in found] == sorted(p.cost for p in found)


@pytest.mark.parametrize("log", [True, False])
def test_the_area_is_the_mean_of_the_staircase(log):
    cloud = [point(10, 0.2), point(20, 0.1), point(40, 0.6), point(160, 0.8)]
    grid = np.geomspace(10, 160, 40_001) if log else np.linspace(10, 160, 40_001)
    best = [max(p.quality for p in cloud if p.cost <= x) for x in grid[:-1]]
    assert area(cloud, log=log) == pytest.approx(np.mean(best), abs=1e-4)


def test_areas_over_a_given_range_are_comparable():
    cloud = [point(10, 0.2), point(40, 0.6)]
    assert area(cloud, lo=40, hi=400) == pytest.approx(0.6)
    assert area(cloud, lo=20, hi=30) == pytest.approx(0.2)
    assert area(cloud, lo=5, hi=40) is None
    assert area(cloud, lo=40, hi=40) is None
    assert area([]) is None
    assert area([point(0, 0.5), point(10, 1.0)], log=False) == pytest.approx(0.5)
    with pytest.raises(InputError, match="log=False"):
        area([point(0, 0.5), point(10, 1.0)])


def test_the_area_of_losses_prefers_low_ones():
    cloud = [point(10, 3.0), point(100, 2.0), point(1000, 5.0)]
    assert area(cloud, higher_is_better=False) == pytest.approx(2.5)


def test_reading_a_curve_interpolates_in_the_logarithm_and_never_beyond():
    curve = [point(100, 0.9), point(10, 0.1), point(1000, 0.8)]
    assert quality_at(curve, math.sqrt(1000)) == pytest.approx(0.5)
    assert quality_at(curve, 55, log=False) == pytest.approx(0.5)
    assert quality_at(curve, 10) == pytest.approx(0.1)
    assert quality_at(curve, 9.9) is None
    assert quality_at(curve, 1001) is None
    assert quality_at([], 10) is None
    assert cost_at(curve, 0.5) == pytest.approx(math.sqrt(1000))
    assert cost_at(curve, 0.1) == pytest.approx(10)
    assert cost_at(curve, 0.95) is None
    assert cost_at(curve, 0.05) is None  # cheaper than anything measured
    assert cost_at([point(10, 3.0), point(100, 1.0)], 2.0, higher_is_better=False) == (
        pytest.approx(math.sqrt(1000))
    )
    with pytest.raises(InputError, match="log=False"):
        cost_at([point(0, 0.1), point(5, 0.9)], 0.5)


@given(st.floats(0.11, 0.89))
def test_cost_and_quality_readings_invert_each_other(quality):
    curve = [point(10, 0.1), point(30, 0.4), point(200, 0.9)]
    assert quality_at(curve, cost_at(curve, quality)) == pytest.approx(quality)


# Paired comparison


def test_pairing_takes_shared_examples_at_equal_budgets_only():
    a = [record(i, 1.0, stack="a") for i in range(8)] + [record(1, 0.0, stack="a", tokens=8)]
    b = [record(i, 0.25, stack="b") for i in range(2, 12)]
    found = paired(a, b)
    assert (found.mean, found.n) == (0.75, 6)
    with pytest.raises(InputError, match="share no example at an equal budget"):
        paired(a, [record(0, 1.0, tokens=9)])
    assert paired(a[:1], [record(0, 1.0, tokens=9)], match_budget=False).n == 1


@settings(max_examples=25)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=12))
def test_the_paired_bootstrap_equals_a_loop(pairs):
    a = [record(i, x, stack="a") for i, (x, _) in enumerate(pairs)]
    b = [record(i, y, stack="b") for i, (_, y) in enumerate(pairs)]
    found = paired(a, b, bootstrap=50, seed=4)
    names = sorted(range(len(pairs)), key=lambda i: f"e{i}")
    gaps = [pairs[i][0] - pairs[i][1] for i in names]
    rng = np.random.default_rng(4)
    means = [np.mean([gaps[i] for i in rng.integers(0, len(gaps), len(gaps))]) for _ in range(50)]
    lo, hi = np.quantile(means, [0.025, 0.975])
    assert (found.mean, found.lo, found.hi) == pytest.approx((np.mean(gaps), lo, hi))
    mirrored = paired(b, a, bootstrap=50, seed=4)
    assert mirrored.mean == pytest.approx(-found.mean)
    assert mirrored.p == found.p


def test_a_method_is_not_separable_from_itself():
    rows = [record(i, i % 2) for i in range(20)]
    found = paired(rows, rows)
    assert (found.mean, found.lo, found.hi, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert not found.separable


def test_few_examples_are_never_separable_however_equal_their_differences():
    for n, separable in ((1, False), (3, False), (5, False), (6, True)):
        a = [record(i, 1.0, stack="a") for i in range(n)]
        b = [record(i, 0.0, stack="b") for i in range(n)]
        assert paired(a, b).separable is separable


def test_equal_methods_are_called_separable_about_as_rarely_as_promised():
    rng = np.random.default_rng(1)
    calls = 0
    for trial in range(150):
        noise = rng.normal(size=(2, 25))
        a = [record(i, x, stack="a") for i, x in enumerate(noise[0])]
        b = [record(i, x, stack="b") for i, x in enumerate(noise[1])]
        calls += paired(a, b, bootstrap=200, seed=trial).separable
    assert calls / 150 <= 0.10


def test_verdicts_name_the_best_the_tied_and_the_worse():
    rows = []
    for i in range(20):
        rows += [
            record(i, 0.9 + 0.002 * (i % 5), stack="strong"),
            record(i, 0.9 + 0.002 * ((i + 2) % 5), stack="rival"),
            record(i, 0.1 + 0.01 * (i % 3), stack="weak"),
            record(i, 0.5, stack="lonely", tokens=8),
        ]
    found = {key[1]: flag for key, flag in verdicts(rows).items()}
    assert found["weak"] == "worse"
    assert {found["strong"], found["rival"]} == {"highest", "not separable"}
    assert found["lonely"] == "alone"
    lower = {key[1]: flag for key, flag in verdicts(rows, higher_is_better=False).items()}
    assert lower["weak"] == "best"
    assert {lower["strong"], lower["rival"]} == {"worse"}
    per_task = {key[1]: flag for key, flag in verdicts(rows, higher_is_better={"t": False}).items()}
    assert per_task == lower


def test_methods_without_shared_examples_are_not_separable():
    rows = [record(0, 1.0, stack="a"), record(1, 0.0, stack="b")]
    assert sorted(verdicts(rows).values()) == ["highest", "not separable"]


def sweep(stack, costs, quality, examples=30):
    rng = np.random.default_rng(list(stack.encode()))
    return [
        record(i, quality(cost) + rng.normal(0, 0.02), stack=stack, tokens=budget, generated=cost)
        for budget, cost in zip((8, 16, 32), costs, strict=True)
        for i in range(examples)
    ]


def test_half_the_tokens_at_equal_quality_is_a_ratio_of_one_half():
    a = sweep("frugal", (10, 20, 40), lambda cost: 0.2 * math.log2(cost / 10) + 0.3)
    b = sweep("lavish", (20, 40, 80), lambda cost: 0.2 * math.log2(cost / 20) + 0.3)
    found = cost_ratio(a, b, 0.5, bootstrap=200)
    assert found.n == 30
    assert found.lo < found.ratio < found.hi
    assert found.ratio == pytest.approx(0.5, rel=0.08)
    assert found.undefined == 0
    beyond = cost_ratio(a, b, 0.99, bootstrap=50)
    assert (beyond.ratio, beyond.lo, beyond.undefined) == (None, None, 1.0)


def test_the_ratio_equals_a_loop_over_the_same_draws():
    a = sweep("aa", (10, 20, 40), lambda cost: 0.2 * math.log2(cost / 10) + 0.3, examples=9)
    b = sweep("b", (20, 40, 80), lambda cost: 0.2 * math.log2(cost / 20) + 0.28, examples=9)
    found = cost_ratio(a, b, 0.5, bootstrap=60, seed=2)
    names = sorted({r.example for r in a})
    rng = np.random.default_rng(2)
    ratios = []
    for _ in range(60):
        drawn = [names[i] for i in rng.integers(0, 9, 9)]
        costs = []
        for rows in (a, b):
            curve = []
            for budget in (8, 16, 32):
                mine = {r.example: r for r in rows if r.budget.tokens == budget}
                curve.append(
                    point(
                        np.mean([cost_of(mine[n].ledger, "generated") for n in drawn]),
                        np.mean([mine[n].quality for n in drawn]),
                    )
                )
            costs.append(cost_at(curve, 0.5))
        ratios.append(costs[0] / costs[1])
    assert (found.lo, found.hi) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])))


def test_a_ratio_needs_examples_that_every_point_shares():
    with pytest.raises(InputError, match="no example has a record at every budget"):
        cost_ratio([record(0, 1.0)], [record(1, 1.0)], 0.5)
    with pytest.raises(InputError, match="no example"):
        cost_ratio([], [record(1, 1.0)], 0.5)


# Pictures


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_picture_is_written_in_each_format(tmp_path, suffix):
    cloud = [
        point(10 * k, 0.1 * k, stack="a $x$ <b>", lo=0.1 * k - 0.05, hi=0.1 * k + 0.05)
        for k in (1, 2, 8)
    ] + [point(12, 0.3, stack="other")]
    path = plot(cloud, tmp_path / f"front.{suffix}", title="T", metric="accuracy")
    data = path.read_bytes()
    assert data.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    if suffix == "svg":
        text = data.decode()
        for words in ("a $x$ &lt;b&gt;", "other", "log scale", "accuracy"):
            assert words in text
        assert (
            plot(cloud, tmp_path / "again.svg", title="T", metric="accuracy").read_bytes() == data
        )


def test_many_curves_have_a_legend_with_the_best_first(tmp_path):
    few = [point(10 * k, 0.05 * k + 0.1, stack=f"method {k}") for k in range(1, 8)]
    many = [point(10 * k, 0.05 * k + 0.1, stack=f"method {k}") for k in range(1, 12)]
    assert 'id="legend' not in plot(few, tmp_path / "few.svg").read_text()
    text = plot(many, tmp_path / "many.svg").read_text()
    legend = text[text.index('id="legend') :]
    places = [legend.index(f"method {k}<") for k in range(11, 0, -1)]
    assert places == sorted(places)
    looks = {_look(index) for index in range(21)}
    assert len(looks) == 21  # colours come again, with another line and another marker
    assert _look(0)[0] == _look(7)[0]
    assert _look(0)[1:] != _look(7)[1:]
    assert _look(0)[2] != _look(7)[2]


def test_a_single_point_and_equal_costs_can_be_drawn(tmp_path):
    plot([point(5, 0.5)], tmp_path / "one.png")
    plot([point(0, 0.5), point(0, 0.6, stack="n")], tmp_path / "same.png")


@pytest.mark.parametrize(
    ("cloud", "name", "words"),
    [
        ([], "a.png", "no points"),
        ([point(1, 1)], "a.jpeg", "ends in .png"),
        ([point(1, 1), points([record(0, 1.0)], axis="all")[0]], "a.png", "several tasks or axes"),
    ],
)
def test_a_picture_that_makes_no_sense_is_refused(tmp_path, cloud, name, words):
    with pytest.raises(InputError, match=words):
        plot(cloud, tmp_path / name)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_labels_keep_their_distance_and_order(wanted):
    placed = spread(wanted, 5.0, 0.0, 100.0)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    assert all(placed[b] - placed[a] >= 5 - 1e-9 for a, b in itertools.pairwise(order))
    assert min(placed) >= -1e-9
    assert max(placed) <= 100 + 1e-9


@given(st.floats(1e-6, 1e9), st.floats(1.5, 1e6))
def test_log_ticks_are_round_and_inside(lo, factor):
    marks = log_ticks(lo, lo * factor)
    assert marks == sorted(set(marks))
    assert all(lo <= mark <= lo * factor for mark in marks)
    assert len(marks) <= 30


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_linear_ticks_are_few_and_inside(lo, width):
    marks = linear_ticks(lo, lo + width)
    assert 2 <= len(marks) <= 12
    assert all(lo - 1e-6 * width <= mark <= lo + width + 1e-6 * width for mark in marks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12, "12"),
        (999.99, "1k"),
        (3400, "3.4k"),
        (1.2345e12, "1.23T"),
        (0.0123, "0.0123"),
        (1e-7, "1.00e-07"),
    ],
)
def test_numbers_are_short(value, text):
    assert short(value) == text
