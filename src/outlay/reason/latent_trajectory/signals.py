"""How a hidden state moves while a model thinks: the signals of a trace, and their rivals.

From the segment means of a trace (`LatentModel.hidden`), per layer, with h_1..h_N the means,
u_n = h_{n+1} - h_n the updates and D = h_N - h_1 the drift (section 3 of the paper):

- *net* change `|D| / (N-1)`. The paper's text divides by N, its code by N - 1, as is done here;
- *cumulative* change `sum |u_n|`;
- *aligned* change: the mean cosine of updates and drift; an update of zero counts as 0.

All are undefined (NaN) for N < 2; a trace's value is the mean over layers. *LayerMag* and
*LayerAng* are the cross-layer baselines: how much a state changes from layer to layer, relative to
the change from the first layer to the last.

Shapes: N segments, L layers, C hidden size, K = N - 1 steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from outlay.errors import InputError

FloatArray = npt.NDArray[np.float64]
Normalise = Literal["none", "unit_rms"]
EPS = 1e-8


@dataclass(frozen=True, eq=False)
class Signals:
    """What one trace says; NaN where it has fewer than two segments (layers: fewer than two).

    Args:
        net, cumulative, aligned: the latent signals, averaged over layers.
        layer_mag, layer_ang: the cross-layer baselines, averaged over segments.
        net_K: net change after each step: mean over layers of |h_{K+1} - h_1| / K.
        cumulative_K: cumulative change up to each step.
    """

    net: float
    cumulative: float
    aligned: float
    layer_mag: float
    layer_ang: float
    net_K: tuple[float, ...]
    cumulative_K: tuple[float, ...]


def normalised(means_NLC: npt.ArrayLike, normalise: Normalise = "none") -> FloatArray:
    """The means as float64; with "unit_rms", every layer over the RMS of its first segment.

    Only the first segment counts, so that a trace's values do not depend on what comes later.

    Raises:
        InputError: for anything but (N, L, C) finite numbers, or an unknown rule.
    """
    states_NLC = np.asarray(means_NLC, dtype=np.float64)
    if states_NLC.ndim != 3 or 0 in states_NLC.shape:
        raise InputError(
            f"segment means of shape {states_NLC.shape}; need (segments, layers, hidden size)"
        )
    if not np.isfinite(states_NLC).all():
        raise InputError("a hidden state is not finite; the model overflows, try mode='exact'")
    if normalise not in get_args(Normalise):
        raise InputError(f"normalise={normalise!r}; choose none or unit_rms")
    if normalise == "unit_rms":
        rms_L = np.sqrt((states_NLC[0] ** 2).mean(axis=1))
        states_NLC = states_NLC / np.maximum(rms_L, EPS)[:, None]
    return states_NLC


def layer_signals(means_NLC: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(L,) net, cumulative and aligned change; NaN for N < 2."""
    steps, layers = len(means_NLC) - 1, means_NLC.shape[1]
    if steps < 1:
        nothing_L = np.full(layers, np.nan)
        return nothing_L, nothing_L.copy(), nothing_L.copy()
    updates_KLC = np.diff(means_NLC, axis=0)
    drift_LC = means_NLC[-1] - means_NLC[0]
    sizes_KL = np.linalg.norm(updates_KLC, axis=2)
    drift_L = np.linalg.norm(drift_LC, axis=1)
    dots_KL = (updates_KLC * drift_LC).sum(axis=2)
    cosines_KL = dots_KL / (np.maximum(sizes_KL, EPS) * np.maximum(drift_L, EPS))
    return drift_L / steps, sizes_KL.sum(axis=0), cosines_KL.mean(axis=0)


