"""QuoTA's picture: accuracy against tokens, with and without scoring, and one clip as it is seen.

T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from outlay.figure import MARKERS, PALETTE
from outlay.frontier import points
from outlay.proofs.quota_runs import ENTITY, MAIN, UNIFORM, main_ways, scores_of
from outlay.proofs.quota_world import LENGTH, NEEDLE, WHOLE, parts
from outlay.records import Record
from outlay.testbeds.seer.model import Seer


def drawer(records: Sequence[Record], seer: Seer, seed: int) -> Callable[[Path], None]:
    """Draws the picture of finished runs."""

    def draw(path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure: Any = Figure(figsize=(11.4, 6.0), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        top, bottom = figure.subfigures(2, 1, height_ratios=(3.4, 1))
        axes = top.subplots(1, 3)
        _curves(axes[0], records, NEEDLE, "prompt", "prompt tokens to answer")
        _curves(axes[1], records, NEEDLE, "all", "tokens to score and to answer (log scale)")
        _curves(axes[2], records, WHOLE, "prompt", "prompt tokens to answer")
        axes[1].set_xscale("log")
        handles = axes[0].get_legend_handles_labels()
        top.legend(*handles, loc="outside upper left", ncols=4, frameon=False, fontsize=9)
        _clip(bottom, seer, seed)
        figure.savefig(path)

    return draw


def _curves(
    axis: Any, records: Sequence[Record], group: str, cost: Literal["prompt", "all"], label: str
) -> None:
    some = [record for record in records if record.task == group]
    found = points(some, axis=cost)
    for index, name in enumerate(MAIN):
        curve = sorted((p for p in found if p.stack == name), key=lambda p: p.cost)
        if not curve:
            continue
        quality = np.array([p.quality for p in curve])
        lo = np.array([p.quality if p.lo is None else p.lo for p in curve])
        hi = np.array([p.quality if p.hi is None else p.hi for p in curve])
        axis.errorbar(
            [p.cost for p in curve],
            quality,
            yerr=np.maximum([quality - lo, hi - quality], 0),
            color=PALETTE[index % len(PALETTE)],
            marker=MARKERS[index % len(MARKERS)],
            linewidth=1.6,
            capsize=2,
            markersize=5,
            label=name,
        )
    count = len({record.example for record in some})
    axis.set_title(f"{group}, {count} questions", loc="left", fontsize=10, fontweight="bold")
    axis.set_xlabel(label)
    axis.set_ylabel("accuracy")
    axis.grid(alpha=0.15)
    axis.spines[["top", "right"]].set_visible(False)


def _clip(figure: Any, seer: Seer, seed: int) -> None:
    """One needle's clip: the frames, their scores, and the grids of both splits."""
    part = parts(seed, 24, needles_only=True)[0]
    asked: Any = part.asked[:1]
    scores = scores_of(seer, "entity", seer.features(asked.seen), asked)[0][0]
    ways = {way.name: way for way in main_ways(seer.size.grid, LENGTH)}
    budget = LENGTH * 4
    grids = {name: ways[name].spend(scores, budget) for name in (UNIFORM, ENTITY)}
    axes = figure.subplots(1, LENGTH)
    for t, axis in enumerate(axes):
        axis.imshow(asked.seen.frames[0, t])
        axis.set_xticks([])
        axis.set_yticks([])
        even, ours = (h * w for h, w in (grids[UNIFORM][t], grids[ENTITY][t]))
        axis.set_xlabel(f"{scores[t]:.2f}\n{even}\n{ours}", fontsize=7.5)
        for spine in axis.spines.values():
            spine.set_color(PALETTE[1] if ours > even else "#BBBBBB")
            spine.set_linewidth(2.0 if ours > even else 0.8)
    axes[0].set_ylabel("score\neven split\nQuoTA", fontsize=7.5, rotation=0, ha="right", va="top")
    axes[0].yaxis.set_label_coords(-0.12, -0.08)
    question = asked.questions[0]
    figure.suptitle(
        f"{' '.join(question.words)}?  (answer: {question.answer[0]})  Tokens of each frame, "
        f"{budget} in all",
        fontsize=10,
        x=0.01,
        ha="left",
    )
