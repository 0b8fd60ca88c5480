"""The picture of the proof of G-Search: schedules over depth, accuracy over budgets, agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from outlay.figure import MARKERS, PALETTE
from outlay.vision.gsearch.schedule import Rates


def draw(
    path: Path,
    schedules: Mapping[str, Sequence[Rates]],
    curves: Mapping[str, Mapping[float, float]],
    full: float,
    taus: np.ndarray,
) -> None:
    """Write the picture.

    Args:
        path: of the file.
        schedules: by label, keep rates of every seed.
        curves: by method, accuracy by budget.
        full: accuracy with nothing dropped.
        taus: (L, L) agreement of layers' rankings.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.2, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    for index, (label, seeds) in enumerate(schedules.items()):
        color, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
        for number, rates in enumerate(seeds):
            left.plot(
                range(len(rates)),
                rates,
                color=color,
                marker=marker,
                ms=4,
                lw=1.2,
                alpha=0.75,
                label=None if number else label,
            )
    left.set_xlabel("decoder layer")
    left.set_ylabel("visual tokens kept, of the original number")
    left.set_title("Found schedules, a line a calibration split", loc="left", fontsize=10)
    left.set_ylim(-0.04, 1.04)
    for index, (name, curve) in enumerate(curves.items()):
        budgets = sorted(curve)
        middle.plot(
            budgets,
            [curve[budget] for budget in budgets],
            color=PALETTE[index % len(PALETTE)],
            marker=MARKERS[index % len(MARKERS)],
            lw=2.0 if index == 0 else 1.2,
            label=name,
        )
    middle.axhline(full, color="#000000", lw=0.8, ls=":", label="nothing dropped")
    middle.set_xlabel("mean keep rate over layers")
    middle.set_ylabel("accuracy, held-out scenes")
    middle.set_title("Equal budgets", loc="left", fontsize=10)
    shown = right.imshow(taus, vmin=0, vmax=1, cmap="viridis")
    for row in range(len(taus)):
        for column in range(len(taus)):
            value = taus[row, column]
            tone = "white" if value < 0.6 else "black"
            right.text(column, row, f"{value:.2f}", ha="center", va="center", color=tone, size=7)
    right.set_xlabel("layer")
    right.set_ylabel("layer")
    right.set_title("Kendall's tau between layers' rankings", loc="left", fontsize=10)
    figure.colorbar(shown, ax=right, shrink=0.85)
    for axes in (left, middle):
        axes.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7)
    figure.savefig(path)
