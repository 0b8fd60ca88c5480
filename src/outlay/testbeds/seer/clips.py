"""Clips: frames in which objects appear, drift and vanish, for methods that choose among frames.

Every object of a clip has a colour of its own. Some are needles, there in one to three frames;
others stay for longer. Two objects that are there at the same time do not overlap.

Shapes: N clips, T frames, K most objects, H = W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from outlay.errors import InputError
from outlay.testbeds.fashion import GARMENTS, Split
from outlay.testbeds.seer.questions import PACKED, Question, check_mix, sample
from outlay.testbeds.seer.scenes import (
    ATTEMPTS,
    COLOURS,
    DIGITS,
    MAX_PIXELS,
    NOISE,
    background,
    check_canvas,
    generator,
    paste,
    pick,
)
from outlay.testbeds.seer.shapes import DIGIT, GARMENT, shapes

SWING = 4
"""Most pixels that an object drifts to either side of its place."""
NEEDLE = 3
"""Most frames of a needle."""
LONGEST = 9
"""Most frames of any object: what one word can count."""
CLIP_KINDS = ("digit", "garment", "count", "exist", "frames", "first")
MAX_FRAMES = 256


@dataclass(frozen=True)
class Clips:
    """A batch of clips of one length.

    Args:
        frames: (N, T, H, W, 3) uint8.
        map: (N, T, H, W) uint8; 0 is background, k + 1 is object k.
        kinds: (N, K) 0 for a garment, 1 for a digit, -1 for no object, as in all arrays below.
        names: (N, K) indices into `GARMENTS` or `DIGITS`.
        colours: (N, K) indices into `COLOURS`.
        boxes: (N, T, K, 4) top, left, height, width; -1 where the object is not in the frame.
        patch: side of a patch.
    """

    frames: np.ndarray
    map: np.ndarray
    kinds: np.ndarray
    names: np.ndarray
    colours: np.ndarray
    boxes: np.ndarray
    patch: int

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> Clips:
        """The chosen clips; takes slices, index lists and masks."""
        return replace(self, **{f: getattr(self, f)[index] for f in _ARRAYS})

    @property
    def length(self) -> int:
        """Frames of every clip."""
        return self.frames.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.frames.shape[2], self.frames.shape[3]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of one frame."""
        return self.size[0] // self.patch, self.size[1] // self.patch

    def visible(self) -> np.ndarray:
        """(N, T, K) whether an object is in a frame."""
        return np.asarray(self.boxes[..., 2] > 0)

    def object_name(self, clip: int, k: int) -> str:
        """Name of an object: a garment or a digit."""
        names = GARMENTS if self.kinds[clip, k] == GARMENT else DIGITS
        return names[self.names[clip, k]]

    def each_frame(self) -> Clips:
        """Every frame as a clip of its own, (N * T) of them: what a scorer of frames is shown."""
        seen = self.visible().reshape(-1, self.kinds.shape[1])
        facts: dict[str, Any] = {
            f: np.where(seen, getattr(self, f).repeat(self.length, 0), -1)
            for f in ("kinds", "names", "colours")
        }
        pictures: dict[str, Any] = {
            f: getattr(self, f).reshape(-1, 1, *getattr(self, f).shape[2:])
            for f in ("frames", "map", "boxes")
        }
        return replace(self, **facts, **pictures)


_ARRAYS = tuple(f.name for f in fields(Clips) if f.name != "patch")


