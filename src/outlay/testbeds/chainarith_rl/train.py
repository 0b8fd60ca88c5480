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
from outlay.testbeds.packing import check_batch_tokens
from outlay.testbeds.reasoner.tokenizer import CONTEXT, build_tokenizer
from outlay.testbeds.reasoner.train import build_model, pack
from outlay.testbeds.tiny_llama import Progress, Recipe, fit

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True)
class TrainConfig(Recipe):
    """The recipe of a starting policy, whose `steps` are the length of the rate's schedule.

    Args:
        stop: steps taken; stopping early leaves the policy unfinished, with room for RL.
        settle: from this step on, batches have mixed lengths.
        batch_tokens: tokens per step, padding included.
        mix: what is trained on.

    Raises:
        InputError: for values out of range.
    """

    steps: int = 1500
    hidden: int = 96
    layers: int = 3
    lr: float = 3e-3
    stop: int = 1300
    settle: int = 1200
    batch_tokens: int = 4096
    mix: Mix = field(default_factory=Mix)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.stop <= self.steps:
            raise InputError(f"stop={self.stop}; must be in 1..steps ({self.steps})")
        if not 0 <= self.settle <= self.stop:
            raise InputError(f"settle={self.settle}; must be in 0..stop ({self.stop})")
        check_batch_tokens(self.batch_tokens, CONTEXT)


def train(
    config: TrainConfig, report: Callable[[Progress], None] | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train a starting policy; `report` is called after every step.

    Returns:
        The model in eval mode and its tokenizer.
    """
    tokenizer = build_tokenizer()
    model = build_model(config, tokenizer)
    stream = examples(config.mix, config.seed)
    order = random.Random(f"order:{config.seed}")
    sorted_batches = pack(stream, tokenizer, config.batch_tokens, order)
    mixed_batches = pack(stream, tokenizer, config.batch_tokens, order, sort=False)
    batches = chain(
        islice(sorted_batches, config.settle),
        islice(mixed_batches, config.stop - config.settle),
    )
    fit(model, batches, config, report)
    return model, tokenizer
