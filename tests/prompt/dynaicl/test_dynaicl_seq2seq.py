"""The encoder-decoder that writes the number of demonstrations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dynaicl_tables import K, made_table
from transformers import T5Config, T5ForConditionalGeneration

from outlay.errors import InputError, ModelError
from outlay.prompt.dynaicl import Controller, DynaICL
from outlay.prompt.dynaicl.config import Training
from outlay.prompt.dynaicl.encoders import encode
from outlay.prompt.dynaicl.seq2seq import MAX_READ, Writer
from outlay.prompt.dynaicl.training import policy_loss, policy_of, reinforce, rewards
from tiny_models import tiny_tokenizer

TEXTS = ["easy 3", "one more 5", "hard word 712 and much longer than the others", ""]
WRITER = DynaICL(
    K=K, head="seq2seq", controller="bytes", training=Training(epochs=40, hidden=24, layers=1)
)


@pytest.fixture(scope="module")
def table():
    torch.set_num_threads(1)
    return made_table()


@pytest.fixture(scope="module")
def fitted(table):
    return {
        encoder: replace(WRITER, controller=encoder).fit(table[0]) for encoder in ("bytes", "hash")
    }


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A small encoder-decoder as a folder for transformers, with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("t5")
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    shape = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    T5ForConditionalGeneration(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("encoder", ["bytes", "hash"])
def test_it_tells_new_inputs_of_each_kind_apart(fitted, encoder):
    fresh, kind = made_table(90, seed=1)
    needed = fitted[encoder].predict(fresh.inputs).needed_N
    means = [needed[kind == k].mean() for k in range(3)]
    assert means[0] < 0.7 < means[1] < 2.0 < means[2]


@torch.no_grad()
def test_the_likelihood_of_a_number_is_that_of_its_digits_and_its_end():
    writer = Writer.fresh("bytes", 12, WRITER.training, 0)
    x = writer.inputs(TEXTS)
    found = writer(x)
    assert found.shape == (len(TEXTS), 13)
    for i, text in enumerate(TEXTS):
        ids = torch.tensor([[byte + 3 for byte in text.encode()] + [1]])
        for k in (0, 1, 10, 12):
            labels = torch.tensor([[ord(digit) + 3 for digit in str(k)] + [1]])
            mean = writer.net(input_ids=ids, labels=labels).loss  # of T5 itself, alone, unpadded
            assert float(found[i, k]) == pytest.approx(-float(mean) * labels.shape[1], abs=1e-4)
            one = writer.written(x[i : i + 1], torch.tensor([k]))
            assert float(one[0]) == pytest.approx(float(found[i, k]), abs=1e-4)


def test_the_likeliest_number_is_what_generation_writes(fitted):
    writer = fitted["bytes"].trained().writer
    texts = ["easy 12", "one more 40", "hard word 7"]
    policy_NK = writer.policy(texts)
    written = writer.net.generate(writer.inputs(texts)[:, :32], max_new_tokens=3, do_sample=False)
    said = ["".join(chr(int(t) - 3) for t in row if int(t) > 2) for row in written]
    assert said == [str(k) for k in policy_NK.argmax(axis=1)]


def test_the_prediction_is_the_mean_of_what_may_be_written(fitted):
    found = fitted["bytes"].predict(TEXTS)
    assert found.policy_NK.sum(axis=1) == pytest.approx(1)
    assert found.needed_N == pytest.approx(found.policy_NK @ np.arange(K + 1))
    assert found.curves_NK[:, -1] == pytest.approx(1)
    assert (np.diff(found.curves_NK, axis=1) >= 0).all()


def test_padding_and_neighbours_change_nothing(fitted):
    for method in fitted.values():
        alone = [method.predict([text]).needed_N[0] for text in TEXTS]
        assert method.predict(TEXTS).needed_N == pytest.approx(alone, abs=1e-4)


def test_what_comes_behind_the_window_is_not_read():
    writer = Writer.fresh("bytes", K, WRITER.training, 0)
    start = "x" * (MAX_READ - 1)
    ids = writer.inputs([start + "a", start + "bcd"])
    assert ids.shape == (2, MAX_READ)
    assert (ids[0] == ids[1]).all()
    assert (writer.inputs(["xa"]) != writer.inputs(["xb"])).any()


def test_the_instruction_is_read_with_the_input(fitted):
    controller = fitted["bytes"].trained()
    told = replace(controller, instruction="hard word")
    assert told.predict(["7"]).policy_NK == pytest.approx(
        controller.predict(["hard word\n7"]).policy_NK
    )


# -- stage 2 --------------------------------------------------------------------------------------


def drawn(seed=0, n=6):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(size=(n, K + 1))), torch.tensor(rng.random((n, K + 1)))


def gradient(outputs, reward, pg, generator=None):
    outputs = outputs.clone().requires_grad_()
    policy_loss(policy_of(outputs, "seq2seq"), reward, pg, generator).backward()
    return outputs.grad


def test_the_exact_gradient_equals_finite_differences():
    outputs, reward = drawn()
    found, step = gradient(outputs, reward, "exact"), 1e-6
    for i, j in np.ndindex(*outputs.shape):
        ends = []
        for sign in (1, -1):
            moved = outputs.clone()
            moved[i, j] += sign * step
            ends.append((policy_of(moved, "seq2seq") * reward).sum(1).mean())
        assert float(found[i, j]) == pytest.approx(
            -float((ends[0] - ends[1]) / (2 * step)), abs=1e-6
        )


def test_the_exact_gradient_is_the_mean_of_many_sampled_ones():
    outputs, reward = drawn(1)
    generator = torch.Generator().manual_seed(0)
    samples = torch.stack([gradient(outputs, reward, "reinforce", generator) for _ in range(2000)])
    error = samples.std(0) / len(samples) ** 0.5
    assert (samples.std(0) > 0).any()
    exact = gradient(outputs, reward, "exact")
    assert ((samples.mean(0) - exact).abs() <= 4.5 * error + 1e-9).all()


@pytest.mark.parametrize("pg", ["exact", "reinforce"])
def test_reinforcement_raises_the_expected_reward(table, fitted, pg):
    reward = rewards(table[0], 0.5)
    writer = fitted["bytes"].trained().writer
    config = replace(WRITER.training, rl_epochs=10, rl_lr=1e-3, kl=0.0, entropy=0.0)
    x = writer.inputs(table[0].inputs)
    after = reinforce(writer, x, reward, pg, config, 0, "seq2seq")
    gained = [
        float((net.policy(table[0].inputs) * reward).sum(axis=1).mean()) for net in (writer, after)
    ]
    assert gained[1] > gained[0] + 0.01


def test_a_dearer_demonstration_lowers_the_mean_number(table):
    means = []
    for lam in (0.0, 3.0):
        training = replace(WRITER.training, epochs=15, rl_epochs=10, rl_lr=3e-3)
        found = replace(WRITER, lam=lam, training=training).fit(table[0]).predict(table[0].inputs)
        means.append(float(found.needed_N.mean()))
    assert means[0] > means[1] + 0.3


# -- files ----------------------------------------------------------------------------------------


def test_training_twice_gives_the_same_controller(table):
    method = replace(WRITER, training=replace(WRITER.training, epochs=2, rl_epochs=1))
    first, second = (method.fit(table[0]).predict(TEXTS).policy_NK for _ in range(2))
    assert (first == second).all()
    other = replace(method, seed=1).fit(table[0]).predict(TEXTS).policy_NK
    assert (first != other).any()


@pytest.mark.parametrize("encoder", ["bytes", "hash"])
def test_a_saved_controller_predicts_the_same(fitted, encoder, tmp_path):
    folder = fitted[encoder].save(tmp_path / "c")
    again = DynaICL(K=K, saved=str(folder))
    assert again.trained().head == "seq2seq"
    assert (again.predict(TEXTS).policy_NK == fitted[encoder].predict(TEXTS).policy_NK).all()


def test_a_pretrained_one_is_fine_tuned_and_saved_whole(table, pretrained, tmp_path):
    method = replace(
        WRITER, controller=f"seq2seq:{pretrained}", training=Training(epochs=40, lr=1e-2)
    )
    untouched = Writer.fresh(method.controller, K, method.training, 0)
    trained = method.fit(table[0])
    fresh, kind = made_table(60, seed=1)
    needed = trained.predict(fresh.inputs).needed_N
    assert needed[kind == 0].mean() + 1 < needed[kind == 2].mean()
    before = untouched.policy(fresh.inputs) @ np.arange(K + 1)
    assert abs(before[kind == 0].mean() - before[kind == 2].mean()) < 0.5
    assert np.isfinite(trained.predict([""]).needed_N).all()
    again = DynaICL(K=K, saved=str(trained.save(tmp_path / "c")))
    assert again.predict(TEXTS).needed_N == pytest.approx(trained.predict(TEXTS).needed_N, abs=1e-5)


def test_a_broken_one_is_refused(fitted, tmp_path):
    folder = fitted["bytes"].save(tmp_path / "c")
    (folder / "writer.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ModelError, match="seq2seq controller"):
        Controller.load(folder)
    (folder / "writer.json").unlink()
    with pytest.raises(ModelError, match="seq2seq controller"):
        Controller.load(folder)
    controller = fitted["bytes"].trained()
    with pytest.raises(ModelError, match="lacks its encoder-decoder"):
        replace(controller, writer=None)
    with pytest.raises(ModelError, match="K=5"):
        replace(controller, K=5)
    broken = Writer.fresh("bytes", K, WRITER.training, 0)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        replace(controller, writer=broken)


def test_sentence_vectors_of_another_width_are_refused(fitted):
    writer = fitted["hash"].trained().writer
    other = Writer(writer.net, K, "minilm", features=writer.features)
    with pytest.raises(ModelError, match="384"):
        other.inputs(["x"])


def test_readers_of_text_are_for_this_head_alone(tmp_path):
    with pytest.raises(InputError, match="head='seq2seq'"):
        DynaICL(controller="bytes")
    for selector in ("knn", "votek"):
        with pytest.raises(InputError, match="vectors"):
            replace(WRITER, selector=selector)
    with pytest.raises(InputError, match="no vectors"):
        encode("bytes", ["x"])
    with pytest.raises(InputError, match="names no model"):
        Writer.fresh("seq2seq:", K, WRITER.training, 0)
    with pytest.raises(ModelError, match="encoder-decoder"):
        Writer.fresh(f"seq2seq:{tmp_path}/nothing", K, WRITER.training, 0)
    with pytest.raises(InputError, match="layers"):
        Training(layers=0)
