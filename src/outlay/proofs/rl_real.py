"""A few training steps: does a method train on the real chat model? Not: does it learn."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from outlay.proofs.base import Check
from outlay.rl.base import Method, Verifier

if TYPE_CHECKING:
    from datasets import Dataset

    from outlay.rl import BudgetGRPOTrainer

NAME = "SmolLM2-135M-Instruct"
LEARNING_RATE = 1e-5
STEPS, GROUP = 3, 8


def policy() -> tuple[Any, Any]:
    """The embedded model in fp32, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from outlay.models import embedded

    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder, _ = embedded.fetch()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, tokenizer


def sums(n: int = 8) -> list[tuple[str, str]]:
    """Questions that the model answers right now and then, with their answers."""
    return [(f"What is {a} + {a + 3}?", str(2 * a + 3)) for a in range(1, n + 1)]


def chats(more: str = "") -> Dataset:
    """The sums as chats, each followed by `more`."""
    from datasets import Dataset

    return Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": f"{question}{more}"}], "answer": answer}
            for question, answer in sums()
        ]
    )


def weights(model: Any) -> dict[str, Any]:
    """A copy of all weights."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def moved(before: Mapping[str, Any], model: Any) -> int:
    """How many tensors differ."""
    import torch

    return sum(
        not torch.equal(before[name], value.detach()) for name, value in model.named_parameters()
    )


@contextmanager
def short_run(
    model: Any,
    tokenizer: Any,
    method: Method,
    data: Dataset,
    verifier: Verifier | None,
    settings: Mapping[str, Any],
    kind: type[BudgetGRPOTrainer] | None = None,
) -> Iterator[BudgetGRPOTrainer]:
    """A trainer on the CPU whose folder is gone afterwards.

    Args:
        model, tokenizer: the policy.
        method: what trains.
        data: prompts, and what the verifier reads.
        verifier: of the answers.
        settings: of TRL.
        kind: of trainer; None for the plain one.
    """
    from outlay.rl import BudgetGRPOTrainer, make_config

    with tempfile.TemporaryDirectory() as folder:
        yield (kind or BudgetGRPOTrainer)(
            model,
            method,
            make_config(method, folder, settings, cpu=True),
            data,
            verifier=verifier,
            processing_class=tokenizer,
        )


def few_steps(
    method: Method,
    model: Any,
    tokenizer: Any,
    data: Dataset,
    *,
    claim: str,
    paper: str,
    tokens: int,
    note: str = "",
) -> Check:
    """Train for `STEPS` steps; every tensor must move, and norms be finite.

    Args:
        method: with its token ids made.
        model, tokenizer: from `policy`.
        data: prompts and answers.
        claim, paper: of the check.
        tokens: most of a completion.
        note: put before the figures.
    """
    from outlay.rl.verifiers import MathVerifier, Reading

    before = weights(model)
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": GROUP,
        "num_generations": GROUP,
        "max_completion_length": tokens,
        "learning_rate": LEARNING_RATE,
    }
    verifier = MathVerifier(Reading(tokenizer, forced_open=False), workers=1)
    with short_run(model, tokenizer, method, data, verifier, settings) as trainer:
        trainer.train()
    lines = [line for line in trainer.state.log_history if "grad_norm" in line]
    norms = [float(line["grad_norm"]) for line in lines]
    rewards = [float(line["reward"]) for line in lines]
    count = moved(before, trainer.model)
    return Check(
        claim,
        paper,
        f"{count} of {len(before)} tensors moved",
        alive(norms) and count == len(before),
        None,
        f"{note}{STEPS} steps of {GROUP} rollouts; gradient norms {shown(norms)}; rewards "
        f"{shown(rewards)}; target: all tensors move, norms are finite, and one at least is not 0",
    )


def alive(norms: Sequence[float]) -> bool:
    """All steps ran, with finite gradients that are not all 0."""
    return len(norms) == STEPS and all(map(math.isfinite, norms)) and max(norms) > 0


def shown(values: Sequence[float]) -> str:
    """Numbers for a note."""
    return ", ".join(f"{value:.3g}" for value in values)
