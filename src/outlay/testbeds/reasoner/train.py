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
from itertools import count
from typing import TYPE_CHECKING

from outlay.errors import InputError
from outlay.testbeds.packing import IGNORED, Batch, Pair, check_batch_tokens, packed
from outlay.testbeds.reasoner.corpus import Example, Mix, examples
from outlay.testbeds.reasoner.facts import FactWorld
from outlay.testbeds.reasoner.tokenizer import CONTEXT, build_tokenizer
from outlay.testbeds.tiny_llama import Progress, Recipe, build_llama, fit

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

POOL = 32  # batches that are sorted by length together
PART = 256  # examples that are encoded together


@dataclass(frozen=True)
class TrainConfig(Recipe):
    """The recipe of a reasoner.

    Args:
        batch_tokens: tokens per step, padding included.
        mix: what is trained on.
        world: the facts of the recall problems.

    Raises:
        InputError: for values out of range.
    """

    batch_tokens: int = 4096
    mix: Mix = field(default_factory=Mix)
    world: FactWorld = field(default_factory=FactWorld)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_batch_tokens(self.batch_tokens, CONTEXT)


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised model that reads the reasoner's notation."""
    return build_llama(
        recipe,
        vocabulary=len(tokenizer),
        context=CONTEXT,
        eos=int(tokenizer.eos_token_id),
        pad=int(tokenizer.pad_token_id),
    )


def encode(batch: list[Example], tokenizer: PreTrainedTokenizerFast) -> list[Pair]:
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
    """Endless batches of about `batch_tokens` tokens each.

    Args:
        stream: endless examples.
        tokenizer: of the examples.
        batch_tokens: tokens of a batch, padding included.
        rng: orders the batches of a pool.
        sort: examples of similar length share a batch; else lengths are mixed, at more padding.
    """
    return packed(
        (encode([next(stream) for _ in range(PART)], tokenizer) for _ in count()),
        pad=int(tokenizer.pad_token_id),
        batch_tokens=batch_tokens,
        pool=POOL,
        rng=rng,
        sort=sort,
    )


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
    fit(model, batches(config, tokenizer), config, report)
    return model.to("cpu"), tokenizer
