"""Geometry of curves over training steps: numbers in, pixel coordinates out; a template draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outlay.figure import linear_ticks, short, spread

WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 132, 12, 36
_MOST = 400  # points of a curve; longer ones are averaged down

Value = float | None


@dataclass(frozen=True)
class Line:
    """One curve: name, colour's index, path, where its label stands, its last value."""

    name: str
    index: int
    path: str
    label_y: float
    last: str


@dataclass(frozen=True)
class StepChart:
    """Everything that the template draws; coordinates in pixels."""

    title: str
    about: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM

    @property
    def spoken(self) -> str:
        """For screen readers."""
        ends = "; ".join(f"{line.name} ends at {line.last}" for line in self.lines)
        return f"{self.title} over training steps: {ends}"


def smooth(values: Sequence[Value], window: int) -> list[Value]:
    """Mean of the last `window` values at each step; what is None is left out.

    >>> smooth([1.0, 3.0, None, 5.0], 2)
    [1.0, 2.0, 3.0, 5.0]
    """
    found: list[Value] = []
    for end in range(1, len(values) + 1):
        known = [v for v in values[max(0, end - window) : end] if v is not None]
        found.append(math.fsum(known) / len(known) if known else None)
    return found


def step_chart(
    title: str,
    curves: Mapping[str, tuple[Sequence[float], Sequence[Value]]],
    about: str = "",
) -> StepChart | None:
    """Place curves over steps; None if none of them has two values.

    Args:
        title: above the chart.
        curves: name -> (steps, values).
        about: a sentence under the title.
    """
    known = {
        name: _thinned([(x, y) for x, y in zip(steps, values, strict=True) if y is not None])
        for name, (steps, values) in curves.items()
    }
    known = {name: points for name, points in known.items() if len(points) > 1}
    if not known:
        return None
    xs = [x for points in known.values() for x, _ in points]
    ys = [y for points in known.values() for _, y in points]
    low, high = min(ys), max(ys)
    room = (high - low) * 0.08 or max(abs(high) * 0.1, 0.05)
    low, high = low - room, high + room
    left, right = min(xs), max(xs)

    def x(step: float) -> float:
        return round(LEFT + (step - left) / (right - left) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    wanted = [y(points[-1][1]) for points in known.values()]
    places = spread(wanted, 15, TOP + 6, HEIGHT - BOTTOM)
    lines = tuple(
        Line(
            name=name,
            index=list(curves).index(name) % 7,
            path="M" + " L".join(f"{x(step)} {y(value)}" for step, value in points),
            label_y=round(place, 1),
            last=short(points[-1][1]),
        )
        for (name, points), place in zip(known.items(), places, strict=True)
    )
    return StepChart(
        title=title,
        about=about,
        lines=lines,
        x_ticks=tuple((x(mark), short(mark)) for mark in linear_ticks(left, right)),
        y_ticks=tuple((y(mark), short(mark)) for mark in linear_ticks(low, high, about=4)),
    )


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of neighbours where there are more points than pixels."""
    size = -(-len(points) // _MOST)
    if size <= 1:
        return points
    parts = [points[at : at + size] for at in range(0, len(points), size)]
    return [
        (math.fsum(x for x, _ in part) / len(part), math.fsum(y for _, y in part) / len(part))
        for part in parts
    ]
