"""Anytime reasoning in training: reductions, ledger, refusals, other settings of TRL."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from anytime_runs import METHOD, SETTINGS, train
from recording import recorded
from trl import GRPOTrainer

from outlay.errors import BudgetError, InputError
from outlay.rl import BudgetGRPOTrainer, Plain, make_config
from outlay.rl.anytime import AnytimeTrainer
from outlay.rl.anytime.forking import Record
from outlay.rl.anytime.outcomes import KEY
from outlay.rl.verifiers import ChainArithVerifier
from outlay.testbeds.chainarith_rl import dataset, load


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    return train(METHOD, tmp_path_factory.mktemp("anytime"))


def test_one_budget_one_answer_is_dr_grpo_on_the_same_texts(tmp_path: Path) -> None:
    """TRL's own loss and gradient for thinking + template + answer, the template masked."""
    method = replace(METHOD, budgets=(24,), n_summaries=1, summary_mode="last")
    ours = train(method, tmp_path / "ours", max_steps=1, temperature=1.0)
    outcomes = [row[KEY] for row in ours.contexts[0].rows]
    rewards = torch.tensor([one.rewards[0][0] for one in outcomes]).view(-1, 4)
    plain = (rewards - rewards.mean(1, keepdim=True)).flatten()
    assert plain.any()

    model, tokenizer = load()
    config = make_config(
        Plain(),
        tmp_path / "theirs",
        {
            **SETTINGS,
            "max_steps": 1,
            "loss_type": "dr_grpo",
            "num_generations": 4,
            "max_completion_length": 24,
            "beta": 0.0,
        },
        cpu=True,
    )
    theirs = GRPOTrainer(
        model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=dataset(24, seed=2, ops=(2, 6)),
        processing_class=tokenizer,
    )
    texts, masks = [], []
    for one in outcomes:
        suffix, answer = one.suffixes[0], one.summaries[0][0]
        texts.append([*one.thinking, *suffix, *answer])
        masks.append([1] * len(one.thinking) + [0] * len(suffix) + [1] * len(answer))
    width = max(map(len, texts))
    batch = {
        "prompt_ids": ours.batches[0]["prompt_ids"],
        "prompt_mask": ours.batches[0]["prompt_mask"],
        "completion_ids": torch.tensor([t + [0] * (width - len(t)) for t in texts]),
        "completion_mask": torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in texts]),
        "tool_mask": torch.tensor([m + [0] * (width - len(m)) for m in masks]),
        "advantages": plain,
        "num_items_in_batch": torch.tensor(1.0),
    }
    # TRL's batches pass through a shuffle; rows of ours are found by their tokens.
    theirs.current_gradient_accumulation_steps = 1
    theirs.model.train()
    theirs._compute_loss(theirs.model, batch).backward()
    gradient = torch.cat([p.grad.flatten() for p in theirs.model.parameters()])
    assert gradient.norm() > 0
    torch.testing.assert_close(ours.gradients[0], gradient, rtol=1e-3, atol=1e-6)


def test_the_plain_trainer_trains_on_rows(tmp_path: Path) -> None:
    """Same method, without the subclass: prefixes are read anew, and rows are packed."""
    trainer = train(METHOD, tmp_path, BudgetGRPOTrainer, max_steps=1)
    batch = trainer.batches[0]
    assert len(batch["completion_ids"]) == 16 * (1 + 2 * 2)
    assert "tree_cut" not in batch
    assert trainer.gradients[0].norm() > 0


def test_thinkings_end_at_their_tag_or_at_the_largest_budget(run: Any) -> None:
    end = run.method.pieces.end[0]
    for context in run.contexts:
        for ids, row in zip(context.completion_ids, context.rows, strict=True):
            assert tuple(ids) == row[KEY].thinking
            assert len(ids) <= 24
            assert end not in ids[:-1]
            assert row[KEY].ended == (ids[-1] in (end, 1))


