"""The sliced SmolLM2: the same function where it must be, and a router that is read with checks."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from outlay.errors import CapabilityError, InputError, ModelError
from outlay.testbeds import moe
from outlay.testbeds.moe.card import save
from outlay.testbeds.moe.train import TrainConfig, Trained, measure, routed, start, train
from tiny_models import tiny_network, tiny_tokenizer

EXPERTS = 8


@pytest.fixture(scope="module")
def dense():
    torch.set_num_threads(1)
    return tiny_network("Llama", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def ids():
    return torch.arange(10, 40)[None]


def logits(network, ids_1T: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return network(ids_1T, use_cache=False).logits


def test_all_experts_and_a_zero_router_are_the_dense_model(dense, ids) -> None:
    for experts in (1, 4, 16):
        network = moe.sliced(dense, experts, experts)
        torch.testing.assert_close(logits(network, ids), logits(dense, ids), rtol=1e-4, atol=1e-4)


def test_the_mixture_is_the_dense_mlp_with_weighted_neurons(dense, ids) -> None:
    router_LEC = torch.randn(2, EXPERTS, 32, generator=torch.Generator().manual_seed(0))
    network = moe.sliced(dense, EXPERTS, 3, router_LEC)
    student, mlps = routed(dense, router_LEC, 3)
    torch.testing.assert_close(logits(network, ids), logits(student, ids), rtol=1e-4, atol=1e-4)
    assert all((mlp.chosen_NE.sum(-1) == 3).all() for mlp in mlps)


@pytest.mark.model
def test_sliced_smollm2_is_smollm2_with_all_experts(model) -> None:
    network = moe.sliced(model.model, 16, 16)
    ids_1T = torch.tensor([model.encode("The capital of France is Paris, and")])
    torch.testing.assert_close(
        logits(network, ids_1T), logits(model.model, ids_1T), rtol=1e-3, atol=1e-3
    )


@pytest.mark.model
@pytest.mark.parametrize("experts", moe.SHIPPED)
def test_the_shipped_routers_fit_and_spread_tokens_over_experts(model, experts: int) -> None:
    network = moe.build(model.model, experts=experts)
    assert network.config.num_experts_per_tok == moe.TOP_K
    router_LEC = torch.stack([layer.mlp.gate.weight for layer in network.model.layers])
    found = measure(model.model, model.tokenizer, router_LEC, moe.TOP_K, rows=1, length=128)
    random_LEC = torch.randn(router_LEC.shape, generator=torch.Generator().manual_seed(1)) * 0.02
    untrained = measure(model.model, model.tokenizer, random_LEC, moe.TOP_K, rows=1, length=128)
    assert found["nll"] < untrained["nll"]
    assert found["distinct"] > 2 * moe.TOP_K
    assert moe.router_path(experts).stat().st_size <= 2_000_000


def test_a_router_comes_back_as_it_was_saved(tmp_path) -> None:
    router_LEC = torch.randn(2, EXPERTS, 32).bfloat16().float()
    path = moe.write_router(tmp_path / "deep" / "r.safetensors", router_LEC)
    found = moe.read_router(path, layers=2, experts=EXPERTS, width=32)
    assert torch.equal(found, router_LEC)


def test_damaged_or_foreign_routers_are_refused(tmp_path) -> None:
    path = tmp_path / "r.safetensors"
    sizes = {"layers": 2, "experts": EXPERTS, "width": 32}
    with pytest.raises(ModelError, match="cannot be read"):
        moe.read_router(path, **sizes)
    path.write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="cannot be read"):
        moe.read_router(path, **sizes)
    save_file({"other": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="expected the one tensor"):
        moe.read_router(path, **sizes)
    moe.write_router(path, torch.zeros(3, EXPERTS, 32))
    with pytest.raises(ModelError, match=r"has shape \(3, 8, 32\)"):
        moe.read_router(path, **sizes)
    moe.write_router(path, torch.full((2, EXPERTS, 32), float("nan")))
    with pytest.raises(InputError, match="not finite"):
        moe.read_router(path, **sizes)


def test_numbers_that_do_not_fit_are_named(dense) -> None:
    with pytest.raises(InputError, match="experts=7; must divide"):
        moe.sliced(dense, 7, 1)
    with pytest.raises(InputError, match="top_k=9"):
        moe.sliced(dense, 8, 9)
    with pytest.raises(InputError, match="a router of shape"):
        moe.sliced(dense, 8, 2, torch.zeros(1))
    with pytest.raises(InputError, match="router='best'"):
        moe.build(dense, experts=8, router="best")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="were trained with 4"):
        moe.build(dense, experts=16, top_k=2)
    with pytest.raises(ModelError, match="no trained router for 8"):
        moe.build(dense, experts=8)
    with pytest.raises(CapabilityError, match="cannot be sliced"):
        moe.sliced(tiny_network("Qwen2"), 4, 2)
    with pytest.raises(InputError, match="steps=0"):
        TrainConfig(steps=0)
    with pytest.raises(InputError, match="lr=0"):
        TrainConfig(lr=0)


def test_routers_start_orthogonal_to_the_mean_hidden_state(dense) -> None:
    generator = torch.Generator().manual_seed(3)
    ids_BT = torch.randint(5, 250, (8, 48), generator=generator)
    router_LEC, bias_LC = start(dense, ids_BT, EXPERTS, 0)
    hidden: list[torch.Tensor] = []
    hook = dense.model.layers[1].mlp.register_forward_pre_hook(
        lambda m, args: hidden.append(args[0])
    )
    logits(dense, ids_BT)
    hook.remove()
    hidden_NC = hidden[0][:, 1:].flatten(0, 1)
    logits_NE = hidden_NC @ router_LEC[1].T
    torch.testing.assert_close(logits_NE.mean(0), torch.zeros(EXPERTS), atol=1e-4, rtol=0)
    torch.testing.assert_close(logits_NE.std(0), torch.full((EXPERTS,), 0.3), atol=1e-3, rtol=0)
    assert float((hidden_NC @ bias_LC[1]).mean()) == pytest.approx(1.0, abs=1e-4)


def test_training_brings_the_mixture_nearer_to_the_dense_model(dense) -> None:
    seen: list[int] = []
    config = TrainConfig(EXPERTS, 2, steps=25, rows=4, length=48, lr=5e-3)
    result = train(dense, tiny_tokenizer(), config, lambda step, kl: seen.append(step))
    first, last = result.losses[0], result.losses[-1]
    assert last[1] < first[1]  # KL from the dense model
    assert last[3] < first[3]  # and in every layer
    assert seen[-1] == 24
    assert torch.equal(result.router_LEC, result.router_LEC.bfloat16().float())
    found = measure(dense, tiny_tokenizer(), result.router_LEC, 2, rows=1, length=64)
    assert 2 <= found["distinct"] <= EXPERTS
    assert found["largest_share"] >= 1


def test_the_card_is_written_from_the_numbers(tmp_path) -> None:
    figures = {
        "nll": 4.25,
        "nll_dense": 2.5,
        "nll_untrained": 9.75,
        "largest_share": 1.5,
        "distinct": 33.3,
        "distinct_uniform": 45.0,
    }
    result = Trained(torch.zeros(1), [(0, 1.0, 1.0, 1.0)], 60.0, figures)
    save(tmp_path, [(TrainConfig(48), result)], "cpu")
    card = (tmp_path / "README.md").read_text()
    assert "| 48 | 2.50 | 9.75 | 4.25 | 1.50 | 33.3 / 45.0 |" in card
    assert (tmp_path / "measured.json").is_file()
