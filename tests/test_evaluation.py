"""Evaluations: episodes, explanations, marks, traces, efficiency figures."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from outlay.budget import Budget
from outlay.comparison import plan
from outlay.cost import efficiency
from outlay.decode.base import Decoder
from outlay.decode.plain import PlainDecoder
from outlay.errors import BudgetError, CapabilityError, InputError
from outlay.evals.base import Episode, Kind, Mark, Problem, Task
from outlay.evaluation import evaluate
from outlay.example import Outcome, run_example
from outlay.models.base import Account, Model, SamplingParams
from outlay.prompt.truncation import HeadTruncation
from outlay.stack import Stack
from outlay.traces import TRACES, write_traces
from recording_model import RecordingModel


@dataclass(frozen=True)
class Guess:
    """Ask for a digit until it is the right one, or nothing is left."""

    kind: Kind = "episode"
    name: str = "guess"
    metric: str = "accuracy"
    higher_is_better: bool = True
    chat: bool = False

    def sample(self, seed: int, n: int) -> Sequence[Problem]:
        return [Problem(f"guess-{seed}-{i}", f"digit {i}?", answer=str(i)) for i in range(n)]

    def prompt(self, problem: Problem, context: str) -> str:
        return problem.question

    def verify(self, problem: Problem, answer: str) -> float:
        return float(answer.split()[-1:] == [problem.answer])

    def explain(self, problem: Problem, answer: str) -> Mapping[str, str]:
        return {"guesses": str(len(answer.split()))}

    def marks(self, problem: Problem, text: str) -> Sequence[Mark]:
        return [
            Mark(at, at + 1, f"guess {char}", char == problem.answer)
            for at, char in enumerate(text)
            if char.isdigit()
        ]

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
        said: list[str] = []
        while not self.verify(problem, " ".join(said)):
            prompt = f"{problem.question} not {said}"
            try:
                if decode is None:
                    made = model.generate(prompt, None, sampling, account=account)
                else:
                    made = decode.generate(model, prompt, budget, sampling, account=account)
            except BudgetError:
                break
            said.append(made.text)
        answer = " ".join(said)
        return Episode(self.verify(problem, answer), {"answer": answer})


def play(task: Task, stack: Stack, budget: Budget) -> Outcome:
    (problem,) = task.sample(0, 4)[3:]
    model: Any = RecordingModel()
    return run_example(
        model, stack, task, problem, budget, sampling=SamplingParams(max_tokens=2, temperature=1.0)
    )


def test_an_episode_runs_until_its_budget_and_books_every_call() -> None:
    outcome = play(Guess(), Stack(), Budget(tokens=20))
    guesses = outcome.texts["answer"].split()
    assert outcome.record.ledger.totals().generated == 2 * len(guesses) <= 20
    assert outcome.record.quality == float(guesses[-1] == "3")
    assert outcome.texts["guesses"] == str(len(guesses))
    assert "prompt" not in outcome.texts


def test_an_episode_decodes_with_the_decoder_of_the_stack() -> None:
    whole = play(Guess(), Stack(), Budget(tokens=8))
    cut = play(Guess(), Stack(decode=PlainDecoder(max_tokens=1)), Budget(tokens=8))
    assert len(whole.texts["answer"].split()) == 4 or whole.record.quality == 1
    assert len(cut.texts["answer"].split()) > len(whole.texts["answer"].split())


def test_marks_are_those_of_the_task() -> None:
    outcome = play(Guess(), Stack(), Budget(tokens=20))
    marks = outcome.marks["answer"]
    assert [mark.label for mark in marks] == [f"guess {c}" for c in outcome.texts["answer"].split()]
    assert [mark.good for mark in marks][-1] is bool(outcome.record.quality)


def test_a_compressor_has_no_place_before_an_episode() -> None:
    with pytest.raises(CapabilityError, match="drop HeadTruncation"):
        play(Guess(), Stack(prompt=HeadTruncation()), Budget(tokens=20, counts="prompt"))


def test_an_episode_task_without_play_is_refused() -> None:
    @dataclass(frozen=True)
    class Still(Guess):
        play: None = None  # type: ignore[assignment]

    with pytest.raises((InputError, TypeError)):
        play(Still(), Stack(), Budget(tokens=20))


def test_traces_hold_every_outcome_with_texts_and_marks(tmp_path: Path) -> None:
    outcomes = [play(Guess(), Stack(), Budget(tokens=size)) for size in (4, 8)]
    odd = Outcome(outcomes[0].record, {**outcomes[0].texts, "thinking": "half \ud83d pair"})
    rows = parquet.read_table(write_traces(tmp_path / TRACES, [*outcomes, odd])).to_pylist()
    assert len(rows) == 3
    for row, outcome in zip(rows, outcomes, strict=False):
        assert row["answer"] == outcome.texts["answer"]
        assert row["quality"] == outcome.record.quality
        assert row["generated"] == outcome.record.ledger.totals().generated
        assert dict(row["more"])["guesses"] == outcome.texts["guesses"]
        assert [m["label"] for m in row["marks"]] == [m.label for m in outcome.marks["answer"]]
    assert rows[2]["thinking"] == "half ? pair"
    assert rows[2]["marks"] == []
    assert not list(tmp_path.glob("*.part"))


PLAN = plan(task="chainarith:operations=[2,3]", methods=("full", "plain:max_tokens=3"), n=6)


def test_without_budgets_every_method_runs_once(tmp_path: Path) -> None:
    model: Any = RecordingModel()
    found = evaluate(PLAN, out=tmp_path, load=lambda spec: model)
    assert len(model.prompts) == 12
    assert {row.point.budget.label() for row in found.rows} == {"unlimited"}
    assert found.traces.exists()
    assert len(parquet.read_table(found.traces)) == 12


def test_efficiency_is_that_of_the_records(tmp_path: Path) -> None:
    model: Any = RecordingModel()
    knobs = {**PLAN.model_dump(), "budgets": (2, 4)}
    found = evaluate(plan(**knobs), out=tmp_path, load=lambda spec: model)
    limits = {row.point.budget.label(): row for row in found.rows if "3" in row.point.stack}
    row = limits["2 generated tokens"]
    mine = [r for r in found.comparison.records if r.group == row.point.group]
    tokens = [r.ledger.totals().generated for r in mine]
    assert row.efficiency == efficiency(tokens, [r.quality for r in mine], [2] * len(mine))
    assert row.efficiency is not None
    assert row.efficiency.violation == 0
    json.dumps(found.to_dict(), allow_nan=False)


def test_an_evaluation_resumes_and_rewrites_its_traces(tmp_path: Path) -> None:
    first: Any = RecordingModel()
    evaluate(PLAN, out=tmp_path, load=lambda spec: first)
    (tmp_path / TRACES).unlink()
    again: Any = RecordingModel()
    found = evaluate(PLAN, out=tmp_path, load=lambda spec: again)
    assert again.prompts == []
    assert len(parquet.read_table(found.traces)) == 12


def test_a_report_comes_with_its_records_as_a_tidy_table(tmp_path: Path) -> None:
    model: Any = RecordingModel()
    found = evaluate(PLAN, out=tmp_path, load=lambda spec: model).comparison
    page = found.report()
    with page.with_suffix(".csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == len(found.records)
    for row, record in zip(rows, found.records, strict=True):
        assert row["method"] == record.method_stack
        assert float(row["quality"]) == record.quality
        assert int(row["generated"]) == record.ledger.totals().generated
