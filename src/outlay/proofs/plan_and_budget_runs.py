"""The runs behind the Plan-and-Budget proof: policies on joined chains, curves, adherence."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from outlay.budget import Budget
from outlay.cost import e3
from outlay.errors import BudgetError
from outlay.evals.base import Problem
from outlay.ledger import Role
from outlay.models.base import Account, Message, Model, SamplingParams
from outlay.models.local import LocalModel
from outlay.reason import Answer, Question, Reasoner, Session, solve_many
from outlay.reason.base import Extend, Open, Strategy
from outlay.reason.plan_and_budget import Curve, Plan, PlanAndBudget, StructuralPlanner, fit
from outlay.reason.plan_and_budget.bam import closed_form, optimal, total_uncertainty
from outlay.reason.plan_and_budget.planner import ModelPlanner, Planning
from outlay.reason.plan_and_budget.plans import PlanCache
from outlay.reason.plan_and_budget.structural import step_operations, step_tokens
from outlay.reason.voting import Solving, answer_of
from outlay.records import Record
from outlay.stats import FloatArray, resample_means
from outlay.testbeds.reasoner.joined import JoinedArith
from outlay.testbeds.reasoner.tokenizer import ANSWER, END_THINK

RESERVE = 4  # tokens of the forced answer; it needs two
GREEDY = SamplingParams(temperature=0.0, max_tokens=220)
TOGETHER = 256
# Budgets at which curves are read off, even on a logarithmic scale, as the fit is.
PROBED = (2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128)
LEAST_U = 0.02
OURS = PlanAndBudget(
    planner=StructuralPlanner(),
    schedule="constant",
    mode="enforced",
    answer_reserve=RESERVE,
    min_step_budget=1,
    budget=10_000,  # the question's own budget is the tighter one
)


def whole(session: Session) -> Plan:
    """No plan: one step in the reasoner's short format."""
    return Plan(("solve",), (1.0,), headings=("",), opening="<short>", closing=END_THINK + ANSWER)


def natural(session: Session) -> Plan:
    """No plan, and the format that the model chooses."""
    return Plan(("solve",), (1.0,), headings=("",), closing=END_THINK + ANSWER)


def random_groups(session: Session) -> Plan:
    """A decomposition that knows nothing: neighbouring chains grouped at random, equal credits."""
    rng = random.Random(session.question.text)
    plan = StructuralPlanner()(session)
    guessed = replace(plan, credits=tuple(rng.random() + 1e-9 for _ in plan.steps))
    grouped = guessed.merged(rng.randint(1, len(plan.steps)))
    return replace(grouped, credits=(1.0,) * len(grouped.steps))


@dataclass(frozen=True)
class EarlyExit(Solving):
    """Stops thinking once the answer forced after every `chunk` tokens is the same twice."""

    chunk: int = 12

    def plan(self, session: Session) -> Strategy:
        """The strategy for one question."""
        closing = END_THINK + ANSWER
        ends = tuple(sorted(getattr(session.model, "eos_ids", ())))
        on = replace(
            GREEDY,
            max_tokens=self.chunk,
            stop=(END_THINK,),
            stop_token_ids=ends,
            include_stop=False,
        )
        asking = replace(GREEDY, max_tokens=RESERVE)
        answered, before = None, None
        root = yield Open("<short>")
        try:
            [[branch]] = yield Extend([root], on)
            while True:
                forced = session.append(branch, closing)
                rows = yield Extend([forced, branch], [asking, on])
                answered = rows[0][0]
                value = session.question.answer(answered.completion())
                if value == before or branch.finish == "stop":
                    return answer_of(session, answered, [answered], status="stable")
                before, branch = value, rows[1][0]
        except BudgetError:
            return answer_of(session, answered, [], status="budget")


