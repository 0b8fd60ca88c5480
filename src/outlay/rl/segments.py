"""Which tokens get which advantage: segments, and masks of thinking and answer.

Shapes: B rows, T tokens of a completion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from outlay.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from outlay.rl.base import Segment


def find(ids: Sequence[int], pattern: Sequence[int]) -> int | None:
    """Where `pattern` first begins in `ids`; None if it does not occur.

    Raises:
        InputError: for an empty pattern.
    """
    if not pattern:
        raise InputError("the end-of-thinking marker has no tokens; name one that the model writes")
    first, size = pattern[0], len(pattern)
    for start in range(len(ids) - size + 1):
        if ids[start] == first and list(ids[start : start + size]) == list(pattern):
            return start
    return None


def thinking_length(ids: Sequence[int], end_of_thinking: Sequence[int]) -> int:
    """Tokens before the first end-of-thinking marker; all of them if there is none."""
    at = find(ids, end_of_thinking)
    return len(ids) if at is None else at


def thinking_mask(
    completion_ids: Sequence[Sequence[int]], end_of_thinking: Sequence[int], width: int
) -> Tensor:
    """(B, T) bool: True on thinking, the marker not included."""
    mask_BT = torch.zeros(len(completion_ids), width, dtype=torch.bool)
    for row, ids in enumerate(completion_ids):
        mask_BT[row, : thinking_length(ids, end_of_thinking)] = True
    return mask_BT


def answer_mask(
    completion_ids: Sequence[Sequence[int]], end_of_thinking: Sequence[int], width: int
) -> Tensor:
    """(B, T) bool: True from the end-of-thinking marker to the last token."""
    mask_BT = torch.zeros(len(completion_ids), width, dtype=torch.bool)
    for row, ids in enumerate(completion_ids):
        mask_BT[row, thinking_length(ids, end_of_thinking) : len(ids)] = True
    return mask_BT


def fill(
    segments: Sequence[Sequence[Segment]], mask_BT: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Segments as advantages of tokens.

    Args:
        segments: of each row, `(start, end, advantage)` with `0 <= start <= end`; they may reach
            beyond the row's end and are clipped there, and must not overlap.
        mask_BT: 1 on tokens that are trained; all others get 0.
        dtype: of the result.

    Raises:
        InputError: for another number of rows, a reversed, negative or overlapping segment, or an
            advantage that is not finite.
    """
    if len(segments) != mask_BT.shape[0]:
        raise InputError(
            f"segments of {len(segments)} rows for a batch of {mask_BT.shape[0]}; give one list "
            "a row (empty for none)"
        )
    width = mask_BT.shape[1]
    advantages_BT = torch.zeros(mask_BT.shape, dtype=dtype, device=mask_BT.device)
    for row, parts in enumerate(segments):
        reached = 0
        for start, end, advantage in sorted(parts):
            if not 0 <= start <= end:
                raise InputError(f"row {row}: segment ({start}, {end}) is not a range of tokens")
            if start < reached:
                raise InputError(f"row {row}: segments overlap at token {start}")
            if not math.isfinite(advantage):
                raise InputError(f"row {row}: segment ({start}, {end}) has advantage {advantage}")
            reached = end
            advantages_BT[row, min(start, width) : min(end, width)] = advantage
    return advantages_BT * mask_BT.to(dtype)
