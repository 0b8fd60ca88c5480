"""Proof of TokenFLEX on the seer: one model for all counts, against one model a count.

"TokenFLEX" (arXiv 2504.03154) says: a model that is trained with one number of visual tokens falls
off at any other; one trained with random numbers is as good as the specialist of each, and sees
fewer tokens while it trains; questions about fine print are those that need many tokens. Four
models start from the same weights over one frozen tower (96 x 96 pixels, 12 x 12 patches): trained
with 9, with 36, with 144 tokens, or with a random one of the three. Each is measured at all three,
on held-out scenes. A fifth has the old projector (an MLP) and random counts, so that projector and
training are not mixed up, as they are in the paper's headline gains.

Targets stand in `tokenflex_claims`. The paper finds its model above the specialists; at this size
only parity is claimed. Intervals are over scenes, each the mean of three trainings. Scale gpu has
longer trainings and two models more: all counts in every step (nested training), and even odds for
the counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outlay.budget import Budget
from outlay.frontier import Point, points
from outlay.ledger import Entry, Ledger
from outlay.models import store
from outlay.proofs.base import Progress, ProofResult, Scale, silent
from outlay.proofs.tokenflex_claims import (
    Table,
    Tables,
    accuracy,
    agrees,
    beside,
    changes,
    parity,
    projector,
    pruning,
    specialists_fall,
    tokens,
    who_gains,
)
from outlay.proofs.tokenflex_figure import drawer
from outlay.proofs.tokenflex_runs import (
    BETWEEN,
    COARSE,
    COUNTS,
    FINE,
    KINDS,
    Bed,
    Model,
    Plan,
    bed,
    by_method,
    cell,
    columns,
    digest,
    right,
    trained,
)
from outlay.records import Record
from outlay.testbeds.seer import load
from outlay.vision.baselines import ClassTopTokens, NoTokens, UniformTokens
from outlay.vision.tokenflex import TokenFlex

SPECIALISTS = tuple(f"fixed-{n}" for n in COUNTS)


@dataclass(frozen=True)
class Size:
    """How much is run.

    Args:
        plan: of the trainings.
        pruned: scenes on which pruning methods run, tower and all; 0 leaves them out.
        between: whether counts that nobody trained with are measured.
    """

    plan: Plan
    pruned: int
    between: bool


_FOUR = (*SPECIALISTS, "flex")
SIZES: Mapping[Scale, Size] = {
    "ci": Size(Plan(("fixed-144", "flex"), 4, 4, 16, 1), 0, False),
    "laptop": Size(Plan((*_FOUR, "flex-mlp"), 900, 32, 800, 3), 300, True),
    "gpu": Size(Plan((*_FOUR, "flex-mlp", "flex-even", "joint"), 3000, 32, 3000, 3), 1000, True),
}


def run(
    scale: Scale, *, seed: int = 0, progress: Progress = silent, folder: Path | None = None
) -> ProofResult:
    """Run the experiment; see `SIZES` for what each scale means.

    Args:
        scale: ci, laptop or gpu.
        seed: of the first training; scenes are measured with it, too.
        progress: told what is running.
        folder: where trainings and measured cells are stored, so that a stopped run goes on; None
            is a place in the cache.
    """
    size = SIZES[scale]
    plan, home = size.plan, folder or store.cache_dir() / "tokenflex-grid"
    seeds = [seed + k for k in range(plan.seeds)]
    result = ProofResult("tokenflex", scale, seeds)
    tower = load("M").model.model.vision_tower.requires_grad_(False)
    progress(f"encoding {plan.scenes} held-out scenes")
    found = bed(tower, plan.scenes, seed)
    runs = {one: trained(plan, tower, one, home, progress) for one in seeds}
    tables = _tables(size, runs, found, home, seed, tower, progress)
    checks = result.checks
    checks += specialists_fall(tables) + parity(tables)
    checks += [*tokens(plan, runs), *who_gains(tables)]
    if "flex-mlp" in plan.arms:
        checks += [*projector(tables), *changes(tables)]
    if size.pruned:
        checks += [*pruning(tables), agrees(tables, size.pruned)]
    checks += beside(plan, tables)
    result.points = _points(tables, seed)
    result.data = _data(tables, runs)
    result.draw = drawer(tables)
    return result.finish()


def _tables(
    size: Size,
    runs: Mapping[int, Mapping[str, Model]],
    found: Bed,
    home: Path,
    seed: int,
    tower: Any,
    progress: Progress,
) -> dict[tuple[str, int], Table]:
    """Measure every cell that is not stored, and average seeds."""
    plan, tables = size.plan, {}

    def mean(name: str, compute: Callable[[Model], Table], arm: str) -> Table:
        parts = []
        for one, models in runs.items():
            progress(f"seed {one}: {name}")
            path = home / digest(plan, one, tower) / f"{name}-s{seed}-n{plan.scenes}.npy"
            parts.append(cell(path, partial(compute, models[arm])))
        return np.mean(parts, axis=0)

    def at(count: int) -> Callable[[Model], Table]:
        return lambda model: right(found, model.seer, count)

    for arm in plan.arms:
        counts: Sequence[int] = COUNTS
        if size.between and arm == "flex":
            counts = sorted((*COUNTS, *BETWEEN))
        for count in counts:
            tables[arm, count] = mean(f"{arm} at {count}", at(count), arm)
    if size.pruned:
        rivals: dict[tuple[str, int], tuple[str, Any]] = {("blind", 0): ("flex", NoTokens())}
        for count in COUNTS[:-1]:
            rivals["top-k of fixed-144", count] = "fixed-144", ClassTopTokens(max_tokens=count)
            rivals["even grid of fixed-144", count] = "fixed-144", UniformTokens(max_tokens=count)
        rivals["TokenFlex", COUNTS[1]] = "flex", TokenFlex(n=COUNTS[1])
        for (name, count), (arm, method) in rivals.items():

            def measure(model: Model, method: Any = method) -> Table:
                return by_method(found, model.seer, method, size.pruned)

            tables[name, count] = mean(f"{name} at {count}", measure, arm)
    return tables


def _points(tables: Tables, seed: int) -> list[Point]:
    records = []
    for (name, count), table in tables.items():
        if not count:
            continue
        for group, kinds in (("fine", FINE), ("coarse", COARSE)):
            part = table[:, columns(kinds)]
            for scene in np.flatnonzero(~np.isnan(part).all(1)):
                ledger = Ledger([Entry("vision", "target", prompt_new=count, method=name)])
                quality = float(np.nanmean(part[scene]))
                budget = Budget(tokens=count, counts="vision")
                records.append(
                    Record(f"seer M, {group}", str(scene), name, budget, seed, quality, ledger)
                )
    return points(records, axis="vision", seed=seed)


def _data(tables: Tables, runs: Mapping[int, Mapping[str, Model]]) -> dict[str, Any]:
    return {
        "accuracy": [
            {
                "arm": name,
                "tokens": count,
                "all": round(accuracy(table), 4),
                "fine": round(accuracy(table, FINE), 4),
                "coarse": round(accuracy(table, COARSE), 4),
                **{kind: round(accuracy(table, (kind,)), 4) for kind in KINDS},
            }
            for (name, count), table in tables.items()
        ],
        "training": [
            {
                "arm": name,
                "seed": seed,
                "steps": len(model.losses),
                "visual_tokens": sum(model.tokens),
                "seconds": round(model.seconds, 1),
                "losses": [round(value, 4) for value in model.losses[::50]],
            }
            for seed, models in runs.items()
            for name, model in models.items()
        ],
        "threads": torch.get_num_threads(),
    }
