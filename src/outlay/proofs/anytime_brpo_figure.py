"""The picture of the proof of AnytimeBRPO."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outlay.figure import MARKERS, PALETTE
from outlay.proofs.anytime_brpo_runs import lengths_of
from outlay.rl.grid import CellResult

SMOOTH = 10  # steps of the moving mean


def drawer(
    grid: Sequence[int],
    curves: Mapping[str, Sequence[float]],
    runs: Mapping[str, Sequence[CellResult]],
    variance: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Callable[[Path], None]:
    """Draws accuracy over budgets, thinking over training, and variance by segment.

    Args:
        grid: budgets.
        curves: accuracy at each, by method.
        runs: trained policies, by method.
        variance: tables of segments, by setting.
    """

    def draw(path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(15, 5.4), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        left, middle, right = figure.subplots(1, 3)
        for index, (name, values) in enumerate(curves.items()):
            left.plot(
                grid,
                values,
                color=PALETTE[index % len(PALETTE)],
                marker=MARKERS[index % len(MARKERS)],
                markersize=4,
                linestyle=_line(index),
                label=name,
            )
        left.set_ylabel("right answers, held-out questions")
        left.set_xscale("log", base=2)
        left.set_xticks(list(grid), [str(budget) for budget in grid])
        left.minorticks_off()
        left.set_xlabel("tokens of thinking before the answer is forced")
        left.set_title("Accuracy over budgets", loc="left", fontsize=10)
        for name, group in runs.items():
            index = list(curves).index(name)
            colour = PALETTE[index % len(PALETTE)]
            for one in (one for one in group if one.steps >= SMOOTH):
                smooth = np.convolve(lengths_of(one), np.ones(SMOOTH) / SMOOTH, mode="valid")
                steps = np.arange(len(smooth)) + SMOOTH
                label = name if one is group[0] else None
                middle.plot(
                    steps, smooth, color=colour, linestyle=_line(index), linewidth=1.2, label=label
                )
        middle.set_xlabel("step")
        middle.set_ylabel("tokens")
        middle.set_title(f"Tokens of thinking (mean of {SMOOTH} steps)", loc="left", fontsize=10)
        _draw_variance(right, variance)
        for axes in (left, middle, right):
            axes.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=7, handlelength=3.5)
        figure.savefig(path)

    return draw


def _line(index: int) -> str:
    """Another line where the palette starts anew."""
    return "-" if index < len(PALETTE) else "--"


def _draw_variance(axes: Any, variance: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    shown = (("own return", "-"), ("leave one out", "--"))
    for setting, line in shown:
        table = variance[setting]
        budgets = [row["budget"] for row in table]
        for index, name in enumerate(("v1", "v2", "brpo")):
            if name == "v1" and line == "--":
                continue  # it has no group to leave anything out of
            mean, lo, hi = (np.array([row[f"ratio {name}"][k] for row in table]) for k in range(3))
            axes.errorbar(
                np.array(budgets) * (1 + 0.02 * index),
                mean,
                yerr=[np.maximum(mean - lo, 0), np.maximum(hi - mean, 0)],
                color=PALETTE[index],
                linestyle=line,
                marker=MARKERS[index],
                markersize=4,
                label=f"{name.upper()}, {setting}",
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets, [str(budget) for budget in budgets])
    axes.minorticks_off()
    axes.set_ylim(0, 1.6)
    axes.set_xlabel("end of the segment, tokens")
    axes.set_title("Var[R - V] / Var[R]", loc="left", fontsize=10)
