"""A vision tower's blocks, and what attention and keys they computed.

Works on transformers' ViT, DeiT, CLIP, SigLIP and models built like them, inside a classifier, a
CLIP or a LLaVA, and on blocks with one fused `qkv` projection, as timm has them. Windowed and
hierarchical backbones have no global graph and are refused.

Shapes: B images, H heads, N tokens, D width of a head, F width of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from outlay.errors import CapabilityError
from outlay.vision.attention import Tap, scaling, tower_rows
from outlay.vision.cls_attention import feature_layer, tower_layers

Feature = Literal["key", "query", "value", "x"]
Reduce = Literal["concat", "mean"]
_OPEN = "_outlay_vision_tower"  # on a tower while a method is open on it
_SPECIAL = (("cls_token", 1), ("class_embedding", 1), ("distillation_token", 1))


@dataclass(frozen=True)
class Tower:
    """Where a model's vision blocks are.

    Args:
        module: the tower.
        blocks: its transformer blocks.
        special: tokens before the patches: class, distillation, registers.
        inside: True inside a vision-language model.
        last: 0-based index of the block whose output is used.
        classified: whether the class token's output is used.
    """

    module: Any
    blocks: Sequence[nn.Module]
    special: int
    inside: bool
    last: int
    classified: bool

    @property
    def depth(self) -> int:
        """Blocks that matter: those up to the one whose output is used."""
        return self.last + 1


def find_tower(model: Any) -> Tower:
    """The vision tower of a classifier, a CLIP, a vision-language model, or of itself.

    Raises:
        CapabilityError: for a model without one, or a windowed or hierarchical one.
    """
    inner = getattr(model, "model", model)
    inside = getattr(inner, "vision_tower", None) is not None
    if inside:
        module = inner.vision_tower
    elif getattr(inner, "visual", None) is not None:
        raise CapabilityError(
            f"the tower of {type(model).__name__} packs images into one sequence with windows; "
            "there is no graph of one image to rank"
        )
    else:
        module = getattr(model, "vision_model", None)
        module = getattr(model, "base_model", model) if module is None else module
    config = getattr(module, "config", None)
    name = f"{type(module).__name__} ({getattr(config, 'model_type', '?')})"
    if getattr(config, "window_size", None) or getattr(config, "depths", None):
        raise CapabilityError(
            f"{name} is windowed or hierarchical: its attention is no graph over the whole image, "
            "and its later stages need the full grid"
        )
    blocks = getattr(module, "blocks", None)
    blocks = tower_layers(module) if blocks is None else blocks
    last, classified = len(blocks) - 1, True
    if inside:
        last = feature_layer(model)
        classified = getattr(model.config, "vision_feature_select_strategy", "") != "default"
    return Tower(module, blocks, special_tokens(module), inside, last, classified)


def need_free(tower: Tower) -> None:
    """Refuse a tower on which a method is open.

    Raises:
        CapabilityError: if one is.
    """
    if getattr(tower.module, _OPEN, False):
        raise CapabilityError(
            "tokens leave this tower already under another context; leave that one first"
        )


def claim(tower: Tower) -> None:
    """Mark a tower as taken, until `release`; see `need_free` for what it raises."""
    need_free(tower)
    setattr(tower.module, _OPEN, True)


def release(tower: Tower) -> None:
    """The end of `claim`."""
    delattr(tower.module, _OPEN)


def special_tokens(tower: Any) -> int:
    """Tokens that stand before the patches and are never dropped."""
    places = [getattr(tower, name, None) for name in ("embeddings", "vision_model")]
    places = [tower, *places, getattr(places[1], "embeddings", None)]
    for place in places:
        count = sum(n for name, n in _SPECIAL if isinstance(getattr(place, name, None), Tensor))
        registers = getattr(place, "register_tokens", None)
        if isinstance(registers, Tensor):
            count += registers.shape[1]
        if count:
            return count
    return 0


def attention_of(block: nn.Module, where: str) -> nn.Module:
    """The one self-attention module of a block: that which holds its projections.

    Raises:
        CapabilityError: for none, or several.
    """
    found = [
        module
        for module in block.modules()
        if any(
            isinstance(getattr(module, name, None), nn.Module)
            for name in ("qkv", "q_proj", "query")
        )
    ]
    if len(found) != 1:
        what = "no" if not found else f"{len(found)}"
        raise CapabilityError(
            f"{where} ({type(block).__name__}) has {what} attention modules with projections of "
            "queries and keys; its attention cannot be read"
        )
    return found[0]


class Reader:
    """Remembers what the projections of a block's attention gave last, until `forget`.

    Args:
        block: of a tower.
        where: named in errors.
        values: also listen to the projection of values.

    Raises:
        CapabilityError: if its projections cannot be found.
    """

    def __init__(self, block: nn.Module, where: str, values: bool = False) -> None:
        self.attention = attention_of(block, where)
        self.where = where
        self._fused = isinstance(getattr(self.attention, "qkv", None), nn.Module)
        self._tap = None if self._fused else Tap(self.attention, where)
        self._heard: Tensor | None = None
        self._handle: Any = None
        self._extra: nn.Module | None = None
        if self._fused:
            fused: Any = self.attention.qkv
            self._extra = fused
            if not isinstance(getattr(self.attention, "num_heads", None), int):
                raise CapabilityError(
                    f"{where} ({type(self.attention).__name__}) has a fused qkv projection and no "
                    "num_heads; its attention cannot be read"
                )
        elif values:
            self._extra = getattr(self.attention, "v_proj", getattr(self.attention, "value", None))
            if self._extra is None:
                raise CapabilityError(f"{where} has no projection of values; use another s_feature")

    def open(self) -> None:
        """Start listening."""
        if self._tap is not None:
            self._tap.open()
        if self._extra is not None:
            self._handle = self._extra.register_forward_hook(self._hear)

    def close(self) -> None:
        """Stop listening and forget."""
        if self._tap is not None:
            self._tap.close()
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._heard = None

    def forget(self) -> None:
        """Let go of the tensors."""
        self._heard = None
        if self._tap is not None:
            self._tap.forget()

    def _hear(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self._heard = output

    def _said(self) -> Tensor:
        if self._heard is None:
            raise CapabilityError(f"{self.where} has not run yet; its attention is not known")
        return self._heard

    def _parts(self) -> tuple[Tensor, ...]:
        """Queries, keys and values of a fused projection, each (B, H, N, D)."""
        heads: Any = self.attention.num_heads
        split = self._said().unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        return tuple(split)

    def rows(self) -> Tensor:
        """Attention of the block, (B, H, N, N) in fp32."""
        if self._tap is not None:
            return tower_rows(self._tap)
        return self._fused_rows(slice(None))

    def _fused_rows(self, rows: slice) -> Tensor:
        query, key, _ = self._parts()
        scale = scaling(self.attention, query.shape[-1])
        return (query[:, :, rows].float() * scale @ key.float().transpose(-1, -2)).softmax(-1)

    def class_row(self) -> Tensor:
        """Attention of the first token alone, (B, H, N) in fp32."""
        if self._tap is not None:
            return tower_rows(self._tap, torch.zeros(1, dtype=torch.long))[:, :, 0]
        return self._fused_rows(slice(1))[:, :, 0]

    def feature(self, kind: Feature, reduce: Reduce) -> Tensor:
        """Keys, queries or values of every token, (B, N, F): heads side by side, or their mean."""
        if self._tap is None:
            heads_BHND = self._parts()[("query", "key", "value").index(kind)]
        elif kind == "value":
            width = self._tap.heads()[0].shape[-1]
            heads_BHND = self._said().unflatten(-1, (-1, width)).transpose(1, 2)
        else:
            heads_BHND = self._tap.heads()[0 if kind == "query" else 1]
        if reduce == "mean":
            return heads_BHND.mean(1)
        return heads_BHND.transpose(1, 2).flatten(2)
