"""The trainer of this room, on the smallest reasoner: equal to TRL where nothing is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recording import Recorder
from trainer_runs import (
    LOSSES,
    SMALL,
    Forced,
    budgeted,
    data,
    history,
    same_weights,
    short,
    weights,
)
from trl import GRPOTrainer

from outlay.rl import BudgetGRPOTrainer, Method, Plain, make_config
from outlay.rl.verifiers import ChainArithVerifier
from outlay.testbeds.reasoner import load


def plain_trl(folder: Path, **settings: Any) -> GRPOTrainer:
    model, tokenizer = load("small")
    args = make_config(Method(), folder, {**SMALL, **settings}, cpu=True)
    return GRPOTrainer(
        model=model,
        reward_funcs=[short],
        args=args,
        train_dataset=data(),
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_a_method_that_changes_nothing_trains_as_trl_bit_for_bit(tmp_path: Path, loss: str) -> None:
    level = "sequence" if loss == "luspo" else "token"
    settings = {"loss_type": loss, "importance_sampling_level": level}
    ours = budgeted(Plain(rewards=(short,)), tmp_path / "a", **settings)
    before = weights(ours)
    ours.train()
    theirs = plain_trl(tmp_path / "b", **settings)  # building a trainer seeds
    theirs.train()
    assert history(ours) == history(theirs)  # losses, gradient norms, rewards, clip ratios
    assert len([line for line in history(ours) if "grad_norm" in line]) == 3
    assert same_weights(ours, theirs)
    assert any(not torch.equal(before[k], v) for k, v in weights(ours).items())
    assert list(ours._logs["advantages"]) == list(theirs._logs["advantages"])


def test_steps_per_generation_and_iterations_stay_trls(tmp_path: Path) -> None:
    settings = {
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "num_iterations": 2,
        "beta": 0.1,
        "per_device_train_batch_size": 4,
        "generation_batch_size": None,
    }
    ours = budgeted(Plain(rewards=(short,)), tmp_path / "a", **settings)
    ours.train()
    theirs = plain_trl(tmp_path / "b", **settings)
    theirs.train()
    assert history(ours) == history(theirs)
    assert same_weights(ours, theirs)


def test_trls_own_evaluation_works_too(tmp_path: Path) -> None:
    model, tokenizer = load("small")
    method = Forced(caps=(6,))
    args = make_config(
        method, tmp_path, {**SMALL, "per_device_eval_batch_size": 8, "max_steps": 1}, cpu=True
    )
    trainer = BudgetGRPOTrainer(
        model,
        method,
        args,
        data(),
        verifier=ChainArithVerifier(),
        eval_dataset=data(4),
        processing_class=tokenizer,
    )
    found = trainer.evaluate()
    assert found["eval_completions/max_length"] <= 6
    assert {context.mode for context in method.seen} == {"eval"}
    assert any("eval_rollouts/acc" in line for line in trainer.state.log_history)


def test_groups_whose_rewards_are_all_equal_are_logged(tmp_path: Path) -> None:
    def one(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [1.0] * len(completion_ids)

    trainer = budgeted(Plain(rewards=(one,)), tmp_path, max_steps=1)
    before = weights(trainer)
    trainer.train()
    assert trainer.state.log_history[0]["rollouts/zero_variance"] == 1
    assert trainer.state.log_history[0]["grad_norm"] == 0
    assert all(torch.equal(before[k], v) for k, v in weights(trainer).items())


def test_an_adapter_is_trained_alone(tmp_path: Path) -> None:
    from peft import LoraConfig

    model, tokenizer = load("small")
    method = Forced(caps=(8, 4), words=((7,),))
    args = make_config(method, tmp_path, {**SMALL, "max_steps": 1}, cpu=True)
    trainer = BudgetGRPOTrainer(
        model,
        method,
        args,
        data(),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False),
    )
    before = weights(trainer)
    trainer.train()
    changed = {k for k, v in weights(trainer).items() if not torch.equal(before[k], v)}
    assert changed
    assert all("lora" in name for name in changed)


def test_rewards_of_none_are_trls_business(tmp_path: Path) -> None:
    def sometimes(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        return [None if i % 2 else 1.0 for i in range(len(completion_ids))]

    trainer = budgeted(Plain(rewards=(sometimes,)), tmp_path, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["rollouts/reward_mean"] == 1


def test_asynchronous_rewards_are_checked_too(tmp_path: Path) -> None:
    async def later(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return short(completion_ids)

    def run(name: str, reward: Any) -> Recorder:
        trainer = budgeted(Plain(rewards=(reward,)), tmp_path / name, max_steps=1)
        trainer.train()
        return trainer

    assert same_weights(run("a", later), run("b", short))
