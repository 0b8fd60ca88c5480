"""Other second stages of CoViPAL, with the soft gate: reported, without a target."""

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
from outlay.vision.covipal.losses import Gate
from outlay.vision.covipal.training import Recipe

TRIED: Mapping[str, tuple[Gate, dict[str, float]]] = {
    "the soft gate": ("soft", {}),
    "the soft gate, chances pushed to 0 and 1 (lambda_h = 1)": ("soft", {"lambda_h": 1.0}),
}


def changes(
    world: World,
    trained: Sequence[Modules],
    ratios: Sequence[float],
    recipe: Recipe,
    progress: Progress,
) -> list[Check]:
    """Two other second stages from the same first one, on one seed.

    Args:
        world: data and seer.
        trained: of each seed.
        ratios: to measure at.
        recipe: that they change.
        progress: is told.
    """
    checks = []
    for name, (gate, knobs) in TRIED.items():
        progress(f"stage 2 with {name}")
        changed = replace(recipe, **knobs)  # type: ignore[arg-type]
        method = replace(METHOD, gate=gate)
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
