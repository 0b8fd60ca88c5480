"""Where a network's keys and values are made, and how raw keys become those of its cache.

Raw keys are those before key-norm and rotary embedding: outputs of `k_proj`. Predicting rotated
keys would need a linear map that undoes a rotation by the position. What `prepared` does to raw
keys is checked once against the network's own cache, so that an architecture that treats its keys
in another way is refused by name.

Shapes: B sequences, T tokens, H key/value heads, D head size, E = H*D.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from outlay.errors import CapabilityError
from outlay.models.trail import decoder_layers

_PROBE = 4  # tokens


@dataclass(frozen=True)
class LayerSize:
    """Key/value heads of one layer, and the sizes of a key and a value."""

    heads: int
    key_dim: int
    value_dim: int

    @property
    def keys(self) -> int:
        """Size of all heads' keys of a token."""
        return self.heads * self.key_dim

    @property
    def values(self) -> int:
        """Size of all heads' values of a token."""
        return self.heads * self.value_dim


@dataclass(frozen=True, eq=False)
class Layout:
    """The attention layers of a network.

    Args:
        name: of the network's class, for messages.
        attentions: one attention module a layer.
        sizes: of every layer's keys and values.
        rotary: gives cosines and sines of positions.
        rotate: applies them.
    """

    name: str
    attentions: tuple[Any, ...]
    sizes: tuple[LayerSize, ...]
    rotary: Any
    rotate: Any

    def __len__(self) -> int:
        return len(self.attentions)

    def normed(self, layer: int, keys_BTE: torch.Tensor) -> torch.Tensor:
        """Raw keys after the layer's own key-norm, where it has one."""
        norm = getattr(self.attentions[layer], "k_norm", None)
        if norm is None:
            return keys_BTE
        size = self.sizes[layer]
        if norm.weight.numel() == size.keys:
            return norm(keys_BTE)
        keys_BTHD = keys_BTE.unflatten(-1, (size.heads, size.key_dim))
        return norm(keys_BTHD).flatten(-2)

    def prepared(
        self, layer: int, keys_BTE: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Raw keys as the layer's cache stores them, keys_BHTD: normed, then rotated."""
        size = self.sizes[layer]
        keys_BHTD = (
            self.normed(layer, keys_BTE).unflatten(-1, (size.heads, size.key_dim)).transpose(1, 2)
        )
        rotated: torch.Tensor = self.rotate(keys_BHTD, keys_BHTD, *turn)[1]
        return rotated

    def split_values(self, layer: int, values_BTE: torch.Tensor) -> torch.Tensor:
        """Values as the layer's cache stores them, values_BHTD."""
        size = self.sizes[layer]
        return values_BTE.unflatten(-1, (size.heads, size.value_dim)).transpose(1, 2)

    def turn(
        self, like: torch.Tensor, position_BT: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of positions, in the type of `like`."""
        found: tuple[torch.Tensor, torch.Tensor] = self.rotary(like, position_ids=position_BT)
        return found

    @contextmanager
    def captured(self) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
        """Within: a forward pass fills the lists with raw keys_BTE and values_BTE, one a layer."""
        keys: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        handles = [
            projection.register_forward_hook(_store(into))
            for attention in self.attentions
            for projection, into in ((attention.k_proj, keys), (attention.v_proj, values))
        ]
        try:
            yield keys, values
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def given(self, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> Iterator[None]:
        """Within: a forward pass uses these raw keys_BTE and values_BTE instead of its own.

        The network's own projections are fed no row, so they cost nothing; queries, key-norm,
        rotation and the causal mask stay the network's.
        """
        handles = []
        for attention, *pair in zip(self.attentions, keys, values, strict=True):
            for projection, tensor in zip((attention.k_proj, attention.v_proj), pair, strict=True):
                handles.append(projection.register_forward_pre_hook(_no_rows))
                handles.append(projection.register_forward_hook(_replace(tensor)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _store(into: list[torch.Tensor]) -> Any:
    def hook(module: Any, args: Any, output: torch.Tensor) -> None:
        into.append(output)

    return hook


def _no_rows(module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (args[0][:, :0], *args[1:])


def _replace(tensor: torch.Tensor) -> Any:
    def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return tensor.to(output.dtype)

    return hook


def layout(network: Any) -> Layout:
    """The layout of a transformers causal LM.

    Raises:
        CapabilityError: for sliding or recurrent layers, for layers without `k_proj` and `v_proj`,
            and where keys are not "normed, then rotated".
    """
    name = type(network).__name__
    count = int(network.config.get_text_config().num_hidden_layers)
    layers = decoder_layers(network.base_model, count)
    if layers is None:
        raise CapabilityError(f"{name} does not show its decoder layers; use another model")
    cache = DynamicCache(config=network.config)
    for index, layer in enumerate(cache.layers):
        if type(layer).__name__ != "DynamicLayer":
            raise CapabilityError(
                f"layer {index} of {name} keeps a {type(layer).__name__}, not all keys and values; "
                "use a model with full attention in every layer"
            )
    attentions = tuple(getattr(layer, "self_attn", None) for layer in layers)
    rotary = getattr(network.base_model, "rotary_emb", None)
    rotate = getattr(sys.modules[type(attentions[0]).__module__], "apply_rotary_pos_emb", None)
    for index, attention in enumerate(attentions):
        if not (hasattr(attention, "k_proj") and hasattr(attention, "v_proj")):
            raise CapabilityError(
                f"layer {index} of {name} has no k_proj and v_proj, whose outputs are predicted; "
                "use a model of the Llama, Qwen or OLMo kind"
            )
    if rotary is None or rotate is None:
        raise CapabilityError(f"{name} has no rotary embedding of the Llama kind; use another one")
    return _checked(network, Layout(name, attentions, (), rotary, rotate))


@torch.no_grad()
def _checked(network: Any, bare: Layout) -> Layout:
    """`bare` with its sizes, once its keys are known to be the network's own."""
    ids_BT = torch.arange(_PROBE, device=network.device)[None] % network.config.vocab_size
    cache = DynamicCache(config=network.config)
    with bare.captured() as (keys, values):
        network.base_model(ids_BT, cache=cache, use_cache=True)
    sizes = tuple(
        LayerSize(x.keys.shape[1], x.keys.shape[3], x.values.shape[3]) for x in cache.layers
    )
    found = Layout(bare.name, bare.attentions, sizes, bare.rotary, bare.rotate)
    near = 1e-4 if keys[0].dtype == torch.float32 else 3e-2
    for index, layer in enumerate(cache.layers):
        if (sizes[index].keys, sizes[index].values) != (
            keys[index].shape[-1],
            values[index].shape[-1],
        ):
            raise CapabilityError(
                f"layer {index} of {bare.name} caches other sizes than its projections give; "
                "use a model whose cache holds its keys and values as they are"
            )
        turn = found.turn(keys[index], torch.arange(_PROBE, device=network.device)[None])
        try:
            keys_BHTD = found.prepared(index, keys[index], turn)
        except RuntimeError as error:  # a rotation of only a part of the head, for one
            raise CapabilityError(_own_way(index, bare.name)) from error
        made = (keys_BHTD, found.split_values(index, values[index]))
        for ours, own in zip(made, (layer.keys, layer.values), strict=True):
            if not torch.allclose(ours.float(), own.float(), rtol=near, atol=near):
                raise CapabilityError(_own_way(index, bare.name))
    return found


def _own_way(layer: int, name: str) -> str:
    return (
        f"layer {layer} of {name} treats its keys or values in a way of its own; "
        "use a model whose keys are normed, then rotated as a whole"
    )
