"""Row, column and image of every visual token, read from what the decoder is given.

No processor is asked. Positions in three dimensions say it themselves (Qwen2-VL and its kin);
embeddings equal to the model's newline mark the rows of a mosaic (LLaVA-NeXT, OneVision); other
images are squares of patches, and those that cannot be are taken as one line.

B rows, T prompt tokens, N visual tokens of a row, K of one image.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from outlay.vision.base import Picture, Seen
from outlay.vision.parts import Parts

OVERVIEW = 0.5  # added to the image number of the mosaic that follows an image's overview


def places(seen: Seen, parts: Parts, position_ids: Tensor | None = None) -> Tensor:
    """(B, T, 3): row, column and image of visual tokens, zero elsewhere.

    Args:
        seen: the prompt.
        parts: of the model.
        position_ids: as the decoder gets them; None if it makes its own.
    """
    device, length = seen.visual_BT.device, seen.visual_BT.shape[1]
    number: dict[int, int] = {}
    made, flat = [], []
    for picture in seen.pictures:
        image = number.get(picture.row, 0)
        if position_ids is not None and position_ids.ndim == 3:
            at_K3 = _from_positions(position_ids, picture)
        else:
            at_K3 = _from_features(seen, picture, parts)
        at_K3[:, 2] += image
        number[picture.row] = int(at_K3[:, 2].max()) + 1
        made.append(at_K3)
        flat.append(picture.row * length + picture.host_K)
    found_BT3 = torch.zeros(*seen.visual_BT.shape, 3, device=device)
    found_BT3.view(-1, 3)[torch.cat(flat).to(device)] = torch.cat(made).to(device)
    return found_BT3


def _from_positions(position_ids_XBT: Tensor, picture: Picture) -> Tensor:
    """Frame, row and column are the last three of the position axes."""
    rows = min(picture.row, position_ids_XBT.shape[1] - 1)
    frame_K, row_K, column_K = position_ids_XBT[-3:, rows, picture.at_K].float()
    frames = frame_K.unique(return_inverse=True)[1].float()  # seconds, perhaps: number them
    return torch.stack([row_K - row_K.min(), column_K - column_K.min(), frames], dim=-1)


def _from_features(seen: Seen, picture: Picture, parts: Parts) -> Tensor:
    count = len(picture.at_K)
    newline = getattr(parts.inner, "image_newline", None)
    if newline is None:
        return square(count)
    features_KD = seen.features(picture)
    ends = (features_KD == newline.detach().to(features_KD)).all(-1).nonzero()[:, 0].tolist()
    return tiled(count, ends, _tile(parts))


def _tile(parts: Parts) -> int:
    """Patches along the side of one tile."""
    vision: Any = parts.outer.config.vision_config
    return int(vision.image_size // vision.patch_size)


def square(count: int, frame: float = 0.0) -> Tensor:
    """(K, 3) of a square of patches in raster order, or of one line where K is no square."""
    side = math.isqrt(count)
    wide = side if side * side == count else count
    index = torch.arange(count, dtype=torch.float32)
    return torch.stack([index // wide, index % wide, torch.full_like(index, frame)], dim=-1)


def tiled(count: int, ends: list[int], side: int) -> Tensor:
    """(K, 3) of an overview followed by a mosaic whose rows end in newlines, or of frames that
    share one newline.

    Args:
        count: tokens of the image, newlines included.
        ends: places of the newlines.
        side: patches along the side of a tile.
    """
    if not ends:
        return square(count)
    first, base = ends[0], side * side
    if len(ends) < 2 or first <= base or count - base != len(ends) * (first - base + 1):
        pooled = math.ceil(side / 2) ** 2  # frames of a video are pooled two by two
        plain = count - len(ends)
        each = base if plain % base == 0 else pooled if plain % pooled == 0 else plain
        tiles = [square(each, frame) for frame in range(plain // each)]
        at_K3 = torch.cat(tiles) if tiles else square(0)
        last = at_K3[-1:] + torch.tensor([0.0, 1.0, 0.0]) if len(at_K3) else square(1)
        return torch.cat([at_K3, last.expand(len(ends), -1)])
    wide = first - base + 1  # a mosaic's row with its newline
    index = torch.arange(count - base, dtype=torch.float32)
    mosaic = torch.stack([index // wide, index % wide, torch.full_like(index, OVERVIEW)], dim=-1)
    # The overview shows the same picture, in fewer patches.
    scale = torch.tensor([len(ends) / side, (wide - 1) / side, 1.0])
    return torch.cat([square(base) * scale, mosaic])
