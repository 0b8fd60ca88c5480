"""The think-prm proof at its smallest: the filters, and the shipped verifier against a guess."""

import json

import numpy as np
import pytest

from outlay.errors import InputError
from outlay.proofs import think_prm, think_prm_measures, think_prm_runs


@pytest.fixture(scope="module")
def result():
    import torch

    torch.set_num_threads(1)
    return think_prm.run("ci", seed=3)


def test_the_shipped_verifier_beats_a_constant_guess(result):
    held = {check.claim: check.holds for check in result.checks}
    assert held["first errors are found far better than by a constant guess"]
    assert held["critiques keep their format"]


def test_every_sampled_chain_is_kept_or_killed_by_name(result):
    for row in result.data["filters"].values():
        assert row["kept"] + sum(row["killed"].values()) == row["sampled"] == 150
    kept = {name: row["killed"] for name, row in result.data["filters"].items()}
    assert kept[think_prm.PROCESS]["process"] + kept[think_prm.PROCESS]["format"] > 0
    assert kept[think_prm.NONE]["process"] == kept[think_prm.NONE]["format"] == 0


def test_the_result_is_json_with_a_table_and_a_picture(result, tmp_path):
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["system"] == "think-prm"
    assert len(result.table().splitlines()) == len(result.checks) + 2
    result.draw(tmp_path / "think-prm.png")
    assert (tmp_path / "think-prm.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="ci-scale"):
        result.save(tmp_path)


def test_nothing_is_saved_where_nothing_is_trained(tmp_path):
    with pytest.raises(InputError, match="trains no verifier"):
        think_prm.run("ci", folder=tmp_path)


def test_f1_follows_its_definition():
    assert think_prm_measures.f1(np.array([3.0, 1.0, 2.0])) == pytest.approx(6 / 9)
    assert think_prm_measures.f1(np.zeros(3)) == 0


def test_every_test_question_is_held_out_and_counts_once():
    task = think_prm_runs.ChainArith(operations=think_prm_runs.OPERATIONS)
    drawn = think_prm_runs.distinct(task, 1, 60)
    train = think_prm_runs.ChainArith(operations=think_prm_runs.OPERATIONS, split="train")
    seen = {problem.question for problem in think_prm_runs.distinct(train, 1, 200)}
    assert len({problem.question for problem in drawn}) == len(drawn) == 60
    assert not seen & {problem.question for problem in drawn}
