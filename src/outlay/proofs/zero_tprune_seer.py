"""The second proof: patches leave inside the tower of a vision-language model.

Dropped before the block whose output is the visual feature, a patch costs neither that block nor
the decoder anything. Accuracy on unseen scenes against the number of visual tokens that the decoder
reads, beside rankings in the same place and HiRED behind the tower (arXiv 2408.10945), at equal
tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from outlay.paired import difference
from outlay.proofs.base import Check
from outlay.proofs.zero_tprune_runs import CLASS, COLUMN, RANDOM
from outlay.stats import FloatArray
from outlay.testbeds.seer import load
from outlay.testbeds.seer.evaluate import held_out, score
from outlay.vision.hired import HiRED
from outlay.vision.zero_tprune import PatchRanking, Stage, ZeroTPrune

TOKENS = (16, 8, 4)  # of 64
BLOCK, VOTES = 2, 5
FULL, OURS, MANY_VOTES, HIRED = "all tokens", "PageRank", "PageRank, 30 votes", "HiRED"


def rivals(tokens: int, total: int = 64, seed: int = 0) -> dict[str, Any]:
    """Every method at a number of visual tokens."""
    keep = tokens / total
    copies = Stage(BLOCK, tokens / (total - total // 4), total // 4, VOTES)
    return {
        OURS: ZeroTPrune(schedule=[Stage(BLOCK, keep, 0, VOTES)]),
        "PageRank, copies first": ZeroTPrune(schedule=[copies]),
        MANY_VOTES: ZeroTPrune(schedule=[Stage(BLOCK, keep, 0, 30)]),
        COLUMN: PatchRanking([Stage(BLOCK, keep)], "column"),
        CLASS: PatchRanking([Stage(BLOCK, keep)], "cls"),
        RANDOM: PatchRanking([Stage(BLOCK, keep)], "random", seed=seed),
        HIRED: HiRED(max_tokens=tokens, positions="original"),
    }


def run_seer(scenes: int, seeds: Sequence[int], tokens: Sequence[int]) -> dict[str, FloatArray]:
    """Outcomes of every question, 1 or 0, by "method, tokens"; all methods see the same ones."""
    seer = load("S")
    found: dict[str, list[FloatArray]] = {}
    for seed in seeds:
        asked = held_out("S", scenes, seed=1000 + seed)
        settings: dict[str, Any] = {FULL: None}
        for count in tokens:
            settings |= {f"{name}, {count}": one for name, one in rivals(count, seed=seed).items()}
        for name, method in settings.items():
            by_kind = score(seer, asked, method)
            found.setdefault(name, []).append(np.concatenate(list(by_kind.values())).astype(float))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def claims(found: Mapping[str, FloatArray], tokens: Sequence[int]) -> list[Check]:
    """Above random at every number of tokens is the target; the rest is reported."""
    whole = found[FULL]
    checks = [
        Check("seer: accuracy with 64 visual tokens", "", float(whole.mean()), None, None,
              f"{len(whole)} questions")
    ]  # fmt: skip
    for count in tokens:
        ours = found[f"{OURS}, {count}"]
        for other in (RANDOM, COLUMN, CLASS, HIRED, "PageRank, copies first", MANY_VOTES):
            theirs = found[f"{other}, {count}"]
            gap = difference(ours - theirs)
            target = other == RANDOM
            checks.append(
                Check(
                    f"seer, {count} of 64 visual tokens: {OURS} in the tower minus {other}",
                    "",
                    gap.mean,
                    gap.lo > 0 if target else None,
                    (gap.lo, gap.hi),
                    f"{ours.mean():.3f} against {theirs.mean():.3f}; p={gap.p:.3f}"
                    + ("; target: interval above 0" if target else ""),
                )
            )
    return checks
