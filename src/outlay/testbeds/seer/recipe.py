"""The recipes of the shipped seers, and the record of a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from outlay.errors import InputError
from outlay.testbeds.seer.model import size_of
from outlay.testbeds.seer.questions import check_mix


@dataclass(frozen=True)
class TrainConfig:
    """One training.

    Args:
        size: `S`, `M`, `HR` or `V`.
        seed: of weights and data.
        tower_steps: optimiser steps of the tower; 0 keeps what it starts from.
        llm_steps: optimiser steps of projector and language model.
        batch: scenes of a step.
        tower_lr: peak learning rate of the tower.
        lr: peak learning rate of projector and language model.
        warmup: steps of linear warm-up of each.
        weight_decay: of matrices.
        clip: largest gradient norm.
        token_drop: whether two of three batches keep only part of the visual tokens.
        compact: share of those batches whose kept tokens close ranks, instead of keeping their
            positions.
        max_objects: most objects of a scene; None is the size's own.
        question_mix: weight by kind of question; None is equal weights.

    Raises:
        InputError: for values out of range.
    """

    size: str = "S"
    seed: int = 0
    tower_steps: int = 3300
    llm_steps: int = 2400
    batch: int = 32
    tower_lr: float = 2e-3
    lr: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    token_drop: bool = True
    compact: float = 0.25
    max_objects: int | None = None
    question_mix: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        size_of(self.size)
        for name in ("tower_steps", "llm_steps"):
            if not 0 <= getattr(self, name) <= 10**6:
                raise InputError(f"{name}={getattr(self, name)}; must be 0 to 1000000")
        if self.batch < 1 or self.warmup < 0 or self.seed < 0:
            raise InputError(
                f"batch={self.batch}, warmup={self.warmup}, seed={self.seed}; need a batch of at "
                "least 1, and no negative number"
            )
        if not (self.tower_lr > 0 and self.lr > 0 and self.clip > 0):
            raise InputError(
                f"tower_lr={self.tower_lr}, lr={self.lr}, clip={self.clip}; must be positive"
            )
        if not 0 <= self.compact <= 1:
            raise InputError(f"compact={self.compact}; must be a share from 0 to 1")
        if self.question_mix is not None:
            check_mix(self.question_mix, 1)

    @property
    def objects(self) -> int:
        """Most objects of a scene."""
        return size_of(self.size).max_objects if self.max_objects is None else self.max_objects


DEFAULTS: dict[str, TrainConfig] = {
    "S": TrainConfig(),
    "M": TrainConfig(size="M", tower_steps=800, llm_steps=1500, tower_lr=1e-3, lr=1e-3),
    "HR": TrainConfig(size="HR", tower_steps=600, llm_steps=1000, tower_lr=1e-3, lr=1e-3),
    "V": TrainConfig(size="V", tower_steps=0, llm_steps=1500, lr=1e-3),
}
"""What ships. All but S start from S."""


@dataclass
class Training:
    """How a training went.

    Args:
        seconds: of process time, by stage.
        losses: (stage, step, loss) at every twentieth of the way.
        tower: held-out accuracies of the tower's heads.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    losses: list[tuple[str, int, float]] = field(default_factory=list)
    tower: dict[str, float] = field(default_factory=dict)


Report = Callable[[str, int, float], None]
"""Called after every step with the stage, the step and the loss."""


def drawing(config: TrainConfig, step: int = 0) -> dict[str, Any]:
    """What scenes a size is trained on; a tiled size has several shapes in turn."""
    size = size_of(config.size)
    if not size.tiled:
        return {"side": size.side, "patch": size.patch, "max_objects": config.objects}
    side = size.side
    shapes = [(2 * side, 2 * side), (side, 2 * side), (2 * side, side), (2 * side, 4 * side // 3)]
    order = (0, 1, 0, 2, 0, 3)
    return {
        "side": shapes[order[step % len(order)]],
        "patch": size.patch,
        "max_objects": config.objects,
        "min_objects": 2,
        "layout": ("clustered", "spread")[step // len(order) % 2],
    }
