"""Data and pictures of proofs whose runs are cells of the training grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outlay.figure import MARKERS, PALETTE
from outlay.rl.grid import Cell
from outlay.rl.grid_compare import mean
from outlay.rl.grid_results import CellResult

Runs = Mapping[str, Sequence[CellResult]]
EVERY = 10  # steps between two values of a curve in the data
_SMOOTH = 5  # steps of a drawn moving mean


def stored(wanted: Sequence[Cell], folder: Path) -> list[Cell]:
    """Those of the cells that the folder has."""
    return [cell for cell in wanted if (folder / f"{cell.key}.json").is_file()]


def averaged(results: Sequence[CellResult], name: str) -> list[float]:
    """A training curve, mean of the seeds; steps without a value are NaN."""
    rows = [[np.nan if v is None else v for v in one.curve.get(name, [])] for one in results]
    width = min(map(len, rows))
    return [float(v) for v in np.nanmean([row[:width] for row in rows], axis=0)] if width else []


def data_of(runs: Runs, curves: Sequence[str]) -> dict[str, Any]:
    """Every method's figures, JSON-ready.

    Args:
        runs: by method.
        curves: names of training curves to keep, thinned out.
    """
    return {"every": EVERY, "methods": [_row(name, runs[name], curves) for name in runs]}


def _row(name: str, results: Sequence[CellResult], curves: Sequence[str]) -> dict[str, Any]:
    temperatures = sorted({one.temperature for one in results[0].evaluation})
    return {
        "method": name,
        "seeds": [one.seed for one in results],
        "evaluation": {
            f"T={at:g}": {
                "accuracy": round(mean(results, at).value, 4),
                "tokens": round(mean(results, at, what="tokens").value, 2),
                "by_budget": _by_budget(results, at),
                "styles": _styles(results, at),
            }
            for at in temperatures
        },
        "training": {
            "tokens": round(float(np.mean([one.training_tokens for one in results]))),
            "seconds": round(float(np.mean([one.seconds["train"] for one in results])), 1),
            **{c: [round(v, 4) for v in averaged(results, c)[::EVERY]] for c in curves},
        },
    }


def _by_budget(results: Sequence[CellResult], at: float) -> list[tuple[int, float]]:
    curves = [one.budget_curve(at) for one in results]
    return [
        (points[0][0], round(float(np.mean([acc for _, acc in points])), 4))
        for points in zip(*curves, strict=True)
    ]


def _styles(results: Sequence[CellResult], at: float) -> dict[str, float]:
    shares = [one.styles(at) for one in results]
    names = sorted({name for share in shares for name in share})
    return {n: round(float(np.mean([share.get(n, 0.0) for share in shares])), 4) for n in names}


def drawer(
    runs: Runs, main: Sequence[str], curve: str, label: str, title: str
) -> Callable[[Path], None]:
    """What draws a training curve, and accuracy over inference budgets, to a path.

    Args:
        runs: by method.
        main: methods with a line; the others are points at their own length.
        curve: name of the training curve.
        label, title: of its axes.
    """

    def draw(path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10.4, 4.4), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        for index, name in enumerate(runs):
            color, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
            again = index >= len(PALETTE)  # the palette starts anew: hollow
            if name not in main:
                accuracy, tokens = mean(runs[name]), mean(runs[name], what="tokens")
                right.plot(
                    [tokens.value],
                    [accuracy.value],
                    color=color,
                    marker=marker,
                    markerfacecolor="white" if again else color,
                    linestyle="",
                    label=f"{name} (at its own length)",
                )
                continue
            values = averaged(runs[name], curve)
            if len(values) >= _SMOOTH:
                smooth = np.convolve(values, np.ones(_SMOOTH) / _SMOOTH, mode="valid")
                left.plot(np.arange(len(smooth)), smooth, color=color, label=name)
            budgets, accuracies = zip(*_by_budget(runs[name], 0.0), strict=True)
            right.plot(budgets, accuracies, color=color, marker=marker, label=name)
        left.set_xlabel("optimiser steps")
        left.set_ylabel(label)
        left.set_title(title, loc="left", fontsize=10)
        right.set_xlabel("tokens allowed at inference")
        right.set_ylabel("greedy accuracy, held-out problems")
        right.set_title("After training", loc="left", fontsize=10)
        right.set_ylim(-0.02, 1.02)
        for axes in (left, right):
            axes.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=7)
        figure.savefig(path)

    return draw
