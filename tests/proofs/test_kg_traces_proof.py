"""The kg-traces proof at ci scale, and its verdicts on made-up numbers."""

import json

import pytest

from outlay.errors import InputError
from outlay.paired import Difference
from outlay.proofs import kg_traces as proof
from outlay.proofs.kg_traces_runs import CLOSED, HOPS, PATH, TASKS, examples

MEANS = {CLOSED: 0.1, PATH: 0.4}


@pytest.mark.model
def test_the_ci_variant_runs_both_prompts_and_obeys_its_definitions(tmp_path):
    import torch

    torch.set_num_threads(1)
    result = proof.run("ci", seed=2)
    held = {check.claim: check.holds for check in result.checks}
    assert held["curves obey their definitions"]
    assert {point.stack for point in result.points} == {CLOSED, PATH}
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))["data"]
    assert data["graph"].startswith("countries ")
    for arm in data["arms"].values():
        assert [row["B"] for row in arm["sequential"]] == [4, 8]
        assert all(row["thinking"] <= row["B"] for row in arm["sequential"])
        assert all(reply["hops"] in HOPS for reply in arm["replies"])
    spent = {point.stack: point.kinds["prompt_new"] for point in result.points}
    assert spent[PATH] > spent[CLOSED]
    assert len(result.table().splitlines()) == len(result.checks) + 2
    result.draw(tmp_path / "kg.png")
    assert (tmp_path / "kg.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="ci-scale"):
        result.save(tmp_path)


@pytest.mark.parametrize(
    ("mean", "lo", "p", "hops", "holds"),
    [
        (0.3, 0.2, 0.001, None, True),
        (0.19, 0.1, 0.001, None, False),  # real, but not strong
        (0.3, -0.1, 0.001, None, False),
        (0.3, 0.1, 0.2, None, False),
        (0.1, 0.02, 0.01, 1, True),
        (0.1, -0.02, 0.2, 2, False),
        (-0.3, -0.4, 0.001, 2, False),
    ],
)
def test_a_gain_must_be_strong_overall_and_separable_everywhere(mean, lo, p, hops, holds):
    hi = mean + 0.1 if mean > 0 else -0.2
    assert proof.gain_check(Difference(mean, lo, hi, 60, p), hops, MEANS).holds is holds


def test_worked_examples_are_never_asked_and_the_same_for_both_prompts():
    problems = TASKS[PATH].sample(0, 60)
    for kinds in (1, 2):
        told = examples(TASKS[PATH], 0, problems, kinds)
        bare = examples(TASKS[CLOSED], 0, problems, kinds)
        assert [one.id for one in told] == [one.id for one in bare]
        assert not {one.id for one in told} & {problem.id for problem in problems}
        assert [one.meta["hops"] for one in told] == [h for h in HOPS for _ in range(kinds)]
        assert all(one.context for one in told)
        assert not any(one.context for one in bare)


def test_both_prompts_are_asked_the_same_questions():
    ids = [[p.id for p in task.sample(7, 60)] for task in TASKS.values()]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 60
