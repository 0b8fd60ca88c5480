"""Training of a cross-encoder to rank lists, by sentence-transformers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers.cross_encoder import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
)
from sentence_transformers.cross_encoder.losses import LambdaLoss, ListNetLoss
from transformers.trainer_callback import PrinterCallback

from outlay.errors import ModelError
from outlay.evals.basir.relevance import FloatArray


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
    with tempfile.TemporaryDirectory() as scratch:
        arguments = CrossEncoderTrainingArguments(
            output_dir=scratch,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch,
            learning_rate=lr,
            warmup_steps=0.1,
            seed=seed,
            data_seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = CrossEncoderTrainer(model=model, args=arguments, train_dataset=lists, loss=judged)
        trainer.remove_callback(PrinterCallback)  # standard output is for results
        trainer.train()
    if not all(bool(torch.isfinite(weight).all()) for weight in model.parameters()):
        raise ModelError(f"training diverged at lr={lr}; lower lr=")
    return model
