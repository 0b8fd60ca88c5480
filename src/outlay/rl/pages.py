"""Pages of training runs and grids: one self-contained HTML file, curves as SVG.

Styles and charts are inline, there is no script, and the page's own content policy forbids loading
anything. What comes from users (names, paths, settings) is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.chart import layout
from outlay.html import template
from outlay.machine import sentence
from outlay.rl import grid_compare
from outlay.rl.base import Method
from outlay.rl.grid_results import CellResult
from outlay.rl.pages_chart import StepChart, smooth, step_chart

if TYPE_CHECKING:
    from outlay.rl.running import Training

_WINDOW = 10
_CURVES: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    ("Reward", "Mean pay of a rollout.", {"reward": "reward_mean"}),
    ("Accuracy of rollouts", "Sampled, on training problems.", {"right": "acc"}),
    (
        "Tokens of rollouts",
        "A completion, its thinking, and completions that are right.",
        {
            "90th percentile": "tokens_p90",
            "mean": "tokens_mean",
            "thinking": "thinking_mean",
            "right ones": "tokens_correct",
        },
    ),
    (
        "Budgets",
        "Shares of rollouts beyond their budget, of budgets that were used, and of cut rollouts.",
        {"beyond": "violation", "used": "utilisation", "cut": "truncated"},
    ),
    (
        "Groups that teach",
        "Share of questions whose rollouts were all paid the same, and of well-formed rollouts.",
        {"all the same": "zero_variance", "well-formed": "format_ok"},
    ),
    ("Entropy", "Of the policy, per token.", {"entropy": "entropy"}),
    ("Gradient norm", "Before clipping.", {"norm": "grad_norm"}),
)


def run_page(done: Training, method: Method, path: Path) -> Path:
    """Write the page of one run.

    Args:
        done: the run.
        method: as it was trained.
        path: of the page; replaced atomically.
    """
    assert done.after is not None
    results = [one for one in (done.before, done.after) if one is not None]
    knobs = [(name, _plain(value)) for name, value in sorted(_knobs(method).items())]
    return _page(
        path,
        title=f"{method.name} on {done.after.task}",
        meta={
            "method": done.recipe.method,
            "task": done.recipe.task,
            "model": done.recipe.model or "the task's own",
            "steps": f"{done.after.steps}, {done.recipe.questions} questions x "
            f"{done.recipe.group} rollouts",
            "seed": done.recipe.seed,
            "training tokens": f"{done.after.training_tokens:,}",
            "training": f"{done.after.seconds['train']:,.0f} s",
            "machine": sentence(),
            "date": done.after.date,
            "commit": done.after.commit or "none",
        },
        notes=done.notes,
        results=results,
        charts=_charts({"": [done.after]}),
        bins=_bins(results),
        knobs=knobs,
        schedule=[dict(row) for row in method.schedule_table(done.after.steps)],
        spent=done.after.tokens,
        baseline="before" if len(results) > 1 else None,
    )


def grid_page(
    results: Sequence[CellResult], path: Path, *, title: str, baseline: str | None = None
) -> Path:
    """Write the page of a grid.

    Args:
        results: cells of one task.
        path: of the page; replaced atomically.
        title: headline.
        baseline: label of the method that others are compared with.
    """
    grouped = grid_compare.by_label(results)
    return _page(
        path,
        title=title,
        meta={
            "task": results[0].task,
            "methods": len(grouped),
            "cells": len(results),
            "training tokens": f"{sum(one.training_tokens for one in results):,}",
            "training": f"{sum(one.seconds['train'] for one in results) / 60:,.1f} min",
            "machine": sentence(),
            "date": max(one.date for one in results),
        },
        notes=(),
        results=results,
        charts=_charts(grouped),
        bins=_bins(results),
        knobs=[
            (label, ", ".join(f"{k}={_plain(v)}" for k, v in mine[0].knobs.items()) or "none")
            for label, mine in grouped.items()
        ],
        schedule=[],
        spent={},
        baseline=baseline,
    )


def _page(path: Path, *, results: Sequence[CellResult], baseline: str | None, **given: Any) -> Path:
    temperatures = sorted({one.temperature for r in results for one in r.evaluation})
    evaluated = [one for one in results if one.evaluation]
    sections = []
    for temperature in temperatures:
        found = grid_compare.points(evaluated, temperature)
        sections.append(
            {
                "name": "Greedy" if temperature == 0 else f"Sampled at temperature {temperature:g}",
                "chart": layout(found, "accuracy"),
                "points": found,
                "gaps": _gaps(evaluated, temperature, baseline),
            }
        )
    page = template("training.html.j2").render(
        **given,
        sections=sections,
        baseline=baseline,
        colors={label: at % 7 for at, label in enumerate(grid_compare.by_label(results))},
        problems=len(evaluated[0].evaluation[0].right) if evaluated else 0,
        seeds=max(len(mine) for mine in grid_compare.by_label(results).values()),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(page, encoding="utf-8")
    draft.replace(path)
    return path


def _gaps(
    results: Sequence[CellResult], temperature: float, baseline: str | None
) -> list[tuple[str, grid_compare.Versus]]:
    grouped = grid_compare.by_label(results)
    if baseline is None or baseline not in grouped:
        return []
    return [
        (label, grid_compare.versus(mine, grouped[baseline], temperature))
        for label, mine in grouped.items()
        if label != baseline
    ]


def _charts(grouped: Mapping[str, Sequence[CellResult]]) -> list[StepChart]:
    """One method: several curves a chart. Several methods: one curve each, the chart's first."""
    charts = []
    alone = len(grouped) == 1
    for title, about, columns in _CURVES:
        curves = {}
        for label, mine in grouped.items():
            chosen = columns if alone else dict([next(iter(columns.items()))])
            for name, column in chosen.items():
                curve = _mean_curve(mine, column)
                if curve is not None:
                    curves[name if alone else label] = curve
        if not alone and len(columns) > 1:
            about, title = f"{next(iter(columns))}, mean of seeds.", title
        chart = step_chart(title, curves, about)
        if chart is not None:
            charts.append(chart)
    return charts


def _mean_curve(
    results: Sequence[CellResult], column: str
) -> tuple[list[float], list[float | None]] | None:
    """A column's mean over seeds, smoothed; None where no cell has it."""
    by_step: dict[float, list[float]] = {}
    for one in results:
        steps = [float(step) for step in one.curve.get("step", []) if step is not None]
        for step, value in zip(steps, one.curve.get(column, []), strict=False):
            if value is not None:
                by_step.setdefault(step, []).append(value)
    if len(by_step) < 2:
        return None
    steps = sorted(by_step)
    means: list[float | None] = [sum(by_step[step]) / len(by_step[step]) for step in steps]
    return steps, smooth(means, _WINDOW)


def _bins(results: Sequence[CellResult]) -> list[dict[str, Any]]:
    """Accuracy and tokens by difficulty, uncut, at the first temperature; mean over seeds."""
    rows = []
    for label, mine in grid_compare.by_label([r for r in results if r.evaluation]).items():
        temperature = mine[0].evaluation[0].temperature
        found: dict[str, dict[str, float]] = {}
        for name in ("acc", "tokens_mean"):
            for one in mine:
                for bin_name, value in one.by_difficulty(name, temperature).items():
                    cell = found.setdefault(bin_name, {})
                    cell[name] = cell.get(name, 0.0) + (value or 0.0) / len(mine)
        if found:
            rows.append({"label": label, "bins": found})
    return rows


def _knobs(method: Method) -> dict[str, Any]:
    from outlay.rl.manifest import knobs

    return knobs(method)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
