"""The m1 proof at its smallest: the mechanisms hold on the shipped reasoner."""

import json

import pytest

from outlay.errors import InputError
from outlay.proofs import m1, m1_runs


@pytest.fixture(scope="module")
def result():
    import torch

    torch.set_num_threads(1)
    return m1.run("ci", seed=3)


def test_mechanical_claims_hold_at_any_size(result):
    held = {check.claim: check.holds for check in result.checks}
    assert held["no run thinks a token over its budget"]
    for family in m1_runs.COMPUTE:
        assert held[f"{family}: accuracy rises with B"]
        assert held[f"{family}: tokens grow with waits"]
        assert held[f"{family}: waits do not raise accuracy"]


def test_the_result_is_json_with_a_table_and_a_picture(result, tmp_path):
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["system"] == "m1"
    assert {row["family"] for row in data["data"]["sweep"]} == set(m1_runs.FAMILIES)
    assert len(result.table().splitlines()) == len(result.checks) + 2
    result.draw(tmp_path / "m1.png")
    assert (tmp_path / "m1.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="ci-scale"):
        result.save(tmp_path)


def test_points_cover_ours_and_the_baselines(result):
    stacks = {point.stack for point in result.points if point.task == "compute long"}
    assert stacks == {m1_runs.OURS, m1_runs.CUT, m1_runs.VOTE}


def test_every_question_counts_once():
    for name, task in m1_runs.FAMILIES.items():
        problems = m1_runs.distinct(task, 0, 60)
        assert len({problem.question for problem in problems}) == len(problems) == 60, name
