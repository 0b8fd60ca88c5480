"""One training run, as the grid and `outlay train rl` make it: method, task and settings in, a
trainer out.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.rl.base import Judgement, Method, Row, Verifier
from outlay.rl.grid_results import EvalCell, rounded
from outlay.rl.running_tasks import TrainingTask

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import TrainerCallback

    from outlay.ledger import Ledger
    from outlay.rl.trainer import BudgetGRPOTrainer


def prepared(method: Method, tokenizer: Any) -> Method:
    """The method with what it needs of a tokenizer: `tokenized`, or its field `tokenizer`."""
    if hasattr(method, "tokenized"):
        made: Method = method.tokenized(tokenizer)
        return made
    if dataclasses.is_dataclass(method) and getattr(method, "tokenizer", "") is None:
        copy: Method = dataclasses.replace(method, tokenizer=tokenizer)
        return copy
    return method


def make_trainer(
    method: Method,
    task: TrainingTask,
    output_dir: str | Path,
    settings: Mapping[str, Any],
    *,
    cpu: bool,
    loaded: tuple[Any, Any] | None = None,
    peft_config: PeftConfig | None = None,
    callbacks: list[TrainerCallback] | None = None,
) -> BudgetGRPOTrainer:
    """A trainer that is ready to `train()`.

    Args:
        method: what differs from GRPO; tokenised here.
        task: model, problems, verifier.
        output_dir: of checkpoints and metrics.
        settings: fields of `GRPOConfig`; they win over the method's and the task's.
        cpu: begin with `cpu_preset`.
        loaded: model and tokenizer, if they are loaded already.
        peft_config: trains an adapter.
        callbacks: of transformers; the method's own are added.

    Raises:
        InputError: as the method, the settings and the trainer do.
    """
    from transformers import PrinterCallback

    from outlay.rl.anytime.method import AnytimeBRPO
    from outlay.rl.presets import make_config
    from outlay.rl.trainer import BudgetGRPOTrainer

    model, tokenizer = loaded or task.load()
    method = prepared(method, tokenizer)
    own = {} if "max_completion_length" in method.config_defaults() else _longest(task)
    args = make_config(method, output_dir, {**own, **settings}, cpu=cpu)
    kind: type[BudgetGRPOTrainer] = BudgetGRPOTrainer
    if isinstance(method, AnytimeBRPO):
        from outlay.rl.anytime.trainer import AnytimeTrainer

        kind = AnytimeTrainer
    trainer = kind(
        model,
        method,
        args,
        task.train_rows(),
        verifier=task.verifier(tokenizer),
        processing_class=tokenizer,
        callbacks=callbacks,
        peft_config=peft_config,
        difficulty=task.difficulty,
    )
    trainer.remove_callback(PrinterCallback)  # metrics.jsonl has what it prints
    return trainer


def evaluated(
    task: TrainingTask, method: Method | None, model: Any, tokenizer: Any
) -> list[EvalCell]:
    """The policy under every budget of the task's evaluation.

    Args:
        task: problems, verifier, budgets.
        method: says what the trained policy is told; None for plain prompts.
        model: the policy.
        tokenizer: its tokenizer.
    """
    from outlay.rl.evaluate import evaluate_policy

    judge = _Remembering(task.verifier(tokenizer))
    found = evaluate_policy(
        model,
        tokenizer,
        [dict(row) for row in task.test_rows()],
        judge,
        task.inference(tokenizer),
        method=None if method is None else prepared(method, tokenizer),
        difficulty=task.difficulty,
    )
    return [
        EvalCell(
            scale=one.scale,
            budget=one.budget,
            temperature=one.temperature,
            seed=one.seed,
            metrics=rounded(one.metrics),
            bins={name: rounded(values) for name, values in one.bins.items()},
            right=[int(right) for right in one.right],
            tokens=one.tokens,
            thinking=[judgement.thinking_tokens for judgement in judgements],
            styles=[judgement.style for judgement in judgements],
        )
        for one, judgements in zip(found.cells, judge.seen, strict=True)
    ]


class _Remembering(Verifier):
    """A verifier whose judgements can be read afterwards, one list a call."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self.seen: list[list[Judgement]] = []

    def judge(
        self, rows: Sequence[Row], completion_ids: Sequence[Sequence[int]]
    ) -> list[Judgement]:
        """As the verifier does."""
        judgements = self._verifier.judge(rows, completion_ids)
        self.seen.append(judgements)
        return judgements


def spent(ledger: Ledger) -> dict[str, int]:
    """Tokens of training: prompts, rollouts, probes, forced ones."""
    found = {"prompt": 0, "rollouts": 0, "probe": 0, "forced": 0}
    for entry in ledger:
        found["prompt"] += entry.prompt_new
        found["forced"] += entry.forced
        found["probe" if entry.note == "probe" else "rollouts"] += entry.generated
    return found


def stepping(every: int, tell: Callable[[int], None]) -> TrainerCallback:
    """A callback that tells the steps done, every so many."""
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % every == 0:
                tell(state.global_step)

    return Steps()


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars, and without warnings about names that TRL still uses."""
    import warnings

    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    shown = not are_progress_bars_disabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch: matrices of small models are several times slower on two."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def single_threaded() -> None:
    """Set up a helper process, before it imports torch."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def _longest(task: TrainingTask) -> dict[str, Any]:
    return {"max_completion_length": task.longest}
