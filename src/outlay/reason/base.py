"""Better use of many steps: the room's protocols.

A *reasoner* answers a question with as many calls as it likes, within a budget. It is written as a
*strategy*: a generator that yields requests (`Open`, `Extend`, `Score`) and gets their results, so
that `engine.run` can batch the requests of many questions into one call of the model. Nothing in a
strategy depends on what else is in the batch.

A *verifier* judges partial solutions step by step (a process reward model).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

from outlay.budget import Budget
from outlay.errors import InputError
from outlay.evals.answers import AnswerKind, Equivalent, Vote, extract, majority, weighted
from outlay.ledger import Ledger, Role, Stage
from outlay.models.base import Account, Branch, Message, Model, Prompt, SamplingParams, Trail


@dataclass(frozen=True)
class Question:
    """What a reasoner has to answer, and how answers are read and compared.

    Args:
        prompt: what the model gets.
        text: the question alone, for planners and verifiers; "" takes a prompt that is text.
        kind: of the answer, see `outlay.evals.answers.extract`.
        options: of a multiple-choice question.
        read: reads the answer out of a completion, for kind "custom"; None where there is none.
        equal: equivalence of two answers, for kind "custom"; None compares texts.
        delimiter: ends a step.
        id: name of the question.
    """

    prompt: Prompt
    text: str = ""
    kind: AnswerKind = "text"
    options: tuple[str, ...] = ()
    read: Callable[[str], str | None] | None = None
    equal: Equivalent | None = None
    delimiter: str = "\n\n"
    id: str = ""

    def __post_init__(self) -> None:
        if not self.delimiter:
            raise InputError("delimiter is empty; give the text that ends a step, such as '\\n\\n'")
        if not self.text and isinstance(self.prompt, str):
            object.__setattr__(self, "text", self.prompt)

    @property
    def before(self) -> tuple[Message, ...]:
        """The messages of a chat before the one that asks (the last one of the user)."""
        if isinstance(self.prompt, str) or not all(isinstance(turn, dict) for turn in self.prompt):
            return ()
        turns = cast(Sequence[Message], self.prompt)
        asked = [at for at, turn in enumerate(turns) if turn["role"] == "user"]
        return tuple(turns[: asked[-1]]) if asked else ()

    def answer(self, completion: str) -> str | None:
        """The answer in a completion, None where there is none."""
        return extract(completion, self.kind, options=self.options, custom=self.read)

    def vote(self, answers: Sequence[str | None], scores: Sequence[float] | None = None) -> Vote:
        """The majority among `answers`, weighted by `scores` where they are given."""
        same = self.equal or operator.eq
        if scores is None:
            return majority(answers, self.kind, custom=same)
        return weighted(answers, scores, self.kind, custom=same)

    def steps(self, completion: str) -> tuple[str, ...]:
        """A completion cut after every delimiter; the pieces join to the completion."""
        parts = completion.split(self.delimiter)
        steps = [part + self.delimiter for part in parts[:-1]] + parts[-1:]
        return tuple(step for step in steps if step)


@dataclass(frozen=True)
class Answer:
    """What a reasoner found.

    Args:
        text: the completion that carries the answer.
        value: the answer read from it; None if no completion had one.
        branches: ends of all candidate solutions, in the order in which they were made.
        ledger: everything that was spent.
        status: how the answer came about ("voted", "goal", "budget", ...).
        scores: of the candidates, where a verifier judged them.
        detail: anything else that a report may show (JSON-ready).
        chosen: end of the completion that carries the answer; None if nothing was generated.
    """

    text: str
    value: str | None
    branches: tuple[Branch, ...]
    ledger: Ledger
    status: str = ""
    scores: tuple[float, ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)
    chosen: Branch | None = None


@runtime_checkable
class Verifier(Protocol):
    """A process reward model."""

    def score(
        self,
        questions: Sequence[Question],
        paths: Sequence[Sequence[str]],
        known: Sequence[Sequence[float]],
        *,
        accounts: Sequence[Account],
    ) -> list[list[float]]:
        """A score in [0, 1] for every step of every path: how likely all is right so far.

        Steps that an account's budget leaves no room to judge get 0.5: `BudgetError` is not raised,
        since it would stop the other questions of the call.

        Args:
            questions: one per path.
            paths: partial or whole solutions, cut into steps.
            known: scores of each path's first steps from earlier calls: given back as they are, at
                no cost.
            accounts: one per path; what the verifier reads and writes is booked there, in the
                role "verifier".

        Raises:
            ModelError: for scores that are not numbers in [0, 1].
        """
        ...


@dataclass(frozen=True)
class Open:
    """Ask for the root of the question's tree."""

    prefix: str = ""


@dataclass(frozen=True)
class Extend:
    """Ask for n sampled children of every branch; the result is [branch][child].

    With `trail`, the children keep means of their hidden states, which `LatentModel.hidden` reads.
    """

    branches: Sequence[Branch]
    sampling: SamplingParams | Sequence[SamplingParams]
    n: int = 1
    stage: Stage = "think"
    role: Role = "target"
    trail: Trail | None = None


@dataclass(frozen=True)
class Score:
    """Ask for a verifier's scores; the result is [path][step].

    Args:
        verifier: who judges.
        paths: solutions, cut into steps.
        known: scores of each path's first steps, as far as they are known.
    """

    verifier: Verifier
    paths: Sequence[Sequence[str]]
    known: Sequence[Sequence[float]]


Request = Open | Extend | Score
Strategy = Generator[Request, Any, Answer]


@dataclass(frozen=True)
class Session:
    """What a strategy works with.

    Args:
        model: the target.
        question: to answer.
        account: its books; the meter holds the whole question's budget.
        sampling: temperature, seed and so on; stops and limits are the strategy's business.
    """

    model: Model
    question: Question
    account: Account
    sampling: SamplingParams

    def append(self, branch: Branch, text: str, *, stage: Stage = "think") -> Branch:
        """A child of `branch` with forced text."""
        return self.model.append(branch, text, account=self.account.at(stage))

    def left(self) -> int | None:
        """Tokens that the budget still has; None without a limit."""
        meter = self.account.meter
        return None if meter is None else meter.remaining(self.account.stage)


@runtime_checkable
class Reasoner(Protocol):
    """A way of answering with many steps."""

    def plan(self, session: Session) -> Strategy:
        """The strategy for one question."""
        ...

    def solve(
        self,
        model: Model,
        question: Question,
        budget: Budget | None = None,
        sampling: SamplingParams = ...,
        *,
        account: Account | None = None,
    ) -> Answer:
        """Answer one question within `budget`."""
        ...
