"""The latent-trajectory proof at its smallest: the machinery holds on the shipped reasoner."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from outlay.errors import InputError
from outlay.proofs import latent_trajectory
from outlay.proofs import latent_trajectory_runs as runs
from outlay.proofs.base import ProofResult
from outlay.stats import auc

pytestmark = pytest.mark.filterwarnings("ignore:.*opposite of the paper")


@pytest.fixture(scope="module")
def result() -> ProofResult:
    import torch

    torch.set_num_threads(1)
    return latent_trajectory.run("ci", seed=3)


def test_streaming_equals_the_formula_at_any_size(result: ProofResult) -> None:
    claim = "signals streamed while decoding equal the formulas on stored hidden states"
    assert {check.claim: check.holds for check in result.checks}[claim]


def test_every_policy_is_measured_on_held_out_questions(result: ProofResult) -> None:
    rows = {row["policy"]: row for row in result.data["policies"]}
    assert rows["majority@5"]["tokens_of_majority"] == 1
    assert rows["first trace"]["tokens_of_majority"] < 0.5
    assert rows["oracle@5"]["accuracy"] >= max(row["accuracy"] for row in rows.values())
    for name in ("combined", "length", "entropy", "logprob", "layer_mag"):
        assert 0 < rows[f"sequential: {name}"]["tokens_of_majority"] <= 1
    assert {row["signal"] for row in result.data["auc"]} == {*runs.LATENT, *runs.RIVALS}


def test_the_result_is_json_with_a_table_and_a_picture(result: ProofResult, tmp_path: Path) -> None:
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["system"] == "latent-trajectory"
    assert len(result.table().splitlines()) == len(result.checks) + 2
    assert result.draw is not None
    result.draw(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="ci-scale"):
        result.save(tmp_path)


def test_the_slow_formula_knows_lines_and_loops() -> None:
    line = np.arange(6.0)[:, None, None] * np.ones((1, 2, 4))
    net, cumulative, aligned = runs.slow_signals(line, 2)
    assert (net, cumulative, aligned) == pytest.approx((4.0, 8.0, 1.0))
    loop = np.concatenate([line[:1], line[3:4], line[:1]])
    assert runs.slow_signals(loop, 1)[::2] == pytest.approx((0.0, 0.0))


def test_weighted_auc_counts_a_trace_as_often_as_its_weight() -> None:
    rng = np.random.default_rng(0)
    values = np.sort(rng.integers(0, 9, 40)).astype(float)
    right, weights = rng.integers(0, 2, 40).astype(float), rng.integers(0, 4, 40)
    repeated = np.repeat(np.arange(40), weights)
    found = runs._weighted_auc(values, right, weights.astype(float))
    assert found == pytest.approx(auc(values[repeated], right[repeated]))


def test_sums_are_read_exactly() -> None:
    question = runs.sums(1, 0)[0]
    digits = [int(c) for c in question.text if c.isdigit()]
    assert runs.sum_right(question, str(sum(digits)))
    assert not runs.sum_right(question, f"{sum(digits)}5")
