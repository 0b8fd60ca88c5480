"""Verifiers that need no training: a model that judges its own steps.

`SelfEvaluation` asks a model whether a partial solution is right so far and reads the probability
of "yes" against "no" (Kadavath et al., arXiv 2207.05221). It is the zero-shot judge that trained
verifiers have to beat; small models judge near chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from outlay.errors import BudgetError, InputError
from outlay.models.base import Account, Message, Model, Prompt
from outlay.reason.base import Question

_ASK = (
    "Question:\n{question}\n\nSolution so far:\n{solution}\n\n"
    "Is every step of this solution correct? Answer yes or no."
)


@dataclass(frozen=True)
class SelfEvaluation:
    """P(yes) of a model that is asked whether all steps so far are right.

    Args:
        model: the judge; it needs `score`.
        ask: the request, with {question} and {solution}.
        labels: the answers for right and wrong; they must differ in their first token.

    Raises:
        InputError: for a request without its places, or labels that begin alike.
    """

    model: Model
    ask: str = _ASK
    labels: tuple[str, str] = ("yes", "no")

    def __post_init__(self) -> None:
        if "{question}" not in self.ask or "{solution}" not in self.ask:
            raise InputError("ask must hold {question} and {solution}")
        self.model.capabilities.require("SelfEvaluation", "logprobs", model=self.model.name)
        if self.labels[0].startswith(self.labels[1]) or self.labels[1].startswith(self.labels[0]):
            raise InputError(f"labels={self.labels}; one begins with the other: choose others")

    def score(
        self,
        questions: Sequence[Question],
        paths: Sequence[Sequence[str]],
        known: Sequence[Sequence[float]],
        *,
        accounts: Sequence[Account],
    ) -> list[list[float]]:
        """P(yes) for every prefix that has no score yet; each costs one prompt.

        A verifier's account whose budget is spent leaves the remaining steps at 0.5.
        """
        rows = []
        for question, path, scores, account in zip(questions, paths, known, accounts, strict=True):
            row = list(scores)
            for size in range(len(row) + 1, len(path) + 1):
                try:
                    row.append(self._one(question, "".join(path[:size]), account))
                except BudgetError:
                    row += [0.5] * (len(path) - len(row))
                    break
            rows.append(row)
        return rows

    def _one(self, question: Question, solution: str, account: Account) -> float:
        text = self.ask.format(question=question.text, solution=solution)
        prompt: Prompt = text + "\nAnswer: "
        if self.model.takes_chat:
            prompt = [Message(role="user", content=text)]
        root = self.model.open(prompt, account=account)
        yes, no = self.model.score(root, self.labels, account=account)
        self.model.release(root)
        return ratio(math.fsum(yes) / len(yes), math.fsum(no) / len(no))


def ratio(yes: float, no: float, tau: float = 1.0) -> float:
    """P(yes) / (P(yes) + P(no)) from log-probabilities, at decision temperature `tau`.

    Raises:
        InputError: if tau is not positive.
    """
    if not tau > 0:
        raise InputError(f"tau={tau}; must be positive")
    gap = max(-700.0, min(700.0, (no - yes) / tau))
    return 1 / (1 + math.exp(gap))
