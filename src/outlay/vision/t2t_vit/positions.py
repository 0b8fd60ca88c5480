"""Positions: the fixed sinusoid table, and tables moved to another grid.

Shapes: N tokens on a grid, one CLS before them, D channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from outlay.errors import InputError


def sinusoid_table(length: int, dim: int) -> Tensor:
    """The fixed table, (1, length, dim): position / 10000^(2 floor(j / 2) / dim), sine on even j,
    cosine on odd j. The position is one number, also on a grid: tokens count row by row.
    """
    j_D = torch.arange(dim, dtype=torch.float64)
    rate_D = torch.pow(10_000.0, -2 * torch.div(j_D, 2, rounding_mode="floor") / dim)
    angle_ND = torch.arange(length, dtype=torch.float64)[:, None] * rate_D
    even_D = (torch.arange(dim) % 2 == 0)[None]
    return torch.where(even_D, angle_ND.sin(), angle_ND.cos())[None].float()


def resize_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A table (1, 1 + N, D) on another grid: the CLS row stays, the others are interpolated.

    Bicubic, as the released code does for sinusoids too: a token keeps the meaning of its place,
    which re-computing the table by token numbers would not.

    Raises:
        InputError: if the table does not have one row per token of the old grid, and CLS.
    """
    count, dim = math.prod(old), table.shape[-1]
    if table.ndim != 3 or table.shape[:2] != (1, 1 + count):
        raise InputError(
            f"a position table of shape {tuple(table.shape)} is not for a grid of {old}: that has "
            f"{count} tokens and CLS"
        )
    if old == new:
        return table
    grid_1DHW = table[:, 1:].float().transpose(1, 2).reshape(1, dim, *old)
    moved = F.interpolate(grid_1DHW, size=new, mode="bicubic", align_corners=False)
    moved_1ND = moved.flatten(2).transpose(1, 2).to(table.dtype)
    return torch.cat([table[:, :1], moved_1ND], dim=1)
