"""Pictures of what was kept show what was kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.vision.hired_inputs import GRID, PATCHES, PINPOINTS, SIDE

from outlay.errors import InputError
from outlay.vision.hired import HiRED
from outlay.vision.hired.layout import single, tiled
from outlay.vision.hired.pictures import panels
from outlay.vision.hired.reading import Looked
from outlay.vision.pictures import MAX_PANELS, PAPER, Grid, Panel, draw, faded


def black(height: int = 64, width: int = 64) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def plan_of(size: tuple[int, int], **knobs):
    layout = tiled(size, PINPOINTS, SIDE, GRID)
    generator = torch.Generator().manual_seed(0)
    final = torch.rand(layout.tiles + 1, PATCHES, generator=generator)
    return HiRED(return_masks=True, **knobs).plan(Looked(layout, final[0], final), 20)


def middles(picture: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(rows, columns): brightness in the middle of every field."""
    height, width = (n / count for n, count in zip(picture.shape, (rows, columns), strict=False))
    y, x = (
        ((np.arange(n) + 0.5) * step).astype(int) for n, step in ((rows, height), (columns, width))
    )
    return picture[y][:, x].mean(-1)


def test_dropped_patches_are_pale_and_kept_ones_are_not():
    kept = np.random.default_rng(0).random((GRID, GRID)) < 0.5
    bright = middles(faded(Panel(black(), [Grid(kept)])), GRID, GRID)
    assert np.array_equal(bright < 50, kept)


def test_a_grid_covers_its_box_alone():
    panel = Panel(black(), [Grid(np.zeros((2, 2), bool), (0, 32, 32, 32))])
    bright = middles(faded(panel), 4, 4)
    assert (bright[:2, 2:] > 150).all()
    assert (bright[2:] == 0).all()
    assert (bright[:, :2] == 0).all()


def test_shares_fade_in_part():
    bright = middles(faded(Panel(black(), [Grid([[0.0, 0.5, 1.0]])])), 1, 3)[0]
    assert bright[0] > bright[1] > bright[2]
    assert bright[0] < PAPER


def test_tiles_lie_where_they_were_cut():
    size = (40, 64)
    plan = plan_of(size)
    small, mosaic = panels(plan, black(*size), "scene")
    assert small.title == f"scene: thumbnail, {plan.quota[0]} tokens"
    assert mosaic.image.size == (64, 64)
    bright = middles(faded(mosaic), 2 * GRID, 2 * GRID)
    wanted = np.block([[plan.mask_Pgg[1], plan.mask_Pgg[2]], [plan.mask_Pgg[3], plan.mask_Pgg[4]]])
    assert np.array_equal(bright < 50, wanted)


def test_one_partition_is_one_panel():
    final = torch.rand(1, PATCHES)
    plan = HiRED(return_masks=True).plan(Looked(single(GRID), final[0], final), 5)
    (panel,) = panels(plan, black())
    assert panel.title == "5 of 16 patches"


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_pictures_are_written(tmp_path, suffix):
    plan = plan_of((48, 64))
    path = draw(panels(plan, black(48, 64)), tmp_path / f"kept{suffix}", title="kept")
    assert path.stat().st_size > 500


def test_pictures_of_one_plan_are_equal_and_of_two_differ(tmp_path):
    found = [
        draw(panels(plan_of((48, 64), alpha=alpha), black(48, 64)), tmp_path / f"{i}.png")
        for i, alpha in enumerate((0.5, 0.5, 0.9))
    ]
    one, two, three = (path.read_bytes() for path in found)
    assert one == two != three


def test_plans_without_masks_and_other_images_are_refused():
    plan = plan_of((48, 64))
    with pytest.raises(InputError, match="the plan was made for 48 x 64"):
        panels(plan, black())
    bare = HiRED().plan(Looked(plan.layout, torch.rand(PATCHES), torch.rand(5, PATCHES)), 9)
    with pytest.raises(InputError, match="return_masks=True"):
        panels(bare, black(48, 64))


@pytest.mark.parametrize(
    ("panel", "says"),
    [
        (Panel(np.zeros((4, 4, 3)), []), "uint8"),
        (Panel(np.zeros((4, 4, 2), np.uint8), []), "shape"),
        (Panel(np.zeros((0, 4, 3), np.uint8), []), "pixels"),
        (Panel(black(), [Grid(np.zeros(4, bool))]), "grid of True and False"),
        (Panel(black(), [Grid([[2.0]])]), "grid of True and False"),
        (Panel(black(), [Grid([[True]], (40, 0, 40, 40))]), "outside"),
    ],
)
def test_images_and_grids_of_other_shapes_are_refused(panel, says):
    with pytest.raises(InputError, match=says):
        faded(panel)


def test_no_panel_too_many_and_other_formats_are_refused(tmp_path):
    panel = Panel(black(), [])
    for some in ([], [panel] * (MAX_PANELS + 1)):
        with pytest.raises(InputError, match="panels"):
            draw(some, tmp_path / "x.png")
    with pytest.raises(InputError, match=r"\.png, \.svg or \.pdf"):
        draw([panel], tmp_path / "x.txt")


def test_grey_and_transparent_images_are_taken():
    for shape in ((64, 64), (64, 64, 4)):
        assert faded(Panel(np.zeros(shape, np.uint8), [])).shape[-1] == 3
