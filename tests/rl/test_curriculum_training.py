"""Curriculum GRPO in training, on the starting policy of ChainArith-RL."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOTrainer

from outlay.errors import BudgetError, InputError, ResultsError
from outlay.rl import BudgetGRPOTrainer, Method, Plain, RewardFunction, make_config
from outlay.rl.curriculum import CurriculumGRPO
from outlay.rl.curriculum_stages import by_stage
from outlay.rl.verifiers import ChainArithVerifier
from outlay.testbeds.chainarith_rl import correct, dataset, load

SMALL: Any = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 24,
    "learning_rate": 1e-3,
    "max_steps": 4,
    "seed": 3,
}
BARE: Any = {"budget_in_prompt": False, "fmt": "verifier", "save_per_stage": False}
SHRINKING: Any = {"b0": 12, "b_final": 6, "n_decays": 1, "total_steps": 4, "answer_slack": 4}


def trainer(method: Method, folder: Path, **settings: Any) -> BudgetGRPOTrainer:
    model, tokenizer = load()
    return BudgetGRPOTrainer(
        model,
        method,
        make_config(method, folder, {**SMALL, **settings}, cpu=True),
        dataset(24, ops=(1, 3)),
        verifier=ChainArithVerifier(),
        processing_class=tokenizer,
        difficulty="ops",
    )


def trained(method: Method, folder: Path, **settings: Any) -> BudgetGRPOTrainer:
    made = trainer(method, folder, **settings)
    made.train()
    return made


def same(a: GRPOTrainer, b: GRPOTrainer) -> bool:
    """Equal weights, losses and gradient norms, bit for bit."""
    ours, theirs = a.model.state_dict(), b.model.state_dict()
    kept = ("loss", "grad_norm", "reward", "reward_std", "completions/mean_length")
    logs = [
        [{name: line.get(name) for name in kept} for line in one.state.log_history]
        for one in (a, b)
    ]
    return logs[0] == logs[1] and all(torch.equal(ours[k], theirs[k]) for k in ours)


def rollouts(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "rollouts"]


def logged(made: BudgetGRPOTrainer, name: str) -> list[float]:
    return [line[name] for line in made.state.log_history if name in line]


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory: pytest.TempPathFactory) -> tuple[BudgetGRPOTrainer, Path]:
    """One whole run in two stages, with checkpoints at their ends."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("shrunk")
    method = CurriculumGRPO(**{**BARE, **SHRINKING, "save_per_stage": True})
    return trained(method, folder), folder


# -- what it is without its mechanism -------------------------------------------------------------


def test_without_length_and_format_it_is_plain_grpo_bit_for_bit(tmp_path: Path) -> None:
    method = CurriculumGRPO(
        weights=(1, 0, 0), hard_cap_factor=None, total_steps=3, n_decays=2, **BARE
    )
    ours = trained(method, tmp_path / "a", max_steps=3, learning_rate=1e-4)
    plain = trained(Plain(), tmp_path / "b", max_steps=3, learning_rate=1e-4)
    assert same(ours, plain)
    model, tokenizer = load()
    args = make_config(
        Method(), tmp_path / "c", {**SMALL, "max_steps": 3, "learning_rate": 1e-4}, cpu=True
    )
    theirs = GRPOTrainer(
        model=model,
        reward_funcs=[correct],
        args=args,
        train_dataset=dataset(24, ops=(1, 3)),
        processing_class=tokenizer,
    )
    theirs.train()
    assert same(ours, theirs)
    assert not torch.equal(theirs.model.lm_head.weight, load()[0].lm_head.weight)


def test_no_decay_and_a_factor_of_almost_one_are_the_fixed_run_bit_for_bit(tmp_path: Path) -> None:
    fixed = trained(CurriculumGRPO(schedule="constant", b_final=9, **BARE), tmp_path / "a")
    none = CurriculumGRPO(b0=12, b_final=9, n_decays=0, total_steps=4, **BARE)
    assert same(fixed, trained(none, tmp_path / "b"))
    one = CurriculumGRPO(
        schedule="exp_interval", b0=9, gamma=math.nextafter(1, 0), interval=1, **BARE
    )
    assert one.budget_at(3) < 9  # it does decay, by less than fp32 can tell
    assert same(fixed, trained(one, tmp_path / "c"))
    assert not same(
        fixed, trained(CurriculumGRPO(schedule="constant", b_final=8, **BARE), tmp_path / "d")
    )


