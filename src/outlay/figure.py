"""The frontier as a picture: one curve per method, error bars, direct labels (a legend for many).

Colours are those of Okabe and Ito, told apart with common colour blindness; markers differ too.
matplotlib is imported when a picture is drawn, on the Agg backend; pyplot and its global state are
not used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.errors import InputError

if TYPE_CHECKING:
    from outlay.frontier import Point

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B6B6B")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
UNITS = {
    "generated": "generated tokens per example",
    "generated+forced": "generated and forced tokens per example",
    "generated+forced+verifier": "generated, forced and verifier tokens per example",
    "prompt": "prompt tokens per example",
    "vision": "visual tokens per example",
    "all": "tokens per example, all kinds and roles",
    "flops": "FLOPs per example",
    "seconds": "seconds per example",
    "usd": "US dollars per example",
    "kv_bytes": "peak bytes of keys and values per example",
    "ttft": "seconds to the first token per example",
    "tbt": "seconds between tokens per example",
}


def by_stack(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Each method's points, sorted by cost; methods in order of first appearance."""
    curves: dict[str, list[Point]] = {}
    for point in points:
        curves.setdefault(point.stack, []).append(point)
    return {stack: sorted(curve, key=lambda p: p.cost) for stack, curve in curves.items()}


def spans(costs: Sequence[float], *, factor: float = 3.0) -> bool:
    """Whether positive costs spread so far that a logarithmic axis reads better."""
    return min(costs) > 0 and max(costs) / min(costs) >= factor


def spread(wanted: Sequence[float], gap: float, lo: float, hi: float) -> list[float]:
    """Label positions near `wanted`, `gap` apart, inside [lo, hi] where they fit."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed: list[float] = []
    for index in order:
        placed.append(max(wanted[index], placed[-1] + gap if placed else lo))
    ceiling = hi
    for k in reversed(range(len(placed))):
        placed[k] = min(placed[k], ceiling)
        ceiling = placed[k] - gap
    return [placed[order.index(index)] for index in range(len(wanted))]


def log_ticks(lo: float, hi: float) -> list[float]:
    """Round numbers within [lo, hi], lo > 0: powers of ten, with 2 and 5, or finer, as fits."""
    marks: list[float] = []
    for digits in ((10,), (10, 20, 50), (10, 15, 20, 30, 40, 50, 60, 80)):
        marks = [
            digit * 10.0**power / 10
            for power in range(math.floor(math.log10(lo)), math.ceil(math.log10(hi)) + 1)
            for digit in digits
            if lo <= digit * 10.0**power / 10 <= hi
        ]
        if len(marks) >= 4:
            break
    return marks


def linear_ticks(lo: float, hi: float, *, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [lo, hi], about so many."""
    if hi <= lo:
        return [lo]
    raw = (hi - lo) / about
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= raw * 0.999)
    first, last = math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def short(value: float) -> str:
    """A number for people, to three digits: 12, 3.4k, 5.6M, 7.8G, 0.012."""
    if value and not 1e-4 <= abs(value) < 1e18:
        return f"{value:.2e}"
    rounded = float(f"{value:.3g}")
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(rounded) >= size:
            return f"{rounded / size:.10g}{unit}"
    return f"{rounded:.10g}"


def plot(
    points: Sequence[Point],
    path: str | Path,
    *,
    title: str = "",
    metric: str = "quality",
    log: bool | None = None,
    width: float = 7.6,
    height: float = 4.6,
    dpi: int = 160,
) -> Path:
    """Draw quality against cost and save it; the suffix of `path` chooses the format.

    Args:
        points: of one task and one cost axis.
        path: ends in .png, .svg or .pdf.
        title: above the picture.
        metric: name of the quality axis.
        log: logarithmic cost axis; None decides by the span of the costs.
        width, height: in inches.
        dpi: of PNG files.

    Raises:
        InputError: for no points, or points of several tasks or axes.
    """
    if not points:
        raise InputError("nothing to plot: no points")
    if len({(p.task, p.axis) for p in points}) > 1:
        raise InputError("points of several tasks or axes; plot them one by one")
    if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"{path}: choose a name that ends in .png, .svg or .pdf")
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "svg.fonttype": "none",
        "svg.hashsalt": "outlay",
        "axes.axisbelow": True,
        "text.parse_math": False,  # a method's name may hold dollars
    }
    with rc_context(style):
        figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        curves = by_stack(points)
        for index, (_, curve) in enumerate(curves.items()):
            _draw_curve(axes, curve, index)
        costs = [p.cost for p in points]
        if spans(costs) if log is None else log:
            _log_axis(axes, costs)
        elif len(set(costs)) > 1:
            axes.margins(x=0.06)
        axes.set_xlabel(
            UNITS[points[0].axis] + (" (log scale)" if axes.get_xscale() == "log" else "")
        )
        axes.set_ylabel(metric)
        if title:
            axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=10)
        axes.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        if len(curves) > len(PALETTE):
            _legend(figure, curves)
        else:
            _label_curves(axes, curves)
        figure.savefig(path, metadata={"Date": None} if str(path).endswith(".svg") else None)
    return Path(path)


