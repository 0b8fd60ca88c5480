"""Scenes: coloured garments and digits on a textured canvas, with the map of what is where.

Every object has a colour of its own among six and its shape from a real picture: a garment of
Fashion-MNIST or a handwritten digit of scikit-learn (Alpaydin and Kaynak, UCI); words of two drawn
letters are optional. Objects do not overlap. Held-out scenes show other source pictures than
training scenes. A batch is made from its own seed by numpy alone and touches no global generator.

Shapes: N scenes, K most objects, H height, W width, gh x gw patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from outlay.errors import InputError
from outlay.testbeds.fashion import GARMENTS, Split
from outlay.testbeds.seer.shapes import DIGIT, GARMENT, WORD, Shapes, shapes

Layout = Literal["scattered", "spread", "clustered"]

COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
RGB = np.array(
    [[255, 60, 60], [60, 230, 60], [90, 110, 255], [245, 230, 60], [240, 70, 240], [60, 235, 235]],
    np.float32,
)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KINDS = ("garment", "digit", "word")
LARGE_SIDE = 44
"""Side of the one large garment of the layouts `spread` and `clustered`."""
WINDOW = 48
"""Side of the square in which the layout `clustered` puts its digits."""
SOLID = 0.25
"""Opacity from which a pixel belongs to an object."""
COVERED = 0.08
"""Share of a patch that an object must cover for the patch to be its own."""
BRIGHTEST = 70
BLOCK = 8
NOISE = 8.0
ATTEMPTS = 40
MAX_SIDE = 512
MAX_SCENES = 100_000
MAX_PIXELS = 2**27
"""Of one batch: its pictures take 0.4 GB, and about 2 GB while they are made."""
_SPLITS: dict[str, int] = {"train": 0, "test": 1}
_SMALL = 16


@dataclass(frozen=True)
class SceneObject:
    """One object.

    Args:
        kind: garment, digit or word.
        name: which garment or digit; the two letters of a word.
        colour: its colour, which no other object of the scene has.
        where: `("top" | "bottom", "left" | "right")`, by its centre.
        box: top, left, height, width in pixels.
    """

    kind: str
    name: str
    colour: str
    where: tuple[str, str]
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes of one size.

    Args:
        images: (N, H, W, 3) uint8.
        map: (N, H, W) uint8; 0 is background, k + 1 is object k.
        counts: (N,) objects that are really there.
        kinds: (N, K) indices into `KINDS`; -1 beyond `counts`, as in all arrays below.
        names: (N, K) garment or digit; a word is 26 x its first letter + its second.
        colours: (N, K) indices into `COLOURS`.
        boxes: (N, K, 4) top, left, height, width.
        patch: side of a patch.
    """

    images: np.ndarray
    map: np.ndarray
    counts: np.ndarray
    kinds: np.ndarray
    names: np.ndarray
    colours: np.ndarray
    boxes: np.ndarray
    patch: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> Scenes:
        """The chosen scenes; takes slices, index lists and masks."""
        if isinstance(index, (int, np.integer)):
            index = slice(int(index), int(index) + 1)
        return replace(self, **{f: getattr(self, f)[index] for f in _ARRAYS})

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[1], self.images.shape[2]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.size[0] // self.patch, self.size[1] // self.patch

    def coverage(self) -> np.ndarray:
        """(N, gh, gw, K) share of every patch that each object covers."""
        n, (gh, gw), p = len(self), self.grid, self.patch
        blocks = self.map.reshape(n, gh, p, gw, p)
        most = self.kinds.shape[1]
        shares = [(blocks == k + 1).mean((2, 4), dtype=np.float32) for k in range(most)]
        return np.stack(shares, -1)

    def patch_labels(self) -> np.ndarray:
        """(N, gh, gw) 0 for background, k + 1 where object k covers most, at least `COVERED`."""
        shares = self.coverage()
        return np.where(shares.max(-1) > COVERED, shares.argmax(-1) + 1, 0)

    def foreground(self) -> np.ndarray:
        """(N, gh * gw) whether a patch belongs to an object, in raster order."""
        return self.patch_labels().reshape(len(self), -1) > 0

    def object_name(self, scene: int, k: int) -> str:
        """Name of an object: a garment, a digit, or two letters."""
        kind, name = int(self.kinds[scene, k]), int(self.names[scene, k])
        if kind == WORD:
            return chr(97 + name // 26) + chr(97 + name % 26)
        return (GARMENTS if kind == GARMENT else DIGITS)[name]

    def where(self, scene: int, k: int) -> tuple[str, str]:
        """Quadrant of an object's centre."""
        top, left, height, width = (int(v) for v in self.boxes[scene, k])
        tall, wide = self.size
        return (
            "top" if 2 * top + height < tall else "bottom",
            "left" if 2 * left + width < wide else "right",
        )

    def objects(self, scene: int) -> tuple[SceneObject, ...]:
        """All objects of one scene."""
        return tuple(
            SceneObject(
                kind=KINDS[self.kinds[scene, k]],
                name=self.object_name(scene, k),
                colour=COLOURS[self.colours[scene, k]],
                where=self.where(scene, k),
                box=(
                    int(self.boxes[scene, k, 0]),
                    int(self.boxes[scene, k, 1]),
                    int(self.boxes[scene, k, 2]),
                    int(self.boxes[scene, k, 3]),
                ),
            )
            for k in range(self.counts[scene])
        )


_ARRAYS = tuple(f.name for f in fields(Scenes) if f.name != "patch")


def scenes(
    n: int,
    *,
    side: int | tuple[int, int] = 64,
    patch: int = 8,
    max_objects: int = 3,
    min_objects: int = 1,
    layout: Layout = "scattered",
    words: bool = False,
    split: Split = "test",
    seed: int | Sequence[int] = 0,
) -> Scenes:
    """Draw `n` scenes.

    An object that finds no room becomes a small digit, and is left out where even that does not
    fit: `counts` holds the number that is there.

    Args:
        n: scenes of the batch.
        side: of the canvas, or (height, width).
        patch: side of a patch; divides the canvas.
        max_objects: most objects of a scene; the number is uniform from `min_objects`.
        min_objects: fewest objects.
        layout: `scattered`: garments and digits anywhere; `spread`: one large garment and small
            digits anywhere; `clustered`: the same with all digits within a square of 48 pixels.
        words: whether a third of the objects of `scattered` are words of two letters.
        split: which source pictures to show.
        seed: of this batch; a tuple gives a stream of batches, as (seed, step).

    Raises:
        InputError: for numbers out of range, or a canvas that the patch does not divide.
        DependencyError: without Fashion-MNIST or scikit-learn.
    """
    height, width = (side, side) if isinstance(side, int) else side
    check_canvas(height, width, patch)
    room = (height // _SMALL) * (width // _SMALL)
    _check(n, height, width, min_objects, max_objects, room)
    if layout not in ("scattered", "spread", "clustered"):
        raise InputError(f"layout={layout!r}; must be scattered, spread or clustered")
    if layout != "scattered" and min(height, width) < WINDOW:
        raise InputError(f"layout={layout!r} needs a canvas of at least {WINDOW} pixels a side")
    if words and layout != "scattered":
        raise InputError("words=True needs layout='scattered'")
    if split not in _SPLITS:
        raise InputError(f"split={split!r}; must be one of {sorted(_SPLITS)}")
    rng = generator(seed, split)
    bank = shapes(split)
    counts = rng.integers(min_objects, max_objects + 1, n)
    kinds, sizes = _draw_kinds(rng, counts, max_objects, layout, words)
    boxes = _place(rng, kinds, sizes, counts, height, width, layout)
    there = boxes[..., 2] > 0
    order = np.argsort(~there, axis=1, kind="stable")
    kinds = np.take_along_axis(kinds, order, 1)
    boxes = np.take_along_axis(boxes, order[..., None], 1)
    counts = there.sum(1)
    colours = rng.permuted(np.broadcast_to(np.arange(len(COLOURS)), (n, len(COLOURS))), axis=1)
    images = background(rng, n, height, width)
    picked, names = pick(rng, bank, kinds)
    gone = np.arange(max_objects) >= counts[:, None]
    for array in (kinds, names):
        array[gone] = -1
    boxes[gone] = -1
    colours = np.where(gone, -1, colours[:, :max_objects])
    where = np.zeros((n, height, width), np.uint8)
    for k in range(max_objects):
        paste(images, where, bank, kinds[:, k], picked[:, k], colours[:, k], boxes[:, k], k)
    return Scenes(
        images=np.clip(np.rint(images), 0, 255).astype(np.uint8),
        map=where,
        counts=counts,
        kinds=kinds,
        names=names,
        colours=colours,
        boxes=boxes,
        patch=patch,
    )


def check_canvas(height: int, width: int, patch: int) -> None:
    """Raise `InputError` unless patches of this side tile the canvas."""
    if patch < 1 or min(height, width) < 1 or max(height, width) > MAX_SIDE:
        raise InputError(
            f"canvas {height}x{width} with patch={patch}; sides must be 1 to {MAX_SIDE}, patch at "
            "least 1"
        )
    if height % patch or width % patch:
        raise InputError(
            f"patch={patch} does not divide the canvas {height}x{width}; choose a side that is a "
            "multiple of it"
        )


def generator(seed: int | Sequence[int], split: str) -> np.random.Generator:
    """The generator of one batch: never the same for two splits.

    Raises:
        InputError: for a negative seed.
    """
    numbers = (seed,) if isinstance(seed, (int, np.integer)) else tuple(seed)
    if any(number < 0 for number in numbers):
        raise InputError(f"seed={seed}; must not be negative")
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence([_SPLITS[split], *map(int, numbers)]))
    )


