"""Frontiers that `outlay compare --json` printed: validated, kept, drawn as in its report."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection, delete, desc, func, insert, select

from outlay.errors import InputError, OutlayError
from outlay.gateway.config import explain
from outlay.gateway.store import admin, schema
from outlay.gateway.store.books import Key

if TYPE_CHECKING:
    from outlay.chart import Chart

LARGEST = 2_000_000
"""Bytes of an import."""
MOST = 200
"""Imports that are kept at once."""
_Name = Annotated[str, Field(min_length=1, max_length=200)]
_Value = Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False)]
_Cost = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]


class PointForm(BaseModel):
    """A point as `Point.to_dict` writes it, with its verdict."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    stack: _Name
    budget: dict[str, Any] = Field(max_length=8)
    quality: _Value
    lo: _Value | None = None
    hi: _Value | None = None
    n: int = Field(ge=1, le=10**9)
    tokens: _Cost
    flops: _Cost = 0.0
    seconds: _Cost = 0.0
    task: str = Field(default="", max_length=200)
    axis: _Name
    cost: _Cost
    estimated: bool = False
    verdict: str = Field(default="", max_length=100)
    metric: str = Field(default="quality", max_length=100)


class ComparisonForm(BaseModel):
    """What `outlay compare --json` prints, as far as it is shown."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    title: str = Field(max_length=200)
    meta: dict[_Name, Any] = Field(default_factory=dict, max_length=50)
    points: list[PointForm] = Field(min_length=1, max_length=2000)
    notes: list[Annotated[str, Field(max_length=2000)]] = Field(
        default_factory=list, max_length=200
    )


@dataclass(frozen=True)
class Row:
    """A line of a frontier's table."""

    stack: str
    budget: str
    quality: str
    n: int
    cost: float
    tokens: float
    seconds: float
    verdict: str
    colour: int


@dataclass(frozen=True)
class Panel:
    """One task of a comparison."""

    task: str
    metric: str
    chart: Chart
    cost_name: str
    rows: tuple[Row, ...]


def parse(raw: bytes) -> ComparisonForm:
    """Read an import.

    Raises:
        InputError: for what `outlay compare --json` does not print.
    """
    if len(raw) > LARGEST:
        raise InputError(f"the file has more than {LARGEST} bytes; compare fewer methods at a time")
    try:
        form = ComparisonForm.model_validate(orjson.loads(raw))
        panels(form)
    except orjson.JSONDecodeError as error:
        raise InputError(f"not JSON ({error}); import what 'outlay compare --json' prints") from (
            error
        )
    except ValidationError as error:
        raise InputError(
            f"not a comparison ({explain(error)[:300]}); import what 'outlay compare --json' prints"
        ) from error
    return form


def panels(form: ComparisonForm) -> list[Panel]:
    """Charts and tables by task.

    Raises:
        InputError: for a budget or an axis that cannot be.
    """
    from outlay.budget import Budget
    from outlay.chart import interval_text, layout
    from outlay.figure import UNITS, by_stack
    from outlay.frontier import Point

    tasks: dict[tuple[str, str, str], list[tuple[PointForm, Point]]] = {}
    for each in form.points:
        if each.axis not in UNITS:
            raise InputError(f"axis {each.axis[:40]!r}; known are {', '.join(UNITS)}")
        try:
            budget = Budget(**each.budget)
        except (OutlayError, TypeError, AttributeError) as error:
            raise InputError(f"a budget that cannot be: {str(error)[:200]}") from error
        fields = each.model_dump(exclude={"budget", "verdict", "metric"})
        point = Point(budget=budget, kv_bytes=None, ttft=None, tbt=None, **fields)
        tasks.setdefault((each.task, each.metric, each.axis), []).append((each, point))
    found = []
    for (task, metric, axis), pairs in tasks.items():
        points = [point for _, point in pairs]
        colours = {stack: index for index, stack in enumerate(by_stack(points))}
        rows = tuple(
            Row(
                stack=point.stack,
                budget=point.budget.label(),
                quality=interval_text(point),
                n=point.n,
                cost=point.cost,
                tokens=point.tokens,
                seconds=point.seconds,
                verdict=each.verdict,
                colour=colours[point.stack] % 7,
            )
            for each, point in pairs
        )
        found.append(Panel(task, metric, layout(points, metric), UNITS[axis], rows))
    return found


def keep(connection: Connection, now: float, *, actor: Key, form: ComparisonForm) -> str:
    """Store an import; its id.

    Raises:
        InputError: if there are too many.
    """
    table = schema.frontiers
    count = connection.execute(select(func.count()).select_from(table)).scalar_one()
    if count >= MOST:
        raise InputError(f"{MOST} frontiers are kept at most; delete one first")
    identity = secrets.token_hex(8)
    row = {
        "id": identity,
        "at": now,
        "key_id": actor.id,
        "owner": actor.owner,
        "title": form.title or "comparison",
        "body": form.model_dump_json(),
    }
    connection.execute(insert(table), row)
    admin.log(connection, now, actor.id, "import frontier", identity, {"title": form.title})
    return identity


def forget(
    connection: Connection, now: float, *, actor: Key, identity: str, owner: str | None
) -> None:
    """Delete an import; with `owner`, one of that owner's.

    Raises:
        InputError: if there is none.
    """
    table = schema.frontiers
    query = delete(table).where(table.c.id == identity)
    if owner is not None:
        query = query.where(table.c.owner == owner)
    if not connection.execute(query).rowcount:
        raise InputError("no such frontier")
    admin.log(connection, now, actor.id, "delete frontier", identity, {})


def listed(connection: Connection, owner: str | None) -> list[Mapping[str, Any]]:
    """The imports, newest first, without their points."""
    table = schema.frontiers
    query = select(table.c.id, table.c.at, table.c.key_id, table.c.owner, table.c.title)
    if owner is not None:
        query = query.where(table.c.owner == owner)
    found = connection.execute(query.order_by(desc(table.c.at)))
    return [dict(row._mapping) for row in found]


def find(
    connection: Connection, identity: str, owner: str | None
) -> tuple[Mapping[str, Any], ComparisonForm] | None:
    """One import with its points."""
    table = schema.frontiers
    query = select(table).where(table.c.id == identity)
    if owner is not None:
        query = query.where(table.c.owner == owner)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    return dict(row._mapping), ComparisonForm.model_validate_json(row.body)
