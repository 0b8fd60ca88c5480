"""Embedding routes: zero-shot cosine, a frozen encoder with linear heads, a fine-tuned encoder.

The default encoder is all-MiniLM-L6-v2 (22M parameters, Apache-2.0), which reads 256 word pieces;
any sentence-transformers folder works. The paper's own encoder could not be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from outlay.errors import InputError, ModelError
from outlay.evals.basir.base import FloatArray, check_training, unfitted
from outlay.evals.basir.labels import BoolArray, LabelSet
from outlay.evals.basir.linear import LinearHead, fit_head, load_arrays
from outlay.evals.checks import check_positive, check_whole
from outlay.models.encoders import LOCK, MINILM, sentence_encoder

TUNED = "encoder"
"""Folder of a fine-tuned encoder."""

_MEMO = 50_000  # vectors kept per encoder


class Encoder:
    """Unit vectors of texts; each distinct text is encoded once.

    Args:
        network: a `SentenceTransformer`.
        name: "minilm" or a path.
    """

    def __init__(self, network: Any, name: str) -> None:
        self.network, self.name = network, name
        self._memo: dict[str, FloatArray] = {}

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """(N, D) vectors of length 1.

        Raises:
            InputError: for no text.
            ModelError: if a vector is not finite.
        """
        if not len(texts):
            raise InputError("no text to encode; give at least one")
        with LOCK:
            new = [text for text in dict.fromkeys(texts) if text not in self._memo]
            if len(self._memo) + len(new) > _MEMO:
                self._memo.clear()
                new = list(dict.fromkeys(texts))
            if new:
                vectors_ND = self.network.encode(
                    new, batch_size=32, normalize_embeddings=True, show_progress_bar=False
                )
                if not np.isfinite(vectors_ND).all():
                    raise ModelError(f"encoder {self.name} gave a vector that is not a number")
                self._memo.update(zip(new, np.asarray(vectors_ND, dtype=float), strict=True))
            return np.stack([self._memo[text] for text in texts])

    def count(self, texts: Sequence[str]) -> int:
        """Word pieces that the encoder reads for these texts."""
        ids = self.network.tokenizer(
            list(texts), truncation=True, max_length=self.network.max_seq_length
        )["input_ids"]
        return sum(map(len, ids))


@lru_cache(maxsize=4)
def load_encoder(model: str = MINILM) -> Encoder:
    """The encoder "minilm", or one from a folder.

    Raises:
        DependencyError: if sentence-transformers or the packaged weights are missing.
        ModelError: if the folder holds no encoder.
    """
    if model != MINILM and not Path(model).is_dir():
        raise ModelError(
            f"model={model!r} is no folder; give 'minilm' or a sentence-transformers folder"
        )
    return Encoder(sentence_encoder(model), model)


def _cosine(encoder: Encoder, texts: Sequence[str], labels_LD: FloatArray) -> FloatArray:
    vectors_ND = encoder.encode(texts)
    if vectors_ND.shape[1] != labels_LD.shape[1]:
        raise InputError(
            f"texts have dimension {vectors_ND.shape[1]}, labels {labels_LD.shape[1]}; encode both "
            "with the same model"
        )
    return np.asarray(vectors_ND @ labels_LD.T)


@dataclass(frozen=True)
class EmbedZero:
    """Cosine of the text and the label's name and definition; learns nothing but the labels.

    Args:
        model: "minilm", or the folder of a sentence-transformers model.
        labels: set by `fit`.
    """

    model: str = MINILM
    labels: LabelSet | None = field(default=None, repr=False, compare=False)

    name: ClassVar[str] = "embed-zero"

    def fit(self, texts: Sequence[str], truth_NL: BoolArray, labels: LabelSet) -> EmbedZero:
        """See `Route.fit`; texts and truth are not read."""
        return replace(self, labels=labels)

    def scores(self, texts: Sequence[str]) -> FloatArray:
        """See `Route.scores`; cosines."""
        if self.labels is None:
            raise unfitted(self.name)
        encoder = load_encoder(self.model)
        return _cosine(encoder, texts, encoder.encode([label.text for label in self.labels]))

    def save(self, folder: Path) -> dict[str, Any]:
        """See `Route.save`."""
        if self.labels is None:
            raise unfitted(self.name)
        return {"labels": self.labels.to_dict()}

    def load(self, folder: Path, state: Mapping[str, Any]) -> EmbedZero:
        """See `Route.load`."""
        return replace(self, labels=LabelSet.from_dicts(state["labels"]))


@dataclass(frozen=True)
class EmbedLR:
    """A frozen encoder and a balanced logistic regression per label.

    Args:
        model: "minilm", or the folder of a sentence-transformers model.
        c: inverse strength of the L2 penalty.
        seed: of the solver.
        head: set by `fit`.

    Raises:
        InputError: for c out of range.
    """

    model: str = MINILM
    c: float = 10.0
    seed: int = 0
    head: LinearHead | None = field(default=None, repr=False, compare=False)

    name: ClassVar[str] = "embed-lr"

    def __post_init__(self) -> None:
        check_whole("seed", self.seed)
        check_positive("c", self.c, usual=10)

    def fit(self, texts: Sequence[str], truth_NL: BoolArray, labels: LabelSet) -> EmbedLR:
        """See `Route.fit`."""
        check_training(texts, truth_NL, labels)
        vectors_ND = load_encoder(self.model).encode(texts)
        head = fit_head(vectors_ND, truth_NL, c=self.c, solver="lbfgs", seed=self.seed)
        return replace(self, head=head)

    def scores(self, texts: Sequence[str]) -> FloatArray:
        """See `Route.scores`; logits."""
        if self.head is None:
            raise unfitted(self.name)
        return self.head.scores(load_encoder(self.model).encode(texts))

    def save(self, folder: Path) -> dict[str, Any]:
        """See `Route.save`."""
        if self.head is None:
            raise unfitted(self.name)
        self.head.save(folder)
        return {}

    def load(self, folder: Path, state: Mapping[str, Any]) -> EmbedLR:
        """See `Route.load`."""
        arrays = load_arrays(folder)
        return replace(self, head=LinearHead(arrays["weights"], arrays["bias"]))


@dataclass(frozen=True)
class EmbedFT:
    """A bi-encoder fine-tuned on (text, label) pairs with in-batch negatives, the paper's family.

    Another true label of the same text, or the same label from another pair, is no negative: such
    pairs are masked in the loss (see `finetune`).

    Args:
        model: where training starts: "minilm" or a folder.
        epochs: passes over the pairs (1 to 5 are usual).
        lr: learning rate, with a linear warm-up over the first tenth and linear decay.
        batch: pairs per step.
        temperature: of the softmax over the batch.
        seed: of the order of the pairs.
        labels, encoder: set by `fit`.

    Raises:
        InputError: for knobs out of range.
    """

    model: str = MINILM
    epochs: int = 3
    lr: float = 2e-5
    batch: int = 32
    temperature: float = 1 / 20
    seed: int = 0
    labels: LabelSet | None = field(default=None, repr=False, compare=False)
    encoder: Encoder | None = field(default=None, repr=False, compare=False)

    name: ClassVar[str] = "embed-ft"

    def __post_init__(self) -> None:
        check_whole("epochs", self.epochs, least=1)
        check_whole("batch", self.batch, least=2)
        check_whole("seed", self.seed)
        check_positive("lr", self.lr)
        check_positive("temperature", self.temperature)

    def fit(self, texts: Sequence[str], truth_NL: BoolArray, labels: LabelSet) -> EmbedFT:
        """See `Route.fit`."""
        check_training(texts, truth_NL, labels)
        start = load_encoder(self.model)
        from outlay.evals.basir.finetune import train_encoder

        network = train_encoder(
            start.network,
            texts,
            truth_NL,
            [label.text for label in labels],
            epochs=self.epochs,
            lr=self.lr,
            batch=self.batch,
            temperature=self.temperature,
            seed=self.seed,
        )
        return replace(self, labels=labels, encoder=Encoder(network, f"{self.model}, tuned"))

    def scores(self, texts: Sequence[str]) -> FloatArray:
        """See `Route.scores`; cosines."""
        if self.encoder is None or self.labels is None:
            raise unfitted(self.name)
        return _cosine(
            self.encoder, texts, self.encoder.encode([label.text for label in self.labels])
        )

    def save(self, folder: Path) -> dict[str, Any]:
        """See `Route.save`; the encoder is a sentence-transformers folder with safetensors."""
        if self.encoder is None or self.labels is None:
            raise unfitted(self.name)
        self.encoder.network.save(
            str(folder / TUNED), create_model_card=False, safe_serialization=True
        )
        return {"labels": self.labels.to_dict()}

    def load(self, folder: Path, state: Mapping[str, Any]) -> EmbedFT:
        """See `Route.load`."""
        encoder = load_encoder(str(folder / TUNED))
        return replace(self, labels=LabelSet.from_dicts(state["labels"]), encoder=encoder)
