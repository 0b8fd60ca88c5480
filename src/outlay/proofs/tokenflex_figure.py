"""The picture of TokenFLEX's proof: fine and coarse questions, by tokens at inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from outlay.figure import MARKERS, PALETTE
from outlay.proofs.tokenflex_runs import BETWEEN, COARSE, COUNTS, FINE, columns
from outlay.stats import mean_interval

LINES = ("flex", "fixed-144", "fixed-36", "fixed-9", "flex-mlp", "top-k of fixed-144")
_DASHED = frozenset({"flex-mlp", "top-k of fixed-144"})


def drawer(tables: Mapping[tuple[str, int], np.ndarray]) -> Callable[[Path], None]:
    """What draws the matrix of models and counts, two panels."""

    def draw(path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4.6), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, sharey=True)
        _panel(left, tables, FINE, "fine: which digit, which garment")
        _panel(right, tables, COARSE, "coarse: how many, is there")
        left.set_ylabel("exact answers on held-out scenes")
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=6, frameon=False)
        figure.suptitle("Accuracy by visual tokens at inference, 95 % intervals", fontsize=11)
        figure.savefig(path)

    return draw


def _panel(
    axes: Any,
    tables: Mapping[tuple[str, int], np.ndarray],
    kinds: tuple[str, ...],
    title: str,
) -> None:
    known = {name for name, _ in tables}
    for k, name in enumerate(line for line in LINES if line in known):
        style = LINES.index(name)
        counts = sorted(n for arm, n in tables if arm == name and n in COUNTS)
        colour, marker = PALETTE[style], MARKERS[style]
        found = [_interval(tables[name, n], kinds) for n in counts]
        x = [n * 1.02 ** (k - 2) for n in counts]
        mean = [one[0] for one in found]
        spread = [[one[0] - one[1] for one in found], [one[2] - one[0] for one in found]]
        axes.errorbar(
            x,
            mean,
            yerr=spread,
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=2.2 if name == "flex" else 1.3,
            linestyle="--" if name in _DASHED else "-",
            capsize=2,
            label=name,
        )
    for n in BETWEEN:
        if ("flex", n) in tables:
            mean_n = _interval(tables["flex", n], kinds)[0]
            label = "flex, count not trained" if n == BETWEEN[0] else None
            axes.plot(n, mean_n, marker="o", color=PALETTE[0], fillstyle="none", ls="", label=label)
    axes.set_xscale("log")
    ticks = sorted({n for _, n in tables if n})
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.set_xlabel("visual tokens of an image")
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _interval(table: np.ndarray, kinds: tuple[str, ...]) -> tuple[float, float, float]:
    part = table[:, columns(kinds)]
    found = mean_interval(np.nanmean(part[~np.isnan(part).all(1)], axis=1))
    low = found.mean if found.lo is None else found.lo
    return found.mean, low, found.mean if found.hi is None else found.hi
