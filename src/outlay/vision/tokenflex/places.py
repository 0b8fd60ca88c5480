"""Where a prompt's images are, and prompts in which they have another number of placeholders.

Every tensor that runs along the prompt (ids, mask, labels, token types) is rebuilt alike: an
image's placeholders become as many as its features are, text stays.

Shapes: B rows, T tokens before, S tokens after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from outlay.errors import InputError

Side = Literal["left", "right"]
_FILL = {"labels": -100}


def placed(
    image_BT: Tensor, images: int, guesses: Sequence[Sequence[int]]
) -> list[list[tuple[int, int]]]:
    """Of every row, where its images begin and how many placeholders they have.

    Args:
        image_BT: True at placeholders.
        images: of the batch, in row-major order.
        guesses: how many placeholders each image may have; the first that fits is taken.

    Raises:
        InputError: if none fits.
    """
    total = int(image_BT.sum())
    rows = [row.nonzero()[:, 0].tolist() for row in image_BT.cpu()]
    for guess in guesses:
        if sum(guess) != total or len(guess) != images:
            continue
        waiting, found = list(guess), []
        for places in rows:
            start, row = 0, []
            while start < len(places) and waiting and start + waiting[0] <= len(places):
                size = waiting.pop(0)
                if places[start + size - 1] - places[start] != size - 1:
                    break  # an image's placeholders are side by side
                row.append((places[start], size))
                start += size
            if start < len(places):
                break
            found.append(row)
        if len(found) == len(rows) and not waiting:
            return found
    wanted = " or ".join(sorted({str(guess[0]) for guess in guesses if guess}))
    raise InputError(
        f"{total} placeholders for {images} images, by row {[len(row) for row in rows]}; every "
        f"image needs {wanted} of them, side by side"
    )


def resized(
    inputs: Mapping[str, Any],
    starts: Sequence[Sequence[tuple[int, int]]],
    lengths: Sequence[int],
    *,
    pad: int,
    padding: Side,
) -> dict[str, Any]:
    """Inputs in which image i has `lengths[i]` placeholders.

    Args:
        inputs: of a model; what does not run along the prompt is passed on.
        starts: of every row, first place and number of placeholders of its images.
        lengths: wanted, of all images in row-major order.
        pad: token that fills rows up.
        padding: side of rows that is filled up.

    Raises:
        InputError: if a padding token hides between real ones.
    """
    ids_BT = inputs["input_ids"]
    mask_BT = inputs.get("attention_mask")
    valid_BT = torch.ones_like(ids_BT, dtype=torch.bool) if mask_BT is None else mask_BT.bool()
    waiting, sources = list(lengths), []
    for row, places in enumerate(starts):
        real = valid_BT[row].nonzero()[:, 0].tolist()
        if real and real[-1] - real[0] != len(real) - 1:
            raise InputError(f"row {row} has padding between its tokens; pad on one side")
        source, at = [], real[0] if real else 0
        for start, size in places:
            source += [*range(at, start), *[start] * waiting.pop(0)]
            at = start + size
        sources.append(source + list(range(at, real[-1] + 1 if real else 0)))
    width = max(len(source) for source in sources)
    from_BS = torch.zeros(len(sources), width, dtype=torch.long)
    real_BS = torch.zeros(len(sources), width, dtype=torch.bool)
    for row, source in enumerate(sources):
        part = slice(width - len(source), None) if padding == "left" else slice(len(source))
        from_BS[row, part] = torch.tensor(source, dtype=torch.long)
        real_BS[row, part] = True
    from_BS, real_BS = from_BS.to(ids_BT.device), real_BS.to(ids_BT.device)
    made: dict[str, Any] = {}
    for name, value in inputs.items():
        if name == "position_ids":
            continue  # counted anew by the model
        if isinstance(value, Tensor) and value.shape == ids_BT.shape:
            fill = pad if name == "input_ids" else _FILL.get(name, 0)
            value = value.gather(1, from_BS).masked_fill(~real_BS, fill)
        made[name] = value
    made["attention_mask"] = real_BS.to(ids_BT.dtype if mask_BT is None else mask_BT.dtype)
    return made
