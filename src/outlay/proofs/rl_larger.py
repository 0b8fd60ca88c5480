"""The best method of the proofs once more, on the larger reasoner.

Of the methods with three seeds on the testbed, the plain length reward that pays right answers only
gives the most right answers a token, greedy, at the accuracy of plain GRPO. The larger reasoner
knows the notation and other chains, so it starts lower here, and longer.
"""

from __future__ import annotations

from pathlib import Path

from outlay.proofs.base import Check, Progress
from outlay.proofs.rl_beside import RATE
from outlay.rl.grid import Cell, run
from outlay.rl.grid_compare import by_label, mean, versus
from outlay.rl.running_tasks import ChainTask

STEPS = 75
TASK = ChainTask(start="reasoner", longest=128, budget=64)
BEST, PLAIN, START = "gated length", "GRPO", "before training"
_METHODS = {BEST: "grpo-length", PLAIN: "grpo", START: "sft"}


def cells() -> list[Cell]:
    """The best method, plain GRPO, and the policy before training: one seed."""
    return [
        Cell(name, method, steps=STEPS, learning_rate=RATE, task=TASK)
        for name, method in _METHODS.items()
    ]


def larger(home: Path, progress: Progress) -> list[Check]:
    """What the method does there, without a target; what is stored is not trained again."""
    progress("the larger reasoner")
    runs = by_label(run(cells(), home, progress))
    checks = []
    for rival in (PLAIN, START):
        greedy, sampled = (versus(runs[BEST], runs[rival], at) for at in (0.0, 1.0))
        checks.append(
            Check(
                f"on the larger reasoner: {BEST} against {rival}",
                "",
                greedy.accuracy.value,
                None,
                (greedy.accuracy.lo, greedy.accuracy.hi),
                f"greedy accuracy {mean(runs[BEST]).value:.3f} against "
                f"{mean(runs[rival]).value:.3f}, tokens x{greedy.tokens.value:.2f} "
                f"[{greedy.tokens.lo:.2f}, {greedy.tokens.hi:.2f}]; T=1 accuracy "
                f"{sampled.accuracy.value:+.3f} [{sampled.accuracy.lo:+.3f}, "
                f"{sampled.accuracy.hi:+.3f}], tokens x{sampled.tokens.value:.2f}; {STEPS} steps, "
                "one seed",
            )
        )
    return checks
