"""The picture of the RSD proof: tokens per pass by nodes, and what a pass costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from outlay.figure import MARKERS, PALETTE
from outlay.proofs.rsd_runs import MODES, NAMES


def drawer(studies: Mapping[str, Mapping[str, Any]]) -> Callable[[Path], None]:
    """What draws the studies of the pairs, and the costs where they were measured."""

    def draw(path: Path) -> None:
        from matplotlib.figure import Figure

        pairs = [name for name in studies if name != "cost"]
        figure = Figure(figsize=(4.2 * (len(pairs) + 1), 3.6), layout="constrained")
        axes = figure.subplots(1, len(pairs) + 1)
        for axis, name in zip(axes, pairs, strict=False):
            found = studies[name]["efficiency"]
            labels = [label for label in found if label.startswith("B=")]
            nodes = [int(label[2:]) for label in labels]
            for k, mode in enumerate(MODES):
                means = [float(found[label][mode].mean()) for label in labels]
                axis.plot(nodes, means, color=PALETTE[k], marker=MARKERS[k], label=NAMES[mode])
            axis.set(xlabel="draft tokens per pass (B)", ylabel="tokens per pass", title=name)
            axis.set_xticks(nodes)
            axis.grid(alpha=0.3)
        axes[0].legend(frameon=False, fontsize=8)
        last = axes[-1]
        if "cost" in studies:
            cost = studies["cost"]["rows"]
            last.plot(list(cost), list(cost.values()), color=PALETTE[0], marker=MARKERS[0])
            last.set(
                xlabel="rows of a pass",
                ylabel="seconds, relative to one row",
                title="SmolLM2: what a pass costs",
            )
            last.grid(alpha=0.3)
        else:
            last.set_axis_off()
        figure.savefig(path, dpi=130)

    return draw
