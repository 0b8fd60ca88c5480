"""Quotas met by resolution, for models whose grids are free: Qwen2-VL and Qwen2.5-VL.

Such a model encodes a picture of any size, so a frame's quota sets its resolution; no feature is
touched. Frames that the model takes together (two, as a rule) share a quota. Each becomes a video
of its own, with the marks that begin and end one, because all frames of one video have one size.

Shapes: t slices of s frames, X x Y pixels, gh x gw patches of p x p, m x m patches a token, P
numbers of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from outlay.errors import CapabilityError, InputError
from outlay.vision.quota.allocation import Grid
from outlay.vision.quota.prompts import placeholder, runs_of


@dataclass(frozen=True)
class Patches:
    """How pixels become numbers of patches.

    Args:
        patch: p.
        merge: m.
        temporal: s.
    """

    patch: int
    merge: int
    temporal: int

    @classmethod
    def of(cls, model: Any) -> Patches:
        """From a model's config.

        Raises:
            CapabilityError: if its tower is of another kind.
        """
        config = getattr(model.config, "vision_config", None)
        try:
            return cls(config.patch_size, config.spatial_merge_size, config.temporal_patch_size)  # type: ignore[union-attr]
        except AttributeError:
            raise CapabilityError(
                f"{type(model).__name__} does not merge patches as Qwen2-VL does; give "
                "`pixel_values_videos` as (rows, frames, 3, H, W)"
            ) from None

    def pixels(self, flat_NP: Tensor, grid: Sequence[int]) -> Tensor:
        """(t, s, C, X, Y): the frames that were cut into patches.

        Raises:
            InputError: if numbers and grid do not match.
        """
        t, gh, gw = (int(side) for side in grid)
        p, m, s = self.patch, self.merge, self.temporal
        channels = flat_NP.shape[1] // (s * p * p)
        if (
            len(flat_NP) != t * gh * gw
            or gh % m
            or gw % m
            or channels * s * p * p != len(flat_NP[0])
        ):
            raise InputError(
                f"pixel_values_videos of shape {tuple(flat_NP.shape)} for a grid of {t} x {gh} x "
                f"{gw} patches; give both as the processor made them"
            )
        cut = flat_NP.reshape(t, gh // m, gw // m, m, m, channels, s, p, p)
        return cut.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t, s, channels, gh * p, gw * p)

    def flat(self, pixels_sCXY: Tensor) -> Tensor:
        """(gh * gw, P): the frames of one slice as patches; the inverse of `pixels`."""
        p, m = self.patch, self.merge
        s, channels, X, Y = pixels_sCXY.shape
        cut = pixels_sCXY.reshape(s, channels, X // (m * p), m, p, Y // (m * p), m, p)
        return cut.permute(2, 5, 3, 6, 1, 0, 4, 7).reshape(-1, channels * s * p * p)

    def resized(self, pixels_sCXY: Tensor, size: Grid) -> Tensor:
        """A slice at the resolution that gives `size` rows and columns of tokens."""
        wanted = (size[0] * self.merge * self.patch, size[1] * self.merge * self.patch)
        if pixels_sCXY.shape[-2:] == wanted:
            return pixels_sCXY
        return F.interpolate(
            pixels_sCXY, wanted, mode="bicubic", align_corners=False, antialias=True
        )


def slice_scores(scores: Sequence[float], slices: int, temporal: int) -> list[float]:
    """A score for every slice: its own, or the best of its frames.

    Raises:
        InputError: for neither as many scores as slices nor as frames.
    """
    if len(scores) == slices:
        return list(scores)
    if len(scores) != slices * temporal:
        raise InputError(
            f"{len(scores)} scores for {slices} slices of {temporal} frames; give one a slice or "
            "one a frame"
        )
    return [max(scores[at : at + temporal]) for at in range(0, len(scores), temporal)]


def split_videos(ids_T: Tensor, model: Any, counts: Sequence[int], size: int) -> Tensor:
    """Ids with a video of `counts[i]` placeholders for each slice; 0 drops it.

    Args:
        ids_T: of one row, with one video.
        model: knows the tokens that begin and end one.
        counts: of the slices.
        size: placeholders that the video has now.

    Raises:
        InputError: for another number of placeholders, or of videos.
    """
    token = placeholder(model, "video_token_id", "video_token_index")
    start, end = (placeholder(model, f"vision_{side}_token_id") for side in ("start", "end"))
    runs = runs_of(ids_T, token)
    if len(runs) != 1 or runs[0][1] - runs[0][0] != size:
        lengths = [b - a for a, b in runs]
        raise InputError(
            f"runs of {lengths} video placeholders where one video has {size} tokens; give one "
            "video a row, as the processor made it"
        )
    between = ids_T.new_tensor([end, start])
    parts: list[Tensor] = []
    for count in counts:
        if count:
            parts += [between] if parts else []
            parts.append(ids_T.new_full((count,), token))
    return torch.cat([ids_T[: runs[0][0]], *parts, ids_T[runs[0][1] :]])
