"""Rows of attention, recomputed from queries and keys, so that the model itself stays on SDPA.

B batch, T keys, Q query rows, H query heads, K key heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from outlay.errors import CapabilityError


class Tap:
    """Keeps what one attention module's query and key projections gave last.

    Args:
        attention: a self-attention module with `q_proj` and `k_proj` (or `query` and `key`).
        where: named in errors.

    Raises:
        CapabilityError: if it has neither.
    """

    def __init__(self, attention: nn.Module, where: str) -> None:
        self.attention = attention
        self.where = where
        self._query: Tensor | None = None
        self._key: Tensor | None = None
        self._handles: list[Any] = []
        self._q, self._k = projections(attention, where)

    def open(self) -> None:
        """Start listening."""

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Tensor) -> None:
                setattr(self, name, output)

            return hook

        self._handles = [
            self._q.register_forward_hook(keep("_query")),
            self._k.register_forward_hook(keep("_key")),
        ]

    def close(self) -> None:
        """Stop listening and forget."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.forget()

    def forget(self) -> None:
        """Let go of the tensors."""
        self._query = self._key = None

    def heads(self) -> tuple[Tensor, Tensor]:
        """Queries (B, H, T, D) and keys (B, K, T, D), without positions.

        Raises:
            CapabilityError: if the module has not run.
        """
        if self._query is None or self._key is None:
            raise CapabilityError(f"{self.where} has not run yet; its attention is not known")
        width = head_width(self.attention)
        query, key = (
            flat.unflatten(-1, (-1, width)).transpose(1, 2) for flat in (self._query, self._key)
        )
        for name in ("q_norm", "k_norm"):
            norm = getattr(self.attention, name, None)
            if norm is not None and name == "q_norm":
                query = norm(query)
            elif norm is not None:
                key = norm(key)
        return query, key


def projections(attention: nn.Module, where: str) -> tuple[nn.Module, nn.Module]:
    """The query and key projections of an attention module.

    Raises:
        CapabilityError: if they cannot be told apart.
    """
    for q, k in (("q_proj", "k_proj"), ("query", "key")):
        if isinstance(getattr(attention, q, None), nn.Module) and hasattr(attention, k):
            return getattr(attention, q), getattr(attention, k)
    raise CapabilityError(
        f"{where} ({type(attention).__name__}) has no separate query and key projections; its "
        "attention cannot be read"
    )


def head_width(attention: nn.Module) -> int:
    """Width of a head."""
    for name in ("head_dim", "attention_head_size"):
        value = getattr(attention, name, None)
        if isinstance(value, int):
            return value
    raise CapabilityError(f"{type(attention).__name__} does not say how wide its heads are")


def scaling(attention: nn.Module, width: int) -> float:
    """What scores are multiplied with."""
    for name in ("scaling", "scale"):
        value = getattr(attention, name, None)
        if isinstance(value, float):
            return value
    return float(width**-0.5)


def decoder_rows(
    tap: Tap,
    cos_BTD: Tensor,
    sin_BTD: Tensor,
    rows_BQ: Tensor,
    valid_BT: Tensor | None = None,
) -> Tensor:
    """Causal attention of some query rows over all keys, fp32: (B, H, Q, T).

    Args:
        tap: of the layer.
        cos_BTD, sin_BTD: rotary embedding as the layer had it; the first axis may be 1.
        rows_BQ: indices of the queries among the layer's tokens.
        valid_BT: keys that are no padding; None for all.
    """
    from transformers.models.llama.modeling_llama import rotate_half

    query_BHTD, key_BKTD = tap.heads()
    size, heads, length, width = query_BHTD.shape
    cos, sin = (part.expand(size, -1, -1)[:, None] for part in (cos_BTD, sin_BTD))
    pick = rows_BQ[:, None, :, None]
    at_BHQD = pick.expand(-1, heads, -1, width)
    at_B1QD = pick.expand(-1, 1, -1, cos.shape[-1])
    query_BHQD = query_BHTD.gather(2, at_BHQD).float()
    cos_q, sin_q = (part.gather(2, at_B1QD).float() for part in (cos, sin))
    query_BHQD = query_BHQD * cos_q + rotate_half(query_BHQD) * sin_q
    key_BKTD = key_BKTD.float() * cos.float() + rotate_half(key_BKTD.float()) * sin.float()
    groups = heads // key_BKTD.shape[1]
    query_BKGQD = query_BHQD.unflatten(1, (-1, groups))
    scores = torch.einsum("bkgqd,bktd->bkgqt", query_BKGQD, key_BKTD).flatten(1, 2)
    scores_BHQT = scores * scaling(tap.attention, width)
    open_BQT = torch.arange(length, device=scores.device)[None, None] <= rows_BQ[:, :, None]
    if valid_BT is not None:
        own_BQT = torch.arange(length, device=scores.device)[None, None] == rows_BQ[:, :, None]
        open_BQT = (open_BQT & valid_BT[:, None]) | own_BQT
    scores_BHQT = scores_BHQT.masked_fill(~open_BQT[:, None], float("-inf"))
    return scores_BHQT.softmax(-1)


def tower_rows(tap: Tap, rows: Tensor | None = None) -> Tensor:
    """Attention of a vision tower's layer, no mask and no rotary embedding, fp32: (B, H, Q, T).

    Args:
        tap: of the layer.
        rows: indices of the queries; None for all of them.
    """
    query_BHTD, key_BHTD = tap.heads()
    if rows is not None:
        query_BHTD = query_BHTD[:, :, rows.to(query_BHTD.device)]
    width = query_BHTD.shape[-1]
    query_BHTD = query_BHTD.float() * scaling(tap.attention, width)
    return (query_BHTD @ key_BHTD.float().transpose(-1, -2)).softmax(-1)
