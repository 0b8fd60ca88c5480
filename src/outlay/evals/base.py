"""Tasks: problems with a verifier and a metric, the room's one protocol.

A task samples problems from a seed and judges answers. Five kinds exist. A *generation* task
judges the text that a model produced. A *likelihood* task judges how well the model predicts a
known target after the prompt (nats per token), for questions that a small model cannot answer
verbatim. A *choice* task takes the option that the model finds most likely after the prompt
(`continuations`, `pick`) and judges it like a generated answer. An *episode* task calls the model
itself, many times (`Interactive.play`): an environment, a dialogue, a cascade. A *vision* task asks
about a problem's images, and judges the answer like a generation task.

A task may also say more about an answer (`Explains`) and mark what matters inside a text (`Marks`);
reports and trace files show both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from outlay.errors import InputError

if TYPE_CHECKING:
    from outlay.budget import Budget
    from outlay.decode.base import Decoder
    from outlay.models.base import Account, Model, SamplingParams

Kind = Literal["generation", "likelihood", "choice", "episode", "vision"]


@dataclass(frozen=True)
class Problem:
    """One example.

    Args:
        id: stable name of the example: the same seed and index give the same id.
        question: what is asked; for a completion task, the unfinished code.
        context: long material that a compressor may shorten; "" where there is none.
        answer: the reference answer; for a likelihood task, the target text.
        language: of the context ("python", ...), "" for prose.
        choices: options of a multiple-choice problem.
        images: (H, W, 3) arrays of bytes, what a vision task shows.
        gold_span: characters (start, end) of `context` that hold what is needed, where known.
        meta: anything else a report may show (JSON-ready).
    """

    id: str
    question: str
    context: str = ""
    answer: str = ""
    language: str = ""
    choices: tuple[str, ...] = ()
    images: tuple[Any, ...] = field(default=(), compare=False, repr=False)
    gold_span: tuple[int, int] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Task(Protocol):
    """A source of problems with a verifier."""

    @property
    def name(self) -> str:
        """Short stable name of the task."""
        ...

    @property
    def kind(self) -> Kind:
        """What the runner has to do with a prompt."""
        ...

    @property
    def metric(self) -> str:
        """Name of the quality: "accuracy", "edit similarity", "nats per token", ..."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """False for losses."""
        ...

    @property
    def chat(self) -> bool:
        """True if the prompt is a request that an instruct model should get as a chat turn."""
        ...

    def sample(self, seed: int, n: int) -> Sequence[Problem]:
        """`n` problems; the same seed gives the same problems, and a larger n extends a smaller.

        Raises:
            InputError: if the source cannot give n problems.
        """
        ...

    def prompt(self, problem: Problem, context: str) -> str:
        """The whole prompt text, with `context` (possibly compressed) in its place."""
        ...

    def verify(self, problem: Problem, answer: str) -> float:
        """Quality of a generated answer in [0, 1]."""
        ...


@dataclass(frozen=True)
class Episode:
    """What came of playing one problem.

    Args:
        quality: as the task's `verify` would give it.
        texts: what a report shows, by name: at least "answer"; "transcript", "thinking", ...
    """

    quality: float
    texts: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class Interactive(Protocol):
    """An episode task: it calls the model itself, as often as it needs."""

    def play(
        self,
        model: Model,
        problem: Problem,
        budget: Budget,
        sampling: SamplingParams,
        *,
        decode: Decoder | None,
        account: Account,
    ) -> Episode:
        """Play one problem within `budget`.

        Every model call goes through `decode` if one is given, else through `model.generate`, and
        books in `account`, whose meter holds the whole episode's budget. Running out of budget
        ends the episode; it is not an error.
        """
        ...


@runtime_checkable
class Explains(Protocol):
    """A task that can say more about an answer than one number."""

    def explain(self, problem: Problem, answer: str) -> Mapping[str, str]:
        """Short texts by name (what was wrong, where, how many steps); shown beside the answer."""
        ...


@runtime_checkable
class Reads(Protocol):
    """A task whose answers can be voted over and whose solutions have steps."""

    @property
    def delimiter(self) -> str:
        """Text that ends a step of a solution."""
        ...

    def read(self, problem: Problem, completion: str) -> str | None:
        """The answer in a completion, in a form in which equal answers are equal texts; None if
        there is none."""
        ...


@dataclass(frozen=True)
class Mark:
    """A stretch of a text that a report marks.

    Args:
        start: first character.
        end: character after the last.
        label: what it is, in a few words.
        good: right, wrong, or neither.
    """

    start: int
    end: int
    label: str
    good: bool | None = None


@runtime_checkable
class Marks(Protocol):
    """A task that finds intermediate solutions inside a text."""

    def marks(self, problem: Problem, text: str) -> Sequence[Mark]:
        """Marks in order of `start`, not overlapping; [] where there is nothing to mark."""
        ...


def continuations(problem: Problem) -> tuple[str, ...]:
    """What a choice task's runner scores after the prompt: one continuation per option.

    Raises:
        InputError: if the problem has fewer than two options.
    """
    if len(problem.choices) < 2:
        raise InputError(
            f"problem {problem.id!r} has {len(problem.choices)} options; a choice task needs >= 2"
        )
    return tuple(f" {choice}" for choice in problem.choices)


def pick(problem: Problem, logprobs: Sequence[Sequence[float]]) -> str:
    """The option with the highest mean log-probability per token; the earliest on ties.

    Args:
        problem: with C options.
        logprobs: (C, tokens of the option) log-probabilities of `continuations(problem)`.

    Raises:
        InputError: if there is not one non-empty, NaN-free row per option.
    """
    if len(logprobs) != len(problem.choices):
        raise InputError(f"{len(logprobs)} scores for {len(problem.choices)} options")
    means = []
    for choice, row in zip(problem.choices, logprobs, strict=True):
        if not row or any(math.isnan(value) for value in row):
            raise InputError(f"option {choice!r} of problem {problem.id!r} has no usable score")
        means.append(math.fsum(row) / len(row))
    return problem.choices[means.index(max(means))]
