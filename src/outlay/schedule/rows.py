"""Attention per request inside one call of a decoder layer for all requests.

The rows of all requests that are active in a layer are concatenated: projections, norms and the MLP
or MoE block run once. Attention alone is split: an attention function of our own, registered with
transformers, writes every request's new keys and values into its own cache and lets it attend to
its own past.

Shapes: N rows of all requests, T rows of one request, L cached rows, H query heads, K key/value
heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "outlay_rows"


class RequestCache:
    """Keys and values of one request, per layer, in buffers of whole blocks.

    Layers may hold different numbers of rows: under layered prefill they do.

    Args:
        layers: of the model.
        block: tokens of a block; buffers grow by whole blocks.
    """

    def __init__(self, layers: int, block: int) -> None:
        self.block = block
        self.lengths = [0] * layers
        self.capacity = 0
        self._keys: list[torch.Tensor | None] = [None] * layers
        self._values: list[torch.Tensor | None] = [None] * layers

    def reserve(self, tokens: int) -> None:
        """Buffers that are written from now on have room for so many tokens."""
        self.capacity = max(self.capacity, -(-tokens // self.block) * self.block)

    def append(
        self, layer: int, key_1KTD: torch.Tensor, value_1KTD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write T rows behind a layer's own and return all of them, (1, K, L, D)."""
        start = self.lengths[layer]
        stop = start + key_1KTD.shape[2]
        self.reserve(stop)
        keys = self._write(self._keys, layer, key_1KTD, start)
        values = self._write(self._values, layer, value_1KTD, start)
        self.lengths[layer] = stop
        return keys[:, :, :stop], values[:, :, :stop]

    def _write(
        self, buffers: list[torch.Tensor | None], layer: int, new_1KTD: torch.Tensor, start: int
    ) -> torch.Tensor:
        buffer = buffers[layer]
        if buffer is None or buffer.shape[2] < start + new_1KTD.shape[2]:
            _, heads, _, size = new_1KTD.shape
            fresh = new_1KTD.new_empty((1, heads, self.capacity, size))
            if buffer is not None:
                fresh[:, :, :start] = buffer[:, :, :start]
            buffers[layer] = buffer = fresh
        buffer[:, :, start : start + new_1KTD.shape[2]] = new_1KTD
        return buffer

    @property
    def bytes(self) -> int:
        """Bytes of all buffers."""
        found = (t for t in (*self._keys, *self._values) if t is not None)
        return sum(tensor.numel() * tensor.element_size() for tensor in found)


@dataclass(frozen=True)
class Span:
    """Rows [low, high) of a batch belong to one request.

    Args:
        cache: the request's.
        low, high: its rows.
        mask_11TL: which cached rows each of its rows sees; None where a plain causal rule, or no
            rule for a single row, says the same. On CUDA a bias that its flash kernels know.
    """

    cache: RequestCache
    low: int
    high: int
    mask_11TL: torch.Tensor | None = None


def span(cache: RequestCache, low: int, start: int, count: int, device: torch.device) -> Span:
    """The rows of a request that has `start` rows in the cache and brings `count`."""
    mask_11TL: torch.Tensor | None = None
    if start and count > 1:
        if device.type == "cuda":
            mask_11TL = causal_lower_right(count, start + count)
        else:
            mask_11TL = torch.ones(1, 1, count, start + count, dtype=torch.bool).tril(start)
    return Span(cache, low, low + count, mask_11TL)


def attend(
    module: Any,
    query_1HND: torch.Tensor,
    key_1KND: torch.Tensor,
    value_1KND: torch.Tensor,
    attention_mask: Any = None,
    *,
    spans: Sequence[Span],
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function: every span alone; (1, N, H, D)."""
    parts = []
    for each in spans:
        low, high = each.low, each.high
        key_1KLD, value_1KLD = each.cache.append(
            module.layer_idx, key_1KND[:, :, low:high], value_1KND[:, :, low:high]
        )
        out_1THD, _ = sdpa_attention_forward(
            module,
            query_1HND[:, :, low:high],
            key_1KLD,
            value_1KLD,
            each.mask_11TL,
            scaling=scaling,
        )
        parts.append(out_1THD)
    return torch.cat(parts, dim=1), None


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)


@contextmanager
def attending(configs: Sequence[Any]) -> Iterator[None]:
    """Let the models with these configurations attend by spans, and put their own way back."""
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = NAME
    try:
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name
