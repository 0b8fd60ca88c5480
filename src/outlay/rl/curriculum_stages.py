"""The stages of a curriculum: a checkpoint at the end of each, and what was measured in each.

Section 4 of "Train Long, Think Short" (arXiv 2508.08940): the ends of the stages form a curve of
accuracy over tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from outlay.errors import ResultsError
from outlay.rl.manifest import METRICS

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from outlay.rl.curriculum import CurriculumGRPO


class StageCheckpoints(TrainerCallback):
    """Saves after the last step of every stage, and at the end of the run.

    Args:
        method: whose stages they are.
    """

    def __init__(self, method: CurriculumGRPO) -> None:
        self._method = method

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> TrainerControl:
        """Ask for a checkpoint where the next rollouts would have another budget."""
        done, total = state.global_step, state.max_steps
        now = self._method.budget_at(done - 1, total)
        if done >= total or self._method.budget_at(done, total) != now:
            control.should_save = True
        return control


def by_stage(folder: str | Path, method: CurriculumGRPO, total_steps: int) -> list[dict[str, Any]]:
    """What each stage of a run measured: `step`, `budget`, and means over its rollouts.

    Args:
        folder: output folder of the run.
        method: as it was trained.
        total_steps: of the run.

    Raises:
        ResultsError: if the run wrote no metrics.
    """
    path = Path(folder) / METRICS
    try:
        lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise ResultsError(f"{path} holds no metrics of a run ({error})") from error
    rollouts = [one for one in lines if one["kind"] == "rollouts" and one["mode"] == "train"]
    table = method.schedule_table(total_steps)
    ends = [int(row["step"]) for row in table[1:]] + [total_steps]
    stages = []
    for row, end in zip(table, ends, strict=True):
        inside = [one["metrics"] for one in rollouts if row["step"] <= one["step"] < end]
        means: dict[str, Any] = {"step": row["step"], "budget": row["budget"]}
        for name in ("acc", "tokens_mean", "violation", "overshoot", "utilisation", "truncated"):
            values = [one[name] for one in inside if one.get(name) is not None]
            means[name] = fmean(values) if values else None
        stages.append(means)
    return stages
