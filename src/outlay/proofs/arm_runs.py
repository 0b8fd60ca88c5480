"""The runs behind the proof of ARM's modes: every mode on the same problems and seeds.

Shapes: S seeds, N problems, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from outlay.budget import Budget
from outlay.evals.base import Problem
from outlay.ledger import Entry, Ledger
from outlay.models.base import Account, Branch, Model, SamplingParams, Trail
from outlay.models.local import LocalModel
from outlay.reason import Question, solve_many
from outlay.reason.adaptive import REASONER, Adaptive
from outlay.records import Record
from outlay.stats import draw_counts
from outlay.testbeds.reasoner import ChainArith, ChainRecall
from outlay.testbeds.reasoner.joined import JoinedArith

FloatArray = npt.NDArray[np.float64]
TestbedTask = ChainArith | ChainRecall | JoinedArith
FORMATS = REASONER.names
LONG = FORMATS[-1]
CONSENSUS = "consensus"
PAIR = "consensus without direct"
RUN = f"{PAIR}, programs run"
TASK = ChainArith(operations=(1, 12))
ROOM = Budget(tokens=2000)  # more than any mode needs here: no answer is cut
FAMILIES: Mapping[str, TestbedTask] = {
    "recall, one hop": ChainRecall(facts="known", hops=(1, 1)),
    "recall, two hops": ChainRecall(facts="known", hops=(2, 2)),
    "joined chains": JoinedArith(),
}
LONGEST = 240  # tokens of one response
TOGETHER = 128
GREEDY = SamplingParams()
_again = count()


@dataclass(frozen=True)
class Cell:
    """One method on N problems under S seeds.

    Args:
        method: what ran.
        records: outcomes, seed by seed.
        calls: what every call of every answer gave: [seed][problem][call].
        status: how every answer came about: [seed][problem].
    """

    method: str
    records: list[Record]
    calls: list[list[list[Mapping[str, Any]]]]
    status: list[list[str]]

    @property
    def right(self) -> FloatArray:
        """(S, N) 1 where the answer is right."""
        quality = [record.quality for record in self.records]
        return np.array(quality).reshape(len(self.calls), -1)

    @property
    def tokens(self) -> FloatArray:
        """(S, N) tokens sampled and forced for each answer, by the ledger."""
        totals = [record.ledger.totals() for record in self.records]
        spent = [float(total.generated + total.forced) for total in totals]
        return np.array(spent).reshape(len(self.calls), -1)

    def used(self, format: str) -> FloatArray:
        """(S, N) 1 where some call was answered in `format`."""
        return np.array(
            [[float(any(c["format"] == format for c in n)) for n in row] for row in self.calls]
        )


class Remembering(LocalModel):
    """A local model that draws no sample twice: modes ask for each other's samples.

    A branch's tokens follow from its path and its sampling alone, so a remembered sample is the one
    that would be drawn again. It is booked as if it had been.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._known: dict[object, tuple[Branch, Entry]] = {}

    def extend(
        self,
        branches: Sequence[Branch],
        sampling: SamplingParams | Sequence[SamplingParams] = GREEDY,
        n: int = 1,
        *,
        account: Account | None = None,
        trail: Trail | None = None,
    ) -> list[list[Branch]]:
        """As `LocalModel.extend`; remembered children cannot be extended."""
        if n != 1 or trail is not None:
            return super().extend(branches, sampling, n, account=account, trail=trail)
        account = account or Account()
        each = [sampling] * len(branches) if isinstance(sampling, SamplingParams) else [*sampling]
        keys = [
            (tuple(part.token_ids for part in branch.lineage()), want)
            for branch, want in zip(branches, each, strict=True)
        ]
        fresh = [i for i, key in enumerate(keys) if key not in self._known]
        made: dict[int, Branch] = {}
        if fresh:
            rows = super().extend(
                [branches[i] for i in fresh], [each[i] for i in fresh], account=account
            )
            entries = {entry.branch: entry for entry in account.ledger.entries}
            for i, (child,) in zip(fresh, rows, strict=True):
                self._known[keys[i]] = replace(child, parent=None, handle=None), entries[child.id]
                made[i] = child
        for i, (parent, key) in enumerate(zip(branches, keys, strict=True)):
            if i not in made:
                known, entry = self._known[key]
                made[i] = replace(known, id=f"{known.id}.{next(_again)}", parent=parent)
                account.settle(account.hold([entry.generated]), entry.generated)
                again = replace(
                    entry,
                    branch=made[i].id,
                    stage=account.stage,
                    role=account.role,
                    method=account.method,
                )
                account.ledger.extend(Ledger([again]))
        return [[made[i]] for i in range(len(branches))]


def problems(n: int, seed: int) -> list[Problem]:
    """`n` problems, every length equally often, every question once."""
    low, high = TASK.operations
    each = n // (high - low + 1)
    found: dict[int, dict[str, Problem]] = {length: {} for length in range(low, high + 1)}
    for problem in TASK.sample(seed, 8 * n):
        rows = found[problem.meta["difficulty"]]
        if len(rows) < each:
            rows.setdefault(problem.question, problem)
    return [problem for rows in found.values() for problem in rows.values()]


def play(
    model: Model,
    some: Sequence[Problem],
    name: str,
    method: Adaptive,
    seeds: Sequence[int],
    task: TestbedTask = TASK,
) -> Cell:
    """One method on all problems under every seed."""
    questions = [
        Question(
            task.prompt(problem, ""),
            text=problem.question,
            kind="custom",
            read=partial(task.read, problem),
            delimiter=task.delimiter,
            id=problem.id,
        )
        for problem in some
    ]
    cell = Cell(name, [], [], [])
    for seed in seeds:
        # The paper's temperature; seeds lie apart, so that no two samples share one.
        sampling = SamplingParams(temperature=0.7, max_tokens=LONGEST, seed=1000 * seed)
        answers = solve_many(
            method, model, questions, ROOM, sampling, method=name, together=TOGETHER
        )
        cell.calls.append([list(answer.detail["calls"]) for answer in answers])
        cell.status.append([answer.status for answer in answers])
        for problem, answer in zip(some, answers, strict=True):
            quality = task.verify(problem, answer.text)
            record = Record(task.name, problem.id, name, ROOM, seed, quality, answer.ledger)
            cell.records.append(record)
    return cell


def difficulty(some: Sequence[Problem]) -> FloatArray:
    """(N,) operations of every problem."""
    return np.array([float(problem.meta["difficulty"]) for problem in some])


def slopes(hardN: FloatArray, valueN: FloatArray, resamples: int, seed: int) -> FloatArray:
    """Least-squares slopes of a value over difficulty: the sample's, then R resamples'."""
    counts_RN = np.concatenate(
        [np.ones((1, len(hardN))), *draw_counts(len(hardN), resamples, seed)]
    )
    total_R = counts_RN.sum(axis=1)
    x_R, y_R = counts_RN @ hardN / total_R, counts_RN @ valueN / total_R
    xy_R = counts_RN @ (hardN * valueN) / total_R - x_R * y_R
    xx_R = counts_RN @ hardN**2 / total_R - x_R**2
    found: FloatArray = xy_R / np.maximum(xx_R, 1e-12)
    return found


def by_difficulty(hardN: FloatArray, value_SN: FloatArray) -> dict[int, float]:
    """Mean of a value for every number of operations."""
    meanN = value_SN.mean(axis=0)
    return {int(d): float(meanN[hardN == d].mean()) for d in np.unique(hardN)}
