"""What a verifier's quality is worth to A*-decoding: searches with an oracle of chosen AUC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from outlay.proofs.a_star_decoding_changes import at_chance, straight
from outlay.proofs.a_star_decoding_changes import truthful as truths
from outlay.proofs.a_star_decoding_report import row_of
from outlay.proofs.a_star_decoding_runs import Pool, Setting, judge_pool, pooled
from outlay.proofs.a_star_decoding_world import BEST, BEST_OF, K, World
from outlay.proofs.base import Check
from outlay.stats import percentiles, resample_means
from outlay.testbeds.reasoner.oracle import ChainOracle

CHANCE_GAP = 0.05  # with a verifier at chance, the accuracy is this close to one sample's


@dataclass(frozen=True)
class Oracle:
    """What the oracle showed.

    Args:
        checks: claims.
        rows: of the searches, by AUC.
        settings: the searches, by AUC.
        tried: searches of the changes.
    """

    checks: list[Check]
    rows: list[dict[str, Any]]
    settings: list[tuple[float, Setting]]
    tried: list[Setting]


def oracle_of(world: World, drawn: Sequence[Any], where: Sequence[int], seed: int) -> Oracle:
    """What the verifier's quality changes, at one k."""
    settings, rows = [], []
    some = [drawn[at] for at in where]
    pool: Pool | None = None
    for auc in world.size.aucs:
        verifier = ChainOracle(auc, seed)
        setting = world.astar(world.part, verifier, K)
        pool = judge_pool(world.part, some, verifier)
        best = pooled(pool, BEST, "weighted", [min(BEST_OF, world.size.pool)], seed)[0]
        settings.append((auc, setting))
        rows.append({"auc": auc, **row_of(setting), "best-of-16": row_of(best)})
    assert pool is not None
    single_N = pool.right_NS.mean(axis=1)
    gap_N1 = (settings[0][1].right_N - single_N)[:, None]
    lo, hi = percentiles(resample_means(gap_N1, 1000, seed)[:, 0], 0.95)
    values = [setting.accuracy for _, setting in settings]
    rising = all(
        later >= earlier - 2 * _standard_error(setting)
        for earlier, later, (_, setting) in zip(values, values[1:], settings[1:], strict=False)
    )
    shown = ", ".join(f"{auc}: {s.accuracy:.3f}" for auc, s in settings)
    truthful = settings[-1][1]
    exact = straight(truthful)
    checks = [
        Check(
            "oracle: accuracy rises with the verifier's AUC",
            "-",
            shown,
            rising and values[-1] > values[0],
            note="target: no step down by more than two standard errors, and the last above the "
            f"first; k={K}, {len(single_N)} questions",
        ),
        Check(
            "oracle at chance: accuracy minus one sample's",
            "-",
            float(gap_N1.mean()),
            abs(float(gap_N1.mean())) <= CHANCE_GAP or lo <= 0 <= hi,
            (lo, hi),
            f"AUC {settings[0][0]}; target: within {CHANCE_GAP}, or an interval that holds 0",
        ),
        Check(
            "truthful oracle: a right answer takes as many expansions as its chain has steps",
            "-",
            float(np.mean(exact)) if exact else "no right answer",
            bool(exact) and all(exact),
            note=f"{len(exact)} answers all of whose steps are right; target: all of them",
        ),
    ]
    tried: list[Setting] = []
    if world.size.tried:
        for more, runs in (at_chance(world, single_N, seed), truths(world, seed)):
            checks += more
            tried += runs
    return Oracle(checks, rows, settings, tried)


def _standard_error(setting: Setting) -> float:
    return float(setting.right_N.std() / np.sqrt(len(setting.right_N)))
