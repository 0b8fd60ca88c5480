"""Small runs of anytime reasoning, on the starting policy of ChainArith-RL."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from recording import recorded

from outlay.rl import BudgetGRPOTrainer, make_config
from outlay.rl.anytime import AnytimeBRPO, AnytimeTrainer
from outlay.rl.verifiers import ChainArithVerifier
from outlay.testbeds.chainarith_rl import dataset, load

METHOD = AnytimeBRPO(
    budgets=(8, 24),
    n_traces=4,
    n_summaries=2,
    max_summary_tokens=3,
    forced="..\n</think>",
    heading="<answer>",
)
SETTINGS = {"per_device_train_batch_size": 16, "max_steps": 2, "seed": 5}


def train(
    method: AnytimeBRPO,
    folder: Path,
    kind: type[BudgetGRPOTrainer] = AnytimeTrainer,
    **changes: Any,
) -> Any:
    """A recording trainer after its run."""
    model, tokenizer = load()
    if kind is not AnytimeTrainer:
        method = replace(method, reward_fn=ChainArithVerifier()).tokenized(tokenizer)
    trainer = recorded(kind)(
        model,
        method,
        make_config(method, folder, {**SETTINGS, **changes}, cpu=True),
        dataset(24, seed=2, ops=(2, 6)),
        verifier=ChainArithVerifier(),
        processing_class=tokenizer,
        difficulty="ops",
    )
    trainer.train()
    return trainer
