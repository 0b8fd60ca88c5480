"""A grid in a TOML file: methods x seeds on one task.

[grid]
title = "Length rewards"
seeds = [0, 1, 2]
steps = 150
baseline = "GRPO"

[methods]           # label = spec
SFT = "sft"
GRPO = "grpo"
"length reward" = "grpo-length:scale=100"

[task]              # knobs of ChainArith-RL, or task = "..." in [grid] for another
test = 160

[settings]          # fields of trl's GRPOConfig, for all cells
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlay.errors import InputError
from outlay.rl.grid import Cell
from outlay.rl.grid_baselines import SFT
from outlay.rl.recipe import CHAIN, Recipe, check_keys, read_toml

_PARTS = ("grid", "methods", "task", "settings")
_GRID = (
    "title",
    "seeds",
    "steps",
    "questions",
    "group",
    "learning_rate",
    "baseline",
    "keep",
    "task",
    "model",
)


@dataclass(frozen=True)
class Plan:
    """A grid's cells, its title, and the label that others are compared with."""

    title: str
    cells: list[Cell]
    baseline: str | None


def read_grid(path: str | Path) -> Plan:
    """A grid from a TOML file.

    Raises:
        InputError: for a file that cannot be read, a key that grids do not have, no methods, or a
            baseline that is none of them.
    """
    where = str(path)
    data = read_toml(Path(path))
    check_keys(data, _PARTS, where)
    parts = {name: data.get(name, {}) for name in _PARTS}
    for name, table in parts.items():
        if not isinstance(table, Mapping):
            raise InputError(f"{where}: {name} must be a table, [{name}]")
    given: dict[str, Any] = dict(parts["grid"])
    check_keys(given, _GRID, f"{where}: [grid]")
    title = str(given.pop("title", Path(path).stem))
    seeds = given.pop("seeds", [0])
    baseline = given.pop("baseline", None)
    if not isinstance(seeds, list) or not seeds:
        raise InputError(f"{where}: seeds={seeds!r}; give a list, such as [0, 1, 2]")
    methods = parts["methods"]
    if not methods:
        raise InputError(f'{where}: [methods] is empty; give lines such as GRPO = "grpo"')
    if baseline is not None and baseline not in methods:
        raise InputError(f"{where}: baseline={baseline!r} is none of: {', '.join(methods)}")
    task = Recipe(
        method=SFT,
        task=given.pop("task", CHAIN),
        model=given.pop("model", None),
        task_knobs=parts["task"],
    ).build_task()
    shared = {**given, "settings": parts["settings"], "task": task}
    cells = []
    for label, spec in methods.items():
        if not isinstance(spec, str):
            raise InputError(f"{where}: {label} must be a spec in quotes, not {spec!r}")
        for seed in seeds[:1] if spec == SFT else seeds:
            try:
                cells.append(Cell(label, spec, seed=seed, **shared))
            except TypeError as error:
                raise InputError(f"{where}: [grid] {error}") from error
    return Plan(title, cells, baseline)
