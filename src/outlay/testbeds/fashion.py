"""Fashion-MNIST, read from the files of Debian's package `dataset-fashion-mnist`.

Ten kinds of garments, 28 x 28 pixels, 60000 to train and 10000 to test (Xiao, Rasul, Vollgraf,
arXiv 1708.07747; MIT). The files are in the IDX format: a magic number that holds the type of the
elements and the number of axes, the length of every axis, then the elements.
"""

from __future__ import annotations

import gzip
import math
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from outlay.errors import DependencyError, InputError

Split = Literal["train", "test"]

FOLDER = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = "dataset-fashion-mnist"
GARMENTS = (
    "tshirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
)
"""Names of the ten labels, in their order, one word each."""
SIDE = 28
_STEMS = {"train": "train", "test": "t10k"}
_MAX_BYTES = 60_000 * SIDE * SIDE + 16


def installed() -> bool:
    """Whether the four files are there."""
    return all(
        _path(stem, what).is_file() for stem in _STEMS.values() for what in ("images", "labels")
    )


def images(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """The pictures of one split, (N, 28, 28) uint8, and their labels, (N,) int64.

    Read once per process; the arrays cannot be written to.

    Args:
        split: `train` (60000) or `test` (10000).

    Raises:
        DependencyError: if the Debian package is not installed.
        InputError: for another split, or a file that is no IDX file of the expected shape.
    """
    if split not in _STEMS:
        raise InputError(f"split={split!r}; must be one of {sorted(_STEMS)}")
    return _read_split(split)


@lru_cache(maxsize=2)
def _read_split(split: Split) -> tuple[np.ndarray, np.ndarray]:
    pictures = read_idx(_path(_STEMS[split], "images"))
    labels = read_idx(_path(_STEMS[split], "labels"))
    if pictures.shape[1:] != (SIDE, SIDE) or labels.shape != pictures.shape[:1]:
        raise InputError(
            f"Fashion-MNIST has images of shape {pictures.shape} and labels of shape "
            f"{labels.shape}; install the package {PACKAGE} again"
        )
    labels = labels.astype(np.int64)
    for array in (pictures, labels):
        array.setflags(write=False)
    return pictures, labels


def _path(stem: str, what: str) -> Path:
    axes = 3 if what == "images" else 1
    return FOLDER / f"{stem}-{what}-idx{axes}-ubyte.gz"


def read_idx(path: Path) -> np.ndarray:
    """One gzipped IDX file of unsigned bytes.

    Raises:
        DependencyError: if it does not exist.
        InputError: if it is not such a file, or larger than Fashion-MNIST is.
    """
    if not path.is_file():
        raise DependencyError(
            f"{path} is missing; install Debian's package {PACKAGE} (apt-get install {PACKAGE})"
        )
    try:
        with gzip.open(path) as stream:
            data = stream.read(_MAX_BYTES + 1)
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be unpacked ({error}); install {PACKAGE} again") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise InputError(f"{path} is no IDX file of unsigned bytes; install {PACKAGE} again")
    axes = data[3]
    start = 4 + 4 * axes
    shape = tuple(int(n) for n in np.frombuffer(data[4:start], ">u4"))
    if len(shape) != axes or len(data) - start != math.prod(shape):
        raise InputError(
            f"{path} announces shape {shape} and holds {len(data) - start} bytes; install "
            f"{PACKAGE} again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
