"""Prompts that hold exactly the placeholders which a count of visual tokens needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from outlay.errors import CapabilityError, InputError
from outlay.vision.tokenflex.grids import Count, Grid, grid_of
from outlay.vision.tokenflex.models import need_flexible, tiled_tokens
from outlay.vision.tokenflex.places import Side, placed, resized
from outlay.vision.tokenflex.projector import Request, asking

MAX_IMAGES = 4096


def images_of(inputs: Mapping[str, Any]) -> int:
    """Images of a batch.

    Raises:
        InputError: without pictures, or for too many.
    """
    pixels = inputs.get("pixel_values")
    if pixels is None or not len(pixels):
        raise InputError("the inputs have no pixel_values; TokenFlex needs images")
    sizes = inputs.get("image_sizes")
    count = len(pixels) if sizes is None else len(sizes)
    if count > MAX_IMAGES:
        raise InputError(f"{count} images in a batch; at most {MAX_IMAGES}")
    return count


def grids_for(model: Any, counts: Count | Sequence[Count], images: int) -> list[Grid]:
    """The grid of every image.

    Args:
        model: that makes the features.
        counts: one for all images, or a list with one each. A tuple is rows and columns.
        images: of the batch.

    Raises:
        InputError: for counts that cannot be, or another number of them.
        CapabilityError: for different counts of tiled images.
    """
    most = need_flexible(model).grid
    if not isinstance(counts, list):
        return [grid_of(counts, most)] * images  # type: ignore[arg-type]
    if len(counts) != images:
        raise InputError(f"{len(counts)} counts for {images} images; give one, or one each")
    grids = [grid_of(count, most) for count in counts]
    if tiled(model) and len(set(grids)) > 1:
        raise CapabilityError(
            "images of several tiles share one count in a batch; run them apart, or train with "
            "draw='batch'"
        )
    return grids


def tiled(model: Any) -> bool:
    """Whether a model cuts images into tiles."""
    return hasattr(model.config, "image_grid_pinpoints")


def lengths_of(model: Any, grids: Sequence[Grid], sizes: Any) -> list[int]:
    """Features of every image.

    Args:
        model: that makes the features.
        grids: of every image (of each of its tiles).
        sizes: `image_sizes`, for a model with tiles.

    Raises:
        InputError: if a model with tiles gets no sizes.
    """
    if not tiled(model):
        return [grid.count for grid in grids]
    if sizes is None:
        raise InputError("images of several tiles need image_sizes; pass what the processor gave")
    pairs = [tuple(map(int, size)) for size in sizes]
    return [
        tiled_tokens(model.config, (pair[0], pair[1]), grid)
        for pair, grid in zip(pairs, grids, strict=True)
    ]


def prepare(
    model: Any,
    inputs: Mapping[str, Any],
    counts: Count | Sequence[Count],
    *,
    padding: Side = "left",
) -> dict[str, Any]:
    """Inputs with exactly the placeholders that the model will fill at these counts.

    Run them within `using(model, counts)`.

    Args:
        model: with a flexible projector.
        inputs: of the processor; every image has one placeholder, all of the encoder's, or those of
            the native count.
        counts: visual tokens of every image (of each of its tiles); a list has one each.
        padding: side on which rows are filled up; generation needs "left".

    Raises:
        CapabilityError: for a model without a flexible projector.
        InputError: for counts that cannot be, inputs without ids or pictures, or placeholders that
            do not fit the images.
    """
    projector = need_flexible(model)
    if inputs.get("input_ids") is None:
        raise InputError("the inputs have no input_ids; give the prompt with its placeholders")
    if padding not in ("left", "right"):
        raise InputError(f"padding={padding!r}; use 'left' or 'right'")
    images, sizes = images_of(inputs), inputs.get("image_sizes")
    grids = grids_for(model, counts, images)
    wanted = lengths_of(model, grids, sizes)
    known = (projector.grid, projector.native)
    full, native = (lengths_of(model, [grid] * images, sizes) for grid in known)
    guesses = ([1] * images, full, native, wanted)
    image_BT = inputs["input_ids"] == model.config.image_token_id
    starts = placed(image_BT, images, guesses)
    pad = model.config.get_text_config().pad_token_id
    return resized(inputs, starts, wanted, pad=0 if pad is None else pad, padding=padding)


@contextmanager
def using(model: Any, counts: Count | Sequence[Count]) -> Iterator[Request]:
    """A context in which a model's images have these counts of visual tokens.

    Args:
        model: with a flexible projector.
        counts: of every image (of each of its tiles); a list has one each.

    Raises:
        CapabilityError: for a model without a flexible projector.
        InputError: for counts that cannot be.
    """
    projector = need_flexible(model)
    grids = grids_for(model, counts, len(counts) if isinstance(counts, list) else 1)
    if len(set(grids)) == 1:
        grids = grids[:1]
    with asking(projector, grids) as request:
        yield request
