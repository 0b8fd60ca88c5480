"""The figures and the picture of the DynaICL proof's page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outlay.figure import MARKERS, PALETTE
from outlay.proofs.dynaicl_runs import ORACLE, PROPORTIONAL, SEQ2SEQ, UTILITY, FloatArray, Outcome
from outlay.stats import mean_interval
from outlay.testbeds.icl.world import FAMILIES

Outcomes = Mapping[int, Mapping[str, Sequence[Outcome]]]  # by mean k, then method


def mean_of(outcomes: Sequence[Outcome], name: str) -> float:
    """Mean of a figure over seeds."""
    return float(np.mean([getattr(outcome, name) for outcome in outcomes]))


def methods_data(outcomes: Outcomes) -> list[dict[str, Any]]:
    """Accuracy, tokens and demonstrations of every method at every budget, with intervals."""
    rows = []
    for mean_k, by in outcomes.items():
        for name, runs in by.items():
            low, high = _ends(np.concatenate([run.quality_N for run in runs]))
            rows.append(
                {
                    "mean_k": mean_k,
                    "method": name,
                    "accuracy": round(mean_of(runs, "accuracy"), 4),
                    "ci": [round(low, 4), round(high, 4)],
                    "tokens": round(mean_of(runs, "tokens"), 2),
                    "k": round(float(np.mean([run.k_N.mean() for run in runs])), 3),
                }
            )
    return rows


def _ends(quality_N: FloatArray) -> tuple[float, float]:
    interval = mean_interval(quality_N)
    return (
        interval.mean if interval.lo is None else interval.lo,
        interval.mean if interval.hi is None else interval.hi,
    )


def drawer(
    families: Mapping[str, Mapping[str, Any]],
    curve: Mapping[str, Sequence[float]],
    rows: Sequence[Mapping[str, Any]],
    real: Mapping[str, Any] | None,
) -> Callable[[Path], None]:
    """Draws what families need, what splits reach, and the same with a real model where it ran.

    Args:
        families: accuracy curves of the in-context model's families.
        curve: its tokens and accuracies with uniform k.
        rows: from `methods_data`.
        real: the page's data of the real model.
    """

    def draw(path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        panels = 2 if real is None else 3
        figure = Figure(figsize=(5.0 * panels, 4.2), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, panels, sharey=True)
        for index, family in enumerate(FAMILIES):
            axes[0].plot(
                families[family]["curve"],
                color=PALETTE[index],
                marker=MARKERS[index],
                markersize=5,
                linewidth=1.6,
                label=family,
            )
        axes[0].set_xlabel("demonstrations k")
        axes[0].set_ylabel("accuracy")
        axes[0].set_title("Inputs need different numbers", loc="left", fontsize=10)
        _frontier(axes[1], curve["tokens"], curve["accuracy"], rows)
        axes[1].set_title("Giving each what it needs, at equal tokens", loc="left", fontsize=10)
        if real is not None:
            _frontier(axes[2], real["tokens"], real["tasks"]["all"], real["methods"])
            axes[2].set_title("SmolLM2-135M on six tasks", loc="left", fontsize=10)
        for each in axes:
            each.legend(frameon=False, fontsize=8, loc="lower right")
            each.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
            each.spines[["top", "right"]].set_visible(False)
            each.set_ylim(-0.02, 1.02)
        figure.savefig(path)

    return draw


def _frontier(
    axes: Any,
    tokens: Sequence[float],
    accuracy: Sequence[float],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Accuracy against tokens: uniform k, and methods with their intervals."""
    axes.plot(
        tokens,
        accuracy,
        color="#6B6B6B",
        marker="x",
        markersize=5,
        linewidth=1.6,
        label="uniform k",
    )
    apart = 0.012 * max(tokens)
    for index, name in enumerate((PROPORTIONAL, UTILITY, SEQ2SEQ, ORACLE)):
        mine = [row for row in rows if row["method"] == name]
        if not mine:
            continue
        ends = [[row["accuracy"] - row["ci"][0], row["ci"][1] - row["accuracy"]] for row in mine]
        axes.errorbar(
            [row["tokens"] + apart * (index - 1.5) for row in mine],
            [row["accuracy"] for row in mine],
            yerr=np.array(ends).T,
            color=PALETTE[index],
            marker=MARKERS[index],
            markersize=5,
            linewidth=1.6,
            elinewidth=1.0,
            capsize=2.5,
            linestyle="--" if name == ORACLE else "-",
            label=name,
        )
    axes.set_xlabel("tokens of demonstrations per input")
