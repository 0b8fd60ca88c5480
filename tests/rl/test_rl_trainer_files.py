"""What a run leaves behind: ledger, checkpoints, manifest; and how it goes on from them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from trainer_runs import Forced, budgeted, history, same_weights, short

from outlay.errors import ResultsError
from outlay.rl import Context, Plain
from outlay.rl.rewards import GatedLength, accuracy


@dataclass(frozen=True)
class Asking(Plain):
    """Samples two tokens more after every completion."""

    rewards: tuple[Any, ...] = (short,)
    seen: list[Any] = field(default_factory=list, compare=False)

    def probe(self, rows: Any, prompt_ids: Any, completion_ids: Any, sampler: Any) -> None:
        asked = [[*p, *c] for p, c in zip(prompt_ids, completion_ids, strict=True)]
        for row, ids in zip(rows, sampler(asked, [2] * len(asked)), strict=True):
            row["more"] = ids

    def advantages(self, context: Context) -> Any:
        self.seen.append(context.column("more"))
        return None


def test_probes_reach_the_rewards_and_the_ledger(tmp_path: Path) -> None:
    method = Asking()
    trainer = budgeted(method, tmp_path, max_steps=1)
    trainer.train()
    probes = [entry for entry in trainer.tokens if entry.note == "probe"]
    assert [len(more) <= 2 for more in method.seen[0]] == [True] * 8
    assert [entry.generated for entry in probes] == [sum(map(len, method.seen[0]))]


def test_the_ledger_equals_the_sum_of_lengths(tmp_path: Path) -> None:
    method = Forced()
    trainer = budgeted(method, tmp_path)
    trainer.train()
    totals = trainer.tokens.totals(stage="train")
    assert totals.generated == sum(sum(context.lengths) for context in method.seen)
    prompts = sum(int(batch["prompt_mask"].sum()) for batch in trainer.batches)
    assert totals.prompt_new == prompts


@pytest.mark.parametrize("steps_per_generation", [1, 2])
def test_a_resumed_run_continues_bit_for_bit(tmp_path: Path, steps_per_generation: int) -> None:
    settings = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 2 if steps_per_generation == 2 else 3,
        "steps_per_generation": steps_per_generation,
        "lr_scheduler_type": "linear",
    }
    stop = 4 if steps_per_generation == 2 else 3
    method = Plain(rewards=(accuracy, GatedLength(20)), weights=(1.0, 0.5))
    straight = budgeted(method, tmp_path / "a", **settings)
    straight.train()
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    resumed = budgeted(method, tmp_path / "a", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{stop}"))
    assert same_weights(straight, resumed)
    assert history(straight)[:6] == history(resumed)[:6]
    again = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()

    def stripped(lines: list[str]) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in lines]
        timed = ("time", "runtime", "second")
        return [
            {k: v for k, v in row.items() if not any(t in k for t in timed)}
            for row in rows
            if row["kind"] == "rollouts" or "loss" in row
        ]

    assert stripped(again) == stripped(lines)
    assert resumed.tokens.totals().generated == straight.tokens.totals().generated


def test_a_checkpoint_between_two_generations_is_refused(tmp_path: Path) -> None:
    settings = {
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "steps_per_generation": 2,
    }
    budgeted(Plain(), tmp_path, **settings).train()
    again = budgeted(Plain(), tmp_path, **settings)
    with pytest.raises(ResultsError, match="multiple of 2"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_every_checkpoint_says_how_it_came_about(tmp_path: Path) -> None:
    method = Plain(hard_cap=9)
    trainer = budgeted(method, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    manifest = json.loads((tmp_path / "checkpoint-1" / "manifest.json").read_text())
    assert manifest["method"] == "Plain"
    assert manifest["knobs"]["hard_cap"] == 9
    assert manifest["settings"]["learning_rate"] == 1e-3
    assert manifest["dataset"]["rows"] == 24
    assert manifest["seeds"]["seed"] == 3
    assert manifest["versions"].keys() >= {"trl", "torch", "transformers", "python"}
    assert manifest["tokens"]["generated"] == trainer.tokens.totals().generated > 0
    assert manifest["at_generation_boundary"]
