"""What the proof of Curriculum GRPO claims, computed from finished runs.

All targets were written before the first run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from outlay import paired
from outlay.paired import Difference
from outlay.proofs.base import Check
from outlay.proofs.curriculum_grpo_runs import (
    B0,
    B_FINAL,
    BAND,
    CURRICULUM,
    EASY,
    FIXED,
    GATED,
    HARD,
    MAIN,
    TRIANGLE,
    binned,
    lengths_of,
    methods,
    table_of,
)
from outlay.proofs.rl_figure import Runs
from outlay.rl.curriculum import CurriculumGRPO
from outlay.rl.grid_results import CellResult
from outlay.stats import FloatArray

# Targets.
LAG = 30  # steps, fewer
NEAR = 0.10  # a length has arrived within this share above the budget
SMOOTH = 5  # steps of the moving mean that must arrive
BEFORE = 10  # steps before a drop whose mean says whether the drop binds
FALL = 0.10  # a fall of accuracy in training
WINDOW = 10  # steps of the moving mean that must fall

GREEDY, SAMPLED = 0.0, 1.0


def difference(
    ours: Sequence[CellResult], theirs: Sequence[CellResult], what: str, at: float
) -> Difference:
    """Ours minus theirs over the held-out problems, at the largest budget; seeds averaged first.

    Args:
        ours, theirs: runs of two methods.
        what: "right" or "tokens".
        at: the temperature of answering.
    """
    gap_N = _mean(ours, what, at) - _mean(theirs, what, at)
    return paired.difference(gap_N)


def _mean(runs: Sequence[CellResult], what: str, at: float) -> FloatArray:
    values_SN = np.array(
        [run.right(at) if what == "right" else run.lengths(at) for run in runs], dtype=np.float64
    )
    mean_N: FloatArray = values_SN.mean(axis=0)
    return mean_N


def score(runs: Sequence[CellResult], at: float) -> tuple[float, float]:
    """Accuracy and tokens at the largest budget, all seeds."""
    return float(_mean(runs, "right", at).mean()), float(_mean(runs, "tokens", at).mean())


def lags(lengths: Sequence[float], table: Sequence[tuple[int, float]]) -> list[int | None]:
    """Steps until lengths have followed each drop of the budget that binds.

    A drop binds if the mean length before it is more than `NEAR` above the new budget. Lengths have
    followed when their mean over `SMOOTH` steps is at most `NEAR` above it.

    Args:
        lengths: mean tokens of each step's rollouts.
        table: step and budget of each stage.

    Returns:
        One entry a binding drop; None where the stage ended first.
    """
    ends = [step for step, _ in table[1:]] + [len(lengths)]
    found: list[int | None] = []
    for (step, budget), end in list(zip(table, ends, strict=True))[1:]:
        goal = (1 + NEAR) * budget
        if np.mean(lengths[max(0, step - BEFORE) : step]) <= goal:
            continue
        arrived = (
            t - step
            for t in range(step, end - SMOOTH + 1)
            if np.mean(lengths[t : t + SMOOTH]) <= goal
        )
        found.append(next(arrived, None))
    return found


def follows(runs: Sequence[CellResult]) -> Check:
    """Claim 1: length follows the budget."""
    lengths = np.mean([lengths_of(run) for run in runs], axis=0).tolist()
    method = methods()[CURRICULUM]
    assert isinstance(method, CurriculumGRPO)
    table = table_of(method, len(lengths))
    found = lags(lengths, table)
    late = [lag is None or lag >= LAG for lag in found]
    shown = ", ".join("not in its stage" if lag is None else str(lag) for lag in found)
    stages = [
        f"{np.mean(lengths[max(step, end - BEFORE) : end]):.1f} at {budget:.0f}"
        for (step, budget), end in zip(
            table, [step for step, _ in table[1:]] + [len(lengths)], strict=True
        )
    ]
    return Check(
        "length follows the budget",
        "final lengths within about 5 % of the target",
        shown or "no drop binds",
        bool(found) and not any(late),
        None,
        f"steps of lag after each drop that binds (mean length before it more than {NEAR:.0%} "
        f"above the new budget), mean of {len(runs)} seeds; sampled tokens over the last {BEFORE} "
        f"steps of each stage: {', '.join(stages)}; target: all below {LAG}",
    )


def curriculum_or_fixed(runs: Runs) -> list[Check]:
    """Claim 2: the curriculum against the final budget from the start."""
    checks = []
    for at, named in ((GREEDY, "greedy"), (SAMPLED, "T=1")):
        ours, theirs = runs[CURRICULUM], runs[FIXED]
        gap = difference(ours, theirs, "right", at)
        longer = difference(ours, theirs, "tokens", at)
        (acc, tokens), (base, spent) = score(ours, at), score(theirs, at)
        checks.append(
            Check(
                f"{named}: the curriculum is more accurate than its last budget from the start",
                "86.20 against 82.71 on GSM8K, at 88.8 and 87.0 tokens",
                gap.mean,
                gap.mean > 0,
                (gap.lo, gap.hi),
                f"{acc:.3f} at {tokens:.1f} tokens against {base:.3f} at {spent:.1f} "
                f"(difference {longer.mean:+.1f}, {longer.lo:+.1f} to {longer.hi:+.1f}); "
                f"n={gap.n}, {len(ours)} seeds, {_apart(gap)}; target: above 0",
            )
        )
    return checks


def against(runs: Runs, rivals: Sequence[str]) -> list[Check]:
    """The curriculum beside other rewards and orders, without a target."""
    checks = []
    for name in rivals:
        if not runs.get(name):
            continue
        seeds = {run.seed for run in runs[name]}
        ours = [run for run in runs[CURRICULUM] if run.seed in seeds] or runs[CURRICULUM][:1]
        gap = difference(ours, runs[name], "right", GREEDY)
        (acc, tokens), (base, spent) = score(ours, GREEDY), score(runs[name], GREEDY)
        sampled, other = score(ours, SAMPLED), score(runs[name], SAMPLED)
        checks.append(
            Check(
                f"the curriculum against {name}",
                "",
                gap.mean,
                None,
                (gap.lo, gap.hi),
                f"greedy {acc:.3f} at {tokens:.1f} tokens against {base:.3f} at {spent:.1f}; T=1 "
                f"{sampled[0]:.3f} at {sampled[1]:.1f} against {other[0]:.3f} at {other[1]:.1f}; "
                f"training tokens {_generated(ours):.0f}k against {_generated(runs[name]):.0f}k; "
                f"{len(ours)} seed(s), {_apart(gap)}",
            )
        )
    return checks


def _apart(gap: Difference) -> str:
    return "separable" if gap.separable else "not separable"


def _generated(runs: Sequence[CellResult]) -> float:
    return float(np.mean([run.training_tokens for run in runs])) / 1000


def shapes(runs: Runs) -> list[Check]:
    """Claim 3: where weights favour length, the band is shorter and less accurate."""
    band, triangle = runs[BAND], runs[TRIANGLE]
    tokens = difference(band, triangle, "tokens", SAMPLED)
    right = difference(band, triangle, "right", SAMPLED)
    return [
        Check(
            "length-heavy: the band is shorter than the triangle",
            "94 against 135 tokens",
            tokens.mean,
            tokens.hi < 0,
            (tokens.lo, tokens.hi),
            f"tokens at T=1, n={tokens.n}, {len(band)} seed; target: interval below 0",
        ),
        Check(
            "length-heavy: the band is less accurate than the triangle",
            "55.0 against 57.9",
            right.mean,
            right.mean < 0,
            (right.lo, right.hi),
            f"accuracy at T=1, n={right.n}, {len(band)} seed, {_apart(right)}; target: below 0",
        ),
    ]


def first_fall(accuracy: Sequence[float | None]) -> int | None:
    """The first step at which the moving mean lies `FALL` below that of the first steps."""
    known = [value for value in accuracy if value is not None]
    start = float(np.mean(known[:WINDOW]))
    for step in range(WINDOW, len(accuracy) - WINDOW + 1):
        window = [value for value in accuracy[step : step + WINDOW] if value is not None]
        if window and float(np.mean(window)) <= start - FALL:
            return step
    return None


def hard_first(runs: Runs) -> list[Check]:
    """Claim 4: paying wrong answers for their length, hard problems fall first."""
    (open_run, *_), (gated, *_) = runs[TRIANGLE], runs[GATED]
    kinds = (("easy", EASY), ("hard", HARD))
    falls = {kind: first_fall(binned(open_run, "acc", ops)) for kind, ops in kinds}
    hard, easy = falls["hard"], falls["easy"]
    ends = {
        (name, kind): _known(values[-WINDOW:]) - _known(values[:WINDOW])
        for name, run in (("paid", open_run), ("gated", gated))
        for kind, ops in kinds
        for values in (binned(run, "acc", ops),)
    }
    shown = {name: "never" if at is None else str(at) for name, at in falls.items()}
    return [
        Check(
            "wrong answers paid for length: accuracy falls on hard problems first",
            "wrong answers are paid, too",
            f"hard {shown['hard']}, easy {shown['easy']}",
            hard is not None and (easy is None or hard < easy),
            None,
            f"first step with training accuracy {FALL:.2f} below its start; easy are "
            f"{EASY[0]}-{EASY[-1]} operations, hard {HARD[0]}-{HARD[-1]}; weights (.3, .6, .1), "
            "one seed; target: hard falls, and before easy",
        ),
        Check(
            "wrong answers paid for length cost hard problems more than gating does",
            "",
            ends["paid", "hard"] - ends["gated", "hard"],
            ends["paid", "hard"] < ends["gated", "hard"],
            None,
            "change of training accuracy from the first to the last "
            f"{WINDOW} steps: paid hard {ends['paid', 'hard']:+.3f}, easy "
            f"{ends['paid', 'easy']:+.3f}; gated hard {ends['gated', 'hard']:+.3f}, easy "
            f"{ends['gated', 'easy']:+.3f}; one seed; target: below 0",
        ),
    ]


def padding(runs: Runs) -> Check:
    """The triangle pays for padding: lengths of easy problems."""
    parts = []
    for name in MAIN:
        found = [binned(run, "tokens_mean", EASY[:2]) for run in runs.get(name, ())]
        if found:
            first, last = (
                float(np.mean([_known(one[part]) for one in found]))
                for part in (slice(None, WINDOW), slice(-WINDOW, None))
            )
            parts.append(f"{name} {first:.1f} to {last:.1f}")
    return Check(
        "sampled tokens on problems of one and two operations, from the first steps to the last",
        "not reported",
        "; ".join(parts),
        None,
        None,
        f"the triangle pays solved problems for growing to the budget ({B0} to {B_FINAL}); means "
        f"of {WINDOW} steps",
    )


def _known(values: Sequence[float | None]) -> float:
    """Mean of the values that there are."""
    return float(np.mean([value for value in values if value is not None]))
