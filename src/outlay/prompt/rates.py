"""How a token budget is shared over functions: LongCodeZip's adaptive rates (algorithm 1).

Relevant functions keep a larger share of their tokens. The paper rescales once, so tokens clamped
away are lost; `alloc="exact"` goes on until the shares meet the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Alloc = Literal["exact", "paper"]


def minmax(values: Sequence[float]) -> list[float] | None:
    """`values` mapped to [0, 1], not finite ones to 0; None where all are equal or none finite."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite or max(finite) == min(finite):
        return None
    low, span = min(finite), max(finite) - min(finite)
    return [(v - low) / span if math.isfinite(v) else 0.0 for v in values]


def adaptive_rates(
    tokens: Sequence[int],
    relevance: Sequence[float],
    budget: float,
    *,
    beta: float = 0.5,
    alloc: Alloc = "exact",
) -> list[float]:
    """The share of its tokens that each function may keep.

    Args:
        tokens: T_i, size of each function.
        relevance: AMI of each function with the query.
        budget: tokens for all of them together.
        beta: weight of relevance in [0, 1]; 0 gives every function the same rate.
        alloc: "exact": sum of R_i T_i equals the budget (or everything is kept); "paper": one
            rescale.

    Returns:
        R_i in [0, 1].
    """
    total = sum(tokens)
    if total == 0:
        return [1.0] * len(tokens)
    base = min(1.0, max(0.0, budget / total))
    scaled = minmax(relevance)
    if scaled is None:
        return [base] * len(tokens)
    rates = [min(1.0, max(0.0, base * (1 + beta * (2 * s - 1)))) for s in scaled]
    target = base * total
    spent = sum(t * r for t, r in zip(tokens, rates, strict=True))
    if spent:
        rates = [min(1.0, r * target / spent) for r in rates]
    # Clamping can only have lost tokens. Functions below 1 take them up, until the sum is met.
    for _ in range(0 if alloc == "paper" else len(tokens)):
        loose = [(t, r) for t, r in zip(tokens, rates, strict=True) if r < 1 and t > 0]
        full = sum(t for t, r in zip(tokens, rates, strict=True) if r >= 1)
        spent = sum(t * r for t, r in loose)
        if not loose or abs(target - full - spent) < 1e-6:
            break
        if spent > 0:
            rates = [r if r >= 1 else min(1.0, r * (target - full) / spent) for r in rates]
        else:  # beta=1 gave them nothing to scale
            even = min(1.0, (target - full) / sum(t for t, _ in loose))
            rates = [r if r >= 1 else even for r in rates]
    return rates
