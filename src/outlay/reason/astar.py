"""A*-decoding: one priority queue over all partial solutions, always extending the best one.

"A*-Decoding: Token-Efficient Inference Scaling" (arXiv 2505.13672). A state is the prompt and the
steps so far; its successors are k sampled next steps. With r in [0, 1] the verifier's score of the
steps so far, h = 1 - r, g is a cost added up along the path, and the state with the smallest
f = g + h is extended next. The search ends when that state is a finished solution. A branch that
decays is left for an older sibling, and no dead branch is finished.

Where this differs from the paper, or fills in what the sources read do not say: the cost formula,
k and the limits could not be verified, so the cost is a knob (a reward that drops is paid for ever
by default), steps out of the prompt have no drop to pay for, and ties go to the better score, the
deeper and then the older state. Successors with the same text are merged. A goal must carry an
answer that can be read. An expansion that does not fit into what is left is not started: then the
best goal made so far answers, or the best open state is completed greedily from a reserve.
h is no true cost-to-go and verifiers are noisy: no optimality is claimed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from outlay.errors import BudgetError, InputError
from outlay.models.base import Branch
from outlay.reason.astar_states import COSTS, Cost, Frontier, State, step_cost
from outlay.reason.base import Answer, Extend, Open, Session, Strategy, Verifier
from outlay.reason.search import Node, check_steps, expand, judge
from outlay.reason.voting import Aggregate, Solving, aggregate, answer_of

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
    k_min: int | None = None
    calibrate: bool = False
    max_steps: int = 40
    step_tokens: int = 256
    answer_reserve: int = 256
    max_expansions: int | None = 256
    max_passes: int | None = None

    def __post_init__(self) -> None:
        least_one = ("k", "m", "width", "frontier_cap", "k_min", "answer_reserve")
        for name in (*least_one, "max_expansions", "max_passes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value}; must be at least 1")
        if self.k_min is not None and self.k_min > self.k:
            raise InputError(f"k_min={self.k_min} exceeds k={self.k}")
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
        search = _Search(self, session, State(Node(root)))
        try:
            while states := search.take():
                k = max(self._successors(state) for state in states)
                rows = yield from expand(
                    session,
                    [state.node for state in states],
                    k,
                    step_tokens=search.step_limit(len(states) * k),
                    first=search.made + 1,
                )
                parents, nodes = search.sift(states, rows)
                search.add(parents, (yield from judge(self.verifier, nodes)))
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

    def _successors(self, state: State) -> int:
        if self.k_min is None:
            return self.k
        return self.k_min + round(min(1.0, max(0.0, state.h)) * (self.k - self.k_min))


@dataclass
class _Search:
    """The books of one search."""

    method: AStarDecoding
    session: Session
    root: State
    found: list[State] = field(default_factory=list)  # goals that came up as the best state
    goals: list[State] = field(default_factory=list)  # all goals
    stuck: list[State] = field(default_factory=list)  # too deep, or below r_min
    depths: list[int] = field(default_factory=list)  # of the expanded states
    taken: list[State] = field(default_factory=list)  # being expanded
    made: int = 0
    passes: int = 0
    duplicates: int = 0
    dead: int = 0
    dropped: int = 0
    pruned: int = 0
    longest: int = 1
    ended: int = 0  # steps that ended at the delimiter
    cut: int = 0  # steps that ended at step_tokens
    stop: str = ""

    def __post_init__(self) -> None:
        self.open = Frontier(self.method.frontier_cap)
        self.open.push(self.root)
        left = self._left()
        self.reserve = 0 if left is None else min(self.method.answer_reserve, left // 4)
        self._means: dict[int, tuple[float, int]] = {}

    def _left(self) -> int | None:
        """Sampled tokens that the budget still has; None without a limit."""
        meter = self.session.account.meter
        if meter is None or meter.budget.counts == "prompt":
            return None
        return meter.remaining("think")

    def take(self) -> list[State]:
        """The states to expand now; none when the search is over."""
        method = self.method
        width = method.width
        if method.max_expansions is not None:
            width = min(width, max(1, method.max_expansions - len(self.depths)))
        while len(self.open):
            batch: list[State] = []
            aside: list[State] = []
            while len(self.open) and len(batch) + len(aside) < width:
                state = self.open.pop()
                if state.goal:
                    if batch:
                        aside.append(state)
                        continue
                    self.found.append(state)
                    if method.stop_rule == "first_goal" or len(self.found) == method.m:
                        self.stop = "goal"
                        return []
                elif state.depth >= method.max_steps:
                    self.stuck.append(state)
                else:
                    batch.append(state)
            for state in aside:
                self.open.push(state)
            if batch:
                if stop := self._misfit(batch):
                    self.stop = stop
                    for state in batch:
                        self.open.push(state)
                    return []
                self.depths += [state.depth for state in batch]
                self.taken = batch
                return batch
        self.stop = "exhausted"
        return []

    def interrupt(self) -> None:
        """The budget ended an expansion: its states are open again."""
        self.stop = "budget"
        del self.depths[len(self.depths) - len(self.taken) :]
        for state in self.taken:
            self.open.push(state)

    def _misfit(self, batch: Sequence[State]) -> str:
        """Why expanding `batch` does not fit into what is left; "" where it does."""
        method = self.method
        children = len(batch) * method.k
        limit = method.max_expansions
        if limit is not None and len(self.depths) + len(batch) > limit:
            return "max_expansions"
        if method.max_passes is not None and self.passes + children > method.max_passes:
            return "max_passes"
        if self.step_limit(children) < min(self.longest, method.step_tokens):
            return "tokens"
        return ""

    def step_limit(self, children: int) -> int:
        """Most tokens of each of `children` steps, so that the reserve is left."""
        left = self._left()
        if left is None:
            return self.method.step_tokens
        return min(self.method.step_tokens, max(0, left - self.reserve) // children)

    def sift(
        self, states: Sequence[State], rows: Sequence[Sequence[Node]]
    ) -> tuple[list[State], list[Node]]:
        """The successors worth a verifier's pass, and the parent of each."""
        delimiter = self.session.question.delimiter
        limit = min(self.method.step_tokens, self.session.sampling.max_tokens)
        kept: list[tuple[State, Node]] = []
        for state, row in zip(states, rows, strict=True):
            self.made += len(row)
            seen: set[tuple[str, bool]] = set()
            for node in row:
                branch = node.branch
                self.longest = max(self.longest, len(branch.token_ids))
                self.ended += branch.text.endswith(delimiter)
                self.cut += branch.finish == "length" and len(branch.token_ids) >= limit
                same = (branch.text, node.finished)
                blank = not node.finished and not branch.text.removesuffix(delimiter).strip()
                if blank or (self.method.merge_duplicates and same in seen):
                    self.duplicates += 1
                elif node.finished and self.session.question.answer(node.text) is None:
                    self.dead += 1
                else:
                    seen.add(same)
                    kept.append((state, node))
                    continue
                self.session.model.release(branch)
        self.passes += sum(len(node.steps) > len(node.scores) for _, node in kept)
        return [state for state, _ in kept], [node for _, node in kept]

    def add(self, parents: Sequence[State], nodes: Sequence[Node]) -> None:
        """Push judged successors, and prune."""
        method = self.method
        rewards = [aggregate(node.scores, method.agg) for node in nodes]
        for parent, reward in zip(parents, rewards, strict=True):
            total, count = self._means.get(parent.depth + 1, (0.0, 0))
            self._means[parent.depth + 1] = total + 1 - reward, count + 1
        for parent, node, reward in zip(parents, nodes, rewards, strict=True):
            depth, h = parent.depth + 1, 1 - reward
            if method.calibrate:
                total, count = self._means[depth]
                h += 0.5 - total / count
            paid = step_cost(method.cost, method.lam, parent, h, node.branch.logprobs)
            state = State(node, reward, h, parent.g + paid, depth, node.finished)
            if reward < method.r_min:
                self.dropped += 1
                if not state.goal:
                    self.stuck.append(state)
                continue
            if state.goal:
                self.goals.append(state)
            self.open.push(state)
        for state in self.open.prune():
            self.pruned += 1
            self.session.model.release(state.node.branch)

    def best_open(self) -> State:
        """The best state that can be continued; the prompt where there is none."""
        rest = [*self.open.states(), *self.stuck]
        return min(rest, key=lambda state: state.key, default=self.root)

    def answer(self) -> Answer:
        """The answer of the goals that came up, or of the best one made so far."""
        branches = [state.node.branch for state in self.goals]
        scores = [state.reward for state in self.goals]
        if not self.found:
            best, status = min(self.goals, key=lambda state: state.key), "budget_goal"
        elif len(self.found) == 1:
            best, status = self.found[0], "goal"
        else:
            question = self.session.question
            answers = [question.answer(state.node.text) for state in self.found]
            vote = question.vote(answers, [state.reward for state in self.found])
            best, status = self.found[vote.index], "goal"
        chosen = best.node.branch
        return answer_of(
            self.session, chosen, branches, status=status, scores=scores, detail=self._detail()
        )

    def completed(self, branch: Branch) -> Answer:
        """The answer of a branch that was completed without looking."""
        chosen = branch if branch.depth else None
        return answer_of(
            self.session,
            chosen,
            [branch] if chosen else [],
            status="completed_greedily",
            detail=self._detail(),
        )

    def _detail(self) -> dict[str, Any]:
        if self.cut and not self.ended:
            warnings.warn(
                f"no step of {self.session.question.id or 'the question'} ended with the delimiter "
                f"{self.session.question.delimiter!r} within step_tokens="
                f"{self.method.step_tokens}; steps of that length were searched",
                UserWarning,
                stacklevel=2,
            )
        histogram = [self.depths.count(d) for d in range(max(self.depths, default=-1) + 1)]
        return {
            "stopped": self.stop,
            "expansions": len(self.depths),
            "expansions_by_depth": histogram,
            "nodes": self.made,
            "passes": self.passes,
            "duplicates": self.duplicates,
            "goals": len(self.goals),
            "dead": self.dead,
            "dropped": self.dropped,
            "pruned": self.pruned,
        }
