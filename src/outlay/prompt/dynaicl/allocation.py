"""How many demonstrations each input of a workload gets, under one budget of tokens.

- `uniform`: the same for everybody, as far as whole demonstrations allow.
- `proportional` (the paper): in proportion to what a controller predicts to be needed. Here clipped
  inputs hand their surplus on, rounding is by largest remainder, and the budget is exact.
- `utility` (ours): the largest sum of predicted accuracies, a multiple-choice knapsack; exact by
  dynamic programming where it is small enough, else greedy along concave hulls.
- `floor` (ours): the fewest tokens whose predicted mean accuracy reaches a target.

Costs are tokens of the demonstrations alone, exact for every input and number: budgets hold in
tokens, not in average lengths. Everything is independent of the order of the inputs: ties go by
`keys`.

Shapes: N inputs, K1 = K + 1 numbers of demonstrations, S budget.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from outlay.errors import InputError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
MAX_EXACT = 10_000_000  # inputs x tokens that dynamic programming takes
_DIGITS = 9  # remainders closer than this are ties


def spent(costs_NK: IntArray, k_N: IntArray) -> int:
    """Tokens of an allocation."""
    return int(np.take_along_axis(costs_NK, k_N[:, None], axis=1).sum())


def mean_budget(costs_NK: IntArray, mean_k: float) -> int:
    """Tokens that `mean_k` demonstrations for everybody cost, between two whole numbers in
    proportion.

    Raises:
        InputError: for a mean outside 0..K.
    """
    K = costs_NK.shape[1] - 1
    if not 0 <= mean_k <= K:
        raise InputError(f"mean_k={mean_k}; need 0 <= mean_k <= K={K}")
    low = math.floor(mean_k)
    at_low, at_high = costs_NK[:, low].sum(), costs_NK[:, min(K, low + 1)].sum()
    return int(at_low + (mean_k - low) * (at_high - at_low))


def check_costs(costs_NK: IntArray, budget: int) -> None:
    """Refuse costs and budgets that mean nothing.

    Raises:
        InputError: for no inputs, costs that fall, are negative or do not begin at 0, or a negative
            budget.
    """
    if costs_NK.ndim != 2 or not len(costs_NK) or costs_NK.shape[1] < 2:
        raise InputError(f"costs of shape {costs_NK.shape}; need (inputs, K+1), inputs and K >= 1")
    if costs_NK[:, 0].any() or (np.diff(costs_NK, axis=1) < 0).any():
        raise InputError("costs must be 0 without demonstrations and not fall with more of them")
    if budget < 0:
        raise InputError(f"budget_tokens={budget}; must be >= 0 (0 answers everything zero-shot)")


def _sorted(keys: Sequence[str] | None, n: int) -> npt.NDArray[np.intp]:
    """A canonical order of the inputs."""
    if keys is None:
        return np.arange(n)
    if len(keys) != n:
        raise InputError(f"{len(keys)} keys for {n} inputs; give one each")
    marks = [hashlib.blake2b(key.encode("utf-8", "surrogatepass")).digest() for key in keys]
    return np.array(sorted(range(n), key=lambda i: marks[i]), dtype=np.intp)


def uniform(costs_NK: IntArray, budget: int, *, keys: Sequence[str] | None = None) -> IntArray:
    """(N,) the same number for everybody; what is left gives some inputs one more."""
    return proportional(np.ones(len(costs_NK)), costs_NK, budget, keys=keys)


def proportional(
    needed_N: FloatArray,
    costs_NK: IntArray,
    budget: int,
    *,
    beta: float = 1.0,
    exact: bool = True,
    keys: Sequence[str] | None = None,
) -> IntArray:
    """(N,) demonstrations in proportion to what is needed.

    Args:
        needed_N: (N,) predicted need, >= 0; inputs with 0 get nothing.
        costs_NK: (N, K1) tokens of 0..K demonstrations.
        budget: tokens for all.
        beta: share of the budget that may be used, in (0, 1].
        exact: repair rounding and clipping, and never exceed `beta * budget`. False is the paper's
            `round(beta * C(x)/mean C * N/(n L))`, which may.
        keys: names of the inputs, by which ties are decided; None takes their order.

    Raises:
        InputError: for needs that are negative or not finite, a beta outside (0, 1], or costs that
            mean nothing.
    """
    check_costs(costs_NK, budget)
    n, K = len(costs_NK), costs_NK.shape[1] - 1
    if needed_N.shape != (n,) or not np.isfinite(needed_N).all() or (needed_N < 0).any():
        raise InputError("predicted needs must be finite, >= 0 and one for each input")
    if not 0 < beta <= 1:
        raise InputError(f"beta={beta} is outside (0, 1]; 1 uses the whole budget")
    if not needed_N.any():
        return np.zeros(n, dtype=np.int64)
    limit = int(beta * budget + 1e-9)
    share_N = needed_N / needed_N.mean()
    length = costs_NK[:, K].mean() / K
    if not exact:
        ask_N = beta * share_N * budget / (n * length) if length else np.full(n, K)
        return np.clip(np.round(ask_N), 0, K).astype(np.int64)
    order = _sorted(keys, n)
    k_N = np.empty(n, dtype=np.int64)
    k_N[order] = _repaired(share_N[order], costs_NK[order], limit)
    return k_N


def _repaired(share_N: FloatArray, costs_NK: IntArray, limit: int) -> IntArray:
    """Largest remainders of the real-valued shares that meet the budget exactly."""
    n, K = len(costs_NK), costs_NK.shape[1] - 1
    rows = np.arange(n)

    def cost(ask_N: FloatArray) -> float:
        low_N = np.minimum(ask_N.astype(np.int64), K - 1)
        part_N = ask_N - low_N
        step_N = costs_NK[rows, low_N + 1] - costs_NK[rows, low_N]
        return float((costs_NK[rows, low_N] + part_N * step_N).sum())

    low, high = 0.0, K / float(share_N[share_N > 0].min())
    if cost(np.clip(high * share_N, 0, K)) <= limit:
        low = high
    for _ in range(100):  # the scale at which real-valued shares cost the budget
        middle = (low + high) / 2
        if cost(np.clip(middle * share_N, 0, K)) <= limit:
            low = middle
        else:
            high = middle
    ask_N = np.round(np.clip(low * share_N, 0, K), _DIGITS)
    k_N = np.floor(ask_N).astype(np.int64)
    room = limit - spent(costs_NK, k_N)
    # Whoever is furthest below its share goes first; whoever does not fit now never will.
    open_N = (share_N > 0) & (k_N < K)
    while open_N.any():
        behind_N = np.where(open_N, np.round(ask_N - k_N, _DIGITS), -np.inf)
        i = int(behind_N.argmax())
        step = int(costs_NK[i, k_N[i] + 1] - costs_NK[i, k_N[i]])
        if step > room:
            open_N[i] = False
            continue
        k_N[i] += 1
        room -= step
        open_N[i] = k_N[i] < K
    return k_N


def utility(
    curves_NK: FloatArray,
    costs_NK: IntArray,
    budget: int,
    *,
    keys: Sequence[str] | None = None,
    max_exact: int = MAX_EXACT,
) -> IntArray:
    """(N,) the demonstrations with the largest sum of predicted accuracies within the budget.

    Args:
        curves_NK: (N, K1) predicted accuracy with 0..K demonstrations.
        costs_NK: (N, K1) their tokens.
        budget: tokens for all.
        keys: names of the inputs, by which ties are decided; None takes their order.
        max_exact: up to this many inputs x tokens the result is the optimum, by dynamic
            programming; beyond, hulls and greed come within one step of it.

    Raises:
        InputError: for curves that are not finite, or costs that mean nothing.
    """
    check_costs(costs_NK, budget)
    if curves_NK.shape != costs_NK.shape or not np.isfinite(curves_NK).all():
        raise InputError(
            f"curves of shape {curves_NK.shape} for costs of shape {costs_NK.shape}; give a finite "
            "accuracy for every cost"
        )
    order = _sorted(keys, len(costs_NK))
    curves, costs = curves_NK[order], costs_NK[order]
    budget = min(budget, int(costs[:, -1].sum()))
    unit = _unit(costs)
    costs, budget = costs // unit, budget // unit
    if len(costs) * (budget + 1) <= max_exact:
        found = _backtracked(_dynamic(curves, costs, budget)[1], costs, budget)
    else:
        found = _greedy(curves, costs, budget)
    k_N = np.empty(len(costs), dtype=np.int64)
    k_N[order] = found
    return k_N


def _unit(costs_NK: IntArray) -> int:
    """Greatest common divisor of all costs: budgets between its multiples buy nothing."""
    return max(1, int(np.gcd.reduce(costs_NK, axis=None)))


def _dynamic(
    curves_NK: FloatArray, costs_NK: IntArray, budget: int
) -> tuple[FloatArray, npt.NDArray[np.signedinteger]]:
    """The exact optimum of every budget 0..S: its sum, and what each input takes on the way."""
    n, K1 = costs_NK.shape
    best_S = np.zeros(budget + 1)
    chosen_NS = np.zeros((n, budget + 1), dtype=np.int8 if K1 < 128 else np.int32)
    for i in range(n):
        next_S = best_S + curves_NK[i, 0]
        for k in range(1, K1):
            cost = int(costs_NK[i, k])
            if cost > budget:
                break
            with_S = best_S[: budget + 1 - cost] + curves_NK[i, k]
            better = with_S > next_S[cost:] + 1e-12  # fewer demonstrations on ties
            next_S[cost:][better] = with_S[better]
            chosen_NS[i, cost:][better] = k
        best_S = next_S
    return best_S, chosen_NS


def _backtracked(
    chosen_NS: npt.NDArray[np.signedinteger], costs_NK: IntArray, budget: int
) -> IntArray:
    k_N = np.zeros(len(costs_NK), dtype=np.int64)
    room = budget
    for i in range(len(costs_NK) - 1, -1, -1):
        k_N[i] = chosen_NS[i, room]
        room -= int(costs_NK[i, k_N[i]])
    return k_N


def _greedy(curves_NK: FloatArray, costs_NK: IntArray, budget: int) -> IntArray:
    """Steps along every input's concave hull by falling gain per token, then the best last step."""
    steps: list[tuple[float, int, int, int]] = []  # -gain per token, input, from, to
    k_N = np.zeros(len(costs_NK), dtype=np.int64)
    for i, (curve_K, cost_K) in enumerate(zip(curves_NK, costs_NK, strict=True)):
        corner = _hull(curve_K, cost_K)
        k_N[i] = corner[0]
        for a, b in pairwise(corner):
            slope = (curve_K[b] - curve_K[a]) / (cost_K[b] - cost_K[a])
            steps.append((-float(slope), i, a, b))
    room = budget
    for _, i, a, b in sorted(steps):
        cost = int(costs_NK[i, b] - costs_NK[i, a])
        if cost > room:
            break
        k_N[i] = b
        room -= cost
    rows = np.arange(len(k_N))
    gain_NK = curves_NK - curves_NK[rows, k_N][:, None]
    fits_NK = costs_NK - costs_NK[rows, k_N][:, None] <= room
    gain_NK = np.where(fits_NK, gain_NK, -np.inf)
    best, k = divmod(int(gain_NK.argmax()), gain_NK.shape[1])
    if gain_NK[best, k] > 0:
        k_N[best] = k
    return k_N