def test_advantages_of_the_batch_are_the_methods(run: Any) -> None:
    """Token by token, from the outcomes: thinkings by segment, answers by branch."""
    context, batch = run.contexts[0], run.batches[0]
    expected: list[tuple[int, ...]] = []
    for start in range(0, 16, 4):
        group = [row[KEY] for row in context.rows[start : start + 4]]
        means = torch.tensor([one.means for one in group], dtype=torch.float64)
        thinking, answers = run.method.of_thinkings(means), run.method.of_summaries(group)
        for g, one in enumerate(group):
            row = [float(thinking[g, min(t // 8, 1)]) for t in range(len(one.thinking))]
            for place, given in zip(one.cuts, one.summaries, strict=True):
                for k, ids in enumerate(given):
                    row += [float(answers[g, place.slots[k // 2], k % 2])] * len(ids)
            expected.append(tuple(round(v, 5) for v in row))
    found = []
    for values, mask in zip(batch["advantages"], batch["tool_mask"], strict=True):
        found.append(tuple(round(float(v), 5) + 0.0 for v in values[mask.bool()]))
    assert sorted(found) == sorted(expected)


def test_the_ledger_counts_every_token(run: Any) -> None:
    outcomes = [row[KEY] for context in run.contexts for row in context.rows]
    entries = list(run.tokens.entries)
    thought = sum(e.generated for e in entries if e.note == "rollouts")
    assert thought == sum(len(one.thinking) for one in outcomes)
    probes = [e for e in entries if e.note == "probe"]
    answers = [ids for one in outcomes for given in one.summaries for ids in given]
    assert sum(e.generated for e in probes) == sum(map(len, answers))
    read = sum(
        len(suffix) + len(given)
        for one in outcomes
        for suffix, given in zip(one.suffixes, one.summaries, strict=True)
    )
    assert sum(e.prompt_new for e in probes) == read
    prompts = [
        len(run._tokenizer(row["prompt"], add_special_tokens=False)["input_ids"])
        for context in run.contexts
        for row in context.rows
    ]
    kept = sum(
        (asked + place.cut - 1) * len(given)
        for asked, one in zip(prompts, outcomes, strict=True)
        for place, given in zip(one.cuts, one.summaries, strict=True)
    )
    assert sum(e.prompt_cached for e in probes) == kept


def test_metrics_say_what_each_budget_earns(run: Any) -> None:
    logs = [log for log in run.state.log_history if "anytime/reward_at_8" in log]
    assert len(logs) == 2
    outcomes = [row[KEY] for row in run.contexts[0].rows]
    for slot, budget in enumerate((8, 24)):
        mean = sum(one.means[slot] for one in outcomes) / len(outcomes)
        assert float(logs[0][f"anytime/reward_at_{budget}"]) == pytest.approx(mean)
    assert 0 < float(logs[0]["anytime/kv_ratio"]) < 1
    lines = (Path(run.args.output_dir) / "metrics.jsonl").read_text().splitlines()
    rollouts = [json.loads(line) for line in lines if json.loads(line)["kind"] == "rollouts"]
    right = sum(one.last.correct for one in outcomes) / len(outcomes)
    assert rollouts[0]["metrics"]["acc"] == pytest.approx(right)


def test_answers_end_by_their_own_end_and_thinkings_by_theirs(run: Any) -> None:
    eos = run._tokenizer.eos_token_id
    answers = [ids for c in run.contexts for row in c.rows for g in row[KEY].summaries for ids in g]
    assert all(eos not in ids[:-1] and len(ids) <= 3 for ids in answers)
    assert any(ids[-1] == eos for ids in answers)
    assert run.method.pieces.end[0] in run.eos_token_ids
    assert run.generation_config.eos_token_id == run.eos_token_ids


def test_equal_seeds_give_equal_runs(run: Any, tmp_path: Path) -> None:
    again = train(METHOD, tmp_path)
    assert torch.equal(run.gradients[0], again.gradients[0])
    assert [row[KEY] for c in run.contexts for row in c.rows] == [
        row[KEY] for c in again.contexts for row in c.rows
    ]


def test_without_a_usable_record_answers_come_from_whole_prefixes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Record, "usable", property(lambda _: False))
    trainer = train(METHOD, tmp_path, max_steps=1)
    probes = [e for e in trainer.tokens.entries if e.note == "probe"]
    assert probes
    assert all(e.prompt_cached == 0 for e in probes)
    outcomes = [row[KEY] for row in trainer.contexts[0].rows]
    assert all(sum(map(len, one.summaries)) == 4 for one in outcomes)


def test_equal_rewards_train_nothing(tmp_path: Path) -> None:
    """Answers of one token never hold a digit and an end: with a wrong key all earn 0."""
    model, tokenizer = load()
    rows = dataset(24, seed=2, ops=(2, 6)).map(lambda row: {"answer": "none"})
    trainer = recorded(AnytimeTrainer)(
        model,
        METHOD,
        make_config(METHOD, tmp_path, {**SETTINGS, "max_steps": 1}, cpu=True),
        rows,
        verifier=ChainArithVerifier(),
        processing_class=tokenizer,
    )
    trainer.train()
    assert not trainer.gradients[0].any()
    assert not trainer.batches[0]["advantages"].any()


@pytest.mark.parametrize(
    ("knobs", "settings", "error", "message"),
    [
        ({}, {"loss_type": "dapo"}, InputError, "loss_type"),
        ({"skip_flat": True}, {"beta": 0.1}, InputError, "skip_flat"),
        ({}, {"max_completion_length": 16}, BudgetError, "max_completion_length"),
        ({"budgets": (8, 700)}, {}, BudgetError, "context"),
        ({"max_summary_tokens": 620}, {}, BudgetError, "max_summary_tokens"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path,
    knobs: dict[str, Any],
    settings: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        train(replace(METHOD, **knobs), tmp_path, **settings)


def test_another_method_or_no_verifier_is_refused(tmp_path: Path) -> None:
    model, tokenizer = load()
    rows = dataset(8, seed=2)
    config = make_config(METHOD, tmp_path, SETTINGS, cpu=True)
    with pytest.raises(InputError, match="not Plain"):
        AnytimeTrainer(model, Plain(), config, rows, processing_class=tokenizer)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="verifier"):
        AnytimeTrainer(model, METHOD, config, rows, processing_class=tokenizer)


def test_adapters_checkpointing_and_repeated_batches_train_too(tmp_path: Path) -> None:
    """LoRA, recomputed activations, two passes over each batch, two batches a pass."""
    from peft import LoraConfig

    model, tokenizer = load()
    settings = {
        **SETTINGS,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "num_iterations": 2,
        "max_steps": 2,
    }
    trainer = recorded(AnytimeTrainer)(
        model,
        METHOD,
        make_config(METHOD, tmp_path, settings, cpu=True),
        dataset(24, seed=2, ops=(2, 6)),
        verifier=ChainArithVerifier(),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    trainer.train()
    assert trainer.gradients[0].norm() > 0
    batch = trainer.batches[0]
    assert batch["old_per_token_logps"].shape == batch["completion_ids"].shape
    probes = [e for e in trainer.tokens.entries if e.note == "probe"]
    assert len(probes) == 1
    assert probes[0].prompt_cached > 0


def test_evaluation_pays_and_packs_as_training_does(tmp_path: Path) -> None:
    model, tokenizer = load()
    settings = {**SETTINGS, "max_steps": 1, "per_device_eval_batch_size": 8}
    trainer = recorded(AnytimeTrainer)(
        model,
        METHOD,
        make_config(METHOD, tmp_path, settings, cpu=True),
        dataset(24, seed=2, ops=(2, 6)),
        verifier=ChainArithVerifier(),
        eval_dataset=dataset(4, seed=3, ops=(2, 4), split="heldout"),
        processing_class=tokenizer,
    )
    found = trainer.evaluate()
    assert 0 <= found["eval_reward"] <= 1
    outcomes = [row[KEY] for context in trainer.contexts for row in context.rows]
    assert found["eval_reward"] == pytest.approx(
        sum(METHOD.objective(outcomes)) / len(outcomes), abs=1e-5
    )


def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole = train(METHOD, tmp_path / "whole", max_steps=3)
    train(METHOD, tmp_path / "part", max_steps=3, save_strategy="steps", save_steps=2)
    model, tokenizer = load()
    config = make_config(METHOD, tmp_path / "part", {**SETTINGS, "max_steps": 3}, cpu=True)
    rest = recorded(AnytimeTrainer)(
        model,
        METHOD,
        config,
        dataset(24, seed=2, ops=(2, 6)),
        verifier=ChainArithVerifier(),
        processing_class=tokenizer,
        difficulty="ops",
    )
    rest.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-2"))
    for name, value in whole.model.named_parameters():
        assert torch.equal(value, dict(rest.model.named_parameters())[name]), name
    assert rest.tokens.totals().generated == whole.tokens.totals().generated
