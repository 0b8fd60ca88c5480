"""The baselines: one greedy answer, and many samples with a vote.

- `Greedy`: one completion at temperature 0.
- `SelfConsistency` (Wang et al., arXiv 2203.11171): n samples, the most frequent answer. Samples
  may be drawn in waves, and drawing stops when no later sample can change the winner.
- `BestOfN`: n samples, a verifier's score each; the answer with the largest sum of scores, or that
  of the single best sample.
- `Shortest`: n samples, the answer of the shortest one that has an answer.

Votes compare answers by equivalence, and a sample without an answer never wins. A budget counts
every sampled token; what it cuts off counts as a sample without an answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from outlay.budget import Budget
from outlay.errors import BudgetError, InputError
from outlay.models.base import Account, Branch, Model, SamplingParams
from outlay.reason.base import (
    Answer,
    Extend,
    Open,
    Question,
    Request,
    Score,
    Session,
    Strategy,
    Verifier,
)
from outlay.reason.engine import solve
from outlay.worst import Shape, Worst

Part = Generator[Request, Any, list[Branch]]  # a piece of a strategy that makes branches
_SAMPLED = SamplingParams(temperature=0.8, max_tokens=512)
Aggregate = Literal["last", "min", "prod", "mean"]


def aggregate(scores: Sequence[float], how: Aggregate) -> float:
    """One score of a solution from those of its steps; 0 without steps.

    Raises:
        InputError: for an unknown rule.
    """
    if how not in ("last", "min", "prod", "mean"):
        raise InputError(f"agg={how!r}; choose last, min, prod or mean")
    if not scores:
        return 0.0
    if how == "prod":
        product = 1.0
        for score in scores:
            product *= score
        return product
    return {"last": scores[-1], "min": min(scores), "mean": sum(scores) / len(scores)}[how]


def answer_of(
    session: Session,
    chosen: Branch | None,
    branches: Sequence[Branch],
    *,
    status: str,
    scores: Sequence[float] = (),
    detail: dict[str, object] | None = None,
) -> Answer:
    """The answer that `chosen` carries; its path is marked as delivered."""
    if chosen is None:
        text, value = "", None
    else:
        session.account.ledger.deliver(chosen.ids())
        text = chosen.completion()
        value = session.question.answer(text)
    return Answer(
        text,
        value,
        tuple(branches),
        session.account.ledger,
        status,
        tuple(scores),
        detail or {},
        chosen,
    )


class Solving(ABC):
    """What every reasoner's `solve` is: its strategy, run for one question."""

    whole_samples: ClassVar[bool] = False
    """Whether it samples whole answers of the prompt alone: any decode method can then make them
    (see `reason.decoded`)."""

    @abstractmethod
    def plan(self, session: Session) -> Strategy:
        """The strategy for one question."""

    def solve(
        self,
        model: Model,
        question: Question,
        budget: Budget | None = None,
        sampling: SamplingParams = _SAMPLED,
        *,
        account: Account | None = None,
    ) -> Answer:
        """Answer one question within `budget`.

        Args:
            model: local, embedded or behind an endpoint.
            question: what to answer.
            budget: of the whole question.
            sampling: temperature, seed, the longest completion.
            account: books of the question; None opens new ones with `budget`.
        """
        return solve(self, model, question, budget, sampling, account=account)


class Sampling(Solving):
    """What the baselines are: n whole samples of the prompt."""

    whole_samples: ClassVar[bool] = True
    n: int

    def needs(self) -> tuple[str, ...]:
        """Nothing beyond sampling."""
        return ()

    def worst(self, shape: Shape) -> Worst:
        """n answers; a server that knows `n` reads the prompt once only."""
        return shape.sample * self.n


@dataclass(frozen=True)
class Greedy(Sampling):
    """One completion at temperature 0."""

    n: ClassVar[int] = 1  # type: ignore[misc]  # no knob here

    def plan(self, session: Session) -> Strategy:
        """The strategy for one question."""
        root = yield Open()
        try:
            [[branch]] = yield Extend([root], replace(session.sampling, temperature=0.0))
        except BudgetError:
            return answer_of(session, None, (), status="budget")
        return answer_of(session, branch, [branch], status=branch.finish)


