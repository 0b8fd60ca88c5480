"""From weights to whole tokens: b_j = floor(p_j B), and the left-over (Eq. 7, arXiv 2505.16122).

Shares are computed with exact fractions: scaling all credits by a whole number moves no token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from outlay.budget import Remainder
from outlay.errors import BudgetError, InputError


def allocate(
    budget: int,
    weights: Sequence[float],
    positions: Sequence[float] | None = None,
    *,
    remainder: Remainder = "priority",
) -> list[int]:
    """Local budgets b_j in proportion to w_j d_j; they sum to exactly `budget`.

    Args:
        budget: B, tokens to share.
        weights: w_j, credits of the steps.
        positions: d_j of the schedule; None is constant.
        remainder: who gets what the floors leave: "priority" gives one token each in decreasing
            order of p, as the published code does; "largest" to the largest fractional parts.
            Ties go to the earlier step.

    Raises:
        BudgetError: for a budget that is negative or no whole number.
        InputError: for weights that are empty, negative, not finite, all zero, or not as many as
            positions; or an unknown remainder.
    """
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
        raise BudgetError(f"budget={budget!r}; give a whole number of tokens >= 0")
    if remainder not in ("priority", "largest"):
        raise InputError(f"remainder={remainder!r}; choose priority or largest")
    weights = check_credits(weights)
    positions = [1.0] * len(weights) if positions is None else positions
    if len(positions) != len(weights):
        raise InputError(f"{len(weights)} credits for {len(positions)} steps; give one each")
    product = [
        Fraction(w) * Fraction(d) for w, d in zip(weights, check_credits(positions), strict=True)
    ]
    whole = sum(product)
    if whole == 0:
        raise InputError("credits times schedule are all zero; raise a credit")
    exact = [budget * part / whole for part in product]
    shares = [math.floor(part) for part in exact]
    key = (
        product if remainder == "priority" else [e - s for e, s in zip(exact, shares, strict=True)]
    )
    order = sorted(range(len(shares)), key=lambda j: (-key[j], j))
    for j in order[: budget - sum(shares)]:
        shares[j] += 1
    return shares


def check_credits(credits: Sequence[float]) -> list[float]:
    """The credits, if a budget can be shared by them.

    Raises:
        InputError: if they are empty, negative, not finite or all zero.
    """
    if not credits:
        raise InputError("no credits; give one per step")
    for number, credit in enumerate(credits, 1):
        if not (math.isfinite(credit) and credit >= 0):
            raise InputError(f"credit {number} is {credit}; credits are finite numbers >= 0")
    if not any(credits):
        raise InputError("all credits are zero; give at least one step a positive credit")
    return list(credits)


def uniform(budget: int, steps: int) -> list[int]:
    """The uniform rung of the published code: `B // m` each; what is left over is not spent.

    Raises:
        InputError: for no steps.
    """
    if steps < 1:
        raise InputError(f"{steps} steps; a plan has at least 1")
    return [budget // steps] * steps


def roll_over(unspent: int, rest: Sequence[int], weights: Sequence[float], how: str) -> list[int]:
    """Budgets of the steps still to come, with what the last one left.

    Args:
        unspent: tokens left.
        rest: their budgets.
        weights: their shares of a proportional roll-over.
        how: "proportional" to the weights, all to the "next", or "none".

    Raises:
        InputError: for an unknown rule.
    """
    if how not in ("proportional", "next", "none"):
        raise InputError(f"rollover={how!r}; choose proportional, next or none")
    if how == "none" or not rest or not unspent:
        return list(rest)
    if how == "proportional" and any(weights):
        more = allocate(unspent, weights, remainder="largest")
        return [budget + extra for budget, extra in zip(rest, more, strict=True)]
    return [rest[0] + unspent, *rest[1:]]
