"""The runs behind the m1 proof: problem families, our decoder, and baselines at equal tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from outlay.budget import Budget
from outlay.decode.base import ThinkResult
from outlay.decode.plain import PlainDecoder
from outlay.decode.thinking_budget import ThinkingBudget
from outlay.evals.answers import majority
from outlay.evals.base import Problem, Task
from outlay.ledger import Ledger
from outlay.models.base import SamplingParams
from outlay.models.local import LocalModel
from outlay.records import Record
from outlay.stats import FloatArray
from outlay.testbeds.reasoner import ChainArith, ChainRecall

LONGEST = 240  # thinking that no problem here needs: "unlimited"
WAITING = 400  # room for waits
ANSWER = 4  # most tokens of an answer; one of arithmetic needs 3
FORCED = 2  # tokens of a forced close
VOTES = 4
DECODER = ThinkingBudget(overthink_prefix="", newline="", max_answer=ANSWER)

OURS, CUT, VOTE = "thinking budget", "hard truncation", f"majority@{VOTES}"

FAMILIES: Mapping[str, Task] = {
    "compute short": ChainArith(operations=(2, 4)),
    "compute long": ChainArith(operations=(7, 10)),
    "recall seen": ChainRecall(facts="known"),
    "recall unseen": ChainRecall(facts="unseen"),
}
COMPUTE = ("compute short", "compute long")


@dataclass(frozen=True)
class Cell:
    """One family under one setting: N results in the order of its problems."""

    records: list[Record]
    results: list[ThinkResult]

    @property
    def right(self) -> FloatArray:
        """(N,) 1 where the answer is right."""
        return np.array([record.quality for record in self.records])

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.right.mean())

    @property
    def thinking(self) -> float:
        """Mean tokens of thinking, waits included."""
        return float(np.mean([thought(result) for result in self.results]))


def distinct(task: Task, seed: int, n: int) -> list[Problem]:
    """Up to `n` problems, each question once.

    Facts are few and drawn with replacement: repeated questions are no new evidence, and intervals
    that count them are too narrow.
    """
    first: dict[str, Problem] = {}
    for problem in task.sample(seed, 8 * n):
        first.setdefault(problem.question, problem)
    return list(first.values())[:n]


def budget_of(limit: int) -> Budget:
    """`limit` tokens of thinking and an answer."""
    return Budget(tokens=limit + ANSWER, stages={"think": limit, "answer": ANSWER})


def _record(
    name: str, problem: Problem, method: str, limit: int, answer: str, ledger: Ledger
) -> Record:
    quality = FAMILIES[name].verify(problem, answer)
    return Record(name, problem.id, method, budget_of(limit), 0, quality, ledger)


def _prompts(name: str, problems: Sequence[Problem]) -> list[str]:
    return [FAMILIES[name].prompt(problem, "") for problem in problems]


def think(
    model: LocalModel, name: str, problems: Sequence[Problem], limit: int, decoder: ThinkingBudget
) -> Cell:
    """Ours: one family at B = `limit`."""
    results = decoder.generate_many(model, _prompts(name, problems), budget_of(limit))
    method = OURS if not decoder.n_wait else f"{OURS}, {decoder.n_wait} waits"
    records = [
        _record(name, problem, method, limit, made.text, made.ledger)
        for problem, made in zip(problems, results, strict=True)
    ]
    return Cell(records, results)


def truncate(model: LocalModel, name: str, problems: Sequence[Problem], limit: int) -> list[Record]:
    """Plain generation cut at all the tokens that ours may sample and force together."""
    plain = PlainDecoder(max_tokens=limit + FORCED + ANSWER)
    made = plain.generate_many(model, _prompts(name, problems))
    return [
        _record(name, problem, CUT, limit, one.text, one.ledger)
        for problem, one in zip(problems, made, strict=True)
    ]


def vote(
    model: LocalModel, name: str, problems: Sequence[Problem], limit: int, seed: int
) -> list[Record]:
    """Samples that share B, closed by force as ours is; their answers are not charged."""
    prompts = [prompt for prompt in _prompts(name, problems) for _ in range(VOTES)]
    sampling = [
        SamplingParams(temperature=0.7, seed=seed * VOTES + i % VOTES) for i in range(len(prompts))
    ]
    made = DECODER.generate_many(model, prompts, budget_of(limit // VOTES), sampling)
    records = []
    for i, problem in enumerate(problems):
        group = made[i * VOTES : (i + 1) * VOTES]
        answers = [_answer(one.text) for one in group]
        winner = majority(answers, "text").value
        ledger = sum((one.ledger for one in group), Ledger())
        records.append(_record(name, problem, VOTE, limit, winner or "", ledger))
    return records


def _answer(text: str) -> str | None:
    """The answer as the reasoner writes it; None for none."""
    return text.rsplit("<answer>", 1)[-1].split("<eos>")[0].strip() or None


def thought(result: ThinkResult) -> int:
    """What B bounds, from the books."""
    total = result.ledger.totals(stage="think")
    return total.generated + total.forced
