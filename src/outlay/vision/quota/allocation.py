"""From scores of frames to a grid of tokens for each: weights, quotas, grids.

- *Weights* are scores to a power. `eps` is the least score that counts, so that noise around zero
  is not blown up to a choice.
- *Quotas* are whole tokens of a budget. `largest` spends the budget to the last token; `floor` is
  the paper's, and loses up to one token a frame. Frames that are full hand the rest on: exactly
  (`water`: the shares of all frames that are not full stay in proportion to their weights), or as
  the release does it (`sweep`: once, in the order of the frames, and part of it is lost).
- *Grids* are as square as the quota allows.

All of it is independent of the frames' order but for ties, which the earlier frame wins.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from outlay.budget import split_weighted
from outlay.errors import BudgetError, InputError
from outlay.vision.quota.checks import one_of, real, whole

FloatArray = npt.NDArray[np.float64]
Grid = tuple[int, int]
Newline = Literal["grid", "one_token", "none"]
Rounding = Literal["largest", "floor"]
Spill = Literal["water", "sweep"]
Assigner = Literal["bilinear", "avgpool", "linspace", "merge", "lines"]
ASSIGNERS: tuple[str, ...] = get_args(Assigner)
FLAT = ("linspace", "merge")
"""Assigners whose tokens are no grid."""
GROWS = ("bilinear",)
"""Assigners that may give more tokens than the map has."""
MAX_TOKENS = 2**31
MAX_SHARPNESS = 100.0
_DIGITS = 12  # scores that differ less, relative to the largest, are equal


@dataclass(frozen=True)
class Allocation:
    """Tokens of every frame.

    Args:
        quotas: of every frame, tokens that it may have.
        grids: of every frame, rows and columns of the tokens that it gets; (0, 0) drops it.
        newline: which newline tokens are added: one a row, one at the end, or none.
    """

    quotas: tuple[int, ...]
    grids: tuple[Grid, ...]
    newline: Newline = "none"

    @property
    def counts(self) -> tuple[int, ...]:
        """Visual tokens of every frame, without newlines."""
        return tuple(h * w for h, w in self.grids)

    @property
    def kept(self) -> tuple[int, ...]:
        """Frames that have tokens, in order."""
        return tuple(at for at, count in enumerate(self.counts) if count)

    @property
    def tokens(self) -> int:
        """Visual tokens of all frames, as the paper counts: without newlines."""
        return sum(self.counts)

    @property
    def newlines(self) -> int:
        """Newline tokens of all frames."""
        if self.newline == "grid":
            return sum(h for h, _ in self.grids)
        return int(self.newline == "one_token" and bool(self.kept))

    @property
    def total(self) -> int:
        """What enters the decoder for the video."""
        return self.tokens + self.newlines


def check_scores(scores: Sequence[float] | FloatArray, frames: int | None = None) -> FloatArray:
    """Scores as an array.

    Raises:
        InputError: for none, another number than frames, and NaN, infinite or negative scores; the
            message names the frame.
    """
    try:
        scores_F = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"the scores are no numbers ({error})") from error
    if scores_F.ndim != 1 or not len(scores_F):
        raise InputError(f"scores of shape {scores_F.shape}; need one number for every frame")
    if frames is not None and len(scores_F) != frames:
        raise InputError(f"{len(scores_F)} scores for {frames} frames; need one for every frame")
    bad = ~np.isfinite(scores_F) | (scores_F < 0)
    if bad.any():
        at = int(bad.argmax())
        raise InputError(f"frame {at} has the score {scores_F[at]}; scores must be finite and >= 0")
    return scores_F


def weights(
    scores: Sequence[float] | FloatArray, *, sharpness: float = 2.0, eps: float = 1e-4
) -> FloatArray:
    """(F,) weights of frames, the largest is 1: `max(score, eps) ** sharpness`, scaled.

    The paper's factor of 100 cancels. Where every score is 0 the frames are alike, with a warning.

    Args:
        scores: of frames, >= 0.
        sharpness: exponent; 0 makes all frames alike.
        eps: least score that counts; 0 is the paper's.

    Raises:
        InputError: for scores that are negative or not finite, or knobs out of range.
    """
    real("sharpness", sharpness, 0.0, MAX_SHARPNESS)
    real("eps", eps, 0.0, 1.0)
    scores_F = check_scores(scores)
    if not scores_F.any():
        warnings.warn(
            "every frame has the score 0; all frames get the same number of tokens",
            UserWarning,
            stacklevel=2,
        )
        return np.ones(len(scores_F))
    floored_F = np.maximum(scores_F, eps)
    ratio_F = np.round(floored_F / floored_F.max(), _DIGITS)
    return np.asarray(ratio_F**sharpness)


def quotas(
    weights_F: FloatArray,
    n_t: int,
    *,
    capacity: int | None = None,
    min_tokens: int = 0,
    rounding: Rounding = "largest",
    spill: Spill = "water",
) -> tuple[int, ...]:
    """Whole tokens of every frame; they sum to at most `n_t`.

    With `largest` and `water` they sum to exactly `min(n_t, F * capacity)`.

    Args:
        weights_F: (F,) weights, >= 0 and not all 0. Frames of weight 0 get what no other can hold.
        n_t: tokens for all frames.
        capacity: most tokens of a frame; None for no limit.
        min_tokens: that every frame gets before weights count; 0 is the paper's.
        rounding: "largest" remainders, or the paper's "floor".
        spill: what a full frame cannot hold goes to the others exactly ("water") or in the
            release's single pass ("sweep", which always floors).

    Raises:
        BudgetError: if `min_tokens` for every frame is more than `n_t`.
        InputError: for a knob out of range.
    """
    whole("n_t", n_t, 1, MAX_TOKENS)
    whole("min_tokens", min_tokens, 0, MAX_TOKENS)
    one_of("rounding", rounding, get_args(Rounding))
    one_of("spill", spill, get_args(Spill))
    frames = len(check_scores(weights_F))
    if not weights_F.any():
        raise InputError("all weights are 0; give at least one frame a weight above 0")
    if capacity is not None:
        whole("capacity", capacity, 1, MAX_TOKENS)
        if min_tokens > capacity:
            raise InputError(
                f"min_tokens={min_tokens} is more than the {capacity} tokens that a frame holds"
            )
    if frames * min_tokens > n_t:
        raise BudgetError(
            f"min_tokens={min_tokens} for {frames} frames need {frames * min_tokens} tokens, more "
            f"than n_t={n_t}; lower min_tokens or raise n_t"
        )
    rest = n_t - frames * min_tokens
    room = None if capacity is None else capacity - min_tokens
    if spill == "sweep" and room is not None:
        share_F = rest * _swept(weights_F / weights_F.sum(), room / max(1, rest))
        found = [math.floor(share + 1e-9) for share in share_F]
    elif rounding == "floor":
        found = _floored(weights_F, rest, room)
    else:
        found = _poured(weights_F, rest, room)
    return tuple(min_tokens + tokens for tokens in found)


def _full(weights_F: FloatArray, rest: int, room: int | None) -> tuple[npt.NDArray[np.bool_], int]:
    """Frames that water-filling fills to the brim, and what is left for the others."""
    full_F = np.zeros(len(weights_F), dtype=bool)
    if room is None:
        return full_F, rest
    while True:
        left = rest - room * int(full_F.sum())
        open_F = ~full_F & (weights_F > 0)
        if not open_F.any():
            return full_F, left
        share_F = left * (weights_F / math.fsum(weights_F[open_F]))
        over_F = open_F & (share_F >= room)
        if not over_F.any():
            return full_F, left
        full_F |= over_F


def _poured(weights_F: FloatArray, rest: int, room: int | None) -> list[int]:
    """Water-filling with largest remainders; frames of weight 0 come last, all alike."""
    frames = len(weights_F)
    if room is not None:
        rest = min(rest, frames * room)
        if int((weights_F > 0).sum()) * room <= rest:  # all that have a weight are full
            idle_F = weights_F == 0
            found_F = np.where(idle_F, 0, room)
            if idle_F.any():
                spare = rest - int(found_F.sum())
                found_F[idle_F] = split_weighted(spare, [1.0] * int(idle_F.sum()))
            return [int(tokens) for tokens in found_F]
    full_F, left = _full(weights_F, rest, room)
    found_F = np.where(full_F, room or 0, 0)
    if (~full_F & (weights_F > 0)).any():
        found_F[~full_F] = split_weighted(left, weights_F[~full_F].tolist())
    return [int(tokens) for tokens in found_F]


def _floored(weights_F: FloatArray, rest: int, room: int | None) -> list[int]:
    """The paper's floors, of shares that water-filling gives."""
    full_F, left = _full(weights_F, rest, room)
    open_F = ~full_F & (weights_F > 0)
    share_F = np.where(full_F, room or 0, 0.0)
    if open_F.any():
        share_F[open_F] = left * (weights_F[open_F] / math.fsum(weights_F[open_F]))
    return [math.floor(share + 1e-9) for share in share_F]


