"""Proof of Zero-TPrune on a tiny ViT: what its parts are worth, and what its search finds.

"Zero-TPrune" (arXiv 2305.17328) says: patches of a trained ViT can go without any training, ranked
by a PageRank on attention; near copies may go first; and schedules are found by forward passes
alone. The ViT names garments on textured canvases. Patches go after blocks 3, 4 and 5, to three
budgets, and every method sees the same scenes of unseen garments, small (28 pixels, a fifth of the
patches) and enlarged (56 pixels).

Every target was written before the first run. A pilot with another ViT had shown what holds
at this size and what does not: the ranking above random and above the class token's, copies worth
dropping where the object is large and the budget tight. It did not show PageRank ahead of the plain
column mean, nor a gain by the published head filter; those are reported without target, and
`zero_tprune_when` asks when PageRank is ahead. Where the target of the search says "early", it
means before block 3. A second proof prunes inside the tower of a tiny vision-language model.

A first run at laptop scale missed three targets. Enlarged objects are answered best from random
patches, better even than from those that an oracle keeps: perhaps patches of one object say much
the same, and its outline needs what is around it. And the class token of this ViT ranks as well as
PageRank. Two changes to the share and the place of near copies were tried and are
reported; the targets stand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from outlay.frontier import points
from outlay.proofs import zero_tprune_claims as outcome
from outlay.proofs.base import Progress, ProofResult, Scale, silent
from outlay.proofs.zero_tprune_figure import draw
from outlay.proofs.zero_tprune_runs import (
    FULL,
    KEPT,
    SIZES,
    Cell,
    methods,
    records_of,
    run_cell,
    run_oracle,
    shown,
    stages_of,
)
from outlay.proofs.zero_tprune_seer import TOKENS, claims, run_seer
from outlay.proofs.zero_tprune_when import Block, enlarged, look, once
from outlay.testbeds.garments import World, load, scenes
from outlay.vision.zero_tprune import Found, PatchRanking, Stage, ZeroTPrune, search_schedule
from outlay.vision.zero_tprune.cost import Shape, macs

BUDGET = 0.66  # of the search, as a share of the unpruned multiply-adds


@dataclass(frozen=True)
class Size:
    """How much is run: scenes of each seed and size, scenes looked into, trials, calibration,
    scenes of each seed shown to the seer."""

    scenes: int
    looked: int
    trials: int
    calibration: int
    budgets: tuple[str, ...]
    seer: int


PLANS: Mapping[Scale, Size] = {
    "ci": Size(12, 24, 3, 24, ("tight",), 2),
    "laptop": Size(600, 300, 40, 240, tuple(KEPT), 120),
    "gpu": Size(3300, 2000, 200, 2000, tuple(KEPT), 2000),
}


def run(
    scale: Scale, *, seed: int = 0, progress: Progress = silent, folder: Path | None = None
) -> ProofResult:
    """Run the experiment; see `PLANS` for what each scale means."""
    plan = PLANS[scale]
    seeds = [seed, seed + 1, seed + 2]
    result = ProofResult("zero-tprune", scale, seeds)
    model = load()
    shape = Shape.of(model)
    unlabelled = _calibration(plan.calibration, seed)
    seen = {size: shown(size, plan.scenes, seeds) for size in SIZES}
    cells: dict[tuple[str, str, int], Cell] = {}
    for size in SIZES:
        cells[FULL, "", size] = run_cell(model, FULL, "", size, None, seen[size])
    for budget in plan.budgets:
        progress(f"{budget}: head filter")
        kept = KEPT[budget]
        fitted = ZeroTPrune(schedule=stages_of(kept)).fit(model, unlabelled)
        for size in SIZES:
            for name, method in methods(shape, kept, fitted.ranges, seed).items():
                progress(f"{budget}, {size} px: {name}")
                cells[name, budget, size] = run_cell(model, name, budget, size, method, seen[size])
            oracle = run_oracle(model, budget, size, kept, seen[size])
            cells[oracle.method, budget, size] = oracle
    progress("search")
    found = search_schedule(
        model, unlabelled, budget=BUDGET, trials=plan.trials, seed=seed, method=ZeroTPrune()
    )
    searched = {
        size: run_cell(model, "search", "middle", size, found.method, seen[size]) for size in SIZES
    }
    by_hand = _by_hand(shape)
    hand = {size: run_cell(model, "by hand", "middle", size, by_hand, seen[size]) for size in SIZES}
    early = _early(model, shape, seen)
    progress("when is PageRank ahead")
    looks = [
        block for size in SIZES for block in look(model, shown(size, plan.looked // 3, seeds), size)
    ]
    singles = {
        size: once(model, _some(seen[size], plan), size, range(1, 6), 0.25) for size in SIZES
    }
    larger, canvas = enlarged(model, 128), shown(56, plan.looked // 3, seeds, 128)
    wide = once(larger, canvas, 56, range(2, 5), 0.25)
    wide_full = run_cell(larger, FULL, "", 56, None, canvas)
    progress("in the tower of the seer")
    tokens = TOKENS if scale != "ci" else TOKENS[1:2]
    asked = run_seer(plan.seer, seeds, tokens)
    result.checks += outcome.whole(cells)
    result.checks += outcome.above(cells, plan.budgets)
    result.checks += outcome.copies(cells, plan.budgets)
    result.checks += outcome.of_search(found, shape, searched, hand, early)
    result.checks += outcome.reported(cells, plan.budgets, shape)
    result.checks += outcome.when(looks, singles, wide, wide_full)
    result.checks += claims(asked, tokens)
    every = [record for cell in cells.values() for record in records_of(cell, macs(shape), seeds)]
    result.points = points(every, axis="flops", seed=seed)
    result.data = _data(cells, found, looks, singles, wide, searched, hand, early)
    pictures = {size: _some(seen[size], replace(plan, looked=3)) for size in SIZES}
    result.draw = lambda path: draw(path, cells, plan.budgets, looks, pictures)
    return result.finish()


def _calibration(count: int, seed: int) -> torch.Tensor:
    """Training scenes of all sizes, without their labels."""
    world = World(sizes=(28, 40, 56), split="train", seed=900_000 + seed)
    return scenes(world, count).tensor()


def _some(seen: Any, plan: Size) -> Any:
    count = min(len(seen), plan.looked)
    return replace(
        seen,
        pixels_BCHW=seen.pixels_BCHW[:count],
        labels_B=seen.labels_B[:count],
        object_BHW=seen.object_BHW[:count],
    )


def _by_hand(shape: Shape) -> ZeroTPrune:
    """The middle schedule, made no dearer than the search's budget."""
    kept = list(KEPT["middle"])
    while macs(shape, method := ZeroTPrune(schedule=stages_of(kept))) > BUDGET * macs(shape):
        kept = [count - 1 for count in kept]
    return method


