"""Training of the reasoner: a Llama from scratch on the mix of traces.

The loss is next-token cross-entropy on the trained atoms of completions. Batches hold examples of
similar length (padding costs little) and about the same number of tokens.
AdamW, linear warm-up, cosine decay to a tenth. The same configuration, thread count and library
versions give the same weights bit for bit.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from outlay.errors import InputError
from outlay.testbeds.reasoner.corpus import Example, Mix, examples
from outlay.testbeds.reasoner.facts import FactWorld
from outlay.testbeds.reasoner.tokenizer import CONTEXT, build_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

# Shapes: B examples, T tokens.
IGNORED = -100
POOL = 32  # batches that are sorted by length together


@dataclass(frozen=True)
class TrainConfig:
    """Size of the model and of its training.

    Args:
        steps: optimiser steps.
        seed: of weights, data and order.
        hidden: width of the model.
        layers: number of layers.
        heads: attention heads.
        batch_tokens: tokens per step, padding included.
        lr: peak learning rate.
        warmup: steps of linear warm-up.
        weight_decay: of matrices.
        clip: largest gradient norm.
        mix: what is trained on.
        world: the facts of the recall problems.

    Raises:
        InputError: for values out of range.
    """

    steps: int = 4000
    seed: int = 0
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    batch_tokens: int = 4096
    lr: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    mix: Mix = field(default_factory=Mix)
    world: FactWorld = field(default_factory=FactWorld)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps={self.steps}; must be at least 1")
        if self.hidden % (2 * self.heads):
            raise InputError(
                f"hidden={self.hidden} with heads={self.heads}; hidden must be a multiple of "
                f"{2 * self.heads} so that every head has an even width"
            )
        if self.layers < 1:
            raise InputError(f"layers={self.layers}; must be at least 1")
        if self.batch_tokens < CONTEXT:
            raise InputError(f"batch_tokens={self.batch_tokens}; must be at least {CONTEXT}")
        if not self.lr > 0:
            raise InputError(f"lr={self.lr}; must be positive")


def build_model(config: TrainConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised model, seeded by `config.seed`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden,
            intermediate_size=config.hidden * 8 // 3 // 32 * 32,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            initializer_range=config.hidden**-0.5,  # 0.02 starves attention at this width
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.generation_config.do_sample = False
    return model


def encode(
    batch: list[Example], tokenizer: PreTrainedTokenizerFast
) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of each example.

    Raises:
        InputError: if an example does not survive the round trip or an atom is not one token.
    """
    texts = [example.text for example in batch]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    prompts = tokenizer([example.prompt for example in batch], add_special_tokens=False)
    pairs = []
    for example, text, ids, prompt in zip(batch, texts, encoded, prompts["input_ids"], strict=True):
        if len(ids) != len(prompt) + len(example.atoms) or tokenizer.decode(ids) != text:
            raise InputError(f"the tokenizer does not reproduce {text!r} atom for atom")
        completion = ids[len(prompt) :]
        labels = [
            token if atom.trained else IGNORED
            for token, atom in zip(completion, example.atoms, strict=True)
        ]
        pairs.append((ids, [IGNORED] * len(prompt) + labels))
    return pairs


Batch = tuple[torch.Tensor, torch.Tensor]


def batches(config: TrainConfig, tokenizer: PreTrainedTokenizerFast) -> Iterator[Batch]:
    """Endless (ids_BT, labels_BT), right-padded, of about `batch_tokens` tokens each."""
    stream = examples(config.mix, config.world, config.seed)
    rng = random.Random(f"order:{config.seed}")
    pad = tokenizer.pad_token_id
    while True:
        pairs: list[tuple[list[int], list[int]]] = []
        while sum(len(ids) for ids, _ in pairs) < POOL * config.batch_tokens:
            pairs += encode([next(stream) for _ in range(256)], tokenizer)
        pairs.sort(key=lambda pair: len(pair[0]))
        groups: list[list[tuple[list[int], list[int]]]] = [[]]
        for pair in pairs:
            if (len(groups[-1]) + 1) * len(pair[0]) > config.batch_tokens:
                groups.append([])
            groups[-1].append(pair)
        rng.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            ids_BT = torch.full((len(group), width), pad)
            labels_BT = torch.full((len(group), width), IGNORED)
            for row, (ids, labels) in enumerate(group):
                ids_BT[row, : len(ids)] = torch.tensor(ids)
                labels_BT[row, : len(ids)] = torch.tensor(labels)
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
    """Train a reasoner; `report` is called after every step.

    Returns:
        The model in eval mode and its tokenizer.
    """
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    tokenizer = build_tokenizer()
    model = build_model(config, tokenizer)
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
    for step, (ids_BT, labels_BT) in enumerate(batches(config, tokenizer), start=1):
        # Right padding needs no mask: causal attention keeps pads out of every real position.
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORED
        )
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += ids_BT.numel()
        if report is not None:
            seconds = time.perf_counter() - started
            report(Progress(step, loss.item(), scheduler.get_last_lr()[0], tokens, seconds))
        if step == config.steps:
            break
    model.train(False)
    return model, tokenizer