def test_a_budget_that_moves_changes_the_run(
    tmp_path: Path, shrunk: tuple[BudgetGRPOTrainer, Path]
) -> None:
    fixed = CurriculumGRPO(**{**BARE, **SHRINKING, "schedule": "constant"})
    assert not same(shrunk[0], trained(fixed, tmp_path))


# -- signals --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reordered(CurriculumGRPO):
    """The same signals, listed in another order."""

    order: tuple[int, int, int] = (2, 0, 1)

    def reward_functions(self) -> list[RewardFunction]:
        functions = super().reward_functions()
        return [functions[i] for i in self.order]

    def reward_weights(self) -> list[float]:
        weights = super().reward_weights()
        return [weights[i] for i in self.order]


def test_the_order_of_signals_with_their_weights_does_not_matter(
    tmp_path: Path, shrunk: tuple[BudgetGRPOTrainer, Path]
) -> None:
    other = trained(Reordered(**{**BARE, **SHRINKING}), tmp_path)
    assert logged(other, "reward") == pytest.approx(logged(shrunk[0], "reward"), abs=1e-6)
    assert logged(other, "loss") == pytest.approx(logged(shrunk[0], "loss"), abs=1e-5)
    for name in ("correct", "length", "format"):
        assert logged(other, f"rewards/{name}/mean") == pytest.approx(
            logged(shrunk[0], f"rewards/{name}/mean"), abs=1e-6
        )


def test_the_papers_advantages_differ_from_trls_only_in_their_scale(tmp_path: Path) -> None:
    """Population instead of sample deviation: a factor of sqrt(G / (G - 1)), up to stabilisers."""
    seen = []
    for advantage in ("group", "population"):
        method = CurriculumGRPO("constant", b_final=12, advantage=advantage, eps=1e-12, **BARE)
        made = trained(method, tmp_path / advantage, max_steps=1, per_device_train_batch_size=32)
        seen.append(list(made._logs["advantages"]))
    moved = [(a, b) for a, b in zip(*seen, strict=True) if abs(a) > 0.2]
    assert len(moved) >= 8
    assert [b / a for a, b in moved] == pytest.approx([math.sqrt(4 / 3)] * len(moved), rel=1e-2)


def test_budget_gap_violation_and_every_signal_are_logged(
    shrunk: tuple[BudgetGRPOTrainer, Path],
) -> None:
    made, folder = shrunk
    assert logged(made, "length/budget") == [12, 12, 6, 6]
    assert len(logged(made, "length/gap")) == 4
    assert logged(made, "length/violation") == pytest.approx(
        [line["metrics"]["violation"] for line in rollouts(folder)], abs=1e-6
    )
    for step, line in enumerate(rollouts(folder)):
        parts = [logged(made, f"rewards/{name}/mean")[step] for name in ("correct", "length")]
        parts.append(logged(made, "rewards/format/mean")[step])
        total = sum(w * p for w, p in zip((0.6, 0.3, 0.1), parts, strict=True))
        assert logged(made, "reward")[step] == pytest.approx(total, abs=1e-5)
        assert line["metrics"]["acc"] == pytest.approx(parts[0], abs=1e-6)


# -- steps ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spy(CurriculumGRPO):
    """Writes down what generation was told at each optimiser step."""

    seen: list[Any] = field(default_factory=list)

    def reward_functions(self) -> list[RewardFunction]:
        def look(prompts: Sequence[str], trainer_state: Any, **columns: Any) -> list[float]:
            longest = max(map(len, columns["completion_ids"]))
            self.seen.append((trainer_state.global_step, columns["budget"], list(prompts), longest))
            return [0.0] * len(prompts)

        return [*super().reward_functions(), look]

    def reward_weights(self) -> list[float]:
        return [*super().reward_weights(), 0.0]


