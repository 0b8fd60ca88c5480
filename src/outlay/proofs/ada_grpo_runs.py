"""The runs behind the proof of Ada-GRPO: cells of the grid on ChainArith-RL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outlay.proofs.rl_beside import cells_of
from outlay.rl.ada_grpo import AdaGRPO
from outlay.rl.base import Method
from outlay.rl.grid import Cell
from outlay.rl.running_tasks import TrainingTask

STEPS = 150  # written before the first run; as the other proofs, so that baselines are shared
ADA, PLAIN, LENGTH = "Ada-GRPO", "GRPO", "gated length"
MAIN = (ADA, PLAIN, LENGTH)  # all seeds
ENDLESS, ON_ADVANTAGE = "without decay", "scaled advantages"
ABLATIONS = (ENDLESS,)  # the first seed
EXTRAS = (ON_ADVANTAGE,)  # the first seed; at scale "gpu", or where it is stored already
CHEAP = ("direct", "short", "code")
FALLBACK = "long"


def scaled(**knobs: Any) -> AdaGRPO:
    """On this testbed: styles are formats, and no method here has a KL penalty."""
    return AdaGRPO(**{"kl": 0.0, **knobs})


def methods() -> dict[str, Method | str]:
    """Every method of the proof by name; baselines as the grid names them."""
    return {
        ADA: scaled(),
        PLAIN: "grpo",
        LENGTH: "grpo-length",
        ENDLESS: scaled(decay="none"),
        ON_ADVANTAGE: scaled(scale_on="advantage"),
    }


def cells(
    names: Sequence[str],
    seeds: Sequence[int],
    task: TrainingTask | None = None,
    *,
    steps: int = STEPS,
    questions: int = 16,
) -> list[Cell]:
    """Cells of the grid: equal rollouts, steps and learning rate; Ada-GRPO's weights are kept."""
    kept = (ADA, PLAIN)
    return cells_of(methods(), names, seeds, task, steps=steps, questions=questions, keep=kept)
