"""Which tokens of a prompt are visual, and which image each belongs to.

transformers checks only that a whole batch has as many placeholders as features; features that
match in sum and not image by image would move silently into the neighbour. Here every image is
checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from outlay.errors import InputError
from outlay.vision.base import Picture, Seen
from outlay.vision.parts import Parts

MODALITIES = ("image", "video")
ENCODING = (
    "pixel_values",
    "image_sizes",
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "batch_num_images",
)
"""What `get_image_features` takes of a call."""


class Placeholders:
    """Watches what a model is given.

    Args:
        model: its parts.
        visual: (B, T) True at visual tokens, where a caller says so; None reads the ids.
    """

    def __init__(self, model: Parts, visual: Tensor | None) -> None:
        if visual is not None and not bool(visual.any()):
            raise InputError("visual is False everywhere; mark the tokens that may be dropped")
        self.parts = model
        self.visual = visual
        self.ids: Tensor | None = None
        self.lengths: list[int] | None = None  # features of each image, where they are known
        self._handles: list[Any] = []

    def open(self) -> None:
        """Start watching."""
        if self.parts.inner is not self.parts.decoder:
            self._handles = [
                self.parts.inner.register_forward_pre_hook(self._watch, with_kwargs=True)
            ]

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.ids, self.lengths = None, None

    def _watch(
        self, inner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Remember ids; encode images here, so that features can be counted before they merge."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        cache = kwargs.get("cache")
        if cache is not None and cache.get_seq_length() > 0:
            return args, kwargs
        self.ids, self.lengths = ids, None
        given = kwargs.get("mm_encoder_outputs") or {}
        pixels = kwargs.get("pixel_values")
        plain = pixels is not None and "image_grid_thw" not in kwargs
        if pixels is not None and given.get("image") is not None:
            raise InputError(
                "the model was given pixel_values and ready features for the same images; "
                "give one of them"
            )
        if plain and "mm_encoder_outputs" in _parameters(inner):
            kwargs = dict(kwargs)
            known = {name: kwargs.pop(name) for name in ENCODING if kwargs.get(name) is not None}
            given = {**given, "image": inner.get_image_features(**known, return_dict=True)}
            kwargs["mm_encoder_outputs"] = given
        found = [given[name].pooler_output for name in MODALITIES if given.get(name) is not None]
        if len(found) == 1:
            self.lengths = [len(features) for features in found[0]]
        return args, kwargs

    def seen(self, embeds_BTD: Tensor, mask: Any) -> Seen | None:
        """The prompt, or None if it has no visual token.

        Raises:
            InputError: if placeholders and features differ for an image, or ids are missing.
        """
        valid_BT = torch.ones(embeds_BTD.shape[:2], dtype=torch.bool, device=embeds_BTD.device)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            valid_BT = mask.bool()
        if self.visual is not None:
            if self.visual.shape != valid_BT.shape:
                raise InputError(
                    f"visual has shape {tuple(self.visual.shape)} and the prompt "
                    f"{tuple(valid_BT.shape)}"
                )
            visual_BT = self.visual.to(valid_BT.device)
        elif self.ids is None:
            raise InputError(
                "the model was called with inputs_embeds, which do not say which tokens are "
                "visual; call it with input_ids"
            )
        else:
            known = torch.tensor(self.parts.image_ids, device=self.ids.device)
            visual_BT = torch.isin(self.ids, known)
        pictures = split(visual_BT, self.lengths)
        if not pictures:
            return None
        return Seen(embeds_BTD, visual_BT, valid_BT, pictures, self.ids)


def split(visual_BT: Tensor, lengths: Sequence[int] | None) -> list[Picture]:
    """The images of a batch, in row-major order; none where no token is visual.

    Args:
        visual_BT: True at visual tokens.
        lengths: features of each image; None takes every run of placeholders as one image.

    Raises:
        InputError: if an image's placeholders and features differ in number.
    """
    runs = _runs(visual_BT.cpu())
    sizes = [len(run) for _, run in runs] if lengths is None or not runs else list(lengths)
    images: list[tuple[int, Tensor]] = []
    waiting = iter(sizes)
    for row, run in runs:
        start = 0
        while start < len(run):
            size = next(waiting, 0)
            if size < 1 or start + size > len(run):
                raise InputError(
                    f"row {row} has {len(run) - start} placeholders where image {len(images)} has "
                    f"{size} features; every image needs exactly one placeholder a feature"
                )
            images.append((row, run[start : start + size]))
            start += size
    if runs and (left := sum(1 for _ in waiting)):
        raise InputError(f"{left} images have no placeholders in the prompt; give one a feature")
    if not images:
        return []
    # One transfer for all of them.
    at = torch.cat([places for _, places in images]).to(visual_BT.device)
    parts = at.split([len(places) for _, places in images])
    return [Picture(row, at_K, host) for (row, host), at_K in zip(images, parts, strict=True)]


def _runs(visual_BT: Tensor) -> list[tuple[int, Tensor]]:
    """Row and places of every run of visual tokens, on the host."""
    found = []
    for row, visual_T in enumerate(visual_BT):
        at = visual_T.nonzero()[:, 0]
        if len(at):
            breaks = (at.diff() > 1).nonzero()[:, 0] + 1
            found += [(row, run) for run in at.tensor_split(breaks)]
    return found


def _parameters(module: Any) -> frozenset[str]:
    import inspect

    return frozenset(inspect.signature(module.forward).parameters)
