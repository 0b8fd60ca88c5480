"""Pictures of states (PNG) and episodes (animated GIF), drawn with Pillow.

Boxes are filled squares, targets are rings of the same colour and letter, robots are circles; a
collision is framed in red. Colours come with the first letter of their name, so that pictures can
be read without them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.errors import DependencyError, InputError
from outlay.evals.robots.base import Plan, World
from outlay.evals.robots.boxlift import BoxLift, LiftState, tenths
from outlay.evals.robots.boxnet import BoxNet1, BoxNet2, CornerState
from outlay.evals.robots.warehouse import HouseState, Warehouse

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

CELL = 96
MARGIN = 28
CAPTION = 44
MAX_FRAMES = 500
PAPER, INK, GRID, ALARM, ROBOT = "#ffffff", "#222222", "#b8b8b8", "#c00000", "#4a6fa5"
SHADES = {
    "blue": "#0072B2",
    "green": "#009E73",
    "orange": "#E69F00",
    "purple": "#8E5AA8",
    "red": "#D55E00",
}


def draw_state(
    world: World[Any, Any], state: Any, *, caption: str = "", alarm: bool = False
) -> Image:
    """A picture of one state.

    Args:
        world: one of the four.
        state: of it.
        caption: a line above the picture.
        alarm: frame it in red (a collision).

    Raises:
        DependencyError: without Pillow.
        InputError: for another world.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise DependencyError("pictures need Pillow; pip install 'outlay[eval]'") from error
    columns, rows = _extent(world)
    size = (max(420, columns * CELL + 2 * MARGIN), rows * CELL + 2 * MARGIN + CAPTION)
    image = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, 14), caption, fill=ALARM if alarm else INK, font=_font(16))
    if isinstance(world, BoxNet1):
        _cells(pen, world, state)
    elif isinstance(world, BoxNet2):
        _corners(pen, world, state)
    elif isinstance(world, Warehouse):
        _house(pen, world, state)
    elif isinstance(world, BoxLift):
        _lift(pen, world, state)
    if alarm:
        pen.rectangle((3, 3, size[0] - 4, size[1] - 4), outline=ALARM, width=5)
    return image


def draw_episode(
    world: World[Any, Any],
    state: Any,
    plans: Sequence[Plan],
    path: str | Path,
    *,
    seconds: float = 0.8,
) -> Path:
    """An animated GIF of an episode; returns its path.

    Args:
        world: the rules.
        state: the first state.
        plans: that were taken, for instance `turn.plan` of a log's turns.
        path: to write.
        seconds: per frame.

    Raises:
        InputError: if a plan is refused, or for more than 500 frames.
    """
    if len(plans) >= MAX_FRAMES:
        raise InputError(f"{len(plans)} steps are too many for a GIF; give < {MAX_FRAMES}")
    if not 0.02 <= seconds <= 60:
        raise InputError(f"seconds={seconds}; give 0.02 to 60")
    frames = [draw_state(world, state, caption=f"{world.name}: start")]
    for number, plan in enumerate(plans, 1):
        step = world.step(state, plan)
        if step.refusals:
            raise InputError(f"plan {number} is refused: {step.refusals[0].text()}")
        state = step.state
        words = f"step {number} of {len(plans)}"
        if step.collisions:
            words += f": {step.collisions[0].text()}"
        elif world.solved(state):
            words += ": solved"
        frames.append(draw_state(world, state, caption=words, alarm=bool(step.collisions)))
    target = Path(path)
    pause = round(seconds * 1000)
    frames[0].save(
        target,
        save_all=True,
        append_images=frames[1:],
        duration=[pause] * (len(frames) - 1) + [3 * pause],
        loop=0,
    )
    return target


