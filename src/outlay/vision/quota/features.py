"""Maps of features of frames, projected and not pooled, from a model's own tower and projector.

LLaVA-OneVision pools a video's maps inside `get_video_features`; what comes before that is had only
by running tower and projector again, which is done here the way the model does it.

Shapes: F frames of X x Y pixels, H x W map (H = W), K = H * W tokens, D width of the decoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from outlay.errors import CapabilityError, InputError
from outlay.vision.parts import need_tower

METHOD = "QuoTA"


@torch.no_grad()
def frame_maps(model: Any, pixels_F3XY: Tensor, *, batch: int = 64) -> Tensor:
    """(F, H, W, D): what the projector makes of every frame.

    Args:
        model: a LLaVA-like model of transformers: tower, projector, decoder.
        pixels_F3XY: frames as the model's processor made them.
        batch: frames at once.

    Raises:
        CapabilityError: for a model without a tower, without a projector, or whose tower gives
            other tokens than one a patch.
        InputError: for no frames, or pixels of another shape than the tower takes.
    """
    found = need_tower(model, METHOD)
    projector = getattr(found.inner, "multi_modal_projector", None)
    if projector is None:
        raise CapabilityError(
            f"{type(model).__name__} has no projector over a map of patches, and meets quotas by "
            "resolution: give `pixel_values_videos` with `video_grid_thw` to prepare"
        )
    if pixels_F3XY.ndim != 4 or pixels_F3XY.shape[1] != 3:
        raise InputError(f"frames of shape {tuple(pixels_F3XY.shape)}; need (frames, 3, H, W)")
    if not len(pixels_F3XY):
        raise InputError("the video has no frames; give at least one")
    config = model.config
    side = config.vision_config.image_size
    if tuple(pixels_F3XY.shape[-2:]) != (side, side):
        raise InputError(
            f"frames of {pixels_F3XY.shape[-2]} x {pixels_F3XY.shape[-1]} pixels; the tower sees "
            f"{side} x {side}: give what its processor made"
        )
    layers = config.vision_feature_layer
    first = 1 if config.vision_feature_select_strategy == "default" else 0
    parts = []
    for some in pixels_F3XY.split(batch):
        hidden = found.tower(
            some.to(model.device, model.dtype), output_hidden_states=True, return_dict=True
        ).hidden_states
        chosen = (
            hidden[layers][:, first:]
            if isinstance(layers, int)
            else torch.cat([hidden[layer][:, first:] for layer in layers], dim=-1)
        )
        parts.append(projector(chosen))
    flat_FKD = torch.cat(parts)
    patch = config.vision_config.patch_size
    across = side // patch
    if flat_FKD.shape[1] != across**2:
        raise CapabilityError(
            f"the tower gives {flat_FKD.shape[1]} tokens for {across} x {across} patches, which is "
            "no map; set vision_feature_select_strategy so that the class token goes"
        )
    return flat_FKD.unflatten(1, (across, across))


def newline_of(model: Any) -> Tensor | None:
    """(D,) the learned token that ends a row of a grid, None where the model has none."""
    newline = getattr(getattr(model, "model", model), "image_newline", None)
    return newline.detach() if isinstance(newline, Tensor) else None
