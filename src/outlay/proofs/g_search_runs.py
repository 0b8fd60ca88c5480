"""What the proof of G-Search runs: calibration and held-out scenes of the seer, schedules, clocks.

Pictures are encoded once, and every schedule then meets the same features: schedules act inside the
decoder only. Every question has a scene of its own and an answer of one token, so that one prefill
decides.

Shapes: N questions, L decoder layers, V visual tokens of a picture.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.stats import kendalltau
from torch.utils.flop_counter import FlopCounterMode

from outlay.proofs.base import Progress
from outlay.testbeds.fashion import Split
from outlay.testbeds.seer.evaluate import Examples, answered, held_out
from outlay.testbeds.seer.model import Seer, build, normalised
from outlay.testbeds.seer.questions import ONE_TOKEN, VOCABULARY
from outlay.vision import costs
from outlay.vision.base import Ranking
from outlay.vision.counts import staircase
from outlay.vision.dropper import Dropper
from outlay.vision.gsearch import Batch, Calibration, GSearch, accuracy
from outlay.vision.gsearch.schedule import Rates, mean_rate
from outlay.vision.in_decoder import FastV, PyramidDrop, quarters

BATCH = 64
FIRST = 2  # layers that keep everything: G-Search's default, and FastV's
OURS, FASTV, LINEAR, PYRAMID, RANDOM_RANK, RANDOM_SEARCH = (
    "P-Sigmoid",
    "FastV",
    "linear",
    "PyramidDrop",
    "P-Sigmoid, random ranking",
    "random search",
)
Method = Callable[[Any], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Bed:
    """Questions about scenes whose pictures are encoded.

    Args:
        seer: model and language.
        parts: questions of one kind, and the features (n, V, width) of their pictures.
    """

    seer: Seer
    parts: Sequence[tuple[Examples, torch.Tensor]]

    def __len__(self) -> int:
        return sum(len(asked) for asked, _ in self.parts)

    def chunks(self) -> list[tuple[Examples, dict[str, Any]]]:
        """Batches of questions with the model's inputs."""
        made = []
        for asked, features in self.parts:
            for start in range(0, len(asked), BATCH):
                some = asked[start : start + BATCH]
                rows = [[one] for one in features[start : start + BATCH]]
                made.append((some, self.seer.inputs_of_features(rows, some.questions)))
        return made

    def batches(self) -> list[Batch]:
        """The same as calibration data."""
        return [
            Batch(inputs, [(VOCABULARY[question.answer[0]],) for question in some.questions])
            for some, inputs in self.chunks()
        ]

    def right(self, method: Method | None) -> np.ndarray:
        """(N,) 1 where the answer is exact under a method, else 0."""
        found = []
        for some, inputs in self.chunks():
            with torch.no_grad(), nullcontext() if method is None else method(self.seer.model):
                found.append(answered(self.seer, some, inputs))
        return np.concatenate(found)


def bed(seer: Seer, each: int, split: Split, seed: int) -> Bed:
    """Draw scenes, ask and encode.

    Args:
        seer: model and language.
        each: questions of each kind, every one about a scene of its own.
        split: whose source pictures the scenes show.
        seed: of the scenes; kinds get consecutive ones.
    """
    parts = []
    for number, kind in enumerate(ONE_TOKEN):
        # Some scenes cannot be asked some kinds: draw more than needed.
        drawn = held_out(
            seer.size.name, 2 * each + 8, (kind,), split=split, seed=len(ONE_TOKEN) * seed + number
        )[kind][:each]
        parts.append((drawn, _encoded(seer, drawn)))
    return Bed(seer, parts)


def _encoded(seer: Seer, asked: Examples) -> torch.Tensor:
    rows = [
        seer.features(asked.seen[start : start + BATCH])[:, 0]
        for start in range(0, len(asked), BATCH)
    ]
    return torch.cat(rows)


# Schedules of a budget.


