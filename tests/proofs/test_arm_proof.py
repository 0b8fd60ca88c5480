"""The proof of ARM's modes at its smallest: the mechanics hold on any reasoner."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from outlay.errors import InputError
from outlay.models.local import LocalModel
from outlay.proofs import arm, arm_runs
from outlay.proofs.base import ProofResult
from outlay.reason.adaptive import Adaptive
from outlay.testbeds.reasoner import checkpoint_path


@pytest.fixture(scope="module")
def result() -> ProofResult:
    import torch

    torch.set_num_threads(1)
    return arm.run("ci", seed=1)


def test_mechanical_claims_hold_at_any_size(result: ProofResult) -> None:
    held = {check.claim: check.holds for check in result.checks}
    assert held["a guided response has the format that was asked for"]
    (sums,) = [claim for claim in held if claim.startswith("consensus makes one call per")]
    assert held[sums]
    assert len([claim for claim, holds in held.items() if holds is not None]) == 4


def test_the_oracle_is_no_worse_than_any_format_and_a_random_one_no_better(
    result: ProofResult,
) -> None:
    quality = {point.stack: point.quality for point in result.points}
    guided = [quality[f"guided:{name}"] for name in arm.FORMATS]
    assert quality[arm.ORACLE] >= max(guided)
    assert quality[arm.ORACLE] >= quality[arm.RANDOM]


def test_consensus_costs_what_its_calls_cost(result: ProofResult) -> None:
    cost = {point.stack: point.cost for point in result.points}
    cheap = sum(cost[f"guided:{name}"] for name in arm.CHEAP)
    assert cheap <= cost[arm.CONSENSUS] <= cheap + cost["guided:long"] + 1e-9


def test_the_result_is_json_with_a_table_and_a_picture(result: ProofResult, tmp_path: Path) -> None:
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["system"] == "arm"
    assert {row["family"] for row in data["data"]["families"]} == set(arm_runs.FAMILIES)
    assert len(result.table().splitlines()) == len(result.checks) + 2
    assert result.draw is not None
    result.draw(tmp_path / "arm.png")
    assert (tmp_path / "arm.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="ci-scale"):
        result.save(tmp_path)


def test_every_question_counts_once_and_every_length_equally_often() -> None:
    some = arm_runs.problems(504, 0)
    assert len({problem.question for problem in some}) == len(some) == 504
    counts = np.unique(arm_runs.difficulty(some), return_counts=True)[1]
    assert set(counts) == {42}


def test_remembered_samples_are_those_that_would_be_drawn() -> None:
    some = arm_runs.problems(12, 2)
    method = Adaptive(formats="reasoner", mode="consensus")
    plain = LocalModel.load(checkpoint_path())
    expected = arm_runs.play(plain, some, "once", method, [0])
    model = arm_runs.Remembering.load(checkpoint_path())
    for _ in range(2):  # the second time nothing is drawn
        computed = model.computed_tokens
        cell = arm_runs.play(model, some, "once", method, [0])
        assert cell.calls == expected.calls
        assert (cell.tokens == expected.tokens).all()
        assert (cell.right == expected.right).all()
    again = model.computed_tokens - computed
    assert again <= sum(len(model.encode(arm_runs.TASK.prompt(p, ""))) for p in some)


def test_slopes_are_those_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(1, 9, 60).astype(float), rng.random(60)
    slope_R = arm_runs.slopes(x, y, 20, 3)
    assert slope_R[0] == pytest.approx(np.polyfit(x, y, 1)[0])
    index_RN = np.random.default_rng(3).integers(0, 60, size=(20, 60))
    for slope, index in zip(slope_R[1:], index_RN, strict=True):
        assert slope == pytest.approx(np.polyfit(x[index], y[index], 1)[0])
