"""Sizes and rates of the controller's training. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from outlay.errors import InputError

Gradient = Literal["exact", "reinforce"]
Cost = Literal["tokens", "k"]


@dataclass(frozen=True)
class Training:
    """How a controller is trained.

    Args:
        hidden: units of its hidden layer; the width of a seq2seq head.
        layers: of the encoder and of the decoder of a seq2seq head.
        epochs: of the supervised stage.
        lr: of the supervised stage; a pretrained seq2seq controller wants about 1e-4.
        batch: inputs per step.
        weight_decay: of all weights.
        rl_epochs: of the reinforcement stage; 0 leaves it out.
        rl_lr: of the reinforcement stage; None is a tenth of `lr`.
        entropy: bonus for undecided policies.
        kl: pull towards the policy of the supervised stage.
        cost: of k demonstrations in the reward: their tokens, or k itself.

    Raises:
        InputError: for values out of range.
    """

    hidden: int = 64
    layers: int = 2
    epochs: int = 60
    lr: float = 3e-3
    batch: int = 64
    weight_decay: float = 1e-3
    rl_epochs: int = 3
    rl_lr: float | None = None
    entropy: float = 0.01
    kl: float = 0.1
    cost: Cost = "tokens"

    def __post_init__(self) -> None:
        for name in ("hidden", "epochs", "batch"):
            if not 1 <= getattr(self, name) <= 100_000:
                raise InputError(f"{name}={getattr(self, name)}; need 1 <= {name} <= 100000")
        if not 1 <= self.layers <= 64:
            raise InputError(f"layers={self.layers}; need 1 <= layers <= 64")
        if not 0 <= self.rl_epochs <= 100_000:
            raise InputError(f"rl_epochs={self.rl_epochs}; need 0 <= rl_epochs <= 100000")
        for name in ("lr", "rl_lr"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name}={value}; must be positive")
        for name in ("weight_decay", "entropy", "kl"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}={getattr(self, name)}; must be >= 0")
        if self.cost not in get_args(Cost):
            raise InputError(f"cost={self.cost!r}; choose tokens or k")
