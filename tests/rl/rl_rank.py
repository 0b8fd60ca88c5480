"""One process of two: trains two steps and writes what it saw. See test_rl_two_processes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from outlay.rl import BudgetGRPOTrainer, Context, Plain, Row, make_config
from outlay.rl.verifiers import ChainArithVerifier
from outlay.testbeds.reasoner import ChainArith, load, render_prompt

RANK = int(os.environ["RANK"])
B, G = 6, 4


def number(number: list[float], **_: Any) -> list[float]:
    """Every row is paid its own number."""
    return number


@dataclass(frozen=True)
class Numbered(Plain):
    """Rows know their place among all; the second process trains on one row less."""

    seen: list[dict[str, Any]] = field(default_factory=list, compare=False)

    def assign(self, rows: Sequence[Row], step: int, total: int, group: int) -> Sequence[Row]:
        for index, row in enumerate(rows):
            row["number"] = float(RANK * B + index)
            row["budget"] = 3 + row["member"]
            row["hard_cap"] = 3 + row["member"]
        return rows

    def reward_functions(self) -> list[Any]:
        return [number]

    def advantages(self, context: Context) -> Any:
        self.seen.append(
            {
                "numbers": context.column("number"),
                "rewards": context.rewards.tolist(),
                "members": context.column("member"),
                "prompts": context.column("prompt"),
                "lengths": context.lengths,
                "local": [context.local.start, context.local.stop],
                "rights": [j.correct for j in context.judgements],
            }
        )
        dense_NT = context.rewards[:, None].repeat(1, context.width)
        for row, length in enumerate(context.lengths):
            dense_NT[row, length:] = 0
        return dense_NT

    def expand(self, batch: dict[str, Any], context: Context) -> dict[str, Any]:
        numbers = torch.tensor(context.column("number")[context.local])
        keep = B - RANK
        batch = {**batch, "number": numbers}
        return {
            k: v[:keep] if isinstance(v, torch.Tensor) and v.dim() else v for k, v in batch.items()
        }


def main(folder: Path) -> None:
    """Train, then write `rank<i>.json`."""
    torch.set_num_threads(1)
    problems = ChainArith((1, 4)).sample(1, 12)
    data = Dataset.from_list(
        [{"prompt": render_prompt(p.question), "answer": p.answer} for p in problems]
    )
    model, tokenizer = load("small")
    method = Numbered()
    settings = {
        "per_device_train_batch_size": B // 2,
        "gradient_accumulation_steps": 2,
        "num_generations": G,
        "max_completion_length": 16,
        "max_steps": 2,
        "loss_type": "grpo",
        "save_strategy": "steps",
        "save_steps": 2,
    }
    args = make_config(method, folder / "run", settings, cpu=True)
    trainer = BudgetGRPOTrainer(
        model, method, args, data, verifier=ChainArithVerifier(), processing_class=tokenizer
    )
    trainer.train()
    pieces: Any = trainer._buffered_inputs
    rows = [
        {
            "number": float(piece["number"][row]),
            "paid": piece["advantages"][row][piece["completion_mask"][row].bool()].tolist(),
        }
        for piece in pieces
        for row in range(len(piece["number"]))
    ]
    result = {
        "processes": trainer.accelerator.num_processes,
        "seen": method.seen,
        "rows": rows,
        "scale": float(pieces[0]["row_scale"]),
        "items": float(pieces[0]["num_items_in_batch"]),
        "generated": trainer.tokens.totals().generated,
        "logged": list(trainer._logs["advantages"]),
        "norms": [x["grad_norm"] for x in trainer.state.log_history if "grad_norm" in x],
        "weight": float(sum(p.double().abs().sum() for p in model.parameters())),
    }
    (folder / f"rank{RANK}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