def _check(n: int, height: int, width: int, fewest: int, most: int, room: int) -> None:
    if not 1 <= n <= MAX_SCENES or n * height * width > MAX_PIXELS:
        raise InputError(
            f"n={n} scenes of {height}x{width}; need 1 to "
            f"{min(MAX_SCENES, MAX_PIXELS // (height * width))} of them"
        )
    if not 1 <= fewest <= most:
        raise InputError(f"min_objects={fewest}, max_objects={most}; need 1 <= min <= max")
    if most > min(len(COLOURS), room):
        raise InputError(
            f"max_objects={most}; a canvas of {height}x{width} holds at most "
            f"{min(len(COLOURS), room)}: {room} have room, and every object has one of "
            f"{len(COLOURS)} colours for itself"
        )


def _draw_kinds(
    rng: np.random.Generator, counts: np.ndarray, most: int, layout: Layout, words: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Kinds (N, K) and their sizes (N, K, 2)."""
    n = len(counts)
    kinds = rng.integers(0, 3 if words else 2, (n, most))
    beyond = np.arange(most) >= counts[:, None]
    kinds = np.sort(np.where(beyond, len(KINDS), kinds), 1) % len(KINDS)  # the largest go first
    if layout != "scattered":
        kinds = np.full((n, most), DIGIT)
        kinds[:, 0] = GARMENT
    table = np.array([(28, 28), (16, 16), (16, 24)])
    sizes = table[kinds]
    if layout != "scattered":
        sizes[:, 0] = LARGE_SIDE
    return kinds, sizes


def _place(
    rng: np.random.Generator,
    kinds: np.ndarray,
    sizes: np.ndarray,
    counts: np.ndarray,
    height: int,
    width: int,
    layout: Layout,
) -> np.ndarray:
    """Boxes (N, K, 4) that do not overlap; height 0 where there was no room. May change `kinds`."""
    n, most = kinds.shape
    boxes = np.zeros((n, most, 4), np.int64)
    low = np.zeros((n, 2), np.int64)
    high = np.broadcast_to([height, width], (n, 2))
    # In a cluster the large garment comes last: digits must not be squeezed out of their window.
    order = [*range(1, most), 0] if layout == "clustered" else range(most)
    if layout == "clustered":
        steps = np.array([height, width]) // WINDOW
        low = WINDOW * rng.integers(0, steps, (n, 2))
    for k in order:
        start, end = low, high
        if layout == "clustered":
            start, end = (np.zeros_like(low), high) if k == 0 else (low, low + WINDOW)
        pending = np.flatnonzero(counts > k)
        for attempt in range(ATTEMPTS):
            if not len(pending):
                break
            if attempt == ATTEMPTS // 2 and layout == "scattered":
                kinds[pending, k] = DIGIT
                sizes[pending, k] = _SMALL
            size = sizes[pending, k]
            free = end[pending] - size - start[pending]
            open_ = (free >= 0).all(1)
            corner = start[pending] + rng.integers(0, np.maximum(free, 0) + 1)
            others = boxes[pending]
            apart = (
                (corner[:, None] >= others[..., :2] + others[..., 2:])
                | (others[..., :2] >= (corner + size)[:, None])
            ).any(-1) | (others[..., 2] == 0)
            good = apart.all(1) & open_
            boxes[pending[good], k, :2] = corner[good]
            boxes[pending[good], k, 2:] = size[good]
            pending = pending[~good]
    return boxes


def pick(
    rng: np.random.Generator, bank: Shapes, kinds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (N, K) of source pictures and their names (N, K), by kinds (N, K)."""
    picked = np.zeros(kinds.shape, np.int64)
    names = np.zeros(kinds.shape, np.int64)
    share = rng.random(kinds.shape)
    for kind in (GARMENT, DIGIT, WORD):
        mask = kinds == kind
        if mask.any():
            labels = bank.names(kind)
            picked[mask] = (share[mask] * len(labels)).astype(np.int64)
            names[mask] = labels[picked[mask]]
    return picked, names


def background(rng: np.random.Generator, n: int, height: int, width: int) -> np.ndarray:
    """Textured canvases, (N, H, W, 3) float32: dim blocks of 8 pixels, with noise."""
    rows, columns = -(-height // BLOCK), -(-width // BLOCK)
    blocks = rng.random((n, rows, columns, 3), np.float32) * BRIGHTEST
    canvas: Any = blocks.repeat(BLOCK, 1).repeat(BLOCK, 2)[:, :height, :width]
    canvas = canvas + NOISE * rng.standard_normal((n, height, width, 3), np.float32)
    return np.asarray(canvas)


def paste(
    images: np.ndarray,
    where: np.ndarray,
    bank: Shapes,
    kinds: np.ndarray,
    picked: np.ndarray,
    colours: np.ndarray,
    boxes: np.ndarray,
    k: int,
) -> None:
    """Blend one object into every picture, in its colour, and mark it as object k.

    Args:
        images: (N, H, W, 3) float32, changed in place.
        where: (N, H, W) uint8, changed in place.
        bank: source pictures.
        kinds, picked, colours: (N,) of each picture's object; kind -1 is none.
        boxes: (N, 4).
        k: index of the object.
    """
    keys = kinds * 4096 + boxes[:, 2]  # pictures of one kind and size go together
    for key in np.unique(keys[kinds >= 0]):
        rows = np.flatnonzero(keys == key)
        tall, wide = int(boxes[rows[0], 2]), int(boxes[rows[0], 3])
        alpha = bank.alpha(int(kinds[rows[0]]), picked[rows], (tall, wide))
        y = boxes[rows, 0][:, None, None] + np.arange(tall)[:, None]
        x = boxes[rows, 1][:, None, None] + np.arange(wide)
        at = (rows[:, None, None], y, x)
        under = images[at]
        colour = RGB[colours[rows]][:, None, None]
        images[at] = under + alpha[..., None] * (colour - under)
        marks = where[at]
        marks[alpha > SOLID] = k + 1
        where[at] = marks
