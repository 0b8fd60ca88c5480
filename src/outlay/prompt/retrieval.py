"""Retrieval as compression: keep the chunks that resemble the question, by words or by embedding.

The retrieval baselines of LongCodeZip (arXiv 2510.00446, section 4.2): function chunks, or windows
of 80 lines that overlap by 40. The paper keeps the best k=3; here the budget decides, so that
methods meet at equal tokens (`k` still caps the number). What is left over is filled with single
lines of the next best chunks.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from outlay.budget import Budget
from outlay.errors import DependencyError, InputError, ModelError
from outlay.ledger import Ledger
from outlay.models.encoders import LOCK, sentence_encoder
from outlay.prompt.base import Compressed, CountTokens, check_text, prompt_limit
from outlay.prompt.chunking import Chunk, resolve_language, split_chunks
from outlay.prompt.markers import Assembly, Source, keep_ranked, marker_text
from outlay.prompt.truncation import compressed, unchanged

Unit = Literal["function", "window"]

_WORD = re.compile(r"[A-Za-z]+|\d+|[^\W\d_]+")
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_IDENTIFIER = re.compile(r"\w+")


def code_words(text: str) -> list[str]:
    """Words of code in lower case: every identifier, and its snake_case and camelCase parts."""
    words: list[str] = []
    for identifier in _IDENTIFIER.findall(text):
        words.append(identifier.lower())
        parts = [p for w in _WORD.findall(identifier) for p in (_CAMEL.findall(w) or [w])]
        if len(parts) > 1:
            words += [part.lower() for part in parts]
    return words


def windows(lines: int, size: int, overlap: int) -> list[Chunk]:
    """Windows of `size` lines that overlap by `overlap` and cover `lines` lines."""
    step = size - overlap
    starts = range(0, max(1, lines - overlap), step)
    return [Chunk(first, min(lines, first + size)) for first in starts]


def _check(unit: str, window: int, overlap: int, k: int | None) -> None:
    if unit not in get_args(Unit):
        raise InputError(f"unit={unit!r}; choose one of {', '.join(get_args(Unit))}")
    if window < 1 or not 0 <= overlap < window:
        raise InputError(f"window={window}, overlap={overlap}; need 0 <= overlap < window")
    if k is not None and k < 1:
        raise InputError(f"k={k}; give a number >= 1, or None for as many as fit")


def _retrieve(
    method: BM25 | EmbeddingRetrieval,
    prompt: str,
    question: str,
    budget: Budget,
    count: CountTokens,
    language: str,
    score: Callable[[Sequence[str], str], np.ndarray],
    ledger: Ledger,
) -> Compressed:
    limit, text = prompt_limit(budget), check_text(prompt)
    if (whole := unchanged(prompt, text, limit, count)) is not None:
        return whole
    question = check_text(question, "question") if question.strip() else ""
    language = resolve_language(language, text)
    source = Source.read(prompt, count, language)
    notes: list[str] = []
    if method.unit == "window":
        chunks = windows(len(source), method.window, method.overlap)
    else:
        chunks, notes = split_chunks(source.lines, language, separator=method.separator)
    scores = np.zeros(len(chunks))
    if question:
        scores = score([source.text(chunk) for chunk in chunks], question)
    order = sorted(range(len(chunks)), key=lambda i: -float(scores[i]))  # stable: source order
    assembly = Assembly(source, count, limit, marker=marker_text(language))
    assembly.require_fit("an omission marker")
    units = [range(chunks[i].first, chunks[i].stop) for i in order]
    keep_ranked(assembly, units[: method.k], fill=method.fill)
    report: dict[str, Any] = {
        "language": language,
        "chunks": [
            {
                "name": chunks[i].name,
                "lines": [source.rows[chunks[i].first] + 1, source.rows[chunks[i].stop - 1] + 1],
                "score": float(scores[i]),
                "rank": rank,
            }
            for rank, i in enumerate(order)
        ],
    }
    result = compressed(assembly, count(prompt), report, tuple(notes))
    result.ledger.extend(ledger)
    return result


@dataclass(frozen=True)
class BM25:
    """Keeps the chunks that share words with the question (Okapi BM25, through bm25s).

    Args:
        unit: "function" chunks or "window"s of lines.
        window: lines of a window.
        overlap: lines that neighbouring windows share.
        k: at most this many chunks; None for as many as fit.
        k1: saturation of term counts.
        b: weight of document length.
        fill: spend what is left over on single lines of the best chunks left out.
        separator: line that separates files in the context; "" for none.

    Raises:
        InputError: for knobs out of range.
    """

    unit: Unit = "function"
    window: int = 80
    overlap: int = 40
    k: int | None = None
    k1: float = 1.5
    b: float = 0.75
    fill: bool = True
    separator: str = ""

    def __post_init__(self) -> None:
        _check(self.unit, self.window, self.overlap, self.k)
        if not (self.k1 >= 0 and math.isfinite(self.k1)) or not 0 <= self.b <= 1:
            raise InputError(f"k1={self.k1}, b={self.b}; need k1 >= 0 and b in [0, 1]")

    def compress(
        self, prompt: str, question: str, budget: Budget, *, count: CountTokens, language: str = ""
    ) -> Compressed:
        """See `Compressor.compress`. Calls no model.

        Raises:
            DependencyError: if bm25s is not installed.
        """
        return _retrieve(
            self, prompt, question, budget, count, language, self._score, ledger=Ledger()
        )

    def _score(self, texts: Sequence[str], question: str) -> np.ndarray:
        try:
            import bm25s
        except ImportError as error:
            raise DependencyError(
                "BM25 needs bm25s; install it with: pip install 'outlay[eval]'"
            ) from error
        corpus = [code_words(text) for text in texts]
        known = {word for words in corpus for word in words}
        words = [word for word in code_words(question) if word in known]
        if not words:
            return np.zeros(len(texts))
        index = bm25s.BM25(k1=self.k1, b=self.b)
        index.index(corpus, show_progress=False)
        return np.asarray(index.get_scores(words), dtype=float)


@dataclass(frozen=True)
class EmbeddingRetrieval:
    """Keeps the chunks closest to the question by cosine of all-MiniLM-L6-v2 embeddings.

    The model reads 256 word pieces. Longer chunks are embedded in pieces of that size, and count by
    their best piece; a longer question is read from its end, where unfinished code stands.

    Args:
        unit: "function" chunks or "window"s of lines.
        window: lines of a window.
        overlap: lines that neighbouring windows share.
        k: at most this many chunks; None for as many as fit.
        fill: spend what is left over on single lines of the best chunks left out.
        separator: line that separates files in the context; "" for none.

    Raises:
        InputError: for knobs out of range.
    """

    unit: Unit = "function"
    window: int = 80
    overlap: int = 40
    k: int | None = None
    fill: bool = True
    separator: str = ""

    def __post_init__(self) -> None:
        _check(self.unit, self.window, self.overlap, self.k)

    def compress(
        self, prompt: str, question: str, budget: Budget, *, count: CountTokens, language: str = ""
    ) -> Compressed:
        """See `Compressor.compress`. The encoder's work is booked as a scorer's.

        Raises:
            DependencyError: if the embedding model is not installed.
        """
        ledger = Ledger()

        def score(texts: Sequence[str], question: str) -> np.ndarray:
            start = time.perf_counter()
            scores, tokens = _cosines(texts, question)
            ledger.record(
                "prompt",
                "scorer",
                prompt_new=tokens,
                method="embedding-retrieval",
                seconds=time.perf_counter() - start,
            )
            return scores

        return _retrieve(self, prompt, question, budget, count, language, score, ledger)


def _cosines(texts: Sequence[str], question: str) -> tuple[np.ndarray, int]:
    """Cosine of each text's best piece with the question, and the tokens that were read."""
    model = sentence_encoder()
    with LOCK:
        pieces, owner, tokens = [], [], 0
        room = int(model.max_seq_length) - 2  # [CLS] and [SEP]
        for i, text in enumerate([question, *texts]):
            encoded = model.tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )["offset_mapping"]
            starts = range(0, max(1, len(encoded)), room)
            if i == 0:
                starts = range(max(0, len(encoded) - room), max(1, len(encoded)), room)
            for at in starts:
                part = encoded[at : at + room]
                pieces.append(text[part[0][0] : part[-1][1]] if part else "")
                owner.append(i)
                tokens += len(part) + 2
        vectors_ND = model.encode(
            pieces, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
        )
    cosines = np.asarray(vectors_ND, dtype=float) @ np.asarray(vectors_ND[0], dtype=float)
    if not np.isfinite(cosines).all():
        raise ModelError("the embedding model gave a vector that is not a number; reinstall it")
    best = np.full(len(texts), -1.0)
    for i, cosine in zip(owner[1:], cosines[1:], strict=True):
        best[i - 1] = max(best[i - 1], cosine)
    return best, tokens
