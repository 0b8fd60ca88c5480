"""Plainer rankings under the same schedule: what a PageRank must beat.

"random" drops at random, "grid" keeps a uniform subsample, "cls" keeps what the class token attends
to (EViT without training), "column" what all tokens attend to on average, the plain column mean of
attention. Counts are those of the schedule, near copies included.

Shapes: B images, P patches, K kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from outlay.errors import CapabilityError, InputError
from outlay.vision.base import Positions, top
from outlay.vision.zero_tprune.pruning import Alive, Pruning
from outlay.vision.zero_tprune.schedule import Stage, as_stages, stages_for

if TYPE_CHECKING:
    from torch import Tensor

Ranking = Literal["column", "cls", "random", "grid", "given"]


@dataclass(frozen=True)
class PatchRanking:
    """Pruning layers with a plain ranking.

    Args:
        schedule: as that of `ZeroTPrune`.
        ranking: "column", "cls", "random", "grid", or "given".
        seed: of "random".
        given_BP: scores of all patches of the images that will run, for "given" (an oracle's).
        protect: numbers of tokens that never go, beside the special ones.
        positions: of a decoder's visual tokens.

    Raises:
        InputError: for an unknown ranking, or "given" without scores.
    """

    schedule: Sequence[Stage | Sequence[float]]
    ranking: Ranking = "column"
    seed: int = 0
    given_BP: Tensor | None = None
    protect: tuple[int, ...] = ()
    positions: Positions = "original"

    def __post_init__(self) -> None:
        if self.ranking not in get_args(Ranking):
            raise InputError(f"ranking={self.ranking!r}; choose one of {get_args(Ranking)}")
        if (self.ranking == "given") != (self.given_BP is not None):
            raise InputError("given_BP goes with ranking='given', and with no other")
        object.__setattr__(self, "schedule", as_stages(self.schedule))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The schedule."""
        return as_stages(self.schedule)

    def __call__(self, model: Any) -> Pruning:
        """A context in which `model` runs on fewer patches."""
        generator = torch.Generator().manual_seed(self.seed)

        def choose(stage: Stage, alive: Alive) -> tuple[Tensor, Tensor]:
            scores_BP = self._scores(alive, generator)
            return top(scores_BP, stage.left(scores_BP.shape[1])), scores_BP

        from outlay.vision.zero_tprune.cost import tower_flops

        pruning = Pruning(
            model, self.stages, choose, protect=self.protect, positions=self.positions
        )
        pruning.kept.tower_flops = lambda: tower_flops(model, self)
        return pruning

    def within(self, tokens: int, total: int, layers: int) -> PatchRanking:
        """See `outlay.vision.base.Budgeted`: the schedule, scaled so that `tokens` leave the tower.

        Raises:
            InputError: for a schedule in which nothing goes.
        """
        stages = stages_for(self.stages, tokens, total)
        return replace(self, schedule=stages or (Stage(self.stages[0].block),))

    def _scores(self, alive: Alive, generator: torch.Generator) -> Tensor:
        size, count = alive.patches_BP.shape
        if self.ranking == "random":
            return torch.rand(size, count, generator=generator).to(alive.hidden_BND.device)
        if self.ranking == "grid":
            return _even(alive.numbers_BP, alive.total)
        if self.ranking == "given":
            assert self.given_BP is not None
            if self.given_BP.shape != (size, alive.total):
                raise InputError(
                    f"given_BP has shape {tuple(self.given_BP.shape)}; these images need "
                    f"{(size, alive.total)}"
                )
            return self.given_BP.to(alive.hidden_BND.device).gather(1, alive.numbers_BP)
        if self.ranking == "cls":
            if not alive.boosted and alive.patches_BP[0, 0] == 0:
                raise CapabilityError("this tower has no class token; use ranking='column'")
            received_BHN = alive.reader.class_row()
        else:
            received_BHN = alive.reader.rows().mean(2)
        return received_BHN.mean(1).gather(1, alive.patches_BP)


def _even(numbers_BP: Tensor, total: int) -> Tensor:
    """Scores whose best k are spread evenly over the grid for every k: first a checkerboard, then
    every other row of it, and so on."""
    side = max(1, math.isqrt(total))
    row_BP, column_BP = numbers_BP // side, numbers_BP % side
    behind_BP, weight = torch.zeros_like(numbers_BP, dtype=torch.float64), 0.5
    for _ in range(side.bit_length()):
        for odd_BP in ((row_BP + column_BP) % 2, row_BP % 2):
            behind_BP = behind_BP + weight * odd_BP
            weight /= 2
        row_BP, column_BP = row_BP // 2, column_BP // 2
    return -behind_BP
