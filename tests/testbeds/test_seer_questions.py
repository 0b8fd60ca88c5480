"""Questions have the right answers, and their packing changes nothing that a prompt of its own
would see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fashion import needs_fashion

from outlay.errors import InputError
from outlay.testbeds.fashion import GARMENTS
from outlay.testbeds.seer.clips import CLIP_KINDS, Clips, clips, draw_of_clips, possible_of_clip
from outlay.testbeds.seer.questions import (
    EOS,
    ONE_TOKEN,
    PAD,
    SCENE_KINDS,
    VOCABULARY,
    WORDS,
    Question,
    decode,
    draw,
    encode,
    one_each,
    pack,
    possible,
)
from outlay.testbeds.seer.scenes import COLOURS, DIGITS, SceneObject, scenes


def answer(words: Sequence[str], things: Sequence[SceneObject], height: int, width: int) -> object:
    """The answer to a question, read from the list of objects word by word."""
    by_colour = {thing.colour: thing for thing in things}
    key = words[-1]
    match " ".join(words[:-1]):
        case "how many":
            return (DIGITS[len(things)],)
        case "is there":
            return ("yes" if key in by_colour else "no",)
        case "which digit is" | "which garment is":
            assert by_colour[key].kind == words[1]
            return (by_colour[key].name,)
        case "what kind is":
            return (by_colour[key].kind,)
        case "colour of the":
            (only,) = [thing for thing in things if thing.kind == key]
            return (only.colour,)
        case "where is":
            top, left, tall, wide = by_colour[key].box
            return (
                "bottom" if top + tall / 2 >= height / 2 else "top",
                "right" if left + wide / 2 >= width / 2 else "left",
            )
        case "read word":
            return tuple(by_colour[key].name)
    raise AssertionError(words)


@needs_fashion
@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), words=st.booleans())
def test_every_question_is_answered_as_a_reader_of_the_object_list_would(
    seed: int, words: bool
) -> None:
    shown = scenes(4, side=96, max_objects=5, words=words, seed=seed)
    rng = np.random.default_rng(seed)
    for i in range(len(shown)):
        things = shown.objects(i)
        for kind in (*SCENE_KINDS, "word"):
            for question in possible(shown, i, kind, rng):
                assert question.kind == kind
                assert question.answer == answer(question.words, things, *shown.size)
                if question.subject is not None and kind != "colour":
                    assert things[question.subject].colour == question.words[-1]


def clip_answer(question: Question, frames: dict[str, list[int]], seen: Clips, i: int) -> str:
    """The answer to a question about a clip, given which frames show each colour."""
    key = question.words[-1]
    match question.kind:
        case "count":
            return DIGITS[len(frames)]
        case "exist":
            return "yes" if key in frames else "no"
        case "frames":
            return DIGITS[len(frames[key])]
        case "first":
            return min(question.words[1:], key=lambda colour: frames[colour][0])
    (k,) = np.flatnonzero(seen.colours[i] == COLOURS.index(key))
    return (DIGITS if question.kind == "digit" else GARMENTS)[seen.names[i, k]]


@needs_fashion
@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_every_question_about_a_clip_is_answered_as_its_frames_show(seed: int) -> None:
    seen = clips(2, length=6, seed=seed)
    rng = np.random.default_rng(seed)
    for i in range(2):
        frames = {  # colour -> frames that show it, read off the maps of pixels
            COLOURS[seen.colours[i, k]]: [t for t in range(6) if (seen.map[i, t] == k + 1).any()]
            for k in range(seen.kinds.shape[1])
            if seen.kinds[i, k] >= 0
        }
        for kind in CLIP_KINDS:
            for question in possible_of_clip(seen, i, kind, rng):
                key = question.words[-1]
                assert question.answer == (clip_answer(question, frames, seen, i),)
                if kind in ("digit", "garment"):
                    assert COLOURS[seen.colours[i, question.subject]] == key


def test_words_and_tokens_are_one_another() -> None:
    assert len(set(WORDS)) == len(WORDS) == len(VOCABULARY)
    assert decode(encode(WORDS[5:])) == WORDS[5:]
    assert decode([VOCABULARY["red"], EOS, VOCABULARY["blue"]]) == ("red",)


@needs_fashion
def test_a_question_is_never_packed_twice_and_never_more_than_ten() -> None:
    shown = scenes(20, side=96, max_objects=6, min_objects=5, seed=1)
    for asked in draw(shown, np.random.default_rng(0)):
        assert len(asked) == 10
        assert len(set(asked)) == 10


@needs_fashion
def test_a_kind_of_larger_weight_is_asked_more_often() -> None:
    shown = scenes(300, side=96, max_objects=5, min_objects=4, seed=1)
    mix = dict.fromkeys(SCENE_KINDS, 1.0) | {"where": 10.0}
    drawn = [draw(shown, np.random.default_rng(0), mix=m) for m in (None, mix)]
    plain, heavy = ([q.kind for asked in rows for q in asked].count("where") for rows in drawn)
    assert heavy > 1.5 * plain


@needs_fashion
def test_packed_questions_hold_words_answers_and_where_to_learn() -> None:
    shown = scenes(5, seed=2)
    rows = draw(shown, np.random.default_rng(1))
    packed = pack(rows)
    for b, questions in enumerate(rows):
        for number, question in enumerate(questions, start=1):
            at = packed.block[b] == number
            tokens = packed.ids[b, at].tolist()
            assert tokens == [*encode(question.words), *encode(question.answer), EOS]
            assert packed.offset[b, at].tolist() == list(range(len(tokens)))
            learnt = packed.targets[b, at]
            expected = [-100] * (len(question.words) - 1) + tokens[len(question.words) :] + [-100]
            assert learnt.tolist() == expected
        padding = packed.block[b] == 0
        assert (packed.ids[b, padding] == PAD).all()
        assert (packed.targets[b, padding] == -100).all()


@needs_fashion
def test_one_question_each_is_about_every_scene_that_has_one_and_balances_yes_with_no() -> None:
    shown = scenes(400, seed=3)
    rng = np.random.default_rng(0)
    index, asked = one_each(400, lambda i, r: possible(shown, i, "digit", r), rng)
    has_digit = [i for i in range(400) if 1 in shown.kinds[i]]
    assert index.tolist() == has_digit
    assert all(
        question in possible(shown, int(i), "digit")
        for i, question in zip(index, asked, strict=True)
    )
    _, asked = one_each(400, lambda i, r: possible(shown, i, "exist", r), rng)
    assert 0.4 < np.mean([question.answer == ("yes",) for question in asked]) < 0.6


@needs_fashion
def test_one_token_questions_have_one_word_answers() -> None:
    shown, seen = scenes(20, seed=4), clips(5, length=6, seed=4)
    rng = np.random.default_rng(0)
    for kind in ONE_TOKEN:
        assert all(len(q.answer) == 1 for i in range(20) for q in possible(shown, i, kind, rng))
    assert all(len(q.answer) == 1 for asked in draw_of_clips(seen, rng) for q in asked)


@needs_fashion
def test_unknown_kinds_words_and_weights_are_refused() -> None:
    shown = scenes(1, seed=0)
    seen: Clips = clips(1, length=2, seed=0)
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="unknown question word 'purple'"):
        encode(["is", "there", "purple"])
    with pytest.raises(InputError, match="token 82 is none of 0 to 81"):
        decode([82])
    with pytest.raises(InputError, match="kind='frames'"):
        possible(shown, 0, "frames")
    with pytest.raises(InputError, match="kind='where'"):
        possible_of_clip(seen, 0, "where")
    with pytest.raises(InputError, match="question_mix"):
        draw(shown, rng, mix={"digit": 0.0})
    with pytest.raises(InputError, match="limit=0"):
        draw(shown, rng, limit=0)
