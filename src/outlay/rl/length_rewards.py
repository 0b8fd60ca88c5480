"""Rewards of length, as TRL calls them: around a budget that the rows carry, or a fixed one.

`LengthReward` is the length signal of "Train Long, Think Short" (arXiv 2508.08940, section 3.3):
a triangle with its peak at the budget, or a band that pays all shorter answers alike. The paper's
text speaks of a plateau between the triangle's ramps; its formula has none, and the formula is
built here. The triangle *pays for padding*: a solved problem earns more by growing to the budget.

Baselines: `GatedLength` (from `outlay.rl.rewards`: right answers pay more the shorter they are) and
`ExactLength`, the length term of "L1" (Aggarwal & Welleck, arXiv 2503.04697, its exact form).

No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from outlay.errors import BudgetError, InputError
from outlay.rl.base import Judgement
from outlay.rl.rewards import GatedLength
from outlay.rl.schedules import check_budget

__all__ = ["Count", "ExactLength", "GatedLength", "LengthReward", "Shape", "band", "triangular"]

Shape = Literal["triangular", "band"]
Count = Literal["completion", "thinking"]
SHAPES = ("triangular", "band")
COUNTS = ("completion", "thinking")


def triangular(length: float, budget: float, r_max: float = 1.0) -> float:
    """0 at 0, `r_max` at the budget, 0 from twice the budget on; straight between.

    Args:
        length: tokens.
        budget: tokens, positive.
        r_max: the peak.
    """
    share = length / budget
    return r_max * (share if share <= 1 else max(0.0, 2 - share))


def band(length: float, budget: float, r_max: float = 1.0) -> float:
    """`r_max` up to the budget, then the triangle's descent.

    Args:
        length: tokens.
        budget: tokens, positive.
        r_max: the height.
    """
    return r_max * min(1.0, max(0.0, 2 - length / budget))


@dataclass(frozen=True)
class LengthReward:
    """Pay for a length near the budget of each row.

    Logs the mean budget, the mean `|l - B| / B` and the share of `l > B` as `length/budget`,
    `length/gap` and `length/violation`.

    Args:
        shape: "triangular" or "band".
        r_max: most that is paid.
        count: what l counts: tokens of the "completion", or of the "thinking".
        gate: pay right answers only (ours; the paper pays wrong ones, too).
        soft: the gate multiplies by the verifier's score instead of right or wrong.
        budget: for all rows; None reads the column `budget`.

    Raises:
        InputError: for an unknown shape or count, or `r_max` that is not positive.
        BudgetError: for a budget below 1.
    """

    shape: Shape = "triangular"
    r_max: float = 1.0
    count: Count = "completion"
    gate: bool = False
    soft: bool = False
    budget: float | None = None

    def __post_init__(self) -> None:
        check_choice("shape", self.shape, SHAPES)
        check_choice("count", self.count, COUNTS)
        check_positive("r_max", self.r_max)
        if self.budget is not None:
            check_budget("budget", self.budget)

    @property
    def __name__(self) -> str:
        """In TRL's logs."""
        return "length"

    def __call__(
        self,
        judgement: Sequence[Judgement],
        budget: Sequence[float | None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: object,
    ) -> list[float]:
        """One reward a completion.

        Raises:
            BudgetError: if a row has no budget.
        """
        budgets = budgets_of(self.budget, budget, len(judgement))
        pay = triangular if self.shape == "triangular" else band
        lengths = [counted(one, self.count) for one in judgement]
        rewards = []
        for one, n, b in zip(judgement, lengths, budgets, strict=True):
            gate = (one.score if self.soft else float(one.correct)) if self.gate else 1.0
            rewards.append(gate * pay(n, b, self.r_max))
        if log_metric is not None and rewards:
            gaps = [abs(n - b) / b for n, b in zip(lengths, budgets, strict=True)]
            over = [float(n > b) for n, b in zip(lengths, budgets, strict=True)]
            log_metric("length/budget", sum(budgets) / len(budgets))
            log_metric("length/gap", sum(gaps) / len(gaps))
            log_metric("length/violation", sum(over) / len(over))
        return rewards


@dataclass(frozen=True)
class ExactLength:
    """L1's exact form: `correct - alpha * |target - n|` (arXiv 2503.04697, equation 1).

    Args:
        target: tokens asked for; None reads the column `budget`.
        alpha: price of a token too many or too few. The paper's 0.0003 is for targets of hundreds
            to thousands of tokens; targets of tens need about 0.01 for the same weight.
        count: "completion" or "thinking" tokens.

    Raises:
        InputError: for an unknown count, or `alpha` that is not positive.
        BudgetError: for a target below 1.
    """

    target: float | None = None
    alpha: float = 0.0003
    count: Count = "completion"

    def __post_init__(self) -> None:
        check_choice("count", self.count, COUNTS)
        check_positive("alpha", self.alpha)
        if self.target is not None:
            check_budget("target", self.target)

    @property
    def __name__(self) -> str:
        """In TRL's logs."""
        return "exact_length"

    def __call__(
        self,
        judgement: Sequence[Judgement],
        budget: Sequence[float | None] | None = None,
        **_: object,
    ) -> list[float]:
        """One reward a completion.

        Raises:
            BudgetError: if a row has no budget.
        """
        targets = budgets_of(self.target, budget, len(judgement))
        return [
            float(one.correct) - self.alpha * abs(target - counted(one, self.count))
            for one, target in zip(judgement, targets, strict=True)
        ]


def counted(judgement: Judgement, count: Count) -> int:
    """Tokens of a completion, or of its thinking."""
    return judgement.tokens if count == "completion" else judgement.thinking_tokens


def budgets_of(
    fixed: float | None, column: Sequence[float | None] | None, rows: int
) -> list[float]:
    """Budgets of all rows.

    Raises:
        BudgetError: if a row has none.
    """
    if fixed is not None:
        return [fixed] * rows
    budgets = [one for one in column or () if one is not None]
    if len(budgets) != rows:
        raise BudgetError(
            f"{rows - len(budgets)} of {rows} rows have no budget; give the data set a column "
            "'budget', use a method that assigns one, or fix it in the reward"
        )
    return budgets


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Raise `InputError` unless `value` is one of `known`."""
    if value not in known:
        raise InputError(f"{name}={value!r}; known are {', '.join(map(repr, known))}")


def check_positive(name: str, value: float) -> None:
    """Raise `InputError` unless `value` is a positive, finite number."""
    if not 0 < value < float("inf"):
        raise InputError(f"{name}={value!r}; must be a positive, finite number")
