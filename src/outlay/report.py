"""Reports of a comparison: one self-contained HTML page, and a table for the terminal.

The page needs no network: styles, script and chart are inline, and its own content policy forbids
loading anything. Everything that comes from models or data is escaped; answers may hold HTML.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.chart import Chart, interval_text, layout
from outlay.errors import InputError
from outlay.evals.base import Mark
from outlay.figure import UNITS, by_stack, short
from outlay.frontier import Point, points
from outlay.html import template
from outlay.ledger import Totals
from outlay.paired import verdicts
from outlay.records import GAUGED, Axis, Key, Prices, Record, unique

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = {
    "best": "best",
    "highest": "highest, not separable",
    "not separable": "not separable from best",
    "worse": "",
    "alone": "",
}
KINDS_SHOWN = {
    "prompt_new": "prompt",
    "prompt_cached": "cached",
    "generated": "generated",
    "forced": "forced",
    "discarded": "discarded",
}
DETAIL_LIMIT = 4000  # characters of one excerpt
MARKED_LIMIT = 20_000  # the same, of a text with marks


@dataclass(frozen=True)
class Detail:
    """What opens under an example.

    Args:
        texts: by name ("prompt", "thinking", "answer", "expected", ...).
        marks: by text's name: stretches shown in colour, with a label.
    """

    texts: Mapping[str, str]
    marks: Mapping[str, Sequence[Mark]] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """How one task is shown.

    Args:
        metric: name of the quality ("accuracy", "edit similarity", "nats per token").
        axis: cost axis of the chart.
        higher_is_better: of the quality.
        about: one sentence under the task's name.
    """

    metric: str = "quality"
    axis: Axis = "generated+forced"
    higher_is_better: bool = True
    about: str = ""


@dataclass(frozen=True)
class _Row:
    point: Point
    quality: str
    verdict: str
    flag: str
    color: int


@dataclass(frozen=True)
class _Bar:
    """A method's mean tokens per example at one budget, split by stage, role and kind."""

    stack: str
    budget: str
    parts: tuple[tuple[str, float, float], ...]  # name, tokens, per cent of the longest bar
    total: float


@dataclass(frozen=True)
class _Section:
    name: str
    view: View
    chart: Chart
    cost_name: str
    kinds: tuple[tuple[str, str], ...]  # token kinds that occur, with their names
    budgets: tuple[tuple[str, tuple[_Row, ...]], ...]
    bars: tuple[_Bar, ...]
    legend: tuple[str, ...]
    summary: tuple[str, ...]


def write_report(
    path: str | Path,
    *,
    title: str,
    records: Sequence[Record],
    meta: Mapping[str, Any] | None = None,
    details: Mapping[str, Detail] | None = None,
    views: Mapping[str, View] | None = None,
    notes: Sequence[str] = (),
    price: Prices | None = None,
    confidence: float = 0.95,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Path:
    """Write one HTML page about a comparison; the same arguments give the same page.

    Args:
        path: of the page; replaced atomically.
        title: headline.
        records: of any number of tasks, methods, budgets, examples and seeds.
        meta: shown in the header, in order (model, machine, seeds, versions, ...).
        details: `Record.key` -> texts for the drill-down.
        views: task name -> how it is shown.
        notes: warnings and remarks; notes in the ledgers are added.
        price: for views on the axis "usd".
        confidence: of intervals and verdicts.
        bootstrap: resamples.
        seed: of the resampling.

    Raises:
        InputError: for no records.
    """
    records = unique(records)
    if not records:
        raise InputError("nothing to report: no records; run a comparison first")
    found = verdicts(
        records,
        higher_is_better={name: view.higher_is_better for name, view in (views or {}).items()},
        confidence=confidence,
        bootstrap=bootstrap,
        seed=seed,
    )
    sections = []
    for task in dict.fromkeys(record.task for record in records):
        view = (views or {}).get(task, View())
        mine = [record for record in records if record.task == task]
        task_points = points(
            mine, axis=view.axis, confidence=confidence, bootstrap=bootstrap, seed=seed, price=price
        )
        sections.append(_section(task, view, mine, task_points, found))
    examples = [_example(record, (details or {}).get(record.key, Detail({}))) for record in records]
    flagged = dict.fromkeys(note for record in records for note in record.ledger.notes())
    page: str = template("report.html.j2").render(
        title=title,
        meta=[(str(name), _plain(value)) for name, value in (meta or {}).items()],
        sections=sections,
        examples=examples,
        notes=[*notes, *flagged],
        estimated=any(r.ledger.totals().estimated for r in records),
        confidence=f"{100 * confidence:g}",
        bootstrap=bootstrap,
        nonce=hashlib.sha256(repr((title, examples)).encode()).hexdigest()[:32],
        short=short,
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(target.name + ".part")
    draft.write_text(page, encoding="utf-8")
    draft.replace(target)
    return target


def _section(
    task: str, view: View, records: list[Record], found: list[Point], flags: Mapping[Key, str]
) -> _Section:
    colors = {stack: index % 7 for index, stack in enumerate(by_stack(found))}
    budgets: dict[str, list[_Row]] = {}
    for point in found:
        flag = flags[point.group]
        row = _Row(point, interval_text(point), SHOWN[flag], flag, colors[point.stack])
        budgets.setdefault(point.budget.label(), []).append(row)
    sign = -1 if view.higher_is_better else 1
    for rows in budgets.values():
        rows.sort(key=lambda row: sign * row.point.quality)
    bars = _bars(records)
    return _Section(
        name=task,
        view=view,
        chart=layout(found, view.metric),
        cost_name=UNITS[view.axis].split(" per ")[0].removesuffix(" tokens"),
        kinds=tuple((k, name) for k, name in KINDS_SHOWN.items() if any(p.kinds[k] for p in found)),
        budgets=tuple((label, tuple(rows)) for label, rows in budgets.items()),
        bars=bars,
        legend=tuple(dict.fromkeys(name for bar in bars for name, _, _ in bar.parts)),
        summary=tuple(_sentence(label, rows, view) for label, rows in budgets.items()),
    )


def _sentence(label: str, rows: list[_Row], view: View) -> str:
    """What one budget's row says, in words."""
    first = rows[0]
    head = f"{label}: {first.point.stack} leads with {view.metric} {first.quality}"
    if first.flag == "alone":
        return f"{label}: {first.point.stack} has {view.metric} {first.quality}"
    if first.flag == "best":
        return head + ", separably ahead of every other method"
    close = [row.point.stack for row in rows[1:] if row.flag == "not separable"]
    return head + ", but is not separable from " + ", ".join(close)


def _bars(records: list[Record]) -> tuple[_Bar, ...]:
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.method_stack, record.budget.label()), []).append(record)
    means: dict[tuple[str, str], dict[str, float]] = {}
    for key, group in groups.items():
        sums: dict[str, float] = {}
        for record in group:
            for (stage, role), total in record.ledger.by("stage", "role").items():
                for kind, count in _kinds(total).items():
                    name = f"{stage} \u00b7 {role} \u00b7 {kind}"
                    sums[name] = sums.get(name, 0.0) + count / len(group)
        means[key] = {name: value for name, value in sums.items() if value > 0}
    longest = max((sum(parts.values()) for parts in means.values()), default=0.0) or 1.0
    return tuple(
        _Bar(
            stack=stack,
            budget=label,
            parts=tuple((name, v, round(100 * v / longest, 3)) for name, v in parts.items()),
            total=sum(parts.values()),
        )
        for (stack, label), parts in means.items()
    )