def _early(model: Any, shape: Shape, seen: Mapping[int, Any]) -> dict[str, Cell]:
    """Half of the patches gone after block 1: PageRank, column mean, random."""
    ours = ZeroTPrune(schedule=[Stage(1, 0.5, 0, 30)])
    tried = {
        "PageRank after block 1": ours,
        "column mean after block 1": PatchRanking([Stage(1, 0.5)], "column"),
        "random after block 1": PatchRanking([Stage(1, 0.5)], "random"),
    }
    return {name: run_cell(model, name, "early", 28, m, seen[28]) for name, m in tried.items()}


def _data(
    cells: Mapping[tuple[str, str, int], Cell],
    found: Found,
    looks: Sequence[Block],
    singles: Mapping[int, Mapping[str, Sequence[Cell]]],
    wide: Mapping[str, Sequence[Cell]],
    searched: Mapping[int, Cell],
    hand: Mapping[int, Cell],
    early: Mapping[str, Cell],
) -> dict[str, Any]:
    def row(cell: Cell) -> dict[str, Any]:
        return {
            "method": cell.method,
            "budget": cell.budget,
            "size": cell.size,
            "accuracy": round(cell.accuracy, 4),
            "macs": None if cell.macs != cell.macs else round(cell.macs, 4),
        }

    return {
        "cells": [row(cell) for cell in cells.values()],
        "other cells": [row(cell) for group in (searched, hand, early) for cell in group.values()],
        "once": [row(c) for by in (*singles.values(), wide) for row_ in by.values() for c in row_],
        "trials": [
            {
                "stages": [[s.block, round(s.rate, 4), s.r, s.votes] for s in trial.stages],
                "agreement": round(trial.agreement, 4),
                "macs": round(trial.macs, 4),
            }
            for trial in found.trials
        ],
        "blocks": [
            {
                "block": b.block,
                "size": b.size,
                "auc": {name: round(value, 4) for name, value in b.auc.items()},
                "mixing": round(b.mixing, 4),
                "lift": round(b.lift, 4),
                "told": round(b.told, 4),
            }
            for b in looks
        ],
    }
