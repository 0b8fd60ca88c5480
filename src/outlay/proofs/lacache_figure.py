"""The picture of the LaCache proof."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outlay.figure import MARKERS, PALETTE
from outlay.proofs.lacache_runs import FULL, RANDOM, SHUFFLED, STREAMING

SHOWN = ("ladder S=15 O=0", "ladder S=15 O=7", SHUFFLED, RANDOM, "uniform stride", STREAMING)


def draw(path: Path, data: Mapping[str, Any]) -> None:
    """Recall against rows, recall against perplexity, and a long stream."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16.0, 4.4), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    _recall(left, data)
    _both(middle, data)
    _stream(right, data)
    for axes in (left, middle, right):
        axes.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _recall(axes: Any, data: Mapping[str, Any]) -> None:
    shares = sorted(float(share) for share in data["needles"])
    for index, name in enumerate(SHOWN):
        at = [share for share in shares if name in data["needles"][str(share)]]
        cells = [data["needles"][str(share)][name] for share in at]
        if not cells:
            continue
        y = [cell["accuracy"] for cell in cells]
        low = [value - cell["ci"][0] for value, cell in zip(y, cells, strict=True)]
        high = [cell["ci"][1] - value for value, cell in zip(y, cells, strict=True)]
        axes.errorbar(
            [100 * share for share in at],
            y,
            yerr=[low, high],
            color=PALETTE[index],
            marker=MARKERS[index],
            markersize=5,
            linewidth=1.6,
            capsize=2.5,
            label=name,
        )
    axes.axhline(0.1, color="#6B6B6B", linewidth=0.8, linestyle=":")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("rows kept (% of the prompt)")
    axes.set_ylabel("needle accuracy, depths .1 to .5")
    axes.set_title("Facts from the evicted past", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _both(axes: Any, data: Mapping[str, Any]) -> None:
    at = data["needles"][str(data["share"])]
    table = data["loss"][str(data["after"])]
    left_out = (FULL, "sliding window")  # far to the right
    names = [name for name in table if name in at and name not in left_out]
    for index, name in enumerate(names):
        x, y = table[name]["perplexity"], at[name]["accuracy"]
        ladder = "ladder" in name or "staircase" in name
        axes.plot(x, y, "o" if ladder else "s", color=PALETTE[0 if ladder else 4], markersize=6)
        axes.annotate(str(index + 1), (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7)
        axes.plot([], [], " ", label=f"{index + 1} {name}")
    axes.axvline(table[FULL]["perplexity"], color="#6B6B6B", linewidth=0.8, linestyle=":")
    axes.set_ylim(-0.02, 1.02)
    axes.legend(
        frameon=False, fontsize=6, handlelength=0, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    axes.set_xlabel(f"perplexity at {data['after']} rows (dotted: full cache)")
    axes.set_ylabel(f"needle accuracy at {data['share']:.0%} of the rows")
    axes.set_title("Recall and perplexity: up and left is better", loc="left", fontsize=10)


def _stream(axes: Any, data: Mapping[str, Any]) -> None:
    sides = {"LaCache": data["stream"], FULL: data["full_stream"]}
    for index, (name, blocks) in enumerate(sides.items()):
        if not blocks:
            continue
        x = [block["first"] for block in blocks]
        y = [math.exp(min(block["nll"], 20.0)) for block in blocks]
        axes.plot(x, y, color=PALETTE[index], linewidth=1.6, label=name)
    axes.set_yscale("log")
    axes.axvline(8192, color="#6B6B6B", linewidth=0.8, linestyle=":")
    axes.set_xlabel("tokens of the stream (dotted: trained window)")
    axes.set_ylabel("perplexity of a block")
    held = data["stream"][-1]["peak_bytes"] / 1e6
    axes.set_title(f"A long stream: LaCache holds {held:.0f} MB", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
