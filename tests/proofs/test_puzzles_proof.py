"""The puzzles proof at its smallest: scripted policies, and one step of the trained model."""

import json
from random import Random

import pytest

from outlay.errors import InputError
from outlay.evals.puzzles import Checkers, Hanoi
from outlay.proofs import puzzles, puzzles_model, puzzles_scripted
from outlay.proofs.puzzles_policies import count, cut


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proof")
    made = puzzles.run("ci", seed=3, folder=folder)
    assert (folder / "puzzles-regimes.png").stat().st_size > 10_000
    return made


def test_every_planned_truth_is_recovered(result):
    failed = [check for check in result.checks if check.holds is False]
    assert failed == []
    assert len(result.checks) >= 15
    assert sum(check.holds is True for check in result.checks) >= 14


def test_the_result_is_json_with_a_table_and_a_picture(result, tmp_path):
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["system"] == "puzzles"
    assert [row["regime"] for row in data["data"]["regimes"]] == [
        regime for _, _, regime in puzzles_scripted.DESIGN.values()
    ]
    assert len(result.table().splitlines()) == len(result.checks) + 2
    result.draw(tmp_path / "puzzles.png")
    assert (tmp_path / "puzzles.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="ci-scale"):
        result.save(tmp_path)


def test_the_peer_is_measured(result):
    assert result.peer.ours == 1.0
    assert 0 < result.peer.theirs <= 1.0
    assert result.peer.version


def test_tokens_of_the_policies_are_words_and_signs():
    assert count("moves = [[1, 0, 2]]") == 11
    assert cut("moves = [[1, 0, 2]]", 5) == "moves = [[1"
    assert cut("a b", 9) == "a b"


def test_training_requests_have_right_answers_and_prompts_of_one_length():
    random = Random(0)
    for _ in range(50):
        asked = puzzles_model.draw(random)
        assert asked.judge(asked.answer()[:-1]).correct
        assert not asked.judge(["1", "0", "0"]).correct
    one, two = puzzles_model.Asked(Hanoi(7, 0, 2), 5), puzzles_model.Asked(Hanoi(7, 1, 0), 127)
    assert len(one.prompt()) == len(two.prompt())
    assert not puzzles_model.Asked(Checkers(1)).judge(["R", "0"]).correct
    assert puzzles_model.Asked(Checkers(1)).judge([]).outcome == "wrong"


def test_the_small_model_trains_and_is_asked(monkeypatch):
    monkeypatch.setattr(puzzles_model, "ASKED", {"hanoi": 1})
    losses = []
    model = puzzles_model.train(5, 0, losses.append)
    first, last = (float(line.rpartition(" ")[2]) for line in (losses[0], losses[-1]))
    assert last < first
    asked = [puzzles_model.Asked(Hanoi(1))] * 5
    made = puzzles_model.ask(model, asked, seed=0)
    assert len(made) == 5
    assert all("end" not in tokens for tokens, _ in made)
    assert made == puzzles_model.ask(model, asked, seed=0)
