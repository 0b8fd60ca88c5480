"""Geometry of the report's frontier chart: data in, pixel coordinates out.

The HTML template draws it as SVG, coloured by style sheet, so that it follows a light or dark page,
can be read by a screen reader and needs no picture file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outlay.figure import UNITS, by_stack, linear_ticks, log_ticks, short, spans, spread

if TYPE_CHECKING:
    from outlay.frontier import Point

WIDTH, HEIGHT = 860, 400
LEFT, RIGHT, TOP, BOTTOM = 56, 190, 16, 52
FAR = 200  # pixels from the right edge beyond which a curve's label stays at its end


@dataclass(frozen=True)
class Mark:
    """One point: centre, interval ends (None where undefined), and what a pointer shows."""

    x: float
    y: float
    y_lo: float | None
    y_hi: float | None
    text: str


@dataclass(frozen=True)
class Curve:
    """One method's line and its label: at the right edge, or beside an end that is far from it."""

    name: str
    index: int
    path: str
    marks: tuple[Mark, ...]
    label_x: float
    label_y: float
    end: tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """Everything that the template draws; coordinates in pixels of WIDTH x HEIGHT."""

    curves: tuple[Curve, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_label: str
    y_label: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def interval_text(point: Point) -> str:
    """`0.61 (0.55-0.68)`, or the mean alone where there is no interval."""
    if point.lo is None or point.hi is None:
        return f"{point.quality:.3f}"
    return f"{point.quality:.3f} ({point.lo:.3f}\u2013{point.hi:.3f})"


def layout(points: Sequence[Point], metric: str) -> Chart:
    """Place the points of one task and axis; at least one point."""
    costs = [p.cost for p in points]
    log = spans(costs)
    ends = [v for p in points for v in (p.quality, p.lo, p.hi) if v is not None]
    low, high = min(ends), max(ends)
    room = (high - low) * 0.06 or max(abs(high) * 0.1, 0.05)
    low, high = low - room, high + room

    def scale(cost: float) -> float:
        return math.log(cost) if log else cost

    left, right = scale(min(costs)), scale(max(costs))
    pad = (right - left) * 0.05 or max(abs(left) * 0.1, 0.5)
    left, right = left - pad, right + pad

    def x(cost: float) -> float:
        return round(LEFT + (scale(cost) - left) / (right - left) * (WIDTH - LEFT - RIGHT), 2)

    def y(quality: float) -> float:
        return round(TOP + (high - quality) / (high - low) * (HEIGHT - TOP - BOTTOM), 2)

    x_marks = log_ticks(math.exp(left), math.exp(right)) if log else linear_ticks(left, right)
    curves = by_stack(points)
    edge = WIDTH - RIGHT
    near = [stack for stack, curve in curves.items() if x(curve[-1].cost) > edge - FAR]
    if len(near) + 1 < len(curves):  # several names inside the picture would overlap
        near = list(curves)
    wanted = [y(curves[stack][-1].quality) for stack in near]
    places = dict(zip(near, spread(wanted, 17, TOP + 6, HEIGHT - BOTTOM), strict=True))
    unit = UNITS[points[0].axis]
    drawn = []
    for index, (name, curve) in enumerate(curves.items()):
        marks = tuple(
            Mark(
                x=x(p.cost),
                y=y(p.quality),
                y_lo=None if p.lo is None else y(p.lo),
                y_hi=None if p.hi is None else y(p.hi),
                text=f"{name}, {p.budget.label()}: {metric} {interval_text(p)}, n={p.n}, "
                f"{short(p.cost)} {unit}",
            )
            for p in curve
        )
        path = "M" + " L".join(f"{mark.x} {mark.y}" for mark in marks)
        end = (marks[-1].x, marks[-1].y)
        label = (edge + 14.0, round(places[name], 2)) if name in places else (end[0] + 12, end[1])
        drawn.append(Curve(name, index, path, marks, *label, end))
    digits = max(0, -math.floor(math.log10((high - low) / 5))) if high > low else 2
    return Chart(
        curves=tuple(drawn),
        x_ticks=tuple((x(mark), short(mark)) for mark in x_marks),
        y_ticks=tuple((y(mark), f"{mark:.{digits}f}") for mark in linear_ticks(low, high)),
        x_label=unit + (" (log scale)" if log else ""),
        y_label=metric,
    )
