"""Proof of Curriculum GRPO on ChainArith-RL: does finding long solutions first pay?

"Train Long, Think Short" (arXiv 2508.08940) says: under a budget that shrinks during training, a
model ends up as short as under the final budget from the start, and more accurate. Four things are
looked at: whether lengths follow the budget; whether the curriculum beats its last budget; what
the band does where weights favour length; and what paying wrong answers for their length costs on
hard problems. Beside it run TRL's plain GRPO, a plain length reward that is gated by correctness,
other orders and shapes of the schedule; whoever wins is reported.

All targets stand in `curriculum_grpo_claims` and were written before the first run; the learning
rate is a second choice (see `rl_beside.RATE`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from outlay.frontier import points
from outlay.proofs import rl_larger
from outlay.proofs.base import Check, Progress, ProofResult, Scale, silent
from outlay.proofs.curriculum_grpo_claims import (
    GREEDY,
    against,
    curriculum_or_fixed,
    follows,
    hard_first,
    padding,
    shapes,
)
from outlay.proofs.curriculum_grpo_figure import data_of, drawer
from outlay.proofs.curriculum_grpo_runs import (
    ABLATIONS,
    CURRICULUM,
    EXTRAS,
    LENGTH,
    MAIN,
    PLAIN,
    START,
    cells,
)
from outlay.proofs.curriculum_grpo_small import few_steps, tiny
from outlay.proofs.rl_beside import SEEDS, finished, home, peer
from outlay.proofs.rl_figure import Runs, stored


@dataclass(frozen=True)
class Size:
    """How much is run: seeds of the main claim; whether further baselines are trained; processes.

    Baselines that are stored already are shown at every size.
    """

    seeds: tuple[int, ...]
    extras: bool
    processes: int


SIZES: Mapping[Scale, Size] = {
    "laptop": Size(SEEDS["laptop"], False, 1),
    "gpu": Size(SEEDS["gpu"], True, 4),
}


def run(
    scale: Scale, *, seed: int = 0, progress: Progress = silent, folder: Path | None = None
) -> ProofResult:
    """Run the experiment; runs that are stored already are not trained again.

    Args:
        scale: "ci" is one tiny run.
        seed: of the first run; the others follow.
        progress: gets a line a run.
        folder: store of runs; None takes the one in the cache.
    """
    if scale == "ci":
        return ProofResult("curriculum-grpo", scale, [seed], tiny(seed)).finish()
    size = SIZES[scale]
    seeds = [seed + one for one in size.seeds]
    store = home(folder)
    extra = cells(EXTRAS, seeds[:1])
    wanted = cells((START,), seeds[:1]) + cells(MAIN, seeds) + cells(ABLATIONS, seeds[:1])
    runs = finished(
        wanted, extra, store, progress, train_extra=size.extras, processes=size.processes
    )
    result = ProofResult("curriculum-grpo", scale, seeds, judged(runs))
    progress("SmolLM2: a few steps")
    result.checks += few_steps()
    if size.extras or len(stored(rl_larger.cells(), store)) == len(rl_larger.cells()):
        result.checks += rl_larger.larger(store, progress)
    result.points = points(
        [record for group in runs.values() for one in group for record in one.records(GREEDY)],
        axis="generated",
        seed=seed,
    )
    result.peer = peer(runs, CURRICULUM, MAIN[1:])
    result.data = data_of(runs)
    result.draw = drawer(runs)
    return result.finish()


def judged(runs: Runs) -> list[Check]:
    """Every check of finished runs."""
    rivals: Sequence[str] = (LENGTH, PLAIN, START, *ABLATIONS[3:], *EXTRAS)
    return [
        follows(runs[CURRICULUM]),
        *curriculum_or_fixed(runs),
        *shapes(runs),
        *hard_first(runs),
        *against(runs, rivals),
        padding(runs),
    ]
