"""From returns to relevance, which NDCG needs to be >= 0.

The choice decides what NDCG can say. `price_relative` (1 + return) is here to show the trap: with
moves of two per cent every order scores above .98. Never report it alone.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from outlay.errors import InputError

FloatArray = npt.NDArray[np.float64]
Relevance = Literal["rank", "shift", "quantile", "price_relative"]

GRADES = 5


def relevance(returns_N: npt.ArrayLike, how: Relevance = "rank") -> FloatArray:
    """Relevance of N sectors from their returns at one event.

    Args:
        returns_N: finite returns, above -1.
        how: "rank": the number of sectors that each beats, shared on ties; "shift": the return
            minus the lowest; "quantile": grades 0 to 4 by fifths of the ranks; "price_relative":
            1 + return, for demonstration only.

    Raises:
        InputError: for an unknown map, or returns that are not finite or not above -1.
    """
    values = np.asarray(returns_N, dtype=float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise InputError("returns must be one row of finite numbers")
    if (values <= -1).any():
        raise InputError(f"a return of {values.min():g}: no positive price gives -1 or less")
    if how not in get_args(Relevance):
        raise InputError(f"relevance={how!r}; choose one of {', '.join(get_args(Relevance))}")
    if how == "shift":
        return np.asarray(values - values.min())
    if how == "price_relative":
        return 1.0 + values
    beaten = np.searchsorted(np.sort(values), values, side="left").astype(float)
    if how == "rank":
        return beaten
    return np.floor(GRADES * beaten / len(values))
