"""The picture and the data of SwiReasoning's proof."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outlay.decode.swireasoning import SwiResult
from outlay.figure import MARKERS, PALETTE
from outlay.proofs.swireasoning_runs import CUT, FORCED, GREEDY, LONGEST, OURS, WINDOW, Cell
from outlay.stats import mean_interval


@dataclass(frozen=True)
class Cells:
    """Everything that was decoded on the searcher."""

    swir: list[Cell]  # by rising C_max, the last without a limit
    baselines: list[Cell]
    cut: list[Cell]
    forced: list[Cell]
    windows: list[tuple[int, Cell]]
    explicit: list[Cell]  # as swir, beginning explicit

    def one(self, name: str) -> Cell:
        """The baseline of that name."""
        return next(cell for cell in self.baselines if cell.name == name)

    @property
    def free(self) -> Cell:
        """Ours without a limit."""
        return self.swir[-1]

    def all(self) -> list[Cell]:
        """Every cell but those of other windows."""
        return [*self.swir, *self.explicit, *self.baselines, *self.cut, *self.forced]


def limit_of(cell: Cell) -> str:
    """C_max of a cell, as text."""
    return "none" if cell.limit is None else str(cell.limit)


def _row(cell: Cell) -> dict[str, Any]:
    interval = mean_interval(np.array([record.quality for record in cell.records]))
    soft = [each.soft_steps for each in cell.results if isinstance(each, SwiResult)]
    return {
        "method": cell.name,
        "limit": cell.limit,
        "accuracy": round(interval.mean, 4),
        "ci": [interval.lo, interval.hi],
        "n": interval.n,
        "tokens": round(cell.tokens, 2),
        "switches": round(float(cell.switches.mean()), 3),
        "soft_steps": round(float(np.mean(soft)), 2) if soft else 0.0,
    }


def data_of(cells: Cells) -> dict[str, Any]:
    """Every cell's figures, JSON-ready."""
    return {
        "window": WINDOW,
        "longest": LONGEST,
        "cells": [_row(cell) for cell in cells.all()],
        "windows": [{"window": window, **_row(cell)} for window, cell in cells.windows],
    }


def drawer(cells: Cells) -> Callable[[Path], None]:
    """What draws accuracy over tokens to a path."""

    def draw(path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 4.4), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for index, (name, sweep) in enumerate(
            ((f"{OURS}, C_max {limit_of(cells.swir[0])} to none", cells.swir), *_sweeps(cells))
        ):
            _curve(axes, index, name, sweep, line="-")
        shown = [cell for cell in cells.baselines if cell.name != GREEDY]
        for index, cell in enumerate(shown, start=4):
            _curve(axes, index, cell.name, [cell], line="")
        axes.set_xlabel("tokens an example, sampled and injected")
        axes.set_ylabel("accuracy, 95 % interval")
        axes.set_title("A tiny searcher: accuracy by tokens spent", loc="left", fontsize=10)
        axes.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(-0.02, 1.02)
        axes.legend(frameon=False, fontsize=8)
        figure.savefig(path)

    return draw


def _sweeps(cells: Cells) -> tuple[tuple[str, list[Cell]], ...]:
    explicit = f"{OURS}, beginning explicit"
    return (FORCED, cells.forced), (CUT, cells.cut), (explicit, cells.explicit)


def _curve(axes: Any, index: int, name: str, sweep: Sequence[Cell], *, line: str) -> None:
    order = sorted(sweep, key=lambda cell: cell.tokens)
    intervals = [
        mean_interval(np.array([record.quality for record in cell.records])) for cell in order
    ]
    y = [interval.mean for interval in intervals]
    below = [max(0.0, i.mean - (i.mean if i.lo is None else i.lo)) for i in intervals]
    above = [max(0.0, (i.mean if i.hi is None else i.hi) - i.mean) for i in intervals]
    axes.errorbar(
        [cell.tokens for cell in order],
        y,
        yerr=[below, above],
        color=PALETTE[index % len(PALETTE)],
        marker=MARKERS[index % len(MARKERS)],
        markersize=5,
        linestyle=line,
        linewidth=1.6,
        elinewidth=1.0,
        capsize=2.5,
        label=name,
    )
