"""The LaCache proof at its smallest: what must hold at any size, and the tasks behind it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from outlay.errors import InputError
from outlay.proofs import lacache
from outlay.proofs.lacache_runs import FULL, OPTIONS, STREAMING, needles, policies

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def result():
    torch.set_num_threads(1)
    return lacache.run("ci", seed=3)


def test_memory_stays_flat_and_perplexity_finite(result):
    held = {check.claim: check.holds for check in result.checks}
    flat = [claim for claim in held if claim.startswith(("peak bytes", "perplexity stays"))]
    assert len(flat) == 2
    assert all(held[claim] for claim in flat)


def test_all_policies_are_asked_and_the_full_cache_finds_every_needle(result):
    found = result.data["needles"]["0.5"]
    assert set(found) == {FULL, *lacache._few(30)}
    assert found[FULL]["accuracy"] == 1.0
    assert all(cell["rows"] <= 80 for name, cell in found.items() if name != FULL)


def test_the_result_is_json_with_a_table_and_a_picture(result, tmp_path):
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["system"] == "lacache"
    assert STREAMING in data["data"]["loss"]["64"]
    assert len(result.table().splitlines()) == len(result.checks) + 2
    result.draw(tmp_path / "lacache.png")
    assert (tmp_path / "lacache.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="ci-scale"):
        result.save(tmp_path)


@pytest.mark.parametrize("kind", ["single", "multikey", "tracking"])
def test_a_needle_lies_where_it_should_and_its_word_is_among_the_options(model, kind):
    task = needles(model, 300, (0.1, 0.5), 3, kind=kind, seed=1)
    assert task.ids_BT.shape == (6, 300)
    for row in range(6):
        options = task.options_BO[row].tolist()
        assert len(set(options)) == OPTIONS
        prompt = model.decode(task.ids_BT[row].tolist())
        word = model.decode([options[int(task.answer_B[row])]])
        fact = f" is{word}."
        assert prompt.count(fact) == 1
        at = len(model.encode(prompt[: prompt.index(fact)])) / 300
        nominal = task.depths[row]
        if kind == "single":
            assert nominal - 0.09 <= at <= nominal + 0.06
        question = model.decode(task.question_BQ[row].tolist())
        assert question.endswith(" is")
        assert word not in question
        asked = question.split("secret word of the ")[1].split("?")[0]
        if kind != "tracking":
            assert f"The secret word of the {asked} is{word}." in prompt
        else:
            assert f"The {asked} has the same secret word as the " in prompt


def test_every_policy_of_the_task_holds_the_same_rows_and_the_same_sinks():
    rows = {}
    for name, method in policies(30).items():
        policy = replace(method, capacity=300).policy(30, 600)
        kept_LN, _ = policy.keep(600, policy.begin())
        rows[name] = kept_LN.shape[1]
        if name != "sliding window":
            assert (kept_LN[:, :4] == np.arange(4)).all()
    assert max(rows.values()) == 300
    assert min(rows.values()) >= 298
