"""The picture and the table of numbers of T2T-ViT's proof."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outlay.figure import MARKERS, PALETTE
from outlay.proofs.t2t_vit_runs import Outcome, World
from outlay.stats import mean_interval

Runs = Mapping[tuple[World, int, str], Sequence[Outcome]]


def data_of(runs: Runs) -> dict[str, Any]:
    """Accuracies and costs, JSON-ready."""
    rows = []
    for (world, samples, name), part in runs.items():
        cell = part[0].cell
        rows.append(
            {
                "world": world,
                "samples": samples,
                "tokeniser": name,
                "accuracy": [round(outcome.accuracy, 4) for outcome in part],
                "last_weights": [round(outcome.last, 4) for outcome in part],
                "seen": cell.seen,
                "tokens": cell.method.tokens_per_image,
                "macs": cell.method.macs,
                "tokeniser_macs": cell.method.tokeniser_macs,
                "parameters": part[0].parameters,
                "seconds": [outcome.seconds for outcome in part],
                "loss": part[0].loss,
                "curve": [outcome.curve for outcome in part if outcome.curve],
            }
        )
    return {"runs": rows}


def drawer(runs: Runs, names: Sequence[str], change: str = "") -> Callable[[Path], None]:
    """Accuracy against samples, one panel a world.

    Args:
        runs: by world, sample size and name.
        names: of the curves.
        change: that was tried, drawn with open markers where there are runs of it.
    """

    def draw(path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        worlds = list(dict.fromkeys(world for world, _, _ in runs))
        figure = Figure(figsize=(5.0 * len(worlds), 4.2), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        panels = np.atleast_1d(figure.subplots(1, len(worlds)))
        for axes, world in zip(panels, worlds, strict=True):
            for index, name in enumerate(names):
                _curve(axes, index, len(names), name, runs, world)
                changed = f"{name}, {change}"
                if any(place == world and other == changed for place, _, other in runs):
                    _curve(axes, index, len(names), changed, runs, world, tried=True)
            axes.set_xscale("log")
            sizes = sorted({samples for place, samples, _ in runs if place == world})
            axes.set_xticks(sizes, [f"{samples:,}" for samples in sizes])
            axes.minorticks_off()
            axes.set_xlim(sizes[0] / 1.35, sizes[-1] * 1.35)
            axes.set_xlabel("training pictures")
            axes.set_title(f"{world}: 49 tokens, the same backbone", loc="left", fontsize=10)
            axes.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("test accuracy, 95 % interval")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(path)

    return draw


def _curve(
    axes: Any, index: int, count: int, name: str, runs: Runs, world: World, tried: bool = False
) -> None:
    sizes = sorted(samples for place, samples, other in runs if (place, other) == (world, name))
    means, low, high = [], [], []
    for samples in sizes:
        part = runs[world, samples, name]
        interval = mean_interval(np.mean([outcome.right for outcome in part], axis=0))
        means.append(interval.mean)
        low.append(interval.mean - (interval.lo or 0.0))
        high.append((interval.hi or 1.0) - interval.mean)
    shift = 1.05 ** (index - (count - 1) / 2)  # apart, where points coincide
    axes.errorbar(
        [samples * shift for samples in sizes],
        means,
        yerr=[np.maximum(low, 0), np.maximum(high, 0)],
        color=PALETTE[index],
        marker=MARKERS[index],
        markerfacecolor="white" if tried else PALETTE[index],
        linestyle="--" if tried else "-",
        markersize=5,
        linewidth=1.6,
        elinewidth=1.0,
        capsize=2.5,
        label=name,
    )
