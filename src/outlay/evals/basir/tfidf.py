"""Routes without a language model: the most frequent labels, and TF-IDF with linear heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from outlay.errors import InputError
from outlay.evals.basir.base import FloatArray, check_training, missing, unfitted
from outlay.evals.basir.labels import BoolArray, LabelSet
from outlay.evals.basir.linear import LinearHead, fit_head, load_arrays
from outlay.evals.checks import check_positive, check_whole


@dataclass(frozen=True)
class Frequent:
    """The baseline that reads nothing: every label scores its share of the training texts.

    Args:
        share_L: set by `fit`.
    """

    share_L: FloatArray | None = field(default=None, repr=False, compare=False)

    name: ClassVar[str] = "frequent"

    def fit(self, texts: Sequence[str], truth_NL: BoolArray, labels: LabelSet) -> Frequent:
        """See `Route.fit`."""
        check_training(texts, truth_NL, labels)
        return replace(self, share_L=truth_NL.mean(axis=0))

    def scores(self, texts: Sequence[str]) -> FloatArray:
        """See `Route.scores`."""
        if self.share_L is None:
            raise unfitted(self.name)
        return np.tile(np.where(self.share_L > 0, self.share_L, -np.inf), (len(texts), 1))

    def save(self, folder: Path) -> dict[str, Any]:
        """See `Route.save`."""
        if self.share_L is None:
            raise unfitted(self.name)
        return {"share": self.share_L.tolist()}

    def load(self, folder: Path, state: Mapping[str, Any]) -> Frequent:
        """See `Route.load`."""
        return replace(self, share_L=np.asarray(state["share"], dtype=float))


@dataclass(frozen=True)
class Tfidf:
    """TF-IDF of word n-grams and a balanced logistic regression per label.

    Args:
        ngrams: longest n-gram of words.
        c: inverse strength of the L2 penalty.
        max_features: the most frequent n-grams that are kept.
        seed: of the solver.
        vocabulary, idf, head: set by `fit`.

    Raises:
        InputError: for knobs out of range.
    """

    ngrams: int = 2
    c: float = 10.0
    max_features: int = 200_000
    seed: int = 0
    vocabulary: tuple[str, ...] = field(default=(), repr=False, compare=False)
    idf: FloatArray | None = field(default=None, repr=False, compare=False)
    head: LinearHead | None = field(default=None, repr=False, compare=False)

    name: ClassVar[str] = "tfidf"

    def __post_init__(self) -> None:
        check_whole("ngrams", self.ngrams, least=1)
        check_whole("max_features", self.max_features, least=1)
        check_whole("seed", self.seed)
        check_positive("c", self.c, usual=10)

    def fit(self, texts: Sequence[str], truth_NL: BoolArray, labels: LabelSet) -> Tfidf:
        """See `Route.fit`.

        Raises:
            InputError: if the texts hold no words.
            DependencyError: if scikit-learn is missing.
        """
        check_training(texts, truth_NL, labels)
        vectors = vectorizer(self.ngrams, self.max_features)
        try:
            features = vectors.fit_transform(texts)
        except ValueError as error:
            raise InputError(f"the training texts hold no words ({error})") from error
        head = fit_head(features, truth_NL, c=self.c, solver="liblinear", seed=self.seed)
        words = tuple(str(word) for word in vectors.get_feature_names_out())
        return replace(self, vocabulary=words, idf=np.asarray(vectors.idf_), head=head)

    @cached_property
    def _vectors(self) -> Any:
        vectors = vectorizer(self.ngrams, None, vocabulary=self.vocabulary)
        vectors.idf_ = self.idf
        return vectors

    def scores(self, texts: Sequence[str]) -> FloatArray:
        """See `Route.scores`; logits."""
        if self.head is None or self.idf is None:
            raise unfitted(self.name)
        return self.head.scores(self._vectors.transform(texts))

    def save(self, folder: Path) -> dict[str, Any]:
        """See `Route.save`."""
        if self.head is None or self.idf is None:
            raise unfitted(self.name)
        self.head.save(folder, idf=self.idf)
        return {"vocabulary": list(self.vocabulary)}

    def load(self, folder: Path, state: Mapping[str, Any]) -> Tfidf:
        """See `Route.load`."""
        arrays = load_arrays(folder)
        words = tuple(state["vocabulary"])
        if len(words) != len(arrays.get("idf", ())):
            raise InputError(f"{folder} has {len(words)} words but another idf; train again")
        head = LinearHead(arrays["weights"], arrays["bias"])
        return replace(self, vocabulary=words, idf=arrays["idf"], head=head)


def vectorizer(
    ngrams: int, max_features: int | None, vocabulary: Sequence[str] | None = None
) -> Any:
    """scikit-learn's TF-IDF of word 1..n-grams.

    Raises:
        DependencyError: if scikit-learn is missing.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise missing("scikit-learn", error) from error
    return TfidfVectorizer(
        ngram_range=(1, ngrams), max_features=max_features, vocabulary=vocabulary
    )
