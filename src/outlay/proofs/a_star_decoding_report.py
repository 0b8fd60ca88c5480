"""What the A*-decoding proof keeps and shows: rows, points and the picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outlay.budget import Budget
from outlay.figure import MARKERS, PALETTE
from outlay.frontier import Point
from outlay.proofs.a_star_decoding_runs import AXES, Setting
from outlay.proofs.a_star_decoding_world import ASTAR, BEST, BEST_OF, K
from outlay.stats import mean_interval


def row_of(setting: Setting) -> dict[str, Any]:
    """What is kept of a setting."""
    row: dict[str, Any] = {"method": setting.method, "knob": setting.knob}
    row["accuracy"] = round(setting.accuracy, 4)
    row |= {axis: round(setting.cost(axis), 1) for axis in AXES}
    if setting.answers and "expansions" in setting.answers[0].detail:
        details = [answer.detail for answer in setting.answers]
        for name in ("expansions", "nodes", "duplicates", "dead"):
            row[name] = round(float(np.mean([detail[name] for detail in details])), 2)
        deepest = max(len(detail["expansions_by_depth"]) for detail in details)
        row["expansions_by_depth"] = [
            round(sum((d["expansions_by_depth"] + [0] * deepest)[at] for d in details), 1)
            for at in range(deepest)
        ]
        statuses = [answer.status for answer in setting.answers]
        row["statuses"] = {name: statuses.count(name) for name in sorted(set(statuses))}
    return row


def point_of(setting: Setting) -> Point:
    """The setting as a point of the results page."""
    found = mean_interval(setting.right_N)
    return Point(
        stack=setting.method,
        budget=Budget(calls=setting.knob),
        quality=found.mean,
        lo=found.lo,
        hi=found.hi,
        n=found.n,
        tokens=setting.cost("billed"),
        flops=0.0,
        kv_bytes=None,
        seconds=0.0,
        ttft=None,
        tbt=None,
        task="chainarith, 6 to 12 operations",
        axis="generated+forced+verifier",
        cost=setting.cost("billed"),
        interval=found.method,
    )


def drawer(
    curves: Mapping[str, Sequence[Setting]],
    aucs: Sequence[tuple[float, Setting]],
    rivals: Sequence[float],
) -> Callable[[Path], None]:
    """The picture.

    Args:
        curves: of all methods with the learned verifier.
        aucs: searches with the oracle.
        rivals: accuracy of best-of-N with the same oracles.
    """

    def draw(path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 4.6), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        left, middle, right = figure.subplots(1, 3)
        for axes, axis in ((left, "computed"), (middle, "billed")):
            for at, (name, curve) in enumerate(curves.items()):
                axes.plot(
                    [setting.cost(axis) for setting in curve],
                    [setting.accuracy for setting in curve],
                    color=PALETTE[at],
                    marker=MARKERS[at],
                    markersize=5,
                    linewidth=1.6,
                    label=name,
                )
            axes.set_xscale("log")
            axes.set_xlabel(f"tokens per question, verifier included ({axis})")
            axes.set_ylabel("accuracy")
            axes.set_title(f"Learned verifier, tokens {axis}", loc="left", fontsize=10)
        left.legend(frameon=False, fontsize=8)
        right.plot(
            [auc for auc, _ in aucs],
            [setting.accuracy for _, setting in aucs],
            color=PALETTE[0],
            marker=MARKERS[0],
            label=f"{ASTAR}, k={K}",
        )
        right.plot(
            [auc for auc, _ in aucs],
            list(rivals),
            color=PALETTE[1],
            marker=MARKERS[1],
            label=f"{BEST}, N={BEST_OF}",
        )
        right.set_xlabel("AUC of the oracle")
        right.set_ylabel("accuracy")
        right.set_title("What the verifier is worth", loc="left", fontsize=10)
        right.legend(frameon=False, fontsize=8)
        for axes in (left, middle, right):
            axes.set_ylim(-0.02, 1.02)
            axes.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path)

    return draw
