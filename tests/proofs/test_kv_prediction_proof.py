"""The proof of KV Prediction at its smallest: random weights, a short training, a few answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from outlay.cache.loop import FullCache
from outlay.errors import InputError
from outlay.models.base import SamplingParams
from outlay.models.local import LocalModel
from outlay.proofs import kv_prediction, kv_prediction_runs
from outlay.proofs.base import ProofResult
from outlay.proofs.kv_prediction_study import (
    LONGEST,
    TASK,
    Answered,
    answer,
    prompt,
    training_rows,
)
from outlay.testbeds.reasoner import checkpoint_path


@pytest.fixture(scope="module")
def result() -> ProofResult:
    torch.set_num_threads(1)
    return kv_prediction.run("ci", seed=3)


def test_exactness_and_training_hold(result: ProofResult) -> None:
    held = {check.claim: check.holds for check in result.checks}
    assert held["the base as its own auxiliary changes nothing"]
    assert held["60 steps of training lower the loss"]


def test_claims_about_the_reasoner_are_computed_from_single_answers() -> None:
    ways = ("base", "KVP-LP", "LP alone", "LP of the pair", "recent, as KVP-LP")
    generator = np.random.default_rng(0)
    studies = [
        Answered(
            seed,
            {name: generator.integers(0, 2, 50).astype(float) for name in ways}
            | {"KVP-LP": np.ones(50)},
            dict.fromkeys(ways, 1.0),
        )
        for seed in range(3)
    ]
    mean, lo, hi = kv_prediction_runs.gain(studies, "KVP-LP", "LP alone")
    wrong = 1 - np.concatenate([each.right["LP alone"] for each in studies]).mean()
    assert mean == pytest.approx(wrong)
    assert lo < mean < hi
    held = {check.claim: check.holds for check in kv_prediction._reasoner(studies)}
    assert held["reasoner: KVP-LP above its auxiliary trained alone"]
    assert held["the reasoner answers its questions"] is False
    assert held["reasoner: KVP-LP minus the base"] is None


def test_training_rows_are_chains_with_their_thinking() -> None:
    model = LocalModel.load(checkpoint_path(), name="reasoner", device="cpu")
    data = training_rows(model, 20, 0)
    for row in range(20):
        item = data[row]
        kept = item["attention_mask"].bool()
        text = model.decode(item["input_ids"][kept].tolist())
        learnt = item["labels"] != -100
        assert text.startswith("<user>")
        assert text.endswith("<eos>")
        assert "<short>" in text
        assert not (learnt & ~kept).any()
        assert "<user>" not in model.decode(item["labels"][learnt].tolist())


def test_answers_are_those_of_plain_decoding() -> None:
    model = LocalModel.load(checkpoint_path(), name="reasoner", device="cpu")
    asked = list(TASK.sample(7, 8))
    right, flops = answer(model, FullCache(), asked)
    texts = [model.generate(prompt(p), sampling=SamplingParams(max_tokens=LONGEST)) for p in asked]
    assert right.tolist() == [TASK.verify(p, t.text) for p, t in zip(asked, texts, strict=True)]
    assert flops == sum(model.flops(model.count(prompt(p)), logits_rows=1) for p in asked)


def test_fewer_flops_are_promised_and_measured(result: ProofResult) -> None:
    (clock,) = result.data["clock"]
    assert clock["flops"][0] > 1.5 * clock["flops"][1]
    assert min(clock["base"]) > 0


def test_the_result_is_json_with_a_table_and_a_picture(result: ProofResult, tmp_path: Path) -> None:
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["system"] == "kv-prediction"
    assert len(result.table().splitlines()) == len(result.checks) + 2
    assert result.draw is not None
    result.draw(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="ci-scale"):
        result.save(tmp_path)
