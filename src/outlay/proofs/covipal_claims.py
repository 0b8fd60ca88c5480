"""Claims of CoViPAL's proof, computed from the answers under every way of pruning.

Targets are constants, written before the first run.
"""

from __future__ import annotations

import numpy as np

from outlay.proofs.base import Check
from outlay.proofs.covipal_runs import NAMED, TYPES, difference
from outlay.stats import FloatArray

WIDE, NARROW = (0.5, 0.25), (0.125, 0.06, 0.03)
OURS, FIRST, BLIND = "CoViPAL", "stage 1 only", "without text"
RANDOM, GRID, CLASS, ORACLE = "random", "even grid", "class token", "true attention"
FULL, NOTHING = "all tokens", "no tokens"

# Targets.
COUNT_LOSS = 0.02  # on "how many", against the module without text, at most
EVEN = 0.0  # stage 2 is at least as good as stage 1
BY_CHANCE = 0.03  # quick check: at least so much better than random tokens at .125

Table = dict[str, dict[float, dict[str, FloatArray]]]
"""Method -> ratio -> type -> right answers, mean over seeds."""


def pool(table: Table, name: str, ratio: float, kinds: tuple[str, ...]) -> FloatArray:
    """Answers of several types, one after the other."""
    return np.concatenate([table[name][ratio][kind] for kind in kinds])


def context(table: Table) -> list[Check]:
    """Claim 1: knowing the question helps where not everything can be kept."""
    checks = []
    for rival in (BLIND, CLASS):
        for ratio in NARROW:
            gap = difference(pool(table, OURS, ratio, NAMED), pool(table, rival, ratio, NAMED))
            checks.append(
                Check(
                    f'"which / what kind is C" at {ratio:g}: CoViPAL above {rival}',
                    "contextualised pruning wins, most at low ratios",
                    gap.mean,
                    gap.separable and gap.mean > 0,
                    (gap.lo, gap.hi),
                    f"{pool(table, OURS, ratio, NAMED).mean():.3f} against "
                    f"{pool(table, rival, ratio, NAMED).mean():.3f}, n={gap.n}; target: "
                    "separably above 0",
                )
            )
    large, small = NARROW[0], NARROW[-1]
    gaps = [
        pool(table, OURS, ratio, NAMED) - pool(table, BLIND, ratio, NAMED)
        for ratio in (small, large)
    ]
    growth = difference(gaps[0], gaps[1])
    checks.append(
        Check(
            f"the gap to {BLIND} grows from {large:g} to {small:g}",
            "the gap over the best training-free method grows from +0.2 (.5) to +4.6 (.25)",
            growth.mean,
            growth.separable and growth.mean > 0,
            (growth.lo, growth.hi),
            f"{gaps[1].mean():+.3f} to {gaps[0].mean():+.3f}, n={growth.n}; target: separably "
            "above 0",
        )
    )
    return checks


def counting(table: Table) -> Check:
    """Claim 2: questions about everything lose nothing by it."""
    gap = difference(
        np.mean([table[OURS][ratio]["count"] for ratio in NARROW], axis=0),
        np.mean([table[BLIND][ratio]["count"] for ratio in NARROW], axis=0),
    )
    shown = ", ".join(
        f"{table[OURS][r]['count'].mean():.3f}/{table[BLIND][r]['count'].mean():.3f} at {r:g}"
        for r in NARROW
    )
    return Check(
        f'"how many": no loss against {BLIND}',
        "none on whole-image questions",
        gap.mean,
        gap.mean >= -COUNT_LOSS,
        (gap.lo, gap.hi),
        f"{shown}; mean over ratios, n={gap.n}; target: at least -{COUNT_LOSS}",
    )


def stages(table: Table) -> Check:
    """Claim 3: stage 2 does not undo stage 1."""
    both = [
        np.mean([pool(table, name, ratio, tuple(TYPES)) for ratio in NARROW], axis=0)
        for name in (OURS, FIRST)
    ]
    gap = difference(both[0], both[1])
    shown = ", ".join(
        f"{pool(table, OURS, r, tuple(TYPES)).mean():.3f}/"
        f"{pool(table, FIRST, r, tuple(TYPES)).mean():.3f} at {r:g}"
        for r in NARROW
    )
    return Check(
        "stage 2 is at least as good as stage 1 after hard removal",
        "two stages",
        gap.mean,
        gap.mean >= EVEN,
        (gap.lo, gap.hi),
        f"{shown}; all types, mean over ratios, n={gap.n}; target: at least {EVEN:g}",
    )


def beside(inside: Table) -> list[Check]:
    """Equal mean tokens a layer."""
    checks = []
    ours = "CoViPAL before layer 1"
    kinds = tuple(TYPES)
    for ratio in WIDE:
        if ratio not in inside.get(ours, {}):
            continue
        rivals = {
            name: pool(inside, name, ratio, kinds)
            for name, found in inside.items()
            if name != ours and ratio in found
        }
        best = max(rivals, key=lambda name: rivals[name].mean())
        gap = difference(pool(inside, ours, ratio, kinds), rivals[best])
        checks.append(
            Check(
                f"pruning before layer 1, equal mean tokens of {ratio:g}: CoViPAL against the best "
                "in-decoder ranking",
                {0.5: "97.48 against 97.29", 0.25: "89.48 against 84.93"}[ratio],
                gap.mean,
                (gap.separable and gap.mean > 0) if ratio == WIDE[-1] else None,
                (gap.lo, gap.hi),
                f"{pool(inside, ours, ratio, kinds).mean():.3f}; "
                + ", ".join(f"{name} {right.mean():.3f}" for name, right in rivals.items())
                + f"; n={gap.n}"
                + ("; target: separably above 0" if ratio == WIDE[-1] else ""),
            )
        )
    return checks


def random_tokens(table: Table) -> Check:
    """The quick assertion."""
    ratio, kinds = NARROW[0], tuple(TYPES)
    gap = difference(pool(table, OURS, ratio, kinds), pool(table, RANDOM, ratio, kinds))
    return Check(
        f"CoViPAL at {ratio:g} is better than random tokens",
        "",
        gap.mean,
        gap.mean >= BY_CHANCE,
        (gap.lo, gap.hi),
        f"all types, n={gap.n}; target: at least {BY_CHANCE}",
    )
