"""What the class token of a vision tower looks at: the cheapest ranking of patches.

P encoded images (partitions), H heads, N patches.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from outlay.errors import CapabilityError, InputError
from outlay.vision.attention import Tap, tower_rows
from outlay.vision.parts import need_tower


def tower_layers(tower: Any) -> Any:
    """The list of a tower's blocks.

    Raises:
        CapabilityError: for a tower without one.
    """
    for path in ("encoder.layers", "vision_model.encoder.layers", "encoder.layer", "layers"):
        found: Any = tower
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None:
            return found
    raise CapabilityError(f"{type(tower).__name__} has no list of encoder layers")


def feature_layer(model: Any) -> int:
    """Index of the tower's block whose output is the visual feature.

    Raises:
        CapabilityError: where features of several blocks are joined.
    """
    found = need_tower(model, "this method")
    layer = getattr(model.config, "vision_feature_layer", -1)
    if not isinstance(layer, int):
        raise CapabilityError(
            f"features of layers {layer} are joined; name one of them with final_layer"
        )
    depth = len(tower_layers(found.tower))
    index = layer - 1 if layer >= 0 else depth + layer  # hidden state 0 is the embedding
    if not 0 <= index < depth:
        raise CapabilityError(f"vision_feature_layer={layer} of a tower with {depth} layers")
    return index


def tower_tap(block: Any, layer: int) -> Tap:
    """A tap of a tower block's attention.

    Raises:
        CapabilityError: for a block whose attention is not known.
    """
    for name in ("self_attn", "attention", "attn"):
        if (attention := getattr(block, name, None)) is not None:
            return Tap(attention, f"tower layer {layer}")
    raise CapabilityError(f"{type(block).__name__} (tower layer {layer}) has no attention module")


class ClassToken:
    """Reads class-token attention of one block while the tower runs.

    Args:
        model: a vision-language model.
        layer: of the tower; None takes the one whose output is the visual feature.

    Raises:
        CapabilityError: for a tower without a class token.
        InputError: for a layer out of range.
    """

    def __init__(self, model: Any, layer: int | None = None) -> None:
        found = need_tower(model, "class-token attention")
        config = getattr(found.tower, "config", None)
        if not _has_class_token(found.tower):
            raise CapabilityError(
                f"{type(found.tower).__name__} ({getattr(config, 'model_type', '?')}) has no class "
                "token; choose a score that needs none"
            )
        blocks = tower_layers(found.tower)
        self.layer = feature_layer(model) if layer is None else layer
        if not 0 <= self.layer < len(blocks):
            raise InputError(f"layer {self.layer}; the tower has layers 0..{len(blocks) - 1}")
        self.tap = tower_tap(blocks[self.layer], self.layer)

    def open(self) -> None:
        """Start listening."""
        self.tap.open()

    def close(self) -> None:
        """Stop listening."""
        self.tap.close()

    def rows(self) -> Tensor:
        """(P, H, N): attention from the class token to patches; its own entry is cut off, and
        nothing is renormalised."""
        row = tower_rows(self.tap, torch.zeros(1, dtype=torch.long))
        return row[:, :, 0, 1:]


def _has_class_token(tower: Any) -> bool:
    embeddings = getattr(tower, "embeddings", None)
    if embeddings is None:
        embeddings = getattr(getattr(tower, "vision_model", None), "embeddings", None)
    return any(hasattr(embeddings, name) for name in ("class_embedding", "cls_token"))


def focus(rows_PHN: Tensor, share: float = 0.25) -> float:
    """Attention mass of the best `share` of patches, of what they would have were all alike.

    1 means that the class token looks at everything alike, which is what an untrained one does.
    """
    scores_PN = rows_PHN.sum(1)
    k = max(1, math.floor(share * scores_PN.shape[1]))
    best = scores_PN.topk(k).values.sum(1) / scores_PN.sum(1)
    return float(best.mean()) / (k / scores_PN.shape[1])


def warn_if_blind(rows_PHN: Tensor, least: float = 1.1) -> None:
    """Warn if the class token hardly prefers any patch."""
    if (found := focus(rows_PHN)) < least:
        warnings.warn(
            f"class-token attention is almost flat (top quarter holds {found:.2f}x its share); "
            "a tower whose class token had no objective ranks at random",
            stacklevel=3,
        )
