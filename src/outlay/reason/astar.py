"""A*-decoding: one priority queue over all partial solutions, always extending the best one.

"A*-Decoding: Token-Efficient Inference Scaling" (arXiv 2505.13672). A state is the prompt and the
steps so far; its successors are k sampled next steps. With r in [0, 1] the verifier's score of the
steps so far, h = 1 - r, g is a cost added up along the path, and the state with the smallest
f = g + h is extended next. The search ends when that state is a finished solution. A branch that
decays is left for an older sibling, and no dead branch is finished.

Where this differs from the paper, or fills in what the sources read do not say: the cost formula,
k and the limits could not be verified, so the cost is a knob (a reward that drops is paid for ever
by default), steps out of the prompt have no drop to pay for, and ties go to the better score, the
deeper and then the older state. Successors with the same text are merged. The verifier may look
less often (`stride`, `judge_agreed`), where its passes cost more than sampling. A goal must carry
an answer that can be read. An expansion that does not fit into what is left is not started: then
the best goal made so far answers, or the best open state is completed greedily from a reserve.
h is no true cost-to-go and verifiers are noisy: no optimality is claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from outlay.errors import BudgetError, InputError
from outlay.models.base import Branch
from outlay.reason.astar_search import Search
from outlay.reason.astar_states import COSTS, Cost, State
from outlay.reason.base import Extend, Open, Session, Strategy, Verifier
from outlay.reason.search import Node, Nodes, check_steps, expand
from outlay.reason.voting import Aggregate, Solving, aggregate

StopRule = Literal["first_goal", "m_goals"]


@dataclass(frozen=True)
class AStarDecoding(Solving):
    """A*-decoding.

    Args:
        verifier: scores the steps of partial solutions.
        k: successors of a state.
        cost: of a step. "increase": by how much h rises (a drop of the reward is paid for ever).
            "decrease": by how much h falls (f never falls along a path). "zero": nothing, which is
            best-first search on the reward. "length": `lam`. "logprob": `lam` times the mean
            negative log-probability of the step's tokens.
        lam: weight of "length" and "logprob"; small, since these are on another scale than 1 - r.
        agg: how r follows from the scores of the steps.
        stop_rule: "first_goal" ends with the first goal that comes up as the best state; "m_goals"
            collects `m` of them and votes, weighted by r.
        m: goals of "m_goals".
        frontier_cap: most open states; None keeps all.
        r_min: successors with a lower r are dropped.
        width: states expanded at a time. 1 is the published search; with as many as there are it
            is breadth-first.
        merge_duplicates: keep one of the successors with equal text.
        stride: steps sampled between two looks of the verifier, which judges them in one pass. 1
            is the published search.
        judge_agreed: False saves the pass where all k successors of a state are one text: it keeps
            its parent's score, and is judged with the next step at which samples differ.
        k_min: k grows from here to `k` with h, which spends samples where the verifier is unsure;
            None samples `k` everywhere.
        calibrate: subtract from h its mean over the states of the same depth (0.5 stays the
            middle), for verifiers that drift with depth.
        max_steps: longest path.
        step_tokens: longest step; without a delimiter the step ends here.
        answer_reserve: tokens kept for a greedy completion, at most a quarter of what the budget
            has.
        max_expansions: most expansions; None leaves the limit to the budget.
        max_passes: most verifier passes; one judges one new state.

    Raises:
        InputError: for values out of range.
    """

    verifier: Verifier
    k: int = 4
    cost: Cost = "increase"
    lam: float = 0.02
    agg: Aggregate = "last"
    stop_rule: StopRule = "first_goal"
    m: int = 3
    frontier_cap: int | None = None
    r_min: float = 0.0
    width: int = 1
    merge_duplicates: bool = True
    stride: int = 1
    judge_agreed: bool = True
    k_min: int | None = None
    calibrate: bool = False
    max_steps: int = 40
    step_tokens: int = 256
    answer_reserve: int = 256
    max_expansions: int | None = 256
    max_passes: int | None = None

    def __post_init__(self) -> None:
        least_one = ("k", "m", "width", "frontier_cap", "stride", "k_min", "answer_reserve")
        for name in (*least_one, "max_expansions", "max_passes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value}; must be at least 1")
        if self.k_min is not None and self.k_min > self.k:
            raise InputError(f"k_min={self.k_min} exceeds k={self.k}")
        if not self.judge_agreed and not self.merge_duplicates:
            raise InputError("judge_agreed=False saves passes of merged successors; merge them")
        if self.cost not in COSTS:
            raise InputError(f"cost={self.cost!r}; choose {', '.join(COSTS)}")
        if self.stop_rule not in ("first_goal", "m_goals"):
            raise InputError(f"stop_rule={self.stop_rule!r}; choose first_goal or m_goals")
        if not self.lam >= 0:
            raise InputError(f"lam={self.lam}; must be at least 0")
        if not 0 <= self.r_min <= 1:
            raise InputError(f"r_min={self.r_min}; rewards lie in [0, 1]")
        check_steps(self.step_tokens, self.max_steps)
        aggregate((), self.agg)

    def plan(self, session: Session) -> Strategy:
        """The strategy for one question.

        Raises:
            InputError: where nothing limits the search, or the prompt leaves no room to answer.
            CapabilityError: for a model without stop strings (or log-probabilities, for
                cost="logprob").
        """
        session = self._ready(session)
        root: Branch = yield Open()
        room = session.model.context_length - len(root.path())
        if room < self.answer_reserve:
            raise InputError(
                f"the prompt leaves {room} tokens of the window of {session.model.name}, less than "
                f"answer_reserve={self.answer_reserve}; shorten the prompt or lower answer_reserve"
            )
        search = Search(self, session, State(Node(root)))
        try:
            while states := search.take():
                k = max(self._successors(state) for state in states)
                limit = search.step_limit(len(states) * k)
                rows = yield from expand(
                    session,
                    [state.node for state in states],
                    k,
                    step_tokens=limit,
                    first=search.made + 1,
                )
                for _ in range(1, self.stride):
                    rows = yield from self._further(session, rows, limit)
                parents, nodes = search.sift(states, rows)
                search.add(parents, (yield from search.judged(nodes)))
        except BudgetError:
            search.interrupt()
        if search.found or search.goals:
            return search.answer()
        state = search.best_open()
        branch = state.node.branch
        greedy = replace(
            session.sampling,
            temperature=0.0,
            max_tokens=min(self.answer_reserve, session.sampling.max_tokens),
        )
        try:
            [[branch]] = yield Extend([branch], greedy)
        except BudgetError:
            search.stop = "budget"
        return search.completed(branch)

    def _ready(self, session: Session) -> Session:
        needs = ("stop", "logprobs") if self.cost == "logprob" else ("stop",)
        session.model.capabilities.require("AStarDecoding", *needs, model=session.model.name)
        meter = session.account.meter
        if self.max_expansions is None and self.max_passes is None:
            budget = None if meter is None else meter.budget
            limits = ("tokens", "usd", "flops", "seconds", "calls")
            if budget is None or all(getattr(budget, name) is None for name in limits):
                raise InputError(
                    "nothing limits the search; give a budget, max_expansions or max_passes"
                )
        if self.cost == "logprob":
            return replace(session, sampling=replace(session.sampling, logprobs=True))
        return session

    def _further(self, session: Session, rows: Sequence[Sequence[Node]], limit: int) -> Nodes:
        """The successors with one more step, where they are not at their end."""
        places = [
            (at, i)
            for at, row in enumerate(rows)
            for i, node in enumerate(row)
            if not node.finished and len(node.steps) < self.max_steps
        ]
        made = [list(row) for row in rows]
        if places:
            longer = yield from expand(
                session,
                [rows[at][i] for at, i in places],
                1,
                step_tokens=limit,
                seeds=[i for _, i in places],  # equal siblings go on in different ways
            )
            for (at, i), [node] in zip(places, longer, strict=True):
                made[at][i] = replace(node, order=rows[at][i].order)
        return made

    def _successors(self, state: State) -> int:
        if self.k_min is None:
            return self.k
        return self.k_min + round(min(1.0, max(0.0, state.h)) * (self.k - self.k_min))