def _hull(curve_K: FloatArray, cost_K: IntArray) -> list[int]:
    """Corners of the upper concave hull, from the best free number to the highest accuracy."""
    start = int(np.where(cost_K == cost_K[0], curve_K, -np.inf).argmax())
    corner = [start]
    for k in range(start + 1, len(curve_K)):
        if curve_K[k] <= curve_K[corner].max() or cost_K[k] == cost_K[start]:
            continue
        while len(corner) > 1:
            a, b = corner[-2], corner[-1]
            left = (curve_K[b] - curve_K[a]) * (cost_K[k] - cost_K[b])
            if left > (curve_K[k] - curve_K[b]) * (cost_K[b] - cost_K[a]):
                break
            corner.pop()
        corner.append(k)
    return corner


def floor(
    curves_NK: FloatArray,
    costs_NK: IntArray,
    target: float,
    *,
    keys: Sequence[str] | None = None,
    max_exact: int = MAX_EXACT,
) -> tuple[int, IntArray]:
    """The smallest budget whose predicted mean accuracy reaches `target`, and its allocation.

    Args:
        curves_NK: (N, K1) predicted accuracy, calibrated.
        costs_NK: (N, K1) tokens.
        target: mean accuracy to reach.
        keys, max_exact: as in `utility`.

    Raises:
        InputError: for a target outside [0, 1], or above what any budget reaches.
    """
    check_costs(costs_NK, 0)
    if not 0 <= target <= 1:
        raise InputError(f"target_acc={target}; must be in [0, 1]")
    n = len(costs_NK)
    attainable = float(curves_NK.max(axis=1).mean())
    if attainable < target - 1e-12:
        raise InputError(
            f"target_acc={target} cannot be reached; at most {attainable:.3f} is predicted with "
            f"{costs_NK.shape[1] - 1} demonstrations, so lower the target or raise K"
        )
    order = _sorted(keys, n)
    unit = _unit(costs_NK)
    curves, costs = curves_NK[order], costs_NK[order] // unit
    least = n * (target - 1e-12)

    def total(k_N: IntArray) -> float:
        return float(np.take_along_axis(curves, k_N[:, None], axis=1).sum())

    low, high = -1, int(costs[:, -1].sum())
    while high - low > 1:  # what greed needs is enough, and nearly the least
        middle = (low + high) // 2
        if total(_greedy(curves, costs, middle)) >= least:
            high = middle
        else:
            low = middle
    found = _greedy(curves, costs, high)
    if n * (high + 1) <= max_exact:
        best_S, chosen_NS = _dynamic(curves, costs, high)
        high = int(np.argmax(best_S >= least)) if (best_S >= least).any() else high
        found = _backtracked(chosen_NS, costs, high)
    k_N = np.empty(n, dtype=np.int64)
    k_N[order] = found
    return high * unit, k_N
