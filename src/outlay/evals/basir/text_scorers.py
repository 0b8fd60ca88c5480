"""Scorers that learn from the words: ridge on TF-IDF or embeddings, LightGBM, a cross-encoder.

The target of the ridges is a sector's return minus the mean of its event: the market's own move
says nothing about an order. Embedding scorers average the vectors of a sector's excerpts, because
an encoder reads 256 word pieces and a concatenation would be cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from outlay.errors import InputError, ModelError
from outlay.evals.basir.base import missing
from outlay.evals.basir.embedding import load_encoder
from outlay.evals.basir.relevance import relevance
from outlay.evals.basir.scorers import Event, FloatArray, Mentions, check_past
from outlay.evals.basir.tfidf import vectorizer
from outlay.evals.checks import check_positive, check_whole
from outlay.models.encoders import MINILM, encoder_folder

CrossLoss = Literal["lambda", "listnet"]

QUESTION = "Which sector gains most on the stock market after this speech?"


def _targets(events: Sequence[Event]) -> FloatArray:
    return np.concatenate([event.returns_N - event.returns_N.mean() for event in events])


def _ridge(features: Any, targets: FloatArray, alpha: float) -> Any:
    try:
        from sklearn.linear_model import Ridge
    except ImportError as error:
        raise missing("scikit-learn", error) from error
    spread = float(targets.std()) or 1.0
    return Ridge(alpha=alpha).fit(features, targets / spread)


def _vectors(model: str, mentions: Sequence[Mentions]) -> FloatArray:
    """(sum of sectors, D) mean vector of every sector's excerpts."""
    flat = [text for one in mentions for texts in one.texts for text in texts]
    vectors = load_encoder(model).encode(flat)
    sizes = [len(texts) for one in mentions for texts in one.texts]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int)
    return np.asarray(np.add.reduceat(vectors, starts, axis=0) / np.array(sizes)[:, None])


@dataclass(frozen=True)
class TfidfRidge:
    """Ridge regression on TF-IDF of a sector's excerpts.

    Args:
        alpha: strength of the penalty.
        ngrams: longest n-gram of words.
        fitted: set by `fit`.
    """

    alpha: float = 1.0
    ngrams: int = 2
    fitted: tuple[Any, Any] | None = field(default=None, repr=False, compare=False)

    name: ClassVar[str] = "tfidf-ridge"

    def __post_init__(self) -> None:
        check_positive("alpha", self.alpha)
        check_whole("ngrams", self.ngrams, least=1)

    def fit(self, events: Sequence[Event]) -> TfidfRidge:
        """See `Scorer.fit`."""
        check_past(events, self.name)
        vectors = vectorizer(self.ngrams, 50_000)
        texts = [text for event in events for text in event.mentions.joined()]
        try:
            features = vectors.fit_transform(texts)
        except ValueError as error:
            raise InputError(f"the past excerpts hold no words ({error})") from error
        return replace(self, fitted=(vectors, _ridge(features, _targets(events), self.alpha)))

    def score(self, mentions: Mentions) -> FloatArray:
        """See `Scorer.score`."""
        if self.fitted is None:
            raise InputError("scorer 'tfidf-ridge' was not fitted; call fit with past events")
        vectors, model = self.fitted
        return np.asarray(model.predict(vectors.transform(mentions.joined())), dtype=float)


@dataclass(frozen=True)
class EmbedRidge:
    """Ridge regression on sentence embeddings.

    Args:
        alpha: strength of the penalty.
        model: "minilm", or a sentence-transformers folder.
        fitted: set by `fit`.
    """

    alpha: float = 1.0
    model: str = MINILM
    fitted: Any = field(default=None, repr=False, compare=False)

    name: ClassVar[str] = "embed-ridge"

    def __post_init__(self) -> None:
        check_positive("alpha", self.alpha)

    def fit(self, events: Sequence[Event]) -> EmbedRidge:
        """See `Scorer.fit`."""
        check_past(events, self.name)
        features = _vectors(self.model, [event.mentions for event in events])
        return replace(self, fitted=_ridge(features, _targets(events), self.alpha))

    def score(self, mentions: Mentions) -> FloatArray:
        """See `Scorer.score`."""
        if self.fitted is None:
            raise InputError("scorer 'embed-ridge' was not fitted; call fit with past events")
        return np.asarray(self.fitted.predict(_vectors(self.model, [mentions])), dtype=float)


