"""Where an image's tokens come from: which partition, which patch, which row of the mosaic.

An any-resolution model sees a thumbnail (partition 0) and R x C tiles (partitions 1..k, row by row)
of the image, fitted into a canvas and padded. Its prompt holds the thumbnail in raster order, then
the mosaic of all tiles in raster order, without the rows and columns that are only padding, a
newline after every row. The model's own `unpad_image` is run on indices here, so that both cannot
disagree. LLaVA-OneVision shrinks a large mosaic; then a token belongs to the tile that its centre
lies in.

K tokens of an image, P partitions, g x g = N patches of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outlay.errors import CapabilityError, InputError

MAX_SIDE = 2**20
"""Longest side of an image, in pixels."""
MAX_PARTITIONS = 1024
SHRINK = 1.1
"""LLaVA-OneVision shrinks a mosaic whose sides exceed its limit by more than this."""


@dataclass(frozen=True)
class Layout:
    """The tokens of one image.

    Args:
        grid: g, patches along the side of a partition.
        rows, columns: of tiles; 0 and 0 where the image is one partition.
        size: height and width of the image in pixels; that of a partition for one partition.
        canvas: height and width in pixels that tiles are cut from.
        place_K: patch of each token, p * N + j; -1 for newlines and for tokens of a shrunk mosaic.
        partition_K: of each token; -1 for newlines.
        line_K: row of the mosaic of each token, its newline's too; -1 in the thumbnail.
        newline_K: True at newlines.
        mosaic: rows and columns of patches of the mosaic as the prompt holds it.
        shrunk: whether the mosaic was shrunk.
    """

    grid: int
    rows: int
    columns: int
    size: tuple[int, int]
    canvas: tuple[int, int]
    place_K: np.ndarray
    partition_K: np.ndarray
    line_K: np.ndarray
    newline_K: np.ndarray
    mosaic: tuple[int, int]
    shrunk: bool

    def __post_init__(self) -> None:
        for array in (self.place_K, self.partition_K, self.line_K, self.newline_K):
            array.setflags(write=False)  # layouts are shared

    @property
    def tiles(self) -> int:
        """k."""
        return self.rows * self.columns

    @property
    def patches(self) -> int:
        """N."""
        return self.grid**2

    @property
    def tokens(self) -> int:
        """Of the image in a prompt, newlines included."""
        return len(self.partition_K)

    @property
    def newlines(self) -> int:
        """Newlines among them."""
        return int(self.newline_K.sum())

    @property
    def padded(self) -> int:
        """(k + 1) N: patches before padding is removed; what the paper's rate is a share of."""
        return (self.tiles + 1) * self.patches

    def counts(self) -> np.ndarray:
        """(P,): tokens that each partition has in the prompt."""
        at = self.partition_K[~self.newline_K]
        return np.bincount(at, minlength=self.tiles + 1)

    def spread(self, scores_PN: Tensor) -> Tensor:
        """(K,): scores of patches as scores of tokens; -inf at newlines.

        A shrunk mosaic's scores are shrunk as its features are.
        """
        flat = scores_PN.flatten()
        place_K = torch.tensor(self.place_K).to(flat.device)
        scores_K = flat[place_K.clamp_min(0)]
        if self.shrunk:
            tiles = scores_PN[1:].unflatten(0, (self.rows, self.columns))
            whole = _mosaic(tiles.unflatten(-1, (self.grid, self.grid)), self.size)
            small = torch.nn.functional.interpolate(whole[None], self.mosaic, mode="bilinear")
            in_mosaic = (self.line_K >= 0) & ~self.newline_K
            scores_K[torch.tensor(in_mosaic).to(flat.device)] = small.flatten()
        newline_K = torch.tensor(self.newline_K).to(flat.device)
        return scores_K.masked_fill(newline_K, float("-inf"))

    def mask(self, keep_K: np.ndarray) -> np.ndarray:
        """(P, g, g): which patches the kept tokens are; of a shrunk mosaic, which patches lie under
        one."""
        flat = np.zeros(self.padded, bool)
        flat[self.place_K[keep_K & (self.place_K >= 0)]] = True
        if self.shrunk:
            token_hw = keep_K[(self.line_K >= 0) & ~self.newline_K].reshape(self.mosaic)
            at_HW = _mosaic_index(self.rows, self.columns, self.grid, self.size)
            rows, columns = (
                (np.arange(full) * small) // full
                for full, small in zip(at_HW.shape, self.mosaic, strict=True)
            )
            shown = at_HW[token_hw[rows][:, columns]]
            flat[shown] = True
        return flat.reshape(self.tiles + 1, self.grid, self.grid)


