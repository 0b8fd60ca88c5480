"""HiRED's two phases on given attention: budgets add up, padding is no waste, the paper's masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.vision.hired_inputs import GRID, PATCHES, PINPOINTS, SIDE, SIZES, shape_of, slow_masks

from outlay.errors import InputError
from outlay.vision.hired import HiRED
from outlay.vision.hired.allocation import content, quotas, regions
from outlay.vision.hired.layout import Layout, single, tiled
from outlay.vision.hired.reading import Looked

HEADS = 4
SHAPES = st.sampled_from([*SIZES, (32, 64), (64, 32), (10, 64), (64, 9), (100, 101)])


def layout_of(size: tuple[int, int]) -> Layout:
    return tiled(size, PINPOINTS, SIDE, GRID)


def rows_of(layout: Layout, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention rows as a class token has them: (H, N) of the initial layer, (P, H, N)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(layout.tiles + 2, HEADS, layout.patches + 1, generator=generator)
    rows = logits.softmax(-1)[..., 1:]
    return rows[0], rows[1:]


def looked_of(layout: Layout, seed: int = 0) -> Looked:
    initial, final = rows_of(layout, seed)
    return Looked(layout, initial.sum(-2), final.sum(-2))


def plan_of(method: HiRED, size: tuple[int, int], seed: int = 0):
    looked = looked_of(layout_of(size), seed)
    return method.plan(looked, method.budget(looked.layout))


# -- the paper's and the released code's masks --------------------------------------------------


@given(
    st.sampled_from([(64, 64), (32, 64), (64, 32)]),
    st.sampled_from([0.05, 0.1, 0.2, 0.37, 0.5, 0.8, 1.0]),
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    st.integers(0, 50),
    st.sampled_from(["official", "paper"]),
)
def test_compat_masks_equal_a_slow_reference_bit_for_bit(size, rate, alpha, seed, compat):
    layout = layout_of(size)
    initial, final = rows_of(layout, seed)
    # Whole numbers, so that the order of a sum cannot matter; many ties.
    initial, final = (torch.round(part * 200) for part in (initial, final))
    method = HiRED(rate=rate, alpha=alpha, compat=compat, return_masks=True)
    looked = Looked(layout, initial.sum(-2), final.sum(-2))
    plan = method.plan(looked, method.budget(layout))
    wanted = slow_masks(initial.tolist(), final.tolist(), rate, alpha, shape_of(size), how=compat)
    assert np.array_equal(plan.mask_Pgg.reshape(wanted.shape), wanted)


@pytest.mark.parametrize("compat", ["official", "paper"])
def test_with_padding_compat_keeps_the_visible_part_of_the_slow_masks(compat):
    for seed in range(10):
        layout = layout_of((40, 64))
        initial, final = rows_of(layout, seed)
        method = HiRED(rate=0.3, compat=compat, return_masks=True)
        looked = Looked(layout, initial.sum(-2), final.sum(-2))
        plan = method.plan(looked, method.budget(layout))
        masks = slow_masks(initial.tolist(), final.tolist(), 0.3, 0.5, (2, 2), how=compat)
        visible = np.zeros(masks.size, bool)
        visible[layout.place_K[~layout.newline_K]] = True
        assert np.array_equal(plan.mask_Pgg.ravel(), masks.ravel() & visible)
        assert plan.tokens == (masks.ravel() & visible).sum()


def test_official_chunks_cannot_tell_left_from_right():
    layout = layout_of((64, 64))
    map_N = np.zeros((GRID, GRID))
    map_N[:, : GRID // 2] = 1  # everything is on the left
    flat = map_N.ravel()
    assert content(flat, layout, "mass", "chunks", 0).tolist() == [2, 2, 2, 2]
    assert content(flat, layout, "mass", "uniform", 0).tolist() == [4, 0, 4, 0]


def test_official_topcount_hangs_on_alpha():
    layout = layout_of((64, 64))
    looked = looked_of(layout)
    counted = {
        alpha: HiRED(compat="official", alpha=alpha).plan(looked, 16).content
        for alpha in (0.0, 0.5, 1.0)
    }
    assert counted[0.0] == (4, 4, 4, 4)  # all are counted: an even split
    assert sum(counted[0.5]) == PATCHES / 2
    assert sum(counted[1.0]) == 0
    fixed = HiRED(content_score="topcount", topcount_k=5).plan(looked, 16)
    assert sum(fixed.content) == pytest.approx(5)


def test_paper_mode_loses_tokens_to_padding_and_the_default_does_not():
    size = (33, 100)
    lost = []
    for seed in range(20):
        paper = plan_of(HiRED(rate=0.4, compat="paper"), size, seed)
        lost.append(1 - paper.tokens / paper.budget)
        ours = plan_of(HiRED(rate=0.4), size, seed)
        assert ours.tokens == ours.budget
    assert np.mean(lost) > 0.1


# -- budgets ------------------------------------------------------------------------------------

METHODS = st.builds(
    HiRED,
    rate=st.floats(0.03, 1.0),
    alpha=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    content_score=st.sampled_from(["mass", "topcount", "even"]),
    region_map=st.sampled_from(["exact", "uniform"]),
    rounding=st.sampled_from(["largest_remainder", "floor"]),
    respect_unpad=st.booleans(),
    newline=st.sampled_from(["none", "keep_nonempty"]),
)


@given(METHODS, SHAPES, st.integers(0, 20))
def test_never_more_tokens_than_the_budget(method, size, seed):
    plan = plan_of(method, size, seed)
    assert plan.tokens <= plan.budget


@given(
    st.integers(1, 120),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    st.sampled_from(["none", "keep_nonempty", "keep_all"]),
    SHAPES,
    st.integers(0, 20),
)
def test_the_default_spends_exactly_what_there_is(budget, alpha, newline, size, seed):
    method = HiRED(alpha=alpha, newline=newline)
    looked = looked_of(layout_of(size), seed)
    layout = looked.layout
    if newline == "keep_all" and budget <= layout.newlines:
        with pytest.raises(InputError, match="keep_all"):
            method.plan(looked, budget)
        return
    room = layout.tokens - (layout.newlines if newline == "none" else 0)
    assert method.plan(looked, budget).tokens == min(budget, room)


@given(st.integers(2, 120), SHAPES, st.integers(0, 20))
def test_newlines_stay_where_their_row_keeps_a_token(budget, size, seed):
    layout = layout_of(size)
    keep = HiRED().plan(looked_of(layout, seed), budget).keep_K
    for line in range(layout.mosaic[0]):
        own = layout.line_K == line
        assert keep[own & ~layout.newline_K].any() == keep[own & layout.newline_K].all()


def test_a_budget_of_one_is_a_patch_without_newline():
    plan = HiRED(alpha=0.0).plan(looked_of(layout_of((64, 64))), 1)
    assert plan.tokens == sum(plan.quota) == 1
    assert plan.quota[0] == 0


def test_the_last_token_of_a_budget_never_costs_two():
    """One left over and all open rows full: a token makes room for a new row and its newline."""
    looked = looked_of(layout_of((32, 64)), 3)
    for budget in range(2, looked.layout.tokens + 1):
        plan = HiRED(alpha=0.0).plan(looked, budget)
        assert plan.tokens == budget
        if budget <= looked.layout.tokens - PATCHES:  # tiles alone can spend it
            assert plan.quota[0] == 0


@given(st.integers(1, 64), st.integers(0, 20))
def test_alpha_one_leaves_tiles_empty_and_alpha_zero_the_thumbnail(budget, seed):
    looked = looked_of(layout_of((64, 64)), seed)
    if budget <= PATCHES:
        assert HiRED(alpha=1.0).plan(looked, budget).quota[1:] == (0, 0, 0, 0)
    assert HiRED(alpha=0.0, newline="none").plan(looked, budget).quota[0] == 0


@pytest.mark.parametrize("how", ["mass", "topcount", "even"])
def test_one_tile_gets_all_that_the_thumbnail_leaves(how):
    layout = tiled((32, 32), [[SIDE, SIDE]], SIDE, GRID)
    method = HiRED(alpha=0.25, content_score=how, newline="none")
    assert (layout.rows, layout.columns) == (1, 1)
    assert method.plan(looked_of(layout), 12).quota == (3, 9)


def test_one_partition_gets_everything():
    layout = single(GRID)
    final = torch.rand(1, PATCHES)
    plan = HiRED(rate=0.25).plan(Looked(layout, final[0], final), 4)
    assert sorted(np.flatnonzero(plan.keep_K)) == sorted(final[0].topk(4).indices.tolist())


def test_a_single_partition_with_newline_pays_for_it():
    layout = single(GRID, newline=True)
    final = torch.rand(1, PATCHES)
    plan = HiRED().plan(Looked(layout, final[0], final), 5)
    assert plan.keep_K[-1]
    assert plan.quota == (4,)


@given(
    st.lists(st.floats(0.001, 1), min_size=2, max_size=6),
    st.integers(1, 60),
    st.randoms(use_true_random=False),
)
def test_permuting_tiles_permutes_quotas(weights, budget, rng):
    order = list(range(len(weights)))
    rng.shuffle(order)
    room = [PATCHES] * (len(weights) + 1)
    plain = quotas(budget, np.array(weights), room, 0.5, "floor")
    moved = quotas(budget, np.array([weights[i] for i in order]), room, 0.5, "floor")
    assert moved[1:] == [plain[1 + i] for i in order]
    shares = np.array(weights) / sum(weights) * (budget - budget // 2)
    if len(set(np.round(shares % 1, 9))) == len(weights) and shares.max() < PATCHES:
        plain = quotas(budget, np.array(weights), room, 0.5, "largest_remainder")
        moved = quotas(
            budget, np.array([weights[i] for i in order]), room, 0.5, "largest_remainder"
        )
        assert moved[1:] == [plain[1 + i] for i in order]


@given(
    st.integers(0, 200),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 16)), min_size=1, max_size=6),
    st.integers(0, 16),
    st.floats(0, 1),
)
def test_quotas_fit_their_rooms_and_add_up(budget, tiles, first, alpha):
    room = [first, *(n for _, n in tiles)]
    found = quotas(budget, np.array([w for w, _ in tiles]), room, alpha, "largest_remainder")
    assert sum(found) == min(budget, sum(room))
    assert all(0 <= n <= most for n, most in zip(found, room, strict=True))
    lossy = quotas(budget, np.array([w for w, _ in tiles]), room, alpha, "floor")
    assert sum(lossy) <= sum(found)


def test_floors_per_tile_are_kept_and_refused_where_they_do_not_fit():
    weights = np.array([1.0, 0, 0, 0])
    room = [PATCHES] * 5
    for rounding in ("largest_remainder", "floor"):
        assert min(quotas(32, weights, room, 0.5, rounding, floor=3)[1:]) == 3
    with pytest.raises(InputError, match="floor_per_partition=5"):
        quotas(32, weights, room, 0.5, "largest_remainder", floor=5)


def test_tiles_without_any_content_share_evenly():
    assert quotas(16, np.zeros(4), [PATCHES] * 5, 0.5, "floor") == [8, 2, 2, 2, 2]


# -- regions ------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9))
def test_exact_regions_are_uniform_where_the_image_fills_its_canvas(rows, columns, grid):
    canvas = [rows * SIDE, columns * SIDE]
    layout = tiled(canvas, [canvas], SIDE, grid)
    assert np.allclose(regions(layout, "exact"), regions(layout, "uniform"))


@given(SHAPES, st.sampled_from(["exact", "uniform", "chunks"]))
def test_masses_of_tiles_sum_to_what_the_class_token_sees(size, how):
    layout = layout_of(size)
    share = regions(layout, how)
    assert np.allclose(share.sum(0), 1)  # every patch lies in tiles, once
    map_N = np.random.default_rng(0).random(PATCHES)
    assert content(map_N, layout, "mass", how, 0).sum() == pytest.approx(map_N.sum())


def test_exact_regions_follow_the_image_into_its_padding():
    """A flat image in a square canvas of 3 x 3 tiles lies in the middle ones alone."""
    layout = tiled((32, 96), [[96, 96]], SIDE, GRID)
    map_N = np.ones(PATCHES)
    exact = content(map_N, layout, "mass", "exact", 0)
    assert exact.reshape(3, 3)[[0, 2]].sum() == 0
    assert content(map_N, layout, "mass", "uniform", 0).reshape(3, 3)[0].sum() > 0


def test_regions_by_pixels_agree():
    """Every pixel of the fitted image votes for its tile and its thumbnail patch."""
    layout = tiled((48, 64), PINPOINTS, SIDE, GRID)
    votes = np.zeros((4, GRID, GRID))
    top = (64 - 48) // 2
    for y in range(48):
        for x in range(64):
            tile = (y + top) // SIDE * 2 + x // SIDE
            votes[tile, y * GRID // 48, x * GRID // 64] += 1
    votes /= votes.sum(0)
    assert np.allclose(regions(layout, "exact").reshape(votes.shape), votes)


@pytest.mark.parametrize("size", [*SIZES, (30, 70), (96, 100)])
def test_exact_regions_are_where_the_image_processor_puts_the_image(size):
    """A white image: what is white in a tile is what its region covers."""
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=PINPOINTS,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
    )
    white = np.full((*size, 3), 255, np.uint8)
    tiles = processor(images=white, return_tensors="np")["pixel_values"][0][1:, 0]
    layout = layout_of(size)
    covered = regions(layout, "exact").sum(1) / PATCHES  # share of the image in each tile
    assert np.allclose(covered, tiles.sum((1, 2)) / tiles.sum(), atol=1e-6)


def test_chunks_that_do_not_come_out_even_are_refused():
    layout = tiled((32, 96), [[32, 96]], SIDE, GRID)
    with pytest.raises(InputError, match="region_map='chunks'"):
        regions(layout, "chunks")
