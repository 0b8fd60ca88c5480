"""BAM, the Budget Allocation Model: the split of B that leaves the least uncertainty.

A sub-question that gets b tokens keeps the epistemic uncertainty U(b) = c / b^a (section on the
model, arXiv 2505.16122). Minimising the sum over sub-questions with sum b_j = B gives
c_j a_j b_j^-(a_j + 1) = lambda for all j, so b_j = (c_j a_j / lambda)^(1 / (a_j + 1)), and lambda
follows from the budget by bisection on its logarithm.

Where it differs from the paper: the printed form, b_j in proportion to (c_j a_j)^(1 / (a_j + 1)),
is the optimum only where all a_j are equal; with unequal rates it can be worse than an even split.
`closed_form` is that form; `optimal` is exact. How (c, a) are found is left open there; `fit` is
ours: least squares of log U on log b.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from outlay.errors import InputError

_HALVINGS = 200
_STEEPEST = 700.0  # of |log c|; beyond it, exp overflows
_FLAT = 1e-9  # a slope of rounding errors


@dataclass(frozen=True)
class Curve:
    """How the uncertainty of one sub-question falls with its budget.

    Args:
        c: uncertainty at one token, > 0.
        a: rate, > 0; near 0 more tokens do not help.

    Raises:
        InputError: for values that are not finite and positive.
    """

    c: float
    a: float

    def __post_init__(self) -> None:
        for name in ("c", "a"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name}={value}; a curve needs finite c > 0 and a > 0")

    def uncertainty(self, budget: float) -> float:
        """U(b); infinite at 0."""
        return math.inf if budget <= 0 else math.exp(math.log(self.c) - self.a * math.log(budget))

    def log_marginal(self, budget: float) -> float:
        """Logarithm of what one more token takes off U at `budget`."""
        return math.log(self.c) + math.log(self.a) - (self.a + 1) * math.log(budget)


def _check(curves: Sequence[Curve], budget: float) -> None:
    if not curves:
        raise InputError("no curves; give one per step")
    if not (math.isfinite(budget) and budget > 0):
        raise InputError(f"budget={budget}; must be finite and > 0")


def optimal(curves: Sequence[Curve], budget: float) -> list[float]:
    """The budgets, in fractions of tokens, that minimise the total uncertainty.

    Args:
        curves: of the sub-questions.
        budget: B, which the result sums to.

    Raises:
        InputError: for no curves or a budget that is not positive.
    """
    _check(curves, budget)
    spread = math.log(len(curves))
    full = [curve.log_marginal(budget) for curve in curves]
    # At the largest marginal of a whole B one step gets all of it: the sum is at least B. Where
    # no step gets more than an even share it is at most B.
    low = max(full)
    high = max(at + (curve.a + 1) * spread for at, curve in zip(full, curves, strict=True))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if math.fsum(_at(curves, middle)) > budget:
            low = middle
        else:
            high = middle
    found = _at(curves, high)
    scale = budget / math.fsum(found)
    return [share * scale for share in found]


def _at(curves: Sequence[Curve], log_lambda: float) -> list[float]:
    """Budgets at which every marginal value is lambda."""
    return [
        math.exp((math.log(curve.c) + math.log(curve.a) - log_lambda) / (curve.a + 1))
        for curve in curves
    ]


def closed_form(curves: Sequence[Curve], budget: float) -> list[float]:
    """The form that the paper prints; the optimum where all rates are equal."""
    _check(curves, budget)
    logs = [(math.log(curve.c) + math.log(curve.a)) / (curve.a + 1) for curve in curves]
    top = max(logs)
    parts = [math.exp(value - top) for value in logs]
    whole = math.fsum(parts)
    return [budget * part / whole for part in parts]


def total_uncertainty(curves: Sequence[Curve], budgets: Sequence[float]) -> float:
    """Sum of U_j(b_j).

    Raises:
        InputError: if there is not one budget per curve.
    """
    if len(curves) != len(budgets):
        raise InputError(f"{len(budgets)} budgets for {len(curves)} curves; give one each")
    return math.fsum(
        curve.uncertainty(budget) for curve, budget in zip(curves, budgets, strict=True)
    )


def kkt_residual(curves: Sequence[Curve], budgets: Sequence[float]) -> float:
    """Largest relative spread of the marginal values: 0 at the optimum."""
    logs = [curve.log_marginal(b) for curve, b in zip(curves, budgets, strict=True)]
    return math.expm1(max(logs) - min(logs))


def fit(budgets: Sequence[float], uncertainties: Sequence[float]) -> Curve | None:
    """The curve through measured uncertainties, by least squares of log U on log b.

    Args:
        budgets: of the probes, > 0, at least two different ones.
        uncertainties: measured at them, > 0.

    Returns:
        The curve; None where the uncertainty does not fall with the budget, or so steeply that
        no number holds c.

    Raises:
        InputError: for unequal lengths, fewer than two budgets, or values that are not positive.
    """
    if len(budgets) != len(uncertainties):
        raise InputError(f"{len(uncertainties)} uncertainties for {len(budgets)} budgets")
    for value in (*budgets, *uncertainties):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{value} is not finite and > 0; a curve is fitted on logarithms")
    if len(set(budgets)) < 2:
        raise InputError(f"budgets {list(budgets)}; two different ones are needed for a slope")
    x, y = [math.log(b) for b in budgets], [math.log(u) for u in uncertainties]
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    across = math.fsum((i - mean_x) ** 2 for i in x)
    slope = math.fsum((i - mean_x) * (j - mean_y) for i, j in zip(x, y, strict=True)) / across
    log_c = mean_y - slope * mean_x
    if not slope < -_FLAT or abs(log_c) > _STEEPEST:
        return None
    return Curve(math.exp(log_c), -slope)
