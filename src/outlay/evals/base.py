"""Tasks: problems with a verifier and a metric, the room's one protocol.

A task samples problems from a seed and judges answers. Three kinds exist. A *generation* task
judges the text that a model produced. A *likelihood* task judges how well the model predicts a
known target after the prompt (nats per token), for questions that a small model cannot answer
verbatim. A *choice* task takes the option that the model finds most likely after the prompt
(`continuations`, `pick`) and judges it like a generated answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from outlay.errors import InputError

Kind = Literal["generation", "likelihood", "choice"]


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
        gold_span: characters (start, end) of `context` that hold what is needed, where known.
        meta: anything else a report may show (JSON-ready).
    """

    id: str
    question: str
    context: str = ""
    answer: str = ""
    language: str = ""
    choices: tuple[str, ...] = ()
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