def _draw_curve(axes: Any, curve: Sequence[Point], index: int) -> None:
    color, dashes, marker = _look(index)
    x = [p.cost for p in curve]
    y = [p.quality for p in curve]
    axes.plot(x, y, dashes, color=color, linewidth=1.8, zorder=3)
    below = [0.0 if p.lo is None else max(0.0, p.quality - p.lo) for p in curve]
    above = [0.0 if p.hi is None else max(0.0, p.hi - p.quality) for p in curve]
    axes.errorbar(
        x,
        y,
        yerr=[below, above],
        fmt=marker,
        color=color,
        ecolor=color,
        elinewidth=1.1,
        capsize=3,
        markersize=5.5,
        markeredgecolor="white",
        markeredgewidth=0.8,
        zorder=4,
    )


def _look(index: int) -> tuple[str, str, str]:
    """Colour, dashes and marker of a curve; when colours come again, the other two differ."""
    again = index // len(PALETTE)
    marker = MARKERS[(index + again) % len(MARKERS)]
    return PALETTE[index % len(PALETTE)], ("-", "--", ":")[again % 3], marker


def _legend(figure: Any, curves: dict[str, list[Point]]) -> None:
    """Names beside the picture, the best at its largest cost first."""
    from matplotlib.lines import Line2D

    handles = []
    for index, stack in enumerate(curves):
        color, dashes, marker = _look(index)
        look: dict[str, Any] = {"color": color, "linestyle": dashes, "marker": marker}
        handles.append(Line2D([], [], label=stack, **look))
    order = sorted(zip(handles, curves.values(), strict=True), key=lambda p: -p[1][-1].quality)
    figure.legend(
        handles=[handle for handle, _ in order],
        loc="outside right upper",
        frameon=False,
        fontsize=9,
        handlelength=3.2,
    )


def _log_axis(axes: Any, costs: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    ratio = max(1.2, max(costs) / min(costs)) ** 0.06
    lo, hi = min(costs) / ratio, max(costs) * ratio
    axes.set_xlim(lo, hi)
    axes.xaxis.set_major_locator(FixedLocator(log_ticks(lo, hi)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _label_curves(axes: Any, curves: dict[str, list[Point]]) -> None:
    """Names at the right edge, moved apart where they would overlap; a curve that ends far from
    the edge is named at its end."""
    lo, hi = axes.get_ylim()
    axes.set_ylim(lo, hi)
    to_axes = axes.transLimits
    ends = {stack: curve[-1] for stack, curve in curves.items()}

    def share(point: Point) -> float:
        x = math.log10(point.cost) if axes.get_xscale() == "log" else point.cost
        return float(to_axes.transform((x, point.quality))[0])

    near = [stack for stack, end in ends.items() if share(end) > 0.7]
    if len(near) + 1 < len(ends):  # several names inside the picture would overlap
        near = list(ends)
    wanted = [ends[stack].quality for stack in near]
    places = dict(zip(near, spread(wanted, (hi - lo) * 0.055, lo, hi), strict=True))
    for index, (stack, end) in enumerate(ends.items()):
        color = PALETTE[index % len(PALETTE)]
        text: dict[str, Any] = {
            "color": color,
            "va": "center",
            "ha": "left",
            "fontweight": "bold",
            "fontsize": 9,
            "annotation_clip": False,
            "zorder": 6,
        }
        here = (end.cost, end.quality)
        if stack not in places:
            patch = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
            axes.annotate(stack, here, (9, 0), textcoords="offset points", bbox=patch, **text)
            continue
        axes.annotate(
            stack,
            here,
            (1.03, places[stack]),
            textcoords=axes.get_yaxis_transform(),
            arrowprops={"arrowstyle": "-", "color": color, "alpha": 0.45, "linewidth": 0.8},
            **text,
        )
