"""Plan-and-Budget: split a question into sub-questions, then share one token budget among them.

"Plan and Budget: Effective and Efficient Test-Time Scaling on (Reasoning) Large Language Models",
arXiv 2505.16122. A planner writes ordered sub-questions with credits; a schedule turns the query's
budget B into local budgets b_j (Eq. 7); the model answers along that scaffold. Two modes:

- "prompt", the published code: one call, whose prompt asks for at most b_j words per sub-question.
  Nothing enforces it.
- "enforced", the method as the text describes it: one branch; each step is opened by its heading
  and sampled up to b_j tokens, what it leaves rolls over to later steps, and the answer is forced.
  Sampled tokens never exceed B + answer_reserve, whatever the model does.

Where it differs from the paper: the model itself plans by default, since any model may; difficulty
is predicted unless it is given (the reported runs read it from the data set's labels); what a
planner or a probe samples is in the ledger, in the role "planner"; failures keep their tokens. The
rungs of the published ladder are settings: see `limits`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from outlay.budget import Remainder
from outlay.errors import BudgetError, InputError
from outlay.ledger import Stage
from outlay.models.base import Branch
from outlay.reason.base import Extend, Open, Question, Request, Session, Strategy
from outlay.reason.plan_and_budget import bam
from outlay.reason.plan_and_budget.allocation import allocate, roll_over, uniform
from outlay.reason.plan_and_budget.planner import ModelPlanner, NoPlanner, Planner, prompt_for
from outlay.reason.plan_and_budget.plans import (
    NEUTRAL,
    Plan,
    check_level,
    neutral,
    open_cache,
    question_hash,
)
from outlay.reason.plan_and_budget.probing import probe
from outlay.reason.plan_and_budget.prompts import answer_prompt, longest_prompt
from outlay.reason.plan_and_budget.schedules import Schedule, check_schedule, position_weights
from outlay.reason.plan_and_budget.structural import StructuralPlanner
from outlay.reason.voting import Solving, answer_of
from outlay.worst import Shape, Worst, growing

PlannerName = Literal["model", "structure", "none"]
Allocator = Literal["credits", "levels", "uniform", "bam"]
Mode = Literal["prompt", "enforced"]
Limits = Literal["local", "global", "none"]
Rollover = Literal["proportional", "next", "none"]
Curves = Callable[[Question, Plan], Sequence[bam.Curve]]

_CHOICES: Mapping[str, Any] = {
    "allocator": Allocator,
    "bam_closed": Literal["exact", "paper"],
    "mode": Mode,
    "limits": Limits,
    "rollover": Rollover,
    "too_many": Literal["merge", "error"],
    "unit": Literal["words", "tokens"],
    "remainder": Remainder,
}


@dataclass(frozen=True)
class PlanAndBudget(Solving):
    """Plan sub-questions, share B among them, answer along them.

    Args:
        planner: "model" asks the model itself; "structure" reads questions of the reasoner
            testbed; "none" is the single step "directly solve the problem"; or any callable, see
            `planner.Planner`.
        schedule: position weights d_j, see `schedules.position_weights`.
        power: of the polynomial schedule.
        base: of the exponential schedule.
        cosine_floor: of the cosine schedule.
        allocator: w_j are the planner's "credits", its "levels", or BAM's optimum ("bam", without
            a schedule); "uniform" gives B // m to each.
        curves: for "bam": uncertainty curves of a plan's steps; None probes the model.
        bam_closed: "exact", or the form that the paper prints.
        probe_budgets: tokens at which a probe is interrupted, rising.
        probes: probes per step.
        remainder: who gets the tokens that rounding leaves, see `allocation.allocate`.
        level: difficulty 1..5 of the question; None lets the planner say.
        level_budgets: B by level.
        budget: B itself, whatever the level.
        mode: "prompt" asks for the budgets, "enforced" imposes them.
        limits: "local" budgets per step; "global": only B as a whole (in enforced mode a pool,
            first come, first served); "none": the plan alone.
        rollover: where unspent tokens of a step go, in enforced mode.
        answer_reserve: most tokens of the forced answer; under a budget of the whole question at
            most a quarter of it.
        unit: of the budgets in a prompt; the published code says words.
        max_steps: most steps of a plan; a longer one is merged.
        min_step_budget: fewest tokens per step, on average.
        too_many: steps that B is too small for are merged, or refused ("error").
        heading: opens a step in enforced mode, with {number} and {step}.
        answer_prefix: opens the answer in enforced mode.
        opening: begins the model's turn, such as "<think>".
        plan_cache: file that keeps plans; "" for none. A callable planner then needs a method
            `id(session)`.

    Raises:
        InputError: for an unknown name or a value out of range.
        BudgetError: for budgets below min_step_budget.
    """

    planner: PlannerName | Planner = "model"
    schedule: Schedule = "polynomial"
    power: float = 2.0
    base: float = 0.9
    cosine_floor: float = 0.1
    allocator: Allocator = "credits"
    curves: Curves | None = None
    bam_closed: Literal["exact", "paper"] = "exact"
    probe_budgets: tuple[int, ...] = (8, 16)
    probes: int = 1
    remainder: Remainder = "priority"
    level: int | None = None
    level_budgets: tuple[int, int, int, int, int] = (200, 250, 350, 450, 600)
    budget: int | None = None
    mode: Mode = "prompt"
    limits: Limits = "local"
    rollover: Rollover = "proportional"
    answer_reserve: int = 64
    unit: Literal["words", "tokens"] = "words"
    max_steps: int = 5
    min_step_budget: int = 8
    too_many: Literal["merge", "error"] = "merge"
    heading: str = "\n\nStep {number}: {step}\n"
    answer_prefix: str = "\n\nFinal answer: "
    opening: str = ""
    plan_cache: str = ""

    def __post_init__(self) -> None:
        if not callable(self.planner) and self.planner not in get_args(PlannerName):
            names = ", ".join(get_args(PlannerName))
            raise InputError(f"planner={self.planner!r}; choose {names}, or give a callable")
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                choices = ", ".join(get_args(kind))
                raise InputError(f"{name}={getattr(self, name)!r}; choose one of {choices}")
        check_schedule(
            self.schedule, power=self.power, base=self.base, cosine_floor=self.cosine_floor
        )
        for name in ("answer_reserve", "min_step_budget", "max_steps", "probes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; must be at least 1")
        if self.level is not None:
            check_level(self.level)
        if len(self.level_budgets) != 5:
            raise InputError(f"level_budgets={self.level_budgets}; give B of the levels 1 to 5")
        for total in (*self.level_budgets, *(() if self.budget is None else (self.budget,))):
            if total < self.min_step_budget:
                raise BudgetError(
                    f"a budget of {total} tokens is below min_step_budget={self.min_step_budget}; "
                    "raise budget or level_budgets, or lower min_step_budget"
                )
        rising = sorted(set(self.probe_budgets))
        if list(self.probe_budgets) != rising or len(rising) < 2 or rising[0] < 1:
            raise InputError(
                f"probe_budgets={self.probe_budgets}; give two or more rising numbers of tokens"
            )
        try:
            self.heading.format(number=1, step="x")
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(
                f"heading={self.heading!r} may hold {{number}} and {{step}} alone ({error!r})"
            ) from error
        if "{number}" not in self.heading or not self.answer_prefix.strip():
            raise InputError("heading needs {number}, and answer_prefix a text: both end a step")

    # -- what it can cost -------------------------------------------------------------------------

    def needs(self) -> tuple[str, ...]:
        """Continuing an answer that was begun, where budgets are enforced."""
        return () if self.mode == "prompt" else ("append", "stop")

    def worst(self, shape: Shape) -> Worst:
        """The planner's calls, each tried as often as it may be, and the answer's.

        Raises:
            BudgetError: for a planner of one's own, or BAM's probes, whose cost is not known.
        """
        if callable(self.planner) or (self.allocator == "bam" and self.curves is None):
            raise BudgetError(
                "the cost of a planner of one's own and of BAM's probes is not known beforehand; "
                "use planner='model', 'structure' or 'none', and another allocator"
            )
        planner, planning, plan = self._planner(), Worst(), 0
        if isinstance(planner, ModelPlanner):
            # Steps and hints are at most what one call may write.
            plan = planner.max_tokens
            reading = shape.prompt + shape.count(longest_prompt(self.max_steps)) + plan
            calls = (1 if self.level else 2) + int(planner.weigh)
            planning = Worst(reading, plan, 1) * (calls * (planner.retries + 1))
        total = max(self.level_budgets) if self.budget is None else self.budget
        written = shape.count(longest_prompt(self.max_steps)) + plan
        if self.mode == "prompt":
            return planning + Worst(shape.prompt + written, shape.answer, 1)
        texts = shape.count(self.opening + self.answer_prefix) + shape.count(self.heading) * 8
        parts = [total + plan + texts] + [0] * (self.max_steps - 1) + [self.answer_reserve]
        answering = growing(shape.prompt, parts)
        return planning + Worst(answering.prompt, total + self.answer_reserve, answering.calls)

    # -- plan -------------------------------------------------------------------------------------

    def plan(self, session: Session) -> Strategy:
        """The strategy for one question."""
        if not session.question.text:
            raise InputError("the question has no text to plan with; give Question(text=...)")
        left = _left(session)
        if left is not None and left <= self.min_step_budget:
            raise BudgetError(
                f"{left} tokens are left for a step of min_step_budget={self.min_step_budget} and "
                "an answer; raise the budget"
            )
        if self.mode == "enforced":
            session.model.capabilities.require(
                "plan-and-budget with mode='enforced'", "append", model=session.model.name
            )
        try:
            plan = yield from self._planned(session)
        except BudgetError:
            return answer_of(session, None, (), status="budget", detail={"note": "while planning"})
        if self.mode == "prompt":
            return (yield from self._prompted(session, plan))
        return (yield from self._enforced(session, plan))

    def _planner(self) -> Planner:
        if self.planner == "model":
            weigh = self.limits == "local" and self.allocator in ("credits", "levels")
            return ModelPlanner(level=self.level, weigh=weigh, max_steps=max(2, self.max_steps))
        if self.planner == "structure":
            return StructuralPlanner()
        if self.planner == "none":
            return NoPlanner()
        assert callable(self.planner)
        return self.planner

    def _planned(self, session: Session) -> Generator[Request, Any, Plan]:
        planner = self._planner()
        named = getattr(planner, "id", None)
        if not callable(named) and self.plan_cache:
            raise InputError(
                "plan_cache needs a planner with a method id(session), which tells its plans from "
                "others'; give the planner one, or no plan_cache"
            )
        name = named(session) if callable(named) else type(planner).__name__
        text = session.question.text
        cache = open_cache(self.plan_cache) if self.plan_cache else None
        found = None if cache is None else cache.get(text, name)
        if found is None:
            made: Any = planner(session)
            if inspect.isgenerator(made):
                made = yield from made
            found = _as_plan(made, text, name)
            if cache is not None:
                cache.put(found)
        if self.level is not None:
            found = replace(found, level=self.level)
        return found.merged(self.max_steps)

    # -- budgets ----------------------------------------------------------------------------------

    def _room(self, session: Session, plan: Plan) -> tuple[int, int]:
        """B for the steps, and tokens for the answer, within what the question's budget leaves."""
        wanted, reserve = self.budget or self.level_budgets[plan.level - 1], self.answer_reserve
        meter = session.account.meter
        left = None if meter is None else meter.remaining()
        if meter is None or left is None:
            return wanted, reserve
        think, answer = meter.remaining("think"), meter.remaining("answer")
        assert think is not None
        assert answer is not None
        staged = "answer" in (meter.budget.stages or {})
        reserve = min(reserve, answer if staged else max(1, left // 4))
        return max(0, min(wanted, think, left - reserve)), reserve

    def _fitted(self, plan: Plan, total: int) -> Plan:
        """The plan with no more steps than B has room for."""
        most = max(1, total // self.min_step_budget)
        if len(plan.steps) <= most:
            return plan
        if self.too_many == "error":
            raise BudgetError(
                f"B={total} for {len(plan.steps)} steps is below min_step_budget="
                f"{self.min_step_budget} each; raise the budget, or use too_many='merge'"
            )
        return plan.merged(most)

    def _split(
        self, session: Session, root: Branch | None, plan: Plan, total: int
    ) -> Generator[Request, Any, tuple[list[int], list[float], str]]:
        """Local budgets, the weights that they follow, and a note on a fallback."""
        steps, note = len(plan.steps), ""
        if self.allocator == "uniform":
            return uniform(total, steps), [1.0] * steps, note
        if self.allocator == "bam" and total > 0:
            curves = yield from self._curves(session, root, plan)
            if curves is not None:
                form = bam.optimal if self.bam_closed == "exact" else bam.closed_form
                weights = form(curves, total)
                return allocate(total, weights, remainder="largest"), weights, note
            note = "uncertainty does not fall with the budget of some step: credits instead of BAM"
        position = position_weights(
            steps,
            self.schedule,
            power=self.power,
            base=self.base,
            cosine_floor=self.cosine_floor,
        )
        given = plan.levels if self.allocator == "levels" else plan.credits
        weights = [w * d for w, d in zip(given, position, strict=True)]
        return allocate(total, given, position, remainder=self.remainder), weights, note

    def _curves(
        self, session: Session, root: Branch | None, plan: Plan
    ) -> Generator[Request, Any, list[bam.Curve] | None]:
        if self.curves is not None:
            curves = list(self.curves(session.question, plan))
            if len(curves) != len(plan.steps):
                raise InputError(
                    f"curves gave {len(curves)} curves for {len(plan.steps)} steps; give one each"
                )
            return curves
        if root is None:
            root = yield from self._root(session, plan)
        headings, _, closing = self._scaffold(plan)
        return (yield from probe(session, root, headings, closing, self.probe_budgets, self.probes))

    # -- prompt mode ------------------------------------------------------------------------------

    def _prompted(self, session: Session, plan: Plan) -> Strategy:
        question, model = session.question, session.model
        left = _left(session)
        total = self.budget or self.level_budgets[plan.level - 1]
        total = total if left is None else min(total, left)
        planned = plan.steps != (NEUTRAL,)
        shared = planned and self.limits == "local"
        if shared:
            plan = self._fitted(plan, total)
        local: Sequence[int] = ()
        note = ""
        try:
            if shared:
                local, _, note = yield from self._split(session, None, plan, total)
            text = answer_prompt(
                _whole(question),
                question.kind,
                level=plan.level if planned else None,
                steps=plan.steps if planned else (),
                local=local,
                total=None if shared or self.limits == "none" else total,
                unit=self.unit,
            )
            asked = prompt_for(model, text, question.before)
            root = model.open(asked, self.opening, account=session.account)
            [[branch]] = yield Extend([root], session.sampling)
        except BudgetError:
            return answer_of(session, None, (), status="budget", detail=_detail(plan, note=note))
        sampled = _sampled(session, branch)
        detail = _detail(plan, total, local, (sampled,), note)
        return answer_of(session, branch, [branch], status=branch.finish, detail=detail)

    # -- enforced mode ----------------------------------------------------------------------------

    def _scaffold(self, plan: Plan) -> tuple[list[str], list[str], str]:
        """What opens each step, the text by which a model says that a step has ended, and what
        opens the answer."""
        closing = plan.closing or self.answer_prefix
        if plan.headings:
            headings, marks = list(plan.headings), list(plan.headings)
        else:
            numbered = [(n, s) for n, s in enumerate(plan.steps, 1)]
            headings = [self.heading.format(number=n, step=s) for n, s in numbered]
            marks = [self.heading.partition("{step}")[0].format(number=n) for n, _ in numbered]
        return headings, [mark.strip() for mark in [*marks[1:], closing]], closing

    def _root(self, session: Session, plan: Plan) -> Generator[Request, Any, Branch]:
        root: Branch = yield Open(self.opening)
        return session.append(root, plan.opening) if plan.opening else root

    def _enforced(self, session: Session, plan: Plan) -> Strategy:
        root = yield from self._root(session, plan)
        total, reserve = self._room(session, plan)
        plan = self._fitted(plan, total)
        used: list[int] = []
        allocated: list[int] = []
        branch, note, status = root, "", "planned"
        try:
            budgets, weights, note = yield from self._budgets(session, root, plan, total)
            if (room := self._room(session, plan)) != (total, reserve):
                # Probes have taken their part of the question's budget.
                total, reserve = room
                budgets = allocate(total, weights, remainder="largest")
            allocated = list(budgets)
            headings, marks, closing = self._scaffold(plan)
            for j, heading in enumerate(headings):
                branch = _force(session, branch, heading, "think")
                branch, spent = yield from self._step(
                    session, branch, budgets[j], (marks[j], marks[-1])
                )
                used.append(spent)
                budgets = self._after(budgets, j, spent, weights)
            branch = _force(session, branch, closing, "answer")
            sampling = replace(session.sampling, max_tokens=reserve)
            [[branch]] = yield Extend([branch], sampling, stage="answer")
        except BudgetError:
            status = "budget"
        detail = _detail(plan, total, allocated, used, note)
        chosen = branch if branch is not root else None
        ends = [branch] if chosen is not None else []
        return answer_of(session, chosen, ends, status=status, detail=detail)

    def _budgets(
        self, session: Session, root: Branch, plan: Plan, total: int
    ) -> Generator[Request, Any, tuple[list[int], list[float], str]]:
        steps = len(plan.steps)
        if self.limits == "local":
            return (yield from self._split(session, root, plan, total))
        if self.limits == "global":
            return [total] * steps, [1.0] * steps, ""
        return [session.sampling.max_tokens] * steps, [1.0] * steps, ""

    def _step(
        self, session: Session, branch: Branch, room: int, ends: tuple[str, str]
    ) -> Generator[Request, Any, tuple[Branch, int]]:
        """One step: at most `room` sampled tokens; the branch without the mark that ended it."""
        if room < 1:
            return branch, 0
        stop = tuple(dict.fromkeys((*session.sampling.stop, *ends)))
        sampling = replace(
            session.sampling,
            max_tokens=room,
            stop=tuple(text for text in stop if text),
            # End-of-text is dropped with the other marks, so that the branch can go on.
            stop_token_ids=tuple(sorted(getattr(session.model, "eos_ids", ()))),
            include_stop=False,
        )
        [[child]] = yield Extend([branch], sampling)
        return (child if child.text else branch), _sampled(session, child)

    def _after(self, budgets: list[int], j: int, spent: int, weights: Sequence[float]) -> list[int]:
        """The budgets after step j has spent its part."""
        done, rest = budgets[: j + 1], budgets[j + 1 :]
        if self.limits == "none":
            return budgets
        if self.limits == "global":
            return [*done, *(budget - spent for budget in rest)]
        return [*done, *roll_over(budgets[j] - spent, rest, weights[j + 1 :], self.rollover)]


def _left(session: Session) -> int | None:
    """Tokens that the question's budget has for thinking."""
    meter = session.account.meter
    return None if meter is None else meter.remaining("think")


def _whole(question: Question) -> str:
    """The question as it was asked, with any context that its bare text leaves out."""
    prompt = question.prompt
    if isinstance(prompt, str):
        return prompt
    asked = [
        turn["content"] for turn in prompt if isinstance(turn, dict) and turn["role"] == "user"
    ]
    return asked[-1] if asked else question.text


def _force(session: Session, branch: Branch, text: str, stage: Stage) -> Branch:
    """The branch with `text`, of which a step that was cut may have written the beginning."""
    if branch.finish != "forced":
        sizes = range(min(len(text), len(branch.text)), 0, -1)
        done = next((size for size in sizes if branch.text.endswith(text[:size])), 0)
        text = text[done:]
    return session.append(branch, text, stage=stage) if text else branch


def _sampled(session: Session, branch: Branch) -> int:
    """Tokens sampled for a branch, the mark that was dropped from it included."""
    entries = session.account.ledger.entries
    return sum(entry.generated for entry in entries if entry.branch == branch.id)


def _as_plan(made: Any, text: str, name: str) -> Plan:
    """What a planner gave, as a plan: a list of steps gets equal credits, anything else is a
    fallback that says so."""
    if isinstance(made, Plan):
        return replace(made, question_hash=question_hash(text), planner_id=name)
    if (
        isinstance(made, list | tuple)
        and made
        and all(isinstance(step, str) and step.strip() for step in made)
    ):
        return Plan(
            tuple(made), (1.0,) * len(made), question_hash=question_hash(text), planner_id=name
        )
    note = f"the planner gave {type(made).__name__}, no plan or list of steps: solved directly"
    warnings.warn(note, stacklevel=2)
    return neutral(text, planner_id=name, note=note)


def _detail(
    plan: Plan,
    total: int = 0,
    allocated: Sequence[int] = (),
    used: Sequence[int] = (),
    note: str = "",
) -> dict[str, Any]:
    return {
        "plan": plan.to_dict(),
        "budget": total,
        "allocated": list(allocated),
        "used": list(used),
        "note": "; ".join(text for text in (plan.note, note) if text),
    }
