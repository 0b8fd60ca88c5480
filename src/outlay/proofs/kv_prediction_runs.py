"""Runs behind the proof of KV Prediction: exactness, the embedded model, the clock.

Shapes: N prompts or questions, T tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from outlay.cache.base import CacheMethod
from outlay.cache.kv_prediction import KVPrediction, store
from outlay.cache.kv_prediction.model import KVPredictionModel
from outlay.cache.kv_prediction.ridge import ridge_start
from outlay.cache.loop import CachedDecoder, FullCache
from outlay.models.base import Account, SamplingParams
from outlay.models.local import LocalModel
from outlay.proofs.kv_prediction_study import (
    KEPT,
    Answered,
    Training,
    fit_pair,
    training_rows,
)
from outlay.stats import FloatArray, mean_interval
from outlay.testbeds import text
from outlay.testbeds.kv_predictors import alone
from outlay.testbeds.kv_predictors import checkpoint_path as shipped_pair
from outlay.testbeds.kv_predictors.evaluate import (
    Outcome,
    Reader,
    measure,
    needle_prompts,
    readers,
    texts,
)
from outlay.testbeds.reasoner import checkpoint_path

Interval = tuple[float, float, float]
GREEDY = 16  # tokens of the greedy comparison
PROMPT, FOLLOW, SEED = 256, 64, 1234
PREFIX = "first layers, untrained"
REAL, LAST = "kvp, last 64 real", 64  # final prompt tokens that the base reads itself
EXAMPLES = (
    "def mean(values):\n    total = sum(values)\n    return total /",
    "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is",
)


def interval(values_N: FloatArray) -> Interval:
    """Mean and 95 % interval; the ends are the mean where they say nothing."""
    found = mean_interval(values_N)
    lo, hi = (found.mean if end is None else end for end in (found.lo, found.hi))
    return found.mean, lo, hi


# -- exactness ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exact:
    """How far an exact prediction is from the base: logits, and texts that differ."""

    gap: float
    different: int
    prompts: int


def exactness(model: LocalModel, prompts: Sequence[Sequence[int]]) -> Exact:
    """The whole base as its own auxiliary, with identity maps."""
    layers = int(model.model.config.num_hidden_layers)
    pair = KVPredictionModel.pruned(model.model, range(layers))
    pair.predictor.become_identity()
    method, full = KVPrediction(fitted=pair), FullCache()
    sampling = SamplingParams(max_tokens=GREEDY, ignore_eos=True)
    gaps, different = [], 0
    for ids in prompts:
        ids_BT = torch.tensor([list(ids)], device=model.device)
        own, ours = full.prefill(model, ids_BT), method.prefill(model, ids_BT)
        gaps.append(float((own.logits_BV - ours.logits_BV).abs().max()))
        texts = [
            CachedDecoder(cache).generate(model, ids, sampling=sampling).token_ids
            for cache in (full, method)
        ]
        different += texts[0] != texts[1]
    return Exact(max(gaps), different, len(prompts))


# -- the small reasoner ---------------------------------------------------------------------------


def gain(found: Sequence[Answered], ours: str, theirs: str) -> Interval:
    """Accuracy of one way minus another's, paired over questions, seeds averaged."""
    return interval(np.mean([each.right[ours] - each.right[theirs] for each in found], axis=0))


def training(steps: int, batch: int, seed: int) -> list[float]:
    """Losses along a short training of KVP-LP on the reasoner, from random maps."""
    torch.manual_seed(seed)
    model = LocalModel.load(checkpoint_path(), name="reasoner", device="cpu")
    pair = KVPredictionModel.pruned(model.model, KEPT)
    data = training_rows(model, steps * batch, seed)
    return fit_pair(pair, data, Training(steps, batch), seed)[1]


# -- the embedded model ---------------------------------------------------------------------------


