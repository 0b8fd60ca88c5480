"""What a comparison found, read back from its folder or its JSON: points, directions, plans."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from outlay import registry
from outlay.budget import Budget, Counts
from outlay.errors import InputError, OutlayError
from outlay.frontier import Point, points
from outlay.paired import Difference, paired
from outlay.records import Axis, Record
from outlay.runs import CONFIG, RECORDS
from outlay.stack import NOTHING

_LARGEST = 1_000_000_000  # bytes of a run's records
_LARGEST_JSON = 50_000_000


@dataclass(frozen=True)
class Found:
    """One task of a comparison.

    Args:
        task: its name.
        points: one a stack and budget.
        higher: whether a higher quality is better.
        plan: how it was run; empty where that is not known.
        records: behind the points; empty where only a summary is known.
    """

    task: str
    points: tuple[Point, ...]
    higher: bool
    plan: Mapping[str, Any] = field(default_factory=dict)
    records: tuple[Record, ...] = ()

    def best(self, budget: int | None) -> Point:
        """The point of the best quality that `budget` tokens buy; the cheaper one of equals.

        Points without a budget take part where they spend no more of what it counts.

        Raises:
            InputError: if nothing was measured at that budget.
        """
        at = [p for p in self.points if p.budget.tokens == budget]
        known = sorted({p.budget.tokens for p in self.points if p.budget.tokens})
        if not at or (budget is None and known):
            told = (
                f"choose {', '.join(map(str, known))}" if known else "it had no budgets: give none"
            )
            raise InputError(f"{self.task} has no winner at budget={budget}; {told}")
        if budget is not None:
            counts = at[0].budget.counts
            free = [p for p in self.points if p.budget.tokens is None]
            at += [p for p in free if _spends(p, counts) <= budget]
        return min(at, key=lambda p: (-self.gain(p), p.cost))

    def cheapest(self, within: float) -> Point:
        """The point that costs least among those at most `within` worse than the best one.

        Raises:
            InputError: for a negative or infinite `within`.
        """
        if not 0 <= within < float("inf"):
            raise InputError(f"within={within}; give how much worse it may be, >= 0")
        best = max(map(self.gain, self.points))
        near = [p for p in self.points if best - self.gain(p) <= within + 1e-12]
        return min(near, key=lambda p: (p.cost, -self.gain(p)))

    def gain(self, point: Point) -> float:
        """Its quality, the higher the better."""
        return point.quality if self.higher else -point.quality

    def plain(self) -> Point | None:
        """The model as it is, where it was measured."""
        return next((p for p in self.points if p.stack == NOTHING), None)

    def against_plain(self, point: Point) -> Difference | None:
        """Its quality minus the plain model's, example by example; None where not both are known.

        Positive is better, whatever the task's direction.
        """
        mine = [r for r in self.records if r.group == point.group]
        plain = [r for r in self.records if r.method_stack == NOTHING]
        if not mine or not plain or point.stack == NOTHING:
            return None
        sides = (mine, plain) if self.higher else (plain, mine)
        return paired(*sides, match_budget=False)


def _spends(point: Point, counts: Counts) -> float:
    """Mean tokens of an example that a budget counts."""
    if counts == "all":
        return point.tokens
    if counts == "prompt":
        return point.kinds["prompt_new"] + point.kinds["prompt_cached"]
    return point.kinds["generated"]


def read(
    run: str | Path,
    *,
    task: str | None = None,
    axis: Axis | None = None,
    higher: bool | None = None,
) -> Found:
    """One task of a run.

    Args:
        run: the folder of `outlay compare --out`, or a file with the output of
            `outlay compare --json`.
        task: its name; None where the run has one only.
        axis: cost axis; None takes the run's own.
        higher: whether a higher quality is better; None asks the task.

    Raises:
        InputError: for what is no run, an unknown task, or a direction that is not known.
    """
    place = Path(run)
    if place.is_dir():
        return _folder(place, task, axis, higher)
    summary = _json(place, _LARGEST_JSON)
    if not isinstance(summary, dict) or not isinstance(summary.get("points"), list):
        raise InputError(f"{place} is no output of outlay compare --json; give that, or its folder")
    rows = summary["points"]
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{place} has points that are none; write it again")
    told = summary.get("folder")
    folder = Path(told) if isinstance(told, str) else place.parent
    name = _one(task, [str(row.get("task")) for row in rows])
    try:
        found = tuple(_point(row) for row in rows if row["task"] == name)
        leaders = [f.quality for f, r in zip(found, _of(rows, name), strict=True) if _leads(r)]
    except (KeyError, TypeError, OutlayError) as error:
        raise InputError(f"{place} has a point that cannot be read ({error})") from error
    if (folder / RECORDS).is_file() and (folder / CONFIG).is_file():
        return _folder(folder, name, axis or found[0].axis, higher)
    if axis is not None and axis != found[0].axis:
        raise InputError(
            f"{place} has costs in {found[0].axis} only; give the run's folder for axis={axis!r}"
        )
    return Found(name, found, _direction(found, leaders) if higher is None else higher)


def _of(rows: Sequence[Mapping[str, Any]], task: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["task"] == task]


def _leads(row: Mapping[str, Any]) -> bool:
    return row["verdict"] in ("best", "highest")


def _direction(found: Sequence[Point], leaders: Sequence[float]) -> bool:
    """Leaders of a budget are best there: whether that means more or less."""
    qualities = [point.quality for point in found]
    if max(qualities) == min(qualities) or max(qualities) in leaders:
        return True
    if min(qualities) in leaders:
        return False
    raise InputError("whether more is better is not known; say so (higher_is_better)")


def _point(row: Mapping[str, Any]) -> Point:
    known = {each.name for each in fields(Point)}
    return Point(
        **{k: v for k, v in row.items() if k in known} | {"budget": Budget(**row["budget"])}
    )


def _one(task: str | None, names: Sequence[str]) -> str:
    known = list(dict.fromkeys(names))
    if task is None and len(known) == 1:
        return known[0]
    if task not in known:
        raise InputError(f"task={task!r}; the run has: {', '.join(known) or 'no task at all'}")
    return task


def _json(path: Path, most: int) -> Any:
    try:
        if path.stat().st_size > most:
            raise InputError(f"{path} is larger than {most:,} bytes; that is no run")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error})") from error


def _folder(folder: Path, task: str | None, axis: Axis | None, higher: bool | None) -> Found:
    if not (folder / RECORDS).is_file() or not (folder / CONFIG).is_file():
        raise InputError(
            f"{folder} is no folder of a run: it lacks {RECORDS} or {CONFIG}; "
            "give the one that outlay compare --out wrote"
        )
    records = _records(folder / RECORDS)
    name = _one(task, [record.task for record in records])
    mine = tuple(record for record in records if record.task == name)
    config = _json(folder / CONFIG, _LARGEST_JSON)
    plans = config.get("plans") if isinstance(config, dict) else None
    if not isinstance(plans, list) or not all(isinstance(each, dict) for each in plans):
        raise InputError(f"{folder / CONFIG} is no configuration of a run")
    built = [(plan, _task(str(plan.get("task", "")))) for plan in plans]
    plan, made = next(
        ((p, t) for p, t in built if name in (p.get("name"), getattr(t, "name", None))), ({}, None)
    )
    if higher is None:
        if made is None:
            raise InputError(
                f"the task of {name!r} cannot be built again, so whether more is better is not "
                "known; say so (higher_is_better)"
            )
        higher = bool(made.higher_is_better)
    own: Axis = "prompt" if _compresses(plan) else "generated+forced"
    return Found(name, tuple(points(mine, axis=axis or own)), higher, plan, mine)


def _compresses(plan: Mapping[str, Any]) -> bool:
    if plan.get("counts"):
        return bool(plan["counts"] == "prompt")
    return any(
        registry.find("methods", registry.parse_spec(part)[0]).room == "prompt"
        for spec in plan.get("methods", ())
        if spec != NOTHING
        for part in registry.split_spec(spec, "+")
    )


def _records(path: Path) -> list[Record]:
    if path.stat().st_size > _LARGEST:
        raise InputError(f"{path} is larger than {_LARGEST:,} bytes; that is no run")
    *lines, _cut = path.read_bytes().split(b"\n")  # a crash may have cut the last line off
    try:
        return [Record.from_dict(json.loads(line)["record"]) for line in lines]
    except (ValueError, KeyError, TypeError, OutlayError) as error:
        raise InputError(f"{path} cannot be read ({error}); run the comparison again") from error


def _task(text: str) -> Any:
    """The task whose `repr` a run keeps, None where it cannot be built from that."""
    try:
        call = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        return None
    slug = next((e.slug for e in registry.tasks() if e.target.endswith(f":{call.func.id}")), None)
    if slug is None:
        return None
    cls: Any = registry.find("tasks", slug).load()
    known = {each.name for each in fields(cls) if each.init}
    knobs: dict[str, Any] = {}
    for knob in call.keywords:
        if knob.arg is not None and knob.arg in known:
            try:
                knobs[knob.arg] = ast.literal_eval(knob.value)
            except ValueError:
                continue  # an object; the task's own default stands in for it
    try:
        return cls(**knobs)
    except (OutlayError, TypeError):
        return None
