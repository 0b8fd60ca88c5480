"""The picture of the CoIn proof."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from outlay.figure import MARKERS, PALETTE


def drawer(
    main: Mapping[tuple[str, float], float], alarms: float, rates: Sequence[float]
) -> Callable[[Path], None]:
    """Draw detection over the rate of inflation, and the false alarms."""

    def draw(path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.0, 4.6), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        names = list(dict.fromkeys(attack for attack, _ in main))
        for index, attack in enumerate(names):
            own = sorted(ir for name, ir in main if name == attack)
            axes.plot(
                own,
                [main[attack, ir] for ir in own],
                color=PALETTE[index % len(PALETTE)],
                marker=MARKERS[index % len(MARKERS)],
                markersize=5,
                linewidth=1.6,
                linestyle="-" if index < len(PALETTE) else "--",
                label=attack,
            )
        axes.axhline(alarms, color="#6B6B6B", linewidth=1.0, linestyle=":", label="false alarms")
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(list(rates), [f"{ir:g}" for ir in rates])
        axes.set_xlabel("injected / true tokens (IR)")
        axes.set_ylabel("audits that detect it")
        axes.set_title("What an audit sees, and what escapes it", loc="left", fontsize=10)
        axes.set_ylim(-0.02, 1.02)
        axes.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path)

    return draw
