"""Schedules count as published, cost what FlopCounterMode counts, and are found without labels."""

from __future__ import annotations

import importlib.util
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.vision.tiny_vits import clip, deit, pictures, vit
from torch.utils.flop_counter import FlopCounterMode

from outlay.errors import CapabilityError, DependencyError, InputError
from outlay.vision.zero_tprune import PRESETS, PatchRanking, Stage, ZeroTPrune, search_schedule
from outlay.vision.zero_tprune.cost import Shape, blocks_macs, macs, overhead
from outlay.vision.zero_tprune.schedule import as_stages, counts, stages_for
from outlay.vision.zero_tprune.search import agreement, predictions, scaled

DEIT_S = Shape(384, 1536, 6, 12, 196, 1, 16, 3, 1000)


# -- counts ---------------------------------------------------------------------------------------


def test_deit_s_at_3_g_counts_as_published() -> None:
    stages = PRESETS["deit_s_3g"]
    seen = counts(stages, 196, 12)
    assert seen == (196, 186, 186, 158, 158, 158, 118, 118, 118, 75, 75, 65)
    blocks = blocks_macs(DEIT_S, seen) - DEIT_S.ends
    assert blocks / 1e9 == pytest.approx(3.06, abs=0.01)  # 3.08 G reported
    whole = blocks_macs(DEIT_S, [196] * 12) - DEIT_S.ends
    assert whole / 1e9 == pytest.approx(4.55, abs=0.01)


def test_the_layers_of_deit_s_cost_a_fiftieth_of_what_runs() -> None:
    assert overhead(DEIT_S, ZeroTPrune()) / macs(DEIT_S, ZeroTPrune()) < 0.025


@given(st.integers(4, 300), st.floats(0.05, 1.0), st.integers(0, 40))
def test_a_stage_keeps_the_floor_of_what_the_similarity_leaves(patches, rate, r) -> None:
    stage = Stage(1, rate, r)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gone = stage.similar(patches)
        assert gone < patches / 2
        try:
            left = stage.left(patches)
        except InputError:
            assert rate * (patches - gone) < 1
            return
        assert left == int(rate * (patches - gone) + 1e-9)


def test_counts_chain_over_the_schedule_as_the_model_runs_them() -> None:
    stages = as_stages([(1, 0.9, 2, 1), (2, 0.7, 1, 1), (3, 0.5, 0, 1)])
    tower = vit()
    with ZeroTPrune(schedule=stages)(tower) as kept, torch.no_grad():
        tower(pixel_values=pictures())
    assert tuple(kept.seen()) == counts(stages, 16, 4) == (16, 12, 7, 3)


def test_too_many_copies_are_clamped_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="r=50 after block 2 is not below half of 16"):
        assert Stage(2, 1.0, 50).left(16) == 16 - 7


def test_a_schedule_may_be_switched_without_touching_the_model() -> None:
    tower = vit()
    for rate, left in ((0.75, 12), (0.5, 8), (0.25, 4)):
        with ZeroTPrune(schedule=[(2, rate)])(tower) as kept, torch.no_grad():
            tower(pixel_values=pictures())
        assert kept.seen()[-1] == left


def test_places_may_be_counted_from_the_end() -> None:
    tower, images = vit(), pictures()
    found = []
    for rows in ([(1, 0.75), (3, 0.5, 2)], [(1, 0.75), (-1, 0.5, 2)], [(-3, 0.75), (-1, 0.5, 2)]):
        method = ZeroTPrune(schedule=rows, vhf=(0.01, 5.0))
        with method(tower) as kept, torch.no_grad():
            tower(pixel_values=images)
        found.append((kept.indices.tolist(), kept.seen(), macs(Shape.of(tower), method)))
    assert found[0] == found[1] == found[2]
    for rows in ([(3, 0.5), (-1, 0.5)], [(-1, 0.5), (-2, 0.5)], [(-4, 0.5)]):
        with pytest.raises(InputError, match=r"blocks must rise|last place"):
            ZeroTPrune(schedule=rows)(tower)