def step_signals(means_NLC: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(K,) net and cumulative change after each step, averaged over layers."""
    steps_K = np.arange(1, len(means_NLC))
    away_KL = np.linalg.norm(means_NLC[1:] - means_NLC[0], axis=2)
    moved_KL = np.linalg.norm(np.diff(means_NLC, axis=0), axis=2)
    return away_KL.mean(axis=1) / steps_K, moved_KL.mean(axis=1).cumsum()


def _angles(one_NC: FloatArray, other_NC: FloatArray) -> FloatArray:
    sizes_N = np.linalg.norm(one_NC, axis=-1) * np.linalg.norm(other_NC, axis=-1)
    cosines_N = (one_NC * other_NC).sum(axis=-1) / np.maximum(sizes_N, EPS)
    return np.asarray(np.arccos(np.clip(cosines_N, -1, 1)))


def cross_layer(means_NLC: FloatArray) -> tuple[float, float]:
    """LayerMag and LayerAng (the latter as it is, not negated); NaN for fewer than two layers."""
    if means_NLC.shape[1] < 2:
        return math.nan, math.nan
    below_NLC, above_NLC = means_NLC[:, :-1], means_NLC[:, 1:]
    first_NC, last_NC = means_NLC[:, 0], means_NLC[:, -1]
    whole_N = np.linalg.norm(last_NC - first_NC, axis=1) + EPS
    mag_N = np.linalg.norm(above_NLC - below_NLC, axis=2).mean(axis=1) / whole_N
    ang_N = _angles(below_NLC, above_NLC).mean(axis=1) / (_angles(first_NC, last_NC) + EPS)
    return float(mag_N.mean()), float(ang_N.mean())


def signals(means_NLC: npt.ArrayLike, normalise: Normalise = "none") -> Signals:
    """All signals of a trace.

    Raises:
        InputError: for means that are not (N, L, C) finite numbers.
    """
    states_NLC = normalised(means_NLC, normalise)
    net_L, cumulative_L, aligned_L = layer_signals(states_NLC)
    net_K, cumulative_K = step_signals(states_NLC)
    mag, ang = cross_layer(states_NLC)
    return Signals(
        float(net_L.mean()),
        float(cumulative_L.mean()),
        float(aligned_L.mean()),
        mag,
        ang,
        tuple(map(float, net_K)),
        tuple(map(float, cumulative_K)),
    )


class Stream:
    """The three latent signals, segment by segment, in memory that does not grow with the trace.

    The mean cosine of updates and drift is the drift's direction times the mean of the updates'
    directions, so a sum of unit updates is all that is needed of the past.
    """

    def __init__(self) -> None:
        self._first_LC: FloatArray | None = None
        self._last_LC: FloatArray | None = None
        self._steps = 0

    def add(self, mean_LC: npt.ArrayLike) -> None:
        """Take in the next segment's means."""
        state_LC = np.asarray(mean_LC, dtype=np.float64)
        if self._first_LC is None or self._last_LC is None:
            self._first_LC = self._last_LC = state_LC
            self._units_LC = np.zeros_like(state_LC)
            self._moved_L = np.zeros(len(state_LC))
            return
        update_LC = state_LC - self._last_LC
        size_L = np.linalg.norm(update_LC, axis=1)
        self._units_LC += update_LC / np.maximum(size_L, EPS)[:, None]
        self._moved_L += size_L
        self._last_LC = state_LC
        self._steps += 1

    def values(self) -> tuple[float, float, float]:
        """Net, cumulative and aligned change so far; NaN before the second segment."""
        if self._first_LC is None or self._last_LC is None or not self._steps:
            return math.nan, math.nan, math.nan
        drift_LC = self._last_LC - self._first_LC
        size_L = np.linalg.norm(drift_LC, axis=1)
        aligned_L = (self._units_LC * drift_LC).sum(axis=1) / np.maximum(size_L, EPS) / self._steps
        return (
            float(size_L.mean() / self._steps),
            float(self._moved_L.mean()),
            float(aligned_L.mean()),
        )


def nearest_to_centroid(traces: Sequence[npt.ArrayLike]) -> int:
    """The trace that is closest to the centroid of all, as ST-BoN chooses (arXiv 2503.01422).

    A trace's point is its path through the layers: the mean state of every layer over all its
    segments, each layer's scaled to unit length.

    Raises:
        InputError: for no traces, or traces of different layers.
    """
    if not traces:
        raise InputError("no traces to choose from")
    points = [normalised(means).mean(axis=0) for means in traces]
    if len({point.shape for point in points}) > 1:
        raise InputError("traces of different layers or models; give those of one model")
    paths_SLC = np.stack([p / np.maximum(np.linalg.norm(p, axis=1), EPS)[:, None] for p in points])
    away_S = np.linalg.norm(paths_SLC - paths_SLC.mean(axis=0), axis=2).mean(axis=1)
    return int(away_S.argmin())
