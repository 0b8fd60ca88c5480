"""The proof of A*-decoding: its quick run, and the arithmetic behind its figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from outlay.errors import InputError
from outlay.models.local import LocalModel
from outlay.proofs import a_star_decoding as proof
from outlay.proofs.a_star_decoding_runs import (
    AXES,
    Group,
    Pool,
    Setting,
    groups,
    judge_pool,
    pooled,
    questions,
    ratio_at,
    searched,
    solved,
    step_accuracy,
    truth,
    vote,
)
from outlay.reason import BestOfN, SelfConsistency, solve_many
from outlay.reason.astar import AStarDecoding
from outlay.testbeds.reasoner import checkpoint_path
from outlay.testbeds.reasoner.oracle import ChainOracle
from outlay.testbeds.reasoner.prm import ChainPRM


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel.load(checkpoint_path())


def test_the_quick_run_makes_all_claims(tmp_path: Path) -> None:
    result = proof.run("ci")
    assert len(result.seeds) == 3
    claims = [check.claim for check in result.checks]
    assert len(claims) == len(set(claims))
    for word in ("best-of-4", "90% accuracy", "passes", "AUC", "set-up", "distinct tokens"):
        assert any(word in claim for claim in claims), word
    exact = next(check for check in result.checks if "as many expansions" in check.claim)
    assert exact.holds or exact.measured == "no right answer"
    recomputed = next(check for check in result.checks if "distinct tokens" in check.claim)
    assert recomputed.holds
    assert result.draw is not None
    result.draw(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert result.to_dict()["data"]["checkpoint"]


def test_questions_are_different_held_out_and_reproducible() -> None:
    some = questions(40, 3)
    assert len({question.text for question in some}) == 40
    assert [question.text for question in questions(40, 3)] == [q.text for q in some]
    assert [group.seed for group in groups(2, [5, 6])] == [5, 6]


def test_votes_are_those_of_the_strategies(model: LocalModel) -> None:
    asked = questions(6, 1)
    group = [Group(0, asked)]
    verifier = ChainOracle(auc=0.8)
    drawn = solved(SelfConsistency(6, early_stop=False), model, group, 1.0)
    pool = judge_pool(group, drawn, verifier)
    for how in ("weighted", "naive"):
        strategy = BestOfN(verifier, 6, how)
        found = solved(strategy, model, group, 1.0)
        for row, (question, answer) in enumerate(zip(asked, found, strict=True)):
            winner = vote(pool.code_NS[row].tolist(), pool.score_NS[row].tolist(), how)
            text = drawn[row].branches[winner].completion()
            assert question.answer(text) == answer.value
            assert pool.right_NS[row, winner] == (answer.value == truth(question))
    majority = solve_many(
        SelfConsistency(6, early_stop=False), model, asked,
        sampling=proof_sampling(1.0), together=3,
    )  # fmt: skip
    for row, answer in enumerate(majority):
        winner = vote(pool.code_NS[row].tolist(), [0.0] * 6, "majority")
        assert asked[row].answer(drawn[row].branches[winner].completion()) == answer.value


def proof_sampling(temperature: float):  # type: ignore[no-untyped-def]
    from outlay.proofs.a_star_decoding_runs import sampling

    return sampling(temperature, 0)


def test_a_pools_costs_are_those_of_the_strategies_ledgers(model: LocalModel) -> None:
    asked = questions(4, 2)
    group = [Group(0, asked)]
    prm = ChainPRM()
    drawn = solved(SelfConsistency(5, early_stop=False), model, group, 1.2)
    (whole,) = pooled(judge_pool(group, drawn, prm), "x", "weighted", [5], 0)
    real = searched(model, group, 1.2, "x", 5, BestOfN(prm, 5))
    for axis in AXES:
        assert whole.cost_N[axis] == pytest.approx(real.cost_N[axis]), axis
    assert whole.right_N == pytest.approx(real.right_N)
    (free,) = pooled(judge_pool(group, drawn, prm), "x", "majority", [5], 0)
    assert free.cost("computed") == free.cost("generated") == whole.cost("generated")
    with pytest.raises(InputError, match="pool of 5"):
        pooled(judge_pool(group, drawn, prm), "x", "naive", [6], 0)


def test_a_searchs_costs_come_from_its_ledger(model: LocalModel) -> None:
    group = [Group(0, questions(3, 4))]
    found = searched(model, group, 1.0, "x", 3, AStarDecoding(ChainPRM(), 3, max_expansions=30))
    for row, answer in enumerate(found.answers):
        total = answer.ledger.totals()
        read = answer.ledger.totals(role="verifier")
        assert found.cost_N["generated"][row] == total.generated + total.forced
        assert found.cost_N["computed"][row] == total.generated + total.forced + read.prompt_new
        assert found.cost_N["billed"][row] == total.generated + total.forced + read.prompt
        assert found.cost_N["passes"][row] == answer.detail["passes"]


def line(name: str, points: list[tuple[float, float]], n: int = 400) -> list[Setting]:
    """A curve of given (cost, accuracy), every question alike in cost."""
    return [
        Setting(
            name,
            at,
            (np.arange(n) < accuracy * n).astype(float),
            {axis: np.full(n, float(cost)) for axis in AXES},
        )
        for at, (cost, accuracy) in enumerate(points)
    ]


def test_ratios_are_read_off_the_curves() -> None:
    ours = line("a", [(10, 0.5), (40, 0.9)])
    theirs = line("b", [(20, 0.3), (80, 0.7), (320, 0.9)])
    found = ratio_at(ours, theirs, "computed", 0.7)
    assert found.ours == pytest.approx(20.0)
    assert found.theirs == pytest.approx(80.0)
    assert found.value == pytest.approx(0.25)
    assert found.lo is not None
    assert found.hi is not None
    assert found.lo <= 0.25 <= found.hi < 1
    at_point = ratio_at(ours, theirs, "computed", theirs[1])
    assert at_point.value == pytest.approx(0.25)
    assert at_point.at == pytest.approx(0.7)


def test_a_curve_that_is_better_at_once_pays_for_its_cheapest_setting() -> None:
    found = ratio_at(line("a", [(30, 0.8), (60, 0.9)]), line("b", [(50, 0.6)]), "computed", 0.6)
    assert (found.ours, found.theirs) == (30.0, 50.0)


def test_an_accuracy_that_is_never_reached_gives_no_ratio() -> None:
    found = ratio_at(line("a", [(30, 0.4)]), line("b", [(50, 0.6)]), "computed", 0.5)
    assert found.value is None
    assert found.ours is None
    assert found.theirs == 50.0
    check = proof._ratio_check("claim", "paper", found, "note")
    assert check.holds is False
    assert "ours never reaches" in str(check.measured)


def test_step_accuracy_stops_at_the_first_error() -> None:
    (question,) = questions(1, 0)
    assert step_accuracy(question, "1+1=3;3+3=6;") == (0, 1)


def test_majority_costs_nothing_to_judge_and_none_never_wins() -> None:
    assert vote([-1, -1, 2], [0.9, 0.9, 0.1], "naive") == 2
    assert vote([-1, -1, 2], [0.9, 0.9, 0.1], "majority") == 2
    assert vote([0, 1, 1], [0.9, 0.3, 0.3], "weighted") == 0
    assert vote([0, 1, 1], [0.5, 0.3, 0.3], "weighted") == 1
    assert vote([1, 0], [0.5, 0.5], "majority") == 0
    assert vote([-1], [0.5], "majority") == 0


def test_a_pool_of_wrong_answers_scores_nothing() -> None:
    pool = Pool(
        np.zeros((2, 3)), np.zeros((2, 3), int), np.zeros((2, 3), int), np.ones((2, 3)),
        np.full((2, 3), 7.0), np.full((2, 3), 5.0), np.full(2, 2.0),
    )  # fmt: skip
    (setting,) = pooled(pool, "x", "weighted", [2], 0)
    assert setting.accuracy == 0
    assert setting.cost("generated") == 14
    assert setting.cost("computed") == 14 + 5 + 2  # equal solutions are read once
    assert setting.cost("billed") == 14 + 10 + 4
