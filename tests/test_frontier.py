"""Records, points, fronts and paired comparisons."""

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
from outlay.frontier import (
    Point,
    Record,
    area,
    cost_at,
    cost_of,
    cost_ratio,
    paired,
    pareto,
    points,
    quality_at,
    verdicts,
)
from outlay.ledger import Ledger


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
