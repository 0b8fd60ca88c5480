"""The reasoner's tasks for `outlay compare`: chains to compute, facts to recall. No torch."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from outlay.errors import InputError
from outlay.evals.base import Kind, Problem
from outlay.testbeds.reasoner.chains import (
    MODULUS,
    SIGNS,
    ChainProblem,
    Split,
    parse_question,
    sample_problem,
)
from outlay.testbeds.reasoner.facts import FactWorld
from outlay.testbeds.reasoner.tokenizer import ANSWER, END_THINK, EOS, THINK, render_prompt

Template = Literal["reasoner", "plain"]


def check_template(template: str) -> None:
    """Raise `InputError` for an unknown template."""
    if template not in ("reasoner", "plain"):
        raise InputError(f"template={template!r}; known are 'reasoner' and 'plain'")


class Notation:
    """How the reasoner's questions are asked and its answers read; what its tasks share."""

    template: Template

    def prompt(self, problem: Problem, context: str) -> str:
        """The prompt text; these problems have no context."""
        return render_prompt(problem.question) if self.template == "reasoner" else problem.question

    def verify(self, problem: Problem, answer: str) -> float:
        """1 if the answer after the answer tag (or the whole text without tags) is exact."""
        text = answer.split(EOS)[0]
        for tag in (ANSWER, END_THINK):
            if tag in text:
                text = text.rsplit(tag, 1)[1]
                break
        else:
            if THINK in text:  # it never stopped thinking
                return 0.0
        given = text.strip()
        if self.template == "plain":  # a foreign model answers in prose: its last number counts
            numbers = re.findall(r"\d+", given)
            given = numbers[-1] if numbers else ""
        return float(given == problem.answer)

    @property
    def delimiter(self) -> str:
        """Ends a step: ";" in the reasoner's own notation."""
        return ";" if self.template == "reasoner" else "\n\n"

    def read(self, problem: Problem, completion: str) -> str | None:
        """The answer after the last answer tag (or the last number without tags)."""
        if self.template == "plain":
            numbers = re.findall(r"\d+", completion)
            return numbers[-1] if numbers else None
        if ANSWER not in completion:
            return None
        return completion.rsplit(ANSWER, 1)[1].split(EOS)[0].strip() or None


class Chained(Notation):
    """What tasks of chains share beside the notation."""

    operations: tuple[int, int]
    modulus: int

    def check_operations(self) -> None:
        """Raise `InputError` for an empty range."""
        low, high = self.operations
        if not 1 <= low <= high:
            raise InputError(f"operations={self.operations}; must be a range with 1 <= low <= high")

    def chain(self, problem: Problem) -> ChainProblem:
        """The chains behind a problem, for step labels."""
        return parse_question(problem.question, self.modulus)


@dataclass(frozen=True)
class ChainArith(Chained):
    """Compute: chains of `operations` (inclusive range), every length equally often.

    Args:
        operations: fewest and most operations of a problem.
        modulus: of all chains; the shipped model knows `MODULUS` only.
        signs: which operations occur.
        split: "heldout" problems were never trained on.
        template: "reasoner" gives the whole prompt up to the open think tag; "plain" the question
            alone, for models whose chat template the caller applies.

    Raises:
        InputError: for an empty range or an unknown template.
    """

    operations: tuple[int, int] = (2, 10)
    modulus: int = MODULUS
    signs: str = SIGNS
    split: Split = "heldout"
    template: Template = "reasoner"
    name: str = field(default="chainarith", init=False)
    kind: Kind = field(default="generation", init=False)
    metric: str = field(default="accuracy", init=False)
    higher_is_better: bool = field(default=True, init=False)
    chat: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.check_operations()
        check_template(self.template)

    def sample(self, seed: int, n: int) -> Sequence[Problem]:
        """`n` problems; lengths cycle through the range so that every prefix is balanced."""
        low, high = self.operations
        problems = []
        for index in range(n):
            rng = random.Random(f"chainarith:{seed}:{index}")
            count = low + index % (high - low + 1)
            chain = sample_problem(rng, [count], self.modulus, self.signs, self.split)
            problems.append(
                Problem(
                    id=f"chainarith-{seed}-{index}",
                    question=chain.question,
                    answer=chain.answer,
                    meta={"family": "compute", "difficulty": count, "modulus": self.modulus},
                )
            )
        return problems


@dataclass(frozen=True)
class ChainRecall(Notation):
    """Recall: questions of one and two hops over synthetic facts, in turn.

    Args:
        facts: "known" were in training; "unseen" need at least one that was not; "mixed" takes
            turns.
        world: the facts; the shipped model knows the default world only.
        hops: fewest and most hops.
        template: as for `ChainArith`.

    Raises:
        InputError: for values out of range.
    """

    facts: Literal["known", "unseen", "mixed"] = "mixed"
    world: FactWorld = field(default_factory=FactWorld)
    hops: tuple[int, int] = (1, 2)
    template: Template = "reasoner"
    name: str = field(default="chainrecall", init=False)
    kind: Kind = field(default="generation", init=False)
    metric: str = field(default="accuracy", init=False)
    higher_is_better: bool = field(default=True, init=False)
    chat: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.facts not in ("known", "unseen", "mixed"):
            raise InputError(f"facts={self.facts!r}; known are 'known', 'unseen' and 'mixed'")
        if not 1 <= self.hops[0] <= self.hops[1] <= 2:
            raise InputError(f"hops={self.hops}; must be a range within 1..2")
        check_template(self.template)

    def sample(self, seed: int, n: int) -> Sequence[Problem]:
        """`n` problems; hops and (if mixed) known and unseen facts alternate."""
        problems = []
        span = self.hops[1] - self.hops[0] + 1
        for index in range(n):
            rng = random.Random(f"chainrecall:{seed}:{index}")
            hops = self.hops[0] + index % span
            known = self.facts == "known" or (self.facts == "mixed" and index // span % 2 == 0)
            recall = self.world.sample(rng, hops, known, "heldout")
            problems.append(
                Problem(
                    id=f"chainrecall-{seed}-{index}",
                    question=recall.question,
                    answer=recall.answer,
                    meta={"family": "recall", "difficulty": hops, "known": known},
                )
            )
        return problems
