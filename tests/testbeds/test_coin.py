"""The traces of the coin testbed, and the training of its heads."""

import numpy as np
import pytest
import torch

from outlay.audit.attacks import World
from outlay.audit.embedding import Embedder
from outlay.audit.heads import Heads, cosine
from outlay.errors import InputError
from outlay.stats import auc
from outlay.testbeds.coin.calibrate import PLACES, parted, subject
from outlay.testbeds.coin.traces import SOURCES, Trace, pieces, split_of, traces
from outlay.testbeds.coin.train import (
    DeepSets,
    Pairs,
    Recurrent,
    TrainConfig,
    focal,
    train_head,
    train_verifier,
)


class Flat(Embedder):
    """One vector for everything: only lengths are looked at."""

    def __call__(self, texts):
        return np.tile(np.eye(1, 384, dtype=np.float32), (len(texts), 1))


@pytest.mark.model
@pytest.mark.parametrize("source", SOURCES)
def test_traces_are_the_same_every_time_and_no_name_is_in_two_splits(source):
    made = traces(source, "test", 3)
    assert made == traces(source, "test", 3)
    for trace in made:
        assert 640 <= len(trace.tokens) <= 2560
        assert trace.answer.strip()
        assert "".join(trace.tokens).isascii()
        assert pieces("".join(trace.tokens[:5]))
    if source == "pages":
        assert all(split_of(trace.name) == "test" for trace in made)
    with pytest.raises(InputError, match="at least one"):
        traces(source, "test", 0)


def test_focal_loss_is_cross_entropy_at_gamma_0_and_forgives_easy_pairs():
    logits, labels = torch.tensor([3.0, -1.0, 0.2]), torch.tensor([1.0, 0.0, 1.0])
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert torch.isclose(2 * focal(logits, labels, 0.0, 0.5), plain)
    easy, hard = torch.tensor([4.0]), torch.tensor([-1.0])
    one = torch.ones(1)
    ratio = focal(easy, one, 2.0, 0.25) / focal(hard, one, 2.0, 0.25)
    assert ratio < focal(easy, one, 0.0, 0.25) / focal(hard, one, 0.0, 0.25)


def test_a_trained_head_tells_apart_what_the_raw_cosine_cannot():
    rng = np.random.default_rng(0)
    signal, noise = rng.normal(size=(400, 2)), 3 * rng.normal(size=(800, 6))
    left = np.concatenate([signal, noise[:400]], axis=1)
    same = rng.random(400) < 0.5
    other = np.where(same[:, None], signal, rng.normal(size=(400, 2)))
    right = np.concatenate([other, noise[400:]], axis=1)
    data = Pairs(left.astype(np.float32), right.astype(np.float32), same.astype(np.float32))
    head = train_head(data, TrainConfig(epochs=40, lr=3e-2))
    trained = auc(head(data.left_ND, data.right_ND), same)
    assert trained > auc(cosine(left, right), same) + 0.1


@pytest.mark.parametrize(("kind", "network"), [("deepset", DeepSets), ("rnn", Recurrent)])
def test_numpy_and_torch_verifiers_agree(kind, network):
    rng = np.random.default_rng(1)
    good = [[tuple(p) for p in rng.uniform(0.5, 1, (5, 2))] for _ in range(20)]
    bad = [[tuple(p) for p in rng.uniform(0, 0.6, (5, 2))] for _ in range(20)]
    flags = [False] * 20 + [True] * 20
    config = TrainConfig(verifier_steps=60)
    verifier = train_verifier(kind, good + bad, flags, config)
    values = [verifier.evidence(each, [False] * 5) for each in good + bad]
    assert np.mean(values[20:]) > np.mean(values[:20]) + 1
    made = network()
    weights = made.weights()
    data = torch.tensor([good[0]], dtype=torch.float32)
    with torch.no_grad():
        wanted = float(made(data, torch.ones(1, 5))[0])
    from outlay.audit.verifiers import Verifier

    assert Verifier(kind, weights).evidence(good[0], [False] * 5) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.model
def test_an_inflated_trace_is_as_long_as_its_honest_one_wherever_padding_goes():
    for trace in traces("pages", "test", 2):
        for ir in (0.25, 1.0, 3.0):
            for place in PLACES:
                made = subject(trace, "repeat_last", ir, 0, World(32), Flat(), place).padded
                assert abs(len(made.tokens) - len(trace.tokens)) <= 2
                assert sum(made.injected) == pytest.approx(len(trace.tokens) * ir / (1 + ir), abs=2)


def test_a_third_of_each_source_teaches_and_the_rest_sets_bounds():
    made = [Trace(f"{source}/{i}", source, ("a",), "b") for i in range(9) for source in SOURCES]
    teach, fit = parted(made)
    assert len(teach) == 6
    assert len(fit) == 12
    assert not {trace.name for trace in teach} & {trace.name for trace in fit}
    assert {trace.source for trace in teach} == set(SOURCES)


@pytest.mark.parametrize("block", [32, 256])
def test_the_shipped_heads_say_how_they_were_made(block):
    heads = Heads.load(block=block)
    assert heads.dimension == 384
    assert set(heads.verifiers) == {"rule", "deepset", "rnn"}
    assert heads.about["block"] == block
    for name in ("tokens", "answer"):
        assert heads.about["auc"][name]["head"] > heads.about["auc"][name]["cosine"]
