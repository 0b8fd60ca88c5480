"""Fewer tokens by merging the most alike, until a given number is left.

The matching is that of "Token Merging: Your ViT But Faster" (arXiv 2210.09461), see
`outlay.vision.tome`, here without a model around it and in as many rounds as it takes. The release
of QuoTA forgets between rounds how many tokens each stands for, and returns tokens in the order of
merging; here sizes are carried and the order is the image's.

Shapes: N tokens given, n wanted, D width; H x W map, h x w grid.
"""

from __future__ import annotations

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
    merged_nD, sizes_n, _ = tome.merge_to(tokens_ND, n)
    return merged_nD, sizes_n


def merge_lines(map_HWD: Tensor, h: int, w: int) -> Tensor:
    """(h, w, D): whole rows are merged first, then whole columns.

    Raises:
        InputError: for more rows or columns than there are, or none.
    """
    H, W, D = map_HWD.shape
    rows_hWD = merge(map_HWD.reshape(H, W * D), h)[0].reshape(h, W, D)
    columns = merge(rows_hWD.transpose(0, 1).reshape(W, h * D), w)[0]
    return columns.reshape(w, h, D).transpose(0, 1)
