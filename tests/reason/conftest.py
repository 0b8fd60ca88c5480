"""The shipped reasoner, its questions, and verifiers whose judgement is known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from outlay.models.base import Account
from outlay.models.local import LocalModel
from outlay.reason import Question
from outlay.testbeds.reasoner import ChainArith, checkpoint_path


@pytest.fixture(scope="session")
def reasoner() -> LocalModel:
    return LocalModel.load(checkpoint_path())


def questions(n: int, operations: tuple[int, int] = (2, 4), seed: int = 0) -> list[Question]:
    task = ChainArith(operations=operations)
    return [
        Question(
            task.prompt(problem, ""),
            text=problem.question,
            kind="custom",
            read=partial(task.read, problem),
            delimiter=task.delimiter,
            id=problem.id,
        )
        for problem in task.sample(seed, n)
    ]


class Constant:
    """Scores every step alike, and counts what it was asked."""

    def __init__(self, value: float = 0.5) -> None:
        self.value = value
        self.paths: list[tuple[str, ...]] = []

    def score(
        self,
        questions: Sequence[Question],
        paths: Sequence[Sequence[str]],
        known: Sequence[Sequence[float]],
        *,
        accounts: Sequence[Account],
    ) -> list[list[float]]:
        for path, account in zip(paths, accounts, strict=True):
            self.paths.append(tuple(path))
            account.ledger.record("think", "verifier", prompt_new=len(path))
        return [[self.value] * len(path) for path in paths]


class Broken(Constant):
    """Gives whatever it was told to."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def score(self, questions: Any, paths: Any, known: Any, *, accounts: Any) -> Any:
        return self.answer(paths)