def _kinds(total: Totals) -> dict[str, int]:
    return {
        "prompt": total.prompt_new,
        "cached prompt": total.prompt_cached,
        "generated": total.generated,
        "forced": total.forced,
        "retried": total.retried,
    }


def _example(record: Record, detail: Detail) -> dict[str, Any]:
    total = record.ledger.totals()
    return {
        "task": record.task,
        "example": record.example,
        "method": record.method_stack,
        "budget": record.budget.label(),
        "seed": record.seed,
        "quality": round(record.quality, 6),
        "prompt": total.prompt,
        "generated": total.generated,
        "forced": total.forced,
        "seconds": round(total.seconds, 4),
        "texts": {
            str(name): _pieces(str(text), detail.marks.get(name, ()))
            for name, text in detail.texts.items()
        },
    }


def _pieces(text: str, marks: Sequence[Mark]) -> str | list[list[str]]:
    """A text as the page's script shows it: plain, or in pieces of (text, verdict, label)."""
    if not marks:
        return _excerpt(text, DETAIL_LIMIT)
    pieces, at = [], 0
    for mark in marks:
        if mark.start < at or not mark.start < mark.end <= MARKED_LIMIT:
            continue  # beyond what is shown
        verdict = "" if mark.good is None else "good" if mark.good else "bad"
        pieces.append([text[at : mark.start], "", ""])
        pieces.append([text[mark.start : mark.end], verdict or "noted", mark.label])
        at = mark.end
    pieces.append([_excerpt(text[at:], MARKED_LIMIT - at), "", ""])
    return [piece for piece in pieces if piece[0]]


def _excerpt(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = max(1, limit // 2)
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n[... {left_out} characters left out ...]\n{text[-half:]}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def rich_table(
    found: Sequence[Point],
    flags: Mapping[Key, str] | None = None,
    *,
    title: str = "",
    metric: str = "quality",
    higher_is_better: bool = True,
    confidence: float = 0.95,
) -> Table:
    """A table of points for the terminal: n, interval, cost, verdict; one block per budget.

    Args:
        found: from `points`, of one task and axis.
        flags: from `paired.verdicts`; None leaves the column out.
        title: above the table.
        metric: name of the quality.
        higher_is_better: decides the order within a budget.
        confidence: of the intervals, for the column's name.

    Raises:
        InputError: for no points.
    """
    if not found:
        raise InputError("nothing to show: no points; run a comparison first")
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=title or None,
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("method", overflow="fold", min_width=20)
    axis = found[0].axis
    unit = axis if axis in ("flops", "seconds", "usd", *GAUGED) else "tokens"
    for name in (metric, f"{100 * confidence:g} % CI", "n", unit):
        table.add_column(name, justify="right", no_wrap=True)
    if flags is not None:
        table.add_column("verdict", no_wrap=True)
    blocks: dict[str, list[Point]] = {}
    for point in found:
        blocks.setdefault(point.budget.label(), []).append(point)
    sign = -1 if higher_is_better else 1
    for label, block in blocks.items():
        table.add_row(Text(label, style="italic"))
        ordered = sorted(block, key=lambda p: sign * p.quality)
        for index, point in enumerate(ordered):
            none = point.lo is None or point.hi is None
            flag = None if flags is None else flags[point.group]
            style = "bold green" if flag == "best" else ""
            cells = [
                f"  {point.stack}",
                f"{point.quality:.3f}",
                "undefined" if none else f"{point.lo:.3f}\u2013{point.hi:.3f}",
                str(point.n),
                ("~" if point.estimated else "") + short(point.cost),
            ]
            if flag is not None:
                cells.append("" if flag in ("worse", "alone") else flag)
            # Text, not markup: a method's name may hold square brackets.
            table.add_row(
                *(Text(cell, style=style) for cell in cells),
                end_section=index == len(ordered) - 1,
            )
    return table
