"""What was tried where a claim of CoViPAL's second stage failed: reported, without a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from outlay.proofs.base import Check, Progress
from outlay.proofs.covipal_runs import (
    METHOD,
    TYPES,
    Modules,
    World,
    always,
    answered,
    at,
    difference,
    second_stage,
)
from outlay.stats import FloatArray
from outlay.vision.covipal.training import Recipe

TRIED = {
    "exact gate, budgets from .03 to .25": ("st_topk", {"ratios": (0.03, 0.25)}),
    "soft gate, temperature of chances pushed earlier (lambda_h = 1)": ("soft", {"lambda_h": 1.0}),
}


def changes(
    world: World,
    first: Mapping[float, Mapping[str, FloatArray]],
    trained: Sequence[Modules],
    ratios: Sequence[float],
    recipe: Recipe,
    progress: Progress,
) -> list[Check]:
    """Two other second stages from the same first one, on one seed.

    Args:
        world: data and seer.
        first: ratio -> type -> answers of stage 1, mean over seeds.
        trained: of each seed.
        ratios: to measure at.
        recipe: that they change.
        progress: is told.
    """
    checks = []
    for name, (gate, knobs) in TRIED.items():
        progress(f"stage 2 with {name}")
        changed = replace(recipe, epochs=(1.0, 0.5), **knobs)  # type: ignore[arg-type]
        method = replace(METHOD, gate=gate)  # type: ignore[arg-type]
        found = second_stage(world, trained[0].one, method, changed)
        ours, before, shown = [], [], []
        for ratio in ratios:
            right = [
                np.concatenate(
                    [answered(world.seer, world.asked[k], always(at(one, ratio))) for k in TYPES]
                )
                for one in (found, trained[0].one)
            ]
            ours.append(right[0])
            before.append(right[1])
            shown.append(f"{right[0].mean():.3f}/{right[1].mean():.3f} at {ratio:g}")
        gap = difference(np.mean(ours, axis=0), np.mean(before, axis=0))
        checks.append(
            Check(
                f"changed: stage 2 with {name}, against stage 1",
                "two stages",
                gap.mean,
                None,
                (gap.lo, gap.hi),
                f"{', '.join(shown)}; all types, mean over ratios, one seed, n={gap.n}",
            )
        )
    return checks