def _swept(share_F: FloatArray, cap: float) -> FloatArray:
    """The release's rule for its capped assigners: cut at `cap`, then hand the excess on once.

    The part of the frames that are full already is handed to nobody, and frames that fill up on the
    way pass on what they cannot hold only to later ones.
    """
    capped_F = np.minimum(share_F, cap)
    excess = float((share_F - capped_F).sum())
    norm = float(capped_F.sum())
    for at in np.flatnonzero(share_F < cap):
        wanted = capped_F[at] + capped_F[at] / norm * excess
        excess += max(0.0, wanted - cap)
        capped_F[at] = min(wanted, cap)
    return np.asarray(capped_F)


def grid(tokens: int, native: Grid | None = None) -> Grid:
    """Rows and columns of at most `tokens`: a square, and one row or else one column more if they
    fit.

    Args:
        tokens: that may be used; 0 gives (0, 0).
        native: size that is not exceeded, for maps that must not be scaled up; maps that are not
            square then keep within their sides.

    Raises:
        InputError: for a negative number.
    """
    whole("tokens", tokens, 0, MAX_TOKENS)
    h = w = math.isqrt(tokens)
    if (h + 1) * w <= tokens and w:
        h += 1
    elif h * (w + 1) <= tokens and h:
        w += 1
    if native is not None:
        if h >= native[0]:
            h, w = native[0], min(native[1], tokens // native[0])
        elif w >= native[1]:
            h, w = min(native[0], tokens // native[1]), native[1]
    return (h, w) if h * w else (0, 0)


def shape_of(quota: int, assigner: Assigner, native: Grid, *, capped: bool) -> Grid:
    """Rows and columns that a quota gives; a flat assigner has one row.

    Args:
        quota: tokens.
        assigner: see `outlay.vision.quota.assigners`.
        native: size of the map.
        capped: never exceed it.
    """
    if assigner in FLAT:
        return (1, quota) if quota else (0, 0)
    return grid(quota, native if capped or assigner not in GROWS else None)
