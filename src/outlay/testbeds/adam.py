"""AdamW as the testbeds are trained with it: only matrices decay, gradients are clipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

Schedule = Callable[[torch.optim.Optimizer], LRScheduler]
BETAS = (0.9, 0.98)


def groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of an optimiser: matrices, which decay, and vectors, which do not."""
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def cosine(warmup: int, steps: int, lowest: float) -> Schedule:
    """Linear warm-up, then a cosine down to `lowest` of the peak at `steps`."""
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    def made(optimizer: torch.optim.Optimizer) -> LRScheduler:
        scheduler: LRScheduler = get_cosine_with_min_lr_schedule_with_warmup(
            optimizer, warmup, max(steps, warmup + 1), min_lr_rate=lowest
        )
        return scheduler

    return made


class Adam:
    """AdamW with a schedule and clipped gradients.

    Args:
        parameters: to train.
        lr: peak learning rate.
        weight_decay: of matrices.
        clip: largest gradient norm.
        schedule: of the learning rate.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
        clip: float,
        schedule: Schedule,
    ) -> None:
        self.parameters = list(parameters)
        self.clip = clip
        self.adam = torch.optim.AdamW(groups(self.parameters, weight_decay), lr=lr, betas=BETAS)
        self.schedule = schedule(self.adam)

    def update(self, loss: torch.Tensor) -> None:
        """One step down the gradient of `loss`."""
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.adam.step()
        self.schedule.step()
        self.adam.zero_grad(set_to_none=True)
