"""Budget-aware RL: time of a training step against TRL's plain GRPO with the same rollouts.

Both sides sample, score and learn on ChainArith-RL from the same policy with the same settings. A
block of steps is timed in turns (ours, TRL, ours, ...), each from a new trainer with the same seed,
building not counted. A tiny learning rate keeps the policy as it is, so that rollouts stay the same
on both sides where a method changes pay alone (plain, curriculum without caps, Ada-GRPO; counted
and said). HBPO forces prefixes, so its rollouts are its own: it is also timed per sampled token.
Target: at most 5 % more seconds than TRL. AnytimeReasoner samples more and trains on more; what
that costs is stated in tokens and in seconds, without a target.

On a GPU the clock is the wall's, and there is no target: a policy this small leaves it idle.

    python benchmarks/rl.py [--steps 6] [--turns 5] [--device cuda] [--out DIR]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

import common
from common import Row, warn_if_busy, write
from outlay.rl.ada_grpo import AdaGRPO
from outlay.rl.anytime import AnytimeBRPO
from outlay.rl.base import Method, Plain
from outlay.rl.curriculum import CurriculumGRPO
from outlay.rl.hbpo import HBPO
from outlay.rl.presets import cpu_preset
from outlay.rl.running_core import make_trainer, prepared, quiet
from outlay.rl.running_tasks import ChainTask
from outlay.testbeds.chainarith_rl import BUDGET_TAGS, correct, load

TARGET = 1.05
QUESTIONS, GROUP = 16, 8
TASK = ChainTask(train=512)
RATE = 1e-9  # too small to change what is sampled


@dataclass(frozen=True)
class Bench:
    """How it is measured.

    Args:
        steps: of a block.
        turns: blocks of each side.
        device: "cpu" (CPU time) or "cuda" (wall clock).
    """

    steps: int
    turns: int
    device: str

    @property
    def clock(self) -> str:
        """Which time is told."""
        return "CPU time" if self.device == "cpu" else "wall clock"

    def now(self) -> float:
        """Seconds of that clock."""
        return time.process_time() if self.device == "cpu" else time.perf_counter()

    def settings(self) -> dict[str, Any]:
        """Of a trainer."""
        return {
            "use_cpu": self.device == "cpu",
            "max_steps": self.steps,
            "num_generations": GROUP,
            "per_device_train_batch_size": QUESTIONS * GROUP,
            "learning_rate": RATE,
            "max_completion_length": TASK.longest,
            "seed": 0,
            "logging_steps": 1,
        }


@dataclass(frozen=True)
class Block:
    """Seconds a step and sampled tokens of some steps."""

    seconds: float
    tokens: int


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=6, help="of a block")
    parser.add_argument("--turns", type=int, default=5, help="blocks of each side")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="folder of the results")
    chosen = parser.parse_args()
    if chosen.out is not None:
        common.RESULTS = chosen.out
    bench = Bench(chosen.steps, chosen.turns, chosen.device)
    warn_if_busy()
    torch.set_num_threads(1)
    methods: dict[str, Method] = {
        "plain": Plain(),
        "curriculum": CurriculumGRPO(
            b0=60,
            b_final=28,
            total_steps=None,
            n_decays=1,
            fmt="verifier",
            budget_in_prompt=False,
            save_per_stage=False,
            hard_cap_factor=None,
        ),
        "hbpo": HBPO(budgets=(16, 32, 64, 96), n=GROUP, l_max=128, prefix_template=BUDGET_TAGS),
        "ada_grpo": AdaGRPO(kl=0.0),
    }
    rows: list[Row] = []
    with quiet():
        for name, method in methods.items():
            rows += _against(name, method, bench)
        rows += _anytime(bench)
    write("rl" if bench.device == "cpu" else f"rl_{bench.device}", rows)


def _ours(method: Method, bench: Bench) -> Block:
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(method, TASK, folder, bench.settings(), cpu=True)
        return _timed(trainer, bench, lambda: sum(e.generated for e in trainer.tokens))


def _theirs(method: Method, bench: Bench) -> Block:
    """TRL's trainer with the same loss settings, 0/1 rewards, and no method."""
    model, tokenizer = load()
    loss = {
        name: value
        for name, value in prepared(method, tokenizer).config_defaults().items()
        if name not in ("num_generations", "max_completion_length")
    }
    with tempfile.TemporaryDirectory() as folder:
        settings = {**cpu_preset(), **loss, **bench.settings()}
        lengths: list[int] = []

        def counted(completion_ids: list[list[int]], **columns: Any) -> list[float]:
            lengths.append(sum(map(len, completion_ids)))
            return correct(completion_ids=completion_ids, **columns)

        trainer = GRPOTrainer(
            model,
            reward_funcs=counted,
            args=GRPOConfig(output_dir=folder, **settings),
            train_dataset=TASK.train_rows(),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        return _timed(trainer, bench, lambda: sum(lengths))


def _timed(trainer: Any, bench: Bench, tokens: Callable[[], int]) -> Block:
    before = bench.now()
    trainer.train()
    return Block((bench.now() - before) / bench.steps, tokens())


def _turns(method: Method, bench: Bench) -> tuple[list[Block], list[Block]]:
    """Blocks of ours and theirs, in turns, after one warm-up each."""
    _ours(method, bench)
    _theirs(method, bench)
    ours, theirs = [], []
    for _ in range(bench.turns):
        ours.append(_ours(method, bench))
        theirs.append(_theirs(method, bench))
    return ours, theirs


def _row(case: str, unit: str, ours: list[float], theirs: list[float], note: str) -> Row:
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return Row(
        case,
        unit,
        statistics.median(ours),
        statistics.median(theirs),
        f"trl {metadata.version('trl')} GRPOTrainer",
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        note,
    )


def _against(name: str, method: Method, bench: Bench) -> list[Row]:
    ours, theirs = _turns(method, bench)
    pairs = zip(ours, theirs, strict=True)
    overhead = statistics.median(a.seconds / b.seconds for a, b in pairs) - 1
    target = f"target: at most {100 * (TARGET - 1):.0f} % more; " if bench.device == "cpu" else ""
    same = "the same rollouts" if ours[0].tokens == theirs[0].tokens else "rollouts of its own"
    shape = f"{QUESTIONS}x{GROUP} rollouts"
    note = (
        f"{target}measured {100 * overhead:+.1f} %; {shape}, {same} ({ours[0].tokens} and "
        f"{theirs[0].tokens} tokens in {bench.steps} steps)"
    )
    rows = [
        _row(
            f"{name}: a step, {bench.clock}",
            "seconds",
            [block.seconds for block in ours],
            [block.seconds for block in theirs],
            note,
        )
    ]
    if same != "the same rollouts":
        rows.append(
            _row(
                f"{name}: a thousand sampled tokens, {bench.clock}",
                "seconds",
                [1000 * bench.steps * block.seconds / block.tokens for block in ours],
                [1000 * bench.steps * block.seconds / block.tokens for block in theirs],
                "sampling, scoring and learning, by what was sampled",
            )
        )
    return rows


def _anytime(bench: Bench) -> list[Row]:
    method = AnytimeBRPO(
        budgets=(16, 32, 64, 104),
        n_traces=GROUP,
        n_summaries=2,
        max_summary_tokens=4,
        forced="..\n</think>",
        heading="<answer>",
    )
    ours, theirs = _turns(method, bench)
    note = f"4 budgets, 2 answers each; {QUESTIONS}x{GROUP} rollouts; no target"
    return [
        _row(
            f"anytime: a step, {bench.clock}",
            "seconds",
            [block.seconds for block in ours],
            [block.seconds for block in theirs],
            note,
        ),
        _row(
            "anytime: sampled tokens of a step",
            "tokens",
            [block.tokens / bench.steps for block in ours],
            [block.tokens / bench.steps for block in theirs],
            "thinking and answers at all budgets, against TRL's whole completions",
        ),
    ]


if __name__ == "__main__":
    main()
