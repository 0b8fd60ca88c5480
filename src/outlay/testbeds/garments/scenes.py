"""Garments and digits pasted at random on textured canvases: most of a picture is background.

A canvas is made of 8-pixel blocks of random dark colours with noise. One object, a Fashion-MNIST
garment or a scikit-learn digit, is blended over it in one of six colours, its grey values as
opacity. The label is what the object is. Every scene is a pure function of the world and of its
index, whatever the batch and the global random state. Source images are split, so that no test
scene shows an object that training has seen.

Shapes: B scenes, C channels, H and W pixels, N patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch

from outlay.errors import DependencyError, InputError
from outlay.testbeds import fashion
from outlay.testbeds.fashion import Split

CLASSES = (*fashion.GARMENTS, *(f"digit {value}" for value in range(10)))
COLOURS = (
    (230, 60, 60),
    (70, 200, 90),
    (80, 120, 250),
    (235, 215, 70),
    (210, 90, 220),
    (80, 215, 220),
)
BLOCK, DARKEST = 8, 70
NOISE = 13  # uniform in +-13: a standard deviation of 8
OPAQUE = 26  # grey values from which a pixel counts as object: a tenth
MOST, SMALLEST, LARGEST = 100_000, 16, 512
_TRAINED_DIGITS = 0.75


@dataclass(frozen=True)
class World:
    """Which scenes there are.

    Args:
        side: of the square canvas in pixels, a multiple of 8.
        sizes: of the object in pixels; drawn with equal chance.
        digits: share of scenes that show a digit instead of a garment.
        split: source images of "train" or "test".
        seed: of everything that is drawn.

    Raises:
        InputError: for values out of range, or an object larger than the canvas.
    """

    side: int = 64
    sizes: tuple[int, ...] = (28,)
    digits: float = 0.0
    split: Split = "test"
    seed: int = 0

    def __post_init__(self) -> None:
        if not SMALLEST <= self.side <= LARGEST or self.side % BLOCK:
            raise InputError(
                f"side={self.side}; need a multiple of {BLOCK} from {SMALLEST} to {LARGEST}"
            )
        if not self.sizes or not all(8 <= size <= self.side for size in self.sizes):
            raise InputError(f"sizes={self.sizes}; need sizes from 8 to side={self.side} pixels")
        if not 0 <= self.digits <= 1:
            raise InputError(f"digits={self.digits}; must lie in [0, 1]")
        if self.split not in get_args(Split):
            raise InputError(f"split={self.split!r}; choose one of {get_args(Split)}")
        if self.seed < 0:
            raise InputError(f"seed={self.seed}; must be at least 0")


@dataclass(frozen=True)
class Scenes:
    """Some scenes of a world.

    Args:
        pixels_BCHW: uint8.
        labels_B: positions in `CLASSES`.
        object_BHW: True where the object covers the canvas.
    """

    pixels_BCHW: torch.Tensor
    labels_B: torch.Tensor
    object_BHW: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels_B)

    def tensor(self) -> torch.Tensor:
        """Pixels as the models read them: (B, 3, H, W) in [-1, 1]."""
        return self.pixels_BCHW.float() / 127.5 - 1

    def covered(self, patch: int) -> torch.Tensor:
        """Share of every patch that the object covers, (B, N), patches row by row."""
        share_BHW = self.object_BHW[:, None].float()
        return torch.nn.functional.avg_pool2d(share_BHW, patch).flatten(1)


def scenes(world: World, count: int, start: int = 0) -> Scenes:
    """Scenes `start` to `start + count` of a world.

    Raises:
        InputError: for a count or start out of range.
        DependencyError: where Fashion-MNIST or scikit-learn is missing.
    """
    if not 1 <= count <= MOST:
        raise InputError(f"count={count}; need 1 to {MOST} scenes at once")
    if start < 0:
        raise InputError(f"start={start}; must be at least 0")
    drawn = [_draw(world, index) for index in range(start, start + count)]
    grey_BHW = np.zeros((count, world.side, world.side), np.float32)
    for size in sorted({size for _, size, *_ in drawn}):
        rows = [row for row, item in enumerate(drawn) if item[1] == size]
        resized = _resize(np.stack([drawn[row][0] for row in rows]), size)
        for row, image in zip(rows, resized, strict=True):
            top, left = drawn[row][2]
            grey_BHW[row, top : top + size, left : left + size] = image
    ground_BHWC = np.stack([item[3] for item in drawn])
    colour_BC = np.array([item[4] for item in drawn], np.float32)
    opacity_BHW1 = grey_BHW[..., None] / 255
    mixed_BHWC = ground_BHWC * (1 - opacity_BHW1) + colour_BC[:, None, None] * opacity_BHW1
    pixels = torch.from_numpy(np.clip(mixed_BHWC + 0.5, 0, 255).astype(np.uint8))
    return Scenes(
        pixels.permute(0, 3, 1, 2).contiguous(),
        torch.tensor([item[5] for item in drawn]),
        torch.from_numpy(grey_BHW >= OPAQUE),
    )


def _draw(world: World, index: int) -> tuple[Any, int, tuple[int, int], Any, Any, int]:
    """Everything that one scene needs: image, size, place, ground, colour, label."""
    rng = np.random.default_rng((world.seed, world.split == "test", index))
    digit = bool(rng.random() < world.digits)
    images, labels = _digits(world.split) if digit else _garments(world.split)
    size = int(world.sizes[rng.integers(len(world.sizes))])
    place = (int(rng.integers(world.side - size + 1)), int(rng.integers(world.side - size + 1)))
    colour = COLOURS[rng.integers(len(COLOURS))]
    cells = world.side // BLOCK
    blocks = rng.integers(0, DARKEST + 1, (cells, cells, 3)).astype(np.float32)
    ground = blocks.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)
    ground += rng.integers(-NOISE, NOISE + 1, ground.shape, np.int8)
    turn, position = divmod(index, len(images))
    source = _order(len(images), world.seed, turn)[position]
    return images[source], size, place, ground, colour, int(labels[source]) + 10 * digit


@cache
def _order(count: int, seed: int, turn: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((seed, count, turn)).permutation(count)


def _garments(split: Split) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
    return fashion.images(split)


@cache
def _digits(split: Split) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DependencyError("digits need scikit-learn: pip install 'outlay[vision]'") from error
    found: Any = load_digits()
    images = _resize(np.clip(found.images * 16, 0, 255), fashion.SIDE).astype(np.uint8)
    cut = int(len(images) * _TRAINED_DIGITS)
    part = slice(0, cut) if split == "train" else slice(cut, None)
    return images[part], found.target[part]


def _resize(images_BHW: npt.NDArray[Any], size: int) -> npt.NDArray[np.float32]:
    """Square images in another size, bilinear; the same where the size is theirs."""
    grey = torch.from_numpy(images_BHW.astype(np.float32))
    if images_BHW.shape[-1] != size:
        grey = torch.nn.functional.interpolate(
            grey[:, None], (size, size), mode="bilinear", align_corners=False
        )[:, 0]
    return grey.numpy()
