"""BASIR's task 1 as a task of `outlay compare` and `outlay eval`: tag an excerpt, score its F1."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import ClassVar

import numpy as np

from outlay.errors import InputError
from outlay.evals.base import Kind, Problem
from outlay.evals.basir.data import Excerpt, check_date, read_excerpts, texts_and_truth
from outlay.evals.basir.f1 import samples_f1
from outlay.evals.basir.labels import LabelSet, load_labels
from outlay.evals.basir.llm import instruction, label_list, parse_reply
from outlay.evals.basir.synthetic import load_sample
from outlay.evals.checks import check_sample, check_whole


@dataclass(frozen=True)
class Basir:
    """Name the sectors that an excerpt of a budget speech touches; the LLM route of BASIR.

    The quality is the excerpt's F1 (the mean over excerpts is scikit-learn's samples-F1). Excerpts
    without a sector are left out, because F1 is not defined there.

    Args:
        path: .jsonl or .csv with excerpts; None for the synthetic sample.
        label_file: JSON with labels; None for the 81 sectors of outlay.
        labels: offer only the excerpt's sectors and as many random others as make this number;
            None offers all. Small models need small numbers.
        definitions: list definitions beside the names.
        test_from: only events from this date on (models may have read older ones); None for all.

    Raises:
        InputError: for knobs out of range.
    """

    path: str | os.PathLike[str] | None = None
    label_file: str | os.PathLike[str] | None = None
    labels: int | None = None
    definitions: bool = True
    test_from: str | None = None

    name: ClassVar[str] = "basir"
    kind: ClassVar[Kind] = "generation"
    metric: ClassVar[str] = "samples F1"
    chat: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.labels is not None:
            check_whole("labels", self.labels, least=2)
        if self.test_from is not None:
            check_date(self.test_from, "test_from")

    def label_set(self) -> LabelSet:
        """The labels that prompts list."""
        return load_labels(self.label_file)

    def rows(self) -> list[Excerpt]:
        """Excerpts with at least one sector, from `test_from` on."""
        rows = list(load_sample()[0]) if self.path is None else read_excerpts(self.path)
        if self.test_from is not None:
            rows = [row for row in rows if row.date >= self.test_from]
        return [row for row in rows if row.sectors]

    def sample(self, seed: int, n: int) -> list[Problem]:
        """`n` excerpts in an order drawn by the seed.

        Raises:
            InputError: if there are fewer than n tagged excerpts, or a label is unknown.
        """
        check_sample(seed, n)
        labels, rows = self.label_set(), self.rows()
        if len(rows) < n:
            raise InputError(
                f"{len(rows)} excerpts with sectors, {n} wanted; lower n, or give more in path= or "
                "an earlier test_from="
            )
        if self.labels is not None and self.labels > len(labels):
            raise InputError(f"labels={self.labels}, but the label file has {len(labels)}")
        Random(f"basir:{seed}").shuffle(rows)
        _, truth_NL = texts_and_truth(rows[:n], labels)
        problems = []
        for row, truth_L in zip(rows, truth_NL, strict=False):
            true = [int(i) for i in np.flatnonzero(truth_L)]
            offered = self._offered(true, len(labels), f"{seed}:{row.excerpt_id}")
            listed = label_list(labels, offered, definitions=self.definitions)
            problems.append(
                Problem(
                    id=row.excerpt_id,
                    question=f"Which of these topics does the excerpt touch?\n{listed}",
                    context=row.text,
                    answer=str([i + 1 for i in true]),
                    meta={"event": row.event, "date": row.date, "true": true, "offered": offered},
                )
            )
        return problems

    def _offered(self, true: list[int], size: int, key: str) -> list[int]:
        if self.labels is None:
            return list(range(size))
        others = [i for i in range(size) if i not in true]
        count = max(0, self.labels - len(true))
        return sorted(true + Random(key).sample(others, count))

    def prompt(self, problem: Problem, context: str) -> str:
        """The topics, the instruction, and the excerpt at the end."""
        return instruction(problem.question.split("\n", 1)[1], context)

    def verify(self, problem: Problem, answer: str) -> float:
        """F1 of the label numbers in the answer's first JSON list; 0 without one."""
        labels = self.label_set()
        parsed = parse_reply(answer, labels, problem.meta["offered"])
        truth_NL, said_NL = np.zeros((2, 1, len(labels)), dtype=bool)
        truth_NL[0, problem.meta["true"]] = True
        said_NL[0, list(parsed.labels)] = True
        return float(samples_f1(truth_NL, said_NL)[0])

    def explain(self, problem: Problem, answer: str) -> Mapping[str, str]:
        """Right, missed and wrong sectors, dropped entries, and whether there was a list."""
        labels = self.label_set()
        parsed = parse_reply(answer, labels, problem.meta["offered"])
        true, said = set(problem.meta["true"]), set(parsed.labels)

        def names(found: set[int]) -> str:
            return ", ".join(labels[i].name for i in sorted(found)) or "none"

        return {
            "right": names(true & said),
            "missed": names(true - said),
            "wrong": names(said - true),
            "dropped entries": str(parsed.invalid),
            "reply": "a JSON list" if parsed.found else "no JSON list",
        }
