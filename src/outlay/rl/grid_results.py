"""What a cell of the grid left behind, as data: `CellResult` and its JSON.

Shapes: N held-out problems.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from outlay.budget import Budget
from outlay.errors import InputError, ResultsError
from outlay.ledger import Entry, Ledger
from outlay.records import Record

Value = float | None
_SHOWN_BINS = ("acc", "tokens_mean")
_DIGITS = 6


@dataclass(frozen=True)
class EvalCell:
    """The trained policy under one budget at one temperature and seed.

    Args:
        scale: of the base budget.
        budget: in tokens.
        temperature: 0 for greedy.
        seed: of sampling; None for greedy.
        metrics: over all problems; see `outlay.rl.metrics`.
        bins: by difficulty.
        right: 1 or 0 of each problem.
        tokens: of each answer, forced ones included.
        thinking: tokens of thinking of each answer.
        styles: of each answer, None where the verifier names none.
    """

    scale: float
    budget: int
    temperature: float
    seed: int | None
    metrics: dict[str, Value]
    bins: dict[str, dict[str, Value]]
    right: list[int]
    tokens: list[int]
    thinking: list[int]
    styles: list[str | None]


@dataclass(frozen=True)
class CellResult:
    """One run of the grid.

    Args:
        label: in tables.
        key: of the store.
        method: the class's name; "sft" for the policy before training.
        task: its name.
        seed: of training.
        steps: optimiser steps; 0 without training.
        decides: everything that decided the run, knobs among it.
        curve: by name, one value a step (None where a step has none): `step`, every metric of the
            rollouts (`acc`, `tokens_mean`, ...), those of difficulty bins (`acc@4`), and TRL's
            own (`loss`, `grad_norm`, `entropy`, `rewards/...`).
        evaluation: of the trained policy.
        tokens: of training: `prompt`, `rollouts`, `probe` (sampled beside rollouts), `forced`.
        seconds: of `train` and `evaluate`.
        machine: where.
        commit: of the source.
        date: when.
        folder: of the store, None for a result that was never stored.
    """

    label: str
    key: str
    method: str
    task: str
    seed: int
    steps: int
    decides: dict[str, Any]
    curve: dict[str, list[Value]]
    evaluation: list[EvalCell]
    tokens: dict[str, int]
    seconds: dict[str, float]
    machine: dict[str, Any]
    commit: str
    date: str
    folder: Path | None = field(default=None, compare=False)

    @property
    def knobs(self) -> dict[str, Any]:
        """Of the method."""
        found = self.decides.get("method") or {}
        return {name: value for name, value in found.items() if name != "class"}

    @property
    def training_tokens(self) -> int:
        """Sampled in training: rollouts and probes."""
        return self.tokens.get("rollouts", 0) + self.tokens.get("probe", 0)

    @property
    def weights(self) -> Path | None:
        """Folder of the trained model (for `from_pretrained`); None if it was not kept."""
        path = None if self.folder is None else self.folder / self.key
        return path if path is not None and path.is_dir() else None

    @property
    def scales(self) -> list[float]:
        """Multiples of the base budget that were evaluated."""
        return sorted({one.scale for one in self.evaluation})

    def at(self, temperature: float = 0.0, scale: float | None = None) -> list[EvalCell]:
        """Evaluations (one a seed) at a temperature and budget.

        Args:
            temperature: 0 is greedy.
            scale: of the base budget; None for the largest.

        Raises:
            InputError: if there is none.
        """
        wanted = max(self.scales, default=0.0) if scale is None else scale
        found = [o for o in self.evaluation if (o.temperature, o.scale) == (temperature, wanted)]
        if not found:
            raise InputError(
                f"{self.label} was not evaluated at temperature={temperature}, scale={wanted}; "
                f"scales are {self.scales}"
            )
        return found

    def right(self, temperature: float = 0.0, scale: float | None = None) -> list[float]:
        """(N,) share of right answers of each problem, over evaluation seeds."""
        return _means([one.right for one in self.at(temperature, scale)])

    def lengths(self, temperature: float = 0.0, scale: float | None = None) -> list[float]:
        """(N,) mean tokens of each problem's answer, over evaluation seeds."""
        return _means([one.tokens for one in self.at(temperature, scale)])

    def accuracy(self, temperature: float = 0.0, scale: float | None = None) -> float:
        """Share of right answers."""
        return _mean(self.right(temperature, scale))

    def mean_tokens(self, temperature: float = 0.0, scale: float | None = None) -> float:
        """Tokens of an answer."""
        return _mean(self.lengths(temperature, scale))

    def by_difficulty(
        self, name: str, temperature: float = 0.0, scale: float | None = None
    ) -> dict[str, Value]:
        """A metric in each difficulty bin, mean over evaluation seeds; None where undefined."""
        found: dict[str, list[float]] = {}
        bins: dict[str, None] = {}
        for one in self.at(temperature, scale):
            for bin_name, metrics in one.bins.items():
                bins[bin_name] = None
                value = metrics.get(name)
                if value is not None:
                    found.setdefault(bin_name, []).append(value)
        return {key: _mean(found[key]) if key in found else None for key in bins}

    def styles(self, temperature: float = 0.0, scale: float | None = None) -> dict[str, float]:
        """Share of each style among the answers; "none" for those without one."""
        given = [s or "none" for one in self.at(temperature, scale) for s in one.styles]
        return {name: given.count(name) / len(given) for name in sorted(set(given))}

    def budget_curve(self, temperature: float = 0.0) -> list[tuple[int, float]]:
        """(budget, accuracy) over inference budgets, rising."""
        return [
            (self.at(temperature, scale)[0].budget, self.accuracy(temperature, scale))
            for scale in self.scales
        ]

    def tail(self, name: str, steps: int = 20) -> Value:
        """Mean of a curve over its last steps; None without values there."""
        values = [v for v in self.curve.get(name, [])[-steps:] if v is not None]
        return _mean(values) if values else None

    def records(self, temperature: float = 0.0) -> list[Record]:
        """One outcome a problem, budget and evaluation seed, for `outlay.frontier`.

        The record's seed counts training and evaluation seeds; all tokens stand as generated.
        """
        return [
            Record(
                task=self.task,
                example=str(index),
                method_stack=self.label,
                budget=Budget(tokens=one.budget),
                seed=1000 * self.seed + (one.seed or 0),
                quality=float(right),
                ledger=Ledger([Entry("answer", "target", generated=n, method=self.method)]),
            )
            for one in self.evaluation
            if one.temperature == temperature
            for index, (right, n) in enumerate(zip(one.right, one.tokens, strict=True))
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the folder is left out."""
        data = asdict(self)
        del data["folder"]
        return data

    def to_json(self) -> str:
        """The stored form: one document, small enough to be read by people in parts."""
        return json.dumps(self.to_dict(), allow_nan=False, default=str) + "\n"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], folder: Path | None = None) -> CellResult:
        """The inverse of `to_dict`.

        Raises:
            ResultsError: if the data was not written by `to_dict`.
        """
        try:
            evaluation = [EvalCell(**one) for one in data["evaluation"]]
            return cls(**{**data, "evaluation": evaluation, "folder": folder})
        except (KeyError, TypeError) as error:
            raise ResultsError(
                f"not a stored cell of this version ({error}); delete it and run again"
            ) from error


def curve_of(path: Path) -> dict[str, list[Value]]:
    """Columns of a run's `metrics.jsonl`, one value a step.

    Rollouts of step k (k steps done) stand beside TRL's log of step k + 1, which trained on them.
    Evaluation lines and what is not a number are left out.

    Raises:
        ResultsError: if the file cannot be read.
    """
    rows: dict[int, dict[str, Value]] = {}
    try:
        lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise ResultsError(f"{path} holds no metrics of a run ({error})") from error
    for line in lines:
        if line["kind"] == "rollouts" and line["mode"] == "train":
            row = rows.setdefault(line["step"] + 1, {})
            row.update(line["metrics"])
            for bin_name, metrics in line["bins"].items():
                row.update({f"{name}@{bin_name}": metrics[name] for name in _SHOWN_BINS})
            row.update({f"tokens_{name}": count for name, count in line["tokens"].items()})
            row["seconds"] = line["seconds"]
        elif line["kind"] == "log" and "train_runtime" not in line:
            row = rows.setdefault(line["step"], {})
            row.update(
                {
                    name: value
                    for name, value in line.items()
                    if name not in ("kind", "step") and not name.startswith("rollouts/")
                }
            )
    names = dict.fromkeys(name for row in rows.values() for name in row)
    steps = sorted(rows)
    columns: dict[str, list[Value]] = {"step": [float(step) for step in steps]}
    for name in names:
        values = [rows[step].get(name) for step in steps]
        if all(value is None or isinstance(value, int | float) for value in values):
            columns[name] = list(rounded(dict(enumerate(values))).values())
    return columns


def rounded(values: Mapping[Any, Value]) -> dict[Any, Value]:
    """Six significant digits: enough for reading, and half the bytes."""
    return {
        key: None if value is None else float(f"{value:.{_DIGITS}g}")
        for key, value in values.items()
    }


def _means(rows: list[list[int]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*rows, strict=True)]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
