"""The runs behind the proof of HBPO: cells of the grid on ChainArith-RL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outlay.proofs.rl_beside import cells_of
from outlay.rl.base import Method, Plain
from outlay.rl.grid import Cell
from outlay.rl.hbpo import HBPO, Cosine
from outlay.rl.running_tasks import TrainingTask

# Written before the first run: the budgets of the sheet in a context of 128 tokens.
BUDGETS, L_MAX, GROUP, QUESTIONS, STEPS = (16, 32, 64, 96), 128, 16, 8, 150
MEAN = sum(BUDGETS) // len(BUDGETS)
TAGS = ("<b1>", "<b2>", "<b3>", "<b4>")
HARD = (7, 8)  # operations
LAST = 50  # steps over which the spread of lengths is taken

HIERARCHY, ONE, COSINE, PLAIN = "HBPO", "one budget", "cosine", "GRPO"
MAIN = (HIERARCHY, ONE, COSINE, PLAIN)  # all seeds
NO_INTRA, TWICE, SAFE = "without the inner term", "inner term twice", "inner term over f2"
FLAT, SILENT, BY_QUESTION = "promises, flat pay", "budgets unsaid", "budgets by question"
ABLATIONS = (NO_INTRA, TWICE, FLAT)  # the first seed
EXTRAS = (SAFE, SILENT, BY_QUESTION)  # the first seed; at scale "gpu", or where they are stored


def hierarchy(**knobs: Any) -> HBPO:
    """On this testbed: promises are the tags that the policy knows."""
    given: dict[str, Any] = {
        "budgets": BUDGETS,
        "n": GROUP,
        "l_max": L_MAX,
        "prefix_template": TAGS,
    }
    return HBPO(**{**given, **knobs})


def methods() -> dict[str, Method | str]:
    """Every method of the proof by name."""
    return {
        HIERARCHY: hierarchy(),
        ONE: hierarchy(budgets=(MEAN,), prefix_template=("<b3>",)),
        COSINE: Plain(rewards=(Cosine(L_MAX),)),
        PLAIN: "grpo",
        NO_INTRA: hierarchy(intra_weight=0.0),
        TWICE: hierarchy(intra_weight=2.0),
        SAFE: hierarchy(intra_scale="f2"),
        FLAT: hierarchy(reward_form="flat", format_penalty=0.0),
        SILENT: hierarchy(prefix_template=""),
        BY_QUESTION: hierarchy(per="question"),
    }


def cells(
    names: Sequence[str],
    seeds: Sequence[int],
    task: TrainingTask | None = None,
    *,
    steps: int = STEPS,
    questions: int = QUESTIONS,
) -> list[Cell]:
    """Cells of the grid: equal rollouts, steps and learning rate for all methods."""
    return cells_of(methods(), names, seeds, task, steps=steps, questions=questions, group=GROUP)
