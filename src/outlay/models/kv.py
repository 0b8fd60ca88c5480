"""KV segments of a token tree, and the batch cache that they are gathered into.

Every branch owns the keys and values of its own tokens only; a step gathers the segments along each
active path into one left-padded batch buffer. So memory is that of the distinct tokens, forking is
free, and the buffer grows in place: a decoding step writes one column instead of copying all.

Shapes: B rows, H key/value heads, T time, D head size, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from outlay.errors import CapabilityError
from outlay.models.base import Branch
from outlay.models.trail import Walk

_NUMBER = itertools.count()


@dataclass(frozen=True)
class LayerLayout:
    """Sizes of one layer's cache; keys and values differ under latent attention."""

    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int
    dtype: torch.dtype


def probe_layout(body: Any, device: torch.device, name: str) -> tuple[LayerLayout, ...]:
    """What `body` really caches, found by one small pass: configs name these sizes in many ways.

    Raises:
        CapabilityError: if its state is not keys and values alone (state-space or linear-attention
            layers), so that a branch cannot own a slice of it.
    """
    cache = DynamicCache()
    try:
        body(torch.tensor([[0, 1, 2]], device=device), cache=cache, use_cache=True)
        found = [(layer.keys, layer.values) for layer in cache.layers]
        usable = bool(found) and all(
            tensor.dim() == 4 and tensor.shape[2] == 3 for pair in found for tensor in pair
        )
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise CapabilityError(_stateful(name)) from error
    if not usable:
        raise CapabilityError(_stateful(name))
    return tuple(
        LayerLayout(k.shape[1], k.shape[3], v.shape[1], v.shape[3], k.dtype) for k, v in found
    )


def _stateful(name: str) -> str:
    return (
        f"{name} keeps state other than keys and values, which branches cannot share; "
        "serve it and use an endpoint, or choose a model with attention in every layer"
    )


@dataclass
class Segment:
    """A local branch's state: KV of the first `length` of its tokens, per layer.

    Tokens beyond `length` are *pending*: sampled or forced, but not yet fed to the model. They are
    computed when something is built on them, so that a last token never costs a forward pass.
    `walk` is the branch's trail of hidden states, where one is kept.
    """

    keys_HTD: list[torch.Tensor] = field(default_factory=list)
    values_HTD: list[torch.Tensor] = field(default_factory=list)
    length: int = 0
    next_logits_V: torch.Tensor | None = None
    released: bool = False
    walk: Walk | None = None

    def append(self, keys_HTD: list[torch.Tensor], values_HTD: list[torch.Tensor]) -> None:
        """Add the KV of further tokens (one tensor per layer)."""
        if not self.keys_HTD:
            self.keys_HTD, self.values_HTD = keys_HTD, values_HTD
        else:
            self.keys_HTD = [torch.cat(p, 1) for p in zip(self.keys_HTD, keys_HTD, strict=True)]
            self.values_HTD = [
                torch.cat(p, 1) for p in zip(self.values_HTD, values_HTD, strict=True)
            ]
        self.length = self.keys_HTD[0].shape[1]

    def cut(self, length: int) -> None:
        """Keep the KV of at most the first `length` tokens."""
        if self.length > length:
            self.keys_HTD = [k[:, :length] for k in self.keys_HTD]
            self.values_HTD = [v[:, :length] for v in self.values_HTD]
            self.length = length

    def release(self) -> None:
        """Drop the tensors."""
        self.keys_HTD, self.values_HTD = [], []
        self.next_logits_V = self.walk = None
        self.released = True


def branch_name() -> str:
    """A name that no other local branch of this process has."""
    return f"b{next(_NUMBER)}"


def segment(branch: Branch) -> Segment:
    """The branch's KV state."""
    handle = branch.handle
    assert isinstance(handle, Segment)
    return handle


class BufferLayer(DynamicLayer):
    """A cache layer over a preallocated buffer: `update` writes in place and returns views."""

    def __init__(self, keys_BHTD: torch.Tensor, values_BHTD: torch.Tensor, length: int) -> None:
        super().__init__()
        self._keys_BHTD, self._values_BHTD = keys_BHTD, values_BHTD
        self.device, self.dtype = keys_BHTD.device, keys_BHTD.dtype
        self._show(length)
        self.is_initialized = True

    def _show(self, length: int) -> None:
        self._length = length
        self.keys = self._keys_BHTD[:, :, :length]
        self.values = self._values_BHTD[:, :, :length]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new columns and return all keys and values so far."""
        start, end = self._length, self._length + key_states.shape[2]
        self._keys_BHTD[:, :, start:end] = key_states
        self._values_BHTD[:, :, start:end] = value_states
        self._show(end)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Columns filled so far."""
        return self._length

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only the rows `indices`."""
        self._keys_BHTD = self._keys_BHTD[indices]
        self._values_BHTD = self._values_BHTD[indices]
        self._show(self._length)


def gather(
    paths: Sequence[Sequence[Branch]],
    room: int,
    *,
    layout: Sequence[LayerLayout],
    device: torch.device,
) -> tuple[Cache, list[int]]:
    """A batch cache holding the computed KV of every path, left-padded, with `room` to grow.

    Returns:
        The cache and the number of real columns per row.
    """
    lengths = [sum(segment(branch).length for branch in path) for path in paths]
    widest = max(lengths, default=0)
    rows, width = len(paths), widest + room
    stack = []
    for layer, size in enumerate(layout):
        keys_BHTD = torch.empty(
            (rows, size.key_heads, width, size.key_dim), dtype=size.dtype, device=device
        )
        values_BHTD = torch.empty(
            (rows, size.value_heads, width, size.value_dim), dtype=size.dtype, device=device
        )
        for row, (path, length) in enumerate(zip(paths, lengths, strict=True)):
            at = widest - length
            # Padding is masked, but uninitialised memory may hold NaN, and 0 * NaN is NaN.
            keys_BHTD[row, :, :at] = 0
            values_BHTD[row, :, :at] = 0
            for branch in path:
                kv = segment(branch)
                if kv.length:
                    keys_BHTD[row, :, at : at + kv.length] = kv.keys_HTD[layer]
                    values_BHTD[row, :, at : at + kv.length] = kv.values_HTD[layer]
                    at += kv.length
        stack.append(BufferLayer(keys_BHTD, values_BHTD, widest))
    return Cache(layers=stack), lengths


def columns(
    cache: Cache, row: int, start: int, end: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Copies of one row's columns [start, end) in every layer, as (keys, values)."""
    keys = [layer.keys[row, :, start:end].clone() for layer in cache.layers]
    values = [layer.values[row, :, start:end].clone() for layer in cache.layers]
    return keys, values
