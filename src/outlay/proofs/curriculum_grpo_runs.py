"""The runs behind the proof of Curriculum GRPO: cells of the grid on ChainArith-RL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outlay.proofs.rl_beside import cells_of
from outlay.rl.base import Method, Plain
from outlay.rl.curriculum import CurriculumGRPO
from outlay.rl.grid import Cell
from outlay.rl.grid_results import CellResult
from outlay.rl.length_rewards import ExactLength
from outlay.rl.running_tasks import TrainingTask

# Written before the first run, from the starting policy: the 90th percentile of its lengths at T=1,
# and the mean length of its short style over 1 to 8 operations (6 n + 5).
B0, B_FINAL = 77, 32
STEPS = 150
MORE = 200  # steps of the fixed run that makes up for the curriculum's longer rollouts
EASY, HARD = (1, 2, 3), (6, 7, 8)  # operations
LENGTH_HEAVY = (0.3, 0.6, 0.1)

CURRICULUM, FIXED, LENGTH, PLAIN = "curriculum", "fixed", "gated length", "GRPO"
START = "before training"
TRIANGLE, BAND, GATED = "length-heavy triangle", "length-heavy band", "length-heavy gated"
MAIN = (CURRICULUM, FIXED, LENGTH, PLAIN)  # all seeds
ABLATIONS = (TRIANGLE, BAND, GATED, "one drop", "rising")  # the first seed
EXTRAS = (  # the first seed; at scale "gpu", or where they are stored already
    "linear",
    "fixed, more steps",
    "fixed at the first budget",
    "exact length",
    "cosine",
    "soft overlong",
)


def _curriculum(**knobs: Any) -> CurriculumGRPO:
    """On this testbed: no words about budgets (the policy cannot read them), the verifier's
    grammar as format, and room for the four tokens of an answer beyond the cap."""
    given: dict[str, Any] = {
        "b0": B0,
        "b_final": B_FINAL,
        "total_steps": None,
        "budget_in_prompt": False,
        "fmt": "verifier",
        "answer_slack": 4,
        "save_per_stage": False,
    }
    return CurriculumGRPO(**{**given, **knobs})


def methods() -> dict[str, Method | str]:
    """Every method of the proof by name; baselines as the grid names them, so that other proofs
    share their runs."""
    return {
        CURRICULUM: _curriculum(),
        FIXED: _curriculum(schedule="constant"),
        LENGTH: "grpo-length",
        PLAIN: "grpo",
        START: "sft",
        TRIANGLE: _curriculum(weights=LENGTH_HEAVY),
        BAND: _curriculum(weights=LENGTH_HEAVY, shape="band"),
        GATED: _curriculum(weights=LENGTH_HEAVY, gate_length=True),
        "one drop": _curriculum(n_decays=1),
        "rising": _curriculum(schedule="rising", b0=B_FINAL, b_final=B0),
        "linear": _curriculum(schedule="linear"),
        "fixed, more steps": _curriculum(schedule="constant"),
        "fixed at the first budget": _curriculum(schedule="constant", b_final=B0),
        "exact length": Plain(rewards=(ExactLength(B_FINAL, alpha=0.01),)),
        "cosine": "grpo-cosine",
        "soft overlong": "grpo-overlong",
    }


def cells(
    names: Sequence[str],
    seeds: Sequence[int],
    task: TrainingTask | None = None,
    *,
    steps: int | None = None,
    questions: int = 16,
) -> list[Cell]:
    """Cells of the grid.

    Args:
        names: of methods.
        seeds: of each.
        task: None for the testbed as the grid has it.
        steps: None for the proof's own.
        questions: of a step, with 8 rollouts each.
    """
    known = methods()
    return [
        cell
        for name in names
        for cell in cells_of(
            known,
            (name,),
            seeds,
            task,
            steps=steps or (MORE if name == "fixed, more steps" else STEPS),
            questions=questions,
        )
    ]


def table_of(method: CurriculumGRPO, steps: int) -> list[tuple[int, float]]:
    """Step and budget of each stage."""
    return [(int(row["step"]), row["budget"]) for row in method.schedule_table(steps)]


def lengths_of(result: CellResult) -> list[float]:
    """Mean tokens of every step's rollouts; none without training."""
    return [float(value or 0.0) for value in result.curve.get("tokens_mean", [])]


def binned(result: CellResult, name: str, operations: Sequence[int]) -> list[float | None]:
    """A metric of every step's rollouts on problems of these lengths; None without any."""
    columns = [result.curve[f"{name}@{n}"] for n in operations if f"{name}@{n}" in result.curve]
    found: list[float | None] = []
    for values in zip(*columns, strict=True):
        known = [value for value in values if value is not None]
        found.append(sum(known) / len(known) if known else None)
    return found
