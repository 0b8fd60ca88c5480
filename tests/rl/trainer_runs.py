"""Small runs of the trainer of this room, on the smallest reasoner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from recording import Recorder
from trl import GRPOTrainer

from outlay.rl import Context, Method, Plain, Row, make_config
from outlay.rl.base import Prefix
from outlay.rl.verifiers import ChainArithVerifier
from outlay.testbeds.reasoner import ChainArith, load, render_prompt

LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
SMALL = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 20,
    "learning_rate": 1e-3,
    "max_steps": 3,
    "seed": 3,
}


def data(n: int = 24) -> Dataset:
    problems = ChainArith((1, 4)).sample(1, n)
    rows = [
        {"prompt": render_prompt(p.question), "answer": p.answer, "ops": p.meta["difficulty"]}
        for p in problems
    ]
    return Dataset.from_list(rows)


def short(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Pays short completions: varies within every group."""
    return [-len(ids) / 10 for ids in completion_ids]


def budgeted(
    method: Method, folder: Path, dataset: Dataset | None = None, **settings: Any
) -> Recorder:
    model, tokenizer = load("small")
    args = make_config(method, folder, {**SMALL, **settings}, cpu=True)
    return Recorder(
        model,
        method,
        args,
        dataset if dataset is not None else data(),
        verifier=ChainArithVerifier(),
        processing_class=tokenizer,
        difficulty="ops",
    )


def weights(trainer: GRPOTrainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def history(trainer: GRPOTrainer) -> list[dict[str, float]]:
    timed = ("time", "runtime", "second")
    return [
        {k: v for k, v in line.items() if not any(t in k for t in timed) and "rollouts/" not in k}
        for line in trainer.state.log_history
    ]


def same_weights(a: GRPOTrainer, b: GRPOTrainer) -> bool:
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def scored(trainer: Recorder, method: Method, seed: int = 5) -> dict[str, Any]:
    """One generation batch under a method; the same rollouts for the same seed."""
    trainer.method = method
    trainer.model.train()
    torch.manual_seed(seed)
    return trainer._generate_and_score_completions([dict(row) for row in data(2) for _ in range(4)])


@dataclass(frozen=True)
class Forced(Plain):
    """Prefixes and caps by the place in the group."""

    rewards: tuple[Any, ...] = (short,)
    caps: tuple[int | None, ...] = (None,)
    words: tuple[tuple[int, ...], ...] = ((),)
    prefix: Prefix = "trained"
    seen: list[Context] = field(default_factory=list, compare=False)

    def assign(self, rows: Sequence[Row], step: int, total: int, group: int) -> Sequence[Row]:
        for row in rows:
            row["hard_cap"] = self.caps[row["member"] % len(self.caps)]
            row["prefix_ids"] = list(self.words[row["member"] % len(self.words)])
        return rows

    def advantages(self, context: Context) -> Any:
        self.seen.append(context)
        return None
