"""Training of the reasoner: a Llama from scratch on the mix of traces.

The loss is next-token cross-entropy on the trained atoms of completions. Batches hold examples of
similar length (padding costs little) and about the same number of tokens.
AdamW, linear warm-up, cosine decay to a tenth. On a CPU the same configuration, thread count
and library versions give the same weights bit for bit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from outlay.errors import InputError
from outlay.testbeds.reasoner.corpus import Example, Mix, examples
from outlay.testbeds.reasoner.facts import FactWorld
from outlay.testbeds.reasoner.tokenizer import CONTEXT, build_tokenizer
from outlay.testbeds.tiny_llama import IGNORED, Batch, Progress, build_llama, check_size, fit

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

# Shapes: B examples, T tokens.
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
        check_size(self.hidden, self.heads, self.layers)
        if self.batch_tokens < CONTEXT:
            raise InputError(f"batch_tokens={self.batch_tokens}; must be at least {CONTEXT}")
        if not self.lr > 0:
            raise InputError(f"lr={self.lr}; must be positive")


def build_model(config: TrainConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised model, seeded by `config.seed`."""
    return build_llama(
        vocabulary=len(tokenizer),
        context=CONTEXT,
        hidden=config.hidden,
        layers=config.layers,
        heads=config.heads,
        eos=int(tokenizer.eos_token_id),
        pad=int(tokenizer.pad_token_id),
        seed=config.seed,
    )


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


def pack(
    stream: Iterator[Example],
    tokenizer: PreTrainedTokenizerFast,
    batch_tokens: int,
    rng: random.Random,
    sort: bool = True,
) -> Iterator[Batch]:
    """Endless (ids_BT, labels_BT), right-padded, of about `batch_tokens` tokens each.

    Args:
        stream: endless examples.
        tokenizer: of the examples.
        batch_tokens: tokens of a batch, padding included.
        rng: orders the batches of a pool.
        sort: examples of similar length share a batch; else lengths are mixed, at more padding.
    """
    pad = tokenizer.pad_token_id
    while True:
        pairs: list[tuple[list[int], list[int]]] = []
        while sum(len(ids) for ids, _ in pairs) < POOL * batch_tokens:
            pairs += encode([next(stream) for _ in range(256)], tokenizer)
        if sort:
            pairs.sort(key=lambda pair: len(pair[0]))
        groups: list[list[tuple[list[int], list[int]]]] = [[]]
        longest = 0
        for pair in pairs:
            longest = max(longest, len(pair[0]))
            if (len(groups[-1]) + 1) * longest > batch_tokens:
                groups.append([])
                longest = len(pair[0])
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


def batches(config: TrainConfig, tokenizer: PreTrainedTokenizerFast) -> Iterator[Batch]:
    """The batches of a configuration: its mix, packed."""
    stream = examples(config.mix, config.world, config.seed)
    return pack(stream, tokenizer, config.batch_tokens, random.Random(f"order:{config.seed}"))


def train(
    config: TrainConfig,
    report: Callable[[Progress], None] | None = None,
    *,
    device: str = "cpu",
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train a reasoner on `device`; `report` is called after every step.

    Returns:
        The model in eval mode, on the CPU, and its tokenizer.
    """
    tokenizer = build_tokenizer()
    model = build_model(config, tokenizer).to(device)
    fit(
        model,
        batches(config, tokenizer),
        steps=config.steps,
        lr=config.lr,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        clip=config.clip,
        report=report,
    )
    return model.to("cpu"), tokenizer
