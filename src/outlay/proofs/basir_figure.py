"""The picture of the BASIR proof."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from outlay.figure import MARKERS, PALETTE
from outlay.proofs.basir_runs import Cell, RouteRun


def drawer(
    runs: Mapping[str, RouteRun], cells: Mapping[tuple[str, float], Cell], signals: Sequence[float]
) -> Callable[[Path], None]:
    """What writes the picture: F1 of the routes, excess and plain NDCG against the signal."""

    def draw_to(path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(13.0, 4.4), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        bars, left, right = figure.subplots(1, 3)
        places = np.arange(len(runs))
        for shift, average, color in ((0.2, "micro", PALETTE[0]), (-0.2, "macro", PALETTE[1])):
            values = [getattr(run.report, average) for run in runs.values()]
            bars.barh(places + shift, values, 0.38, color=color, label=f"{average}-F1")
        bars.set_yticks(places, list(runs))
        bars.invert_yaxis()
        bars.set_xlabel("F1 on test texts")
        bars.set_title("Routes, 81 labels", loc="left", fontsize=10)
        bars.legend(frameon=False, fontsize=8, loc="lower right")
        names = list(dict.fromkeys(name for name, _ in cells))
        for index, name in enumerate(names):
            mine = [cells[name, signal] for signal in signals]
            spans = [cell.report.interval() for cell in mine]
            y = [cell.report.mean("excess") for cell in mine]
            x = np.array(signals) + 0.015 * (index - len(names) / 2)
            style = {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % 7]}
            error = np.abs(np.array(spans).T - np.array(y))
            left.errorbar(x, y, yerr=error, label=name, capsize=2, markersize=4, **style)
            right.plot(x, [cell.trap for cell in mine], label=name, markersize=4, **style)
        left.set_title("Excess NDCG tells signal from none", loc="left", fontsize=10)
        left.set_ylabel("excess NDCG, rank relevance, 95 % interval")
        right.set_title("NDCG on price relatives does not", loc="left", fontsize=10)
        right.set_ylabel("NDCG, relevance 1 + return")
        right.set_ylim(0.0, 1.05)
        for axes in (left, right):
            axes.set_xlabel("strength of the signal in the words")
            axes.legend(frameon=False, fontsize=8, loc="center right" if axes is right else "best")
        for axes in (bars, left, right):
            axes.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path)

    return draw_to