def single(grid: int, newline: bool = False) -> Layout:
    """One partition, as LLaVA has it.

    Args:
        grid: patches along its side.
        newline: whether one newline follows.
    """
    patches = grid * grid
    place = np.arange(patches)
    more = int(newline)
    return Layout(
        grid=grid,
        rows=0,
        columns=0,
        size=(grid, grid),
        canvas=(grid, grid),
        place_K=np.concatenate([place, np.full(more, -1)]),
        partition_K=np.concatenate([np.zeros(patches, np.int64), np.full(more, -1)]),
        line_K=np.full(patches + more, 0 if newline else -1),
        newline_K=np.arange(patches + more) >= patches,
        mosaic=(0, 0),
        shrunk=False,
    )


def tiled(
    size: Sequence[int],
    pinpoints: Sequence[Sequence[int]],
    side: int,
    grid: int,
    most: int | None = None,
) -> Layout:
    """Thumbnail and tiles, as LLaVA-NeXT and LLaVA-OneVision have them.

    Args:
        size: height and width of the image in pixels.
        pinpoints: resolutions (height, width) that the model knows.
        side: pixels along the side of a tile.
        grid: patches along it.
        most: tiles beyond which the mosaic is shrunk (LLaVA-OneVision's `anyres_max_9`).

    Raises:
        InputError: for sizes that are not positive whole numbers, or too large.
    """
    height, width = (int(n) for n in size)
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise InputError(
            f"image_sizes holds {height} x {width}; need sides from 1 to {MAX_SIDE} pixels"
        )
    return _tiled((height, width), tuple((int(h), int(w)) for h, w in pinpoints), side, grid, most)


