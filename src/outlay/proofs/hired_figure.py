"""The picture of HiRED's proof: accuracy by tokens, what each kind loses, and what was kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outlay.figure import MARKERS, PALETTE
from outlay.proofs.hired_runs import KINDS
from outlay.stats import mean_interval
from outlay.testbeds.seer.model import SIZES
from outlay.vision.hired.pictures import panels
from outlay.vision.pictures import faded

THUMBNAIL = SIZES["HR"].tokens  # what it has at most, whatever the budget


def drawer(
    scores: Mapping[tuple[str, float], np.ndarray],
    full: np.ndarray,
    blind: np.ndarray,
    limits: Mapping[float, int],
    plans: Sequence[tuple[np.ndarray, Any]],
) -> Callable[[Path], None]:
    """What draws the scores of clustered scenes and the choices of a few scenes."""

    def draw(path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 6.6), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        parts: Any = figure.subfigures(2, 1, height_ratios=[1.9, 1])
        above, below = parts
        left, right = above.subplots(1, 2, width_ratios=[1.5, 1])
        _curves(left, scores, full, blind, limits)
        _losses(right, scores, full, limits)
        shown = [panel for image, plan in plans for panel in panels(plan, image)]
        for axes, panel in zip(np.atleast_1d(below.subplots(1, len(shown))), shown, strict=True):
            axes.imshow(faded(panel))
            axes.set_axis_off()
            axes.set_title(panel.title, fontsize=8, loc="left")
        figure.savefig(path)

    return draw


def _curves(
    axes: Any,
    scores: Mapping[tuple[str, float], np.ndarray],
    full: np.ndarray,
    blind: np.ndarray,
    limits: Mapping[float, int],
) -> None:
    names = list(dict.fromkeys(name for name, _ in scores))
    rates = sorted(limits)
    for k, name in enumerate(names):
        found = [mean_interval(np.nanmean(scores[name, rate], axis=1)) for rate in rates]
        most = THUMBNAIL if name == "thumbnail only" else max(limits.values())
        x = [min(limits[rate], most) * 1.02 ** (k - 2) for rate in rates]
        y = [one.mean for one in found]
        below = [one.mean - (one.mean if one.lo is None else one.lo) for one in found]
        above = [(one.mean if one.hi is None else one.hi) - one.mean for one in found]
        axes.errorbar(
            x, y, yerr=[below, above], color=PALETTE[k], marker=MARKERS[k], capsize=3, label=name
        )
    for level, label, dash in ((full, "all tokens", "--"), (blind, "no visual token", ":")):
        axes.axhline(np.nanmean(level), color="#6B6B6B", linestyle=dash, label=label)
    axes.set_xscale("log")
    axes.set_xticks([limits[rate] for rate in rates], [str(limits[rate]) for rate in rates])
    axes.minorticks_off()
    axes.set(xlabel="visual tokens an image (log scale)", ylabel="accuracy, mean of four kinds")
    axes.set_title("Scenes with small digits in one tile", loc="left", fontweight="bold")
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0.0, 0.09))


def _losses(
    axes: Any,
    scores: Mapping[tuple[str, float], np.ndarray],
    full: np.ndarray,
    limits: Mapping[float, int],
) -> None:
    rates = sorted(limits, reverse=True)
    width = 0.8 / len(KINDS)
    for k, kind in enumerate(KINDS):
        lost = [np.nanmean(full[:, k] - scores["HiRED", rate][:, k]) for rate in rates]
        place = np.arange(len(rates)) + (k - (len(KINDS) - 1) / 2) * width
        axes.bar(place, lost, width * 0.92, color=PALETTE[k], label=kind)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(rates)), [f"{rate:.0%}" for rate in rates])
    axes.set(xlabel="rate", ylabel="accuracy lost under HiRED")
    axes.set_title("What each kind of question loses", loc="left", fontweight="bold")
    axes.grid(axis="y", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