def test_the_preset_for_towers_keeps_a_quarter_or_what_a_budget_says() -> None:
    for method, left in (
        (ZeroTPrune(preset="last"), 4),
        (ZeroTPrune(preset="last").within(6, 16, 4), 6),
    ):
        assert method.bounds(method.stages[0]) is None
        for tower in (vit(), clip()):
            with method(tower) as kept, torch.no_grad():
                tower(pixel_values=pictures())
            assert kept.seen() == [16, 16, 16, left]


@given(st.integers(1, 64), st.sampled_from([((1, 0.5), (3, 0.5)), ((1, 0.8, 8, 2), (2, 0.9))]))
def test_a_schedule_scales_to_any_number_of_patches(left, rows) -> None:
    stages = stages_for(as_stages(rows), left, 64)
    assert counts(stages, 64, 5)[-1] == left
    assert ZeroTPrune(schedule=rows).within(left, 64, 4).stages[-1].block <= 3


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ([(1, 0.0)], "rate=0.0"),
        ([(1, 1.5)], "rate=1.5"),
        ([(1, float("nan"))], "rate=nan"),
        ([(0, 0.5)], "block=0"),
        ([(1.5, 0.5)], "block=1.5"),
        ([(3, 0.5), (1, 0.5)], "blocks must rise"),
        ([(1, 0.5), (1, 0.5)], "blocks must rise"),
        ([(1, 0.5, -1)], "r=-1"),
        ([(1, 0.5, 0, 0)], "T"),
        ([(1,)], "no|need"),
        ([(1, 0.5)] * 2000, "at most"),
    ],
    ids=str,
)
def test_bad_schedules_are_refused(schedule, words) -> None:
    with pytest.raises(InputError, match=words):
        ZeroTPrune(schedule=schedule)


def test_a_schedule_that_leaves_no_patch_is_refused() -> None:
    tower = vit()
    with (
        ZeroTPrune(schedule=[(1, 0.3), (2, 0.1)])(tower),
        pytest.raises(InputError, match="no patch of 4 is left after block 2"),
    ):
        tower(pixel_values=pictures())
    with pytest.raises(InputError, match="nothing goes"):
        stages_for([Stage(1)], 4, 16)
    with pytest.raises(InputError, match="17 patches of 16"):
        stages_for([Stage(1, 0.5)], 17, 16)


# -- cost -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        None,
        ZeroTPrune(schedule=[(1, 0.8, 2, 5), (3, 0.5, 0, 2)]),
        ZeroTPrune(schedule=[(1, 0.8, 2, 5), (2, 0.7, 2, 1)], order="i-s"),
        ZeroTPrune(schedule=[(1, 0.8, 2, 5)], order="s-i", key_reduce="mean"),
        ZeroTPrune(schedule=[(1, 0.8, 2, 5)], s_partition="full", s_feature="x"),
        ZeroTPrune(schedule=[(1, 0.8, 2, 5), (3, 0.5, 0, 2)], protect=(3, 4, 5, 6)),
        ZeroTPrune(schedule=[(1, 0.8, 2, 5)], order="i-s", protect=(3, 4)),
        PatchRanking([(2, 0.5), (3, 0.5)], "column"),
        PatchRanking([(2, 0.5), (3, 0.5)], "cls"),
        PatchRanking([(2, 0.5), (3, 0.5)], "random"),
    ],
    ids=[
        "none",
        "i-s-i",
        "i-s",
        "s-i",
        "full",
        "fixed",
        "fixed i-s",
        "column",
        "cls",
        "random",
    ],
)
def test_the_ledger_is_what_flop_counter_mode_counts(method) -> None:
    for tower in (vit(attention="eager"), deit()):
        tower.set_attn_implementation("eager")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            if method is None:
                tower(pixel_values=pictures(1))
            else:
                with method(tower):
                    tower(pixel_values=pictures(1))
        assert counter.get_total_flops() == 2 * macs(Shape.of(tower), method)