@dataclass(frozen=True)
class Cell:
    """One policy at one budget: N answers in the order of the problems."""

    records: list[Record]
    answers: list[Answer]
    blocks: list[list[bool]]

    @property
    def right(self) -> FloatArray:
        """(N,) 1 where the answer is right."""
        return np.array([record.quality for record in self.records])

    @property
    def tokens(self) -> FloatArray:
        """(N,) completion tokens of the model that answers, forced headings included."""
        totals = [answer.ledger.totals(role="target") for answer in self.answers]
        return np.array([float(total.generated + total.forced) for total in totals])

    @property
    def sampled(self) -> list[int]:
        """(N,) sampled tokens of the model that answers."""
        return [answer.ledger.totals(role="target").generated for answer in self.answers]

    @property
    def e3(self) -> float:
        """Efficiency of the cell."""
        return e3(100 * float(self.right.mean()), float(self.tokens.mean())) or 0.0

    def e3_resamples(self, seed: int, resamples: int = 1000) -> FloatArray:
        """(R,) efficiency of bootstrap resamples; equal seeds draw equal examples."""
        means_R2 = resample_means(np.stack([self.right, self.tokens], axis=1), resamples, seed)
        return np.asarray((100 * means_R2[:, 0]) ** 2 / means_R2[:, 1])


def questions(task: JoinedArith, problems: Sequence[Problem]) -> list[Question]:
    """The problems as reasoners see them."""
    return [
        Question(
            task.prompt(problem, ""),
            text=problem.question,
            kind="custom",
            read=partial(task.read, problem),
            delimiter=task.delimiter,
            id=problem.id,
        )
        for problem in problems
    ]


def even_need(task: JoinedArith, problem: Problem) -> int:
    """Tokens at which an even split over the steps starves none of them."""
    needs = step_tokens(task.chain(problem))
    return len(needs) * max(needs)


def run_policy(
    model: Model,
    task: JoinedArith,
    problems: Sequence[Problem],
    label: str,
    method: Reasoner,
    budgets: Sequence[int] | None = None,
    share: float = math.inf,
) -> Cell:
    """One policy, every problem under its own B; None is without a limit."""
    accounts = [
        Account.open(None if budgets is None else Budget(tokens=budgets[at] + RESERVE))
        for at in range(len(problems))
    ]
    done = solve_many(
        method,
        model,
        questions(task, problems),
        None,
        GREEDY,
        accounts=accounts,
        together=TOGETHER,
    )
    allowed = Budget(tokens=max(1, round(1000 * share))) if math.isfinite(share) else Budget()
    records = [
        Record(task.name, p.id, label, allowed, 0, task.verify(p, a.text), a.ledger)
        for p, a in zip(problems, done, strict=True)
    ]
    blocks = [task.blocks(p, a.text) for p, a in zip(problems, done, strict=True)]
    return Cell(records, done, blocks)


# -- curves ---------------------------------------------------------------------------------------


def calibrate(model: Model, task: JoinedArith, problems: Sequence[Problem]) -> dict[int, Curve]:
    """Uncertainty curves by number of operations, from runs without limits.

    A step that ended after t tokens with the right value is right at every budget b >= t, so one
    run gives U(b) = 1 - P(right and t <= b) at all budgets. Only chains are measured: the final sum
    takes the curve of a chain of its length.
    """
    cell = run_policy(model, task, problems, "planned", replace(OURS, limits="none"))
    seen: dict[int, list[tuple[int, bool]]] = {}
    for problem, answer, blocks in zip(problems, cell.answers, cell.blocks, strict=True):
        lengths = step_operations(task.chain(problem))
        used = answer.detail["used"]
        for length, tokens, right in zip(lengths, used, blocks, strict=False):
            seen.setdefault(length, []).append((tokens, right))
    curves: dict[int, Curve] = {}
    for length, runs in seen.items():
        values = [
            max(LEAST_U, 1 - sum(right and tokens <= b for tokens, right in runs) / len(runs))
            for b in PROBED
        ]
        if (curve := fit(PROBED, values)) is not None:
            curves[length] = curve
    return curves


def curve_reader(
    task: JoinedArith, curves: Mapping[int, Curve]
) -> Callable[[Question, Plan], list[Curve]]:
    """Curves of a plan's steps: of the nearest length that was measured."""

    def read(question: Question, plan: Plan) -> list[Curve]:
        lengths = step_operations(task.chain(Problem("", question.text)))
        return [curves[min(curves, key=lambda n: (abs(n - length), n))] for length in lengths]

    return read


# -- theory ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Theory:
    """Random reasoners with known curves: total uncertainty of three splits, D draws each."""

    exact_D: FloatArray
    closed_D: FloatArray
    uniform_D: FloatArray


