"""The P-Sigmoid: keep rates that fall along a sigmoid and meet a budget exactly.

Searched schedules are S-shaped over depth: flat near 1, a fast drop, flat near 0. Two numbers
describe such a curve, its steepness k and its middle alpha; a budget fixes alpha, so that only k is
left to tune (mode II of the paper).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from outlay.errors import InputError
from outlay.vision.gsearch.schedule import Rates, check_layers

MAX_STEEP = 1e6
_TAIL = 40.0  # a sigmoid this far out is 0 or 1 to double precision
_TINY = 1e-9  # budgets this close to an end are that end


@dataclass(frozen=True)
class Curve:
    """Keep rates on a sigmoid.

    Args:
        k: steepness.
        alpha: the layer at which half is gone; -inf where nothing is kept, inf where all is.
        rates: of every layer.
    """

    k: float
    alpha: float
    rates: Rates


def least_budget(n_layers: int, first_drop: int, lo: float = 0.0) -> float:
    """The smallest mean rate of a decoder whose first layers keep everything.

    Args:
        n_layers: decoder layers.
        first_drop: layers that keep everything.
        lo: lowest rate of the others.
    """
    return (first_drop + (n_layers - first_drop) * lo) / n_layers


def p_sigmoid(
    k: float,
    budget: float,
    n_layers: int,
    first_drop: int = 2,
    *,
    lo: float = 0.0,
    hi: float = 1.0,
) -> Curve:
    """Rates `lo + (hi - lo) / (1 + exp(k (i - alpha)))` whose mean is the budget.

    Layers before `first_drop` keep everything and count in the mean. The mean rises with alpha, so
    that one root finding solves it. As k falls to 0 the other layers tend to one common rate; as it
    grows, to all tokens up to layer alpha and none after.

    Args:
        k: steepness, above 0.
        budget: mean over layers of the rates, in (0, 1].
        n_layers: decoder layers.
        first_drop: layers that keep everything; 0 gives the bare curve, which cannot be applied
            between layers.
        lo, hi: lowest and highest rate of layers that drop; the paper's curve has 0 and 1.

    Raises:
        InputError: for a budget that no curve meets (the message gives the range), or numbers out
            of range.
    """
    from scipy.optimize import brentq
    from scipy.special import expit

    check_layers(n_layers)
    check_budget(budget, n_layers, first_drop, lo, hi)
    if isinstance(k, bool) or not isinstance(k, (int, float)) or not 0 < k <= MAX_STEEP:
        raise InputError(f"k={k!r}; the steepness is above 0 and at most {MAX_STEEP:g}")
    free = n_layers - first_drop
    if not free:
        return Curve(k, math.inf, (1.0,) * n_layers)
    # The sum that sigmoids of the free layers must reach, in [0, free].
    wanted = free if hi == lo else (budget * n_layers - first_drop - free * lo) / (hi - lo)
    depth = np.arange(first_drop, n_layers, dtype=float)
    middle = float(depth.mean())
    reach = k * free + _TAIL
    if wanted <= _TINY or wanted >= free - _TINY:
        shift = math.copysign(math.inf, wanted - free / 2)
    else:
        shift = brentq(lambda s: expit(s - k * (depth - middle)).sum() - wanted, -reach, reach)
    curve = lo + (hi - lo) * expit(shift - k * (depth - middle))
    rates = (1.0,) * first_drop + tuple(np.minimum.accumulate(curve.clip(lo, hi)).tolist())
    return Curve(k, middle + shift / k, rates)


def check_budget(
    budget: float, n_layers: int, first_drop: int, lo: float = 0.0, hi: float = 1.0
) -> None:
    """Refuse a budget that no curve meets.

    Raises:
        InputError: names the range.
    """
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget <= 1:
        raise InputError(
            f"budget={budget!r}; the mean keep rate is in (0, 1], and 1 keeps everything"
        )
    if isinstance(first_drop, bool) or not isinstance(first_drop, int):
        raise InputError(f"first_drop={first_drop!r}; need an int of 0 to {n_layers}")
    if not 0 <= first_drop <= n_layers:
        raise InputError(f"first_drop={first_drop}; need 0 to {n_layers}, the number of layers")
    if not 0 <= lo <= hi <= 1:
        raise InputError(f"lo={lo!r} and hi={hi!r}; need 0 <= lo <= hi <= 1")
    least, most = (least_budget(n_layers, first_drop, rate) for rate in (lo, hi))
    if budget < least - _TINY:
        raise InputError(
            f"budget={budget:g} cannot be met: the first {first_drop} of {n_layers} layers keep "
            f"everything, so the smallest budget is {least:.4g}; raise budget, or lower first_drop"
            + (" or min_rate" if lo else "")
        )
    if budget > most + _TINY:
        raise InputError(f"budget={budget:g} cannot be met with hi={hi:g}; the most is {most:.4g}")
