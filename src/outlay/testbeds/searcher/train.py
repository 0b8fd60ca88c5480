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
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from outlay.errors import InputError
from outlay.testbeds.packing import IGNORED, Batch, Pair, check_batch_tokens, packed
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
from outlay.testbeds.tiny_llama import Progress, Recipe, build_llama, fit

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

POOL = 16  # batches that are sorted by length together
PART = 64  # examples that are drawn together


@dataclass(frozen=True)
class TrainConfig(Recipe):
    """The recipe of a searcher.

    Args:
        batch_tokens: tokens per step, padding included.
        leaves: fewest and most leaves of a tree.
        cut: share of searches that are closed by force.
        primer: examples at the start that recite the question.
        ramp: examples over which the largest tree then grows from the smallest.

    Raises:
        InputError: for values out of range.
    """

    steps: int = 5000
    batch_tokens: int = 16_384
    leaves: tuple[int, int] = LEAVES
    cut: float = 0.3
    primer: int = 120_000
    ramp: int = 100_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_batch_tokens(self.batch_tokens, CONTEXT)
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


def encode(example: Example, known: Mapping[str, int]) -> Pair:
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
        return packed(
            ([encode(next(stream), known) for _ in range(PART)] for _ in count()),
            pad=known[PAD],
            batch_tokens=config.batch_tokens,
            pool=POOL,
            rng=rng,
        )


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
        config,
        vocabulary=len(tokenizer),
        context=CONTEXT,
        eos=int(tokenizer.eos_token_id),
        pad=int(tokenizer.pad_token_id),
    )
    model.to(device)
    loader = DataLoader(Batches(config), batch_size=None, num_workers=workers)
    moved = ((ids_BT.to(device), labels_BT.to(device)) for ids_BT, labels_BT in loader)
    # Without its cache, which would keep the first step's weights for the whole training.
    with torch.autocast(torch.device(device).type, torch.bfloat16, cache_enabled=False):
        fit(model, moved, config, report)
    return model.to("cpu"), tokenizer