@dataclass(frozen=True)
class SelfConsistency(Sampling):
    """Majority vote over n samples.

    Args:
        n: samples at most.
        wave: samples drawn at a time; None draws all at once.
        early_stop: stop between waves once no later sample can change the winner.

    Raises:
        InputError: for n or wave < 1.
    """

    n: int = 16
    wave: int | None = None
    early_stop: bool = True

    def __post_init__(self) -> None:
        if self.n < 1 or (self.wave is not None and self.wave < 1):
            raise InputError(f"n={self.n}, wave={self.wave}; both must be at least 1")

    def plan(self, session: Session) -> Strategy:
        """The strategy for one question."""
        root = yield Open()
        branches: list[Branch] = []
        status = "voted"
        while len(branches) < self.n and not (
            self.early_stop and decided(session.question, branches, self.n)
        ):
            try:
                branches += yield from draw(session, root, self.n, self.wave, len(branches))
            except BudgetError:
                status = "budget"
                break
        if not branches:
            return answer_of(session, None, (), status="budget")
        answers = [session.question.answer(branch.completion()) for branch in branches]
        vote = session.question.vote(answers)
        return answer_of(session, branches[vote.index], branches, status=status)


def draw(session: Session, root: Branch, n: int, wave: int | None, done: int) -> Part:
    """The next samples of `root`: at most `wave` of n, `done` of which exist.

    Sample i has its own seed, so that it is the same whatever the waves.
    """
    size = min(n - done, wave or n)
    each = [
        replace(session.sampling, seed=session.sampling.seed + i) for i in range(done, done + size)
    ]
    rows = yield Extend([root] * size, each)
    return [row[0] for row in rows]


def decided(question: Question, branches: Sequence[Branch], n: int) -> bool:
    """Whether no outcome of the samples still to come can change the winner."""
    if not branches:
        return False
    answers = [question.answer(branch.completion()) for branch in branches]
    vote = question.vote(answers)
    counts = [(len(members), answers[members[0]] is not None) for members in vote.groups]
    real = sorted((size for size, given in counts if given), reverse=True)
    if not real:
        return False
    second = real[1] if len(real) > 1 else 0
    return real[0] > second + (n - len(branches))


@dataclass(frozen=True)
class BestOfN(Sampling):
    """n samples, judged by a verifier.

    Args:
        verifier: judges whole solutions, step by step.
        n: samples.
        vote: "weighted" takes the answer with the largest sum of scores, "naive" the best sample's.
        agg: how a solution's score follows from its steps'.

    Raises:
        InputError: for n < 1 or an unknown rule.
    """

    verifier: Verifier
    n: int = 16
    vote: Literal["weighted", "naive"] = "weighted"
    agg: Aggregate = "last"

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"n={self.n}; must be at least 1")
        if self.vote not in ("weighted", "naive"):
            raise InputError(f"vote={self.vote!r}; choose weighted or naive")
        aggregate((), self.agg)

    def plan(self, session: Session) -> Strategy:
        """The strategy for one question."""
        question = session.question
        root = yield Open()
        try:
            branches = yield from draw(session, root, self.n, None, 0)
        except BudgetError:
            return answer_of(session, None, (), status="budget")
        steps = [question.steps(branch.completion()) for branch in branches]
        rows = yield Score(self.verifier, steps, [()] * len(steps))
        scores = [aggregate(row, self.agg) for row in rows]
        return pick(session, branches, scores, self.vote, status="voted")


def pick(
    session: Session,
    branches: Sequence[Branch],
    scores: Sequence[float],
    vote: Literal["weighted", "naive"],
    *,
    status: str,
) -> Answer:
    """The answer of scored candidates: by the sum of scores, or that of the best one."""
    question = session.question
    answers = [question.answer(branch.completion()) for branch in branches]
    if vote == "weighted":
        index = question.vote(answers, scores).index
    else:
        order = range(len(branches))
        index = min(order, key=lambda i: (answers[i] is None, -scores[i], i))
    return answer_of(session, branches[index], branches, status=status, scores=scores)


@dataclass(frozen=True)
class Shortest(Sampling):
    """n samples; the answer of the shortest one that has an answer.

    Args:
        n: samples.

    Raises:
        InputError: for n < 1.
    """

    n: int = 16

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"n={self.n}; must be at least 1")

    def plan(self, session: Session) -> Strategy:
        """The strategy for one question."""
        question = session.question
        root = yield Open()
        try:
            branches = yield from draw(session, root, self.n, None, 0)
        except BudgetError:
            return answer_of(session, None, (), status="budget")
        best = min(
            branches,
            key=lambda b: (question.answer(b.completion()) is None, len(b.completion_ids())),
        )
        return answer_of(session, best, branches, status="shortest")
