"""Geometry of the dashboard's pictures: data in, coordinates out. Templates draw them as SVG.

Pictures stretch to their place, so coordinates are shares of it: 0 to 1000 across, 0 to 100 down.
Labels are HTML beside the picture and keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDE, HIGH = 1000.0, 100.0
COLOURS = 7
OTHER = "other"


@dataclass(frozen=True)
class Rect:
    """One part of a bar."""

    x: float
    y: float
    width: float
    height: float
    colour: int
    text: str


@dataclass(frozen=True)
class Bars:
    """Stacked bars over time.

    Args:
        rects: the parts.
        top: the value of the picture's upper edge.
        names: of the parts, in the order of their colours.
    """

    rects: tuple[Rect, ...]
    top: int
    names: tuple[str, ...]


def ceiling(value: int) -> int:
    """The next of 1, 2, 4, 5, 8, 10 times a power of ten: what a scale ends with."""
    if value <= 0:
        return 1
    power = int(10 ** int(math.log10(value)))
    for step in (1, 2, 4, 5, 8, 10):
        if value <= step * power:
            return step * power
    return 20 * power  # where the logarithm was rounded down


def largest(totals: Mapping[str, int], most: int = COLOURS) -> tuple[str, ...]:
    """The names with the largest totals; the last is `OTHER` where some were left out.

    In the order of the alphabet, so that colours stay where ranks change.
    """
    if len(totals) <= most:
        return tuple(sorted(totals))
    ranked = sorted(totals.keys() - {OTHER}, key=lambda name: (-totals[name], name))
    return (*sorted(ranked[: most - 1]), OTHER)


def stacked(
    columns: Sequence[Mapping[str, int]],
    names: Sequence[str],
    says: Sequence[Sequence[str]],
) -> Bars:
    """Bars side by side, the parts of each in the order of `names`.

    Args:
        columns: values by name; names beyond `names` count as `OTHER`.
        names: from the bottom up.
        says: what a pointer shows, by column and name.
    """
    top = ceiling(max((sum(column.values()) for column in columns), default=0))
    step = WIDE / max(1, len(columns))
    rects = []
    for index, column in enumerate(columns):
        parts = dict.fromkeys(names, 0)
        for name, value in column.items():
            parts[name if name in parts else OTHER] += value
        below = 0
        for colour, value in enumerate(parts.values()):
            if value > 0:
                below += value
                rects.append(
                    Rect(
                        x=round(index * step + step * 0.1, 2),
                        y=round(HIGH * (1 - below / top), 3),
                        width=round(step * 0.8, 2),
                        height=round(HIGH * value / top, 3),
                        colour=colour,
                        text=says[index][colour],
                    )
                )
    return Bars(tuple(rects), top, tuple(names))


@dataclass(frozen=True)
class Burn:
    """What was left of a budget over its window.

    Args:
        line: path of what was left.
        area: the same, closed at the bottom.
        ahead: path of what will be left at this pace; "" where nothing was spent.
        now: how far the window has run, 0 to `WIDE`.
    """

    line: str
    area: str
    ahead: str
    now: float


def burn(
    left: Sequence[tuple[float, float]], start: float, end: float, amount: float, pace: float
) -> Burn:
    """A burn-down.

    Args:
        left: times and what was left then, the last one now.
        start, end: of the window.
        amount: the limit: the picture's upper edge.
        pace: units a second.
    """

    def place(at: float, value: float) -> tuple[float, float]:
        across = (at - start) / (end - start) if end > start else 1.0
        down = 1 - value / amount if amount > 0 else 1.0
        return round(WIDE * min(1, max(0, across)), 1), round(HIGH * min(1, max(0, down)), 2)

    points = [place(at, value) for at, value in left]
    line = "M" + " L".join(f"{x} {y}" for x, y in points)
    x, y = points[-1]
    area = f"{line} V{HIGH:g} H{points[0][0]} Z"
    ahead = ""
    at, value = left[-1]
    if pace > 0 and value > 0 and end > at:
        over = at + value / pace
        until = min(over, end)
        target = place(until, value - pace * (until - at))
        ahead = f"M{x} {y} L{target[0]} {target[1]}"
    return Burn(line, area, ahead, x)