def _extent(world: World[Any, Any]) -> tuple[int, int]:
    """Columns and rows of the picture in cells."""
    if isinstance(world, BoxNet1 | BoxNet2):
        return world.columns, world.rows
    if isinstance(world, Warehouse):
        return world.columns + 2, 2 * world.tracks - 1
    if isinstance(world, BoxLift):
        return 8, 1 + -(-world.boxes // 8)
    raise InputError(f"no drawing for {world.name}")


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _at(column: float, row: float) -> tuple[float, float]:
    return MARGIN + column * CELL, MARGIN + CAPTION + row * CELL


def _shade(colour: str) -> str:
    return SHADES.get(colour, "#777777")


def _letter(pen: ImageDraw, x: float, y: float, text: str, fill: str, size: int = 15) -> None:
    pen.text((x, y), text, fill=fill, font=_font(size), anchor="mm")


def _box(
    pen: ImageDraw, x: float, y: float, colour: str, half: float = 11, *, letter: bool = True
) -> None:
    pen.rectangle((x - half, y - half, x + half, y + half), fill=_shade(colour), outline=INK)
    if letter:
        _letter(pen, x, y, colour[:1].upper(), PAPER)


def _ring(pen: ImageDraw, x: float, y: float, colour: str, half: float = 11) -> None:
    pen.ellipse((x - half, y - half, x + half, y + half), outline=_shade(colour), width=4)
    _letter(pen, x, y, colour[:1].upper(), _shade(colour), 12)


def _grid(pen: ImageDraw, columns: int, rows: int) -> None:
    for i in range(rows):
        for j in range(columns):
            pen.rectangle((*_at(j, i), *_at(j + 1, i + 1)), outline=GRID, width=2)


def _spread(count: int) -> list[tuple[float, float]]:
    """Places in a cell for `count` things, as shares of its side."""
    side = max(3, math.ceil(math.sqrt(count)))
    step = 1 / (side + 0.6)
    return [((k % side + 0.8) * step, (k // side + 0.8) * step) for k in range(count)]


def _cells(pen: ImageDraw, world: BoxNet1, state: tuple[tuple[str, ...], ...]) -> None:
    _grid(pen, world.columns, world.rows)
    for (i, j), items in zip(world.cells, state, strict=True):
        for item, (dx, dy) in zip(items, _spread(len(items)), strict=True):
            kind, _, colour = item.partition("_")
            (_box if kind == "box" else _ring)(pen, *_at(j + dx, i + dy), colour)


def _corners(pen: ImageDraw, world: BoxNet2, state: CornerState) -> None:
    _grid(pen, world.columns, world.rows)
    goals: dict[tuple[int, int], list[str]] = {}
    for colour, cell in state.targets:
        goals.setdefault(cell, []).append(colour)
    for (i, j), colours in goals.items():
        for k, colour in enumerate(colours):
            _ring(pen, *_at(j + 0.3 + 0.28 * (k % 2), i + 0.3 + 0.2 * k), colour)
    seen: dict[tuple[int, int], int] = {}
    for colour, corner in state.boxes:
        x, y = _at(corner[1], corner[0])
        shift = 9 * seen.get(corner, 0)
        seen[corner] = seen.get(corner, 0) + 1
        _box(pen, x + shift, y + shift, colour)


def _house(pen: ImageDraw, world: Warehouse, state: HouseState) -> None:
    top, bottom = _at(0, 0), _at(1.5, 2 * world.tracks - 1)
    pen.rectangle((*top, *bottom), fill="#eef3e6", outline=GRID)
    _letter(pen, *_at(0.75, 0.2), "target", INK)
    for track in range(world.tracks):
        for column in range(world.columns):
            corner, other = _at(column + 2, 2 * track), _at(column + 3, 2 * track + 1)
            pen.rectangle((*corner, *other), outline=GRID, width=2)
    for track, column in state.boxes:
        _box(pen, *_at(column + 2.5, 2 * track + 1.5), "orange", 18, letter=False)
    waiting = 0
    seen: dict[tuple[int, int], int] = {}
    for number, (track, column, carrying) in enumerate(state.robots):
        if track < 0:
            x, y = _at(0.4 + 0.7 * (waiting % 2), 0.6 + 0.5 * (waiting // 2))
            waiting += 1
        else:
            shift = seen.get((track, column), 0)
            seen[track, column] = shift + 1
            x, y = _at(column + 2.5 + 0.18 * shift, 2 * track + 0.5 + 0.18 * shift)
        pen.ellipse((x - 20, y - 20, x + 20, y + 20), fill=ROBOT, outline=INK)
        _letter(pen, x, y, str(number), PAPER, 18)
        if carrying:
            _box(pen, x + 20, y - 18, "orange", 9, letter=False)


def _lift(pen: ImageDraw, world: BoxLift, state: LiftState) -> None:
    strongest = max(state.strengths)
    for number, strength in enumerate(state.strengths):
        width = 8 / world.robots
        half = 12 + 20 * strength / strongest
        x, y = _at((number + 0.5) * width, 0.45)
        pen.ellipse((x - half, y - half, x + half, y + half), fill=ROBOT, outline=INK)
        _letter(pen, x, y, tenths(strength), PAPER)
    left = {number: volume for number, volume, _ in state.boxes}
    for number in range(world.boxes):
        x, y = _at(number % 8 + 0.5, 1 + number // 8 + 0.5)
        if number not in left:
            pen.rectangle((x - 10, y - 10, x + 10, y + 10), outline=GRID)
            continue
        half = 12 + 0.26 * left[number]
        pen.rectangle((x - half, y - half, x + half, y + half), fill="#E69F00", outline=INK)
        _letter(pen, x, y, tenths(left[number]), INK)
