"""Proof of AnytimeBRPO on ChainArith-RL.

"Optimizing Anytime Reasoning via Budget Relative Policy Optimization" (arXiv 2505.13438) says that
(1) the budget-relative baseline leaves less variance than either of its parts; (2) dense rewards at
several budgets raise the accuracy of answers that are forced early; (3) thinking gets shorter
without any length penalty; (4) answers are better trained apart from the thinking's prior. The
first needs no training. The others compare trained policies: anytime accuracy is the mean over a
grid of budgets, of one answer forced from one thinking at each, on held-out questions.

The main baseline is Dr.GRPO as TRL has it, with the same forced answer at the largest budget, at
equal steps and with more steps, so that it samples at least as many tokens (answers counted). Every
target was written before the first training run; the learning rate is a second choice (see
`rl_beside.RATE`). What needs no training (variance, tokens and seconds of a step) had been looked
at in a pilot before; the variance targets are the paper's statements and did not change.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from outlay.paired import difference
from outlay.proofs.anytime_brpo_cost import cost, real_model, reuse
from outlay.proofs.anytime_brpo_figure import drawer
from outlay.proofs.anytime_brpo_runs import (
    EQUAL_STEPS,
    EXTRA,
    GRID,
    MAIN,
    SINGLE,
    START,
    TASK,
    cell,
    lengths_of,
    right_of,
    thinking_of,
)
from outlay.proofs.anytime_brpo_variance import measure
from outlay.proofs.base import Check, Peer, Progress, ProofResult, Scale, silent
from outlay.proofs.rl_beside import finished
from outlay.proofs.rl_figure import Runs
from outlay.rl.grid import CellResult, run_cell

# Targets.
ABOVE = 0.0  # a difference's interval lies above (or below) it
SMALL = 3  # budgets at each end of the grid that are compared


@dataclass(frozen=True)
class Size:
    """Questions of the variance claims, seeds of the main runs, thinkings of a cost step."""

    questions: int
    seeds: int
    rollouts: int


SIZES: Mapping[Scale, Size] = {
    "ci": Size(24, 0, 32),
    "laptop": Size(600, 3, 128),
    "gpu": Size(2000, 5, 128),
}


def run(
    scale: Scale,
    *,
    seed: int = 0,
    progress: Progress = silent,
    folder: str | Path | None = None,
    processes: int = 1,
) -> ProofResult:
    """Run the experiment.

    Args:
        scale: "ci" measures variance on few questions and trains two steps; "laptop" trains the
            main methods with three seeds and the rest with one; "gpu" has more of both.
        seed: the first one.
        progress: told what happens.
        folder: the grid's store; what is there is not trained again, and methods that "laptop"
            leaves out are reported if they are there. None keeps nothing.
        processes: cells trained at once.
    """
    size = SIZES[scale]
    seeds = [seed + k for k in range(max(1, size.seeds))]
    result = ProofResult("anytime-brpo", scale, seeds)
    checks, data, found = measure(size.questions, seed, progress, scale != "ci")
    result.checks = [*checks, reuse(found)]
    result.data["variance"] = data
    if scale == "ci":
        task = replace(TASK, train=16, test=8, scales=(0.25, 1.0))
        small = replace(cell("uniform", seed), steps=2, questions=4, task=task)
        trained = run_cell(small, progress)
        result.data["curve"] = {
            name: trained.curve[name] for name in ("tokens_mean", "acc", "grad_norm")
        }
        return result.finish()
    result.checks += cost(size.rollouts, progress)
    result.checks.append(real_model(progress))
    wanted = [(START, seed), *((name, s) for s in seeds for name in MAIN)]
    wanted += [(name, seed) for name in SINGLE]
    with tempfile.TemporaryDirectory() as scratch:
        runs = finished(
            [cell(*one) for one in wanted],
            [cell(name, seed) for name in EXTRA],
            Path(scratch if folder is None else folder),
            progress,
            train_extra=scale == "gpu",
            processes=processes,
        )
    result.checks += claims(runs)
    result.peer = _peer(runs)
    result.data["grid"] = list(GRID)
    result.data["curves"] = {
        name: right_of(group).mean(axis=0).tolist() for name, group in runs.items()
    }
    result.data["runs"] = [_summary(one) for group in runs.values() for one in group]
    result.draw = drawer(GRID, result.data["curves"], runs, data)
    return result.finish()


def _summary(one: CellResult) -> dict[str, Any]:
    return {
        "name": one.label,
        "key": one.key,
        "seed": one.seed,
        "steps": one.steps,
        "tokens": one.tokens,
        "seconds": one.seconds,
        "accuracy": right_of([one]).mean(axis=0).tolist(),
        "thinking": float(thinking_of([one]).mean()),
        "lengths": lengths_of(one) if one.steps else [],
    }


def claims(runs: Runs) -> list[Check]:
    """Claims 2 to 4 from finished runs, the starting policy among them."""
    ours, grpo = runs["uniform"], runs["GRPO"]
    checks = [_above(ours, grpo, runs[START], _more(ours, grpo))]
    if EQUAL_STEPS in runs:
        checks.append(_above(ours[:1], runs[EQUAL_STEPS], runs[START], "equal steps"))
    checks.append(_where(ours, grpo))
    final = difference(right_of(ours)[:, -1] - right_of(grpo)[:, -1])
    checks.append(
        Check(
            "final accuracy (at the largest budget): BRPO (uniform) against GRPO",
            "52.5 against 50.7",
            final.mean,
            not (final.separable and final.mean < 0),
            (final.lo, final.hi),
            f"{right_of(ours)[:, -1].mean():.3f} against {right_of(grpo)[:, -1].mean():.3f}; "
            "target: not separably below",
        )
    )
    checks += [
        _shorter(name, runs[name], runs[START]) for name in ("uniform", "linear") if name in runs
    ]
    return checks + _ablations(runs)


def _above(
    ours: Sequence[CellResult],
    grpo: Sequence[CellResult],
    start: Sequence[CellResult],
    what: str,
) -> Check:
    gap = difference((right_of(ours) - right_of(grpo)).mean(axis=1))
    spent = [_sampled(group) for group in (ours, grpo)]
    return Check(
        f"anytime accuracy: BRPO (uniform) above GRPO with a forced answer, {what}",
        "46.0 against 43.0",
        gap.mean,
        gap.separable and gap.lo > ABOVE,
        (gap.lo, gap.hi),
        f"{right_of(ours).mean():.3f} against {right_of(grpo).mean():.3f}, starting policy with "
        f"forced answers {right_of(start).mean():.3f}; {len(ours)} seeds, n={gap.n} questions; "
        f"{spent[0]:.0f} against {spent[1]:.0f} tokens sampled; target: interval above 0",
    )


def _more(ours: Sequence[CellResult], grpo: Sequence[CellResult]) -> str:
    """GRPO takes more steps, meant to even out the answers' tokens; what it came to."""
    ratio = _sampled(grpo) / _sampled(ours)
    return f"GRPO given {ratio:.2f} times the sampled tokens"


