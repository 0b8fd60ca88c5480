"""ChainArith-RL's shipped policy: what it can do, its card, and one step of TRL with it."""

import json
from dataclasses import asdict

import pytest

from outlay.errors import InputError, ModelError
from outlay.testbeds.chainarith_rl import (
    BUDGET_TAGS,
    FORCED_END,
    FORMATS,
    MAX_OPS,
    checkpoint_path,
    correct,
    dataset,
    load,
    problems,
    render_prompt,
    render_trace,
    verify,
)
from outlay.testbeds.chainarith_rl.card import command
from outlay.testbeds.chainarith_rl.evaluate import MAX_NEW, complete, cuts, judge, measure
from outlay.testbeds.chainarith_rl.train import TrainConfig


@pytest.fixture(scope="module")
def policy():
    import torch

    torch.set_num_threads(1)
    return load()


def test_unknown_checkpoints_are_refused(tmp_path):
    with pytest.raises(ModelError, match="'rl'"):
        checkpoint_path("rl")
    with pytest.raises(ModelError, match="holds no checkpoint"):
        load(tmp_path)


def test_every_style_and_tag_can_be_asked_for(policy):
    chains = problems(8, ops=(2, 2), split="heldout")
    for style in FORMATS:
        assert {verdict.style for verdict in judge(*policy, style, chains)} == {style}
    for tag in BUDGET_TAGS:
        assert {verdict.budget for verdict in judge(*policy, tag[1:-1], chains, 1.0)} == {tag}
    with pytest.raises(InputError, match="mode 'b9'"):
        judge(*policy, "b9", chains)


def test_rows_are_the_verdicts_of_their_own_difficulty(policy):
    rows = measure(*policy, "natural", (2, 4), 1.0, n=10, seed=3)
    chains = problems(30, 3, (2, 4), "heldout")
    verdicts = judge(*policy, "natural", chains, 1.0, seed=3)
    for row in rows:
        own = [v for v, chain in zip(verdicts, chains, strict=True) if chain.operations == row.ops]
        assert row.lengths == tuple(verdict.tokens for verdict in own)
        assert row.accuracy == sum(verdict.right for verdict in own) / 10
        assert sum(row.styles.values()) == pytest.approx(1)


def test_sampling_repeats_by_seed_and_greedy_needs_none(policy):
    prompts = [row["prompt"] for row in dataset(6, split="heldout")]
    assert complete(*policy, prompts, 1.0, 5) == complete(*policy, prompts, 1.0, 5)
    assert complete(*policy, prompts, 1.0, 5) != complete(*policy, prompts, 1.0, 6)
    assert complete(*policy, prompts, 0.0, 5) == complete(*policy, prompts, 0.0, 6)
    with pytest.raises(InputError, match="temperature"):
        complete(*policy, prompts, -1.0)


def test_the_policy_leaves_room_for_training(policy):
    greedy = measure(*policy, "natural", n=16)
    sampled = measure(*policy, "natural", temperature=1.0, n=16)
    best = sum(row.accuracy for row in greedy) / MAX_OPS
    usual = sum(row.accuracy for row in sampled) / MAX_OPS
    assert 0.7 < best < 0.95
    assert 0.4 < usual < 0.7
    for style in FORMATS:
        assert sum(row.styles[style] for row in sampled) / MAX_OPS > 0.05


def test_direct_answers_suffice_for_one_operation_only(policy):
    one, two = measure(*policy, "direct", (1, 2), n=40)
    assert one.accuracy > 0.8
    assert two.accuracy < 0.4


def test_cut_thinking_is_answered_at_once(policy):
    chains = problems(32, 5, (3, 6), "heldout")
    opened = [render_trace(chain, "short").split(";")[0] + FORCED_END for chain in chains]
    prompts = [
        render_prompt(chain.question) + text for chain, text in zip(chains, opened, strict=True)
    ]
    rows = complete(*policy, prompts, max_new_tokens=4)
    verdicts = [
        verify(ids, chain.answer, prefill=text)
        for ids, chain, text in zip(rows, chains, opened, strict=True)
    ]
    assert sum(verdict.well_formed for verdict in verdicts) >= 30


def test_later_cuts_answer_better(policy):
    right = cuts(*policy, n=12)
    assert list(right) == [8, 16, 32, 64]
    assert right[64] > right[8] + 0.1


def test_the_card_is_written_from_the_measurements():
    folder = checkpoint_path()
    record = json.loads((folder / "measured.json").read_text())
    assert record["config"] == json.loads(json.dumps(asdict(TrainConfig())))
    card = (folder / "README.md").read_text()
    assert command(TrainConfig()) in card
    for row in record["rows"]:
        if row["temperature"] == 1 and row["mode"] == "natural":
            assert f"| {row['ops']} | {row['accuracy']:.2f} |" in card


def test_trl_trains_the_policy_as_it_is(policy, tmp_path):
    import torch
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = load()
    config = GRPOConfig(
        str(tmp_path),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        max_steps=1,
        learning_rate=2e-5,
        per_device_train_batch_size=16,
        num_generations=8,
        max_completion_length=MAX_NEW,
    )
    trainer = GRPOTrainer(
        model,
        reward_funcs=correct,
        args=config,
        train_dataset=dataset(8, ops=(4, 8)),
        processing_class=tokenizer,
    )
    trainer.train()
    (logged,) = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert 0 < logged["reward"] < 1
    before = torch.cat([weight.flatten() for weight in policy[0].parameters()])
    after = torch.cat([weight.flatten() for weight in model.parameters()])
    assert bool((before != after).any())
    assert bool(after.isfinite().all())
