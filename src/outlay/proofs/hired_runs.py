"""What HiRED's proof runs: the seer of tiles on held-out scenes, under equal numbers of tokens.

Images are encoded once; every method then prunes the same features, as a serving system would that
caches them. All answers are one token, so one prefill decides.

S scenes, K kinds of question, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from outlay.stats import mean_interval
from outlay.testbeds.seer.evaluate import Examples, answered, held_out, score
from outlay.testbeds.seer.model import Seer
from outlay.testbeds.seer.questions import Question, one_each, possible
from outlay.testbeds.seer.scenes import Layout as Placing
from outlay.testbeds.seer.scenes import Scenes, generator, scenes
from outlay.vision import costs
from outlay.vision.base import Positions
from outlay.vision.baselines import NoTokens, RandomTokens, UniformTokens
from outlay.vision.hired import HiRED
from outlay.vision.hired.layout import Layout, tiled

FINE, COARSE = "digit", "garment"
KINDS = (FINE, COARSE, "count", "exist")
RATES = (0.4, 0.2, 0.1)
BATCH = 64
POSITIONS: Positions = "original"  # as the seer was trained, and as the baselines leave them
Method = Callable[[Any], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Bed:
    """Held-out scenes of one kind of placing, with a question of every kind about each.

    Args:
        seer: of size HR.
        seen: scenes.
        asked: by kind, scenes asked about and their questions.
        features: of every batch of scenes: (first scene, features as the model makes them).
    """

    seer: Seer
    seen: Scenes
    asked: Mapping[str, tuple[np.ndarray, list[Question]]]
    features: Sequence[tuple[int, list[torch.Tensor]]]

    def counting(self, most: int = BATCH) -> tuple[Examples, dict[str, Any]]:
        """How many things there are in each of the first scenes: questions, and their inputs."""
        _, questions = self.asked["count"]
        features = self.features[0][1][:most]
        part = Examples("count", self.seen[: len(features)], tuple(questions[: len(features)]))
        return part, prompts(self.seer, part, features)

    @property
    def layout(self) -> Layout:
        """Of the tokens of every scene."""
        size = self.seer.size
        return tiled(self.seen.size, size.pinpoints, size.side, size.grid)


def bed(seer: Seer, placing: Placing, n: int, seeds: Sequence[int]) -> Bed:
    """Draw scenes, ask, and encode.

    Args:
        seer: of size HR.
        placing: `clustered` puts the small digits into one tile, `spread` everywhere.
        n: scenes of every seed.
        seeds: of the scenes.
    """
    size = seer.size
    drawn = [
        scenes(
            n,
            side=2 * size.side,
            patch=size.patch,
            min_objects=2,
            max_objects=size.max_objects,
            layout=placing,
            split="test",
            seed=seed,
        )
        for seed in seeds
    ]
    asked: dict[str, tuple[np.ndarray, list[Question]]] = {}
    for kind in KINDS:
        where, questions = [], []
        for number, (seed, part) in enumerate(zip(seeds, drawn, strict=True)):

            def ask(
                scene: int, rng: np.random.Generator, part: Scenes = part, kind: str = kind
            ) -> list[Question]:
                return possible(part, scene, kind, rng)

            index, found = one_each(n, ask, generator((seed, 1), "test"))
            where.append(index + number * n)
            questions += found
        asked[kind] = (np.concatenate(where), questions)
    seen = joined(drawn)
    return Bed(seer, seen, asked, encoded(seer, seen))


def joined(parts: Sequence[Scenes]) -> Scenes:
    """Scenes of several draws as one batch."""
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("images", "map", "counts", "kinds", "names", "colours", "boxes")
    }
    return Scenes(**arrays, patch=parts[0].patch)


def encoded(seer: Seer, seen: Scenes) -> list[tuple[int, list[torch.Tensor]]]:
    """Features of all scenes, batch by batch, with what the tower saw."""
    inner, found = seer.model.model, []
    with torch.no_grad(), HiRED()(seer.model):
        for start in range(0, len(seen), BATCH):
            part = seen[start : start + BATCH]
            question = [possible(part, i, "count")[0] for i in range(len(part))]
            inputs = seer.inputs(part, question)
            output = inner.get_image_features(
                inputs["pixel_values"], inputs["image_sizes"], return_dict=True
            )
            found.append((start, list(output.pooler_output)))
    return found


def right(bed_: Bed, method: Method | None) -> np.ndarray:
    """(S, K): 1 where the answer is exact, 0 where not, NaN where nothing was asked."""
    found = np.full((len(bed_.seen), len(KINDS)), np.nan)
    for column, kind in enumerate(KINDS):
        index, questions = bed_.asked[kind]
        for start, features in bed_.features:
            own = np.flatnonzero((index >= start) & (index < start + len(features)))
            if not len(own):
                continue
            part = Examples(kind, bed_.seen[index[own]], tuple(questions[i] for i in own))
            inputs = prompts(bed_.seer, part, [features[index[i] - start] for i in own])
            with torch.no_grad(), nullcontext() if method is None else method(bed_.seer.model):
                found[index[own], column] = answered(bed_.seer, part, inputs)
    return found


def prompts(seer: Seer, part: Examples, features: list[torch.Tensor]) -> dict[str, Any]:
    """Inputs with all placeholders, and ready features."""
    return seer.inputs_of_features([[feature] for feature in features], part.questions)


def budgets(layout: Layout) -> dict[float, int]:
    """Tokens of an image at each rate."""
    return {rate: HiRED(rate=rate).budget(layout) for rate in RATES}


def methods(tokens: int, layout: Layout, seed: int) -> dict[str, Method]:
    """Everything that is compared at one number of tokens."""
    ours = HiRED(max_tokens=tokens, positions=POSITIONS)
    return {
        "HiRED": ours,
        "even allocation": HiRED(max_tokens=tokens, positions=POSITIONS, content_score="even"),
        "thumbnail only": HiRED(
            max_tokens=min(tokens, layout.patches), positions=POSITIONS, alpha=1.0, newline="none"
        ),
        "random": RandomTokens(max_tokens=tokens, seed=seed),
        "uniform grid": UniformTokens(max_tokens=tokens),
    }


def variants(rate: float) -> dict[str, Method]:
    """HiRED's other modes at one rate."""
    return {
        "paper": HiRED(rate=rate, positions=POSITIONS, compat="paper"),
        "released code": HiRED(rate=rate, positions=POSITIONS, compat="official"),
        "without newlines": HiRED(rate=rate, positions=POSITIONS, newline="none"),
        "compact positions": HiRED(rate=rate),
    }


