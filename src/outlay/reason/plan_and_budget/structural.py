"""A planner that reads the structure of the reasoner testbed's questions, and so needs no model.

Each chain of a question is a step, opened by the heading that the reasoner writes itself (`[1]`,
`[2]`, ..., `[+]` for the final sum). Credits are the tokens that a step really needs ("oracle"), or
what a bad planner would give: noisy, equal, or reversed ones.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from outlay.errors import InputError
from outlay.reason.base import Session
from outlay.reason.plan_and_budget.plans import HARDEST, Plan, neutral, question_hash
from outlay.testbeds.reasoner.chains import MODULUS, ChainProblem, parse_question
from outlay.testbeds.reasoner.joined import level_of
from outlay.testbeds.reasoner.tokenizer import ANSWER, END_THINK

Weights = Literal["oracle", "noisy", "reversed", "equal"]
TOKENS = {"short": 6, "long": 12}  # of one operation, by format
CLOSE, END = 1, 2  # tokens by which a step says that it is done: a heading, or the answer's tags


@dataclass(frozen=True)
class StructuralPlanner:
    """Plans for questions of the reasoner testbed.

    Args:
        weights: "oracle" credits are the tokens needed; "noisy" multiplies them by exp(sigma x)
            with x normal; "reversed" gives the longest step what the shortest needs; "equal".
        sigma: of the noise.
        seed: of the noise.
        format: of the thinking, which begins the turn.
        total: operations of a question of level 5.
        modulus: of the questions.

    Raises:
        InputError: for an unknown kind of weights or format, sigma < 0, or total < 1.
    """

    weights: Weights = "oracle"
    sigma: float = 0.5
    seed: int = 0
    format: Literal["short", "long"] = "short"
    total: int = 18
    modulus: int = MODULUS

    def __post_init__(self) -> None:
        if self.weights not in get_args(Weights):
            raise InputError(f"weights={self.weights!r}; choose {', '.join(get_args(Weights))}")
        if self.format not in TOKENS:
            raise InputError(f"format={self.format!r}; choose short or long")
        if not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise InputError(f"sigma={self.sigma}; must be finite and >= 0")
        if self.total < 1:
            raise InputError(f"total={self.total}; must be at least 1")

    def id(self, session: Session) -> str:
        """Name in stored plans."""
        noise = f"/{self.sigma}/{self.seed}" if self.weights == "noisy" else ""
        return f"structure/{self.weights}{noise}/{self.format}/{self.total}"

    def __call__(self, session: Session) -> Plan:
        """The plan; that of one step for a question that is not of this kind."""
        text = session.question.text
        try:
            problem = parse_question(text, self.modulus)
        except InputError as error:
            return neutral(text, planner_id=self.id(session), note=str(error))
        lengths = step_operations(problem)
        needs = step_tokens(problem, self.format)
        joined = len(problem.chains) > 1
        numbers = [f"[{i}]" for i in range(1, len(problem.chains) + 1)]
        headings = [*numbers, "[+]"] if joined else [""]
        hardest = max(lengths)
        return Plan(
            steps=(*(chain.text for chain in problem.chains), *(["final sum"] if joined else [])),
            credits=tuple(self._credits(needs, text)),
            levels=tuple(max(1, math.ceil(HARDEST * length / hardest)) for length in lengths),
            level=level_of(problem.operations, self.total),
            headings=tuple(headings),
            opening=f"<{self.format}>",
            closing=END_THINK + ANSWER,
            question_hash=question_hash(text),
            planner_id=self.id(session),
        )

    def _credits(self, needs: Sequence[int], text: str) -> list[float]:
        if self.weights == "equal":
            return [1.0] * len(needs)
        if self.weights == "reversed":
            order = sorted(range(len(needs)), key=lambda i: (needs[i], i))
            given = dict(zip(order, reversed(order), strict=True))
            return [float(needs[given[i]]) for i in range(len(needs))]
        if self.weights == "noisy":
            rng = random.Random(f"{self.seed}:{text}")
            return [need * math.exp(self.sigma * rng.gauss(0, 1)) for need in needs]
        return [float(need) for need in needs]


def step_operations(problem: ChainProblem) -> list[int]:
    """Operations of every step: of each chain, then of the final sum where there is one."""
    lengths = [len(chain.operations) for chain in problem.chains]
    return [*lengths, len(lengths) - 1] if len(lengths) > 1 else lengths


def step_tokens(problem: ChainProblem, format: Literal["short", "long"] = "short") -> list[int]:
    """Tokens that every step needs, with those that say that it is done."""
    tokens = [TOKENS[format] * length + CLOSE for length in step_operations(problem)]
    return [*tokens[:-1], tokens[-1] - CLOSE + END]
