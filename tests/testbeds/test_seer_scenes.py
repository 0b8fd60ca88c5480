"""Scenes and clips are what their seed says, and show what they say they show."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fashion import needs_fashion

from outlay.errors import InputError
from outlay.testbeds.seer.clips import LONGEST, NEEDLE, SWING, Clips, clips
from outlay.testbeds.seer.scenes import COLOURS, COVERED, LARGE_SIDE, RGB, WINDOW, Scenes, scenes
from outlay.testbeds.seer.shapes import DIGIT, GARMENT, WORD, shapes

ARRAYS = ("images", "map", "counts", "kinds", "names", "colours", "boxes")


def same(a: Scenes, b: Scenes) -> bool:
    return all(np.array_equal(getattr(a, f), getattr(b, f)) for f in ARRAYS)


def overlap(a: np.ndarray, b: np.ndarray) -> bool:
    apart = (a[:2] >= b[:2] + b[2:]) | (b[:2] >= a[:2] + a[2:])
    return not apart.any()


@needs_fashion
def test_the_same_seed_draws_the_same_scenes_whatever_global_generators_hold() -> None:
    np.random.seed(1)
    first = scenes(5, seed=(3, 4))
    random.seed(2)
    np.random.seed(2)
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    assert same(first, scenes(5, seed=(3, 4)))
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]
    assert not same(first, scenes(5, seed=(3, 5)))
    assert not same(first, scenes(5, seed=(3, 4), split="train"))


@needs_fashion
@settings(max_examples=25)
@given(
    n=st.integers(1, 6),
    side=st.sampled_from([32, 48, 64, 96, (48, 96), (96, 64)]),
    patch=st.sampled_from([4, 8, 16]),
    most=st.integers(1, 4),
    seed=st.integers(0, 10**6),
    split=st.sampled_from(["train", "test"]),
)
def test_objects_lie_apart_inside_the_canvas_in_colours_of_their_own(
    n: int, side: Any, patch: int, most: int, seed: int, split: Any
) -> None:
    found = scenes(n, side=side, patch=patch, max_objects=most, seed=seed, split=split)
    height, width = found.size
    for i in range(n):
        count = found.counts[i]
        assert 1 <= count <= most
        boxes = found.boxes[i, :count]
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 0] + boxes[:, 2] <= height).all()
        assert (boxes[:, 1] + boxes[:, 3] <= width).all()
        assert len(set(found.colours[i, :count])) == count
        assert not any(overlap(boxes[a], boxes[b]) for a in range(count) for b in range(a))
        assert (found.kinds[i, count:] == -1).all()
        assert set(np.unique(found.map[i])) - {0} == set(range(1, count + 1))


@needs_fashion
def test_every_marked_pixel_lies_in_its_objects_box_and_shows_its_colour() -> None:
    found = scenes(20, side=96, max_objects=6, min_objects=4, seed=5)
    for i in range(len(found)):
        for k, thing in enumerate(found.objects(i)):
            top, left, tall, wide = thing.box
            inside = found.map[i, top : top + tall, left : left + wide] == k + 1
            assert inside.sum() == (found.map[i] == k + 1).sum()
            crop = found.images[i, top : top + tall, left : left + wide][inside].astype(float)
            colour = RGB[COLOURS.index(thing.colour)]
            # The brightest pixels are nearly opaque: they point the way of the object's colour.
            bright = crop[crop.max(1) >= np.quantile(crop.max(1), 0.9)].mean(0)
            angles = RGB @ bright / np.linalg.norm(RGB, axis=1)
            assert angles.argmax() == COLOURS.index(thing.colour), (bright, colour)


@needs_fashion
def test_patch_labels_match_the_map_pixel_by_pixel() -> None:
    found = scenes(6, side=(48, 64), patch=8, max_objects=3, seed=2)
    labels = found.patch_labels()
    for i in range(6):
        for row in range(6):
            for column in range(8):
                owners = [0] * 4
                for y in range(8 * row, 8 * row + 8):
                    for x in range(8 * column, 8 * column + 8):
                        owners[found.map[i, y, x]] += 1
                best = max(range(1, 4), key=lambda k: (owners[k], -k))
                expected = best if owners[best] / 64 > COVERED else 0
                assert labels[i, row, column] == expected
    assert np.array_equal(found.foreground(), labels.reshape(6, -1) > 0)


@needs_fashion
def test_about_a_fifth_of_the_patches_of_a_plain_scene_show_an_object() -> None:
    assert 0.17 < scenes(400, seed=9).foreground().mean() < 0.24


@needs_fashion
def test_splits_share_no_source_picture() -> None:
    for kind in (GARMENT, DIGIT, WORD):
        pictures = []
        for split in ("train", "test"):
            count = len(shapes(split).names(kind))
            size = {GARMENT: (28, 28), DIGIT: (16, 16), WORD: (16, 24)}[kind]
            alpha = shapes(split).alpha(kind, np.arange(count)[:2000], size)
            pictures.append({picture.tobytes() for picture in alpha})
        assert not pictures[0] & pictures[1]
    assert len(shapes("train").names(DIGIT)) == 1347
    assert len(shapes("test").names(DIGIT)) == 450


@needs_fashion
def test_scaling_a_source_picture_keeps_constants_and_its_own_size() -> None:
    bank = shapes("test")
    plain = bank.alpha(GARMENT, np.arange(3), (28, 28))
    larger = bank.alpha(GARMENT, np.arange(3), (44, 44))
    assert larger.shape == (3, 44, 44)
    assert np.allclose(larger.mean((1, 2)), plain.mean((1, 2)), atol=0.02)
    assert plain.min() >= 0
    assert larger.max() <= 1


@needs_fashion
def test_clustered_digits_share_one_window_and_spread_ones_do_not() -> None:
    shown = scenes(40, side=96, max_objects=5, min_objects=5, layout="clustered", seed=1)
    for i in range(40):
        digits = shown.boxes[i][shown.kinds[i] == DIGIT]
        windows = {tuple((box[:2] + box[2:] - 1) // WINDOW) for box in digits}
        windows |= {tuple(box[:2] // WINDOW) for box in digits}
        assert len(windows) == 1
    wide = scenes(40, side=96, max_objects=5, min_objects=5, layout="spread", seed=1)
    tops = [len({tuple(b[:2] // WINDOW) for b in wide.boxes[i, 1:]}) for i in range(40)]
    assert np.mean(tops) > 1.5
    large = shown.boxes[..., 2] == LARGE_SIDE
    assert np.array_equal(large, shown.kinds == GARMENT)
    assert large.sum() >= 38


@needs_fashion
def test_a_scene_reports_how_many_objects_really_fitted() -> None:
    tight = scenes(60, side=32, max_objects=4, min_objects=4, seed=3)
    assert tight.counts.min() < 4, "four objects do not always fit at random places"
    assert np.array_equal(tight.counts, (tight.kinds >= 0).sum(1))


@needs_fashion
def test_words_are_drawn_only_on_request() -> None:
    assert not (scenes(50, seed=1).kinds == WORD).any()
    shown = scenes(50, words=True, side=96, seed=1)
    index, k = np.argwhere(shown.kinds == WORD)[0]
    name = shown.object_name(index, k)
    assert len(name) == 2
    assert name.isalpha()
    assert (shown.map[index] == k + 1).sum() > 20


@needs_fashion
def test_part_of_a_batch_is_the_batch_of_its_parts() -> None:
    shown = scenes(6, seed=1)
    assert same(shown[2:4], shown[[2, 3]])
    assert len(shown[np.arange(6) % 2 == 0]) == 3
    assert np.array_equal(shown[5].images[0], shown.images[5])  # type: ignore[index]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"side": 60}, "patch=8 does not divide the canvas 60x60"),
        ({"patch": 0}, "patch=0"),
        ({"side": 1024}, "sides must be 1 to 512"),
        ({"max_objects": 7}, "holds at most 6"),
        ({"side": 32, "max_objects": 5}, "a canvas of 32x32 holds at most 4"),
        ({"min_objects": 0}, "min_objects=0"),
        ({"min_objects": 4}, "min_objects=4, max_objects=3"),
        ({"n": 0}, "n=0 scenes"),
        ({"n": 10**6}, "need 1 to 32768"),
        ({"seed": -1}, "seed=-1"),
        ({"split": "dev"}, "split='dev'"),
        ({"layout": "ring"}, "layout='ring'"),
        ({"layout": "spread", "side": 40}, "at least 48 pixels"),
        ({"layout": "spread", "words": True}, "needs layout='scattered'"),
    ],
)
def test_bad_scenes_are_refused_with_their_numbers(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        scenes(**{"n": 1, **wrong})


@needs_fashion
def test_the_same_seed_draws_the_same_clips() -> None:
    a, b = (clips(2, length=4, seed=7) for _ in range(2))
    assert np.array_equal(a.frames, b.frames)
    assert np.array_equal(a.boxes, b.boxes)
    assert not np.array_equal(a.frames, clips(2, length=4, seed=7, split="train").frames)


@needs_fashion
@settings(max_examples=12)
@given(length=st.integers(1, 12), most=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_objects_of_a_clip_live_for_one_span_and_never_meet(
    length: int, most: int, seed: int
) -> None:
    found = clips(3, length=length, max_objects=most, min_objects=1, seed=seed)
    visible = found.visible()
    for i in range(3):
        there = np.flatnonzero(found.kinds[i] >= 0)
        assert len(there)
        assert len({found.colours[i, k] for k in there}) == len(there)
        for k in there:
            frames = np.flatnonzero(visible[i, :, k])
            assert 1 <= len(frames) <= min(LONGEST, length)
            assert np.array_equal(frames, np.arange(frames[0], frames[-1] + 1))
            steps = np.abs(np.diff(found.boxes[i, frames, k, :2], axis=0))
            assert (steps <= 2).all()
            assert np.ptp(found.boxes[i, frames, k, :2], axis=0).max() <= 2 * SWING
        for t in range(length):
            seen = np.flatnonzero(visible[i, t])
            boxes = found.boxes[i, t]
            assert not any(overlap(boxes[a], boxes[b]) for a in seen for b in seen if a < b)
            assert set(np.unique(found.map[i, t])) - {0} == {int(k) + 1 for k in seen}


@needs_fashion
def test_half_of_the_objects_are_needles() -> None:
    found = clips(60, seed=1)
    life = found.visible().sum(1)[found.kinds >= 0]
    assert 0.4 < (life <= NEEDLE).mean() < 0.6


@needs_fashion
def test_each_frame_of_a_clip_holds_what_is_visible_in_it() -> None:
    whole = clips(2, length=5, seed=4)
    single: Clips = whole.each_frame()
    assert single.frames.shape == (10, 1, 64, 64, 3)
    for i in range(2):
        for t in range(5):
            one = 5 * i + t
            assert np.array_equal(single.frames[one, 0], whole.frames[i, t])
            assert np.array_equal(single.kinds[one] >= 0, whole.visible()[i, t])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"length": 0}, "length=0 frames"),
        ({"length": 300}, "1 to 256"),
        ({"n": 0}, "n=0 clips"),
        ({"n": 10**5}, "need 1 to 2048"),
        ({"side": 60}, "does not divide"),
        ({"side": 32}, "needs 36"),
        ({"max_objects": 7}, "max_objects=7"),
        ({"needles": 1.5}, "needles=1.5"),
    ],
)
def test_bad_clips_are_refused_with_their_numbers(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        clips(**{"n": 1, **wrong})


def test_scenes_need_no_torch() -> None:
    code = "import sys, outlay.testbeds.seer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