@lru_cache(maxsize=256)
def _tiled(
    size: tuple[int, int],
    pinpoints: tuple[tuple[int, int], ...],
    side: int,
    grid: int,
    most: int | None,
) -> Layout:
    from transformers.image_processing_utils import select_best_resolution

    canvas = select_best_resolution(size, list(pinpoints))
    if canvas is None:
        raise CapabilityError("the model's image_grid_pinpoints are empty; it knows no resolution")
    rows, columns = canvas[0] // side, canvas[1] // side
    if rows * columns < 1 or rows * columns >= MAX_PARTITIONS:
        raise InputError(
            f"an image of {size[0]} x {size[1]} makes {rows} x {columns} tiles; need 1 to "
            f"{MAX_PARTITIONS - 1}"
        )
    at_HW = _mosaic_index(rows, columns, grid, size)
    patches = grid * grid
    mosaic, shrunk = at_HW.shape, False
    tile_HW = at_HW // patches
    if most is not None:
        ratio = math.sqrt(mosaic[0] * mosaic[1] / (most * patches))
        if ratio > SHRINK:
            shrunk = True
            small = (int(mosaic[0] // ratio), int(mosaic[1] // ratio))
            lines, places = (
                ((np.arange(n) + 0.5) * full / n).astype(np.int64)
                for n, full in zip(small, mosaic, strict=True)
            )
            tile_HW, mosaic = tile_HW[lines][:, places], small
    place_HW = np.full(mosaic, -1) if shrunk else at_HW
    height, width = mosaic

    def lined(values_HW: np.ndarray, newline: int, first: np.ndarray) -> np.ndarray:
        body = np.concatenate([values_HW, np.full((height, 1), newline)], axis=1)
        return np.concatenate([first, body.ravel()])

    line_HW = np.broadcast_to(np.arange(height)[:, None], mosaic)
    line_K = np.concatenate([np.full(patches, -1), np.repeat(np.arange(height), width + 1)])
    return Layout(
        grid=grid,
        rows=rows,
        columns=columns,
        size=size,
        canvas=(int(canvas[0]), int(canvas[1])),
        place_K=lined(place_HW, -1, np.arange(patches)),
        partition_K=lined(tile_HW, -1, np.zeros(patches, np.int64)),
        line_K=line_K,
        newline_K=lined(np.zeros_like(line_HW), 1, np.zeros(patches, np.int64)).astype(bool),
        mosaic=(height, width),
        shrunk=shrunk,
    )


def _mosaic(tiles_RCgg: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, H, W): tiles side by side, padding removed by the model's own rule."""
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    whole = tiles_RCgg.permute(0, 2, 1, 3).flatten(0, 1).flatten(1, 2)
    unpadded: Tensor = unpad_image(whole[None], size)
    return unpadded


def _mosaic_index(rows: int, columns: int, grid: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W): p * N + j of every patch that is left in the mosaic."""
    tiles = torch.arange(rows * columns * grid * grid) + grid * grid
    found = _mosaic(tiles.view(rows, columns, grid, grid), size)[0]
    return np.asarray(found.numpy())


def layouts_of(
    model: Any,
    pixels: Sequence[int],
    image_sizes: Any = None,
    images_of_prompts: Sequence[int] | None = None,
) -> list[Layout]:
    """Layouts of what a model is given.

    Args:
        model: the module that merges features (`model.model`).
        pixels: shape of `pixel_values`.
        image_sizes: (images, 2) heights and widths; None for a model without tiles.
        images_of_prompts: LLaVA-OneVision's `batch_num_images`: it leaves several images of one
            prompt whole. None cuts every image into tiles.

    Raises:
        CapabilityError: for a tower that is no square of patches, or sizes where none are used.
        InputError: if sizes and pixels do not fit.
    """
    config = model.config
    vision = getattr(config, "vision_config", None)
    side, patch = (getattr(vision, name, None) for name in ("image_size", "patch_size"))
    if not isinstance(side, int) or not isinstance(patch, int):
        raise CapabilityError(
            f"{type(model).__name__}'s tower does not say its image_size and patch_size; HiRED "
            "needs a tower of square partitions, such as CLIP or SigLIP"
        )
    grid = side // patch
    pinpoints = getattr(config, "image_grid_pinpoints", None)
    if pinpoints is None:
        if image_sizes is not None:
            raise CapabilityError(
                f"{type(model).__name__} encodes images at their own sizes; HiRED needs square "
                "partitions (LLaVA with CLIP, LLaVA-NeXT, LLaVA-OneVision)"
            )
        return [single(grid)] * pixels[0]
    if image_sizes is None:
        raise InputError("image_sizes is missing; pass what the processor gave with pixel_values")
    sizes = torch.as_tensor(image_sizes).tolist()
    alone = [True] * len(sizes)
    if images_of_prompts is not None:
        alone = [n == 1 for n in map(int, images_of_prompts) for _ in range(n)]
        if len(alone) != len(sizes):
            raise InputError(
                f"batch_num_images speaks of {len(alone)} images and image_sizes of {len(sizes)}"
            )
    aspect = getattr(config, "vision_aspect_ratio", None)
    most = int(aspect.removeprefix("anyres_max_")) if isinstance(aspect, str) else None
    found = [
        tiled(size, pinpoints, side, grid, most) if flag else single(grid, newline=True)
        for size, flag in zip(sizes, alone, strict=True)
    ]
    _check_pixels([layout.tiles + 1 for layout in found], pixels)
    return found


def _check_pixels(wanted: Sequence[int], pixels: Sequence[int]) -> None:
    """Raise `InputError` unless pixels hold as many partitions as the sizes need."""
    padded = len(pixels) == 5  # (images, partitions, 3, side, side), short ones padded
    fits = (
        (pixels[0], pixels[1]) == (len(wanted), max(wanted))
        if padded
        else (pixels[0] == sum(wanted))
    )
    if not fits:
        raise InputError(
            f"image_sizes needs {list(wanted)} partitions an image, and pixel_values is of shape "
            f"{tuple(pixels)}; pass pixel_values and image_sizes of the same images"
        )
