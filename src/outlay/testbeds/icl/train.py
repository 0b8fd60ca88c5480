"""Training of the in-context model: a Llama from scratch on sequences of nine items of one rule.

The loss is next-token cross-entropy on answers and the end of each item. AdamW, linear warm-up,
cosine decay to a tenth. The same configuration, thread count and library versions give the same
weights bit for bit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outlay.errors import InputError
from outlay.testbeds.icl.tokenizer import CONTEXT, PAD, build_tokenizer, vocabulary
from outlay.testbeds.icl.world import ARROW, END, FAMILIES, MAX_ITEMS, draw_instance
from outlay.testbeds.packing import IGNORED, Batch, padded
from outlay.testbeds.tiny_llama import Progress, Recipe, build_llama, fit

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

# Each family's share of training: the shift, which is arithmetic, is learnt last.
TRAIN_MIX = (0.2, 0.5, 0.3)


@dataclass(frozen=True)
class TrainConfig(Recipe):
    """The recipe of an in-context model.

    Args:
        batch: sequences per step.

    Raises:
        InputError: for values out of range.
    """

    steps: int = 2000
    hidden: int = 96
    layers: int = 3
    lr: float = 3e-3
    batch: int = 40

    def __post_init__(self) -> None:
        for name in ("batch", "heads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; must be at least 1")
        super().__post_init__()


def build_model(config: TrainConfig) -> LlamaForCausalLM:
    """A freshly initialised model, seeded by `config.seed`."""
    known = vocabulary()
    return build_llama(
        config, vocabulary=len(known), context=CONTEXT, eos=known[END], pad=known[PAD]
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
        yield padded(rows, known[PAD])


def train(
    config: TrainConfig, report: Callable[[Progress], None] | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train a model; `report` is called after every step.

    Returns:
        The model in eval mode and its tokenizer.
    """
    model = build_model(config)
    fit(model, batches(config), config, report)
    return model, build_tokenizer()
