"""A verifier that knows the truth about chains, and tells it as reliably as it is asked to.

`verdicts` labels every step of a solution of a chain problem: is all right so far? `ChainOracle`
turns the labels into scores with noise from Beta distributions, so that a right prefix outranks a
wrong one with a chosen probability, the AUC: right ones get Beta(a, 1), wrong ones Beta(1, a), for
which AUC = 1 - 1 / C(2a, a). 1.0 tells the truth; 0.5 says nothing. The score of a prefix depends
on the seed, the question and the text alone: the same whenever and with whatever it is judged.
It is a bound and a measuring stick, not a model: it reads no tokens. No torch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from outlay.errors import InputError
from outlay.models.base import Account
from outlay.reason.base import Question
from outlay.testbeds.reasoner.chains import (
    MODULUS,
    ChainProblem,
    StepLabel,
    label_steps,
    parse_question,
)
from outlay.testbeds.reasoner.tokenizer import ANSWER, END_THINK, EOS, THINK

MAX_STEPS = 2000  # of one solution


def verdicts(problem: ChainProblem, steps: Sequence[str], opened: str = "") -> list[bool]:
    """Whether all is right after each of `steps`.

    A step is right if its result is right, it continues the chain, and the value that it states is
    the true one there. After a wrong step nothing is right again, unless the step is repeated
    ("Wait") and right then. The step that answers is right if all before is and the answer is. An
    unfinished step leaves the verdict as it was.

    Args:
        problem: the chains.
        steps: a solution, cut after every delimiter.
        opened: what the prompt has opened the thinking with, such as `<short>`.

    Raises:
        InputError: for more than `MAX_STEPS` steps.
    """
    if len(steps) > MAX_STEPS:
        raise InputError(f"{len(steps)} steps; at most {MAX_STEPS} can be labelled")
    texts = list(accumulate(steps, initial=opened))[1:]
    if opened.startswith("<code>") or (steps and steps[0].startswith("<code>")):
        running = [_code(problem, text.partition(END_THINK)[0]) for text in texts]
    else:
        thinking = texts[-1].partition(END_THINK)[0] if texts else ""
        after = _running(label_steps(problem, thinking))  # every ";" ends one labelled step
        running = [after[text.partition(END_THINK)[0].count(";")] for text in texts]
    found = []
    for text, right in zip(texts, running, strict=True):
        _, closed, rest = text.partition(END_THINK)
        found.append(right and _answer(rest) == problem.answer if closed else right)
    return found


def _running(labels: Sequence[StepLabel]) -> list[bool]:
    """Whether all is right after 0, 1, ... labelled steps."""
    found = [True]
    before = True
    for label in labels:
        good = label.right and label.on_path
        if label.kind != "recheck":
            before = found[-1]
        found.append(before and good)
    return found


def _code(problem: ChainProblem, thinking: str) -> bool:
    """Whether a program and its results are right as far as they go."""
    labels = label_steps(problem, thinking)
    return _running(labels)[-1] and (bool(labels) or not thinking.endswith(";"))


def _answer(closing: str) -> str | None:
    if ANSWER not in closing:
        return None
    return closing.rsplit(ANSWER, 1)[1].split(EOS)[0].strip()


def opened_by(question: Question) -> str:
    """What a question's prompt has opened the thinking with."""
    prompt = question.prompt
    return prompt.rsplit(THINK, 1)[1] if isinstance(prompt, str) and THINK in prompt else ""


@cache
def beta_for(auc: float) -> float:
    """The a for which a draw of Beta(a, 1) exceeds one of Beta(1, a) with probability `auc`.

    Raises:
        InputError: for an AUC outside [0.5, 1).
    """
    if not 0.5 <= auc < 1:
        raise InputError(f"auc={auc}; must be in [0.5, 1)")
    wanted = math.log1p(-auc)

    def missed(a: float) -> float:
        """log(1 - AUC) = -log C(2a, a)."""
        return 2 * math.lgamma(a + 1) - math.lgamma(2 * a + 1)

    low, high = 1.0, 2.0
    while missed(high) > wanted:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if missed(middle) > wanted else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class ChainOracle:
    """Exact step labels of chain problems, with noise.

    Args:
        auc: probability that a right prefix scores above a wrong one; 1 scores them 1 and 0.
        seed: of the noise.
        modulus: of the chains.

    Raises:
        InputError: for an AUC outside [0.5, 1].
    """

    auc: float = 1.0
    seed: int = 0
    modulus: int = MODULUS

    def __post_init__(self) -> None:
        if not 0.5 <= self.auc <= 1:
            raise InputError(f"auc={self.auc}; must be in [0.5, 1]: 0.5 is chance, 1 the truth")

    def score(
        self,
        questions: Sequence[Question],
        paths: Sequence[Sequence[str]],
        known: Sequence[Sequence[float]],
        *,
        accounts: Sequence[Account],
    ) -> list[list[float]]:
        """A score of every step that has none yet; one call a path is booked, without tokens.

        Raises:
            InputError: for a question that is not a chain problem.
        """
        rows = []
        for question, path, scores, account in zip(questions, paths, known, accounts, strict=True):
            row = list(scores)
            if len(row) < len(path):
                problem = parse_question(question.text, self.modulus)
                right = verdicts(problem, path, opened_by(question))
                row += [
                    self._noisy(question, "".join(path[: at + 1]), right[at])
                    for at in range(len(row), len(path))
                ]
                account.ledger.record(account.stage, "verifier", method=account.method)
            rows.append(row)
        return rows

    def _noisy(self, question: Question, text: str, right: bool) -> float:
        if self.auc == 1:
            return float(right)
        digest = hashlib.blake2b(f"{self.seed}\0{question.text}\0{text}".encode(), digest_size=8)
        uniform = (int.from_bytes(digest.digest(), "big") + 0.5) / 2**64
        score: float = uniform ** (1 / beta_for(self.auc))
        return score if right else 1 - score
