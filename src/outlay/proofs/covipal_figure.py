"""The picture of CoViPAL's proof: accuracy against tokens, by type of question."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from outlay.figure import MARKERS, PALETTE

Means = Mapping[str, Mapping[float, Mapping[str, float]]]
PANELS = {
    "which": '"which digit | garment is C"',
    "kind": '"what kind is C"',
    "exist": '"is there C"',
    "count": '"how many things"',
}
SHOWN = ("CoViPAL", "stage 1 only", "without text", "class token", "random", "true attention")


def drawer(table: Means, inside: Means, tokens: int) -> Callable[[Path], None]:
    """What draws the curves.

    Args:
        table: method -> ratio -> type -> accuracy, before the decoder.
        inside: likewise, inside it, at equal mean tokens.
        tokens: visual tokens of a prompt.
    """

    def draw(path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(13.0, 4.3), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(PANELS))
        for axis, (kind, title) in zip(axes, PANELS.items(), strict=True):
            for index, name in enumerate(SHOWN):
                points = sorted((ratio * tokens, row[kind]) for ratio, row in table[name].items())
                axis.plot(
                    *zip(*points, strict=True),
                    color=PALETTE[index],
                    marker=MARKERS[index],
                    markersize=5,
                    linewidth=2.2 if index == 0 else 1.3,
                    linestyle="--" if name == "true attention" else "-",
                    zorder=5 if index == 0 else 3,
                    label=name,
                )
            for name, rows in inside.items():
                if name.startswith("CoViPAL"):
                    continue
                marker = {"FastV-like, layer 1": "1", "FastV-like, layer 2": "2"}.get(name, "+")
                points = sorted((ratio * tokens, row[kind]) for ratio, row in rows.items())
                x, y = zip(*points, strict=True)
                axis.scatter(x, y, marker=marker, s=70, color="#222222", zorder=6, label=name)
            axis.axhline(
                table["all tokens"][1.0][kind], color="#6B6B6B", linewidth=0.9, linestyle=":"
            )
            axis.set_xscale("log")
            ticks = sorted({round(ratio * tokens) for ratio in table["CoViPAL"]})
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.minorticks_off()
            axis.set_xlabel("visual tokens (mean over layers)")
            axis.set_title(title, loc="left", fontsize=10)
            axis.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].set_ylabel("accuracy (dotted: all tokens)")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9
        )
        figure.savefig(path)

    return draw