def share(budget: float, layers: int, first: int = FIRST) -> float:
    """What a budget leaves, on average, to each layer from `first` on."""
    return (budget * layers - first) / (layers - first)


@dataclass(frozen=True)
class Way:
    """A method and the keep rates that it follows."""

    method: Method | None
    rates: Rates


def full(layers: int) -> Way:
    """Nothing dropped."""
    return Way(None, (1.0,) * layers)


def scheduled(method: GSearch) -> Way:
    """A method that has a schedule."""
    assert method.schedule is not None
    return Way(method, method.schedule.rates)


def fastv(budget: float, layers: int, first: int = FIRST) -> Way:
    """One drop; the P-Sigmoid's limit for k -> 0, too."""
    rate = share(budget, layers, first)
    return Way(FastV(rate=rate, layer=first), staircase({first: rate}, layers))


def linear(budget: float, layers: int) -> Way:
    """Rates that fall by the same amount from layer to layer, to 0 at least."""
    depth = np.arange(1, layers - FIRST + 1)

    def rates(step: float) -> np.ndarray:
        return np.clip(1 - step * depth, 0, 1)

    wanted = share(budget, layers)
    step = brentq(lambda step: rates(step).mean() - wanted, 0.0, 2.0)
    return scheduled(GSearch().with_rates((1.0,) * FIRST + tuple(rates(step).tolist())))


def pyramid(budget: float, layers: int) -> Way:
    """PyramidDrop at the ratio that meets the budget."""

    def rates(ratio: float) -> Rates:
        return staircase(quarters(ratio, layers), layers)

    ratio = brentq(lambda ratio: mean_rate(rates(ratio)) - budget, 0.0, 1.0)
    return Way(PyramidDrop(ratio=ratio), rates(ratio))


def any_schedule(budget: float, layers: int, rng: np.random.Generator) -> Rates:
    """Falling rates at random, raised to the power at which they meet the budget."""
    wanted = share(budget, layers)
    fall = np.sort(rng.uniform(0.02, 0.98, layers - FIRST))[::-1]
    power = brentq(lambda power: float((fall**power).mean()) - wanted, 1e-3, 1e3)
    return (1.0,) * FIRST + tuple((fall**power).tolist())


@dataclass(frozen=True)
class RandomRank:
    """A schedule whose survivors are drawn at random.

    Args:
        rates: of every layer.
        seed: of the draws.
    """

    rates: Rates
    seed: int

    def __call__(self, model: Any) -> Dropper:
        """See `outlay.vision.base.Pruner`."""
        # The same draws for every batch: nothing depends on the order of calls.
        generator = torch.Generator().manual_seed(self.seed)

        def score(seen: Ranking) -> torch.Tensor:
            return torch.rand(seen.visual_BN.shape, generator=generator)

        return Dropper(model, rates=self.rates, score=score)


# Searches.


@dataclass(frozen=True)
class Tuned:
    """A budget's P-Sigmoid and the best of as many random schedules, of one calibration split."""

    ours: GSearch
    anything: GSearch


def tuned(calibration: Bed, budget: float, trials: int, seed: int) -> Tuned:
    """Search k, and try as many schedules at random.

    Args:
        calibration: to measure on.
        budget: mean keep rate.
        trials: schedules that each may measure.
        seed: of both.
    """
    seer, layers = calibration.seer, calibration.seer.size.layers
    method = GSearch(mode="budget", budget=budget, trials=trials, seed=seed, check_share=0.0)
    batches = calibration.batches()
    method = replace(method, calib_size=len(calibration))
    perf = Calibration(method, seer.model, batches, accuracy)
    rng = np.random.default_rng(seed)
    drawn = [any_schedule(budget, layers, rng) for _ in range(trials)]
    best = max(drawn, key=lambda rates: float(np.mean(perf(rates))))
    return Tuned(method.fit(seer.model, batches), method.with_rates(best))


