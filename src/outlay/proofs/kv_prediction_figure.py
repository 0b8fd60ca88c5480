"""The picture of the proof of KV Prediction: quality against the cost of the first token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outlay.figure import MARKERS, PALETTE
from outlay.figure import spread as apart
from outlay.proofs.kv_prediction_runs import Timed
from outlay.proofs.kv_prediction_study import Answered

_NAMES = {"kvp": "KV Prediction", "aux of the pair": "its auxiliary", "recent": "recent tokens"}


def draw(
    path: Path, studies: Sequence[Answered], real: Mapping[str, Any], timed: Sequence[Timed]
) -> None:
    """Write the picture: the reasoner, text, early facts, the clock."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = 2 + len(real)
    figure = Figure(figsize=(5.2 * min(2, panels), 4.0 * ((panels + 1) // 2)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots((panels + 1) // 2, min(2, panels), squeeze=False).flat)
    shares = {name: flops / studies[0].flops["base"] for name, flops in studies[0].flops.items()}
    right = {name: float(np.mean([each.right[name].mean() for each in studies])) for name in shares}
    _scatter(axes[0], shares, right, "accuracy", f"reasoner, {len(studies)} seeds")
    titles = {"text": "embedded model: text", "needles": "embedded model: early facts"}
    for axis, (material, outcomes) in zip(axes[1:], real.items(), strict=False):
        cost = {name: way.flops / outcomes["base"].flops for name, way in outcomes.items()}
        nats = {name: float(way.nll_N.mean()) for name, way in outcomes.items()}
        _scatter(axis, cost, nats, "nats per token (lower is better)", titles[material])
    clock = axes[1 + len(real)]
    place = np.arange(len(timed))
    clock.bar(place - 0.2, [t.expected for t in timed], 0.38, color=PALETTE[6], label="FLOPs say")
    clock.bar(place + 0.2, [t.measured for t in timed], 0.38, color=PALETTE[0], label="measured")
    clock.set_xticks(place, [str(t.tokens) for t in timed])
    clock.set_xlabel("prompt tokens")
    clock.set_ylabel("times faster to the first token")
    clock.set_title("the clock", loc="left", fontsize=10)
    clock.set_ylim(0, 1.25 * max(t.expected for t in timed))
    clock.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def _scatter(
    axis: Any, cost: Mapping[str, float], value: Mapping[str, float], label: str, title: str
) -> None:
    names = list(cost)
    low, high = min(value.values()), max(value.values())
    room = (high - low) or 1.0
    axis.set_ylim(low - 0.08 * room, high + 0.08 * room)
    axis.set_xlim(-0.03, 1.5)
    height = apart([value[n] for n in names], 0.065 * room, low - 0.05 * room, high + 0.06 * room)
    for index, (name, text_y) in enumerate(zip(names, height, strict=True)):
        ours = name == "kvp" or name.startswith("KVP")
        color = PALETTE[0] if ours else PALETTE[index % (len(PALETTE) - 1) + 1]
        marker = MARKERS[index % len(MARKERS)]
        axis.plot(cost[name], value[name], marker, color=color, ms=8 if ours else 6)
        axis.annotate(
            _NAMES.get(name, name),
            (cost[name], value[name]),
            (1.06, text_y),
            color=color,
            fontsize=7.5,
            va="center",
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.4, "relpos": (0, 0.5)},
        )
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    axis.set_xlabel("FLOPs to the first token, of the base's")
    axis.set_ylabel(label)
    axis.set_title(title, loc="left", fontsize=10)
