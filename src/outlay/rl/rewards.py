"""Reward functions as TRL calls them, over the column `judgement`. No torch.

Each returns one value a completion. `judgement` is written by the trainer from its verifier, so a
completion is verified once, whatever the number of reward functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outlay.errors import InputError
from outlay.rl.base import Judgement


def accuracy(judgement: Sequence[Judgement], **_: object) -> list[float]:
    """1 for a right answer, else 0; what a truncated completion answered counts, too."""
    return [float(one.correct) for one in judgement]


def partial_credit(judgement: Sequence[Judgement], **_: object) -> list[float]:
    """The verifier's score in [0, 1]."""
    return [one.score for one in judgement]


def well_formed(judgement: Sequence[Judgement], **_: object) -> list[float]:
    """1 for a completion that follows the verifier's format, else 0."""
    return [float(one.format_ok) for one in judgement]


@dataclass(frozen=True)
class GatedLength:
    """Right answers pay more the shorter they are: `correct * (1 - slope * min(n, scale) / scale)`.

    The plain length reward beside which every budget-aware method is judged.

    Args:
        scale: tokens at which the full discount is reached.
        slope: discount there, in [0, 1]; 0 pays 1 for every right answer.
        count: "completion" or "thinking" tokens.

    Raises:
        InputError: for a value out of range.
    """

    scale: float
    slope: float = 0.5
    count: str = "completion"

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise InputError(f"scale={self.scale}; must be a positive number of tokens")
        if not 0 <= self.slope <= 1:
            raise InputError(f"slope={self.slope}; must be in [0, 1]")
        if self.count not in ("completion", "thinking"):
            raise InputError(f"count={self.count!r}; known are 'completion' and 'thinking'")

    @property
    def __name__(self) -> str:
        """In TRL's logs."""
        return "gated_length"

    def __call__(self, judgement: Sequence[Judgement], **_: object) -> list[float]:
        """One reward a completion."""
        rewards = []
        for one in judgement:
            n = one.tokens if self.count == "completion" else one.thinking_tokens
            rewards.append(float(one.correct) * (1 - self.slope * min(n, self.scale) / self.scale))
        return rewards
