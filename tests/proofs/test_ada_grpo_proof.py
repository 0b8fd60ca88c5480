"""The proof of Ada-GRPO at its smallest: mechanics hold, claims are computed from real runs."""

from __future__ import annotations

import math

import pytest

from outlay.errors import ResultsError
from outlay.proofs import ada_grpo, ada_grpo_consensus, ada_grpo_runs
from outlay.proofs.ada_grpo_runs import ADA, MAIN
from outlay.rl.grid import run
from outlay.rl.grid_compare import by_label
from outlay.rl.grid_results import CellResult
from outlay.rl.running_tasks import ChainTask


def test_mechanical_claims_hold_at_any_size() -> None:
    result = ada_grpo.run("ci", seed=1)
    assert [check.holds for check in result.checks] == [True, True]


def test_entropy_of_formats() -> None:
    assert ada_grpo.entropy({"a": 0.5, "b": 0.5}) == pytest.approx(math.log(2))
    assert ada_grpo.entropy({"a": 1.0, "b": 0.0}) == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[CellResult]]:
    task = ChainTask(scales=(2.0,))
    wanted = ada_grpo_runs.cells(MAIN, (0,), task, steps=2, questions=1)
    return by_label(run(wanted, tmp_path_factory.mktemp("cells")))


def test_every_claim_is_computed_from_the_runs(runs: dict[str, list[CellResult]]) -> None:
    checks = ada_grpo.judged(runs)
    assert [check.holds is None for check in checks] == [False] * 5 + [True] * 2
    shares = ada_grpo.shares(runs[ADA])
    assert sum(shares.values()) == pytest.approx(1)
    assert checks[1].measured == sum(
        share >= ada_grpo.SHARE for name, share in shares.items() if name != "none"
    )


def test_consensus_runs_on_a_trained_policy(
    runs: dict[str, list[CellResult]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ada_grpo_consensus, "N", 12)
    best, slope = ada_grpo_consensus.consensus(runs[ADA][0])
    assert "guided:long" in best.note
    assert best.holds == (float(best.measured) >= 0)
    assert slope.holds is not None
    (length,) = runs[ada_grpo_runs.LENGTH]
    with pytest.raises(ResultsError, match="kept no weights"):
        ada_grpo_consensus.consensus(length)
