"""What a token costs: FLOPs and KV bytes (`ModelShape`), money (`Price`), efficiency figures.

Efficiency figures follow Plan-and-Budget (arXiv 2505.16122): E3 = A^2 / T with A in percent and T
the mean number of completion tokens. A figure that is undefined is None, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from outlay.errors import InputError
from outlay.shape import LayerShape, ModelShape

__all__ = [
    "Efficiency",
    "LayerShape",
    "ModelShape",
    "Price",
    "accuracy_per_token",
    "e3",
    "efficiency",
    "tokens_per_correct",
]


@dataclass(frozen=True)
class Price:
    """A price list in US dollars per million tokens.

    Raises:
        InputError: for a price that is negative or not finite.
    """

    prompt: float
    cached: float
    generated: float

    def __post_init__(self) -> None:
        for name in ("prompt", "cached", "generated"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name}={value}; a price in usd per 1M tokens is finite, >= 0")

    def usd(self, prompt_new: float, prompt_cached: float, generated: float) -> float:
        """Dollars for these token counts."""
        paid = prompt_new * self.prompt + prompt_cached * self.cached + generated * self.generated
        return paid / 1e6


def e3(accuracy_percent: float, mean_tokens: float) -> float | None:
    """Efficiency-aware effectiveness `A^2 / T` (Plan-and-Budget, section on metrics).

    Args:
        accuracy_percent: mean score in percent, 0 to 100.
        mean_tokens: mean completion tokens per question.

    Returns:
        The figure, or None where no token was spent.
    """
    return _ratio(_percent(accuracy_percent) ** 2, mean_tokens)


def accuracy_per_token(accuracy_percent: float, mean_tokens: float) -> float | None:
    """Percent of accuracy bought by one token, `A / T`; None where no token was spent."""
    return _ratio(_percent(accuracy_percent), mean_tokens)


def tokens_per_correct(total_tokens: float, correct: float) -> float | None:
    """Tokens spent per correct answer, wrong ones' included; None without a correct answer."""
    return _ratio(total_tokens, correct)


def _percent(value: float) -> float:
    if not 0 <= value <= 100:
        raise InputError(
            f"accuracy_percent={value} is outside 0..100; give a mean score in percent"
        )
    return value


def _ratio(above: float, below: float) -> float | None:
    for value in (above, below):
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{value} is not a finite count or score >= 0")
    return above / below if below > 0 else None


@dataclass(frozen=True)
class Efficiency:
    """How a set of answers spent its tokens; None where a figure is undefined.

    Args:
        n: number of answers.
        accuracy: mean score in [0, 1].
        tokens_mean, tokens_p50, tokens_p90: completion tokens per answer.
        tokens_correct: mean tokens of correct answers.
        tokens_per_correct: all tokens over the number of correct answers.
        e3: `(100 accuracy)^2 / tokens_mean`.
        violation: share of answers over their budget.
        overshoot: mean excess over the budget, relative to it.
        utilisation: mean share of the budget that was used, at most 1 per answer.
    """

    n: int
    accuracy: float | None
    tokens_mean: float | None
    tokens_p50: float | None
    tokens_p90: float | None
    tokens_correct: float | None
    tokens_per_correct: float | None
    e3: float | None
    violation: float | None
    overshoot: float | None
    utilisation: float | None


def efficiency(
    tokens: Sequence[int], scores: Sequence[float], budgets: Sequence[int] | None = None
) -> Efficiency:
    """Efficiency figures of n answers.

    Args:
        tokens: (n,) completion tokens.
        scores: (n,) scores in [0, 1]; an answer is correct at 1 (within 1e-6: some graders pay
            small change for wrong answers).
        budgets: (n,) token budgets, where there were any.

    Raises:
        InputError: for unequal lengths, negative tokens, scores outside [0, 1], budgets < 1.
    """
    used, score = np.asarray(tokens, dtype=float), np.asarray(scores, dtype=float)
    if used.shape != score.shape or used.ndim != 1:
        raise InputError(f"{len(tokens)} token counts for {len(scores)} scores; give one each")
    if not (np.isfinite(used).all() and (used >= 0).all()):
        raise InputError("tokens must be finite and >= 0")
    if not ((score >= 0).all() and (score <= 1).all()):
        raise InputError("scores must lie in [0, 1]")
    n = len(used)
    correct = score >= 1 - 1e-6
    violation = overshoot = utilisation = None
    if budgets is not None:
        limit = np.asarray(budgets, dtype=float)
        if limit.shape != used.shape or not (limit >= 1).all():
            raise InputError("budgets must be one number >= 1 per answer")
        if n:
            violation = float((used > limit).mean())
            overshoot = float((np.maximum(0, used - limit) / limit).mean())
            utilisation = float((np.minimum(used, limit) / limit).mean())
    mean = float(used.mean()) if n else None
    accuracy = float(score.mean()) if n else None
    return Efficiency(
        n=n,
        accuracy=accuracy,
        tokens_mean=mean,
        tokens_p50=float(np.quantile(used, 0.5)) if n else None,
        tokens_p90=float(np.quantile(used, 0.9)) if n else None,
        tokens_correct=float(used[correct].mean()) if correct.any() else None,
        tokens_per_correct=tokens_per_correct(float(used.sum()), float(correct.sum())),
        e3=None if mean is None or accuracy is None else e3(100 * accuracy, mean),
        violation=violation,
        overshoot=overshoot,
        utilisation=utilisation,
    )