def _sampled(group: Sequence[CellResult]) -> float:
    return float(np.mean([one.training_tokens for one in group]))


def _where(ours: Sequence[CellResult], grpo: Sequence[CellResult]) -> Check:
    """The gain at the smallest budgets less that at the largest ones."""
    gain_QS = right_of(ours) - right_of(grpo)
    low, high = gain_QS[:, :SMALL].mean(axis=1), gain_QS[:, -SMALL:].mean(axis=1)
    gap = difference(low - high)
    by = ", ".join(f"{b}: {g:+.3f}" for b, g in zip(GRID, gain_QS.mean(axis=0), strict=True))
    return Check(
        "the gain over GRPO is larger at small budgets than at large ones",
        "largest at small budgets",
        gap.mean,
        gap.separable and gap.lo > ABOVE,
        (gap.lo, gap.hi),
        f"mean gain at the {SMALL} smallest less the {SMALL} largest budgets of the grid; by "
        f"budget {by}; target: interval above 0",
    )


def _shorter(name: str, group: Sequence[CellResult], start: Sequence[CellResult]) -> Check:
    start_Q = thinking_of(start)
    gap = difference(thinking_of(group) - start_Q)
    first = np.mean([np.mean(lengths_of(one)[:10]) for one in group])
    last = np.mean([np.mean(lengths_of(one)[-10:]) for one in group])
    return Check(
        f"thinking gets shorter without a length term: {name} prior",
        "shorter without a length penalty",
        gap.mean,
        gap.separable and gap.hi < -ABOVE,
        (gap.lo, gap.hi),
        "tokens, trained minus starting policy, on held-out questions "
        f"({thinking_of(group).mean():.1f} against {start_Q.mean():.1f}); rollouts: first 10 steps "
        f"{first:.1f}, last 10 {last:.1f}; {len(group)} seeds; target: interval below 0",
    )


ABLATIONS = (
    ("linear", "coupled", "answers trained at all cuts alike, above weighed by the prior", True),
    ("linear", "V2", "BRPO above V2 alone (GRPO's baseline), linear prior", True),
    ("uniform", "base", "dense rewards: uniform above the base prior", True),
    ("uniform", "length", "BRPO (uniform) above GRPO with a length penalty, equal steps", True),
    ("uniform", "progress", "BRPO (uniform) above a progress reward (next budget only)", None),
)
"""Ours, theirs, the claim, and whether it has a target (interval above 0)."""


def _ablations(runs: Runs) -> list[Check]:
    checks = []
    for ours, theirs, claim, target in ABLATIONS:
        if ours not in runs or theirs not in runs:
            continue
        a, b = runs[ours][:1], runs[theirs][:1]
        gap = difference((right_of(a) - right_of(b)).mean(axis=1))
        last = difference(right_of(a)[:, -1] - right_of(b)[:, -1])
        checks.append(
            Check(
                f"anytime accuracy: {claim}",
                "each part helps alone",
                gap.mean,
                (gap.separable and gap.lo > ABOVE) if target else None,
                (gap.lo, gap.hi),
                f"{right_of(a).mean():.3f} against {right_of(b).mean():.3f}; final accuracy "
                f"{last.mean:+.3f} ({last.lo:+.3f} to {last.hi:+.3f}); thinking "
                f"{thinking_of(a).mean():.1f} against {thinking_of(b).mean():.1f} tokens; one "
                f"seed, n={gap.n}" + ("; target: interval above 0" if target else ""),
            )
        )
    return checks


def _peer(runs: Runs) -> Peer:
    from importlib.metadata import version

    ours, theirs = (float(right_of(runs[name]).mean()) for name in ("uniform", "GRPO"))
    return Peer(
        "trl: Dr.GRPO with a forced answer",
        version("trl"),
        f"anytime accuracy, {_more(runs['uniform'], runs['GRPO'])}, {TASK.test} held-out questions",
        ours,
        theirs,
        ours / theirs,
    )
