"""Fine-tuning of a sentence encoder with masked in-batch negatives, by sentence-transformers.

The trainer and the loss are the library's; ours is the mask. In a batch of (text, label) pairs,
the label of pair j is a negative for the text of pair i, unless it is true for that text. With one
label per text and no label twice in a batch nothing is masked, and the loss is the plain one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sentence_transformers import (
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor

from outlay.errors import InputError
from outlay.evals.basir.labels import BoolArray
from outlay.evals.basir.training import run_trainer


class MaskedNegativesLoss(MultipleNegativesRankingLoss):
    """`MultipleNegativesRankingLoss` without false negatives.

    The batch's `labels` are indices of pairs.

    Args:
        model: the encoder.
        row_P: row of each pair's text in `truth_NL`.
        label_P: label of each pair.
        truth_NL: which labels are true for which text.
        scale: inverse temperature.
    """

    row_P: Tensor
    label_P: Tensor
    truth_NL: Tensor

    def __init__(
        self, model: Any, row_P: Tensor, label_P: Tensor, truth_NL: Tensor, scale: float = 20.0
    ) -> None:
        super().__init__(model, scale=scale)
        self.register_buffer("row_P", row_P, persistent=False)
        self.register_buffer("label_P", label_P, persistent=False)
        self.register_buffer("truth_NL", truth_NL, persistent=False)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        """Cross-entropy of each text over the batch's labels, true ones masked but its own.

        Args:
            embeddings: texts and labels, (B, D) each.
            labels: (B,) indices of the pairs.
        """
        texts_BD, labels_BD = embeddings
        logits_BB = self.similarity_fct(texts_BD, labels_BD) * self.scale
        true_BB = self.truth_NL[self.row_P[labels]][:, self.label_P[labels]]
        own_BB = torch.eye(len(labels), dtype=torch.bool, device=logits_BB.device)
        logits_BB = logits_BB.masked_fill(true_BB & ~own_BB, -torch.inf)
        target_B = torch.arange(len(labels), device=logits_BB.device)
        return F.cross_entropy(logits_BB, target_B)


def train_encoder(
    network: Any,
    texts: Sequence[str],
    truth_NL: BoolArray,
    label_texts: Sequence[str],
    *,
    epochs: int,
    lr: float,
    batch: int,
    temperature: float,
    seed: int,
) -> Any:
    """A fine-tuned copy of a `SentenceTransformer`.

    Raises:
        InputError: if the labels do not fit the truth, or there are fewer than two pairs.
        ModelError: if the training diverged.
    """
    from datasets import Dataset

    if len(label_texts) != truth_NL.shape[1]:
        raise InputError(f"{len(label_texts)} label texts for {truth_NL.shape[1]} labels")
    row_P, label_P = np.nonzero(truth_NL)
    if len(row_P) < 2:
        raise InputError(f"{len(row_P)} (text, label) pairs; fine-tuning needs at least two")
    model = copy.deepcopy(network)
    loss = MaskedNegativesLoss(
        model,
        torch.from_numpy(row_P),
        torch.from_numpy(label_P),
        torch.from_numpy(np.ascontiguousarray(truth_NL)),
        scale=1 / temperature,
    )
    pairs = Dataset.from_dict(
        {
            "anchor": [texts[int(row)] for row in row_P],
            "positive": [label_texts[int(label)] for label in label_P],
            "label": list(range(len(row_P))),
        }
    )
    run_trainer(
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        model,
        pairs,
        loss,
        epochs=epochs,
        lr=lr,
        batch=batch,
        seed=seed,
    )
    return model.eval()
