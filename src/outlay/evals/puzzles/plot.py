"""The three-regime picture: accuracy and thinking tokens against complexity, regimes shaded.

matplotlib is imported when a picture is drawn, on the Agg backend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from outlay.errors import InputError
from outlay.evals.puzzles.curves import Accuracy, Sample, accuracy, effort
from outlay.evals.puzzles.regimes import Level
from outlay.figure import MARKERS, PALETTE

SHADES = {"low": "#009E73", "medium": "#E69F00", "high": "#D55E00"}


def draw_regimes(
    path: str | Path,
    ways: Mapping[str, Sequence[Sample]],
    levels: Sequence[Level],
    *,
    title: str,
    x: Literal["n", "moves"] = "n",
) -> None:
    """Draw two panels over N: accuracy with Wilson bars, and mean thinking tokens.

    Args:
        path: of the picture (PNG, SVG or PDF).
        ways: samples by name, at most seven ways; thinking tokens are drawn where they were
            counted and not all 0.
        levels: regimes to shade; "undetermined" ones stay white.
        title: of the picture.
        x: the axis: N, or the moves of a shortest solution (logarithmic, without shades).

    Raises:
        InputError: for x="moves" with a level whose solution is unknown.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.2), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    place = _moves(ways) if x == "moves" else {}
    for index, (name, samples) in enumerate(ways.items()):
        accuracy_line(left, index, name, accuracy(samples), place)
        counted = [s for s in samples if s.thinking is not None]
        if any(s.thinking for s in counted):
            curve = effort(counted)
            right.plot(
                [place.get(n, n) for n in curve],
                [at.mean for at in curve.values()],
                color=PALETTE[index],
                marker=MARKERS[index],
                label=name,
            )
            cut = effort(counted, truncated=True)
            if any(cut[n].mean != curve[n].mean for n in curve):
                right.plot(
                    [place.get(n, n) for n in cut],
                    [at.mean for at in cut.values()],
                    color=PALETTE[index],
                    linestyle=":",
                    label=f"{name}, truncated ones too",
                )
    if x == "n":
        shade(left, levels)
        shade(right, levels)
    left.set_ylabel("accuracy of reasoning, 95 % interval")
    left.set_ylim(-0.03, 1.03)
    right.set_ylabel("thinking tokens per sample")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xlabel("complexity N" if x == "n" else "moves of a shortest solution")
        axes.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        if x == "n":
            axes.xaxis.get_major_locator().set_params(integer=True)
        else:
            axes.set_xscale("log")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(path)


def _moves(ways: Mapping[str, Sequence[Sample]]) -> dict[int, int]:
    place: dict[int, int] = {}
    for sample in (sample for samples in ways.values() for sample in samples):
        if not sample.moves:
            raise InputError(f"level {sample.n} has no known solution length; use x='n'")
        place[sample.n] = sample.moves
    return place


def accuracy_line(
    axes: Any,
    index: int,
    name: str,
    curve: Sequence[Accuracy],
    place: Mapping[int, int] = MappingProxyType({}),
) -> None:
    """One accuracy curve with Wilson bars; levels without an accuracy are left out.

    Args:
        axes: of matplotlib.
        index: of its colour and marker.
        name: in the legend.
        curve: what is drawn.
        place: where a level lies on the x axis; at N where it says nothing.
    """
    shown = [
        (place.get(at.n, at.n), at.accuracy, at.accuracy - at.lo, at.hi - at.accuracy)
        for at in curve
        if at.accuracy is not None and at.lo is not None and at.hi is not None
    ]
    if not shown:
        return
    n, value, below, above = zip(*shown, strict=True)
    axes.errorbar(
        n,
        value,
        yerr=[[max(0.0, each) for each in below], [max(0.0, each) for each in above]],
        color=PALETTE[index],
        marker=MARKERS[index],
        markersize=5,
        capsize=2.5,
        label=name,
    )


def shade(axes: Any, levels: Sequence[Level]) -> None:
    """Colour the background of every named regime and write its name on top."""
    for level in levels:
        if level.regime in SHADES:
            axes.axvspan(
                level.n - 0.5, level.n + 0.5, color=SHADES[level.regime], alpha=0.10, linewidth=0
            )
    runs: list[list[Level]] = []
    for level in levels:
        if runs and runs[-1][-1].regime == level.regime and level.n == runs[-1][-1].n + 1:
            runs[-1].append(level)
        else:
            runs.append([level])
    for run in runs:
        if run[0].regime in SHADES:
            axes.text(
                (run[0].n + run[-1].n) / 2,
                1.01,
                run[0].regime,
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=8,
                color=SHADES[run[0].regime],
            )
