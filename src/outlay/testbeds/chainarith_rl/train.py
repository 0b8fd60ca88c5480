"""Training of the starting policy: a Llama from scratch on the corpus of styles.

Cross-entropy on the trained atoms of completions, batches of about the same number of tokens, AdamW
(see `outlay.testbeds.tiny_llama`). Batches of similar lengths are fast, but each holds about one
style, which pulls the choice of styles back and forth; the last batches mix all lengths and
settle it. On a CPU the same configuration, thread count and
library versions give the same weights bit for bit.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING

from outlay.errors import InputError
from outlay.testbeds.chainarith_rl.corpus import Mix, examples
from outlay.testbeds.reasoner.tokenizer import CONTEXT, build_tokenizer
from outlay.testbeds.reasoner.train import pack
from outlay.testbeds.tiny_llama import Progress, build_llama, check_size, fit

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True)
class TrainConfig:
    """Size of the policy and of its training.

    Args:
        steps: length of the learning rate's schedule.
        stop: steps taken; stopping early leaves the policy unfinished, with room for RL.
        settle: from this step on, batches have mixed lengths.
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

    Raises:
        InputError: for values out of range.
    """

    steps: int = 1500
    stop: int = 1300
    settle: int = 1200
    seed: int = 0
    hidden: int = 96
    layers: int = 3
    heads: int = 4
    batch_tokens: int = 4096
    lr: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    mix: Mix = field(default_factory=Mix)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps={self.steps}; must be at least 1")
        if not 1 <= self.stop <= self.steps:
            raise InputError(f"stop={self.stop}; must be in 1..steps ({self.steps})")
        if not 0 <= self.settle <= self.stop:
            raise InputError(f"settle={self.settle}; must be in 0..stop ({self.stop})")
        check_size(self.hidden, self.heads, self.layers)
        if self.batch_tokens < CONTEXT:
            raise InputError(f"batch_tokens={self.batch_tokens}; must be at least {CONTEXT}")
        if not self.lr > 0:
            raise InputError(f"lr={self.lr}; must be positive")


def train(
    config: TrainConfig, report: Callable[[Progress], None] | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train a starting policy; `report` is called after every step.

    Returns:
        The model in eval mode and its tokenizer.
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
    stream = examples(config.mix, config.seed)
    order = random.Random(f"order:{config.seed}")
    sorted_batches = pack(stream, tokenizer, config.batch_tokens, order)
    mixed_batches = pack(stream, tokenizer, config.batch_tokens, order, sort=False)
    fit(
        model,
        chain(
            islice(sorted_batches, config.settle),
            islice(mixed_batches, config.stop - config.settle),
        ),
        steps=config.steps,
        lr=config.lr,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        clip=config.clip,
        report=report,
    )
    return model, tokenizer
