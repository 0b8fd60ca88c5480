"""Training of a cross-encoder to rank lists, by sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers.cross_encoder import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
)
from sentence_transformers.cross_encoder.losses import LambdaLoss, ListNetLoss

from outlay.evals.basir.relevance import FloatArray
from outlay.evals.basir.training import run_trainer


def train_cross_encoder(
    place: str,
    question: str,
    documents: Sequence[Sequence[str]],
    grades: Sequence[FloatArray],
    *,
    loss: str,
    epochs: int,
    lr: float,
    batch: int,
    seed: int,
) -> Any:
    """A `CrossEncoder` trained on one list of documents per event.

    Raises:
        ModelError: if the training diverged.
    """
    from datasets import Dataset

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of the new head
        model = CrossEncoder(place, num_labels=1, max_length=256)
    lists = Dataset.from_dict(
        {
            "query": [question] * len(documents),
            "docs": [list(texts) for texts in documents],
            "labels": [values.tolist() for values in grades],
        }
    )
    judged = LambdaLoss(model) if loss == "lambda" else ListNetLoss(model)
    run_trainer(
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
        model,
        lists,
        judged,
        epochs=epochs,
        lr=lr,
        batch=batch,
        seed=seed,
    )
    return model
