"""From a frame's full map of features to the tokens of its quota.

- `bilinear` (the paper's best): the map is resized; it may grow.
- `avgpool`: means of windows.
- `linspace`: tokens at even distances in raster order.
- `merge`: alike tokens become one (see `merging`).
- `lines`: alike rows, then alike columns, become one.

The first, second and last give grids, the others a flat row of exactly as many tokens as the quota.

Shapes: H x W map, D width, h x w grid, n tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from outlay.errors import InputError
from outlay.vision.quota.allocation import ASSIGNERS, Assigner, Grid
from outlay.vision.quota.checks import one_of
from outlay.vision.quota.merging import merge, merge_lines


def assign(map_HWD: Tensor, size: Grid, assigner: Assigner = "bilinear") -> Tensor:
    """(h, w, D): a map as `size`.

    Args:
        map_HWD: features of one frame, projected, not pooled.
        size: (h, w), at least (1, 1); for a flat assigner (1, n).
        assigner: how.

    Raises:
        InputError: for an unknown assigner, a map without tokens, a size below 1, or one that the
            assigner cannot reach from the map.
    """
    one_of("assigner", assigner, ASSIGNERS)
    if map_HWD.ndim != 3 or not map_HWD.numel():
        raise InputError(f"a map of shape {tuple(map_HWD.shape)}; need rows, columns, width >= 1")
    (H, W, D), (h, w) = map_HWD.shape, size
    if h < 1 or w < 1:
        raise InputError(f"a frame of {h} x {w} tokens; leave the frame out instead")
    if assigner == "merge":
        return merge(map_HWD.reshape(H * W, D), h * w)[0].reshape(h, w, D)
    if assigner == "linspace":
        if h * w > H * W:
            raise InputError(f"linspace cannot take {h * w} of {H * W} tokens; lower the quota")
        index_n = torch.linspace(0, H * W - 1, h * w, dtype=torch.float64).long()
        return map_HWD.reshape(H * W, D)[index_n.to(map_HWD.device)].reshape(h, w, D)
    if assigner == "lines":
        return merge_lines(map_HWD, h, w)
    if assigner == "avgpool" and (h > H or w > W):
        raise InputError(f"avgpool cannot make {h} x {w} of {H} x {W}; lower the quota")
    map_1DHW = map_HWD.permute(2, 0, 1)[None]
    if assigner == "avgpool":
        made = F.adaptive_avg_pool2d(map_1DHW, (h, w))
    else:
        made = F.interpolate(map_1DHW, size=(h, w), mode="bilinear", align_corners=False)
    return made[0].permute(1, 2, 0)


def with_newlines(grid_hwD: Tensor, newline_D: Tensor) -> Tensor:
    """(h * (w + 1), D): a grid in raster order, the newline after every row."""
    h, _, D = grid_hwD.shape
    ends_h1D = newline_D.to(grid_hwD).expand(h, 1, D)
    return torch.cat([grid_hwD, ends_h1D], dim=1).reshape(-1, D)