def walked(calibration: Bed, check: Bed, method: GSearch, progress: Progress) -> GSearch:
    """Mode I on one split, checked on another."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the schedule does not hold")  # the proof reports it
        return replace(method, calib_size=len(calibration)).fit(
            calibration.seer.model, calibration.batches(), check=check.batches(), progress=progress
        )


# What is looked at.


def agreement(asked: Bed) -> np.ndarray:
    """(L, L) mean Kendall's tau between layers' rankings of the visual tokens, eager attention."""
    model, taus = asked.seer.model, []
    model.set_attn_implementation("eager")
    try:
        for some, inputs in asked.chunks():
            with torch.no_grad():
                layers = model(**inputs, output_attentions=True, use_cache=False).attentions
            visual_BT = inputs["input_ids"] == asked.seer.model.config.image_token_id
            for row in range(len(some)):
                ranks = [one[row, :, -1].mean(0)[visual_BT[row]].numpy() for one in layers]
                taus.append([[kendalltau(a, b).statistic for b in ranks] for a in ranks])
    finally:
        model.set_attn_implementation("sdpa")
    return np.mean(taus, axis=0)


@dataclass(frozen=True)
class Counted:
    """FLOPs of one prompt's whole prefill, as the ledger has them and as they were counted."""

    ledger: int
    counted: int


def flops(asked: Bed, method: GSearch) -> Counted:
    """Tower, projector and decoder of one prompt, eager attention."""
    seer = asked.seer
    some = asked.parts[0][0][:1]
    inputs = seer.inputs(some.seen, some.questions)
    text = inputs["input_ids"].shape[1] - seer.size.tokens
    config = seer.model.config
    seer.model.set_attn_implementation("eager")
    try:
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter, method(seer.model):
            seer.model(**inputs, logits_to_keep=1, use_cache=False)
    finally:
        seer.model.set_attn_implementation("sdpa")
    ledger = method.prefill(config, text, seer.size.tokens).flops
    ledger += costs.tower(config) + costs.projector(config, seer.size.tokens)
    return Counted(ledger, int(counter.get_total_flops()))


def decoder_flops(asked: Bed, rates: Rates) -> float:
    """Mean over questions of the decoder's prefill, ranking included."""
    seer = asked.seer
    method = GSearch().with_rates(rates)
    lengths = [1 + len(question.words) for part, _ in asked.parts for question in part.questions]
    known: Mapping[int, int] = {
        text: method.prefill(seer.model.config, text, seer.size.tokens).flops
        for text in set(lengths)
    }
    return float(np.mean([known[text] for text in lengths]))


def clock(seer: Seer, method: GSearch, side: int, turns: int) -> tuple[float, float]:
    """Median seconds of a prefill, full and under a schedule, of a picture of this side.

    A seer that sees larger pictures has random weights, which a clock does not mind.

    Args:
        seer: whose decoder is timed.
        method: with a schedule.
        side: of the picture in pixels.
        turns: of each.
    """
    size = seer.size
    model = seer.model if side == size.side else build(replace(size, side=side))
    patches = (side // size.patch) ** 2
    words = torch.full((1, 4), VOCABULARY["which"])
    ids = torch.cat([torch.full((1, patches), model.config.image_token_id), words], 1)
    pixels = normalised(np.zeros((1, side, side, 3), np.uint8))
    with torch.no_grad():
        ready = model.get_image_features(pixel_values=pixels)
    inputs = {"input_ids": ids, "mm_encoder_outputs": {"image": ready}}
    ways: list[Callable[[], Any]] = [nullcontext, partial(method, model)]
    spent: list[list[float]] = [[], []]
    for _ in range(turns + 1):  # by turns, so that a busy machine slows both; the first warms up
        for way, seconds in zip(ways, spent, strict=True):
            with torch.no_grad(), way():
                start = time.perf_counter()
                model(**inputs, logits_to_keep=1, use_cache=True)
                seconds.append(time.perf_counter() - start)
    return float(np.median(spent[0][1:])), float(np.median(spent[1][1:]))
