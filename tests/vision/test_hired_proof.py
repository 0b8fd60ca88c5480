"""The proof of HiRED at its smallest: what must hold exactly does, and the rest is reported."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.fashion import needs_fashion

from outlay.errors import InputError
from outlay.proofs import hired, hired_runs
from outlay.testbeds.seer import store
from outlay.testbeds.seer.model import SIZES, Seer, build
from outlay.vision.hired import HiRED

pytestmark = [
    needs_fashion,
    pytest.mark.filterwarnings("ignore:class-token attention is almost flat"),
]
EXACT = ("prefill FLOPs", "every image keeps", "a rate of 1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained seer of tiles: what needs no skill."""
    path = tmp_path_factory.mktemp("seer")
    store.write(path, Seer(SIZES["HR"], build(SIZES["HR"])))
    (path / store.MEASURED).write_text(json.dumps({"config": {"size": "HR"}}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def result():
    import torch

    torch.set_num_threads(1)
    return hired.run("ci", seed=3)


def test_costs_budgets_and_identity_hold_exactly(result):
    exact = [check for check in result.checks if any(part in check.claim for part in EXACT)]
    assert len(exact) == len(hired_runs.RATES) + 2
    assert all(check.holds for check in exact)


def test_fewer_tokens_cost_less(result):
    ratios = [check.measured for check in result.checks if "prefill FLOPs" in check.claim]
    assert 1 > ratios[0] > ratios[1] > ratios[2] > 0


def test_the_shipped_seer_looks_at_objects_and_hired_beats_chance(result):
    found = {check.claim: check for check in result.checks}
    assert found["the class token looks at objects"].measured > 0.5
    above = found["10%: HiRED above random"]
    assert above.ci[0] > 0
    assert above.measured > hired.CLEAR


def test_every_claim_of_the_sheet_has_a_target(result):
    with_target = {check.claim for check in result.checks if check.holds is not None}
    for part in ("20%: HiRED above random", "clustered scenes", "spread scenes", "20%: digits"):
        assert any(claim.startswith(part) for claim in with_target)


def test_points_are_on_the_axis_of_visual_tokens(result):
    cost = {(point.stack, point.budget): point.cost for point in result.points}
    assert {point.axis for point in result.points} == {"vision"}
    assert sorted({c for (name, _), c in cost.items() if name == "HiRED"}) == [19, 38, 76]
    assert {c for (name, _), c in cost.items() if name == "thumbnail only"} == {19, 36}
    assert {c for (name, _), c in cost.items() if name == "full"} == {192}


def test_the_result_is_json_with_a_table_and_a_picture(result, tmp_path):
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["system"] == "hired"
    assert set(data["data"]["clustered"]["HiRED, 20%"]) == set(hired_runs.KINDS)
    result.draw(tmp_path / "hired.png")
    assert (tmp_path / "hired.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="ci"):
        result.save(tmp_path)


def test_the_same_seed_gives_the_same_numbers(folder):
    seer = store.load("HR", folder)
    found = [
        hired_runs.right(hired_runs.bed(seer, "clustered", 8, [5]), HiRED(max_tokens=20))
        for _ in range(2)
    ]
    assert np.array_equal(*found, equal_nan=True)


def test_pruning_encoded_features_equals_pruning_pixels(folder):
    """The proof encodes once; that is what a model does that is given pixels."""
    import torch

    from outlay.testbeds.seer.evaluate import examples

    seer = store.load("HR", folder)
    bed = hired_runs.bed(seer, "spread", 4, [1])
    part, inputs = bed.counting(4)
    asked = examples(bed.seen, ["count"])["count"]
    pixels = seer.inputs(asked.seen, asked.questions)
    with torch.no_grad(), HiRED(max_tokens=20)(seer.model):
        one = seer.model(**inputs, logits_to_keep=1).logits
        two = seer.model(**pixels, logits_to_keep=1).logits
    assert len(part) == 4
    assert torch.allclose(one, two, atol=1e-5)


def test_scenes_of_several_seeds_differ_and_are_asked_about_themselves(folder):
    seer = store.load("HR", folder)
    bed = hired_runs.bed(seer, "clustered", 6, [0, 1])
    assert len(bed.seen) == 12
    assert not np.array_equal(bed.seen.images[:6], bed.seen.images[6:])
    index, questions = bed.asked["count"]
    assert index.tolist() == list(range(12))
    wanted = [int(n) for n in bed.seen.counts]
    names = ("zero", "one", "two", "three", "four", "five", "six")
    assert [names.index(question.answer[0]) for question in questions] == wanted
