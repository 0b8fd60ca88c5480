"""What the trainer refuses, and what it says then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from recording import Recorder
from trainer_runs import budgeted, data, scored, short
from trl import GRPOConfig, GRPOTrainer

from outlay.errors import BudgetError, DependencyError, InputError
from outlay.rl import Context, Plain, Row, make_config
from outlay.rl.contract import check_batch, check_class


@dataclass(frozen=True)
class Bad(Plain):
    """A method with one fault."""

    rewards: tuple[Any, ...] = (short,)
    fault: str = ""

    def assign(self, rows: Sequence[Row], step: int, total: int, group: int) -> Sequence[Row]:
        changes: Mapping[str, Any] = {
            "zero budget": {"budget": 0},
            "negative budget": {"budget": -3.5},
            "text budget": {"budget": "much"},
            "budget beyond context": {"budget": 100_000},
            "zero cap": {"hard_cap": 0},
            "long prefix": {"prefix_ids": [5] * 20},
        }
        if self.fault == "rows":
            return rows[:-1]
        if self.fault == "no prompt":
            return [{"answer": "1"} for _ in rows]
        return [{**row, **changes.get(self.fault, {})} for row in rows]

    def advantages(self, context: Context) -> Any:
        n, t = len(context.rows), context.width
        return {
            "shape": torch.zeros(n + 1),
            "infinite": torch.full((n,), float("inf")),
            "padding": torch.ones(n, t),
            "segments": [[]] * (n - 1),
            "overlap": [[(0, 3, 1.0), (2, 4, 1.0)]] * n,
        }.get(self.fault)

    def expand(self, batch: dict[str, Any], context: Context) -> dict[str, Any]:
        if self.fault == "lost key":
            return {k: v for k, v in batch.items() if k != "advantages"}
        if self.fault == "uneven":
            return {**batch, "advantages": batch["advantages"][:-1]}
        return batch


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        ("rows", InputError, "7 rows for 8"),
        ("no prompt", InputError, "without a prompt"),
        ("zero budget", BudgetError, "must be positive"),
        ("negative budget", BudgetError, "must be positive"),
        ("text budget", BudgetError, "a number of tokens"),
        ("budget beyond context", BudgetError, "context of 640"),
        ("zero cap", BudgetError, "hard_cap=0"),
        ("long prefix", BudgetError, "leaves none"),
        ("shape", InputError, r"give \(8,\) or"),
        ("infinite", InputError, "not all finite"),
        ("padding", InputError, "not zero on padding"),
        ("segments", InputError, "7 rows"),
        ("overlap", InputError, "overlap"),
        ("lost key", InputError, "left out advantages"),
        ("uneven", InputError, "7 rows of advantages"),
    ],
)
def test_a_faulty_method_is_told_what_is_wrong(
    shared: Recorder, fault: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        scored(shared, Bad(fault=fault))


def test_a_method_without_fault_is_taken_after_a_faulty_one(shared: Recorder) -> None:
    assert len(scored(shared, Bad())["completion_ids"]) == 8


def test_rewards_of_wrong_length_or_value_are_refused(tmp_path: Path) -> None:
    def few(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [1.0]

    def nan(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float("nan")] * len(completion_ids)

    with pytest.raises(InputError, match="few returned 1 rewards for 8"):
        budgeted(Plain(rewards=(few,)), tmp_path, max_steps=1).train()
    with pytest.raises(InputError, match="nan paid nan"):
        budgeted(Plain(rewards=(nan,)), tmp_path, max_steps=1).train()


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2"):
        make_config(Plain(), "out", {"num_generations": 1})


def test_unknown_settings_are_named() -> None:
    with pytest.raises(InputError, match="no setting learning_speed"):
        make_config(Plain(), "out", {"learning_speed": 1})
    with pytest.raises(InputError, match="GRPOConfig refuses"):
        make_config(Plain(), "out", {"per_device_train_batch_size": 7, "use_cpu": True})


def test_data_sets_without_the_needed_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no column 'prompt'"):
        budgeted(Plain(), tmp_path, data().rename_column("prompt", "question"))
    with pytest.raises(InputError, match="rename it"):
        budgeted(Plain(), tmp_path, data().rename_column("answer", "judgement"))
    with pytest.raises(InputError, match="difficulty='ops'"):
        budgeted(Plain(), tmp_path, data().remove_columns("ops"))
    with pytest.raises(InputError, match="no column 'answer'"):
        budgeted(Plain(), tmp_path, data().remove_columns("answer"), max_steps=1).train()


def test_a_schedule_needs_the_length_of_the_run(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Scheduled(Plain):
        needs_total_steps: bool = True

    trainer = budgeted(Scheduled(), tmp_path, max_steps=-1, num_train_epochs=1)
    with pytest.raises(InputError, match="set max_steps"):
        trainer._planned([{"prompt": "1"}] * 4, 4)
    budgeted(Scheduled(), tmp_path, max_steps=1).train()


def test_another_trl_is_refused_with_a_message() -> None:
    class Changed(GRPOTrainer):
        def _calculate_rewards(self, inputs: Any) -> Any:  # type: ignore[override]
            return None

    check_class(GRPOTrainer)
    with pytest.raises(DependencyError, match=r"_calculate_rewards\(self, inputs\) where"):
        check_class(Changed)
    keys = ("prompt_ids", "prompt_mask", "completion_ids", "advantages", "num_items_in_batch")
    with pytest.raises(DependencyError, match="lack completion_mask"):
        check_batch(dict.fromkeys(keys))


def test_extra_samples_are_checked(tmp_path: Path) -> None:
    trainer = budgeted(Plain(), tmp_path)
    with pytest.raises(InputError, match="one number"):
        trainer.sample([[5, 6]], [0])
    assert trainer.sample([], []) == []
    assert isinstance(trainer.args, GRPOConfig)
