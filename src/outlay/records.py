"""One example's outcome, and what it cost on a named axis.

A comparison stores a `Record` per task, example, method, budget and seed; points, intervals and
verdicts derive from records alone.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from outlay.budget import Budget
from outlay.cost import Price
from outlay.errors import BudgetError, InputError, ResultsError
from outlay.ledger import Ledger, Role

Axis = Literal[
    "generated",
    "generated+forced",
    "generated+forced+verifier",
    "prompt",
    "vision",
    "all",
    "flops",
    "seconds",
    "usd",
    "kv_bytes",
    "ttft",
    "tbt",
]
Prices = Price | Mapping[str, Price]
Key = tuple[str, str, str]  # task, stack, budget label

GAUGED = ("kv_bytes", "ttft", "tbt")  # read off a clock or a cache, not from the ledger
KINDS = (
    "prompt_new",
    "prompt_cached",
    "generated",
    "forced",
    "retried",
    "delivered",
    "discarded",
)


@dataclass(frozen=True)
class Record:
    """One example's outcome under one method and budget: what a comparison stores.

    Args:
        task: name of the task.
        example: id of the example; the same id means the same problem for every method.
        method_stack: label of what ran.
        budget: what it was allowed.
        seed: of sampling.
        quality: the verifier's score; higher or lower is better as the task says.
        ledger: what was spent on this example.
        kv_bytes: peak bytes of keys and values, where measured.
        ttft: seconds to the first token, where measured.
        tbt: mean seconds between tokens, where measured.

    Raises:
        InputError: if the quality is not finite.
    """

    task: str
    example: str
    method_stack: str
    budget: Budget
    seed: int
    quality: float
    ledger: Ledger
    kv_bytes: float | None = None
    ttft: float | None = None
    tbt: float | None = None

    def __post_init__(self) -> None:
        if not np.isfinite(self.quality):
            raise InputError(
                f"quality={self.quality} of {self.key} is not finite; "
                "score a failed example with the worst value"
            )

    @property
    def key(self) -> str:
        """Unique name of this outcome within a run."""
        parts = (self.task, self.example, self.method_stack, self.budget.label(), str(self.seed))
        return " | ".join(parts)

    @property
    def group(self) -> Key:
        """The point that this record belongs to."""
        return self.task, self.method_stack, self.budget.label()

    def cost(self, axis: Axis, price: Prices | None = None) -> float:
        """What this outcome cost on a named axis: `cost_of` its ledger, or a gauge's reading.

        Raises:
            InputError: as `cost_of`, or for a gauge that the method does not read.
        """
        if axis not in GAUGED:
            return cost_of(self.ledger, axis, price)
        value = getattr(self, axis)
        if value is None:
            raise InputError(
                f"{self.method_stack} did not measure {axis} on {self.example}; "
                "choose another axis, or leave this method out"
            )
        return float(value)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**row, "budget": budget_dict(self.budget), "ledger": self.ledger.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Record:
        """The inverse of `to_dict`.

        Raises:
            ResultsError: if the data was not written by `to_dict`.
        """
        try:
            ledger = Ledger.from_dict(data["ledger"])
            return cls(**{**data, "budget": Budget(**data["budget"]), "ledger": ledger})
        except (KeyError, TypeError, InputError, BudgetError) as error:
            raise ResultsError(f"not a stored record ({error}); delete it and run again") from error


_COLUMNS = ("task", "method", "budget", "example", "seed", "quality")
_SPENT = (*KINDS, "seconds", "flops")


def write_csv(path: str | Path, records: Iterable[Record]) -> Path:
    """Write a tidy table: one row per record, what it was, its quality and what it spent.

    Columns: task, method, budget, example, seed, quality; tokens by kind, seconds, flops.
    """
    target = Path(path)
    draft = target.with_name(target.name + ".part")
    with draft.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow((*_COLUMNS, *_SPENT))
        for record in records:
            total = record.ledger.totals()
            named = (record.task, record.method_stack, record.budget.label(), record.example)
            spent = (getattr(total, name) for name in _SPENT)
            writer.writerow((*named, record.seed, record.quality, *spent))
    draft.replace(target)
    return target


def budget_dict(budget: Budget) -> dict[str, Any]:
    """A budget's limits as JSON-ready keyword arguments; absent limits are left out."""
    row = {f.name: getattr(budget, f.name) for f in fields(budget)}
    row = {name: dict(v) if name == "stages" and v is not None else v for name, v in row.items()}
    return {name: value for name, value in row.items() if value is not None}


def cost_of(ledger: Ledger, axis: Axis, price: Prices | None = None) -> float:
    """What a ledger spent on a named axis.

    Args:
        ledger: of one example.
        axis: "generated": sampled tokens of every role, discarded ones included.
            "generated+forced": and those appended without sampling.
            "generated+forced+verifier": and every prompt token that verifiers read.
            "prompt": prompt tokens of the target model, new and cached (what a compressor
            shortens; its scorer's work shows under "all", "flops" and "seconds").
            "vision": visual tokens, the mean over the decoder's layers.
            "all": every token of every role. "flops", "seconds": sums. "usd": needs `price`;
            forced tokens cost as prompt, retried ones as generated.
        price: one price list, or one per role.

    Raises:
        InputError: for an unknown axis, or "usd" without a price for a role that was called.
    """
    known = [name for name in get_args(Axis) if name not in GAUGED]
    if axis not in known:
        raise InputError(f"axis={axis!r}; choose one of {', '.join(known)}")
    if axis == "usd":
        return _usd(ledger, price)
    total = ledger.totals()
    if axis == "generated":
        return total.generated
    if axis == "generated+forced":
        return total.generated + total.forced
    if axis == "generated+forced+verifier":
        return total.generated + total.forced + ledger.totals(role="verifier").prompt
    if axis == "prompt":
        return ledger.totals(role="target").prompt
    if axis == "vision":
        return ledger.totals(stage="vision").prompt
    return total.all if axis == "all" else float(getattr(total, axis))


def _usd(ledger: Ledger, price: Prices | None) -> float:
    paid = 0.0
    roles: tuple[Role, ...] = get_args(Role)
    for role in roles:
        total = ledger.totals(role=role)
        if not total.calls:
            continue
        listed = price if isinstance(price, Price) or price is None else price.get(role)
        if listed is None:
            raise InputError(f"axis='usd' needs a price for role {role!r}; give price=Price(...)")
        generated = total.generated + total.retried
        paid += listed.usd(total.prompt_new + total.forced, total.prompt_cached, generated)
    return paid


def unique(records: Iterable[Record]) -> list[Record]:
    """The records, each key once; a later record replaces an earlier one in place."""
    return list({record.key: record for record in records}.values())


def per_example(
    records: Iterable[Record], value: Callable[[Record], float] | None = None
) -> dict[tuple[str, str], float]:
    """Mean over seeds per (task, example)."""
    found: dict[tuple[str, str], list[float]] = {}
    for record in records:
        number = record.quality if value is None else value(record)
        found.setdefault((record.task, record.example), []).append(number)
    return {key: float(np.mean(numbers)) for key, numbers in found.items()}
