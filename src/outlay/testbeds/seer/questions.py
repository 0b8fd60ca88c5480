"""Questions about scenes, in a language of 82 words, and their packing for training.

The key of a question (a colour, a kind) is its last word and the answer starts right after it: with
a word in between, a tiny model learns to bind them far later.

Shapes: B scenes of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from outlay.errors import InputError
from outlay.testbeds.fashion import GARMENTS
from outlay.testbeds.seer.scenes import COLOURS, DIGITS, KINDS, Scenes
from outlay.testbeds.seer.shapes import DIGIT, GARMENT, WORD

PAD, BOS, IMG, EOS, FRAME = range(5)
WORDS = (
    *("<pad>", "<bos>", "<img>", "<eos>", "<frame>"),
    *("which", "is", "what", "kind", "colour", "of", "the", "how", "many", "things", "there"),
    *("where", "read", "frames", "show", "first", *KINDS),
    *("yes", "no", "top", "bottom", "left", "right"),
    *COLOURS,
    *GARMENTS,
    *DIGITS,
    *"abcdefghijklmnopqrstuvwxyz",
)
"""The vocabulary; a word's index is its token."""
VOCABULARY: dict[str, int] = {word: index for index, word in enumerate(WORDS)}
ONE_TOKEN = ("digit", "garment", "kind", "colour", "count", "exist")
"""Kinds of question whose answer is one token."""
TWO_TOKENS = ("where", "word")
SCENE_KINDS = (*ONE_TOKEN, "where")
"""Kinds that scenes without words have; the default mix."""
PACKED = 10
"""Most questions of one scene in one training sequence."""


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        kind: `digit`, `garment`, `kind`, `colour`, `count`, `exist`, `where`, `word`, or one of a
            clip's: `frames`, `first`.
        words: what is asked; the key comes last.
        answer: what is right.
        subject: index of the object that it is about; None if about all, or none.
    """

    kind: str
    words: tuple[str, ...]
    answer: tuple[str, ...]
    subject: int | None = None


def encode(words: Iterable[str]) -> list[int]:
    """Tokens of words.

    Raises:
        InputError: for a word that is not in the vocabulary.
    """
    try:
        return [VOCABULARY[word] for word in words]
    except KeyError as error:
        raise InputError(
            f"unknown question word {error.args[0]!r}; the seer knows only {', '.join(WORDS[5:])}"
        ) from None


def decode(tokens: Iterable[int]) -> tuple[str, ...]:
    """Words of tokens, up to the first end.

    Raises:
        InputError: for a number that is no token.
    """
    words = []
    for token in tokens:
        if not 0 <= token < len(WORDS):
            raise InputError(f"token {token} is none of 0 to {len(WORDS) - 1}")
        if token == EOS:
            break
        words.append(WORDS[token])
    return tuple(words)


def possible(
    scenes: Scenes, scene: int, kind: str, rng: np.random.Generator | None = None
) -> list[Question]:
    """All questions of one kind about one scene; may be empty.

    Args:
        scenes: the batch.
        scene: index in it.
        kind: one of `SCENE_KINDS`, or `word`.
        rng: for `exist`, picks as many absent colours as there are present ones; None takes the
            first.

    Raises:
        InputError: for an unknown kind.
    """
    count = int(scenes.counts[scene])
    kinds = scenes.kinds[scene, :count]
    colours = [COLOURS[c] for c in scenes.colours[scene, :count]]
    if kind == "count":
        return [Question(kind, ("how", "many", "things"), (DIGITS[count],))]
    if kind in ("digit", "garment"):
        wanted = DIGIT if kind == "digit" else GARMENT
        return [
            Question(kind, ("which", kind, "is", colours[k]), (scenes.object_name(scene, k),), k)
            for k in range(count)
            if kinds[k] == wanted
        ]
    if kind == "kind":
        return [
            Question(kind, ("what", "kind", "is", colours[k]), (KINDS[kinds[k]],), k)
            for k in range(count)
        ]
    if kind == "colour":
        return [
            Question(kind, ("colour", "of", "the", KINDS[kinds[k]]), (colours[k],), k)
            for k in range(count)
            if (kinds == kinds[k]).sum() == 1
        ]
    if kind == "exist":
        absent = [colour for colour in COLOURS if colour not in colours]
        if rng is not None:
            absent = [absent[j] for j in rng.permutation(len(absent))]
        there = [Question(kind, ("is", "there", c), ("yes",), k) for k, c in enumerate(colours)]
        return there + [Question(kind, ("is", "there", c), ("no",)) for c in absent[:count]]
    if kind == "where":
        return [
            Question(kind, ("where", "is", colours[k]), scenes.where(scene, k), k)
            for k in range(count)
        ]
    if kind == "word":
        return [
            Question(kind, ("read", "word", colours[k]), tuple(scenes.object_name(scene, k)), k)
            for k in range(count)
            if kinds[k] == WORD
        ]
    raise InputError(f"kind={kind!r}; must be one of {', '.join((*SCENE_KINDS, 'word'))}")


def draw(
    scenes: Scenes,
    rng: np.random.Generator,
    *,
    limit: int = PACKED,
    mix: Mapping[str, float] | None = None,
) -> list[list[Question]]:
    """Up to `limit` questions about every scene, for training.

    Args:
        scenes: the batch.
        rng: of the choice.
        limit: most questions of a scene.
        mix: weight by kind; a question of weight 2 is drawn twice as easily. None is 1 for each of
            `SCENE_KINDS`.

    Raises:
        InputError: for a weight that is not positive, an unknown kind, or limit < 1.
    """
    weights = dict.fromkeys(SCENE_KINDS, 1.0) if mix is None else dict(mix)
    check_mix(weights, limit)
    drawn = []
    for scene in range(len(scenes)):
        found = [q for kind in weights for q in possible(scenes, scene, kind, rng)]
        drawn.append(sample(found, weights, rng, limit))
    return drawn


def check_mix(weights: Mapping[str, float], limit: int) -> None:
    """Raise `InputError` unless there is a positive weight for every kind and room for one."""
    if not weights or not all(0 < weight < float("inf") for weight in weights.values()):
        raise InputError(f"question_mix={dict(weights)}; needs kinds with weights above 0")
    if limit < 1:
        raise InputError(f"limit={limit} questions; must be at least 1")


def sample(
    found: Sequence[Question],
    weights: Mapping[str, float],
    rng: np.random.Generator,
    limit: int,
) -> list[Question]:
    """Up to `limit` of the questions, without repetition, by the weights of their kinds."""
    keys = rng.exponential(size=len(found)) / np.array([weights[q.kind] for q in found])
    return [found[j] for j in np.argsort(keys)[:limit]]


def one_each(
    count: int,
    ask: Callable[[int, np.random.Generator], Sequence[Question]],
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[Question]]:
    """One question for every scene that has any.

    Where answers are yes or no, both are equally likely.

    Args:
        count: of scenes.
        ask: the questions of one scene.
        rng: of the choice.

    Returns:
        Indices of the scenes asked, and a question for each.
    """
    indices, asked = [], []
    for scene in range(count):
        found = list(ask(scene, rng))
        if not found:
            continue
        answers = sorted({q.answer for q in found})
        if ("no",) in answers or ("yes",) in answers:
            wanted = answers[rng.integers(len(answers))]
            found = [q for q in found if q.answer == wanted]
        indices.append(scene)
        asked.append(found[rng.integers(len(found))])
    return np.array(indices, np.int64), asked


@dataclass(frozen=True)
class Packed:
    """Questions of a batch side by side; they are to see the image, and not one another.

    Args:
        ids: (B, T) tokens: words, answer, end, of one question after the other; `PAD` at the end.
        block: (B, T) 1 for a row's first question, 2 for the next; 0 where padded.
        offset: (B, T) place within the question.
        targets: (B, T) the next token where it belongs to an answer or ends it, else -100.
    """

    ids: np.ndarray
    block: np.ndarray
    offset: np.ndarray
    targets: np.ndarray


def pack(rows: Sequence[Sequence[Question]]) -> Packed:
    """Pack the questions of every scene into one training sequence."""
    made: list[tuple[list[int], list[int], list[int], list[int]]] = []
    for questions in rows:
        ids: list[int] = []
        block: list[int] = []
        offset: list[int] = []
        targets: list[int] = []
        for number, question in enumerate(questions, start=1):
            words, answer = encode(question.words), [*encode(question.answer), EOS]
            length = len(words) + len(answer)
            ids += words + answer
            block += [number] * length
            offset += range(length)
            targets += [-100] * (len(words) - 1) + answer + [-100]
        made.append((ids, block, offset, targets))
    width = max(len(ids) for ids, *_ in made)
    fill = (PAD, 0, 0, -100)
    arrays = [np.full((len(made), width), value, np.int64) for value in fill]
    for b, parts in enumerate(made):
        for array, part in zip(arrays, parts, strict=True):
            array[b, : len(part)] = part
    return Packed(*arrays)