@dataclass(frozen=True)
class LambdaRank:
    """LightGBM's LambdaRank on sentence embeddings; an event is a group, grades are quantiles.

    Args:
        trees: boosting rounds.
        leaves: of a tree.
        lr: learning rate.
        model: "minilm", or a sentence-transformers folder.
        seed: of LightGBM.
        fitted: set by `fit`.
    """

    trees: int = 60
    leaves: int = 7
    lr: float = 0.1
    model: str = MINILM
    seed: int = 0
    fitted: Any = field(default=None, repr=False, compare=False)

    name: ClassVar[str] = "lambdarank"

    def __post_init__(self) -> None:
        check_whole("trees", self.trees, least=1)
        check_whole("leaves", self.leaves, least=2)
        check_whole("seed", self.seed)
        check_positive("lr", self.lr)

    def fit(self, events: Sequence[Event]) -> LambdaRank:
        """See `Scorer.fit`."""
        check_past(events, self.name)
        try:
            from lightgbm import LGBMRanker
        except ImportError as error:
            raise missing("lightgbm", error) from error
        ranker = LGBMRanker(
            objective="lambdarank",
            n_estimators=self.trees,
            num_leaves=self.leaves,
            learning_rate=self.lr,
            min_child_samples=10,
            random_state=self.seed,
            deterministic=True,
            force_row_wise=True,
            n_jobs=1,
            verbosity=-1,
        )
        grades = np.concatenate([relevance(event.returns_N, "quantile") for event in events])
        features = _vectors(self.model, [event.mentions for event in events])
        ranker.fit(features, grades.astype(int), group=[len(e.returns_N) for e in events])
        return replace(self, fitted=ranker.booster_)

    def score(self, mentions: Mentions) -> FloatArray:
        """See `Scorer.score`."""
        if self.fitted is None:
            raise InputError("scorer 'lambdarank' was not fitted; call fit with past events")
        return np.asarray(self.fitted.predict(_vectors(self.model, [mentions])), dtype=float)


@dataclass(frozen=True)
class CrossEncoderRanker:
    """A cross-encoder that reads a question and a sector's excerpts together.

    Args:
        loss: "lambda" (`LambdaLoss`) or "listnet" (`ListNetLoss`), both of sentence-transformers.
        epochs: passes over the events.
        lr: learning rate.
        batch: events per step.
        model: "minilm" or a folder: the network that training starts from, with a new head.
        seed: of the head and the order.
        fitted: set by `fit`.
    """

    loss: CrossLoss = "lambda"
    epochs: int = 3
    lr: float = 5e-5
    batch: int = 4
    model: str = MINILM
    seed: int = 0
    fitted: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.loss not in get_args(CrossLoss):
            raise InputError(f"loss={self.loss!r}; choose one of {', '.join(get_args(CrossLoss))}")
        check_whole("epochs", self.epochs, least=1)
        check_whole("batch", self.batch, least=1)
        check_whole("seed", self.seed)
        check_positive("lr", self.lr)

    @property
    def name(self) -> str:
        """ "cross-encoder" and the loss."""
        return f"cross-encoder-{self.loss}"

    def fit(self, events: Sequence[Event]) -> CrossEncoderRanker:
        """See `Scorer.fit`."""
        check_past(events, self.name)
        place = encoder_folder(self.model)
        if not Path(place).is_dir():
            raise ModelError(f"model={self.model!r} is no folder; give 'minilm' or a folder")
        from outlay.evals.basir.crosstrain import train_cross_encoder

        network = train_cross_encoder(
            place,
            QUESTION,
            [_documents(event.mentions) for event in events],
            [relevance(event.returns_N, "quantile") for event in events],
            loss=self.loss,
            epochs=self.epochs,
            lr=self.lr,
            batch=self.batch,
            seed=self.seed,
        )
        return replace(self, fitted=network)

    def score(self, mentions: Mentions) -> FloatArray:
        """See `Scorer.score`."""
        if self.fitted is None:
            raise InputError(f"scorer {self.name!r} was not fitted; call fit with past events")
        pairs = [(QUESTION, text) for text in _documents(mentions)]
        return np.asarray(self.fitted.predict(pairs, show_progress_bar=False), dtype=float)


def _documents(mentions: Mentions) -> list[str]:
    return [f"{n}: {t}" for n, t in zip(mentions.names, mentions.joined(), strict=True)]