BLIND: Method = NoTokens()


def one_partition(seer: Seer, n: int, seeds: Sequence[int], rate: float) -> dict[str, np.ndarray]:
    """Whether each answer is exact, on scenes that are one partition: full, HiRED, random.

    Args:
        seer: of size S.
        n: scenes of every seed.
        seeds: of the scenes.
        rate: of both methods.
    """
    found: dict[str, list[np.ndarray]] = {"full": [], "HiRED": [], "random": []}
    for seed in seeds:
        asked = held_out("S", n, seed=seed)
        used: dict[str, Method | None] = {
            "full": None,
            "HiRED": HiRED(rate=rate, positions=POSITIONS),
            "random": RandomTokens(rate=rate, seed=seed),
        }
        for name, method in used.items():
            found[name] += score(seer, asked, method).values()
    return {name: np.concatenate(parts).astype(float) for name, parts in found.items()}


def gap(one_SK: np.ndarray, two_SK: np.ndarray) -> tuple[float, float, float]:
    """Mean over scenes of the difference, each the mean of its questions, and its 95 % bootstrap
    interval."""
    return interval(np.nanmean(one_SK - two_SK, axis=1))


def interval(values_S: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval; scenes without a value do not count."""
    found = mean_interval(values_S[~np.isnan(values_S)])
    low = found.mean if found.lo is None else found.lo
    high = found.mean if found.hi is None else found.hi
    return found.mean, low, high


@dataclass(frozen=True)
class Measured:
    """One prefill, counted and predicted.

    Args:
        tokens: visual ones.
        flops: counted by torch in the decoder and its head.
        flops_ledger: by the ledger.
        kv_bytes: of the cache's tensors.
        kv_ledger: by the ledger.
    """

    tokens: int
    flops: int
    flops_ledger: int
    kv_bytes: int
    kv_ledger: int


def measured(bed_: Bed, method: Method | None) -> Measured:
    """Prefill of one scene's question under eager attention, where torch counts every product."""
    from torch.utils.flop_counter import FlopCounterMode

    model = bed_.seer.model
    _, inputs = bed_.counting(1)
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with (
            torch.no_grad(),
            nullcontext() if method is None else method(model) as kept,
            FlopCounterMode(display=False) as counter,
        ):
            cache = model(**inputs, use_cache=True, logits_to_keep=1).cache
    finally:
        model.set_attn_implementation(before)
    tokens = bed_.layout.tokens if kept is None else len(kept.entered[0])
    text = inputs["input_ids"].shape[1] - bed_.layout.tokens
    itemsize = model.dtype.itemsize
    layers = model.config.text_config.num_hidden_layers
    told = costs.prefill(model.config, text, [tokens] * layers, itemsize=itemsize)
    held = sum(part.numel() * itemsize for layer in cache.layers for part in _tensors(layer))
    return Measured(tokens, counter.get_total_flops(), told.flops, held, told.kv_bytes)


def precision(bed_: Bed) -> tuple[float, float]:
    """Share of object patches among the quarter of all tiles' patches that the class token looks at
    most, and among all patches."""
    layout = bed_.layout
    flags = bed_.seen.foreground()
    mosaic = ~layout.newline_K & (layout.line_K >= 0)
    hits = []
    with torch.no_grad(), HiRED(positions=POSITIONS)(bed_.seer.model) as kept:
        index, questions = bed_.asked["count"]
        for start, features in bed_.features:
            own = index[start : start + len(features)]
            part = Examples("count", bed_.seen[own], tuple(questions[i] for i in own))
            bed_.seer.model(**prompts(bed_.seer, part, features), logits_to_keep=1)
            scores = torch.stack(kept.scores)[:, torch.from_numpy(mosaic)]
            best = scores.topk(scores.shape[1] // 4).indices.cpu().numpy()
            hits.append(np.take_along_axis(flags[own], best, axis=1).mean(1))
    return float(np.concatenate(hits).mean()), float(flags.mean())


def _tensors(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.keys, layer.values


def realised(bed_: Bed, method: Method) -> np.ndarray:
    """(n,): tokens that the images of the first batch keep."""
    _, inputs = bed_.counting()
    with torch.no_grad(), method(bed_.seer.model) as kept:
        bed_.seer.model(**inputs, use_cache=False, logits_to_keep=1)
    return np.array([len(entered) for entered in kept.entered])
