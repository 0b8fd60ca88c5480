"""Training of the in-context model: a Llama from scratch on sequences of nine items of one rule.

The loss is next-token cross-entropy on answers and the end of each item. AdamW, linear warm-up,
cosine decay to a tenth. The same configuration, thread count and library versions give the same
weights bit for bit.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from outlay.errors import InputError
from outlay.testbeds.icl.tokenizer import CONTEXT, build_tokenizer, vocabulary
from outlay.testbeds.icl.world import ARROW, END, FAMILIES, MAX_ITEMS, draw_instance
from outlay.testbeds.tiny_llama import IGNORED, Batch, Progress, build_llama, check_size, fit

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

# Each family's share of training: the shift, which is arithmetic, is learnt last.
TRAIN_MIX = (0.2, 0.5, 0.3)


@dataclass(frozen=True)
class TrainConfig:
    """Size of the model and of its training.

    Args:
        steps: optimiser steps.
        seed: of weights and data.
        hidden: width of the model.
        layers: number of layers.
        heads: attention heads.
        batch: sequences per step.
        lr: peak learning rate.
        warmup: steps of linear warm-up.
        weight_decay: of matrices.
        clip: largest gradient norm.

    Raises:
        InputError: for values out of range.
    """

    steps: int = 2000
    seed: int = 0
    hidden: int = 96
    layers: int = 3
    heads: int = 4
    batch: int = 40
    lr: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "layers", "batch", "heads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; must be at least 1")
        check_size(self.hidden, self.heads, self.layers)
        if not self.lr > 0:
            raise InputError(f"lr={self.lr}; must be positive")


def build_model(config: TrainConfig) -> LlamaForCausalLM:
    """A freshly initialised model, seeded by `config.seed`."""
    known = vocabulary()
    return build_llama(
        vocabulary=len(known),
        context=CONTEXT,
        hidden=config.hidden,
        layers=config.layers,
        heads=config.heads,
        eos=known[END],
        pad=0,
        seed=config.seed,
    )


def batches(config: TrainConfig) -> Iterator[Batch]:
    """Endless (ids_BT, labels_BT), right-padded."""
    rng = random.Random(f"icl:{config.seed}")
    known = vocabulary()
    while True:
        rows = []
        for family in rng.choices(FAMILIES, weights=TRAIN_MIX, k=config.batch):
            made = draw_instance(rng, family, MAX_ITEMS - 1)
            ids, labels = [], []
            for item in (*made.pool, made.question):
                answered = False
                for character in item.text:
                    ids.append(known[character])
                    labels.append(known[character] if answered else IGNORED)
                    answered = answered or character == ARROW
            rows.append((ids, labels))
        width = max(len(ids) for ids, _ in rows)
        ids_BT = torch.zeros((config.batch, width), dtype=torch.long)
        labels_BT = torch.full((config.batch, width), IGNORED)
        for i, (ids, labels) in enumerate(rows):
            ids_BT[i, : len(ids)] = torch.tensor(ids)
            labels_BT[i, : len(ids)] = torch.tensor(labels)
        yield ids_BT, labels_BT


def train(
    config: TrainConfig, report: Callable[[Progress], None] | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train a model; `report` is called after every step.

    Returns:
        The model in eval mode and its tokenizer.
    """
    model = build_model(config)
    fit(
        model,
        batches(config),
        steps=config.steps,
        lr=config.lr,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        clip=config.clip,
        report=report,
    )
    return model, build_tokenizer()
