"""Claim 1 of the proof of AnytimeBRPO: how much variance its baselines remove, without training.

The starting policy thinks about many questions, G times each; every thinking is cut at every budget
and answered A times. The paper measures the normalised variance Var[R - V] / Var[R] and the
correlation of V1 and V2 with R (figure 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from outlay.proofs.anytime_brpo_runs import METHOD, OPS
from outlay.proofs.base import Check, Progress
from outlay.rl.anytime.measure import Explored, Segment, explore, variance
from outlay.testbeds.chainarith_rl import dataset, load

# Written before the first run. Interval = 95 % bootstrap over questions.
NOISE = 0.0  # BRPO's ratio is not separably above the lower one of V1 and V2
FINE = tuple(range(8, 65, 8))
"""A change that was tried: eight budgets in equal steps, as in the paper's longest run."""


def measure(
    questions: int, seed: int, progress: Progress, changes: bool = True
) -> tuple[list[Check], dict[str, Any], Explored]:
    """Checks, data and what was sampled at the proof's own budgets.

    Args:
        questions: held out.
        seed: of the sampling.
        progress: told what happens.
        changes: also measure what was tried where the first claim fails.
    """
    rows = [dict(row) for row in dataset(questions, seed=11, ops=OPS, split="heldout")]
    model, tokenizer = load()
    progress(f"variance: {questions} questions at budgets {METHOD.budgets}")
    method = replace(METHOD, prior="linear")
    found = explore(model, tokenizer, method, rows, seed=seed)
    segments = variance(found.means, found.lengths, method)
    checks = _claims(segments, found)
    data = {"own return": _table(segments)}
    if not changes:
        return checks, data, found
    out = variance(found.means, found.lengths, replace(method, leave_one_out=True))
    checks += _changed(out, "V2 without the thinking's own return (leave one out)")
    data["leave one out"] = _table(out)
    progress(f"variance: budgets {FINE}")
    fine = replace(method, budgets=FINE)
    wide = explore(model, tokenizer, fine, rows, seed=seed)
    for loo in (False, True):
        name = "leave one out" if loo else "own return"
        parts = variance(wide.means, wide.lengths, replace(fine, leave_one_out=loo))
        checks += _changed(parts, f"eight budgets in equal steps up to {FINE[-1]}, {name}")
        data[f"eight budgets, {name}"] = _table(parts)
    return checks, data, found


def _claims(segments: Sequence[Segment], found: Explored) -> list[Check]:
    size = f"{found.means.shape[0]} questions of {found.group} thinkings, linear prior"
    worst = min(segments[1:], key=lambda one: one.gain.mean)
    first, last = segments[1], segments[-1]
    rise = last.correlation["v1"].mean - first.correlation["v1"].mean
    fall = last.correlation["v2"].mean - segments[0].correlation["v2"].mean
    return [
        Check(
            "Var[R - V] / Var[R] of BRPO is not above the lower one of V1 and V2 in any segment",
            "below V1 and V2 alone at all lengths",
            worst.gain.mean,
            worst.gain.hi >= NOISE,
            (worst.gain.lo, worst.gain.hi),
            f"lower one minus BRPO's, the worst segment (to {worst.budget}); {size}; by segment "
            f"V1/V2/BRPO: {_ratios(segments)}; target: interval not below 0",
        ),
        Check(
            "V1's correlation with R rises with the segment",
            "rises with the thinking length",
            rise,
            last.correlation["v1"].lo > first.correlation["v1"].hi,
            None,
            f"last minus second segment; by segment from the second: "
            f"{_correlations(segments[1:], 'v1')}; target: intervals apart, rising",
        ),
        Check(
            "V2's correlation with R falls with the segment",
            "falls with the thinking length",
            fall,
            last.correlation["v2"].hi < segments[0].correlation["v2"].lo,
            None,
            f"last minus first segment; by segment: {_correlations(segments, 'v2')}; target: "
            "intervals apart, falling",
        ),
    ]


def _changed(segments: Sequence[Segment], change: str) -> list[Check]:
    """What a change does to the first claim: reported."""
    worst = min(segments[1:], key=lambda one: one.gain.mean)
    better = [one.budget for one in segments[1:] if one.gain.lo > 0]
    worse = [one.budget for one in segments[1:] if one.gain.hi < 0]
    return [
        Check(
            f"changed: {change}",
            "below V1 and V2 alone at all lengths",
            worst.gain.mean,
            None,
            (worst.gain.lo, worst.gain.hi),
            f"worst segment (to {worst.budget}); V1/V2/BRPO: {_ratios(segments)}; BRPO separably "
            f"below both in segments to {better or 'none'}, above the better one in "
            f"{worse or 'none'}; V1's correlation: {_correlations(segments[1:], 'v1')}",
        )
    ]


def _ratios(segments: Sequence[Segment]) -> str:
    return ", ".join(
        f"{one.budget}: " + "/".join(f"{one.ratio[name].mean:.2f}" for name in one.ratio)
        for one in segments
    )


def _correlations(segments: Sequence[Segment], name: str) -> str:
    return ", ".join(f"{one.budget}: {one.correlation[name].mean:.2f}" for one in segments)


def _table(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    return [
        {
            "budget": one.budget,
            "thinkings": one.n,
            **{
                f"ratio {name}": [value.mean, value.lo, value.hi]
                for name, value in one.ratio.items()
            },
            **{
                f"correlation {name}": [value.mean, value.lo, value.hi]
                for name, value in one.correlation.items()
            },
        }
        for one in segments
    ]
