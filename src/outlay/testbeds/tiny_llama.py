"""How the testbeds' models are made: a small Llama, and its training from scratch.

The loss is next-token cross-entropy on labelled tokens. AdamW, linear warm-up, cosine decay to a
tenth. The same batches, settings, thread count and library versions give the same weights bit for
bit.

Shapes: B examples, T tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from outlay.errors import InputError
from outlay.testbeds.adam import Adam, cosine
from outlay.testbeds.packing import IGNORED, Batch

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

LOWEST = 0.1
"""Of the peak learning rate, at the end."""


@dataclass(frozen=True)
class Recipe:
    """Size of a model and of its training.

    Args:
        steps: optimiser steps.
        seed: of weights, data and order.
        hidden: width of the model.
        layers: number of layers.
        heads: attention heads.
        lr: peak learning rate.
        warmup: steps of linear warm-up.
        weight_decay: of matrices.
        clip: largest gradient norm.

    Raises:
        InputError: for values out of range.
    """

    steps: int = 4000
    seed: int = 0
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    lr: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps={self.steps}; must be at least 1")
        if self.layers < 1:
            raise InputError(f"layers={self.layers}; must be at least 1")
        if self.heads < 1 or self.hidden < 1 or self.hidden % (2 * self.heads):
            raise InputError(
                f"hidden={self.hidden} with heads={self.heads}; hidden must be a multiple of "
                f"{2 * max(1, self.heads)} so that every head has an even width"
            )
        if not self.lr > 0:
            raise InputError(f"lr={self.lr}; must be positive")


def build_llama(
    recipe: Recipe, *, vocabulary: int, context: int, eos: int, pad: int
) -> LlamaForCausalLM:
    """A freshly initialised model with tied embeddings, seeded by the recipe."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=recipe.hidden,
            intermediate_size=recipe.hidden * 8 // 3 // 32 * 32,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            initializer_range=recipe.hidden**-0.5,  # 0.02 starves attention at this width
            bos_token_id=None,
            eos_token_id=eos,
            pad_token_id=pad,
        )
    )
    model.generation_config.do_sample = False
    return model


@dataclass(frozen=True)
class Progress:
    """State of a training after `step` steps."""

    step: int
    loss: float
    lr: float
    tokens: int
    seconds: float


def fit(
    model: LlamaForCausalLM,
    batches: Iterable[Batch],
    recipe: Recipe,
    report: Callable[[Progress], None] | None = None,
) -> None:
    """Train `model` in place and leave it in eval mode; `report` is called after every step."""
    optimiser = Adam(
        model.parameters(),
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        clip=recipe.clip,
        schedule=cosine(recipe.warmup, recipe.steps, LOWEST),
    )
    started = time.perf_counter()
    tokens = 0
    model.train()
    device = model.device
    for step, (ids_BT, labels_BT) in enumerate(batches, start=1):
        ids_BT, labels_BT = ids_BT.to(device), labels_BT.to(device)
        # Right padding needs no mask: causal attention keeps pads out of every real position.
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORED
        )
        optimiser.update(loss)
        tokens += ids_BT.numel()
        if report is not None:
            rate = float(optimiser.schedule.get_last_lr()[0])
            seconds = time.perf_counter() - started
            report(Progress(step, loss.item(), rate, tokens, seconds))
        if step == recipe.steps:
            break
    model.train(False)
