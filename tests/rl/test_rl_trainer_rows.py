"""Advantages of tokens, and methods that train on other rows than rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from recording import Recorder
from trainer_runs import LOSSES, budgeted, scored, short
from trl.trainer.utils import split_tensor_dict

from outlay.rl import Context, Plain, Row


def gradient(trainer: Recorder, batches: Sequence[dict[str, Any]]) -> tuple[float, torch.Tensor]:
    """Loss and gradient, accumulated over micro-batches as the training loop does."""
    trainer.current_gradient_accumulation_steps = len(batches)
    trainer.args.steps_per_generation = len(batches)
    trainer.model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = trainer._compute_loss(trainer.model, batch)
        loss.backward()
        total += float(loss.detach())
    trainer.args.steps_per_generation = 1
    grads = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    return total, torch.cat(grads).double()


@dataclass(frozen=True)
class Given(Plain):
    """TRL's advantages, given back in another shape."""

    rewards: tuple[Any, ...] = (short,)
    shape: str = "dense"

    def advantages(self, context: Context) -> Any:
        a = context.advantages_N
        if self.shape == "row":
            return a
        if self.shape == "segments":
            lengths = context.lengths
            return [
                [(0, n // 2, float(v)), (n // 2, n + 5, float(v))]
                for n, v in zip(lengths, a.tolist(), strict=True)
            ]
        dense = a[:, None].repeat(1, context.width)
        for row, n in enumerate(context.lengths):
            dense[row, n:] = 0
        return dense


@pytest.mark.parametrize("loss", LOSSES)
def test_constant_advantages_of_tokens_equal_advantages_of_rows(
    shared: Recorder, loss: str
) -> None:
    shared.loss_type = loss
    found, logged = [], []
    for shape in ("row", "dense", "segments"):
        batch = scored(shared, Given(shape=shape))
        assert batch["advantages"].dim() == (1 if shape == "row" else 2)
        found.append(gradient(shared, [batch]))
        logged.append(list(shared._logs["advantages"]))
    assert found[0][1].norm() > 1e-3
    for other in (1, 2):
        assert found[0][0] == pytest.approx(found[other][0], abs=1e-6)
        assert torch.allclose(found[0][1], found[other][1], rtol=1e-4, atol=1e-6)
        assert logged[0] == pytest.approx(logged[other], abs=1e-6)


@dataclass(frozen=True)
class Numbered(Plain):
    """Every row is paid its own number."""

    rewards: tuple[Any, ...] = ()
    seen: list[Context] = field(default_factory=list, compare=False)

    def assign(self, rows: Sequence[Row], step: int, total: int, group: int) -> Sequence[Row]:
        return [{**row, "number": float(i), "budget": 5 + i} for i, row in enumerate(rows)]

    def reward_functions(self) -> list[Any]:
        return [number]

    def advantages(self, context: Context) -> Any:
        self.seen.append(context)
        assert context.column("number") == context.rewards.tolist()
        return context.rewards

    def expand(self, batch: dict[str, Any], context: Context) -> dict[str, Any]:
        return {**batch, "number": torch.tensor(context.column("number")[context.local])}


def number(number: list[float], **_: Any) -> list[float]:
    return number


def test_a_reward_comes_back_on_its_own_row_after_shuffle_and_split(tmp_path: Path) -> None:
    method = Numbered()
    trainer = budgeted(
        method, tmp_path, per_device_train_batch_size=4, steps_per_generation=2, max_steps=2
    )
    trainer.train()
    pieces = trainer._buffered_inputs
    assert len(pieces) == 2
    numbers = torch.cat([piece["number"] for piece in pieces])
    assert sorted(numbers.tolist()) == [float(i) for i in range(8)]
    assert numbers.tolist() != sorted(numbers.tolist())  # it was shuffled
    for piece in pieces:
        assert torch.equal(piece["advantages"], piece["number"])
        for row, index in enumerate(piece["number"].int().tolist()):
            length = int(piece["completion_mask"][row].sum())
            ids = method.seen[-1].completion_ids[index]
            assert piece["completion_ids"][row, :length].tolist() == ids


@dataclass(frozen=True)
class Doubled(Plain):
    """Trains on every row twice, or on rows plus fillers."""

    rewards: tuple[Any, ...] = (short,)
    extra: int = 0

    def expand(self, batch: dict[str, Any], context: Context) -> dict[str, Any]:
        keep = len(batch["completion_ids"]) - self.extra
        return {
            k: v[:keep] if isinstance(v, torch.Tensor) and v.dim() else v for k, v in batch.items()
        }


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_without_loss_leave_the_gradient_unchanged(shared: Recorder, loss: str) -> None:
    """5 of 8 rows: as they are, and padded to 8 in one and in two pieces."""
    shared.loss_type = loss
    bare = scored(shared, Doubled(extra=3))
    assert len(bare["completion_ids"]) == 5
    assert bare["row_scale"] == 1
    wanted = gradient(shared, [bare])
    shared.args.steps_per_generation = 4
    padded = scored(shared, Doubled(extra=3))
    assert len(padded["completion_ids"]) == 8
    assert padded["row_scale"] == 1.6
    assert padded["completion_mask"][5:].sum() == 0
    pieces = split_tensor_dict(padded, 2)
    for batches in ([padded], pieces[:1] + pieces[1:]):
        if loss == "bnpo" and len(batches) == 2:
            continue  # a mean over the tokens of each piece: pieces differ from the whole in TRL
        found = gradient(shared, batches)
        assert found[0] == pytest.approx(wanted[0], abs=1e-6)
        assert torch.allclose(found[1], wanted[1], rtol=1e-4, atol=1e-6)


@dataclass(frozen=True)
class Forgetful(Doubled):
    """Leaves out what the trainer can compute."""

    def expand(self, batch: dict[str, Any], context: Context) -> dict[str, Any]:
        kept = super().expand(batch, context)
        return {k: v for k, v in kept.items() if not k.endswith("_per_token_logps")}


def test_probabilities_that_a_method_leaves_out_are_computed(tmp_path: Path) -> None:
    settings = {
        "steps_per_generation": 2,
        "per_device_train_batch_size": 4,
        "beta": 0.1,
        "num_iterations": 2,
    }
    trainer = budgeted(Plain(rewards=(short,)), tmp_path, **settings)
    whole, again = scored(trainer, Doubled(extra=2)), scored(trainer, Forgetful(extra=2))
    for key in ("old_per_token_logps", "ref_per_token_logps"):
        mask = whole["completion_mask"].bool()
        assert torch.allclose(whole[key][mask], again[key][mask], atol=1e-5)
        assert whole[key][mask].abs().max() > 0


def test_a_truncated_row_without_loss_has_no_advantage(tmp_path: Path) -> None:
    settings = {"mask_truncated_completions": True, "max_completion_length": 8}
    trainer = budgeted(Plain(rewards=(short,)), tmp_path, **settings)
    batch = scored(trainer, Given(shape="dense"))
    masked = batch["completion_mask"].sum(dim=1) == 0
    assert masked.any()
    assert not masked.all()
    assert (batch["advantages"][masked] == 0).all()
    assert (batch["advantages"][~masked] != 0).any()


def test_padding_reaches_training(tmp_path: Path) -> None:
    trainer = budgeted(
        Doubled(extra=3),
        tmp_path,
        loss_type="grpo",
        max_steps=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    assert len(trainer.batches[0]["completion_ids"]) == 6
    assert trainer.state.log_history[0]["grad_norm"] > 0
