"""The source pictures of scenes, as opacities: garments, handwritten digits, words of two letters.

Garments are Fashion-MNIST (`testbeds/fashion.py`); digits come with scikit-learn, 8 x 8 with 17
levels, doubled to 16 x 16; words are drawn by Pillow. A split never shows the pictures (or the
words) of the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from outlay.errors import DependencyError, InputError
from outlay.testbeds import fashion
from outlay.testbeds.fashion import Split

GARMENT, DIGIT, WORD = range(3)
TRAIN_SHARE = 0.75
"""Of the digits, by their order in the file, and of the words."""
DIGITS_IN_ALL = 1797
WORD_SIZE = (16, 24)
FONT_SIZE = 13


@dataclass(frozen=True)
class Shapes:
    """The pictures of one split.

    Args:
        split: whose pictures.
    """

    split: Split

    def names(self, kind: int) -> np.ndarray:
        """(N,) label of every picture of a kind; a word is 26 x first letter + second letter."""
        return _pictures(kind, self.split)[1]

    def alpha(self, kind: int, picked: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """(N, height, width) opacities in [0, 1] of chosen pictures, scaled to `size`."""
        alpha = _pictures(kind, self.split)[0][picked].astype(np.float32) / 255
        if alpha.shape[1:] == size:
            return alpha
        rows = _bilinear(alpha.shape[1], size[0])
        columns = _bilinear(alpha.shape[2], size[1])
        return np.asarray(rows @ alpha @ columns.T)


def shapes(split: Split) -> Shapes:
    """The source pictures of a split.

    Raises:
        DependencyError: without Fashion-MNIST or scikit-learn.
    """
    for kind in (GARMENT, DIGIT):
        _pictures(kind, split)
    return Shapes(split)


@lru_cache(maxsize=8)
def _bilinear(before: int, after: int) -> np.ndarray:
    """(after, before) weights of linear interpolation between pixel centres."""
    centres = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    left = np.minimum(centres.astype(np.int64), before - 2)
    part = (centres - left).astype(np.float32)
    weights = np.zeros((after, before), np.float32)
    weights[np.arange(after), left] = 1 - part
    weights[np.arange(after), left + 1] += part
    return weights


@lru_cache(maxsize=6)
def _pictures(kind: int, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Opacities (N, height, width) uint8 and labels (N,)."""
    if kind == GARMENT:
        return fashion.images(split)
    pictures, labels = _digits() if kind == DIGIT else _words()
    edge = int(TRAIN_SHARE * len(pictures))
    part = slice(None, edge) if split == "train" else slice(edge, None)
    return pictures[part], labels[part]


def _digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DependencyError(
            "scenes need scikit-learn's digits: pip install 'outlay[eval]'"
        ) from error
    found = load_digits()
    levels = np.clip(found.images * (255 / 16), 0, 255).astype(np.uint8)
    return levels.repeat(2, 1).repeat(2, 2), found.target.astype(np.int64)


def _words() -> tuple[np.ndarray, np.ndarray]:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise DependencyError("words=True needs Pillow: pip install 'outlay[vision]'") from error
    font = ImageFont.load_default(FONT_SIZE)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise InputError("words=True needs a Pillow with FreeType; set words=False")
    labels = np.random.default_rng(0).permutation(26 * 26)
    pictures = np.zeros((len(labels), *WORD_SIZE), np.uint8)
    height, width = WORD_SIZE
    for index, label in enumerate(labels):
        text = chr(97 + label // 26) + chr(97 + label % 26)
        picture = Image.new("L", (width, height))
        draw = ImageDraw.Draw(picture)
        for shift in (-0.5, 0.5):  # bold: drawn twice
            draw.text((width / 2 + shift, height / 2), text, fill=255, font=font, anchor="mm")
        pictures[index] = np.asarray(picture)
    return pictures, labels
