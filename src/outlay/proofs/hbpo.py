"""Proof of HBPO on ChainArith-RL: do budgets inside every group teach how long to think?

"Hierarchical Budget Policy Optimization" (arXiv 2507.15844) says: rollouts of a group stay spread
over lengths, where a cosine reward or one budget draws them together; without a promise the trained
model thinks longer on harder problems; hard problems keep the accuracy that a plain length reward
costs them; and the term within subgroups is not what makes it work. Beside it run one budget, the
cosine without budgets, plain GRPO with the same number of rollouts, and what the pieces do alone.

All targets stand here and were written before the first run; the learning rate is a second choice
(see `rl_beside.RATE`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from outlay.proofs import rl_figure, rl_real
from outlay.proofs.base import Check, Progress, ProofResult, Scale, silent
from outlay.proofs.hbpo_runs import (
    ABLATIONS,
    COSINE,
    EXTRAS,
    GROUP,
    HARD,
    HIERARCHY,
    LAST,
    MAIN,
    NO_INTRA,
    ONE,
    PLAIN,
    TWICE,
    cells,
    hierarchy,
)
from outlay.proofs.rl_beside import SEEDS, at_first_rate, beside, finished, first, home, peer
from outlay.proofs.rl_figure import Runs
from outlay.rl.grid_compare import points
from outlay.rl.grid_results import CellResult
from outlay.rl.hbpo import HBPO
from outlay.rl.running_tasks import ChainTask

GAIN = 0.05  # accuracy on hard problems above the cosine's
SPREAD = "group_tokens_std"
CI_STEPS, CI_KEEPS = 4, 0.5  # of the tiny run: the spread must not fall below this part


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
        return ProofResult("hbpo", scale, [seed], tiny(seed)).finish()
    seeds = [seed + one for one in SEEDS[scale]]
    wanted = cells(MAIN, seeds) + cells(ABLATIONS, seeds[:1])
    extra = cells(EXTRAS, seeds[:1]) + at_first_rate(cells(MAIN, seeds[:1]))
    runs = finished(wanted, extra, home(folder), progress, train_extra=scale == "gpu")
    result = ProofResult("hbpo", scale, seeds, judged(runs))
    result.checks.append(real_model(progress))
    result.points = points([one for name in MAIN for one in runs[name]], seed=seed)
    result.peer = peer(runs, HIERARCHY, MAIN[1:])
    result.data = rl_figure.data_of(runs, (SPREAD, "tokens_mean", "acc", "grad_norm", "entropy"))
    result.draw = rl_figure.drawer(
        runs, MAIN, SPREAD, "std of lengths within a group", "Spread of rollouts in training"
    )
    return result.finish()


def judged(runs: Runs) -> list[Check]:
    """Every check of finished runs."""
    return [
        *spread(runs),
        *by_need(runs),
        hard(runs),
        *inner(runs),
        *(
            beside(runs, HIERARCHY, name)
            for name in (ONE, COSINE, PLAIN, *ABLATIONS, *EXTRAS)
            if name in runs
        ),
        *(
            beside(runs, first(HIERARCHY), first(name), _spreads(runs, name))
            for name in (ONE, COSINE, PLAIN)
            if first(name) in runs and first(HIERARCHY) in runs
        ),
    ]


def _spreads(runs: Runs, name: str) -> str:
    ours, theirs = (np.mean(_tails(runs[first(one)], SPREAD)) for one in (HIERARCHY, name))
    return f"spread of rollouts {ours:.1f} against {theirs:.1f}; "


def _tails(results: Sequence[CellResult], name: str) -> list[float]:
    found = [one.tail(name, LAST) for one in results]
    assert None not in found, f"a run has no curve {name}"
    return [value for value in found if value is not None]


def spread(runs: Runs) -> list[Check]:
    """Claim 1: lengths of rollouts stay apart."""
    means = {name: float(np.mean(_tails(runs[name], SPREAD))) for name in MAIN}
    shown = ", ".join(f"{name} {value:.1f}" for name, value in means.items())
    checks = []
    for ours, theirs in ((HIERARCHY, ONE), (ONE, COSINE)):
        pairs = zip(_tails(runs[ours], SPREAD), _tails(runs[theirs], SPREAD), strict=True)
        gaps = [a - b for a, b in pairs]
        checks.append(
            Check(
                f"rollouts spread wider under {ours} than under {theirs}",
                "training length settles with a larger spread than under one budget",
                means[ours] - means[theirs],
                means[ours] > means[theirs],
                (min(gaps), max(gaps)),
                f"std of tokens within a group over the last {LAST} steps: {shown}; "
                f"{len(gaps)} seeds, the interval is their range; target: above 0",
            )
        )
    return checks


def _rank(results: Sequence[CellResult]) -> list[float]:
    """Rank correlation of operations and tokens, sampled, uncut; one a seed."""
    return [
        float(np.mean([cell.metrics["spearman"] or 0.0 for cell in one.at(1.0)])) for one in results
    ]


def by_need(runs: Runs) -> list[Check]:
    """Claim 2: without a promise, harder problems get more tokens."""
    ours = float(np.mean(_rank(runs[HIERARCHY])))
    checks = []
    for other in (COSINE, ONE):
        theirs = float(np.mean(_rank(runs[other])))
        gaps = [a - b for a, b in zip(_rank(runs[HIERARCHY]), _rank(runs[other]), strict=True)]
        checks.append(
            Check(
                f"without a promise, length follows difficulty more closely than under {other}",
                "adapts to the problem",
                ours - theirs,
                ours > theirs,
                (min(gaps), max(gaps)),
                f"Spearman of operations and tokens at T=1: {ours:.3f} against {theirs:.3f}; "
                f"{len(gaps)} seeds, the interval is their range; target: above 0",
            )
        )
    return checks


def _on_hard(results: Sequence[CellResult], name: str) -> float:
    bins = [one.by_difficulty(name) for one in results]
    values = [found[str(n)] for found in bins for n in HARD]
    return float(np.mean([value for value in values if value is not None]))


def hard(runs: Runs) -> Check:
    """Claim 3: hard problems keep their accuracy, at no more tokens than without budgets."""
    ours, cosine = (_on_hard(runs[name], "acc") for name in (HIERARCHY, COSINE))
    tokens, plain = (_on_hard(runs[name], "tokens_mean") for name in (HIERARCHY, PLAIN))
    return Check(
        f"on {HARD[0]} and {HARD[1]} operations at least {GAIN:.0%} above the cosine, at no more "
        "tokens than plain GRPO",
        "31.1 against 23.3 on AIME25",
        ours - cosine,
        ours - cosine >= GAIN and tokens <= plain,
        None,
        f"greedy accuracy {ours:.3f} against {cosine:.3f}; tokens {tokens:.1f} against plain "
        f"GRPO's {plain:.1f}; {len(runs[HIERARCHY])} seeds",
    )


def inner(runs: Runs) -> list[Check]:
    """Claim 4: what the term within subgroups does."""
    [without], [twice] = runs[NO_INTRA], runs[TWICE]
    [cosine], [once] = (
        [one for one in runs[name] if one.seed == without.seed] for name in (COSINE, HIERARCHY)
    )
    rank, base = _rank([without, cosine])
    norm_without, norm_once, norm_twice = (
        float(np.mean(_tails([one], "grad_norm"))) for one in (without, once, twice)
    )
    return [
        Check(
            "length follows difficulty more closely than under the cosine without the inner term, "
            "too",
            "not reported",
            rank - base,
            rank > base,
            None,
            f"Spearman {rank:.3f} against {base:.3f}, one seed; target: above 0",
        ),
        Check(
            "counting the inner term twice makes larger updates",
            "released code",
            norm_twice / norm_once,
            norm_twice > norm_once,
            None,
            "gradient norm over the last "
            f"{LAST} steps: without {norm_without:.3f}, once {norm_once:.3f}, twice "
            f"{norm_twice:.3f}; one seed; target: above 1",
        ),
    ]


def real_model(progress: Progress) -> Check:
    """A few steps on the chat model, which reads its promises in words."""
    progress(f"a few steps on {rl_real.NAME}")
    model, tokenizer = rl_real.policy()
    method = HBPO(budgets=(24, 48), n=rl_real.GROUP, l_max=64).tokenized(tokenizer)
    return rl_real.few_steps(
        method,
        model,
        tokenizer,
        rl_real.chats(),
        claim=f"{rl_real.NAME} trains for a few steps, promises in its own words",
        paper="1.5B reasoners train",
        tokens=64,
        note="budgets 24 and 48 of 64; ",
    )


def tiny(seed: int) -> list[Check]:
    """A few steps: promises in every group, finite advantages, lengths not drawn together."""
    from outlay.rl.grid import run_cell

    task = ChainTask(test=8, ops=(1, 5), scales=(2.0,), temperatures=(0.0,))
    (cell,) = cells((HIERARCHY,), (seed,), task, steps=CI_STEPS, questions=2)
    found = run_cell(cell)
    lengths = [value or 0.0 for value in found.curve[SPREAD]]
    kept = min(lengths) / lengths[0]
    shares = hierarchy().counts(GROUP)
    return [
        Check(
            "every group holds as many rollouts of every budget",
            "n / k each",
            str(shares),
            len(set(shares)) == 1 and found.tokens["forced"] == CI_STEPS * 2 * GROUP,
            None,
            "every rollout began with its promise (one forced token each)",
        ),
        Check(
            "lengths of a group are not drawn together at once",
            "",
            kept,
            kept > CI_KEEPS,
            None,
            f"least spread over the first, {CI_STEPS} steps; target: above {CI_KEEPS}",
        ),
    ]
