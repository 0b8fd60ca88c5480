"""Training batches as TRL has them: their trained tokens, and padding with rows without loss.

Shapes: B rows, T tokens of a completion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from outlay.errors import InputError
from outlay.rl.contract import BATCH_KEYS

if TYPE_CHECKING:
    from torch import Tensor


def trained_mask(batch: dict[str, Any]) -> Tensor:
    """(B, T): 1 on tokens that are in the loss."""
    mask_BT: Tensor = batch["completion_mask"]
    return mask_BT * batch["tool_mask"] if "tool_mask" in batch else mask_BT


def check(batch: dict[str, Any]) -> None:
    """Check a batch that a method made.

    Raises:
        InputError: for a missing key, no rows, different row counts, advantages that are not
            finite or have no shape (B,) or (B, T), or advantages on padding.
    """
    missing = sorted(BATCH_KEYS - batch.keys())
    if missing:
        raise InputError(f"expand() left out {', '.join(missing)}; keep TRL's keys")
    rows, width = batch["completion_ids"].shape
    if rows < 1:
        raise InputError("expand() returned no rows; keep at least one")
    for key, value in batch.items():
        if isinstance(value, torch.Tensor) and value.dim() and len(value) != rows:
            raise InputError(f"expand() returned {len(value)} rows of {key} and {rows} completions")
    advantages = batch["advantages"]
    if tuple(advantages.shape) not in ((rows,), (rows, width)):
        raise InputError(
            f"expand() returned advantages of shape {tuple(advantages.shape)}; give ({rows},) or "
            f"({rows}, {width})"
        )
    if not bool(torch.isfinite(advantages).all()):
        raise InputError("expand() returned advantages that are not all finite")
    padding_BT = batch["completion_mask"] == 0
    if advantages.dim() == 2 and bool((advantages[padding_BT] != 0).any()):
        raise InputError("expand() returned advantages that are not zero on padding")


def fit(batch: dict[str, Any], rows: int) -> dict[str, Any]:
    """The batch with `rows` rows: copies of its first row, without loss, are added.

    Args:
        batch: what a method made; checked.
        rows: at least its number of rows.
    """
    check(batch)
    extra = rows - len(batch["completion_ids"])
    fitted: dict[str, Any] = {}
    for key, value in batch.items():
        if isinstance(value, torch.Tensor) and value.dim():
            more = value[:1].expand(extra, *value.shape[1:])
            if key in ("completion_mask", "tool_mask", "advantages"):
                more = torch.zeros_like(more)
            fitted[key] = torch.cat([value, more])
        elif isinstance(value, list):
            fitted[key] = value + value[:1] * extra
        else:
            fitted[key] = value
    return fitted
