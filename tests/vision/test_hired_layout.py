"""HiRED knows where every token of a tiled image comes from, as the model itself packs it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.vision.hired_inputs import (
    GRID,
    PATCHES,
    PINPOINTS,
    SIDE,
    SIZES,
    shape_of,
    tiled_inputs,
    tokens_of,
    unpadded,
)
from tests.vision.tiny_vlms import IMAGE, llava_next, onevision

from outlay.errors import CapabilityError, InputError
from outlay.vision.hired.layout import Layout, layouts_of, single, tiled


def layout_of(size: tuple[int, int]) -> Layout:
    return tiled(size, PINPOINTS, SIDE, GRID)


@pytest.fixture(scope="module")
def next_model():
    return llava_next()


@pytest.fixture(scope="module")
def one_model():
    return onevision()


def packed_places(model, size: tuple[int, int]) -> torch.Tensor:
    """p * N + j of every token, -1 at newlines, by the model's own packing of numbers."""
    rows, columns = shape_of(size)
    count = (rows * columns + 1) * PATCHES
    numbers = torch.arange(count, dtype=torch.float).view(-1, PATCHES, 1)
    (found,), _ = model.model.pack_image_features(
        [numbers], torch.tensor([size]), "default", image_newline=torch.tensor([-1.0])
    )
    return found[:, 0].long()


