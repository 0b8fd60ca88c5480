"""What was tried after the first run of the proof of G-Search, in which every budget was too easy.

With two whole layers the seer has read the picture: from then on, one token in sixteen is enough,
also at random, so that all schedules of a budget answer alike and the P-Sigmoid cannot lead. Two
changes look for room. The first lets tokens go before layer 1, at budgets that two whole layers do
not allow. The second tunes the steepness, besides, by the log-probability of the right answer,
which has no ties. Nothing here has a target.

Shapes: B rows, V words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from outlay.proofs.base import Check, Progress
from outlay.proofs.g_search_outcomes import Outcomes
from outlay.proofs.g_search_runs import Bed, RandomRank, Way, fastv, scheduled
from outlay.vision.gsearch import Batch, GSearch, KeepSchedule

FIRST = 1
BUDGETS = (0.45, 0.3, 0.2)
OURS, LOGGED, FASTV, RANDOM_RANK = (
    "P-Sigmoid from layer 1",
    "P-Sigmoid from layer 1 by log-probability",
    "FastV before layer 1",
    "P-Sigmoid from layer 1, random ranking",
)


def log_probability(model: Any, batch: Batch) -> Sequence[float]:
    """Of each row's right answer, one token."""
    with torch.no_grad():
        logits_BV = model(**batch.inputs, logits_to_keep=1, use_cache=False).logits[:, -1]
    right = torch.tensor([answer[0] for answer in batch.answers])
    return logits_BV.log_softmax(-1).gather(1, right[:, None])[:, 0].tolist()


def tried(
    outcomes: Outcomes, split: Bed, trials: int, seed: int, progress: Progress
) -> dict[str, KeepSchedule]:
    """Both changes on one calibration split; FastV once.

    Args:
        outcomes: gets the answers.
        split: to search on.
        trials: of each search.
        seed: of the split and the sampler.
        progress: told what is going on.
    """
    seer, found = split.seer, {}
    for budget in BUDGETS:
        progress(f"split {seed}: from layer 1, budget {budget:g}")
        method = GSearch(
            mode="budget",
            budget=budget,
            first_drop=FIRST,
            trials=trials,
            seed=seed,
            calib_size=len(split),
            check_share=0.0,
        )
        for name, way in ((OURS, method), (LOGGED, replace(method, metric=log_probability))):
            fitted = way.fit(seer.model, split.batches())
            assert fitted.schedule is not None
            found[f"{name} @ {budget:g}"] = fitted.schedule
            outcomes.run(name, budget, seed, scheduled(fitted))
        rates = found[f"{OURS} @ {budget:g}"].rates
        outcomes.run(RANDOM_RANK, budget, seed, Way(RandomRank(rates, seed), rates))
        if (FASTV, budget) not in outcomes.right:
            outcomes.run(FASTV, budget, 0, fastv(budget, seer.size.layers, FIRST))
    return found


def reported(outcomes: Outcomes, found: Sequence[Mapping[str, KeepSchedule]]) -> list[Check]:
    """What the changes did, without targets."""
    checks = []
    for ours, rivals in ((OURS, (FASTV, RANDOM_RANK)), (LOGGED, (FASTV, OURS))):
        for rival in rivals:
            for budget in BUDGETS:
                gap = outcomes.gap((ours, budget), (rival, budget))
                steep = ", ".join(f"{one[f'{ours} @ {budget:g}'].k:.2g}" for one in found)
                checks.append(
                    Check(
                        f"change, budget {budget:g}: {ours} against {rival}",
                        "",
                        gap.mean,
                        None,
                        (gap.lo, gap.hi),
                        f"accuracy {outcomes.accuracy(ours, budget):.3f} against "
                        f"{outcomes.accuracy(rival, budget):.3f}, {gap.n} questions, "
                        f"{'separable' if gap.separable else 'not separable'}; k {steep}",
                    )
                )
        grown = outcomes.growth(ours, FASTV, min(BUDGETS), max(BUDGETS))
        checks.append(
            Check(
                f"change: the lead of {ours} over {FASTV} as the budget shrinks",
                "the gap grows with the share removed",
                grown.mean,
                None,
                (grown.lo, grown.hi),
                f"lead at {min(BUDGETS):g} less lead at {max(BUDGETS):g}",
            )
        )
    return checks