def clips(
    n: int,
    *,
    length: int = 16,
    side: int = 64,
    patch: int = 8,
    max_objects: int = 5,
    min_objects: int = 2,
    needles: float = 0.5,
    split: Split = "test",
    seed: int | Sequence[int] = 0,
) -> Clips:
    """Draw `n` clips. An object that finds no room is left out.

    Args:
        n: clips of the batch.
        length: frames of every clip.
        side: of the square frames.
        patch: side of a patch; divides the side.
        max_objects: most objects of a clip; the number is uniform from `min_objects`.
        min_objects: fewest objects.
        needles: share of objects that are there in at most `NEEDLE` frames.
        split: which source pictures to show.
        seed: of this batch; a tuple gives a stream of batches, as (seed, step).

    Raises:
        InputError: for zero frames, other numbers out of range, or a side that the patch does not
            divide.
        DependencyError: without Fashion-MNIST or scikit-learn.
    """
    check_canvas(side, side, patch)
    if not 1 <= length <= MAX_FRAMES:
        raise InputError(f"length={length} frames; a clip has 1 to {MAX_FRAMES}")
    if n < 1 or n * length * side * side > MAX_PIXELS:
        raise InputError(
            f"n={n} clips of {length} frames; need 1 to {MAX_PIXELS // (length * side * side)}"
        )
    if not 1 <= min_objects <= max_objects <= len(COLOURS):
        raise InputError(
            f"min_objects={min_objects}, max_objects={max_objects}; need 1 <= min <= max <= "
            f"{len(COLOURS)}, as every object has a colour for itself"
        )
    if side < 28 + 2 * SWING:
        raise InputError(f"side={side}; a garment that drifts needs {28 + 2 * SWING}")
    if not 0 <= needles <= 1:
        raise InputError(f"needles={needles}; must be a share from 0 to 1")
    rng = generator(seed, split)
    bank = shapes(split)
    counts = rng.integers(min_objects, max_objects + 1, n)
    kinds = rng.integers(0, 2, (n, max_objects))
    kinds[np.arange(max_objects) >= counts[:, None]] = -1
    spans = _spans(rng, n, max_objects, length, needles)
    boxes = _move(rng, kinds, spans, length, side)
    kinds[(boxes[..., 2] <= 0).all(1)] = -1
    gone = kinds < 0
    picked, names = pick(rng, bank, kinds)
    colours = rng.permuted(np.broadcast_to(np.arange(len(COLOURS)), (n, len(COLOURS))), axis=1)
    colours = np.where(gone, -1, colours[:, :max_objects])
    names[gone] = -1
    still = background(rng, n, side, side)
    noise = NOISE * rng.standard_normal((n, length, side, side, 3), np.float32)
    images = (still[:, None] + noise).reshape(n * length, side, side, 3)
    where = np.zeros((n * length, side, side), np.uint8)
    for k in range(max_objects):
        flat = boxes[:, :, k].reshape(-1, 4)
        kinds_k, picked_k, colours_k = (
            array[:, k].repeat(length) for array in (kinds, picked, colours)
        )
        kinds_k[flat[:, 2] <= 0] = -1
        paste(images, where, bank, kinds_k, picked_k, colours_k, flat, k)
    pixels = np.clip(np.rint(images), 0, 255).astype(np.uint8)
    return Clips(
        frames=pixels.reshape(n, length, side, side, 3),
        map=where.reshape(n, length, side, side),
        kinds=kinds,
        names=names,
        colours=colours,
        boxes=boxes,
        patch=patch,
    )


def _spans(rng: np.random.Generator, n: int, most: int, length: int, needles: float) -> np.ndarray:
    """(N, K, 2) first frame of every object and the one after its last."""
    brief = rng.random((n, most)) < needles
    life = np.where(
        brief,
        rng.integers(1, NEEDLE + 1, (n, most)),
        rng.integers(NEEDLE + 1, LONGEST + 1, (n, most)),
    )
    life = np.minimum(life, length)
    start = (rng.random((n, most)) * (length - life + 1)).astype(np.int64)
    return np.stack([start, start + life], -1)


