"""HBPO: several token budgets inside every group, so that a model learns how long each problem
deserves.

"Hierarchical Budget Policy Optimization for Adaptive Reasoning" (arXiv 2507.15844). The n rollouts
of a question are split into k subgroups; subgroup i begins with a forced promise to answer within
b_i tokens, and is paid in that budget's own currency: as much as b_i is worth while it keeps to it,
less with every token beyond it. An advantage compares a rollout with all of its question (between
subgroups) and its subgroup with what its budget pays at best (within a subgroup).

Where this differs from the paper and its released code: the equations stand. The release takes
`min(f1, f2)` for the reward (`reward_form="min"`), pays -1 for a broken format (`format_penalty`)
and adds the intra term twice (`intra_weight=2`). Its rounding, its pi of 3.1416 and its limits that
are written into the code are not repeated. `floor`, `intra_scale`, `per` and "flat" are ours. The
promise is a template that is tokenised once (`tokenized`), so that ids, not text, decide.

Shapes: N rollouts of all processes, Q questions, G (= n) rollouts of each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from outlay.budget import split_weighted
from outlay.errors import BudgetError, InputError
from outlay.rl.base import Context, Judgement, Method, Prefix, RewardFunction, Row

if TYPE_CHECKING:
    from torch import Tensor

RewardForm = Literal["piecewise", "min", "flat"]
IntraScale = Literal["none", "f2", "std"]
Per = Literal["member", "question"]

PROMISE = "<think>\nI will answer the question within {budget} tokens.\n"
LEAST = "<think>\nI will answer the question with minimal tokens.\n"


@dataclass(frozen=True)
class HBPO(Method):
    """Hierarchical budgets.

    Args:
        budgets: tokens promised by the subgroups, rising, below `l_max`.
        n: rollouts of a question.
        l_max: context of an answer; right answers beyond it pay nothing.
        beta: what the shortest answer would pay.
        alpha: what a token off the budget costs; None is 1 / l_max.
        reward_form: "piecewise" (the paper's), "min" (the release's), or "flat", which pays 1 for a
            right answer whatever its length (exploration without pay).
        format_penalty: paid for a broken format; the paper's equation has 0.
        floor: least pay of a right answer; None lets a long one pay less than a wrong one.
        intra_weight: of the term within subgroups; 0 leaves it out.
        intra_scale: "none", "f2" (divided by the budget's best pay, so that the term lies in
            [-1, 0]), or "std" (by the question's standard deviation).
        prefix_template: the promise, with {budget}; or one text a budget; "" promises nothing, and
            budgets only pay.
        train_prefix: the promise is part of the loss, so that the model can choose by itself later.
        shares: parts of a group for the budgets; None splits it evenly.
        per: budgets by "member" of a group, or one budget a "question" (a baseline).
        efficiency: at inference, begin with the promise `least` ("efficiency prompting").
        least: a promise of few tokens.
        eps: added to the standard deviation.
        prefixes, least_ids: the promises as token ids; made by `tokenized`.

    Raises:
        InputError: for an unknown choice, or values out of range.
        BudgetError: for budgets that do not rise, or reach l_max.
    """

    budgets: tuple[int, ...] = (512, 1024, 2048, 2560)
    n: int = 16
    l_max: int = 4096
    beta: float = 4.0
    alpha: float | None = None
    reward_form: RewardForm = "piecewise"
    format_penalty: float = -1.0
    floor: float | None = None
    intra_weight: float = 1.0
    intra_scale: IntraScale = "none"
    prefix_template: str | tuple[str, ...] = PROMISE
    train_prefix: bool = True
    shares: tuple[float, ...] | None = None
    per: Per = "member"
    efficiency: bool = False
    least: str = LEAST
    eps: float = 1e-6
    prefixes: tuple[tuple[int, ...], ...] = ()
    least_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        budgets = self.budgets
        if not budgets or list(budgets) != sorted(set(budgets)) or budgets[0] < 1:
            raise BudgetError(f"budgets={budgets}; give different numbers of tokens >= 1, rising")
        if budgets[-1] >= self.l_max:
            raise BudgetError(
                f"budgets={budgets} reach l_max={self.l_max}; lower them, or raise l_max"
            )
        for name, kind in (("reward_form", RewardForm), ("intra_scale", IntraScale), ("per", Per)):
            if getattr(self, name) not in get_args(kind):
                choices = ", ".join(get_args(kind))
                raise InputError(f"{name}={getattr(self, name)!r}; choose one of {choices}")
        if self.n < 2:
            raise InputError(f"n={self.n}; a group needs at least 2 rollouts")
        if self.per == "member":
            self.counts(self.n)
        for name in ("beta", "intra_weight", "eps"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}={getattr(self, name)}; must be >= 0")
        if self.alpha is not None and not self.alpha >= 0:
            raise InputError(f"alpha={self.alpha}; must be >= 0, or None for 1 / l_max")
        if not self.format_penalty <= 0:
            raise InputError(f"format_penalty={self.format_penalty}; must be <= 0")
        template = self.prefix_template
        if isinstance(template, str):
            if template and "{budget}" not in template:
                raise InputError(
                    f"prefix_template={template!r} has no {{budget}}: all promises would be equal"
                )
        elif len(template) != len(budgets):
            raise InputError(f"{len(template)} promises for {len(budgets)} budgets; give one each")
        if self.prefixes and len(self.prefixes) != len(budgets):
            raise InputError(f"{len(self.prefixes)} prefixes for {len(budgets)} budgets")

    # -- what is promised -------------------------------------------------------------------------

    @property
    def prefix(self) -> Prefix:  # type: ignore[override]  # a knob decides
        """Promises stay in the completion; the loss covers them where they are trained."""
        return "trained" if self.train_prefix else "masked"

    def texts(self) -> tuple[str, ...]:
        """The promise of every budget; "" without one."""
        if isinstance(self.prefix_template, str):
            return tuple(self.prefix_template.format(budget=b) for b in self.budgets)
        return self.prefix_template

    def tokenized(self, tokenizer: Any) -> HBPO:
        """This method with its promises as token ids.

        Raises:
            InputError: for a promise that does not come back from the tokenizer as it was (a tag
                that it lacks, for instance).
        """
        made = [_ids(tokenizer, text) for text in self.texts()]
        least = _ids(tokenizer, self.least) if self.efficiency else ()
        return replace(self, prefixes=tuple(made), least_ids=least)

    def counts(self, group: int) -> list[int]:
        """Rollouts of every budget in a group.

        Raises:
            InputError: for a group that cannot be split so.
        """
        k = len(self.budgets)
        if self.shares is None:
            if group % k:
                raise InputError(
                    f"a group of {group} rollouts is not divisible into {k} subgroups; change "
                    "num_generations (n), the number of budgets, or give shares"
                )
            return [group // k] * k
        if len(self.shares) != k:
            raise InputError(f"{len(self.shares)} shares for {k} budgets; give one each")
        return split_weighted(group, self.shares)

    def scale_to(self, l_max: int) -> HBPO:
        """The same method for another context: budgets in proportion, beta kept.

        Promises must be tokenised again.
        """
        factor = l_max / self.l_max
        budgets = tuple(max(1, round(budget * factor)) for budget in self.budgets)
        alpha = None if self.alpha is None else self.alpha / factor
        return replace(self, l_max=l_max, budgets=budgets, alpha=alpha, prefixes=())

    # -- hooks ------------------------------------------------------------------------------------

    def assign(self, rows: Sequence[Row], step: int, total_steps: int, group: int) -> Sequence[Row]:
        """Every member its subgroup's budget and promise."""
        if any(self.texts()) and not self.prefixes:
            raise InputError("promises are not tokenised; use HBPO(...).tokenized(tokenizer)")
        if self.per == "member":
            places = [at for at, count in enumerate(self.counts(group)) for _ in range(count)]
        for row in rows:
            at = places[row["member"]] if self.per == "member" else self._question(row, step)
            row["budget"] = self.budgets[at]
            row["prefix_ids"] = list(self.prefixes[at]) if self.prefixes else []
        return rows

    def _question(self, row: Row, step: int) -> int:
        """One budget for all rollouts of a question, the same on every process."""
        import zlib

        return zlib.crc32(f"{step}:{row['prompt']}".encode()) % len(self.budgets)

    def reward_functions(self) -> list[RewardFunction]:
        """The budget-aware reward."""
        return [self.pay]

    def pay(
        self, judgement: Sequence[Judgement], budget: Sequence[float | None], **_: object
    ) -> list[float]:
        """The reward of every completion; a reward function as TRL calls it."""
        return [self.reward(one, b) for one, b in zip(judgement, budget, strict=True)]

    def reward(self, one: Judgement, budget: float | None) -> float:
        """Section 3.2: f2(b) up to the budget, f1(n, b) beyond it.

        Args:
            one: a completion.
            budget: of its subgroup; None (no promise) pays by the cosine of its length alone.
        """
        if not one.format_ok:
            return self.format_penalty
        if not one.correct or one.tokens > self.l_max:
            return 0.0
        if self.reward_form == "flat":
            return 1.0
        n = one.tokens
        if budget is None:
            pay = self.worth(n)
        elif self.reward_form == "min":
            pay = min(self._beyond(n, budget), self.worth(budget))
        else:
            pay = self.worth(budget) if n <= budget else self._beyond(n, budget)
        return pay if self.floor is None else max(pay, self.floor)

    def worth(self, budget: float) -> float:
        """f2: what keeping to a budget pays; the shorter, the more."""
        return self.beta * math.cos(math.pi * budget / (2 * self.l_max))

    def _beyond(self, n: float, budget: float) -> float:
        """f1: what n tokens pay, less what being off the budget costs."""
        alpha = 1 / self.l_max if self.alpha is None else self.alpha
        return self.worth(n) - alpha * abs(n - budget)

    def advantages(self, context: Context) -> Tensor:
        """(N,) Between subgroups, normalised over the question; within them, against f2.

        Computed in the rewards' own precision, with TRL's own operations.
        """
        import torch
        from trl.trainer.utils import nanstd

        rewards_QG = context.rewards.view(-1, context.group)
        budgets_QG = torch.tensor(context.column("budget"), device=rewards_QG.device).view_as(
            rewards_QG
        )
        mean_Q1 = torch.nanmean(rewards_QG, dim=1, keepdim=True)
        scale_Q1 = nanstd(rewards_QG, dim=1).unsqueeze(1) + self.eps
        found_QG = (rewards_QG - mean_Q1) / scale_Q1
        if self.intra_weight:
            for budget in sorted(set(budgets_QG.flatten().tolist())):
                mine_QG = budgets_QG == budget
                worth = 1.0 if self.reward_form == "flat" else self.worth(budget)
                paid_QG = rewards_QG.masked_fill(~mine_QG, torch.nan)
                term_Q1 = torch.nanmean(paid_QG, dim=1, keepdim=True) - worth
                if self.intra_scale == "f2":
                    term_Q1 = term_Q1 / worth
                elif self.intra_scale == "std":
                    term_Q1 = term_Q1 / scale_Q1
                found_QG = torch.where(mine_QG, found_QG + self.intra_weight * term_Q1, found_QG)
        return torch.nan_to_num(found_QG, nan=0.0).view(-1)

    def at_inference(self, rows: Sequence[Row], budget: int) -> Sequence[Row]:
        """Natural reasoning has no promise; efficiency prompting promises few tokens."""
        if not self.efficiency:
            return rows
        if not self.least_ids:
            raise InputError("promises are not tokenised; use HBPO(...).tokenized(tokenizer)")
        return [{**row, "prefix_ids": list(self.least_ids)} for row in rows]

    def config_defaults(self) -> Mapping[str, Any]:
        """Section 4.1, and the release's dual clip."""
        return {
            "loss_type": "dapo",
            "num_generations": self.n,
            "epsilon": 0.2,
            "epsilon_high": 0.28,
            "delta": 3.0,
            "beta": 0.0,
        }


@dataclass(frozen=True)
class Cosine:
    """HBPO's pay without budgets, a baseline: the cosine of the length of a right answer.

    Args:
        l_max: context of an answer.
        beta: what the shortest answer would pay.

    Raises:
        InputError: for a context below 2 tokens, or a negative beta.
    """

    l_max: int
    beta: float = 4.0

    def __post_init__(self) -> None:
        if self.l_max < 2 or not self.beta >= 0:
            raise InputError(f"l_max={self.l_max}, beta={self.beta}; need l_max >= 2, beta >= 0")

    @property
    def __name__(self) -> str:
        """In TRL's logs."""
        return "cosine_pay"

    def __call__(self, judgement: Sequence[Judgement], **_: object) -> list[float]:
        """One reward a completion, as TRL calls it."""
        like = HBPO(budgets=(1,), l_max=self.l_max, beta=self.beta, prefix_template="")
        return [like.reward(one, None) for one in judgement]


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """A promise as token ids that come back as the same text."""
    if not text:
        return ()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    back = tokenizer.decode(ids, skip_special_tokens=False)
    if back != text:
        raise InputError(
            f"the promise {text!r} comes back from the tokenizer as {back!r}; give a "
            "prefix_template (or least) of texts that the model knows"
        )
    return tuple(ids)