def theory(draws: int, seed: int) -> Theory:
    """2 to 8 sub-questions with c in [0.1, 10] and a in [0.1, 4], B in [16, 2000]."""
    rng = random.Random(f"bam:{seed}")
    rows = []
    for _ in range(draws):
        steps = rng.randint(2, 8)
        curves = [
            Curve(10 ** rng.uniform(-1, 1), math.exp(rng.uniform(math.log(0.1), math.log(4))))
            for _ in range(steps)
        ]
        budget = math.exp(rng.uniform(math.log(16), math.log(2000)))
        splits = (optimal(curves, budget), closed_form(curves, budget), [budget / steps] * steps)
        rows.append([total_uncertainty(curves, split) for split in splits])
    table = np.array(rows)
    return Theory(table[:, 0], table[:, 1], table[:, 2])


# -- adherence ------------------------------------------------------------------------------------

ASKED = (16, 32, 64)
LONGEST = 96


@dataclass(frozen=True)
class Adherence:
    """What a real model spends of what it was given.

    Args:
        asked: budgets, one per run.
        prompted: tokens used where the prompt asked for them.
        enforced: tokens used where they were imposed; at most asked + the answer's reserve.
    """

    asked: list[int]
    prompted: list[int]
    enforced: list[int]


def _sum_plan(session: Session) -> list[str]:
    return ["Add the first two numbers.", "Add the third number to that."]


def _sums(prompts: int, seed: int) -> list[Question]:
    rng = random.Random(f"sums:{seed}")
    texts = [
        "Anna has {} apples, finds {} more and buys another {}. How many has she?".format(
            *(rng.randint(1, 9) for _ in range(3))
        )
        for _ in range(prompts)
    ]
    return [
        Question([Message(role="user", content=text)], text=text, kind="number", id=text)
        for text in texts
    ]


def adherence(model: LocalModel, prompts: int, seed: int) -> Adherence:
    """The same sums with budgets asked for and imposed."""
    asked: list[int] = []
    used: dict[str, list[int]] = {"prompt": [], "enforced": []}
    sums = _sums(prompts, seed)
    for total in ASKED:
        asked += [total] * prompts
        for mode in ("prompt", "enforced"):
            method = PlanAndBudget(
                planner=_sum_plan, mode=mode, budget=total, unit="tokens", answer_reserve=8
            )
            sampling = SamplingParams(temperature=0.0, max_tokens=LONGEST)
            answers = solve_many(method, model, sums, None, sampling)
            used[mode] += [answer.ledger.totals(role="target").generated for answer in answers]
    return Adherence(asked, used["prompt"], used["enforced"])


@dataclass(frozen=True)
class PlanningCost:
    """What planning costs a real model.

    Args:
        answer: completion tokens of the answer per question.
        planner: tokens of the planner per question.
        cached: the planner's again, with the plans stored.
        fallbacks: share of plans that fell back.
    """

    answer: float
    planner: float
    cached: float
    fallbacks: float


def planning(model: LocalModel, prompts: int, seed: int) -> PlanningCost:
    """The model plans for itself; then the same plans are used again."""
    cache = PlanCache()
    sums = _sums(prompts, seed)
    inner = ModelPlanner(level=1, max_steps=3, retries=0, max_tokens=LONGEST)

    def stored(session: Session) -> Planning:
        plan = cache.get(session.question.text, inner.id(session))
        if plan is None:
            plan = yield from inner(session)
            cache.put(plan)
        return plan

    method = PlanAndBudget(planner=stored, mode="enforced", budget=32, answer_reserve=8)
    sampling = SamplingParams(temperature=0.0, max_tokens=LONGEST)
    first = solve_many(method, model, sums, None, sampling)
    again = solve_many(method, model, sums, None, sampling)

    def mean(answers: Sequence[Answer], role: Role) -> float:
        totals = [answer.ledger.totals(role=role) for answer in answers]
        return float(np.mean([total.generated for total in totals]))

    return PlanningCost(
        answer=mean(first, "target"),
        planner=mean(first, "planner"),
        cached=mean(again, "planner"),
        fallbacks=float(np.mean([bool(answer.detail["plan"]["note"]) for answer in first])),
    )
