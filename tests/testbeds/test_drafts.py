"""Drafts: low-rank updates, their training, what ships, and which model gets which draft."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from outlay.errors import InputError, ModelError
from outlay.models.local import LocalModel
from outlay.models.truncated import truncated
from outlay.testbeds.drafts import draft_for, lowrank, shipped_path
from outlay.testbeds.drafts.chats import questions
from outlay.testbeds.drafts.store import KEEP, WEIGHTS, read, smollm2_draft
from outlay.testbeds.drafts.train import (
    DraftConfig,
    State,
    agreement,
    sample_chats,
    split_chats,
    train,
)
from tiny_models import tiny_model, tiny_network

IDS_BT = torch.tensor([[5, 9, 12, 30, 7, 8]])


def logits(network) -> torch.Tensor:
    with torch.inference_mode():
        return network(IDS_BT, use_cache=False).logits


def test_an_attached_network_starts_as_itself_and_merges_to_what_was_trained() -> None:
    network = tiny_network()
    before = logits(network)
    trained = lowrank.attach(network, 3)
    assert torch.equal(logits(network), before)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.05 * torch.randn_like(parameter)).copy_(parameter.bfloat16().float())
    after = logits(network)
    assert not torch.allclose(after, before, atol=1e-3)
    merged = tiny_network()
    lowrank.merge(merged, lowrank.extract(network))
    torch.testing.assert_close(logits(merged), after, atol=1e-4, rtol=1e-4)


def test_only_updates_and_norms_are_trained() -> None:
    network = tiny_network()
    trained = lowrank.attach(network, 2)
    free = [p for p in network.parameters() if p.requires_grad]
    assert {id(p) for p in free} == {id(p) for p in trained}
    assert not network.get_output_embeddings().weight.requires_grad


def test_updates_of_another_network_are_refused() -> None:
    network = tiny_network()
    lowrank.attach(network, 2)
    state = lowrank.extract(network)
    with pytest.raises(ModelError, match="does not fit"):
        lowrank.merge(tiny_network(num_hidden_layers=1), state)
    with pytest.raises(ModelError, match="is for weights"):
        lowrank.merge(tiny_network(intermediate_size=32), state)
    with pytest.raises(InputError, match="rank=0"):
        lowrank.attach(tiny_network(), 0)


def test_distilling_brings_a_draft_towards_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    from outlay.testbeds.drafts import train as module

    target = tiny_model()
    config = DraftConfig(
        keep=(0,), rank=16, steps=120, rows=8, length=16, lr=1e-2, ce=0.0, chats=16
    )
    generator = torch.Generator().manual_seed(0)

    def rows(tokenizer, *, length, seed):
        while True:
            yield torch.randint(5, 17, (length,), generator=generator)

    monkeypatch.setattr(module.text, "rows", rows)  # the tiny tokenizer makes no sense of real text
    chats = sample_chats(target, config)
    assert chats[0].shape == (16, 16)
    cut = truncated(target.model, config.keep)
    seen: list[State] = []
    state = train(target, cut, config, chats, seen.append)
    assert len(seen) == 120
    assert seen[-1].tokens > 0
    draft = truncated(target.model, config.keep)
    lowrank.merge(draft, state)
    fresh = torch.randint(5, 17, (8, 16), generator=torch.Generator().manual_seed(7))
    held = fresh, torch.ones_like(fresh, dtype=torch.bool)
    before, after = agreement(target, cut, held), agreement(target, draft, held)
    assert after.overlap > before.overlap + 0.05
    assert after.positions == 8 * 15
    assert after.target_nll == pytest.approx(before.target_nll)


def test_a_model_agrees_with_itself_and_padding_does_not_count() -> None:
    target = tiny_model()
    real = torch.ones((1, 6), dtype=torch.bool)
    real[0, 4:] = False
    found = agreement(target, target.model, (IDS_BT, real))
    assert found.overlap == pytest.approx(1.0, abs=1e-5)
    assert found.top == 1.0
    assert found.positions == 3


def test_training_stops_at_its_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from outlay.testbeds.drafts import train as module

    target = tiny_model()
    config = DraftConfig(keep=(0,), rank=2, steps=10_000, rows=2, length=16, chats=0, minutes=0.01)

    def rows(tokenizer, *, length, seed):
        while True:
            yield torch.arange(length) + 5

    monkeypatch.setattr(module.text, "rows", rows)
    none = torch.zeros((0, 16), dtype=torch.long), torch.zeros((0, 16), dtype=torch.bool)
    seen: list[State] = []
    train(target, truncated(target.model, (0,)), config, none, seen.append)
    assert 1 <= len(seen) < 10_000
    assert seen[-1].lr < config.lr


def test_questions_are_different_and_chats_are_split() -> None:
    asked = questions(500)
    assert len(set(asked)) == 500
    assert asked == questions(500)
    assert asked != questions(500, seed=1)
    rows = torch.arange(40)[:, None], torch.ones((40, 1), dtype=torch.bool)
    kept, held = split_chats(rows)
    assert len(kept[0]) == 38
    assert held[0][:, 0].tolist() == [19, 39]


@pytest.mark.parametrize(
    "knobs", [{"rank": 0}, {"steps": 0}, {"rows": 0}, {"length": 8}, {"lr": 0.0}, {"ce": -1.0}]
)
def test_bad_configurations_are_refused(knobs: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(knobs))):
        DraftConfig(**knobs)  # type: ignore[arg-type]


def test_the_shipped_draft_is_small_and_what_its_card_says() -> None:
    keep, state = read(shipped_path())
    assert keep == KEEP
    assert (shipped_path() / WEIGHTS).stat().st_size <= 8e6
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())
    assert sum(name.endswith(".up") for name in state) == 7 * len(KEEP)
    record = json.loads((shipped_path() / "measured.json").read_text())
    card = (shipped_path() / "README.md").read_text()
    for row in record["rows"]:
        assert f"| {row['text']} | {row['draft']} | {row['overlap']:.3f} |" in card
    by_name = {(row["text"], row["draft"]): row["overlap"] for row in record["rows"]}
    for text in ("english", "code", "chats"):
        assert by_name[text, "distilled"] > by_name[text, "as cut"] + 0.2


def test_stored_drafts_that_cannot_be_read_are_refused(tmp_path) -> None:
    with pytest.raises(ModelError, match="is missing"):
        read(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="no stored draft"):
        read(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match="no stored draft"):
        read(tmp_path)


def test_the_reasoners_draft_is_its_small_sibling() -> None:
    from outlay.testbeds.reasoner import checkpoint_path

    model = LocalModel.load(checkpoint_path(), name="reasoner")
    draft = draft_for(model)
    assert draft.name == "reasoner/small"
    assert draft_for(model) is draft
    with pytest.raises(InputError, match="draft="):
        draft_for(draft)


def test_a_model_without_a_draft_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="draft="):
        draft_for(tiny_model())
    with pytest.raises(InputError, match="no SmolLM2-135M"):
        smollm2_draft(tiny_model())


def test_the_embedded_models_draft_agrees_with_it_and_shares_its_embedding(tmp_path) -> None:
    from outlay.models import embedded

    if embedded.status() is not None:
        pytest.skip("the embedded model is not in the cache; run 'outlay models fetch'")

    target = embedded.load(device="cpu")
    draft = draft_for(target)
    assert draft.model.get_input_embeddings() is target.model.get_input_embeddings()
    assert draft.model.config.num_hidden_layers == len(KEEP)
    ids_NT = torch.tensor([target.encode(str(json.__doc__))[:160]])
    found = agreement(target, draft.model, (ids_NT, torch.ones_like(ids_NT, dtype=torch.bool)))
    record = json.loads((shipped_path() / "measured.json").read_text())
    said = min(row["overlap"] for row in record["rows"] if row["draft"] == "distilled")
    assert found.overlap > said - 0.15
    assert load_file(shipped_path() / WEIGHTS).keys() == read(shipped_path())[1].keys()
