"""Tree attention over a cache, and the cache's upkeep: accepted rows move, the prefix stays.

A batch shares one buffer per layer. Sequence b owns its first `lengths[b]` columns; behind the
longest of them lie the *pending* columns, the nodes of draft trees, which see their own prefix and
their ancestors through a 4-D mask. `commit` moves the rows of the accepted path, and nothing else,
behind the sequence's own rows; the rest is dropped by lowering a counter. A position is the prefix
length plus the depth in the tree, so rotary positions stay right when rows move.

Shapes: B sequences, H key/value heads, T columns, D head size, R rows fed, P pending columns,
V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

from outlay.cache.base import Compacting
from outlay.errors import CapabilityError

_GROWTH = 64  # columns by which a buffer grows at least


class TreeLayer(CacheLayerMixin):
    """A cache layer in a growing buffer: `update` writes new columns and returns views."""

    is_croppable = True
    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self._filled = 0
        self._keys_BHTD: torch.Tensor
        self._values_BHTD: torch.Tensor

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make empty buffers of the states' kind."""
        self.device, self.dtype = key_states.device, key_states.dtype
        self._keys_BHTD = key_states[:, :, :0]
        self._values_BHTD = value_states[:, :, :0]
        self.is_initialized = True

    def _show(self, filled: int) -> None:
        self._filled = filled
        self.keys = self._keys_BHTD[:, :, :filled]
        self.values = self._values_BHTD[:, :, :filled]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new columns and return all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._filled, self._filled + key_states.shape[2]
        if end > self._keys_BHTD.shape[2]:
            room = max(end + _GROWTH, start * 3 // 2)
            self._keys_BHTD = _grown(self._keys_BHTD, start, room)
            self._values_BHTD = _grown(self._values_BHTD, start, room)
        self._keys_BHTD[:, :, start:end] = key_states
        self._values_BHTD[:, :, start:end] = value_states
        self._show(end)
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Columns filled so far, by prefixes and pending rows."""
        return self._filled

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys."""
        return self._filled + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last columns, given as a negative number as transformers does."""
        if tokens_to_remove and self.is_initialized:
            self._show(self._filled - abs(tokens_to_remove))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only the sequences `indices`."""
        if self.is_initialized:
            self._keys_BHTD = self._keys_BHTD[indices]
            self._values_BHTD = self._values_BHTD[indices]
            self._show(self._filled)


def _grown(old_BHTD: torch.Tensor, filled: int, room: int) -> torch.Tensor:
    rows, heads, _, width = old_BHTD.shape
    new_BHTD = old_BHTD.new_empty((rows, heads, room, width))
    new_BHTD[:, :, :filled] = old_BHTD[:, :, :filled]
    return new_BHTD


def check_network(network: Any, name: str) -> None:
    """Refuse networks whose attention cannot take a tree mask.

    Raises:
        CapabilityError: naming the layer type that stands in the way.
    """
    config = network.config
    if getattr(config, "is_encoder_decoder", False):
        raise CapabilityError(
            f"{name} is an encoder-decoder; draft trees need a decoder-only model"
        )
    layers = DynamicCache(config=config).layers
    odd = next((each for each in layers if type(each) is not DynamicLayer), None)
    if odd is not None:
        raise CapabilityError(
            f"{name} has layers of type {type(odd).__name__}, which cannot take a tree mask; "
            "use plain decoding, or a model with full attention in every layer"
        )
    if "position_ids" not in inspect.signature(network.forward).parameters:
        raise CapabilityError(
            f"{name} ({type(network).__name__}) takes no position_ids: it counts positions along "
            "its mask, which a tree has not; use plain decoding"
        )


class TreeCache:
    """A cache of B sequences behind which trees of tokens are tried.

    Args:
        network: a transformers causal LM.
        rows: B.
        cache: a cache that a method filled, for one sequence; None starts empty.
    """

    def __init__(self, network: Any, rows: int, cache: Any = None) -> None:
        self._network = network
        own = [TreeLayer() for _ in range(network.config.get_text_config().num_hidden_layers)]
        self.cache: Any = Cache(layers=own) if cache is None else cache
        self._foreign = cache is not None
        self.lengths = [self._columns()] * rows
        self._forget()
        if cache is not None:
            counts = {layer.get_seq_length() for layer in cache.layers}
            if len(counts) > 1:
                raise CapabilityError(
                    f"{type(cache).__name__} keeps {min(counts)} to {max(counts)} rows a layer; "
                    "a draft tree needs the same number in every layer"
                )

    def _columns(self) -> int:
        return int(self.cache.layers[0].get_seq_length())

    def _dropped(self) -> int:
        """How far positions run ahead of columns: a cache may count tokens that it dropped."""
        return int(self.cache.get_seq_length()) - self._columns()

    def _forget(self) -> None:
        """No pending columns."""
        rows = len(self.lengths)
        self._seen_BPP = torch.zeros((rows, 0, 0), dtype=torch.bool)
        self._depths: list[list[int]] = [[] for _ in range(rows)]

    @property
    def pending(self) -> int:
        """Columns fed and not yet committed."""
        return self._seen_BPP.shape[2]

    @property
    def bytes(self) -> int:
        """Keys and values in use."""
        layers = [layer for layer in self.cache.layers if layer.get_seq_length()]
        parts = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        return sum(tensor.numel() * tensor.element_size() for tensor in parts)

    def read(self, prompts: Sequence[Sequence[int]]) -> None:
        """Fill an empty cache with prompts of any lengths; their logits are not computed."""
        self.lengths = [len(prompt) for prompt in prompts]
        width = max(self.lengths)
        if width:
            # Padding comes last: no real token sees it, and its columns lie beyond `lengths`.
            ids_BT = torch.zeros((len(prompts), width), dtype=torch.long)
            for row, prompt in enumerate(prompts):
                ids_BT[row, : len(prompt)] = torch.tensor(list(prompt), dtype=torch.long)
            position_BT = torch.arange(width, device=self._network.device)[None].expand(
                len(prompts), width
            )
            self._network.base_model(
                ids_BT.to(self._network.device),
                position_ids=position_BT,
                cache=self.cache,
                use_cache=True,
            )
        self._forget()

    def feed(self, ids_BR: torch.Tensor, parents: Sequence[Sequence[int]]) -> torch.Tensor:
        """Feed R rows a sequence behind what is pending; logits_BRV.

        Args:
            ids_BR: tokens; rows without a meaning may hold any token and have parent -1.
            parents: for each sequence and row, the pending column that it continues, -1 for the
                sequence's committed prefix. A parent comes before its child.
        """
        rows, fresh = ids_BR.shape
        old = self.pending
        seen_BPP = torch.zeros((rows, old + fresh, old + fresh), dtype=torch.bool)
        seen_BPP[:, :old, :old] = self._seen_BPP
        for b, above in enumerate(parents):
            for r, parent in enumerate(above):
                if parent >= 0:
                    seen_BPP[b, old + r] = seen_BPP[b, parent]
                seen_BPP[b, old + r, old + r] = True
                self._depths[b].append(0 if parent < 0 else self._depths[b][parent] + 1)
        self._seen_BPP = seen_BPP
        device = self._network.device
        ahead = self._dropped()
        position_BR = torch.tensor(
            [
                [ahead + n + d for d in depth[old:]]
                for n, depth in zip(self.lengths, self._depths, strict=True)
            ]
        )
        width = self._columns() - old
        prefix_BT = torch.arange(width)[None] < torch.tensor(self.lengths)[:, None]
        allowed_BRT = torch.cat(
            [prefix_BT[:, None].expand(rows, fresh, width), seen_BPP[:, old:]], dim=2
        )
        dtype = self._network.dtype
        mask_B1RT = torch.zeros((rows, 1, fresh, width + old + fresh), dtype=dtype)
        mask_B1RT.masked_fill_(~allowed_BRT[:, None], torch.finfo(dtype).min)
        logits_BRV: torch.Tensor = self._network(
            ids_BR.to(device),
            attention_mask=mask_B1RT.to(device),
            position_ids=position_BR.to(device),
            cache=self.cache,
            use_cache=True,
        ).logits
        return logits_BRV

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Keep the pending columns `paths[b]`, in this order, behind sequence b's rows.

        Only they move; everything else that is pending is dropped.
        """
        width = self._columns() - self.pending
        moves = [
            (b, width + column, length + place)
            for b, (path, length) in enumerate(zip(paths, self.lengths, strict=True))
            for place, column in enumerate(path)
            if width + column != length + place
        ]
        if moves:
            row_N, from_N, to_N = torch.tensor(moves, device=self._network.device).T
            for layer in self.cache.layers:
                for store_BHTD in (layer.keys, layer.values):
                    store_BHTD[row_N, :, to_N] = store_BHTD[row_N, :, from_N]
        lengths = [n + len(path) for n, path in zip(self.lengths, paths, strict=True)]
        surplus = self._columns() - max(lengths)
        if surplus:
            for layer in self.cache.layers:
                layer.crop(-surplus)
        self.lengths = lengths
        if self._foreign and isinstance(self.cache, Compacting):
            self.cache.compact()
            self.lengths = [self._columns()]
        self._forget()

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these sequences of the batch; nothing may be pending."""
        if list(rows) != list(range(len(self.lengths))):
            index_N = torch.tensor(list(rows), device=self._network.device)
            for layer in self.cache.layers:
                layer.batch_select_indices(index_N)
            self.lengths = [self.lengths[row] for row in rows]
            self._forget()
