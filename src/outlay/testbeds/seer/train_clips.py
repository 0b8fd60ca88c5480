"""Training batches of clips: one to sixteen frames, each resized to a grid of its own.

Random grids stand for the robustness of a large video model; without them a resized frame is
something that the language model has never seen. Single frames are among them, so that the same
model can score frames one by one.

Shapes: B clips, T frames, n visual tokens, C width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from outlay.testbeds.seer.clips import Clips, clips, draw_of_clips
from outlay.testbeds.seer.grids import How, random_grids, weights
from outlay.testbeds.seer.model import look, normalised, size_of
from outlay.testbeds.seer.questions import BOS, FRAME, Packed, pack
from outlay.testbeds.seer.recipe import TrainConfig
from outlay.testbeds.seer.scenes import generator
from outlay.testbeds.seer.train import FEATURE, NOTHING, Prefix

LENGTHS = {1: 0.2, 4: 0.15, 8: 0.25, 16: 0.4}
"""Share of batches by frames of a clip."""
FRAMES = 192
"""Most frames of a batch: longer clips come in smaller batches."""
BUDGET = 272
"""Most visual tokens of a clip."""
SINGLE_MIX = {"digit": 1.0, "garment": 1.0, "count": 1.0, "exist": 2.0}


def clip_batches(model: Any, config: TrainConfig) -> Iterator[tuple[Prefix, Packed]]:
    """Endless training batches of clips with random grids."""
    lengths, shares = list(LENGTHS), list(LENGTHS.values())
    for step in itertools.count():
        rng = generator((config.seed, 4, step), "train")
        length = int(rng.choice(lengths, p=shares))
        seen = training_clips(config, length, step, rng)
        mix = SINGLE_MIX if length == 1 else config.question_mix
        packed = pack(draw_of_clips(seen, rng, mix=mix))
        most = size_of(config.size).grid
        if length == 1 and rng.random() < 0.5:
            grids = [[(most, most)]] * len(seen)
        else:
            grids = random_grids(seen, rng, most, BUDGET)
        how: How = "bilinear" if rng.random() < 0.5 else "average"
        yield clip_prefix(model, seen, grids, how), packed


def training_clips(config: TrainConfig, length: int, step: int, rng: np.random.Generator) -> Clips:
    """Clips of one step; single frames are taken from longer clips, so that some are empty."""
    count = max(1, min(config.batch, FRAMES // length))
    drawn = clips(
        count,
        length=length if length > 1 else 8,
        max_objects=config.objects,
        split="train",
        seed=(config.seed, 3, step),
    )
    if length > 1:
        return drawn
    chosen = np.arange(count) * drawn.length + rng.integers(0, drawn.length, count)
    return drawn.each_frame()[chosen]


def clip_prefix(model: Any, seen: Clips, grids: list[list[tuple[int, int]]], how: How) -> Prefix:
    """The image part of training sequences: every frame's mark and its resized map."""
    inner = model.model
    side = seen.grid[0]
    with torch.autocast("cpu", torch.bfloat16):
        hidden_FnC, _ = look(inner.vision_tower, normalised(seen.frames).flatten(0, 1))
        maps_FnC = inner.multi_modal_projector(hidden_FnC).float()
    rows = [
        [BOS] + [t for h, w in row if h * w for t in (FRAME, *[FEATURE] * (h * w))] for row in grids
    ]
    width = max(len(row) for row in rows)
    ids_Bn = torch.tensor([row + [NOTHING] * (width - len(row)) for row in rows])
    # Where each frame's tokens begin in the flat prefix; frames of one grid are resized together.
    by_grid: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    for b, row in enumerate(grids):
        place = b * width + 1
        for t, (h, w) in enumerate(row):
            if h * w:
                frames, starts = by_grid.setdefault((h, w), ([], []))
                frames.append(b * seen.length + t)
                starts.append(place + 1)
                place += 1 + h * w
    parts, targets = [], []
    for (h, w), (frames, starts) in by_grid.items():
        parts.append((weights(side, h, w, how) @ maps_FnC[frames]).flatten(0, 1))
        targets.append((torch.tensor(starts)[:, None] + torch.arange(h * w)).flatten())
    visual = torch.zeros(len(rows) * width, maps_FnC.shape[-1])
    visual = visual.index_copy(0, torch.cat(targets), torch.cat(parts))
    return Prefix(
        visual=visual.unflatten(0, (len(rows), width)),
        ids=ids_Bn,
        positions=torch.arange(width).expand(len(rows), -1),
        after=torch.tensor([len(row) for row in rows]),
    )