TOLD: Any = {**BARE, "budget_in_prompt": True, "template": "{budget} {question}"}


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, [0, 1, 2, 3]),
        ({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}, [0, 1, 2, 3]),
        ({"num_iterations": 2}, [0, 2]),
        ({"steps_per_generation": 2}, [0, 2]),
    ],
)
def test_budgets_count_optimiser_steps_and_prompts_do_not_lag(
    tmp_path: Path, settings: dict[str, Any], steps: list[int]
) -> None:
    method = Spy(**{**TOLD, **SHRINKING, "hard_cap_factor": 1.0})
    trained(method, tmp_path, **settings)
    assert [step for step, *_ in method.seen] == steps
    for step, budgets, prompts, longest in method.seen:
        budget = 12 if step < 2 else 6
        assert set(budgets) == {budget}
        assert all(prompt.startswith(f"{budget} <user>") for prompt in prompts)
        assert longest <= budget + 4  # the cap: once the budget, and the slack


def test_stages_end_with_a_checkpoint_and_a_manifest(
    shrunk: tuple[BudgetGRPOTrainer, Path],
) -> None:
    _, folder = shrunk
    saved = sorted(path.name for path in folder.glob("checkpoint-*"))
    assert saved == ["checkpoint-2", "checkpoint-4"]
    manifest = json.loads((folder / "checkpoint-2" / "manifest.json").read_text())
    assert [(row["step"], row["budget"]) for row in manifest["schedule"]] == [(0, 12), (2, 6)]
    assert manifest["knobs"]["b0"] == 12
    assert manifest["method"] == "CurriculumGRPO"


def test_every_stage_is_summarised(shrunk: tuple[BudgetGRPOTrainer, Path]) -> None:
    made, folder = shrunk
    lines = [line["metrics"] for line in rollouts(folder)]
    assert isinstance(made.method, CurriculumGRPO)
    stages = by_stage(folder, made.method, 4)
    assert [(stage["step"], stage["budget"]) for stage in stages] == [(0, 12), (2, 6)]
    for stage, inside in zip(stages, (lines[:2], lines[2:]), strict=True):
        for name in ("acc", "tokens_mean", "violation"):
            assert stage[name] == pytest.approx(sum(one[name] for one in inside) / 2)
    with pytest.raises(ResultsError, match="holds no metrics"):
        by_stage(folder / "nowhere", made.method, 4)


@pytest.mark.parametrize("after", [1, 2])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, shrunk: tuple[BudgetGRPOTrainer, Path], after: int
) -> None:
    method = CurriculumGRPO(**{**BARE, **SHRINKING})
    saving = {"save_strategy": "steps", "save_steps": 1}
    trained(method, tmp_path, **saving)
    again = trainer(method, tmp_path, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{after}"))
    assert [line["metrics"] for line in rollouts(tmp_path)] == [
        line["metrics"] for line in rollouts(shrunk[1])
    ]
    ours, whole = again.model.state_dict(), shrunk[0].model.state_dict()
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


# -- bad input ------------------------------------------------------------------------------------


def test_a_run_shorter_than_the_schedule_is_refused_before_it_samples(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="total_steps=4, or None"):
        trained(CurriculumGRPO(**BARE), tmp_path)


def test_a_budget_beyond_the_models_context_is_refused(tmp_path: Path) -> None:
    method = CurriculumGRPO(b0=641, total_steps=4, **BARE)
    with pytest.raises(BudgetError, match="context of 640"):
        trained(method, tmp_path)


# -- a chat model ---------------------------------------------------------------------------------


@pytest.mark.model
def test_the_embedded_chat_model_is_told_its_budget_through_its_own_template(model: Any) -> None:
    tokenizer = model.tokenizer
    method = CurriculumGRPO(tokenizer=tokenizer, b0=60, b_final=30)
    chat = [{"role": "user", "content": "What is 3 + 4?"}]
    for step, number in ((0, "60"), (599, "30")):
        (row,) = method.assign([{"prompt": chat, "member": 0}], step, 600, 1)
        text = tokenizer.apply_chat_template(
            row["prompt"], tokenize=False, add_generation_prompt=True
        )
        asked = text.split("<|im_start|>user\n")[1]
        assert asked.startswith("What is 3 + 4?\n")
        assert f"**Use exactly {number} tokens.**<|im_end|>" in asked
        assert text.rstrip().endswith("<|im_start|>assistant")
    said = "<think>3 + 4 = 7</think><answer>7</answer>"
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    assert method.reward_functions()[2](
        prompts=[chat], completions=[said], completion_ids=[ids]
    ) == [1.0]
