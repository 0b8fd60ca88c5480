"""QuoTA: frames that are sampled, weights, quotas and grids."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.budget import Budget
from outlay.errors import BudgetError, InputError
from outlay.vision.quota import QuoTA, frame_count, sample
from outlay.vision.quota.allocation import Allocation, grid, quotas, weights

SCORES = st.lists(st.integers(1, 64).map(lambda k: k / 64), min_size=1, max_size=12)
WEIGHTS = st.lists(st.integers(0, 20), min_size=1, max_size=7).filter(any)


def levelled(weights: list[int], total: int, room: int) -> list[Fraction]:
    """Water-filling as it would be poured: all open frames rise until the next one is full."""
    held = [Fraction(0)] * len(weights)
    left = Fraction(min(total, room * len(weights)))
    while left > 0:
        open_ = [i for i, w in enumerate(weights) if w and held[i] < room]
        rates = {i: Fraction(weights[i]) for i in open_}
        if not open_:  # frames without weight come last, all alike
            open_ = [i for i, w in enumerate(weights) if not w and held[i] < room]
            rates = dict.fromkeys(open_, Fraction(1))
        whole = sum(rates.values())
        step = min(left / whole, *((room - held[i]) / rates[i] for i in open_))
        for i in open_:
            held[i] += step * rates[i]
        left -= step * whole
    return held


@given(WEIGHTS, st.integers(1, 60), st.integers(1, 12))
def test_water_filling_equals_pouring_rounded_as_closely_as_whole_tokens_allow(
    weights: list[int], total: int, room: int
) -> None:
    ideal = levelled(weights, total, room)
    found = quotas(np.array(weights, float), total, capacity=room)
    assert sum(found) == sum(ideal)
    ends = [{math.floor(x), math.ceil(x)} for x in ideal]
    assert all(n in end for n, end in zip(found, ends, strict=True))
    rounded = [ns for ns in itertools.product(*ends) if sum(ns) == sum(ideal)]
    off = [sum(abs(n - x) for n, x in zip(ns, ideal, strict=True)) for ns in (found, *rounded)]
    assert float(off[0]) == pytest.approx(float(min(off)), abs=1e-9)


@given(SCORES, st.integers(1, 500), st.sampled_from([None, 1, 4, 36]), st.integers(0, 2))
def test_the_budget_is_spent_to_the_last_token_or_to_the_last_place(
    scores: list[float], n_t: int, room: int | None, least: int
) -> None:
    if least * len(scores) > n_t or (room is not None and least > room):
        return
    found = quotas(weights(scores), n_t, capacity=room, min_tokens=least)
    places = math.inf if room is None else room * len(scores)
    assert sum(found) == min(n_t, places)
    assert min(found) >= least
    assert room is None or max(found) <= room


@given(
    SCORES,
    st.integers(1, 500),
    st.sampled_from([None, 1, 4, 36]),
    st.sampled_from(["water", "sweep"]),
)
def test_floors_never_exceed_the_budget_and_lose_less_than_a_token_a_frame(
    scores: list[float], n_t: int, room: int | None, spill: str
) -> None:
    found = quotas(weights(scores), n_t, capacity=room, rounding="floor", spill=spill)  # type: ignore[arg-type]
    assert sum(found) <= n_t
    assert room is None or max(found) <= room
    if room is None:
        assert sum(found) > n_t - len(scores)


@pytest.mark.parametrize("rounding", ["largest", "floor"])
def test_uncapped_floors_are_the_papers_formula(rounding: str) -> None:
    scores, n_t = [0.9, 0.2, 0.05, 0.4], 12_544
    share = (100 * np.array(scores)) ** 2
    share = share / share.sum()
    found = quotas(weights(scores), n_t, rounding=rounding)  # type: ignore[arg-type]
    papers = np.floor(n_t * share).astype(int)
    assert np.abs(np.array(found) - papers).max() <= (1 if rounding == "largest" else 0)


def test_the_single_sweep_is_the_releases_and_leaves_budget_unspent() -> None:
    # By hand: shares .8 .1 .06 .04 of 1000 under a cap of .2: .2 .1 .06 .04, sum .4, excess .6.
    # Frame 1 wants .1 + .1/.4*.6 = .25, gets .2; excess .65. Frame 2: .06 + .15*.65 = .1575.
    # Frame 3: .04 + .1*.65 = .105.
    shares = np.array([0.8, 0.1, 0.06, 0.04])
    assert quotas(shares, 1000, capacity=200, spill="sweep") == (200, 200, 157, 105)
    assert quotas(shares, 1000, capacity=200) == (200, 200, 200, 200)
    # It depends on the order of the frames: from the other end, .04 + .1*.6 and .06 + .15*.6.
    backwards = quotas(shares[::-1].copy(), 1000, capacity=200, spill="sweep")
    assert backwards == (100, 150, 200, 200)


@given(SCORES, st.integers(1, 400), st.randoms(use_true_random=False), st.sampled_from([None, 9]))
def test_permuting_frames_permutes_the_assignment(
    scores: list[float], n_t: int, random: object, room: int | None
) -> None:
    order = list(range(len(scores)))
    random.shuffle(order)  # type: ignore[attr-defined]
    found = quotas(weights(scores), n_t, capacity=room)
    moved = quotas(weights([scores[i] for i in order]), n_t, capacity=room)
    # Frames with the same score may change places with each other, and no others.
    assert sorted(zip(scores, found, strict=True)) == sorted(
        zip([scores[i] for i in order], moved, strict=True)
    )


@given(SCORES, st.integers(1, 400), st.floats(0.01, 1.0))
def test_scaling_all_scores_changes_nothing(scores: list[float], n_t: int, factor: float) -> None:
    scaled = [factor * score for score in scores]
    assert quotas(weights(scaled), n_t) == quotas(weights(scores), n_t)


@given(st.floats(0, 1), st.integers(1, 12), st.integers(1, 600))
@pytest.mark.filterwarnings("ignore:every frame has the score 0")
def test_equal_scores_give_equal_grids(score: float, frames: int, n_t: int) -> None:
    plan = QuoTA(n_t=n_t).allocate([score] * frames)
    assert max(plan.quotas) - min(plan.quotas) <= 1
    sides = np.array(plan.grids)
    assert (sides.max(0) - sides.min(0) <= 1).all()


@given(SCORES, st.integers(1, 600))
def test_sharpness_zero_is_the_even_split(scores: list[float], n_t: int) -> None:
    flat = QuoTA(n_t=n_t, sharpness=0.0).allocate(scores)
    even = QuoTA(n_t=n_t).allocate([0.5] * len(scores))
    assert flat.grids == even.grids


@given(SCORES, st.integers(1, 300), st.sampled_from([1.0, 2.0, 4.0]))
def test_a_higher_score_never_gets_fewer_tokens(
    scores: list[float], n_t: int, sharpness: float
) -> None:
    found = quotas(weights(scores, sharpness=sharpness), n_t, capacity=36)
    ranked = sorted(zip(scores, found, strict=True))
    assert all(a[1] <= b[1] for a, b in itertools.pairwise(ranked) if a[0] < b[0])


def test_the_least_score_that_counts_makes_noise_even() -> None:
    noise = [1e-9, 3e-8, 2e-9]
    assert quotas(weights(noise), 30) == (10, 10, 10)
    assert quotas(weights(noise, eps=0.0), 30)[1] > 28


def test_all_scores_zero_warn_and_give_an_even_split() -> None:
    with pytest.warns(UserWarning, match="every frame has the score 0"):
        plan = QuoTA(n_t=20).allocate([0.0] * 5)
    assert plan.quotas == (4,) * 5


def test_frames_without_weight_get_what_no_other_can_hold() -> None:
    assert quotas(np.array([1.0, 0.0, 0.0]), 8, capacity=4) == (4, 2, 2)
    assert quotas(np.array([1.0, 0.0, 0.0]), 3, capacity=4) == (3, 0, 0)


@given(st.integers(0, 5000))
def test_a_grid_is_a_square_and_one_line_more_where_it_fits(tokens: int) -> None:
    h, w = grid(tokens)
    assert h * w <= tokens
    assert h - w in (0, 1)
    if tokens:
        assert (h + 1) * w > tokens or h == w + 1
        assert h * (w + 1) > tokens


@given(st.integers(0, 100), st.integers(1, 9), st.integers(1, 9))
def test_a_grid_within_a_map_keeps_to_its_sides_and_fills_it_whole(
    tokens: int, H: int, W: int
) -> None:
    h, w = grid(min(tokens, H * W), (H, W))
    assert h <= H
    assert w <= W
    assert h * w <= tokens
    assert grid(H * W, (H, W)) == (H, W)


@given(SCORES, st.integers(1, 300), st.sampled_from(["bilinear", "avgpool", "linspace", "merge"]))
def test_no_frame_exceeds_its_map_in_capped_mode(
    scores: list[float], n_t: int, assigner: str
) -> None:
    quota = QuoTA(n_t=n_t, cap_upsample=True, assigner=assigner)  # type: ignore[arg-type]
    plan = quota.allocate(scores, native=(4, 4))
    assert max(plan.counts) <= 16
    assert plan.tokens <= n_t
    if assigner in ("linspace", "merge"):  # no grid, so nothing is lost to its shape
        assert plan.tokens == min(n_t, 16 * len(scores))


def test_peaky_scores_grow_one_frame_beyond_its_map_unless_capped() -> None:
    scores = [0.99] + [0.001] * 15
    assert QuoTA(n_t=256).allocate(scores).counts[0] > 16
    capped = QuoTA(n_t=256, cap_upsample=True).allocate(scores, native=(4, 4))
    assert capped.counts == (16,) * 16  # the budget holds every map


def test_newlines_are_counted_beside_the_papers_tokens() -> None:
    plan = Allocation((6, 0, 4), ((3, 2), (0, 0), (2, 2)), "grid")
    assert (plan.tokens, plan.newlines, plan.total, plan.kept) == (10, 5, 15, (0, 2))
    assert Allocation(plan.quotas, plan.grids, "one_token").total == 11
    assert Allocation(plan.quotas, plan.grids).total == 10
    assert Allocation((0,), ((0, 0),), "one_token").total == 0


def test_a_budget_of_the_prompt_replaces_n_t() -> None:
    plan = QuoTA().allocate([0.5, 0.5], Budget(tokens=18, counts="prompt"))
    assert plan.counts == (9, 9)
    with pytest.raises(BudgetError, match="counts='prompt'"):
        QuoTA().allocate([0.5], Budget(tokens=18))
    with pytest.raises(BudgetError, match="counts='prompt'"):
        QuoTA().allocate([0.5], Budget(seconds=1.0))


@pytest.mark.parametrize("bad", [math.nan, -0.1, math.inf])
def test_a_bad_score_names_its_frame(bad: float) -> None:
    with pytest.raises(InputError, match="frame 2 has the score"):
        QuoTA(n_t=9).allocate([0.1, 0.2, bad])


@pytest.mark.parametrize("scores", [[], [[0.1]], ["a"]])
def test_scores_that_are_no_row_of_numbers_are_refused(scores: list[object]) -> None:
    with pytest.raises(InputError, match="scores"):
        QuoTA(n_t=9).allocate(scores)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"n_t": 0}, "n_t=0"),
        ({"n_t": 1.5}, "n_t=1.5"),
        ({"n_t": True}, "n_t=True"),
        ({"t_base": 0}, "t_base=0"),
        ({"alpha": -1}, "alpha=-1"),
        ({"sharpness": -1.0}, "sharpness"),
        ({"sharpness": math.nan}, "sharpness"),
        ({"assigner": "nearest"}, "assigner='nearest'"),
        ({"decouple": "noun"}, "decouple='noun'"),
        ({"rounding": "up"}, "rounding='up'"),
        ({"spill": "over"}, "spill='over'"),
        ({"newline": "two"}, "newline='two'"),
        ({"newline": "grid", "assigner": "merge"}, "newline='grid'"),
        ({"min_tokens": -1}, "min_tokens=-1"),
        ({"score_batch": 0}, "score_batch=0"),
        ({"max_score_pixels": 0}, "max_score_pixels=0"),
        ({"eps": 2.0}, "eps=2.0"),
        ({"frame_scorer": 3}, "frame_scorer=3"),
        ({"ask": "who"}, "ask='who'"),
    ],
)
def test_a_knob_out_of_range_is_named(knobs: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        QuoTA(**knobs)  # type: ignore[arg-type]


def test_minimum_tokens_that_do_not_fit_are_refused_with_the_numbers() -> None:
    with pytest.raises(BudgetError, match=r"min_tokens=4 for 3 frames need 12 .* n_t=10"):
        QuoTA(n_t=10, min_tokens=4).allocate([0.1, 0.2, 0.3])
    with pytest.raises(InputError, match="more than the 4 tokens that a frame holds"):
        QuoTA(n_t=100, min_tokens=5, cap_upsample=True).allocate([0.1], native=(2, 2))


def test_capped_frames_need_the_size_of_their_map() -> None:
    with pytest.raises(InputError, match="native="):
        QuoTA(assigner="merge").allocate([0.1])
    with pytest.raises(InputError, match="native=0"):
        QuoTA(cap_upsample=True).allocate([0.1], native=(0, 4))


def test_weights_that_are_all_zero_are_refused() -> None:
    with pytest.raises(InputError, match="all weights are 0"):
        quotas(np.zeros(3), 9)


def test_longer_videos_get_more_frames() -> None:
    assert frame_count(0) == 96
    assert frame_count(3599) == 96 + 63
    assert frame_count(7200, t_base=128, alpha=96) == 128 + 192  # an hour is no limit


@given(st.integers(1, 400), st.integers(1, 60), st.floats(0.1, 60))
def test_sampled_frames_are_even_in_time_and_none_comes_twice(
    frames: int, t_base: int, fps: float
) -> None:
    found = sample(frames, fps=fps, t_base=t_base, alpha=0)
    assert len(found.index) == len(set(found.index)) == min(frames, t_base)
    assert found.index[0] == 0
    assert found.index[-1] == (frames - 1 if len(found.index) > 1 else 0)
    gaps = np.diff(found.index)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1
    assert found.seconds == tuple(at / fps for at in found.index)


def test_a_short_clip_repeats_no_frame() -> None:
    assert sample(5).index == (0, 1, 2, 3, 4)


def test_only_frames_that_are_seen_are_spoken_of() -> None:
    found = sample(4, fps=2.0)
    said = found.described([1, 3])
    assert "2.00 seconds" in said
    assert "2 of its frames" in said
    assert "0.50 s, 1.50 s" in said
    assert "1.00 s" not in said
    assert "4 of its frames" in found.described()
    with pytest.raises(InputError, match="frame 4"):
        found.described([4])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: sample(0), "frames=0"),
        (lambda: sample(5, fps=0.0), "fps=0.0"),
        (lambda: sample(5, t_base=0), "t_base=0"),
        (lambda: frame_count(math.nan), "nan seconds"),
        (lambda: frame_count(-1.0), "-1.0 seconds"),
        (lambda: frame_count(3600.0 * 10_000), "more than 100000"),
    ],
)
def test_videos_that_cannot_be_sampled_are_refused(call: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        call()  # type: ignore[operator]


def test_knobs_and_allocation_need_no_torch() -> None:
    code = (
        "import sys; from outlay.vision.quota import QuoTA; QuoTA(n_t=9).allocate([0.1, 0.2]);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
