"""The picture of the proof of ARM's modes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outlay.figure import MARKERS, PALETTE
from outlay.frontier import Point
from outlay.proofs.arm_runs import CONSENSUS, FORMATS, LONG, PAIR, RUN, Cell, FloatArray
from outlay.stats import mean_interval

BELOW: Mapping[str, Any] = {
    "frameon": False,
    "loc": "upper center",
    "bbox_to_anchor": (0.5, -0.16),
}


def drawer(
    cells: Mapping[str, Cell], found: Sequence[Point], hardN: FloatArray
) -> Callable[[Path], None]:
    """Draws accuracy against tokens, and what consensus and adaptive mode use, by difficulty."""

    def draw(path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(13.5, 5.2), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        left, middle, right = figure.subplots(1, 3)
        _draw_points(left, found)
        _draw_shares(middle, cells, hardN, [CONSENSUS, PAIR, RUN], [LONG])
        middle.set_title("Consensus: share that needs long thinking", loc="left", fontsize=10)
        _draw_shares(right, cells, hardN, ["adaptive"], FORMATS)
        right.set_title("Adaptive: the model's own choice", loc="left", fontsize=10)
        for axes in (left, middle, right):
            axes.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_ylim(-0.02, 1.04)
        figure.savefig(path)

    return draw


def _draw_points(axes: Any, found: Sequence[Point]) -> None:
    for index, point in enumerate(found):
        lo = point.quality if point.lo is None else point.lo
        hi = point.quality if point.hi is None else point.hi
        axes.errorbar(
            [point.cost],
            [point.quality],
            yerr=[[max(0.0, point.quality - lo)], [max(0.0, hi - point.quality)]],
            color=PALETTE[index % len(PALETTE)],
            marker=MARKERS[(index // len(PALETTE) + index) % len(MARKERS)],
            linestyle="none",
            markersize=5,
            label=point.stack,
        )
    axes.set_xscale("log")
    axes.set_xlabel("tokens per question, forced tags included")
    axes.set_ylabel("accuracy, 95 % interval")
    axes.set_title("What each mode buys", loc="left", fontsize=10)
    axes.legend(fontsize=7, ncols=3, **BELOW)


def _draw_shares(
    axes: Any,
    cells: Mapping[str, Cell],
    hardN: FloatArray,
    names: Sequence[str],
    formats: Sequence[str],
) -> None:
    index = 0
    for name in names:
        for format in formats if name in cells else ():
            used_N = cells[name].used(format).mean(axis=0)
            x = [int(d) for d in np.unique(hardN)]
            spans = [mean_interval(used_N[hardN == d]) for d in x]
            y = [span.mean for span in spans]
            low = [max(0.0, s.mean - (s.mean if s.lo is None else s.lo)) for s in spans]
            high = [max(0.0, (s.mean if s.hi is None else s.hi) - s.mean) for s in spans]
            axes.errorbar(
                [d + 0.06 * index for d in x],
                y,
                yerr=[low, high],
                color=PALETTE[index],
                marker=MARKERS[index],
                markersize=5,
                linewidth=1.4,
                label=format if len(formats) > 1 else name,
            )
            index += 1
    axes.set_xlabel("operations")
    axes.set_ylabel("share of questions, 95 % interval")
    axes.legend(fontsize=8, ncols=1 if len(names) > 1 else 2, **BELOW)
