"""Proof of Ada-GRPO on ChainArith-RL: do several formats survive, and does the choice follow need?

"ARM: Adaptive Reasoning Model" (arXiv 2505.20258) says: plain GRPO collapses to one format,
Ada-GRPO keeps several; harder problems get longer formats; tokens fall by a third at little loss;
and asking the cheap formats first, thinking long only where they disagree, is at least as good as
the best of them. Beside it run plain GRPO, a plain length reward, and Ada-GRPO without decay.

All targets stand here and were written before the first run; the learning rate is a second choice,
made when seed 0 of two methods had been seen (see `rl_beside.RATE`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from outlay.proofs import ada_grpo_real, rl_figure
from outlay.proofs.ada_grpo_consensus import consensus
from outlay.proofs.ada_grpo_runs import (
    ABLATIONS,
    ADA,
    EXTRAS,
    LENGTH,
    MAIN,
    PLAIN,
    cells,
    scaled,
)
from outlay.proofs.base import Check, Progress, ProofResult, Scale, silent
from outlay.proofs.rl_beside import SEEDS, at_first_rate, beside, finished, first, home, peer
from outlay.proofs.rl_figure import Runs
from outlay.rl.grid_compare import mean, points, versus
from outlay.rl.grid_results import CellResult
from outlay.rl.running_tasks import ChainTask

KEPT, SHARE = 2, 0.10  # formats that keep this share of sampled answers
SAVED, LOST = 0.20, 0.02  # tokens fewer than GRPO's, accuracy given up at most
STEPWISE = ("short", "code", "long")
CI_STEPS = 4


def run(
    scale: Scale, *, seed: int = 0, progress: Progress = silent, folder: Path | None = None
) -> ProofResult:
    """Run the experiment; runs that are stored already are not trained again.

    Args:
        scale: "ci" is one tiny run.
        seed: of the first run; the others follow.
        progress: gets a line a run.
        folder: store of runs; None takes the one in the cache.
    """
    if scale == "ci":
        return ProofResult("ada-grpo", scale, [seed], tiny(seed)).finish()
    seeds = [seed + one for one in SEEDS[scale]]
    wanted = cells(MAIN, seeds) + cells(ABLATIONS, seeds[:1])
    extra = cells(EXTRAS, seeds[:1]) + at_first_rate(cells(MAIN, seeds))
    runs = finished(wanted, extra, home(folder), progress, train_extra=scale == "gpu")
    result = ProofResult("ada-grpo", scale, seeds, judged(runs))
    progress("consensus on the trained policy")
    result.checks += consensus(runs[ADA][0])
    progress("both stages on the chat model")
    result.checks.append(ada_grpo_real.two_stages())
    result.points = points([one for name in MAIN for one in runs[name]], seed=seed)
    result.peer = peer(runs, ADA, MAIN[1:])
    result.data = rl_figure.data_of(runs, ("tokens_mean", "acc", "zero_variance", "entropy"))
    result.draw = rl_figure.drawer(
        runs, MAIN, "tokens_mean", "sampled tokens a completion", "Lengths in training"
    )
    return result.finish()


def judged(runs: Runs) -> list[Check]:
    """Every check of finished runs."""
    return [
        *alive(runs),
        *by_need(runs),
        cheaper(runs),
        *tried(runs),
        *(
            beside(runs, ADA, name, _mixed(runs, name))
            for name in (PLAIN, LENGTH, *ABLATIONS, *EXTRAS)
            if name in runs
        ),
    ]


def shares(results: Sequence[CellResult]) -> dict[str, float]:
    """Share of every format among sampled answers, mean of the seeds."""
    found = [one.styles(1.0) for one in results]
    names = sorted({name for one in found for name in one})
    return {name: float(np.mean([one.get(name, 0.0) for one in found])) for name in names}


def entropy(given: Mapping[str, float]) -> float:
    """Of a distribution over formats, in nats."""
    return -sum(share * math.log(share) for share in given.values() if share > 0)


def alive(runs: Runs) -> list[Check]:
    """Claim 1: formats survive."""
    ours, theirs = shares(runs[ADA]), shares(runs[PLAIN])
    shown = "; ".join(
        f"{name}: " + ", ".join(f"{style} {share:.2f}" for style, share in found.items())
        for name, found in ((ADA, ours), (PLAIN, theirs))
    )
    gaps = [
        entropy(a.styles(1.0)) - entropy(b.styles(1.0))
        for a, b in zip(runs[ADA], runs[PLAIN], strict=True)
    ]
    kept, also = (
        [name for name, share in found.items() if share >= SHARE and name != "none"]
        for found in (ours, theirs)
    )
    return [
        Check(
            "formats stay more mixed than under plain GRPO",
            "GRPO collapses to one format within 10 steps",
            float(np.mean(gaps)),
            float(np.mean(gaps)) > 0,
            (min(gaps), max(gaps)),
            f"entropy of formats among answers at T=1 after training, in nats; {shown}; "
            f"{len(gaps)} seeds, the interval is their range; target: above 0",
        ),
        Check(
            f"at least {KEPT} formats keep {SHARE:.0%} of the answers",
            "all four are used",
            len(kept),
            len(kept) >= KEPT,
            None,
            f"{', '.join(kept)}; plain GRPO keeps {len(also)}, so this does not tell them apart",
        ),
    ]


def tried(runs: Runs) -> list[Check]:
    """The same claims at the learning rate of the first runs, where they are stored: reported."""
    ours, theirs = (runs.get(first(name)) for name in (ADA, PLAIN))
    if not ours or not theirs:
        return []
    found = versus(ours, theirs)
    mixed = [entropy(shares(one)) for one in (ours, theirs)]
    styles = "; ".join(
        ", ".join(f"{style} {share:.2f}" for style, share in shares(one).items())
        for one in (ours, theirs)
    )
    return [
        Check(
            f"{first(ADA)}: fewer tokens than plain GRPO",
            "",
            1 - found.tokens.value,
            None,
            (1 - found.tokens.hi, 1 - found.tokens.lo),
            f"accuracy {mean(ours).value:.3f} against {mean(theirs).value:.3f}, difference "
            f"{found.accuracy.value:+.3f} [{found.accuracy.lo:+.3f}, {found.accuracy.hi:+.3f}]; "
            f"entropy of formats at T=1 {mixed[0]:.2f} against {mixed[1]:.2f} ({styles}); "
            f"{found.seeds} seeds; the first runs, which moved little",
        )
    ]


def _trend(results: Sequence[CellResult], styles: Sequence[str]) -> float:
    """Slope of a format's share over operations, at T=1, mean of the seeds."""
    ops = np.array(ChainTask().test_rows()["ops"], dtype=np.float64)
    slopes = []
    for one in results:
        for cell in one.at(1.0):
            chosen = np.array([style in styles for style in cell.styles], dtype=np.float64)
            slopes.append(float(np.polyfit(ops, chosen, 1)[0]))
    return float(np.mean(slopes))


