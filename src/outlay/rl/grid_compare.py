"""Cells compared: tables, differences with intervals, frontiers.

Problems and training seeds are both samples: intervals come from a bootstrap that draws both anew,
crossed, and two methods see the same draws (paired). With one seed only problems are drawn, and the
interval says nothing about training's own chance.

Shapes: S seeds, N problems, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from outlay.budget import Budget
from outlay.errors import InputError
from outlay.figure import plot
from outlay.frontier import Point
from outlay.rl.grid_results import CellResult
from outlay.stats import check_level, percentiles

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and problems, with its interval."""

    value: float
    lo: float
    hi: float
    seeds: int
    problems: int


@dataclass(frozen=True)
class Versus:
    """Method A against method B over the problems and seeds that both have.

    Args:
        a, b: labels.
        accuracy: A minus B.
        tokens: A over B, of mean tokens of an answer.
        seeds, problems: shared.
    """

    a: str
    b: str
    accuracy: Mean
    tokens: Mean
    seeds: int
    problems: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def mean(
    results: Sequence[CellResult],
    temperature: float = 0.0,
    scale: float | None = None,
    *,
    what: str = "accuracy",
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Mean:
    """Accuracy, or tokens of an answer, of one method's seeds.

    Args:
        results: one a seed.
        temperature: 0 is greedy.
        scale: of the base budget; None for the largest.
        what: "accuracy" or "tokens".
        confidence: of the interval.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        InputError: for no results, several of one seed, or different problems.
    """
    check_level(confidence, resamples)
    values_SN = _values(results, temperature, scale, what)
    drawn_R = _drawn(values_SN, resamples, seed)
    lo, hi = percentiles(drawn_R, confidence)
    return Mean(float(values_SN.mean()), lo, hi, *values_SN.shape)


def versus(
    a: Sequence[CellResult],
    b: Sequence[CellResult],
    temperature: float = 0.0,
    scale: float | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Versus:
    """Two methods, paired by seed and problem.

    The policy before training has no seeds: it stands against every seed of the other.

    Args:
        a: results of one method, one a seed.
        b: of the other.
        temperature: 0 is greedy.
        scale: of the base budget; None for the largest.
        confidence: of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        InputError: if the two share no seed, or have different problems.
    """
    check_level(confidence, resamples)
    a, b = _shared(a, b)
    right = [_values(side, temperature, scale, "accuracy") for side in (a, b)]
    lengths = [_values(side, temperature, scale, "tokens") for side in (a, b)]
    if right[0].shape != right[1].shape:
        raise InputError("the two were judged by different problems; use one task")
    gap_SN = right[0] - right[1]
    gaps_R = _drawn(gap_SN, resamples, seed)
    ratios_R = _drawn(lengths[0], resamples, seed) / _drawn(lengths[1], resamples, seed)
    ratio = float(lengths[0].mean() / lengths[1].mean())
    shape = gap_SN.shape
    return Versus(
        a[0].label,
        b[0].label,
        Mean(float(gap_SN.mean()), *percentiles(gaps_R, confidence), *shape),
        Mean(ratio, *percentiles(ratios_R, confidence), *shape),
        *shape,
    )


def by_label(results: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    """Each method's cells, in order of first appearance."""
    found: dict[str, list[CellResult]] = {}
    for result in results:
        found.setdefault(result.label, []).append(result)
    return found


def points(
    results: Sequence[CellResult],
    temperature: float = 0.0,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Point]:
    """A frontier point for every method and inference budget; the cost is tokens of an answer.

    Args:
        results: of one task.
        temperature: 0 is greedy.
        confidence: of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        InputError: for no results, or those of several tasks.
    """
    if len({result.task for result in results}) != 1:
        raise InputError("give results of one task, at least one")
    found = []
    for label, mine in by_label(results).items():
        for scale in mine[0].scales:
            quality = mean(
                mine, temperature, scale, confidence=confidence, resamples=resamples, seed=seed
            )
            tokens = float(_values(mine, temperature, scale, "tokens").mean())
            found.append(
                Point(
                    stack=label,
                    budget=Budget(tokens=mine[0].at(temperature, scale)[0].budget),
                    quality=quality.value,
                    lo=quality.lo,
                    hi=quality.hi,
                    n=quality.problems,
                    tokens=tokens,
                    flops=0.0,
                    kv_bytes=None,
                    seconds=0.0,
                    ttft=None,
                    tbt=None,
                    task=mine[0].task,
                    axis="generated+forced",
                    cost=tokens,
                    interval="bootstrap over problems x seeds",
                    kinds={"generated": tokens},
                )
            )
    return found


def frontier(
    results: Sequence[CellResult],
    path: str | Path,
    temperature: float = 0.0,
    *,
    title: str = "",
) -> Path:
    """Draw accuracy against tokens, a curve a method over inference budgets.

    Args:
        results: of one task.
        path: ends in .png, .svg or .pdf.
        temperature: 0 is greedy.
        title: above the picture.

    Raises:
        InputError: as `points`, or for another ending.
    """
    how = "greedy" if temperature == 0 else f"T={temperature:g}"
    return plot(
        points(results, temperature),
        path,
        title=title or f"{results[0].task}, held-out problems, {how}",
        metric="accuracy",
    )


def rows(results: Sequence[CellResult], baseline: str | None = None) -> list[dict[str, Any]]:
    """The table as data: one row a method.

    Args:
        results: of one task.
        baseline: label of the method that others are compared with, greedy and uncut; None for no
            comparison.

    Raises:
        InputError: for a baseline that is not there.
    """
    grouped = by_label(results)
    if baseline is not None and baseline not in grouped:
        raise InputError(f"no cells of {baseline!r}; there are: {', '.join(grouped)}")
    table = []
    for label, mine in grouped.items():
        temperatures = sorted({one.temperature for one in mine[0].evaluation})
        row: dict[str, Any] = {"method": label, "seeds": len(mine), "steps": mine[0].steps}
        for temperature in temperatures:
            name = "greedy" if temperature == 0 else f"T={temperature:g}"
            row[f"accuracy, {name}"] = mean(mine, temperature)
            row[f"tokens, {name}"] = mean(mine, temperature, what="tokens")
        row["over budgets"] = _over_budgets(mine, temperatures[0])
        row["training tokens"] = sum(one.training_tokens for one in mine) / len(mine)
        row["training seconds"] = sum(one.seconds["train"] for one in mine) / len(mine)
        if baseline is not None and label != baseline:
            row["versus"] = versus(mine, grouped[baseline], temperatures[0])
        table.append(row)
    return table


def table(results: Sequence[CellResult], baseline: str | None = None) -> str:
    """The table as Markdown.

    Args:
        results: of one task.
        baseline: as in `rows`.
    """
    found = rows(results, baseline)
    names = [name for name in found[0] if name != "versus"]
    compared = any("versus" in row for row in found)
    heads = [*names, *([f"accuracy - {baseline}", f"tokens / {baseline}"] if compared else [])]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in found:
        cells = [_shown(name, row[name]) for name in names]
        if compared:
            gap = row.get("versus")
            cells += ["", ""] if gap is None else [_signed(gap.accuracy), _shown("", gap.tokens)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _over_budgets(results: Sequence[CellResult], temperature: float) -> float:
    """Accuracy, mean over inference budgets and seeds."""
    found = [acc for one in results for _, acc in one.budget_curve(temperature)]
    return sum(found) / len(found)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, Mean):
        form = "{:.1f}" if name.startswith("tokens") else "{:.3f}"
        low, high = form.format(value.lo), form.format(value.hi)
        return f"{form.format(value.value)} ({low}\u2013{high})"
    if isinstance(value, float):
        return f"{value:.3f}" if value < 10 else f"{value:,.0f}"
    return str(value)


def _signed(value: Mean) -> str:
    return f"{value.value:+.3f} ({value.lo:+.3f} to {value.hi:+.3f})"


def _shared(
    a: Sequence[CellResult], b: Sequence[CellResult]
) -> tuple[list[CellResult], list[CellResult]]:
    """Both sides by common seed; an untrained side is repeated."""
    if not a or not b:
        raise InputError("nothing to compare: give results of both methods")
    sides = [{one.seed: one for one in side} for side in (a, b)]
    fixed = [all(one.steps == 0 for one in side) for side in (a, b)]
    for at in (0, 1):
        if fixed[at] and not fixed[1 - at]:
            sides[at] = dict.fromkeys(sides[1 - at], next(iter(sides[at].values())))
    seeds = sorted(sides[0].keys() & sides[1].keys())
    if not seeds:
        raise InputError(
            f"{a[0].label} has seeds {sorted(sides[0])} and {b[0].label} has {sorted(sides[1])}; "
            "run both with the same seeds"
        )
    return [sides[0][seed] for seed in seeds], [sides[1][seed] for seed in seeds]


def _values(
    results: Sequence[CellResult], temperature: float, scale: float | None, what: str
) -> FloatArray:
    """(S, N) accuracy or tokens."""
    if not results:
        raise InputError("nothing to average: no results")
    if what not in ("accuracy", "tokens"):
        raise InputError(f"what={what!r}; choose 'accuracy' or 'tokens'")
    read = CellResult.right if what == "accuracy" else CellResult.lengths
    found = [read(one, temperature, scale) for one in results]
    judged = {str(one.decides["task"]) for one in results}
    if len({len(values) for values in found}) != 1 or len(judged) != 1:
        raise InputError("cells were judged by different problems; give those of one task")
    return np.array(found, dtype=np.float64)


def _drawn(values_SN: FloatArray, resamples: int, seed: int) -> FloatArray:
    """(R,) means of resamples: seeds and problems drawn with replacement, independently."""
    s, n = values_SN.shape
    rng = np.random.default_rng(seed)
    seeds_RS = rng.multinomial(s, np.full(s, 1 / s), size=resamples) / s
    problems_RN = rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n
    drawn: FloatArray = np.einsum("rs,sn,rn->r", seeds_RS, values_SN, problems_RN, optimize=True)
    return drawn
