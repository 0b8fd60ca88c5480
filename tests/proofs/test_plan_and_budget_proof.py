"""The Plan-and-Budget proof at its smallest; and all its claims for a reasoner without errors."""

import json
from dataclasses import replace

import pytest

from outlay.errors import InputError
from outlay.proofs import plan_and_budget, plan_and_budget_runs
from outlay.testbeds.reasoner import parse_question
from reason.plan_and_budget.exact import ExactReasoner


@pytest.fixture(scope="module")
def result():
    import torch

    torch.set_num_threads(1)
    return plan_and_budget.run("ci", seed=3)


def test_mechanical_claims_hold_at_any_size(result):
    held = {check.claim: check.holds for check in result.checks}
    assert held["no run samples a token over B + answer_reserve"]
    assert held["exact BAM leaves no more uncertainty than the printed form and the even split"]


def test_the_result_is_json_with_a_table_and_a_picture(result, tmp_path):
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["system"] == "plan-and-budget"
    policies = {row["policy"] for row in data["data"]["cells"]}
    assert policies == {"even", "oracle", "noisy", "reversed", "BAM", "global cap"}
    assert {point.stack for point in result.points} == policies
    assert len(result.table().splitlines()) == len(result.checks) + 2
    result.draw(tmp_path / "proof.png")
    assert (tmp_path / "proof.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="ci-scale"):
        result.save(tmp_path)


def test_what_the_problem_needs_is_enough_for_an_even_split():
    task = plan_and_budget.TASK
    for problem in task.sample(0, 12):
        lengths = [len(chain.operations) for chain in parse_question(problem.question).chains]
        longest = max(6 * max(lengths) + 1, 6 * (len(lengths) - 1) + 2)
        assert plan_and_budget_runs.even_need(task, problem) == (len(lengths) + 1) * longest


def test_every_claim_holds_where_the_model_makes_no_errors(monkeypatch):
    """Truncation alone decides here: a claim that fails is the method's or the proof's fault."""

    class Loader:
        @staticmethod
        def load(*_, **__):
            return ExactReasoner()

    size = replace(plan_and_budget.SIZES["laptop"], seeds=1, problems=48, ladder=30, prompts=0)
    monkeypatch.setattr(plan_and_budget, "LocalModel", Loader)
    monkeypatch.setitem(plan_and_budget.SIZES, "laptop", replace(size, calibration=40, draws=99))
    result = plan_and_budget.run("laptop", seed=1)
    assert {check.claim for check in result.checks if check.holds is False} == set()
    assert len([check for check in result.checks if check.holds]) >= 12
    rungs = {row["rung"]: row for row in result.data["ladder"]}
    assert len(rungs) == 13
    assert rungs["planned"]["accuracy"] == 1.0
    assert rungs["planned + weighted, constant"]["e3"] > rungs["planned + uniform"]["e3"]
