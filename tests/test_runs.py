"""Runs on disk: whole lines, no duplicates, no foreign folders."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.budget import Budget
from outlay.errors import ResultsError
from outlay.evals.base import Mark
from outlay.example import Outcome
from outlay.ledger import Ledger
from outlay.records import Record
from outlay.runs import CONFIG, RECORDS, Run, fingerprint

CONFIGURATION = {"plans": [{"task": "t", "budgets": (64, 128)}], "version": "0"}


def outcome(example: int, text: str = "fine", quality: float = 1.0) -> Outcome:
    ledger = Ledger()
    ledger.record("answer", "target", prompt_new=5, generated=3, branch="b", seconds=0.5)
    ledger.deliver(["b"])
    record = Record("t", str(example), "head", Budget(tokens=64), 0, quality, ledger)
    marks = {"answer": (Mark(0, 1, "start", True), Mark(1, 2, text))}
    return Outcome(record, {"answer": text}, marks)


def same(left: Run, right: Run) -> bool:
    return {k: (o.record, o.texts, o.marks) for k, o in left.outcomes.items()} == {
        k: (o.record, o.texts, o.marks) for k, o in right.outcomes.items()
    }


def test_what_was_added_is_there_when_the_run_is_opened_again(tmp_path: Path) -> None:
    run = Run(tmp_path / "a" / "b", CONFIGURATION)
    for i in range(5):
        run.add(outcome(i))
    again = Run(tmp_path / "a" / "b", CONFIGURATION)
    assert len(again) == 5
    assert outcome(3).record.key in again
    assert same(run, again)
    assert again.records == [outcome(i).record for i in range(5)]


@settings(max_examples=30)
@given(text=st.text(st.characters()), quality=st.floats(0, 1))
def test_any_answer_survives_the_disk(
    tmp_path_factory: pytest.TempPathFactory, text: str, quality: float
) -> None:
    folder = tmp_path_factory.mktemp("run")
    run = Run(folder, CONFIGURATION)
    run.add(outcome(0, text, quality))
    run.add(outcome(1, "\u2028\u0085\x0b\x1c\ud83d" + text))  # breaks of lines and of encodings
    assert same(run, Run(folder, CONFIGURATION))
    assert (folder / RECORDS).read_bytes().count(b"\n") == 2


@given(st.integers(1, 400))
@settings(max_examples=25)
def test_a_last_line_that_was_cut_off_is_dropped(
    tmp_path_factory: pytest.TempPathFactory, lost: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    run = Run(folder, CONFIGURATION)
    run.add(outcome(0))
    whole = (folder / RECORDS).stat().st_size
    run.add(outcome(1, "é" * 90))
    path = folder / RECORDS
    data = path.read_bytes()
    path.write_bytes(data[: max(whole, len(data) - lost)])
    again = Run(folder, CONFIGURATION)
    assert list(again.outcomes) == [outcome(0).record.key]
    again.add(outcome(1))
    again.add(outcome(2))
    assert [json.loads(line)["record"]["example"] for line in path.open()] == ["0", "1", "2"]
    assert len(Run(folder, CONFIGURATION)) == 3


def test_concurrent_adds_give_whole_lines_and_no_duplicates(tmp_path: Path) -> None:
    run = Run(tmp_path, CONFIGURATION)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: run.add(outcome(i % 25, "x" * 5000)), range(100)))
    rows = [json.loads(line) for line in (tmp_path / RECORDS).open()]
    assert sorted(int(row["record"]["example"]) for row in rows) == list(range(25))
    assert len(Run(tmp_path, CONFIGURATION)) == 25


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    Run(tmp_path, CONFIGURATION).add(outcome(0))
    other = {**CONFIGURATION, "version": "1"}
    with pytest.raises(ResultsError, match=r"another run \(version differs\); give another --out"):
        Run(tmp_path, other)
    assert len(Run(tmp_path, CONFIGURATION)) == 1
    assert len(Run(tmp_path, other, fresh=True)) == 0
    with pytest.raises(ResultsError, match="another run"):
        Run(tmp_path, CONFIGURATION)


def test_records_without_a_configuration_are_refused(tmp_path: Path) -> None:
    Run(tmp_path, CONFIGURATION).add(outcome(0))
    (tmp_path / CONFIG).unlink()
    with pytest.raises(ResultsError, match=r"records without config\.json"):
        Run(tmp_path, CONFIGURATION)


def test_an_unreadable_line_is_named(tmp_path: Path) -> None:
    run = Run(tmp_path, CONFIGURATION)
    run.add(outcome(0))
    for bad in (b"{}\n", b"\xff\xfe\n", b"5\n", b'{"record": 3, "texts": {}}\n'):
        path = tmp_path / RECORDS
        data = path.read_bytes()
        path.write_bytes(data + bad)
        with pytest.raises(ResultsError, match=r"records\.jsonl:2 cannot be read"):
            Run(tmp_path, CONFIGURATION)
        path.write_bytes(data)


def test_a_damaged_configuration_is_another_run(tmp_path: Path) -> None:
    Run(tmp_path, CONFIGURATION)
    (tmp_path / CONFIG).write_text('{"pla')
    with pytest.raises(ResultsError, match="an unreadable configuration differs"):
        Run(tmp_path, CONFIGURATION)


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="give another --out"):
        Run(tmp_path / "file", CONFIGURATION)


def test_fingerprints_follow_the_configuration_not_the_order_of_its_keys() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
