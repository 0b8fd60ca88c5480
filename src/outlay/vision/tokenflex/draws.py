"""Which number of visual tokens a training step gets.

TokenFLEX (arXiv 2504.03154), stochastic dynamic token training: `N ~ Categorical(counts; probs)`.
A draw is a function of the seed and of the step alone: all processes of a training draw alike, a
resumed training goes on as it would have, and no global generator is read or moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from outlay.errors import InputError
from outlay.vision.tokenflex.grids import Count, Grid, check_counts, grid_of

Granularity = Literal["batch", "sample"]
STAGES = (1, 2, 3)
MAX_DRAWS = 1_000_000


@dataclass(frozen=True)
class CountDraw:
    """Random counts of visual tokens.

    Args:
        counts: that may be drawn, rising; square numbers or (rows, columns).
        probs: of each.
        draw: one count for a `batch`, or one for every `sample`; the latter pads every row to the
            largest, and spends accordingly.
        stage_on: stages of training with random counts: 1 aligns the projector, 2 improves the
            encoder, 3 tunes on instructions. Other stages take the largest count.
        seed: of all draws, the same on all processes.

    Raises:
        InputError: for counts that do not rise, or probabilities that are none.
    """

    counts: tuple[Count, ...] = (64, 144, 256)
    probs: tuple[float, ...] = (0.2, 0.3, 0.5)
    draw: Granularity = "batch"
    stage_on: tuple[int, ...] = STAGES
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self.counts)
        if len(self.probs) != len(self.counts):
            raise InputError(f"{len(self.probs)} probs for {len(self.counts)} counts; need as many")
        if not all(math.isfinite(p) and p >= 0 for p in self.probs):
            raise InputError(f"probs={self.probs}; must be numbers of at least 0")
        if abs(sum(self.probs) - 1) > 1e-6:
            raise InputError(f"probs={self.probs} sum to {sum(self.probs):g}; they must sum to 1")
        if self.draw not in ("batch", "sample"):
            raise InputError(f"draw={self.draw!r}; use 'batch' or 'sample'")
        if not set(self.stage_on) <= set(STAGES):
            raise InputError(f"stage_on={self.stage_on}; stages are 1, 2 and 3")
        if self.seed < 0:
            raise InputError(f"seed={self.seed}; must not be negative")

    @classmethod
    def fixed(cls, count: Count) -> CountDraw:
        """Always the same count."""
        return cls((count,), (1.0,))

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The grids of `counts`."""
        return tuple(grid_of(count) for count in self.counts)

    def expected(self, stage: int = 2) -> float:
        """Mean number of visual tokens of an image."""
        sizes = [grid.count for grid in self.grids]
        if stage not in self.stage_on:
            return float(sizes[-1])
        return float(np.dot(sizes, self.probs))

    def at(self, step: int, images: int = 1, *, micro: int = 0, stage: int = 2) -> list[Count]:
        """The count of every image of one step.

        Args:
            step: of the optimiser, from 0.
            images: of the batch.
            micro: batch within the step, where gradients are accumulated.
            stage: of training.

        Raises:
            InputError: for numbers out of range.
        """
        if min(step, micro) < 0 or not 1 <= images <= MAX_DRAWS:
            raise InputError(
                f"step={step}, micro={micro}, images={images}; need step and micro of at least 0 "
                f"and 1 to {MAX_DRAWS} images"
            )
        if stage not in STAGES:
            raise InputError(f"stage={stage!r}; stages are 1, 2 and 3")
        if stage not in self.stage_on:
            return [self.counts[-1]] * images
        source = np.random.SeedSequence([self.seed, step, micro])
        uniform = np.random.Generator(np.random.PCG64(source)).random(
            images if self.draw == "sample" else 1
        )
        last = max(i for i, p in enumerate(self.probs) if p > 0)
        index = np.searchsorted(np.cumsum(self.probs), uniform, side="right")
        drawn = [self.counts[min(int(i), last)] for i in index]
        return drawn if self.draw == "sample" else drawn * images
