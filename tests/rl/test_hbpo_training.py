"""HBPO in training: reductions to TRL, promises in every group and in the loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from recording import Recorder
from trl import GRPOTrainer

from outlay.rl import make_config
from outlay.rl.base import Method
from outlay.rl.hbpo import HBPO
from outlay.rl.verifiers import ChainArithVerifier
from outlay.testbeds.chainarith_rl import BUDGET_TAGS, correct, dataset, load

SETTINGS = {
    "per_device_train_batch_size": 16,
    "num_generations": 8,
    "max_completion_length": 64,
    "max_steps": 2,
    "learning_rate": 1e-4,
    "seed": 5,
}
METHOD = HBPO(budgets=(16, 32, 64, 96), n=8, l_max=128, prefix_template=BUDGET_TAGS)


def train(method: Method, folder: Path, **settings: Any) -> Recorder:
    model, tokenizer = load()
    made = method.tokenized(tokenizer) if isinstance(method, HBPO) else method
    trainer = Recorder(
        model,
        made,
        make_config(made, folder, {**SETTINGS, **settings}, cpu=True),
        dataset(40, seed=2, ops=(1, 4)),
        verifier=ChainArithVerifier(),
        processing_class=tokenizer,
        difficulty="ops",
    )
    trainer.train()
    return trainer


def weights(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_without_its_mechanism_it_is_trls_grpo_bit_for_bit(tmp_path: Path) -> None:
    off = replace(
        METHOD,
        prefix_template="",
        reward_form="flat",
        format_penalty=0.0,
        intra_weight=0.0,
        eps=1e-4,
        l_max=10_000,
    )
    ours = train(off, tmp_path / "ours")
    model, tokenizer = load()

    def formed(completion_ids: list[list[int]], answer: list[str], **_: Any) -> list[float]:
        """Right and well formed, as the flat reward has it."""
        from outlay.testbeds.chainarith_rl import verify

        found = [verify(ids, a) for ids, a in zip(completion_ids, answer, strict=True)]
        return [float(one.right and one.well_formed) for one in found]

    theirs = GRPOTrainer(
        model=model,
        reward_funcs=[formed],
        args=make_config(off, tmp_path / "theirs", SETTINGS, cpu=True),
        train_dataset=dataset(40, seed=2, ops=(1, 4)),
        processing_class=tokenizer,
    )
    theirs.train()
    assert torch.equal(weights(ours), weights(theirs))
    assert correct([[1]], answer=["3"]) == [0.0]  # the plain reward differs only in the format


def test_every_group_has_its_promises_and_trains_them(tmp_path: Path) -> None:
    trainer = train(METHOD, tmp_path, max_steps=1)
    method = trainer.method
    assert isinstance(method, HBPO)
    [batch] = trainer.batches
    firsts = sorted(batch["completion_ids"][:, 0].tolist())
    assert firsts == sorted(prefix[0] for prefix in method.prefixes for _ in range(4))
    assert "tool_mask" not in batch or bool(batch["tool_mask"][:, 0].all())
    assert batch["advantages"].shape == (16,)
    assert bool(torch.isfinite(batch["advantages"]).all())


def test_untrained_promises_are_out_of_the_loss_but_in_the_completion(tmp_path: Path) -> None:
    trainer = train(replace(METHOD, train_prefix=False), tmp_path, max_steps=1)
    [batch] = trainer.batches
    assert not bool(batch["tool_mask"][:, 0].any())
    lengths = batch["completion_mask"].sum(dim=1)
    inside = [mask[:n].sum().item() for mask, n in zip(batch["tool_mask"], lengths, strict=True)]
    assert inside == (lengths - 1).tolist()
    assert int(batch["num_items_in_batch"]) == sum(inside)
