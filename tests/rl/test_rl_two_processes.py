"""Two processes, a group that spans both: everything stays on its own row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rank_runs import run_ranks

SCRIPT = Path(__file__).with_name("rl_rank.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(SCRIPT, folder)
    return [
        {**json.loads((folder / f"rank{rank}.json").read_text()), "folder": folder}
        for rank in range(2)
    ]


def test_both_processes_see_all_rows_in_order(ranks: list[dict[str, Any]]) -> None:
    assert [rank["processes"] for rank in ranks] == [2, 2]
    assert ranks[0]["seen"][-1]["local"] == [0, 6]
    assert ranks[1]["seen"][-1]["local"] == [6, 12]
    for one, other in zip(ranks[0]["seen"], ranks[1]["seen"], strict=True):
        assert {k: v for k, v in one.items() if k != "local"} == {
            k: v for k, v in other.items() if k != "local"
        }
        assert one["numbers"] == one["rewards"] == [float(i) for i in range(12)]
        assert one["members"] == [0, 1, 2, 3] * 3
        for group in range(3):  # the middle group spans both processes
            assert len(set(one["prompts"][4 * group : 4 * group + 4])) == 1
        assert all(n <= 3 + m for n, m in zip(one["lengths"], one["members"], strict=True))


def test_every_row_is_paid_its_own_number(ranks: list[dict[str, Any]]) -> None:
    for index, rank in enumerate(ranks):
        real = [row for row in rank["rows"] if row["paid"]]
        lengths = ranks[0]["seen"][-1]["lengths"]
        kept = range(6 * index, 6 * index + 6 - index)
        assert sorted(row["number"] for row in real) == [float(i) for i in kept]
        for row in real:
            assert set(row["paid"]) == {row["number"]}
            assert len(row["paid"]) == lengths[int(row["number"])]


def test_processes_pad_to_the_same_number_of_rows(ranks: list[dict[str, Any]]) -> None:
    assert [len(rank["rows"]) for rank in ranks] == [6, 6]
    assert [rank["scale"] for rank in ranks] == pytest.approx([12 / 11] * 2)
    kept = sum(len(row["paid"]) for rank in ranks for row in rank["rows"])
    assert [rank["items"] for rank in ranks] == [kept, kept]


def test_processes_stay_one_model(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["weight"] == ranks[1]["weight"]
    assert ranks[0]["norms"] == ranks[1]["norms"]
    assert min(ranks[0]["norms"]) > 0
    assert ranks[0]["logged"] == ranks[1]["logged"] == [float(i) for i in range(12)]


def test_the_ledger_counts_both_processes(ranks: list[dict[str, Any]]) -> None:
    spent = sum(sum(seen["lengths"]) for seen in ranks[0]["seen"])
    assert [rank["generated"] for rank in ranks] == [spent, spent]
    run = ranks[0]["folder"] / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "rollouts"] == [0, 1]
    manifest = json.loads((run / "checkpoint-2" / "manifest.json").read_text())
    assert manifest["tokens"]["generated"] == spent
