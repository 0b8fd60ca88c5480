"""Anytime reasoning on two processes whose groups span both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rank_runs import run_ranks

SCRIPT = Path(__file__).with_name("anytime_rank.py")


def test_trees_and_rows_train_alike_on_two_processes(tmp_path: Path) -> None:
    """Rows per process differ (answers without an advantage are left out); thinkings do not."""
    run_ranks(SCRIPT, tmp_path)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["tree"]["grad_norm"] > 0
    assert first["tree"]["grad_norm"] == pytest.approx(first["rows"]["grad_norm"], rel=1e-4)
    assert first["tree"]["ledger"] == first["rows"]["ledger"]
