"""Training of the in-context model: a Llama from scratch on sequences of nine items of one rule.

The loss is next-token cross-entropy on answers and the end of each item. AdamW, linear warm-up,
cosine decay to a tenth. The same configuration, thread count and library versions give the same
weights bit for bit.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from outlay.errors import InputError
from outlay.testbeds.icl.tokenizer import CONTEXT, build_tokenizer, vocabulary
from outlay.testbeds.icl.world import ARROW, END, FAMILIES, MAX_ITEMS, draw_instance

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

IGNORED = -100
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
        if self.hidden < 1 or self.hidden % (2 * self.heads):
            raise InputError(
                f"hidden={self.hidden} with heads={self.heads}; hidden must be a multiple of "
                f"{2 * self.heads} so that every head has an even width"
            )
        if not self.lr > 0:
            raise InputError(f"lr={self.lr}; must be positive")


def build_model(config: TrainConfig) -> LlamaForCausalLM:
    """A freshly initialised model, seeded by `config.seed`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(config.seed)
    known = vocabulary()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(known),
            hidden_size=config.hidden,
            intermediate_size=config.hidden * 8 // 3 // 32 * 32,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            initializer_range=config.hidden**-0.5,  # 0.02 starves attention at this width
            bos_token_id=None,
            eos_token_id=known[END],
            pad_token_id=0,
        )
    )
    model.generation_config.do_sample = False
    return model


Batch = tuple[torch.Tensor, torch.Tensor]


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


@dataclass(frozen=True)
class Progress:
    """State of a training after `step` steps."""

    step: int
    loss: float
    lr: float
    tokens: int
    seconds: float


def train(
    config: TrainConfig, report: Callable[[Progress], None] | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train a model; `report` is called after every step.

    Returns:
        The model in eval mode and its tokenizer.
    """
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    model = build_model(config)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(0.9, 0.98),
    )
    scheduler = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, config.warmup, max(config.steps, config.warmup + 1), min_lr_rate=0.1
    )
    started = time.perf_counter()
    tokens = 0
    model.train()
    for step, (ids_BT, labels_BT) in enumerate(batches(config), start=1):
        # Right padding needs no mask: causal attention keeps pads out of every real position.
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORED
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += ids_BT.numel()
        if report is not None:
            rate = float(scheduler.get_last_lr()[0])
            seconds = time.perf_counter() - started
            report(Progress(step, float(loss.detach()), rate, tokens, seconds))
        if step == config.steps:
            break
    model.train(False)
    return model, build_tokenizer()
