"""The books of one A* search: what is open, what was found, and what still fits."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outlay.models.base import Branch
from outlay.reason.astar_states import Frontier, State, step_cost
from outlay.reason.base import Answer, Request, Session
from outlay.reason.search import Node, judge
from outlay.reason.voting import aggregate, answer_of

if TYPE_CHECKING:
    from outlay.reason.astar import AStarDecoding


@dataclass
class Search:
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
        self._agreed: set[int] = set()  # orders of successors that all samples of a state became

    def _left(self) -> int | None:
        """Sampled tokens that the budget still has; None without a limit."""
        meter = self.session.account.meter
        if meter is None or meter.budget.shapes_prompt:
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
                elif len(state.node.steps) >= method.max_steps:
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
        """Most tokens of each step of `children` successors, so that the reserve is left."""
        left = self._left()
        if left is None:
            return self.method.step_tokens
        steps = children * self.method.stride
        return min(self.method.step_tokens, max(0, left - self.reserve) // steps)

    def sift(
        self, states: Sequence[State], rows: Sequence[Sequence[Node]]
    ) -> tuple[list[State], list[Node]]:
        """The successors worth a verifier's look, and the parent of each."""
        delimiter = self.session.question.delimiter
        limit = min(self.method.step_tokens, self.session.sampling.max_tokens)
        kept: list[tuple[State, Node]] = []
        for state, row in zip(states, rows, strict=True):
            self.made += len(row)
            seen: set[tuple[str, bool]] = set()
            for node in row:
                branch = node.branch
                steps = node.steps[len(state.node.steps) :]
                self.longest = max(self.longest, len(branch.token_ids))
                self.ended += branch.text.endswith(delimiter)
                self.cut += branch.finish == "length" and len(branch.token_ids) >= limit
                same = ("".join(steps), node.finished)
                ends = steps[-1] if branch.text else ""
                blank = not node.finished and not ends.removesuffix(delimiter).strip()
                if blank or (self.method.merge_duplicates and same in seen):
                    self.duplicates += 1
                elif node.finished and self.session.question.answer(node.text) is None:
                    self.dead += 1
                else:
                    seen.add(same)
                    kept.append((state, node))
                    continue
                self.session.model.release(branch)
            first = row[0]
            if all(n.text == first.text and n.finished == first.finished for n in row):
                self._agreed.add(first.order)
        return [state for state, _ in kept], [node for _, node in kept]

    def judged(self, nodes: Sequence[Node]) -> Generator[Request, Any, list[Node]]:
        """The nodes with scores; what all samples agreed on waits, where the search says so."""
        due = [node for node in nodes if self.method.judge_agreed or node.order not in self._agreed]
        self.passes += sum(len(node.steps) > len(node.scores) for node in due)
        found = yield from judge(self.method.verifier, due)
        by_order = {node.order: node for node in found}
        return [by_order.get(node.order, node) for node in nodes]

    def add(self, parents: Sequence[State], nodes: Sequence[Node]) -> None:
        """Push judged successors, and prune."""
        method = self.method
        rewards = [
            parent.reward
            if len(node.scores) < len(node.steps)  # not judged yet
            else aggregate(node.scores, method.agg)
            for parent, node in zip(parents, nodes, strict=True)
        ]
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
