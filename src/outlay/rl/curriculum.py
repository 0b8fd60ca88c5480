"""Curriculum GRPO: training under a shrinking token budget, so that the model first finds solutions
and then learns to write them short.

"Train Long, Think Short: Curriculum Learning for Efficient Reasoning" (arXiv 2508.08940). A
response is paid for being right, for a length near the budget, and for its format; the budget
starts generous and falls in steps during one GRPO run.

Where this differs from the paper, or fills what it leaves open:

- its released code could not be read; nothing here is checked against it;
- r_cor = r_max = 1, alpha = (0.5, 0.5) and a format weight of 0.1 are ours; the weights of the
  paper's main tables are not stated, the default is its correctness-heavy ablation;
- the budget is a real number in the reward and rounded in the prompt;
- caps leave `answer_slack` tokens for the answer: a cut at exactly twice the budget makes long but
  right answers wrong and looks like an effect of length;
- advantages are TRL's by default (sample standard deviation plus 1e-4), so that the method without
  its signals is plain GRPO; `advantage="population"` is the paper's formula;
- `gate_length`, `soft`, `fmt="verifier"`, "rising" and schedules of one's own are ours.

The triangle pays for padding: an easy problem earns more by growing to the budget. Look at lengths
by difficulty; "band" or `gate_length` are the alternatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from outlay.errors import BudgetError, InputError
from outlay.rl import schedules
from outlay.rl.base import Context, Method, RewardFunction, Row
from outlay.rl.curriculum_format import (
    Tags,
    check_context,
    check_spelling,
    check_template,
    encode,
    render,
    told,
)
from outlay.rl.curriculum_signals import (
    Correct,
    FormatReward,
    VerifierFormat,
    population_advantages,
)
from outlay.rl.length_rewards import (
    COUNTS,
    SHAPES,
    Count,
    LengthReward,
    Shape,
    check_choice,
    check_positive,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainerCallback

ScheduleName = Literal["exp_endpoints", "exp_interval", "linear", "constant", "rising"]
SCHEDULES = ("exp_endpoints", "exp_interval", "linear", "constant", "rising")
_STAGED: Mapping[str, Callable[..., float]] = {
    "exp_endpoints": schedules.exp_endpoints,
    "linear": schedules.linear,
    "rising": schedules.rising,
}
_ENDPOINTS = (87, 3)  # defaults of b_final and n_decays


@dataclass(frozen=True)
class CurriculumGRPO(Method):
    """A shrinking budget, and three signals: right, near the budget, well-formed.

    Args:
        schedule: "exp_endpoints", "exp_interval", "linear", "constant" (at `b_final`), "rising",
            or a function of the steps done and the steps of the run.
        b0: the first budget in tokens.
        b_final: the last one.
        n_decays: changes of budget between them; 0 trains at `b_final` from the start.
        gamma: factor of a decay, for "exp_interval" only.
        interval: steps between decays, for "exp_interval" only.
        total_steps: optimiser steps of the schedule; later ones stay at the last budget. None takes
            the run's `max_steps`.
        shape: of the length reward: "triangular" or "band".
        weights: of right, length, format.
        r_cor: pay for a right answer.
        r_max: most that a length is paid.
        alpha: pay for well-formed thinking, and for a well-formed answer.
        count: which tokens count as length: of the "completion" or of its "thinking".
        gate_length: pay lengths of right answers only.
        soft: the verifier's score instead of right or wrong.
        budget_in_prompt: tell the model its budget, in training and after.
        hard_cap_factor: completions are cut at this many budgets; None for no cap.
        answer_slack: tokens beyond the cap, so that the answer fits.
        num_generations: G.
        save_per_stage: save a checkpoint at the end of every stage.
        advantage: "group" (TRL's) or "population" (the paper's formula).
        eps: stabiliser inside the root of "population".
        template: prompt with {question} and {budget}; None has the paper's parts in our words.
        tags: around thinking and answer.
        fmt: who judges the format: "tags", or the "verifier" (all of alpha or nothing).
        tokenizer: with it, tags are read from token ids, and tags, template, smallest budget and
            context are checked.
        context: most tokens of prompt and completion; None takes the tokenizer's limit.

    Raises:
        BudgetError: for budgets below 1, above `b0` where they must fall, or smaller than the
            tags.
        InputError: for any other value out of range, or two forms of schedule at once.
    """

    schedule: ScheduleName | Callable[[int, int], float] = "exp_endpoints"
    b0: float = 256
    b_final: float = 87
    n_decays: int = 3
    gamma: float | None = None
    interval: int | None = None
    total_steps: int | None = 600
    shape: Shape = "triangular"
    weights: tuple[float, float, float] = (0.6, 0.3, 0.1)
    r_cor: float = 1.0
    r_max: float = 1.0
    alpha: tuple[float, float] = (0.5, 0.5)
    count: Count = "completion"
    gate_length: bool = False
    soft: bool = False
    budget_in_prompt: bool = True
    hard_cap_factor: float | None = 2.0
    answer_slack: int = 32
    num_generations: int = 8
    save_per_stage: bool = True
    advantage: Literal["group", "population"] = "group"
    eps: float = 1e-6
    template: str | None = None
    tags: Tags = field(default_factory=Tags)
    fmt: Literal["tags", "verifier"] = "tags"
    tokenizer: Any = None
    context: int | None = None

    def __post_init__(self) -> None:
        self._check_schedule()
        self._check_pay()
        if self.hard_cap_factor is not None and not 1 <= self.hard_cap_factor < math.inf:
            raise InputError(
                f"hard_cap_factor={self.hard_cap_factor}; a cap below the budget cuts answers that "
                "keep to it: use at least 1, or None for no cap"
            )
        for name, value, least in (
            ("answer_slack", self.answer_slack, 0),
            ("num_generations", self.num_generations, 2),
            ("context", 1 if self.context is None else self.context, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name}={value!r}; must be a whole number >= {least}")
        if self.template is not None:
            check_template(self.template)
        if self.tokenizer is not None:
            self._check_tokens()

    # -- the schedule -----------------------------------------------------------------------------

    def budget_at(self, step: int, total_steps: int = 0) -> float:
        """B at a step.

        Args:
            step: optimiser steps done.
            total_steps: of the run; 0 where unknown.

        Raises:
            InputError: if the schedule needs the number of steps and nobody gives it, or it is
                longer than the run.
        """
        if callable(self.schedule):
            return schedules.called(self.schedule, step, total_steps)
        if self.schedule == "constant":
            return schedules.constant(step, budget=self.b_final)
        if self.schedule == "exp_interval":
            assert self.gamma is not None
            assert self.interval is not None
            return schedules.exp_interval(
                step, b0=self.b0, gamma=self.gamma, interval=self.interval
            )
        total = self._length(total_steps)
        return _STAGED[self.schedule](
            step, b0=self.b0, b_final=self.b_final, n_decays=self.n_decays, total_steps=total
        )

    def cap_at(self, budget: float) -> int | None:
        """Most tokens of a completion under a budget; None for no cap."""
        if self.hard_cap_factor is None:
            return None
        return math.ceil(self.hard_cap_factor * budget) + self.answer_slack

    def schedule_table(self, total_steps: int) -> list[Mapping[str, Any]]:
        """Every change: step, budget, the number in the prompt, the cap."""
        if total_steps < 1:
            return []
        found = schedules.changes(lambda step: self.budget_at(step, total_steps), total_steps)
        return [
            {
                "step": step,
                "budget": budget,
                "prompt": round(budget) if self.budget_in_prompt else None,
                "hard_cap": self.cap_at(budget),
            }
            for step, budget in found
        ]

    def _length(self, run: int) -> int:
        if self.total_steps is None and run < 1:
            raise InputError(
                f"schedule={self.schedule!r} needs to know how long the run is; set max_steps in "
                "GRPOConfig, or total_steps"
            )
        if self.total_steps is None:
            return run
        if 0 < run < self.total_steps:
            raise InputError(
                f"total_steps={self.total_steps} and the run ends after {run} steps, before the "
                f"last budget: set total_steps={run}, or None for the run's own length"
            )
        return self.total_steps

    # -- what each rollout is told ----------------------------------------------------------------

    def assign(self, rows: Sequence[Row], step: int, total_steps: int, group: int) -> Sequence[Row]:
        """The budget of this step, for all rollouts.

        Raises:
            BudgetError: if the prompt and the cap exceed the context, or the budget cannot hold
                the tags.
        """
        budget = self.budget_at(step, total_steps)
        cap = self.cap_at(budget)
        for row in rows:
            row["budget"], row["hard_cap"] = budget, cap
            if self.budget_in_prompt:
                row["prompt"] = self._told(row["prompt"], budget)
        if self.tokenizer is not None:
            self._check_budget(budget)
            check_context(
                self.tokenizer, [row["prompt"] for row in rows[::group]], cap, self.context
            )
        return rows

    def at_inference(self, rows: Sequence[Row], budget: int) -> Sequence[Row]:
        """Prompts with the *last* budget of training, if prompts named budgets then.

        The budget of an earlier stage would bring that stage's lengths back.

        Args:
            rows: to answer.
            budget: told only where the method does not know how its schedule ends.
        """
        if not self.budget_in_prompt:
            return rows
        named = self.last_budget
        shown = float(budget) if named is None else named
        return [{**row, "prompt": self._told(row["prompt"], shown)} for row in rows]

    @property
    def last_budget(self) -> float | None:
        """B at the end; None where it depends on the length of the run."""
        if isinstance(self.schedule, str) and self.schedule != "exp_interval":
            return float(self.b_final)
        total = self.total_steps
        return None if total is None else self.budget_at(total - 1, total)

    def _told(self, prompt: Any, budget: float) -> Any:
        text = self.template or self.tags.text_template()
        chat = self.template or self.tags.chat_template()
        return told(prompt, text, chat, round(budget))

    # -- how it is paid ---------------------------------------------------------------------------

    def reward_functions(self) -> list[RewardFunction]:
        """Right, length, format."""
        length = LengthReward(self.shape, self.r_max, self.count, self.gate_length, self.soft)
        return [Correct(self.r_cor, self.soft), length, self._format()]

    def reward_weights(self) -> list[float]:
        """Those given."""
        return [float(weight) for weight in self.weights]

    def _format(self) -> RewardFunction:
        if self.fmt == "tags":
            return FormatReward(self.tags, self.alpha, self.tokenizer)
        return VerifierFormat(self.alpha)

    def advantages(self, context: Context) -> Tensor | None:
        """TRL's, or with the population's standard deviation."""
        if self.advantage == "group":
            return None
        return population_advantages(context.rewards, context.group, self.eps)

    def config_defaults(self) -> Mapping[str, Any]:
        """Group size, and the foundation's clip and KL weight."""
        return {"num_generations": self.num_generations, "epsilon": 0.2, "beta": 0.0}

    def callbacks(self) -> list[TrainerCallback]:
        """Saves the ends of stages, if asked for."""
        if not self.save_per_stage:
            return []
        from outlay.rl.curriculum_stages import StageCheckpoints

        return [StageCheckpoints(self)]

    # -- bad input --------------------------------------------------------------------------------

    def _check_schedule(self) -> None:
        if not callable(self.schedule):
            check_choice("schedule", self.schedule, SCHEDULES)
        schedules.check_budget("b0", self.b0)
        schedules.check_budget("b_final", self.b_final)
        form = (self.gamma, self.interval)
        if self.schedule == "exp_interval":
            if None in form:
                raise InputError(
                    f"schedule='exp_interval' needs gamma and interval; got gamma={self.gamma}, "
                    f"interval={self.interval}"
                )
            if (self.b_final, self.n_decays) != _ENDPOINTS:
                raise InputError(
                    f"b_final={self.b_final:g}, n_decays={self.n_decays} belong to the end-point "
                    "form and gamma, interval to the other; give one form"
                )
        elif form != (None, None):
            raise InputError(
                f"gamma={self.gamma}, interval={self.interval} belong to schedule='exp_interval', "
                f"and schedule={self.schedule!r} has no use for them; give one form"
            )
        if self.total_steps is not None and not callable(self.schedule):
            self.budget_at(0, 0)
        elif isinstance(self.schedule, str) and self.schedule in _STAGED:
            self.budget_at(0, self.n_decays + 1 if self.n_decays >= 0 else 1)
        if self.total_steps is not None:
            schedules.stage(0, self.total_steps, 0)

    def _check_pay(self) -> None:
        check_choice("shape", self.shape, SHAPES)
        check_choice("count", self.count, COUNTS)
        check_choice("advantage", self.advantage, ("group", "population"))
        check_choice("fmt", self.fmt, ("tags", "verifier"))
        for name in ("r_cor", "r_max", "eps"):
            check_positive(name, getattr(self, name))
        for name, count in (("weights", 3), ("alpha", 2)):
            values = getattr(self, name)
            if len(values) != count or not all(0 <= value < math.inf for value in values):
                raise InputError(f"{name}={values}; give {count} finite numbers >= 0")
            if not any(values):
                raise InputError(f"{name}={values} pay nothing; at least one must be positive")

    def _check_tokens(self) -> None:
        if self.fmt == "tags":
            self.tags.check(self.tokenizer)
        if self.budget_in_prompt:
            template = self.template or self.tags.text_template()
            check_spelling(self.tokenizer, render(template, "", round(self.b0)))
        last = None if callable(self.schedule) else self.last_budget
        if last is not None:
            self._check_budget(last)

    def _check_budget(self, budget: float) -> None:
        if self.fmt != "tags" or self.count != "completion":
            return
        opening, closing = self.tags.think
        written = opening + closing if self.tags.opened is False else closing
        delimiters = len(encode(self.tokenizer, written + "".join(self.tags.answer)))
        if budget <= delimiters:
            raise BudgetError(
                f"a budget of {budget:g} tokens cannot hold more than the tags, which take "
                f"{delimiters}; raise b_final, or use count='thinking'"
            )
