"""What a prompt is worth under each way of reading it: losses of what follows, and FLOPs.

A prompt is read by each way; what follows is then scored in one pass behind the cache that it made,
which is what decoding would see. Two materials: real text and its continuation, and needles, whose
answer was said early in the prompt.

Shapes: B prompts, T tokens, A scored tokens, N prompts in all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

from outlay.cache.kv_prediction.baselines import affordable, choose
from outlay.cache.kv_prediction.model import KVPredictionModel
from outlay.cost import ModelShape
from outlay.testbeds import text
from outlay.testbeds.kv_predictors import needles


@dataclass(frozen=True)
class Material:
    """Prompts of equal length and what follows each, ids_NT and ids_NA."""

    name: str
    prompt_NT: torch.Tensor
    follow_NA: torch.Tensor


@dataclass(frozen=True)
class Outcome:
    """One way of reading, on one material.

    Args:
        flops: to the first token, per prompt.
        nll_N: mean loss of what follows, per token, in nats.
        exact_N: 1 where every token that follows is the likeliest.
    """

    flops: float
    nll_N: torch.Tensor
    exact_N: torch.Tensor


def texts(
    tokenizer: PreTrainedTokenizerBase, n: int, *, prompt: int, follow: int, seed: int
) -> Material:
    """Held-out rows of the standard library's text and code."""
    rows_NT = text.batch(tokenizer, n, length=prompt + follow, seed=seed)
    return Material("text", rows_NT[:, :prompt], rows_NT[:, prompt:])


def needle_prompts(
    tokenizer: PreTrainedTokenizerBase, n: int, *, length: int, seed: int, split: needles.Split
) -> Material:
    """Prompts whose answer stands in their first third, in held-out text."""
    rows_NT = text.batch(tokenizer, n, length=length, seed=seed + 1)
    made = list(needles.prompts(tokenizer, list(rows_NT), length=length, seed=seed, split=split))
    return Material(
        "needles" if split == "heldout" else "needles, trained forms",
        torch.tensor([each.ids for each in made]),
        torch.tensor([each.answer for each in made]),
    )


def _scored(
    network: Any, cache: DynamicCache, tail_BT: torch.Tensor, follow_BA: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and hits of `follow_BA`, where `tail_BT` is the prompt's part not yet in the cache."""
    fed_BT = torch.cat([tail_BT, follow_BA[:, :-1]], 1)
    at_BT = (cache.get_seq_length() + torch.arange(fed_BT.shape[1], device=fed_BT.device))[None]
    logits_BAV = network(
        fed_BT,
        cache=cache,
        position_ids=at_BT.expand(fed_BT.shape),
        use_cache=True,
        logits_to_keep=follow_BA.shape[1],
    ).logits.float()
    picked_BA = logits_BAV.log_softmax(-1).gather(-1, follow_BA[..., None])[..., 0]
    hits_B = (logits_BAV.argmax(-1) == follow_BA).all(-1)
    return -picked_BA.mean(-1), hits_B.float()


@dataclass(frozen=True, eq=False)
class Reader:
    """One way of reading prompts of T tokens.

    Args:
        network: what scores what follows.
        flops: to the first token.
        at: places of the prompt that `network` reads itself; None for all.
        pair: predicts the cache of all but the last `last` tokens; None for no prediction.
        last: final tokens that `network` reads behind a prediction.
    """

    network: Any
    flops: float
    at: Sequence[int] | None = None
    pair: KVPredictionModel | None = None
    last: int = 1

    def read(
        self, prompt_BT: torch.Tensor, follow_BA: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses and hits, (B,) each."""
        if self.pair is not None:
            cache = self.pair.predict(prompt_BT[:, : -self.last])
            return _scored(self.network, cache, prompt_BT[:, -self.last :], follow_BA)
        chosen_BT = prompt_BT if self.at is None else prompt_BT[:, list(self.at)]
        empty = DynamicCache(config=self.network.config)
        return _scored(self.network, empty, chosen_BT, follow_BA)


def readers(
    pair: KVPredictionModel, length: int, *, alone: Any = None, seed: int = 0
) -> dict[str, Reader]:
    """The ways of reading `length` tokens, by name."""
    base, aux = pair.base, pair.aux
    shape, small = ModelShape.from_config(base.config), ModelShape.from_config(aux.config)
    spent = sum(pair.flops(length))
    few = affordable(shape, spent, length)

    def cost(tokens: int) -> float:
        return float(shape.flops(tokens, logits_rows=1))

    aux_cost = float(small.flops(length, logits_rows=1))
    found = {
        "base": Reader(base, cost(length)),
        "no prompt": Reader(base, cost(1), [length - 1]),
        "kvp": Reader(base, spent, pair=pair),
        "aux of the pair": Reader(aux, aux_cost),
        "recent": Reader(base, cost(few), range(length - few, length)),
        "random": Reader(base, cost(few), choose(length, few, seed)),
    }
    if alone is not None:
        found["aux alone"] = Reader(alone, aux_cost)
    return found


@torch.inference_mode()
def measure(
    ways: Mapping[str, Reader], material: Material, *, batch: int = 16, autocast: bool = False
) -> dict[str, Outcome]:
    """Every way of reading on every prompt of a material."""
    found: dict[str, Outcome] = {}
    for name, way in ways.items():
        device = way.network.device
        losses, hits = [], []
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            for prompt_BT, follow_BA in _batches(material, batch):
                nll_B, hit_B = way.read(prompt_BT.to(device), follow_BA.to(device))
                losses.append(nll_B.cpu())
                hits.append(hit_B.cpu())
        found[name] = Outcome(way.flops, torch.cat(losses).double(), torch.cat(hits).double())
    return found


def _batches(material: Material, batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return zip(material.prompt_NT.split(batch), material.follow_NA.split(batch), strict=True)