def _move(
    rng: np.random.Generator, kinds: np.ndarray, spans: np.ndarray, length: int, side: int
) -> np.ndarray:
    """(N, T, K, 4) boxes along the way; -1 outside an object's span and where it has no room."""
    n, most = kinds.shape
    sizes = np.where(kinds == DIGIT, 16, 28)
    reach = sizes + 2 * SWING  # side of the square that an object stays in
    corners = np.full((n, most, 2), -1)
    for k in range(most):
        pending = np.flatnonzero(kinds[:, k] >= 0)
        for _ in range(ATTEMPTS):
            if not len(pending):
                break
            corner = rng.integers(0, side - reach[pending, k, None] + 1, (len(pending), 2))
            others = corners[pending]
            apart = (
                (corner[:, None] >= others + reach[pending][..., None])
                | (others >= (corner + reach[pending, k, None])[:, None])
            ).any(-1)
            together = (spans[pending, k, None, 0] < spans[pending, :, 1]) & (
                spans[pending, :, 0] < spans[pending, k, None, 1]
            )
            good = (apart | ~together | (others[..., 0] < 0)).all(1)
            corners[pending[good], k] = corner[good]
            pending = pending[~good]
    speed = rng.integers(1, 3, (n, most, 2)) * rng.choice([-1, 1], (n, most, 2))
    phase = rng.integers(0, 4 * SWING, (n, most, 2))
    frame = np.arange(length)[None, :, None, None]
    swing = np.abs((phase[:, None] + speed[:, None] * frame) % (4 * SWING) - 2 * SWING)
    boxes = np.empty((n, length, most, 4), np.int64)
    boxes[..., :2] = corners[:, None] + swing
    boxes[..., 2:] = sizes[:, None, :, None]
    frames = np.arange(length)[None, :, None]
    seen = (spans[:, None, :, 0] <= frames) & (frames < spans[:, None, :, 1])
    seen &= (corners[:, None, :, 0] >= 0) & (kinds[:, None] >= 0)
    boxes[~seen] = -1
    return boxes


def possible_of_clip(
    clips: Clips, clip: int, kind: str, rng: np.random.Generator | None = None
) -> list[Question]:
    """All questions of one kind about one clip; may be empty.

    Args:
        clips: the batch.
        clip: index in it.
        kind: one of `CLIP_KINDS`.
        rng: picks which absent colours `exist` names and the order of two colours; None takes the
            first.

    Raises:
        InputError: for an unknown kind.
    """
    there = [int(k) for k in np.flatnonzero(clips.kinds[clip] >= 0)]
    colour = {k: COLOURS[clips.colours[clip, k]] for k in there}
    if kind == "count":
        return [Question(kind, ("how", "many", "things"), (DIGITS[len(there)],))]
    if kind in ("digit", "garment"):
        wanted = DIGIT if kind == "digit" else GARMENT
        return [
            Question(kind, ("which", kind, "is", colour[k]), (clips.object_name(clip, k),), k)
            for k in there
            if clips.kinds[clip, k] == wanted
        ]
    if kind == "exist":
        absent = [c for c in COLOURS if c not in colour.values()]
        if rng is not None:
            absent = [absent[j] for j in rng.permutation(len(absent))]
        most = max(1, len(there))
        found = [Question(kind, ("is", "there", c), ("yes",), k) for k, c in colour.items()]
        return found + [Question(kind, ("is", "there", c), ("no",)) for c in absent[:most]]
    seen = clips.boxes[clip, :, :, 2] > 0
    if kind == "frames":
        return [
            Question(
                kind,
                ("how", "many", "frames", "show", colour[k]),
                (DIGITS[int(seen[:, k].sum())],),
                k,
            )
            for k in there
        ]
    if kind == "first":
        starts = {k: int(seen[:, k].argmax()) for k in there}
        asked = []
        for i, a in enumerate(there):
            for b in there[i + 1 :]:
                if starts[a] == starts[b]:
                    continue
                pair = (a, b) if rng is None or rng.random() < 0.5 else (b, a)
                early = a if starts[a] < starts[b] else b
                words = ("first", colour[pair[0]], colour[pair[1]])
                asked.append(Question(kind, words, (colour[early],), early))
        return asked
    raise InputError(f"kind={kind!r}; must be one of {', '.join(CLIP_KINDS)}")


def draw_of_clips(
    clips: Clips,
    rng: np.random.Generator,
    *,
    limit: int = PACKED,
    mix: Mapping[str, float] | None = None,
) -> list[list[Question]]:
    """Up to `limit` questions about every clip, for training; see `questions.draw`."""
    weights = dict.fromkeys(CLIP_KINDS, 1.0) if mix is None else dict(mix)
    check_mix(weights, limit)
    drawn = []
    for clip in range(len(clips)):
        found = [q for kind in weights for q in possible_of_clip(clips, clip, kind, rng)]
        drawn.append(sample(found, weights, rng, limit))
    return drawn
