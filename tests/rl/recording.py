"""Trainers that remember what they saw."""

from __future__ import annotations

from typing import Any

import torch

from outlay.rl import BudgetGRPOTrainer, Context, Row


class Recorder(BudgetGRPOTrainer):
    """Keeps batches, contexts, and the gradient after every backward pass."""

    batches: list[dict[str, Any]]
    contexts: list[Context]
    gradients: list[torch.Tensor]

    def __init__(self, *args: Any, **named: Any) -> None:
        self.batches, self.contexts, self.gradients = [], [], []
        super().__init__(*args, **named)

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        self.batches.append(dict(batch))
        return batch

    def _context(self, *args: Any) -> Context:
        self.contexts.append(super()._context(*args))
        return self.contexts[-1]

    def training_step(self, *args: Any, **named: Any) -> torch.Tensor:
        loss = super().training_step(*args, **named)
        grads = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        self.gradients.append(torch.cat(grads).clone())
        return loss


def recorded(kind: type[BudgetGRPOTrainer]) -> type[Recorder]:
    """The kind of trainer, recording."""
    return type("Recording", (Recorder, kind), {})