def test_overhead_is_the_difference_between_layers_and_a_free_ranking() -> None:
    shape, rows = Shape.of(vit()), [(1, 0.8, 2, 5), (3, 0.5, 0, 2)]
    method = ZeroTPrune(schedule=rows)
    free = PatchRanking(rows, "random")
    assert macs(shape, method) - macs(shape, free) == overhead(shape, method) > 0


def test_towers_without_a_closed_form_are_refused() -> None:
    tower = vit()
    tower.vit.config.image_size = (32, 32)
    with pytest.raises(CapabilityError, match="closed form"):
        Shape.of(tower)
    with pytest.raises(InputError, match="3 counts for 12 blocks"):
        blocks_macs(DEIT_S, [1, 2, 3])
    assert Shape.of(clip()).classes == 0


# -- search ---------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0.1, 1.0), min_size=11, max_size=11),
    st.sampled_from([0.4, 0.6, 0.8]),
    st.sampled_from([0.0, 0.25, 0.5]),
)
def test_a_scaled_schedule_meets_its_budget_and_barely(weights, budget, share) -> None:
    plan = [(share, 2)] * 11
    method = scaled(DEIT_S, ZeroTPrune(), weights, plan, budget)
    cost = macs(DEIT_S, method) / macs(DEIT_S)
    assert budget - 0.03 < cost <= budget
    assert counts(method.stages, 196, 12)[-1] >= 1


def test_search_stays_within_the_budget_and_returns_its_best() -> None:
    tower, images = vit(seed=1), pictures(24, seed=3)
    seen = []
    found = search_schedule(tower, images, budget=0.7, trials=8, seed=2, report=seen.append)
    assert tuple(seen) == found.trials
    assert all(trial.macs <= 0.7 for trial in found.trials)
    assert found.best.agreement == max(trial.agreement for trial in found.trials)
    assert found.method.stages == found.best.stages
    wanted = predictions(tower, images)
    assert agreement(found.method, tower, images, wanted) == found.best.agreement
    again = search_schedule(tower, images, budget=0.7, trials=8, seed=2)
    assert again.trials == found.trials


def test_search_uses_the_blocks_that_it_may_use() -> None:
    found = search_schedule(
        vit(), pictures(4), budget=0.8, trials=5, blocks=(2, 3), method=ZeroTPrune(head_agg="mean")
    )
    assert {stage.block for trial in found.trials for stage in trial.stages} <= {2, 3}
    assert found.method.head_agg == "mean"


def test_tpe_searches_too_or_says_what_is_missing() -> None:
    def search():
        return search_schedule(vit(), pictures(4), budget=0.7, trials=6, sampler="tpe", seed=1)

    if importlib.util.find_spec("optuna") is None:
        with pytest.raises(DependencyError, match="optuna"):
            search()
    else:
        assert search().trials == search().trials


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"budget": 0.0}, "budget"),
        ({"budget": 1.0}, "budget"),
        ({"trials": 0}, "trials"),
        ({"sampler": "grid"}, "sampler"),
        ({"blocks": (4,)}, "blocks"),
        ({"batch": 0}, "batch"),
        ({"budget": 0.3, "blocks": (3,)}, "no schedule"),
    ],
    ids=str,
)
def test_bad_searches_are_refused(knobs, words) -> None:
    with pytest.raises(InputError, match=words):
        search_schedule(vit(), pictures(2), **{"budget": 0.6, "trials": 2, **knobs})


def test_models_without_logits_and_no_images_are_refused() -> None:
    with pytest.raises(CapabilityError, match="no logits"):
        predictions(clip(), pictures(2))
    with pytest.raises(InputError, match="0 calibration images"):
        predictions(vit(), pictures(2)[:0])
