"""Pictures: the right size, everything in its place, one frame a state."""

from __future__ import annotations

import pytest
from PIL import Image, ImageColor
from robot_worlds import MIDDLE, ids

from outlay.errors import InputError
from outlay.evals.robots import planner
from outlay.evals.robots.boxnet import BoxNet1
from outlay.evals.robots.drawing import (
    ALARM,
    CAPTION,
    CELL,
    MARGIN,
    SHADES,
    draw_episode,
    draw_state,
)
from outlay.evals.robots.warehouse import HouseState, Warehouse


@pytest.mark.parametrize("world", MIDDLE, ids=ids)
def test_an_episode_is_a_gif_with_one_frame_a_state(world, tmp_path):
    state = world.reset(3)
    plans, _ = planner.rollout(world, state, lambda s: planner.greedy(world, s))
    path = draw_episode(world, state, plans, tmp_path / "episode.gif", seconds=0.1)
    with Image.open(path) as film:
        assert film.n_frames == len(plans) + 1
        assert film.size == draw_state(world, state).size


def colours_of(image, cell):
    left, top = MARGIN + cell[1] * CELL, MARGIN + CAPTION + cell[0] * CELL
    part = image.crop((left + 3, top + 3, left + CELL - 3, top + CELL - 3))
    return {colour for _, colour in part.getcolors(100_000)}


def test_boxes_and_targets_are_drawn_in_their_cells_and_nowhere_else():
    world = BoxNet1(2, 2, ("blue", "red"))
    image = draw_state(world, (("box_blue",), (), ("target_red",), ("box_red", "target_blue")))
    blue, red = ImageColor.getrgb(SHADES["blue"]), ImageColor.getrgb(SHADES["red"])
    shown = [colours_of(image, cell) & {blue, red} for cell in world.cells]
    assert shown == [{blue}, set(), {red}, {blue, red}]


def test_a_crowded_cell_stays_inside_itself():
    world = BoxNet1(1, 2, ("red",), pairs=(1, 64))
    image = draw_state(world, (("box_red",) * 60, ()))
    assert ImageColor.getrgb(SHADES["red"]) not in colours_of(image, (0, 1))


def test_a_collision_is_framed(tmp_path):
    world = Warehouse(2, 3, 2)
    state = HouseState(((0, 2),), ((0, 0, False), (0, 2, False)))
    plan = {"agent0": "move right", "agent1": "move left"}
    path = draw_episode(world, state, [plan], tmp_path / "hit.gif")
    with Image.open(path) as film:
        edge = []
        for frame in range(2):
            film.seek(frame)
            edge.append(film.convert("RGB").getpixel((4, 100)))
    red = ImageColor.getrgb(ALARM)
    assert max(abs(a - b) for a, b in zip(edge[1], red, strict=True)) < 12
    assert edge[0] == (255, 255, 255)


def test_what_cannot_be_drawn_is_refused(tmp_path):
    world = BoxNet1(2, 2)
    with pytest.raises(InputError, match="refused"):
        draw_episode(world, world.reset(0), [{"Agent[0.5, 0.5]": "dance"}], tmp_path / "a.gif")
    with pytest.raises(InputError, match="too many"):
        draw_episode(world, world.reset(0), [{}] * 500, tmp_path / "a.gif")
    with pytest.raises(InputError, match="seconds=0"):
        draw_episode(world, world.reset(0), [], tmp_path / "a.gif", seconds=0)
