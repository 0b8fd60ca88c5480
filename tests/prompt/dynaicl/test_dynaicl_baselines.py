"""Guesses that DynaICL must beat, encoders, and models as generalists."""

import math

import numpy as np
import pytest

from outlay.errors import InputError, ModelError
from outlay.models.base import SamplingParams
from outlay.models.local import LocalModel
from outlay.prompt.dynaicl import DynaICL, Example, ModelGeneralist
from outlay.prompt.dynaicl.baselines import (
    by_entropy,
    by_label_entropy,
    by_length,
    by_similarity,
    random_k,
)
from outlay.prompt.dynaicl.config import Training
from outlay.prompt.dynaicl.encoders import encode
from outlay.testbeds.icl import checkpoint_path, workload
from outlay.testbeds.icl.labels import METHOD

POOLS = {
    "": [Example(f"a{i}", f"red fox {i}", "yes") for i in range(4)]
    + [Example(f"b{i}", f"blue whale {i}", str(i)) for i in range(4)]
}


def test_random_needs_repeat_by_seed():
    assert (random_k(9, 1) == random_k(9, 1)).all()
    assert (random_k(9, 1) != random_k(9, 2)).any()
    with pytest.raises(InputError):
        random_k(0)


def test_longer_inputs_are_taken_for_harder():
    assert by_length([Example("a", "xx"), Example("b", "xxxx")]).tolist() == [2, 4]


def test_mixed_answers_near_an_input_make_it_uncertain():
    inputs = [Example("x", "red fox"), Example("y", "blue whale")]
    found = by_label_entropy(inputs, POOLS, neighbours=4, encoder="hash")
    assert found == pytest.approx([0.0, math.log(4)])
    with pytest.raises(InputError, match="neighbours"):
        by_label_entropy(inputs, POOLS, neighbours=0, encoder="hash")


def test_similar_examples_are_counted():
    inputs = [Example("x", "red fox 1"), Example("y", "something else")]
    found = by_similarity(inputs, POOLS, threshold=0.6, encoder="hash")
    assert found.tolist() == [4, 0]
    with pytest.raises(InputError, match="threshold"):
        by_similarity(inputs, POOLS, threshold=2)


def test_entropies_must_be_numbers():
    assert by_entropy([0.0, 1.5]).tolist() == [0, 1.5]
    for bad in (float("nan"), -1.0):
        with pytest.raises(InputError, match="entropies"):
            by_entropy([bad])


def test_a_sentence_encoder_puts_like_meanings_together():
    vectors = encode("minilm", ["a cat sleeps", "a kitten naps", "interest rates rise"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_an_encoder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match="cannot load the encoder"):
        encode(str(tmp_path / "nothing"), ["x"])


def test_any_model_is_a_generalist_and_its_tokens_are_booked():
    model = LocalModel.load(checkpoint_path(), device="cpu")
    ask = ModelGeneralist(model, SamplingParams(max_tokens=3))
    batch = workload(11, 8)
    metric = lambda text, x: float(text.split(";")[0] == x.answer)  # noqa: E731
    method = DynaICL(
        K=2,
        n_s=1,
        controller="hash",
        demo=METHOD.demo,
        query=METHOD.query,
        separator="",
        mean_k=1,
        training=Training(epochs=2),
    )
    table = method.collect(ask, batch.inputs, batch.pools, count=model.count, metric=metric)
    total = ask.ledger.totals(role="target")
    assert total.prompt == table.tokens_NKD.sum()
    assert 8 * 3 <= total.generated <= 8 * 3 * 3
    served = method.fit(table).run(ask, batch.inputs, batch.pools, count=model.count, metric=metric)
    assert len(served.answers) == 8
