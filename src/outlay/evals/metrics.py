"""Qualities of generated text, all in [0, 1]: code lines and short answers.

Edit similarity and exact match of code follow LongCodeZip's evaluation (arXiv 2510.00446, table
"completion"), as fractions instead of per cent. Short answers are compared after SQuAD-like
normalisation, except that punctuation inside a word stays: "0.5" and "__init__" are answers here.
"""

from __future__ import annotations

import re
from collections import Counter

from outlay.errors import DependencyError

_ARTICLES = frozenset({"a", "an", "the"})
_EDGES = re.compile(r"^[^\w\s+\-]+|[^\w\s%]+$")


def code_lines(text: str, *, comment: str = "#") -> list[str]:
    """Stripped lines of `text` without blank lines and whole-line comments."""
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(comment)]


def _paired(target: str, prediction: str, comment: str) -> tuple[str, str]:
    wanted = code_lines(target, comment=comment)
    given = code_lines(prediction, comment=comment)[: len(wanted)]
    return "\n".join(wanted), "\n".join(given)


def edit_similarity(target: str, prediction: str, *, comment: str = "#") -> float:
    """`1 - lev / max(len)` of the code lines, the prediction cut to the target's line count.

    Lines are stripped; blank and comment lines are dropped on both sides. Two empty texts are
    equal.

    Raises:
        DependencyError: without rapidfuzz.
    """
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise DependencyError(
            "edit similarity needs rapidfuzz; pip install 'outlay[eval]'"
        ) from error
    wanted, given = _paired(target, prediction, comment)
    longest = max(len(wanted), len(given))
    return 1.0 - Levenshtein.distance(wanted, given) / longest if longest else 1.0


def exact_match(target: str, prediction: str, *, comment: str = "#") -> float:
    """1.0 if the same lines as in `edit_similarity` are equal, else 0.0."""
    wanted, given = _paired(target, prediction, comment)
    return float(wanted == given)


def normalise_answer(text: str) -> str:
    """Lower case, no articles, no punctuation at the edges of words, single spaces."""
    words = []
    for word in text.casefold().split():
        bare = _EDGES.sub("", word)
        # A word of punctuation only (an operator) is kept as it is: it may be the answer.
        words.append(bare or word)
    kept = [word for word in words if word not in _ARTICLES]
    return " ".join(kept or words)


def answer_exact(gold: str, answer: str) -> float:
    """1.0 if both are equal after normalisation."""
    return float(normalise_answer(gold) == normalise_answer(answer))


def answer_contains(gold: str, answer: str) -> float:
    """1.0 if the words of `gold` occur in `answer`, in a row, after normalisation."""
    wanted = normalise_answer(gold)
    return float(bool(wanted) and f" {wanted} " in f" {normalise_answer(answer)} ")


def answer_f1(gold: str, answer: str) -> float:
    """Harmonic mean of precision and recall over the bag of normalised words."""
    wanted, given = normalise_answer(gold).split(), normalise_answer(answer).split()
    shared = sum((Counter(wanted) & Counter(given)).values())
    return 2.0 * shared / (len(wanted) + len(given)) if shared else 0.0
