"""Evaluate: how good a model is on a task, what that cost, and what it wrote.

An evaluation is a comparison (the same runner, records and report) that asks for one method or a
few, budgets optional, and adds the efficiency figures of `cost.efficiency` and a Parquet file of
traces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outlay.comparison import Comparison, Plan, Plans, Progress, compare
from outlay.cost import Efficiency, efficiency
from outlay.frontier import Point
from outlay.models.base import Model
from outlay.traces import TRACES, write_traces


@dataclass(frozen=True)
class Row:
    """One method at one budget.

    Args:
        point: quality with its interval, and mean costs.
        efficiency: tokens to a correct answer and so on; None for a quality outside [0, 1].
    """

    point: Point
    efficiency: Efficiency | None


@dataclass(frozen=True)
class Evaluation:
    """The outcome of `evaluate`.

    Args:
        comparison: records, texts, report.
        rows: one per method and budget.
        traces: the Parquet file.
    """

    comparison: Comparison
    rows: tuple[Row, ...]
    traces: Path

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready summary."""
        extra = [None if row.efficiency is None else asdict(row.efficiency) for row in self.rows]
        whole = self.comparison.to_dict()
        points = [{**p, "efficiency": e} for p, e in zip(whole["points"], extra, strict=True)]
        return {**whole, "points": points, "traces": str(self.traces)}


def evaluate(
    plan: Plan,
    *,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    load: Callable[[str], Model] | None = None,
) -> Evaluation:
    """Run one task, or what is left of it.

    Args:
        plan: see `outlay.comparison.plan`; methods ("full",) is the model as it is.
        out: the run's folder, see `compare`.
        fresh: drop what the folder holds.
        progress: see `compare`.
        load: see `compare`.

    Raises:
        OutlayError: as `compare`; DependencyError without pyarrow.
    """
    plans = Plans(compare=(plan,), title=f"outlay eval: {plan.task}")
    given = {} if progress is None else {"progress": progress}
    result = compare(plans, out=out, fresh=fresh, load=load, **given)
    (task,) = result.views
    rows = tuple(Row(point, _efficiency(result, point)) for point in result.points(task))
    assert result.folder is not None
    return Evaluation(result, rows, write_traces(result.folder / TRACES, result.outcomes))


def _efficiency(result: Comparison, point: Point) -> Efficiency | None:
    mine = [record for record in result.records if record.group == point.group]
    scores = [record.quality for record in mine]
    if not all(0 <= score <= 1 for score in scores) or not _is_score(result, point.task):
        return None
    tokens = [r.ledger.totals().generated + r.ledger.totals().forced for r in mine]
    limit = point.budget.tokens if point.budget.counts == "generated" else None
    return efficiency(tokens, scores, None if limit is None else [limit] * len(mine))


def _is_score(result: Comparison, task: str) -> bool:
    """A loss below 1 is no score."""
    return result.views[task].higher_is_better
