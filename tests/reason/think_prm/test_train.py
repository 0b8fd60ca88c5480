"""Training: the loss covers the assistant's turn, verdict and end of text included."""

from __future__ import annotations

import copy

import pytest
import torch

from outlay.errors import CapabilityError, InputError
from outlay.models.local import LocalModel
from outlay.reason.think_prm import COMPACT, Chain, Source, ThinkPRM
from outlay.reason.think_prm.templated import TeacherNoise, TemplatedTeacher
from outlay.reason.think_prm.train import (
    Lora,
    TrainSettings,
    build_trainer,
    examples,
    fine_tune,
    said,
)
from outlay.testbeds.reasoner import load
from tiny_models import tiny_network, tiny_tokenizer

STEPS = ("3+4=7;", "7*7=8;", "</think><answer>8")
CHAINS = [
    Chain(Source("3+4*7=?", STEPS, ("good", "bad", "bad")), "1:3+4=7-A7=0y;2:7*7=9-B8=1n;"),
    Chain(
        Source("1+1=?", ("1+1=2;", "</think><answer>2"), ("good",) * 2), "1:1+1=2-A2=0y;2:=2-B2=0y;"
    ),
]


@pytest.fixture(scope="module")
def base():
    torch.set_num_threads(1)
    return load("small")


@pytest.fixture(scope="module")
def rows(base):
    return examples(CHAINS, COMPACT, base[1])


def test_the_mask_covers_exactly_the_assistants_turn(base, rows, tmp_path):
    model, tokenizer = base
    trainer = build_trainer(copy.deepcopy(model), tokenizer, rows, TrainSettings(batch=2), tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    by_text = {}
    for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        kept = [token for token, label in zip(ids, labels, strict=True) if label != -100]
        assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
        by_text[tokenizer.decode(kept)] = tokenizer.decode(ids).split("<pad>")[0]
    assert by_text == {
        row.completion + "<eos>": row.prompt + row.completion + "<eos>" for row in rows
    }
    assert all(text.endswith(("</think>?y<eos>", "</think>?n<eos>")) for text in by_text)


def test_the_verdict_is_the_gold_label_or_the_chains_own(base):
    _, tokenizer = base
    missed = Chain(CHAINS[0].source, "1:3+4=7-A7=0y;2:7*7=8-B8=0y;")
    [gold] = examples([missed], COMPACT, tokenizer)
    [own] = examples([missed], COMPACT, tokenizer, verdict=lambda chain: said(chain, COMPACT))
    assert gold.completion.endswith("?n")
    assert own.completion.endswith("?y")
    assert not said(Chain(CHAINS[0].source, "nothing decided"), COMPACT)


def test_a_second_begin_of_text_is_dropped():
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = "<bos>" + tokenizer.chat_template
    [doubled] = examples(CHAINS[:1], COMPACT, tokenizer)
    adds = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert doubled.prompt.startswith("<bos>") is not adds
    ids = tokenizer(doubled.prompt)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1


def test_training_lowers_the_loss_and_saves_safetensors(base, rows, tmp_path):
    model, tokenizer = base

    def loss(network):
        total = 0.0
        for row in rows:
            ids = tokenizer(row.prompt + row.completion, return_tensors="pt")["input_ids"]
            total += network(input_ids=ids, labels=ids, use_cache=False).loss.item()
        return total

    student = copy.deepcopy(model)
    settings = TrainSettings(epochs=6, batch=2, lr=1e-3)
    trained = fine_tune(student, tokenizer, rows, settings, tmp_path)
    assert loss(trained) < loss(model)
    assert not trained.training
    again = LocalModel.load(tmp_path)
    for name, weight in trained.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name])


def test_adapters_change_the_model_and_are_merged(tmp_path):
    tokenizer = tiny_tokenizer()
    network = tiny_network()
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    rows = examples(CHAINS, COMPACT, tokenizer)
    settings = TrainSettings(epochs=2, batch=2, lr=1e-2, lora=Lora(r=2, alpha=4), max_length=200)
    trained = fine_tune(network, tokenizer, rows, settings, tmp_path)
    after = LocalModel.load(tmp_path).model.state_dict()
    assert set(after) == set(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("proj" in name for name in changed)
    assert type(trained).__name__ == "LlamaForCausalLM"


def test_settings_and_rows_are_checked(base, tmp_path):
    model, tokenizer = base
    for knobs in ({"epochs": 0}, {"batch": 0}, {"lr": 0.0}, {"max_length": 0}):
        with pytest.raises(InputError, match=next(iter(knobs))):
            TrainSettings(**knobs)
    with pytest.raises(InputError, match="r=0"):
        Lora(r=0)
    with pytest.raises(InputError, match="no examples"):
        build_trainer(model, tokenizer, [], TrainSettings(), tmp_path)


def test_the_papers_settings_are_the_defaults():
    small, large = TrainSettings(), TrainSettings(batch=16, lr=4e-4, lora=Lora())
    assert (small.epochs, small.batch, small.lr, small.lora) == (3, 32, 6e-5, None)
    assert (large.lora.r, large.lora.alpha, large.max_length) == (32, 16, 8192)


def test_a_faultless_teacher_writes_what_the_process_filter_keeps():
    clean = TemplatedTeacher(TeacherNoise(0, 0, 0, 0))
    texts = [row[0].text for row in clean.critique([chain.source for chain in CHAINS], 1)]
    assert texts == [chain.text for chain in CHAINS]


def test_fitting_gives_another_verifier_and_leaves_the_first(base, tmp_path):
    model, tokenizer = base
    first = ThinkPRM(LocalModel(model, tokenizer, "v"), layout="compact", max_verify_tokens=60)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trained = first.fit(CHAINS, TrainSettings(epochs=1, batch=2, lr=1e-3), tmp_path)
    assert trained.max_verify_tokens == 60
    assert any(
        not torch.equal(before[name], weight)
        for name, weight in trained.model.model.state_dict().items()
    )
    assert all(torch.equal(before[name], w) for name, w in model.state_dict().items())
    assert (tmp_path / "model.safetensors").is_file()


def test_only_local_models_can_be_fitted(base):
    remote = ThinkPRM(LocalModel(*base, "near"), layout="compact", max_verify_tokens=60)
    object.__setattr__(remote, "model", Named("far"))
    with pytest.raises(CapabilityError, match="far is not a local model"):
        remote.fit(CHAINS)


class Named:
    """Something with a name that is no local model."""

    def __init__(self, name):
        self.name = name


def test_a_trained_model_can_be_copied_and_trained_again(base, rows):
    model, tokenizer = base
    settings = TrainSettings(epochs=1, batch=2, lr=1e-3)
    first = fine_tune(copy.deepcopy(model), tokenizer, rows, settings)
    second = fine_tune(copy.deepcopy(first), tokenizer, rows, settings)
    ids = tokenizer(rows[0].prompt, return_tensors="pt")["input_ids"]
    fresh = copy.deepcopy(model)
    fresh.load_state_dict(second.state_dict())
    logits = [network(input_ids=ids, use_cache=False).logits for network in (second, fresh, first)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
