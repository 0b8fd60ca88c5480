"""Where a thinking is cut, which budgets share a cut, and what each budget is worth. No torch.

Section 3 of arXiv 2505.13438. Budgets at or beyond the end of a thinking share one branch, which
owns the answers of all of them, so every thinking has S * A answers.

Shapes: S budgets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from outlay.errors import BudgetError, InputError

Prior = str | tuple[float, ...]
PRIORS = ("linear", "uniform", "base")
MAX_BUDGETS = 1024
MAX_BUDGET = 10_000_000


@dataclass(frozen=True)
class Branch:
    """One place where answers are asked for.

    Args:
        cut: tokens of thinking that are kept.
        slots: budgets that share it, as indices.
        forced: the end of the thinking must be written, because the policy did not.
    """

    cut: int
    slots: tuple[int, ...]
    forced: bool


def check_budgets(budgets: Sequence[int]) -> None:
    """Check budgets.

    Raises:
        BudgetError: for none, more than 1024, one below 1, or budgets that do not rise.
    """
    if not 1 <= len(budgets) <= MAX_BUDGETS:
        raise BudgetError(f"{len(budgets)} budgets; give 1 to {MAX_BUDGETS}")
    for budget in budgets:
        if isinstance(budget, bool) or not isinstance(budget, int):
            raise BudgetError(f"budgets={tuple(budgets)[:8]}; must be whole numbers of tokens")
    if list(budgets) != sorted(set(budgets)) or budgets[0] < 1 or budgets[-1] > MAX_BUDGET:
        raise BudgetError(
            f"budgets={tuple(budgets)[:8]}; must rise, each in 1..{MAX_BUDGET:,} tokens"
        )


def prior_weights(prior: Prior, budgets: Sequence[int]) -> tuple[float, ...]:
    """P_s, which sums to 1 (section 3.1).

    Args:
        prior: "uniform", "linear" (as the budget), "base" (the last budget only), or weights.
        budgets: rising.

    Raises:
        InputError: for an unknown name, another number of weights than budgets, a negative or
            non-finite weight, or weights that are all 0.
    """
    if isinstance(prior, str):
        if prior not in PRIORS:
            raise InputError(f"prior={prior!r}; choose one of {', '.join(PRIORS)}, or give weights")
        if prior == "base":
            return (*([0.0] * (len(budgets) - 1)), 1.0)
        raw = [1.0 if prior == "uniform" else float(budget) for budget in budgets]
    else:
        raw = [float(weight) for weight in prior]
        if len(raw) != len(budgets):
            raise InputError(f"prior has {len(raw)} weights for {len(budgets)} budgets; one each")
        if any(not math.isfinite(weight) or weight < 0 for weight in raw):
            raise InputError(f"prior={prior}; weights must be finite and >= 0")
    total = sum(raw)
    if not 0 < total < math.inf:
        raise InputError(f"prior={prior}; the weights must have a positive, finite sum")
    return tuple(weight / total for weight in raw)


def branches(length: int, ended: bool, budgets: Sequence[int]) -> list[Branch]:
    """Where answers to one thinking are asked for, in the order of budgets.

    Args:
        length: tokens of the thinking, its end tag included.
        ended: it ended by itself; else it was stopped by a limit.
        budgets: rising.

    Raises:
        InputError: for an empty thinking.
    """
    if length < 1:
        raise InputError("a thinking has no tokens; give the policy at least one to write")
    merged: dict[tuple[int, bool], list[int]] = {}
    for slot, budget in enumerate(budgets):
        forced = length > budget or not ended
        merged.setdefault((min(budget, length), forced), []).append(slot)
    return [Branch(cut, tuple(slots), forced) for (cut, forced), slots in merged.items()]


def spans(length: int, budgets: Sequence[int]) -> list[tuple[int, int]]:
    """Tokens between two budgets, for the segments that a thinking of `length` has."""
    starts = (0, *budgets[:-1])
    return [
        (start, min(budget, length))
        for start, budget in zip(starts, budgets, strict=True)
        if start < length
    ]
