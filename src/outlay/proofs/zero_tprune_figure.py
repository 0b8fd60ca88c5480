"""The picture of Zero-TPrune's proof: accuracy against cost, rankings by block, patches kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outlay.figure import MARKERS, PALETTE
from outlay.proofs.zero_tprune_runs import (
    CLASS,
    COLUMN,
    FULL,
    LATE,
    NO_COPIES,
    ORACLE,
    OURS,
    RANDOM,
    SIZES,
    TOME,
    Cell,
)
from outlay.proofs.zero_tprune_when import MANY, Block
from outlay.testbeds.garments import Scenes

CURVES = (OURS, NO_COPIES, COLUMN, CLASS, RANDOM, TOME, LATE, ORACLE)
SHOWN = (OURS, COLUMN, CLASS)
GREY = "#9A9A9A"


def draw(
    path: Path,
    cells: Mapping[tuple[str, str, int], Cell],
    budgets: Sequence[str],
    looks: Sequence[Block],
    seen: Mapping[int, Scenes],
) -> None:
    """Write the picture.

    Args:
        path: ends in .png.
        cells: by method, budget and size.
        budgets: their names, dearest first.
        looks: rankings by block.
        seen: the first scenes of each size, whose kept patches are shown.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 8.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 3, height_ratios=(1.15, 1))
    for column, size in enumerate(SIZES):
        axes = figure.add_subplot(grid[0, column])
        _curves(axes, cells, budgets, size, names=column == 1)
    _blocks(figure.add_subplot(grid[0, 2]), looks)
    rows = grid[1, :].subgridspec(1, len(SIZES) * 3, wspace=0.03)
    at = 0
    for size in SIZES:
        for index in range(min(3, len(seen[size]))):
            axes = figure.add_subplot(rows[0, at])
            _kept(axes, cells, budgets[-1], size, seen[size], index)
            at += 1
    figure.savefig(path)


def _curves(
    axes: Any, cells: Mapping[Any, Cell], budgets: Sequence[str], size: int, names: bool
) -> None:
    whole = cells[FULL, "", size].accuracy
    axes.axhline(whole, color=GREY, linewidth=1, linestyle=":", label="all patches")
    for index, name in enumerate(CURVES):
        found = [cells[name, b, size] for b in budgets if (name, b, size) in cells]
        if not found:
            continue
        color = GREY if name == ORACLE else PALETTE[index % len(PALETTE)]
        axes.plot(
            [cell.macs for cell in found],
            [cell.accuracy for cell in found],
            marker=MARKERS[index % len(MARKERS)],
            color=color,
            linestyle="--" if name == ORACLE else "-",
            linewidth=2 if name == OURS else 1.3,
            markersize=5,
            label=name,
        )
    axes.set_title(f"objects of {size} px", loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel("MACs, pruning included, of all patches'")
    axes.set_ylabel("accuracy")
    axes.grid(True, alpha=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    if names:
        axes.legend(fontsize=7.5, frameon=False, loc="lower right")


def _blocks(axes: Any, looks: Sequence[Block]) -> None:
    for index, size in enumerate(SIZES):
        found = [block for block in looks if block.size == size]
        for name, style in (("column mean", "-"), (f"{MANY} votes", "--")):
            axes.plot(
                [block.block for block in found],
                [block.auc[name] for block in found],
                style,
                marker=MARKERS[index],
                color=PALETTE[index],
                markerfacecolor=PALETTE[index] if style == "-" else "white",
                markersize=5,
                label=f"{size} px, {name}",
            )
    axes.axhline(0.5, color=GREY, linewidth=1, linestyle=":")
    axes.set_title("who points at the object", loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel("block")
    axes.set_ylabel("AUC of object patches")
    axes.grid(True, alpha=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7.5, frameon=False, loc="lower center", handlelength=3.5)


def _kept(
    axes: Any, cells: Mapping[Any, Cell], budget: str, size: int, seen: Scenes, index: int
) -> None:
    """One scene under the rankings of `SHOWN`, dropped patches dimmed."""
    image = seen.pixels_BCHW[index].permute(1, 2, 0).numpy().astype(float) / 255
    panels = [image]
    for name in SHOWN:
        kept_BK = cells[name, budget, size].kept_BK
        assert kept_BK is not None
        bright = np.full(64, 0.25)
        bright[kept_BK[index].numpy()] = 1.0
        shade = bright.reshape(8, 8).repeat(8, 0).repeat(8, 1)[..., None]
        panels.append(image * shade + (1 - shade) * 0.9)
    gap = np.ones((4, 64, 3))
    stacked = [part for panel in panels for part in (panel, gap)][:-1]
    axes.imshow(np.concatenate(stacked), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([32 + 68 * i for i in range(len(panels))])
    axes.set_yticklabels(["scene", *SHOWN] if not index else [""] * len(panels), fontsize=7.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
