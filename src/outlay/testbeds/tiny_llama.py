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

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

IGNORED = -100
Batch = tuple[torch.Tensor, torch.Tensor]
"""(ids_BT, labels_BT), right-padded; labels are `IGNORED` where nothing is to be learnt."""


def check_size(hidden: int, heads: int, layers: int) -> None:
    """Raise `InputError` unless the sizes make a Llama whose heads have an even width."""
    if layers < 1:
        raise InputError(f"layers={layers}; must be at least 1")
    if heads < 1 or hidden < 1 or hidden % (2 * heads):
        raise InputError(
            f"hidden={hidden} with heads={heads}; hidden must be a multiple of "
            f"{2 * max(1, heads)} so that every head has an even width"
        )


def build_llama(
    *,
    vocabulary: int,
    context: int,
    hidden: int,
    layers: int,
    heads: int,
    eos: int,
    pad: int,
    seed: int,
) -> LlamaForCausalLM:
    """A freshly initialised model with tied embeddings, seeded by `seed`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=hidden * 8 // 3 // 32 * 32,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            initializer_range=hidden**-0.5,  # 0.02 starves attention at this width
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
    *,
    steps: int,
    lr: float,
    warmup: int,
    weight_decay: float,
    clip: float,
    report: Callable[[Progress], None] | None = None,
) -> None:
    """Train `model` in place and leave it in eval mode.

    Args:
        model: to train.
        batches: at least `steps` of them.
        steps: optimiser steps.
        lr: peak learning rate.
        warmup: steps of linear warm-up.
        weight_decay: of matrices.
        clip: largest gradient norm.
        report: called after every step.
    """
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=lr,
        betas=(0.9, 0.98),
    )
    scheduler = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, warmup, max(steps, warmup + 1), min_lr_rate=0.1
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
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += ids_BT.numel()
        if report is not None:
            rate = float(scheduler.get_last_lr()[0])
            seconds = time.perf_counter() - started
            report(Progress(step, loss.item(), rate, tokens, seconds))
        if step == steps:
            break
    model.train(False)
