"""Fewer tokens by merging the most alike, until a given number is left.

The matching is that of "Token Merging: Your ViT But Faster" (arXiv 2210.09461), see
`outlay.vision.tome`, here without a model around it and in as many rounds as it takes. The release
of QuoTA forgets between rounds how many tokens each stands for, and returns tokens in the order of
merging; here sizes are carried and the order is the image's.

Shapes: N tokens given, n wanted, D width; H x W map, h x w grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outlay.errors import InputError
from outlay.vision import tome


def merge(tokens_ND: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """`n` tokens that stand for all.

    Args:
        tokens_ND: in raster order.
        n: to leave, from 1 to N.

    Returns:
        (n, D) tokens, each at the place of a token that it stands for, and (n,) how many each
        stands for.

    Raises:
        InputError: for more tokens than there are, or none.
    """
    given = len(tokens_ND)
    if not 1 <= n <= given:
        raise InputError(
            f"merging cannot make {n} tokens of {given}; give a quota from 1 to {given} "
            "(cap_upsample keeps it there)"
        )
    x_1MD = tokens_ND.float()[None]
    sizes_1M = torch.ones(x_1MD.shape[:2], device=x_1MD.device)
    while (left := x_1MD.shape[1]) > n:
        r = min(left - n, tome.mergeable(left, 0))
        x_1MD, sizes_1M = tome.merge(x_1MD, sizes_1M, *tome.match(x_1MD, r, 0))
    return x_1MD[0].to(tokens_ND.dtype), sizes_1M[0].long()


def merge_lines(map_HWD: Tensor, h: int, w: int) -> Tensor:
    """(h, w, D): whole rows are merged first, then whole columns.

    Raises:
        InputError: for more rows or columns than there are, or none.
    """
    H, W, D = map_HWD.shape
    rows_hWD = merge(map_HWD.reshape(H, W * D), h)[0].reshape(h, W, D)
    columns = merge(rows_hWD.transpose(0, 1).reshape(W, h * D), w)[0]
    return columns.reshape(w, h, D).transpose(0, 1)