@pytest.mark.parametrize("size", SIZES)
def test_tokens_are_where_the_model_packs_them(next_model, size):
    layout = layout_of(size)
    place_K = packed_places(next_model, size).numpy()
    assert np.array_equal(layout.place_K, place_K)
    assert np.array_equal(layout.newline_K, place_K < 0)
    own = ~layout.newline_K
    assert np.array_equal(layout.partition_K[own], place_K[own] // PATCHES)


@pytest.mark.parametrize("size", SIZES)
def test_placeholders_are_thumbnail_and_unpadded_mosaic_and_newlines(next_model, size):
    layout = layout_of(size)
    inputs = tiled_inputs([size])
    features = next_model.model.get_image_features(
        inputs["pixel_values"], inputs["image_sizes"], return_dict=True
    ).pooler_output
    height, width = unpadded(size)
    assert layout.mosaic == (height, width)
    assert layout.tokens == PATCHES + height * width + height == len(features[0])
    assert layout.tokens == int((inputs["input_ids"] == IMAGE).sum())


def test_wide_and_tall_mosaics_are_not_swapped():
    wide, tall = layout_of((32, 64)), layout_of((64, 32))
    assert (wide.rows, wide.columns, wide.mosaic) == (1, 2, (4, 8))
    assert (tall.rows, tall.columns, tall.mosaic) == (2, 1, (8, 4))
    # The first mosaic row of a wide image shows both tiles; of a tall one, the first alone.
    assert set(wide.partition_K[wide.line_K == 0].tolist()) == {1, 2, -1}
    assert set(tall.partition_K[tall.line_K == 0].tolist()) == {1, -1}


@given(st.integers(1, 400), st.integers(1, 400))
def test_places_rise_within_thumbnail_and_mosaic(height, width):
    layout = layout_of((height, width))
    own = ~layout.newline_K
    assert np.all(np.diff(layout.place_K[: layout.patches]) == 1)
    place = layout.place_K[layout.patches :][own[layout.patches :]] - layout.patches
    tile, patch = np.divmod(place, layout.patches)
    y = tile // layout.columns * GRID + patch // GRID
    x = tile % layout.columns * GRID + patch % GRID
    assert np.all(np.diff(y * layout.columns * GRID + x) > 0)
    assert len(set(place.tolist())) == len(place)
    assert layout.newlines == layout.mosaic[0]
    assert layout.counts().sum() + layout.newlines == layout.tokens <= layout.padded + 2 * GRID


def test_an_extreme_shape_leaves_tiles_without_tokens():
    layout = layout_of((1, 1000))
    assert layout.mosaic[0] == 0
    assert layout.tokens == PATCHES


def test_scores_of_patches_go_to_their_tokens():
    layout = layout_of((48, 64))
    scores_PN = torch.randn(layout.tiles + 1, PATCHES)
    scores_K = layout.spread(scores_PN)
    assert torch.equal(
        scores_K[torch.tensor(~layout.newline_K)],
        scores_PN.flatten()[torch.tensor(layout.place_K[~layout.newline_K])],
    )
    assert bool((scores_K[torch.tensor(layout.newline_K)] == float("-inf")).all())


@pytest.mark.parametrize(("most", "size"), [(1, (64, 64)), (1, (48, 64)), (2, (64, 64))])
def test_a_shrunk_mosaic_is_shrunk_as_features_are(one_model, most, size):
    layout = tiled(size, PINPOINTS, SIDE, GRID, most)
    scores_PN = torch.randn(layout.tiles + 1, PATCHES)
    (found,), _ = one_model.model.pack_image_features(
        [scores_PN[..., None]],
        torch.tensor([size]),
        image_newline=torch.tensor([float("-inf")]),
        vision_aspect_ratio=f"anyres_max_{most}",
    )
    assert layout.shrunk
    assert torch.equal(layout.spread(scores_PN), found[:, 0])


def test_a_token_of_a_shrunk_mosaic_belongs_to_the_tile_of_its_centre():
    layout = tiled((64, 64), PINPOINTS, SIDE, GRID, 1)  # 8 x 8 patches become 4 x 4 tokens
    tile_hw = layout.partition_K[PATCHES:].reshape(4, 5)[:, :4]
    assert np.array_equal(tile_hw, np.kron([[1, 2], [3, 4]], np.ones((2, 2))))


def test_masks_of_a_shrunk_mosaic_cover_what_lies_under_a_token():
    layout = tiled((64, 64), PINPOINTS, SIDE, GRID, 1)
    keep_K = np.zeros(layout.tokens, bool)
    keep_K[PATCHES] = True  # the first token of the mosaic
    mask = layout.mask(keep_K)
    assert mask.sum() == 4
    assert mask[1, :2, :2].all()


def test_masks_show_kept_patches_and_nothing_else():
    layout = layout_of((20, 60))
    keep_K = np.zeros(layout.tokens, bool)
    keep_K[[3, PATCHES + 1]] = True
    mask = layout.mask(keep_K)
    assert mask.sum() == 2
    assert mask[0, 0, 3]
    assert mask.reshape(-1)[layout.place_K[PATCHES + 1]]


def test_one_partition_has_no_tiles_and_at_most_one_newline():
    plain, ended = single(GRID), single(GRID, newline=True)
    assert (plain.tokens, plain.newlines, plain.tiles) == (PATCHES, 0, 0)
    assert (ended.tokens, ended.newlines) == (PATCHES + 1, 1)


def test_several_images_of_one_prompt_stay_whole(one_model):
    sizes = torch.tensor([(64, 64), (20, 60), (48, 64)])
    found = layouts_of(one_model.model, (3, 5, 3, SIDE, SIDE), sizes, [1, 2])
    assert [layout.tiles for layout in found] == [4, 0, 0]


@pytest.mark.parametrize("size", [(0, 10), (10, -1), (2**21, 10)])
def test_sizes_out_of_range_are_refused(size):
    with pytest.raises(InputError, match="image_sizes"):
        layout_of(size)


@pytest.mark.parametrize("pixels", [(1, 4, 3, SIDE, SIDE), (1, 6, 3, SIDE, SIDE), (4, 3, 32, 32)])
def test_partitions_that_sizes_do_not_explain_are_refused(next_model, pixels):
    with pytest.raises(InputError, match=r"image_sizes needs \[5\] partitions"):
        layouts_of(next_model.model, pixels, torch.tensor([(64, 64)]))


def test_missing_sizes_and_wrong_numbers_of_images_are_refused(next_model, one_model):
    with pytest.raises(InputError, match="image_sizes is missing"):
        layouts_of(next_model.model, (1, 5, 3, SIDE, SIDE))
    with pytest.raises(InputError, match="batch_num_images"):
        layouts_of(one_model.model, (2, 5, 3, SIDE, SIDE), torch.tensor([(64, 64)] * 2), [1])


def test_images_at_their_own_sizes_are_refused(next_model):
    from tests.vision.tiny_vlms import llava

    with pytest.raises(CapabilityError, match="square partitions"):
        layouts_of(llava().model, (1, 3, 40, 56), torch.tensor([(40, 56)]))


def test_more_tiles_than_anyone_needs_are_refused():
    with pytest.raises(InputError, match="tiles"):
        tiled((5000, 5000), [[SIDE * 40, SIDE * 40]], SIDE, GRID)


def test_the_count_formula_holds_for_all_five_shapes():
    assert [layout_of(size).tokens for size in SIZES] == [tokens_of(size) for size in SIZES]
