"""Prompts with a placeholder for every patch, run with fewer features.

An image's features take its last placeholders (the last token of a prompt must stay, even where it
is an image's), and zeros take the others, which a dropper then leaves out of the decoder.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from outlay.errors import InputError
from outlay.vision.base import Choice, Seen
from outlay.vision.tokenflex.places import placed
from outlay.vision.tokenflex.projector import Request

_PIXELS = ("pixel_values", "image_sizes", "vision_feature_layer", "vision_feature_select_strategy")


def fill(inner: Any, request: Request, ids_BT: Tensor | None, kwargs: dict[str, Any]) -> None:
    """Encode the images of a call, and put as many features as there are placeholders in their
    stead.

    Args:
        inner: the model that merges features into prompts.
        request: open on its projector; told where real features are.
        ids_BT: of the prompt.
        kwargs: of the call, changed in place.

    Raises:
        InputError: without ids, for pictures that are there as features, too, or for placeholders
            that fit neither the count asked for nor the encoder's.
    """
    given = kwargs.get("mm_encoder_outputs") or {}
    if kwargs.get("pixel_values") is not None:
        if given.get("image") is not None:
            raise InputError(
                "the model was given pixel_values and ready features for the same images; give "
                "one of them"
            )
        known = {name: kwargs.pop(name) for name in _PIXELS if kwargs.get(name) is not None}
        given = {**given, "image": inner.get_image_features(**known, return_dict=True)}
    if given.get("image") is None:
        return
    if ids_BT is None:
        raise InputError("the model was called with inputs_embeds; call it with input_ids")
    kwargs["mm_encoder_outputs"] = {
        **given,
        "image": _fitted(inner, request, given["image"], ids_BT),
    }


def _fitted(inner: Any, request: Request, output: Any, ids_BT: Tensor) -> Any:
    features: list[Tensor] = list(output.pooler_output)
    real = [len(one) for one in features]
    full = request.full or [inner.multi_modal_projector.grid.count] * len(features)
    starts = placed(ids_BT == inner.config.image_token_id, len(features), [real, full])
    sizes = [size for row in starts for _, size in row]
    waiting = iter(real)
    request.rows = [[next(waiting) for _ in row] for row in starts]
    if sizes == real:
        return output
    output = copy.copy(output)
    output.pooler_output = [
        torch.cat([one.new_zeros(size - len(one), one.shape[1]), one])
        for one, size in zip(features, sizes, strict=True)
    ]
    return output


def chosen(request: Request, seen: Seen) -> Choice:
    """The placeholders that hold features; generation may have repeated rows for its beams."""
    rows, batch = request.rows, len(seen.visual_BT)
    if not rows:
        return Choice(torch.ones_like(seen.visual_BT))
    waiting = {row: iter(rows[row * len(rows) // batch]) for row in range(batch)}
    real = [next(waiting[picture.row]) for picture in seen.pictures]
    sizes = [len(picture.at_K) for picture in seen.pictures]
    kept = [torch.arange(size - n, size) for size, n in zip(sizes, real, strict=True)]
    return Choice.of(seen, kept)
