"""Training of the searcher: a Llama from scratch on searches in random forests.

The loss covers the thinking and the answer. Some searches are cut short at a random place and
closed by force: the forced end is not trained on, the answer after it is, so that the model gives
its best guess whenever it is stopped. The first examples recite their question; then trees grow
from the smallest to the largest. Matrix products are in bf16 (autocast).

Shapes: B examples, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from outlay.errors import InputError
from outlay.testbeds.searcher.tokenizer import (
    ASSISTANT,
    CONTEXT,
    END_THINK,
    EOS,
    PAD,
    THINK,
    USER,
    build_tokenizer,
    vocabulary,
)
from outlay.testbeds.searcher.trees import CHOICES, LEAVES, MAX_LEAVES, sample_puzzle, walks
from outlay.testbeds.tiny_llama import IGNORED, Batch, Progress, build_llama, check_size, fit

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

POOL = 16  # batches that are sorted by length together


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
        leaves: fewest and most leaves of a tree.
        cut: share of searches that are closed by force.
        primer: examples at the start that recite the question.
        ramp: examples over which the largest tree then grows from the smallest.

    Raises:
        InputError: for values out of range.
    """

    steps: int = 5000
    seed: int = 0
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    batch_tokens: int = 16_384
    lr: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    leaves: tuple[int, int] = LEAVES
    cut: float = 0.3
    primer: int = 120_000
    ramp: int = 100_000

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps={self.steps}; must be at least 1")
        check_size(self.hidden, self.heads, self.layers)
        if self.batch_tokens < CONTEXT:
            raise InputError(f"batch_tokens={self.batch_tokens}; must be at least {CONTEXT}")
        if not self.lr > 0:
            raise InputError(f"lr={self.lr}; must be positive")
        low, high = self.leaves
        if not CHOICES <= low <= high <= MAX_LEAVES:
            raise InputError(
                f"leaves={self.leaves}; must be a range within {CHOICES}..{MAX_LEAVES}"
            )
        if not 0 <= self.cut <= 1:
            raise InputError(f"cut={self.cut}; must be in [0, 1]")
        if self.primer < 0 or self.ramp < 0:
            raise InputError(f"primer={self.primer}, ramp={self.ramp}; both must be >= 0")


@dataclass(frozen=True)
class Example:
    """One trained text.

    Args:
        question: what is asked.
        tokens: what follows the open think tag, without the end of the text.
        untrained: index of one of `tokens` that was forced, -1 for none.
    """

    question: str
    tokens: tuple[str, ...]
    untrained: int = -1


def examples(config: TrainConfig, part: int = 0, parts: int = 1) -> Iterator[Example]:
    """Endless training examples, none of them held out; part `part` of `parts` that are made
    side by side."""
    rng = random.Random(f"searcher:{config.seed}:{part}")
    low, high = config.leaves
    primer, ramp = config.primer // parts, config.ramp // parts
    for _ in range(primer):
        question = sample_puzzle(rng, low, "train").question
        yield Example(question, tuple(question), 0)
    made = 0
    while True:
        top = high if made >= ramp else low + (high - low) * made // ramp
        puzzle = sample_puzzle(rng, rng.randint(low, top), "train")
        search, forced = walks(rng, puzzle), -1
        if rng.random() < config.cut:
            forced = rng.randrange(len(search))
            search = [*search[:forced], END_THINK]
        yield Example(puzzle.question, (*search, puzzle.answer), forced)
        made += 1


def encode(example: Example, known: Mapping[str, int]) -> tuple[list[int], list[int]]:
    """Token ids and labels of an example, as the tokenizer with the vocabulary `known` has them."""
    prompt = [known[token] for token in (USER, *example.question, ASSISTANT, THINK)]
    rest = [known[token] for token in (*example.tokens, EOS)]
    labels = [IGNORED] * len(prompt) + rest
    if example.untrained >= 0:
        labels[len(prompt) + example.untrained] = IGNORED
    return prompt + rest, labels


class Batches(IterableDataset[Batch]):
    """Endless (ids_BT, labels_BT), right-padded, of about `batch_tokens` tokens each.

    Worker processes of a DataLoader make a part each.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config

    def __iter__(self) -> Iterator[Batch]:
        config, worker = self._config, get_worker_info()
        part, parts = (0, 1) if worker is None else (worker.id, worker.num_workers)
        stream = examples(config, part, parts)
        rng = random.Random(f"order:{config.seed}:{part}")
        known = vocabulary()
        while True:
            pairs: list[tuple[list[int], list[int]]] = []
            while sum(len(ids) for ids, _ in pairs) < POOL * config.batch_tokens:
                pairs += [encode(next(stream), known) for _ in range(64)]
            pairs.sort(key=lambda pair: len(pair[0]))
            groups: list[list[tuple[list[int], list[int]]]] = [[]]
            for pair in pairs:
                if (len(groups[-1]) + 1) * len(pair[0]) > config.batch_tokens:
                    groups.append([])
                groups[-1].append(pair)
            rng.shuffle(groups)
            for group in groups:
                yield _padded(group, known[PAD])


def _padded(group: list[tuple[list[int], list[int]]], pad: int) -> Batch:
    width = max(len(ids) for ids, _ in group)
    ids_BT = torch.full((len(group), width), pad)
    labels_BT = torch.full((len(group), width), IGNORED)
    for row, (ids, labels) in enumerate(group):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        labels_BT[row, : len(ids)] = torch.tensor(labels)
    return ids_BT, labels_BT


def train(
    config: TrainConfig,
    report: Callable[[Progress], None] | None = None,
    *,
    device: torch.device | str = "cpu",
    workers: int = 0,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train a searcher; `report` is called after every step.

    Args:
        config: of model and training.
        report: progress.
        device: where to train.
        workers: processes that make examples; part of the recipe. 0 makes them in this one.

    Returns:
        The model, in eval mode and on the CPU, and its tokenizer.
    """
    tokenizer = build_tokenizer()
    model = build_llama(
        vocabulary=len(tokenizer),
        context=CONTEXT,
        hidden=config.hidden,
        layers=config.layers,
        heads=config.heads,
        eos=int(tokenizer.eos_token_id),
        pad=int(tokenizer.pad_token_id),
        seed=config.seed,
    )
    model.to(device)
    loader = DataLoader(Batches(config), batch_size=None, num_workers=workers)
    moved = ((ids_BT.to(device), labels_BT.to(device)) for ids_BT, labels_BT in loader)
    # Without its cache, which would keep the first step's weights for the whole training.
    with torch.autocast(torch.device(device).type, torch.bfloat16, cache_enabled=False):
        fit(
            model,
            moved,
            steps=config.steps,
            lr=config.lr,
            warmup=config.warmup,
            weight_decay=config.weight_decay,
            clip=config.clip,
            report=report,
        )
    return model.to("cpu"), tokenizer