def outcomes(
    prompts: int, folder: Path | None, seed: int, rows: int
) -> dict[str, dict[str, Outcome]]:
    """Every way of reading on text and on needles.

    Args:
        prompts: of each.
        folder: of the pair; None is the shipped one.
        seed: of the prompts.
        rows: of 512 tokens, for the regression of the pair without training; 0 leaves it out.
    """
    from outlay.models import embedded

    torch.set_num_threads(1)
    home = shipped_pair() if folder is None else folder
    model = embedded.load("exact", device="cpu")
    tokenizer = model.tokenizer
    pair = store.load(home, model.model)
    ways = readers(pair, PROMPT, alone=alone(model.model, home), seed=seed)
    spent = sum(pair.flops(PROMPT, last_n_real=LAST))
    ways[REAL] = Reader(model.model, spent, pair=pair, last=LAST)
    if rows:
        first = KVPredictionModel.prefix(model.model, len(pair.aux_layout))
        made_NT = text.batch(tokenizer, rows, length=512, split="train", seed=seed)
        with torch.autocast("cpu", torch.bfloat16):
            ridge_start(first, made_NT, batch=4)
        ways[PREFIX] = Reader(model.model, sum(first.flops(PROMPT)), pair=first)
    materials = {
        "text": texts(tokenizer, prompts, prompt=PROMPT, follow=FOLLOW, seed=SEED + seed),
        "needles": needle_prompts(
            tokenizer, prompts, length=PROMPT, seed=SEED + seed, split="heldout"
        ),
    }
    return {
        name: measure(ways, material, batch=8, autocast=True)
        for name, material in materials.items()
    }


def clock(
    folder: Path | None, widths: Sequence[int], repeats: int, seed: int
) -> tuple[list[Timed], Exact]:
    """The time to the first token on the embedded model, and its exactness on text."""
    from outlay.models import embedded

    torch.set_num_threads(1)
    model = embedded.load("exact", device="cpu")
    pair = store.load(shipped_pair() if folder is None else folder, model.model)
    timed = first_token(model, pair, widths, repeats, seed=seed)
    return timed, exactness(model, [model.encode(words) for words in EXAMPLES])


# -- the clock ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timed:
    """Seconds to the first token, by repetition, and FLOPs, for prompts of `tokens`."""

    tokens: int
    base: tuple[float, ...]
    ours: tuple[float, ...]
    flops: tuple[float, float]

    @property
    def expected(self) -> float:
        """How many times fewer FLOPs."""
        return self.flops[0] / self.flops[1]

    @property
    def measured(self) -> float:
        """How many times faster, by medians."""
        return statistics.median(self.base) / statistics.median(self.ours)


def first_token(
    model: LocalModel,
    pair: KVPredictionModel,
    widths: Sequence[int],
    repeats: int,
    *,
    clock: Callable[[], float] = time.process_time,
    seed: int = 0,
) -> list[Timed]:
    """Time to the first token of the base and of the prediction, in turns, after a warm-up."""
    generator = torch.Generator().manual_seed(seed)
    ways: tuple[CacheMethod, CacheMethod] = (FullCache(), KVPrediction(fitted=pair))
    found = []
    for width in widths:
        ids_BT = torch.randint(3, model.vocabulary, (1, width), generator=generator)
        ids_BT = ids_BT.to(model.device)
        seconds: tuple[list[float], list[float]] = ([], [])
        flops = []
        for repeat in range(repeats + 1):
            for way, into in zip(ways, seconds, strict=True):
                account = Account()
                start = clock()
                int(way.prefill(model, ids_BT, account=account).logits_BV.argmax())
                if repeat:
                    into.append(clock() - start)
                else:
                    flops.append(account.ledger.totals().flops)
        found.append(Timed(width, tuple(seconds[0]), tuple(seconds[1]), (flops[0], flops[1])))
    return found


def reasoner_pair() -> tuple[LocalModel, KVPredictionModel]:
    """The reasoner and an untrained pair for it, where only time or exactness matters."""
    model = LocalModel.load(checkpoint_path(), name="reasoner", device="cpu")
    return model, KVPredictionModel.pruned(model.model, KEPT)
