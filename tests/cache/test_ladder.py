"""The ladder on integers: what every pass keeps, against the description step by step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from outlay.cache.ladder import ORDERS, LadderPolicy
from outlay.errors import BudgetError, InputError, OutlayError


@st.composite
def ladders(draw, order=ORDERS):
    layers = draw(st.integers(2, 32))
    span = draw(st.integers(1, layers))
    overlap = draw(st.integers(0, span - 1))
    start, extra = draw(st.integers(0, 12)), draw(st.integers(0, 90))
    tail = draw(st.one_of(st.none(), st.integers(1, 20)))
    knobs = (span, overlap, start, tail, draw(st.sampled_from(order)), draw(st.booleans()))
    try:
        least = LadderPolicy(layers, 10_000, *knobs).least
    except InputError:
        assume(False)
    return LadderPolicy(layers, least + extra, *knobs)


growth = st.lists(st.sampled_from([1, 1, 1, 2, 7, 40, 300, 5000]), min_size=1, max_size=25)


@given(ladders(), growth)
def test_every_pass_keeps_the_ends_and_the_order_in_equal_layers_within_the_ceiling(policy, steps):
    rows, state = 0, policy.begin()
    for step in steps:
        rows += step
        kept_LN, state = policy.keep(rows, state)
        if kept_LN is None:
            assert rows <= policy.ceiling
            continue
        assert kept_LN.shape[0] == policy.layers
        assert (np.diff(kept_LN, axis=1) > 0).all()
        assert (kept_LN[:, : policy.start] == np.arange(policy.start)).all()
        assert (kept_LN[:, -policy.tail :] == np.arange(rows - policy.tail, rows)).all()
        rows = kept_LN.shape[1]
        assert policy.ceiling - policy.freed < rows <= policy.ceiling or steps.count(1) < len(steps)
        assert rows <= policy.ceiling


def described(policy: LadderPolicy, rows: int, cursor: int) -> tuple[list[list[int]], int, bool]:
    """One pass as the sheet tells it, with lists; whether no ladder reaches into the newest rows.

    Capacity has been passed before, so that C' is in force.
    """
    consumed, kept, freed = policy.consumed, policy.kept, policy.freed

    def offset(layer: int, rungs: int) -> int:
        if policy.ladder == "modulo":
            return layer % rungs
        return int(layer * rungs / policy.layers)

    def cut(lists: list[list[int]], at: int, ladders: int, stride: int) -> list[list[int]]:
        wide = consumed + (stride - 1) * (consumed - 1)
        result = []
        for layer, old in enumerate(lists):
            new = old[:at]
            rungs = freed + 1 if stride == 1 else wide - kept + 1
            for j in range(ladders):
                for k in range(kept):
                    new.append(old[at + offset(layer, rungs) + wide * j + stride * k])
            result.append(new + old[at + wide * ladders :])
        return result

    lists = [list(range(rows)) for _ in range(policy.layers)]
    excess = rows - policy.ceiling
    room = policy.ceiling - cursor - policy.tail
    cap = room // kept * freed
    if excess <= cap:
        ladders = -(-excess // freed)
        clear = cursor + ladders * consumed <= rows - policy.tail
        return cut(lists, cursor, ladders, 1) if clear else [], cursor + ladders * kept, clear
    lists = cut(lists, cursor, room // kept, 1)
    rest = excess - cap
    per = (policy.ceiling - policy.start - policy.tail) // kept * freed
    stride = -(-rest // per)
    wide = consumed + (stride - 1) * (consumed - 1)
    ladders = -(-rest // (wide - kept))
    clear = policy.start + ladders * wide <= len(lists[0]) - policy.tail
    clear &= stride == 1 or kept == 1  # else the published offsets name rows twice
    return (
        cut(lists, policy.start, ladders, stride) if clear else [],
        policy.start + ladders * kept,
        clear,
    )


@given(ladders(("modulo", "staircase")), growth)
def test_a_pass_is_the_described_one_wherever_that_leaves_the_newest_rows_alone(policy, steps):
    rows, state = 0, policy.begin()
    for step in steps:
        rows += step
        before, (kept_LN, state) = state, policy.keep(rows, state)
        if kept_LN is None:
            continue
        expected, cursor, clear = described(policy, rows, before[0])
        if clear:
            assert kept_LN.tolist() == expected
            assert state == (cursor, 1)
        rows = kept_LN.shape[1]


def test_most_passes_are_the_described_ones():
    agreed = passes = 0
    for span, overlap in ((15, 0), (15, 7), (8, 4), (8, 0)):
        policy = LadderPolicy(30, 128, span, overlap)
        rows, state = 0, policy.begin()
        for _ in range(3000):
            rows += 1
            before, (kept_LN, state) = state, policy.keep(rows, state)
            if kept_LN is not None:
                passes += 1
                agreed += described(policy, rows, before[0])[2]
                rows = kept_LN.shape[1]
    assert passes > 2000
    assert agreed > 0.97 * passes


@pytest.mark.parametrize(
    ("layers", "span", "overlap", "numbers"),
    [(32, 16, 0, (2, 1, 1)), (32, 8, 4, (7, 2, 5)), (30, 15, 7, (3, 2, 1)), (30, 8, 0, (4, 1, 3))],
)
def test_rows_consumed_kept_and_freed_are_the_papers(layers, span, overlap, numbers):
    policy = LadderPolicy(layers, 512, span, overlap)
    assert (policy.consumed, policy.kept, policy.freed) == numbers


def test_one_pass_by_hand():
    policy = LadderPolicy(2, 8, 1, start=1, protect_last=2, compensate=False)
    assert (policy.consumed, policy.kept, policy.freed) == (2, 1, 1)
    kept_LN, state = policy.keep(10, policy.begin())
    assert kept_LN.tolist() == [[0, 1, 3, 5, 6, 7, 8, 9], [0, 2, 4, 5, 6, 7, 8, 9]]
    assert state == (3, 1)


@given(ladders(), growth)
def test_layers_on_one_rung_hold_the_same_and_together_they_hold_more(policy, steps):
    rows, state, held = 0, policy.begin(), [list[int]() for _ in range(policy.layers)]
    seen = 0
    for step in steps:
        held = [each + list(range(seen, seen + step)) for each in held]
        rows, seen = rows + step, seen + step
        kept_LN, state = policy.keep(rows, state)
        if kept_LN is not None:
            held = [[each[i] for i in kept] for each, kept in zip(held, kept_LN, strict=True)]
            rows = kept_LN.shape[1]
    if policy.ladder == "modulo" and steps == [1] * len(steps):
        for layer in range(policy.layers):
            assert held[layer] == held[layer % (policy.freed + 1)]
    union = set().union(*map(set, held))
    assert all(len(each) == rows for each in held)
    if state[1] and rows < seen:
        assert len(union) > rows


def test_a_shuffled_ladder_deals_its_rungs_evenly_and_anew_but_always_alike():
    policy = LadderPolicy(30, 100, 8, start=4, ladder="shuffled")  # 4 rungs
    kept_LN, _ = policy.keep(160, policy.begin())
    again_LN, _ = policy.keep(160, policy.begin())
    assert (kept_LN == again_LN).all()
    ladders = 20
    rungs_LJ = kept_LN[:, 4 : 4 + ladders] - 4 - 4 * np.arange(ladders)
    for rungs_L in rungs_LJ.T:
        assert np.bincount(rungs_L, minlength=4).tolist() == [8, 8, 7, 7]
    assert len({tuple(row) for row in rungs_LJ.tolist()}) == 30


def test_the_union_of_layers_knows_every_token_that_one_ladder_consumed():
    policy = LadderPolicy(30, 100, 15, start=4)
    kept_LN, _ = policy.keep(140, policy.begin())
    assert set(kept_LN.ravel().tolist()) == set(range(140))
    assert kept_LN.shape[1] == 100


def test_old_tokens_are_kept_less_densely_than_recent_ones():
    for span, overlap in ((15, 0), (15, 7), (8, 4)):
        policy = LadderPolicy(30, 200, span, overlap)
        rows, seen, state = 0, 0, policy.begin()
        held_LN = np.empty((30, 0), dtype=int)
        for _ in range(3000):
            held_LN = np.concatenate([held_LN, np.full((30, 1), seen)], axis=1)
            rows, seen = rows + 1, seen + 1
            kept_LN, state = policy.keep(rows, state)
            if kept_LN is not None:
                held_LN = np.take_along_axis(held_LN, kept_LN, axis=1)
                rows = kept_LN.shape[1]
            if kept_LN is None or seen < 1000 or seen % 7:
                continue
            # A generation ends at the cursor: rows before it were cut once more than those after.
            gaps_LM = np.diff(held_LN[:, policy.start :], axis=1)
            cursor = state[0] - policy.start
            parts = [*np.array_split(gaps_LM[:, :cursor], 2, axis=1), gaps_LM[:, cursor:-30]]
            means = [part.mean() for part in parts if part.shape[1] > 20]
            assert means == sorted(means, reverse=True), (span, overlap, seen)
            assert gaps_LM[:, :-30].mean() > 1.5
            assert (gaps_LM[:, -29:] == 1).all()


@given(ladders(), st.integers(1, 200))
def test_no_row_is_dropped_before_the_cache_overflows(policy, rows):
    kept_LN, state = policy.keep(min(rows, policy.capacity), policy.begin())
    assert kept_LN is None
    assert state == policy.begin()
    assert policy.indices(3).tolist() == [[0, 1, 2]] * policy.layers


def test_the_average_length_is_the_capacity():
    policy = LadderPolicy(30, 128, 8, 4)
    rows, state, after = 0, policy.begin(), []
    for _ in range(4000):
        rows += 1
        kept_LN, state = policy.keep(rows, state)
        rows = rows if kept_LN is None else kept_LN.shape[1]
        after.append(rows)
    assert abs(np.mean(after[500:]) - 128) <= 1
    assert max(after) == policy.ceiling


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"span": 0}, "span=0"),
        ({"span": 31}, "more than the model's 30 layers"),
        ({"span": 2.0}, "span=2.0"),
        ({"overlap": -1}, "overlap=-1"),
        ({"overlap": 15}, "must be below span=15"),
        ({"capacity": True}, "capacity=True"),
        ({"capacity": 0}, "capacity=0"),
        ({"start": -1}, "start=-1"),
        ({"protect_last": 0}, "protect_last=0"),
        ({"layers": 0}, "layers=0"),
        ({"ladder": "spiral"}, "modulo, staircase or shuffled"),
        ({"span": 30}, "frees nothing"),
        ({"span": 20, "overlap": 10}, "frees nothing"),
    ],
)
def test_bad_sizes_are_refused_by_name(knobs, words):
    with pytest.raises(InputError, match=words):
        LadderPolicy(**{"layers": 30, "capacity": 128, "span": 15, **knobs})


@given(ladders())
def test_an_infeasible_capacity_names_the_least_one_which_is_feasible(policy):
    knobs = (policy.span, policy.overlap, policy.start, policy.protect_last)
    with pytest.raises(BudgetError, match=f"the least is {policy.least}"):
        LadderPolicy(policy.layers, policy.least - 1, *knobs)
    least = LadderPolicy(policy.layers, policy.least, *knobs)
    kept_LN, _ = least.keep(50 * policy.least, least.begin())
    assert kept_LN is not None
    assert kept_LN.shape[1] <= least.ceiling


def test_thirty_layers_in_32_rows_are_refused():
    with pytest.raises(OutlayError, match="capacity=32"):
        LadderPolicy(30, 32, 15)
    assert LadderPolicy(30, 32, 15, protect_last=8).least <= 32