def by_need(runs: Runs) -> list[Check]:
    """Claim 2: harder problems get longer formats."""
    direct, plain = (_trend(runs[name], ("direct",)) for name in (ADA, PLAIN))
    steps, flat = (_trend(runs[name], STEPWISE) for name in (ADA, PLAIN))
    return [
        Check(
            "the share of direct answers falls with the number of operations",
            "direct is used on easy tasks",
            direct,
            direct < 0,
            None,
            f"slope of the share a further operation, T=1; plain GRPO {plain:+.4f}; target: "
            "below 0",
        ),
        Check(
            "formats with steps grow with the number of operations, more than under plain GRPO",
            "long is used on hard tasks",
            steps - flat,
            steps > 0 and steps > flat,
            None,
            f"slopes {steps:+.4f} against {flat:+.4f}; target: above 0, and above plain GRPO's",
        ),
    ]


def cheaper(runs: Runs) -> Check:
    """Claim 3: fewer tokens at little loss."""
    found = versus(runs[ADA], runs[PLAIN])
    return Check(
        f"{SAVED:.0%} fewer tokens than plain GRPO, accuracy within {LOST:.0%}",
        "-32.5 % tokens, -0.2 accuracy",
        1 - found.tokens.value,
        1 - found.tokens.value >= SAVED and found.accuracy.value >= -LOST,
        (1 - found.tokens.hi, 1 - found.tokens.lo),
        f"greedy, uncut; accuracy {found.accuracy.value:+.3f} [{found.accuracy.lo:+.3f}, "
        f"{found.accuracy.hi:+.3f}]; {found.seeds} seeds, {found.problems} problems",
    )


def _mixed(runs: Runs, name: str) -> str:
    """A method's formats, for a note."""
    parts = ", ".join(f"{style} {share:.2f}" for style, share in shares(runs[name]).items())
    return f"formats of {name}: {parts}; "


def tiny(seed: int) -> list[Check]:
    """The table of factors, and a few steps."""
    from outlay.rl.grid import run_cell

    task = ChainTask(test=8, ops=(1, 5), scales=(2.0,), temperatures=(1.0,))
    (cell,) = cells((ADA,), (seed,), task, steps=CI_STEPS, questions=4)
    found = run_cell(cell)
    method = scaled()
    ends = [method.alpha(8, same, step, 100) for step in (0, 100) for same in (1, 2, 4, 8)]
    acc = [value or 0.0 for value in found.curve["acc"]]
    return [
        Check(
            "a reward is scaled by its format's rarity at first, and by nothing at last",
            "G/F to 1",
            str(ends),
            ends == [8, 4, 2, 1, 1, 1, 1, 1],
        ),
        Check(
            "a few steps train",
            "",
            float(np.mean(acc)),
            0 < float(np.mean(acc)) < 1 and len(acc) == CI_STEPS,
            None,
            "accuracy of the rollouts",
        ),
    ]
