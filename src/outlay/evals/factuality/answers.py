"""Answers: found in a reply, normalised, and compared by words, by meaning or by a judge.

Extraction (fs1, arXiv 2505.11140, required form): the last `\\boxed{...}` with balanced braces, a
wrapping `\\text{}` removed; else the text after the last answer marker, without "Answer:"; else the
last ten words. The published function takes the first box up to its first closing brace.

Scores: exact match with any name of any gold entity, after normalisation; semantic match (cosine
of MiniLM embeddings above a threshold, ours); a language model as judge (`judge`).
"""

from __future__ import annotations

import re
import string
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from outlay.errors import InputError
from outlay.evals.answers import boxed
from outlay.models.encoders import unit_vectors

How = Literal["box", "marker", "tail", "none"]

MARKERS = ("<|im_start|>answer", "</think>", "Final Answer:", "Answer:")
TAIL = 10
TAU = 0.9
_LONGEST = 100_000  # characters looked at, from the end: the answer comes last
_SPECIAL = re.compile(r"<\|(?:im_end|endoftext|eot_id)\|>|</s>")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_PREFIX = re.compile(r"^(?:final\s+)?answer\s*:\s*", re.IGNORECASE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Extracted:
    """An answer and where it was found: "tail" is a guess, "none" an empty reply."""

    text: str
    how: How


def extract_answer(reply: str, *, markers: Sequence[str] = MARKERS, tail: int = TAIL) -> Extracted:
    """The answer in a reply, on one line.

    Args:
        reply: generated text.
        markers: what the answer follows.
        tail: words taken from the end where there is neither box nor marker.

    Raises:
        InputError: for a reply that is no string, or a tail below 1.
    """
    if not isinstance(reply, str):
        raise InputError(f"reply={reply!r} is not a string; give the generated text")
    if tail < 1:
        raise InputError(f"tail={tail}; take at least one word")
    text, how = reply[-_LONGEST:], "tail"
    while True:
        inner = boxed(text)
        if inner is not None:
            text, how = inner, "box"
            continue
        ends = [at + len(mark) for mark in markers if mark and (at := text.rfind(mark)) >= 0]
        if not ends:
            break
        text, how = text[max(ends) :], "marker"
    text = " ".join(_SPECIAL.sub(" ", text).split())
    while (bare := _PREFIX.sub("", text)) != text:
        text, how = bare, "marker" if how == "tail" else how
    if how == "tail":
        text = " ".join(text.split()[-tail:])
    return Extracted(text, how if text else "none")  # type: ignore[arg-type]


def normalise(text: str) -> str:
    """Lower case, punctuation deleted, a/an/the removed, spaces folded."""
    return " ".join(_ARTICLE.sub(" ", text.casefold().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Iterable[Sequence[str]]) -> bool:
    """Whether a prediction equals any name of any gold entity; an empty one never does."""
    given = normalise(prediction)
    return given != "" and any(given == normalise(name) for names in answers for name in names)


def semantic_match(
    predictions: Sequence[str], answers: Sequence[Sequence[Sequence[str]]], *, tau: float = TAU
) -> list[bool]:
    """Per prediction: whether its MiniLM embedding is closer than `tau` to a name of its gold.

    Raises:
        InputError: for lists of unequal length, or tau outside (0, 1].
        DependencyError: without the embedding model.
    """
    if len(predictions) != len(answers):
        raise InputError(
            f"{len(predictions)} predictions, {len(answers)} gold lists; give one each"
        )
    if not 0 < tau <= 1:
        raise InputError(f"tau={tau} is outside (0, 1]; 0.9 is usual")
    names = [[name for row in gold for name in row] for gold in answers]
    texts = dict.fromkeys(
        text for given, gold in zip(predictions, names, strict=True) for text in (given, *gold)
    )
    place = {text: i for i, text in enumerate(texts)}
    vectors_ND = embed(list(texts))
    verdicts = []
    for given, gold in zip(predictions, names, strict=True):
        if not given.strip() or not gold:
            verdicts.append(False)
            continue
        rows_GD = vectors_ND[[place[name] for name in gold]]
        best = float((rows_GD @ vectors_ND[place[given]]).max())
        verdicts.append(best > tau or any(given == name for name in gold))
    return verdicts


_encoding = threading.Lock()


def embed(texts: Sequence[str]) -> np.ndarray:
    """(N, D) unit vectors of all-MiniLM-L6-v2; texts are read up to its window.

    Raises:
        DependencyError: without the embedding model.
        ModelError: for vectors that are no numbers.
    """
    if not texts:
        return np.zeros((0, 1))
    return unit_vectors(texts)
