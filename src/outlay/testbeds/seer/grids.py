"""Frames with fewer visual tokens: a projected map resized to any grid.

Shapes: B clips, T frames, n tokens, C width; a map of g x g tokens in raster order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch

from outlay.errors import InputError
from outlay.testbeds.seer.clips import Clips
from outlay.testbeds.seer.model import Seer
from outlay.testbeds.seer.questions import Question

How = Literal["bilinear", "average"]
UNIFORM = 4
"""Side of every frame's grid in the seer's plain use: a quarter of the tokens, as video models
pool theirs."""


@lru_cache(maxsize=512)
def weights(side: int, height: int, width: int, how: How) -> torch.Tensor:
    """(height * width, side * side) matrix that resizes a map.

    Args:
        side: of the square map.
        height, width: of the new grid.
        how: `bilinear` interpolation between token centres, or `average` pooling over equal parts.

    Raises:
        InputError: for an empty grid or another name.
    """
    if min(side, height, width) < 1:
        raise InputError(f"grid {height}x{width} of a map of {side}x{side}; need at least 1x1")
    pixels = torch.eye(side * side).view(side * side, 1, side, side)
    if how == "bilinear":
        made = torch.nn.functional.interpolate(pixels, (height, width), mode="bilinear")
    elif how == "average":
        made = torch.nn.functional.adaptive_avg_pool2d(pixels, (height, width))
    else:
        raise InputError(f"how={how!r}; must be bilinear or average")
    return made.flatten(1).T.contiguous()


def grid_of(count: int) -> tuple[int, int]:
    """The largest grid of at most `count` tokens that is square, or has one more row or column.

    (QuoTA, arXiv 2503.08689, the token assigner's rule.) No token gives (0, 0).
    """
    side = int(count**0.5)
    if (side + 1) * side <= count:
        return side + 1, side
    return side, side


def uniform_inputs(
    seer: Seer, seen: Clips, questions: Sequence[Question], *, side: int = UNIFORM
) -> dict[str, Any]:
    """Inputs in which every frame has side x side tokens, by average pooling.

    Raises:
        InputError: unless 1 <= side <= the tower's grid, and as `Seer.inputs_of_features` does.
    """
    if not 1 <= side <= seer.size.grid:
        raise InputError(f"side={side}; must be 1 to {seer.size.grid}")
    matrix = weights(seer.size.grid, side, side, "average").to(seer.model.device)
    features_BTnC = matrix @ seer.features(seen)
    return seer.inputs_of_features([list(row) for row in features_BTnC], questions)


def random_grids(
    seen: Clips, rng: np.random.Generator, most: int, budget: int
) -> list[list[tuple[int, int]]]:
    """A grid for every frame of every clip, as training draws them.

    Four of ten batches give all frames the same square grid. In the others a clip's budget of
    tokens goes to its frames by random weights, in part towards frames that show more; frames may
    get none.

    Args:
        seen: the clips.
        rng: of the choice.
        most: side of the largest grid.
        budget: most tokens of a clip.
    """
    n, length = len(seen), seen.length
    if rng.random() < 0.4:
        side = int(rng.integers(1, min(most, int((budget / length) ** 0.5)) + 1))
        return [[(side, side)] * length for _ in range(n)]
    top = min(budget, length * most**2)
    totals_N1 = np.exp(rng.uniform(np.log(min(1.5 * length, top)), np.log(top), (n, 1)))
    pull, noise = rng.choice([0.0, 1.0, 2.0]), rng.choice([0.5, 1.5])
    shown_NT = seen.visible().sum(-1)
    scores_NT = pull * shown_NT + noise * rng.standard_normal((n, length))
    shares_NT = np.exp(scores_NT - scores_NT.max(1, keepdims=True))
    shares_NT /= shares_NT.sum(1, keepdims=True)
    least = int(rng.integers(0, 2))
    counts_NT = np.clip((totals_N1 * shares_NT).astype(int), least, most**2)
    counts_NT[:, 0] = np.where(counts_NT.sum(1) == 0, 1, counts_NT[:, 0])
    return [[grid_of(int(count)) for count in row] for row in counts_NT]
