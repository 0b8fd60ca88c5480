"""Budgets over a training run: plain functions from optimiser steps to tokens. No torch.

Each gives the budget of the rollouts that are generated after `step` optimiser steps. A schedule
with `n` changes has `n + 1` stages of equal length, the k-th from step `k * total_steps / (n + 1)`
on; within a stage the budget does not move. Budgets are real numbers: rewards use them as they
are, prompts round them.

"Train Long, Think Short" (arXiv 2508.08940, section 3): `exp_interval` and `exp_endpoints` are its
two forms, `linear` an ablation of it. `rising` is a control of ours: the same stages in the other
order. Steps count optimiser steps, never micro-batches.

>>> [round(exp_endpoints(t, b0=256, b_final=87, n_decays=3, total_steps=600)) for t in (0, 150)]
[256, 179]
"""

from __future__ import annotations

import math
from collections.abc import Callable

from outlay.errors import BudgetError, InputError
from outlay.rl.base import MAX_BUDGET

MAX_STEPS = 100_000_000


def constant(step: int, *, budget: float) -> float:
    """The same budget at every step.

    Args:
        step: optimiser steps done.
        budget: tokens.

    Raises:
        BudgetError: for a budget below 1.
    """
    _check_step(step)
    check_budget("budget", budget)
    return float(budget)


def exp_interval(step: int, *, b0: float, gamma: float, interval: int) -> float:
    """`max(1, b0 * gamma ** (step // interval))` (arXiv 2508.08940, section 3.2).

    Args:
        step: optimiser steps done.
        b0: the first budget.
        gamma: factor of every decay, in (0, 1).
        interval: steps between two decays.

    Raises:
        BudgetError: for a budget below 1.
        InputError: for a factor or an interval out of range.
    """
    _check_step(step)
    check_budget("b0", b0)
    if not 0 < gamma < 1:
        raise InputError(f"gamma={gamma}; must be inside (0, 1), or use schedule='constant'")
    _check_whole("interval", interval, 1)
    return max(1.0, float(b0) * float(gamma) ** (step // interval))


def exp_endpoints(
    step: int, *, b0: float, b_final: float, n_decays: int, total_steps: int
) -> float:
    """From `b0` to `b_final` in `n_decays` equal factors (arXiv 2508.08940, section 4).

    Args:
        step: optimiser steps done; from `total_steps` on the budget stays at `b_final`.
        b0: the first budget.
        b_final: the last one, at most `b0`.
        n_decays: changes; 0 for `b_final` all the time.
        total_steps: of the schedule.

    Raises:
        BudgetError: for a budget below 1, or `b_final` above `b0`.
        InputError: for `n_decays` below 0, or stages shorter than a step.
    """
    _check_falling(b0, b_final)
    return _exponential(stage(step, total_steps, n_decays), b0, b_final, n_decays)


def linear(step: int, *, b0: float, b_final: float, n_decays: int, total_steps: int) -> float:
    """From `b0` to `b_final` in `n_decays` equal drops.

    Stages, arguments and errors are those of `exp_endpoints`.
    """
    _check_falling(b0, b_final)
    at = stage(step, total_steps, n_decays)
    if at == n_decays:
        return float(b_final)
    return float(b0) - at * (float(b0) - float(b_final)) / n_decays


def rising(step: int, *, b0: float, b_final: float, n_decays: int, total_steps: int) -> float:
    """From a small `b0` up to `b_final` in equal factors: does the order matter?

    Stages, arguments and errors are those of `exp_endpoints`, but `b_final` is at least `b0`.
    """
    check_budget("b0", b0)
    check_budget("b_final", b_final)
    if b_final < b0:
        raise BudgetError(
            f"b_final={b_final:g} is below b0={b0:g}; a rising schedule ends at its largest "
            "budget: use schedule='exp_endpoints' for a falling one"
        )
    return _exponential(stage(step, total_steps, n_decays), b0, b_final, n_decays)


def called(function: Callable[[int, int], float], step: int, total_steps: int) -> float:
    """What a function of one's own gives, checked.

    Args:
        function: of the steps done and the steps of the run (0 where unknown).
        step: optimiser steps done.
        total_steps: of the run.

    Raises:
        BudgetError: if it gives anything but a number of at least 1.
    """
    _check_step(step)
    value = function(step, total_steps)
    check_budget(f"schedule({step}, {total_steps})", value)
    return float(value)


def stage(step: int, total_steps: int, n_decays: int) -> int:
    """Which of the `n_decays + 1` equal stages a step belongs to, from 0.

    Args:
        step: optimiser steps done; beyond the end it is the last stage.
        total_steps: of the schedule.
        n_decays: changes.

    Raises:
        InputError: for `n_decays` below 0, or stages shorter than a step.
    """
    _check_step(step)
    _check_whole("n_decays", n_decays, 0)
    _check_whole("total_steps", total_steps, 1)
    if n_decays + 1 > total_steps:
        raise InputError(
            f"n_decays={n_decays} makes {n_decays + 1} stages of {total_steps} steps in all; a "
            "stage needs at least one step: lower n_decays or raise total_steps"
        )
    return min(n_decays, step * (n_decays + 1) // total_steps)


def changes(budget_at: Callable[[int], float], total_steps: int) -> list[tuple[int, float]]:
    """The steps at which a schedule's budget changes, and the budget from there on.

    Args:
        budget_at: budget of a step.
        total_steps: how far to look.

    Raises:
        InputError: for `total_steps` below 1.
    """
    _check_whole("total_steps", total_steps, 1)
    found: list[tuple[int, float]] = []
    for step in range(total_steps):
        budget = budget_at(step)
        if not found or budget != found[-1][1]:
            found.append((step, budget))
    return found


def check_budget(name: str, value: object) -> None:
    """Raise `BudgetError` unless `value` is a number of tokens from 1 to 10 million."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 1 <= value <= MAX_BUDGET:  # type: ignore[operator, arg-type]
        raise BudgetError(f"{name}={value!r}; must be a number of tokens in 1..{MAX_BUDGET:,}")


def _exponential(at: int, b0: float, b_final: float, n: int) -> float:
    if at == n:
        return float(b_final)
    value = float(b0) * (float(b_final) / float(b0)) ** (at / n)
    low, high = sorted((float(b0), float(b_final)))
    return min(high, max(low, value))


def _check_falling(b0: float, b_final: float) -> None:
    check_budget("b0", b0)
    check_budget("b_final", b_final)
    if b_final > b0:
        raise BudgetError(
            f"b_final={b_final:g} is above b0={b0:g}; a curriculum shrinks the budget. For one "
            "that grows, say so: schedule='rising'"
        )


def _check_step(step: int) -> None:
    _check_whole("step", step, 0)


def _check_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_STEPS:
        raise InputError(f"{name}={value!r}; must be a whole number in {least}..{MAX_STEPS:,}")
