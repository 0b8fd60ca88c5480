"""Training of predicted caches: the pass through the frozen base, losses, the trainer, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from kv_pairs import LAYERS, copied, ids, network
from safetensors.torch import load_file, save_file

from outlay.cache.kv_prediction import KVPrediction, store
from outlay.cache.kv_prediction.lora import Lora, attach, factors, merge
from outlay.cache.kv_prediction.losses import (
    IGNORED,
    LossWeights,
    kv_distance,
    next_token_loss,
)
from outlay.cache.kv_prediction.model import KVPredictionModel
from outlay.cache.kv_prediction.ridge import ridge_start
from outlay.cache.kv_prediction.training import (
    KVPredictionConfig,
    KVPredictionTrainer,
    Rows,
)
from outlay.errors import InputError, ModelError
from outlay.models.local import LocalModel
from outlay.models.truncated import truncated
from tiny_models import tiny_model, tiny_tokenizer

FAMILIES = ("Llama", "Qwen2", "Mixtral", "Granite", "Qwen3", "Olmo2")


def options(folder: Path, steps: int = 4, **knobs: Any) -> KVPredictionConfig:
    return KVPredictionConfig(
        output_dir=str(folder),
        **{
            "max_steps": steps,
            "per_device_train_batch_size": 8,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            **knobs,
        },
    )


def learnable(rows: int = 256, width: int = 16) -> torch.Tensor:
    """Rows that go round and round a few tokens."""
    start = ids(rows, 1, seed=5)
    return 5 + (start + torch.arange(width)) % 11


# -- the pass through the base --------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_with_true_keys_and_values_the_training_pass_is_the_bases_own(kind: str) -> None:
    base = network(kind)
    ids_BT = ids()
    pair = copied(base)
    with torch.no_grad():
        torch.testing.assert_close(pair.logits(ids_BT), base(ids_BT).logits, rtol=1e-4, atol=1e-4)
        with pair.base_layout.captured() as (keys, values):
            base(ids_BT)
        with pair.base_layout.given(keys, values):
            given_BTV = base(ids_BT).logits
        torch.testing.assert_close(given_BTV, base(ids_BT).logits, rtol=1e-4, atol=1e-4)


def test_the_training_pass_never_looks_ahead() -> None:
    pair = KVPredictionModel.pruned(network(), (0, 2))
    ids_BT = ids(1, 12)
    changed_BT = ids_BT.clone()
    changed_BT[:, 7:] = ids(1, 5, seed=8)
    with torch.no_grad():
        before, after = pair.logits(ids_BT), pair.logits(changed_BT)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_own_projections_are_not_computed_where_keys_are_given() -> None:
    pair = copied(network())
    rows: list[int] = []
    projection = pair.base_layout.attentions[0].k_proj
    keys = [torch.zeros(2, 12, size.keys) for size in pair.base_layout.sizes]
    values = [torch.zeros(2, 12, size.values) for size in pair.base_layout.sizes]
    with pair.base_layout.given(keys, values):
        handle = projection.register_forward_pre_hook(lambda _, args: rows.append(args[0].numel()))
        pair.base(ids())
        handle.remove()
    assert rows == [0]


def test_hooks_are_gone_after_a_pass() -> None:
    pair = KVPredictionModel.pruned(network(), (0, 2))
    before_BTV = pair.base(ids()).logits
    pair(ids())
    with pytest.raises(IndexError), pair.base_layout.captured():
        raise IndexError
    torch.testing.assert_close(pair.base(ids()).logits, before_BTV)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in pair.base.modules())


def test_gradients_reach_auxiliary_and_predictor_and_no_base() -> None:
    pair = KVPredictionModel.pruned(
        network(), (0, 2), losses=LossWeights(lambda_aux=0, lambda_kv=0)
    )
    pair.train()
    pair(ids())["loss"].backward()
    assert all(p.grad is None for p in pair.base.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pair.predictor.parameters())
    early = pair.aux.model.layers[0].mlp.up_proj.weight.grad
    assert early is not None
    assert early.abs().sum() > 0
    assert not pair.base.training
    assert pair.aux.training


# -- losses ---------------------------------------------------------------------------------------


def looped_distance(ours: Any, own: Any, mask_BT: torch.Tensor, reduce: str) -> float:
    total = 0.0
    for a_BTE, b_BTE in zip(ours, own, strict=True):
        errors = [
            abs(float(a - b))
            for row in range(mask_BT.shape[0])
            for at in range(mask_BT.shape[1])
            if mask_BT[row, at]
            for a, b in zip(a_BTE[row, at], b_BTE[row, at], strict=True)
        ]
        total += sum(errors) / len(errors)
    return total / len(ours) if reduce == "mean" else total


@given(st.integers(0, 100), st.sampled_from(["mean", "sum"]))
def test_the_caches_distance_is_that_of_a_loop(seed: int, reduce: Any) -> None:
    generator = torch.Generator().manual_seed(seed)
    ours = [torch.randn(2, 3, size, generator=generator) for size in (4, 2)]
    own = [torch.randn(2, 3, size, generator=generator) for size in (4, 2)]
    mask_BT = torch.tensor([[0, 1, 1], [1, 1, 1]])
    found = kv_distance(ours, own, mask_BT, reduce)
    assert float(found) == pytest.approx(looped_distance(ours, own, mask_BT, reduce), rel=1e-5)
    full = kv_distance(ours, own, None, reduce)
    assert float(full) == pytest.approx(float(kv_distance(ours, own, mask_BT * 0 + 1, reduce)))


@given(st.integers(0, 100))
def test_the_next_token_loss_is_that_of_torch_with_a_z_term(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_BTV = 5 * torch.randn(2, 5, 7, generator=generator)
    labels_BT = torch.randint(0, 7, (2, 5), generator=generator)
    labels_BT[0, 3] = IGNORED
    kept = labels_BT[:, 1:].flatten() != IGNORED
    wanted = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten())
    squared = logits_BTV[:, :-1].flatten(0, 1).logsumexp(-1).square()[kept].mean()
    entropy, z = next_token_loss(logits_BTV, labels_BT, 0.01)
    torch.testing.assert_close(entropy, wanted)
    torch.testing.assert_close(z, 0.01 * squared)


def test_padding_changes_no_part_of_the_loss() -> None:
    pair = KVPredictionModel.pruned(network(), (0, 2))
    ids_BT = ids(1, 9)
    with torch.no_grad():
        alone = pair(ids_BT)
        for side in ("left", "right"):
            pad_BT, ones_BT = torch.full((1, 4), 7), torch.ones(1, 9, dtype=torch.long)
            order = (pad_BT, ids_BT) if side == "left" else (ids_BT, pad_BT)
            masks = (0 * pad_BT, ones_BT) if side == "left" else (ones_BT, 0 * pad_BT)
            padded = pair(torch.cat(order, 1), torch.cat(masks, 1))
            for name, part in alone.items():
                torch.testing.assert_close(padded[name], part, rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    weights = LossWeights(0.5, 2.0, 3.0, "sum", 0.1)
    pair = KVPredictionModel.pruned(network(), (0, 2), losses=weights)
    with torch.no_grad():
        found = pair(ids())
        pair.losses = LossWeights(0.5, 2.0, 3.0, "mean", 0.1)
        mean = pair(ids())
    total = 0.5 * found["base"] + 2 * found["aux"] + 3 * (found["keys"] + found["values"])
    torch.testing.assert_close(found["loss"], total + found["z"])
    torch.testing.assert_close(found["keys"], LAYERS * mean["keys"])


def test_without_its_weight_the_caches_distance_is_no_part_of_the_loss() -> None:
    pair = KVPredictionModel.pruned(network(), (0, 2), losses=LossWeights(lambda_kv=0))
    found = pair(ids())
    assert not {"keys", "values"} & found.keys()
    torch.testing.assert_close(found["loss"].detach(), found["base"] + found["aux"] + found["z"])


def test_the_auxiliary_by_itself_learns_as_any_model() -> None:
    base = network()
    weights = LossWeights(lambda_base=0, lambda_kv=0, z_loss=0)
    pair = KVPredictionModel.pruned(base, (0, 2), losses=weights)
    wanted = truncated(base, (0, 2))(ids(), labels=ids()).loss
    torch.testing.assert_close(pair(ids())["loss"].detach(), wanted)


def test_keys_are_compared_after_the_bases_norm() -> None:
    base = network("Qwen3")
    pair = copied(base)
    with torch.no_grad():
        assert float(pair(ids())["keys"]) < 1e-5
        for linear in pair.predictor.maps()[0]:
            linear.weight.mul_(3.0)  # a norm takes a scale away
        assert float(pair(ids())["keys"]) < 1e-4


@pytest.mark.parametrize(
    "knobs",
    [
        {"lambda_base": -1.0},
        {"lambda_aux": float("nan")},
        {"lambda_kv": float("inf")},
        {"z_loss": -0.1},
        {"kv_reduce": "max"},
        {"lambda_base": 0.0, "lambda_aux": 0.0, "lambda_kv": 0.0},
    ],
)
def test_weights_out_of_range_are_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(knobs))):
        LossWeights(**knobs)


# -- starting from least squares ------------------------------------------------------------------


def test_ridge_is_the_least_squares_map() -> None:
    base = network()
    pair = KVPredictionModel.pruned(base, (0, 2))
    rows_NT = ids(40, 20)
    ridge_start(pair, rows_NT, ridge=1e-9)
    with torch.no_grad(), pair.aux_layout.captured() as raw:
        pair.aux(rows_NT)
    with torch.no_grad(), pair.base_layout.captured() as own:
        base(rows_NT)
    for kind in (0, 1):
        x_NS = raw[kind][1].flatten(0, 1)
        x_NS = torch.cat([x_NS, torch.ones(len(x_NS), 1)], 1)
        y_NE = own[kind][3].flatten(0, 1)
        best_SE = torch.linalg.lstsq(x_NS, y_NE).solution
        linear = pair.predictor.maps()[kind][3]
        torch.testing.assert_close(linear.weight, best_SE[:-1].T, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(linear.bias, best_SE[-1], rtol=1e-3, atol=1e-3)


def test_ridge_brings_the_cache_nearer() -> None:
    pair = KVPredictionModel.pruned(network(), (0, 2))
    rows_NT = ids(40, 20)
    with torch.no_grad():
        before = pair(rows_NT)
        ridge_start(pair, rows_NT)
        after = pair(rows_NT)
    assert float(after["keys"]) < float(before["keys"])
    assert float(after["values"]) < float(before["values"])


def test_ridge_needs_tokens_and_a_positive_weight() -> None:
    pair = KVPredictionModel.pruned(network(), (0, 2))
    with pytest.raises(InputError, match="10 tokens"):
        ridge_start(pair, ids(1, 10))
    with pytest.raises(InputError, match="ridge=0"):
        ridge_start(pair, ids(40, 20), ridge=0)


# -- the trainer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, Lora(4, 8)])
def test_training_lowers_the_loss_and_leaves_the_base_bit_for_bit(
    lora: Lora | None, tmp_path: Path
) -> None:
    base = network()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    pair = KVPredictionModel.pruned(base, (0, 2), lora=lora)
    maps = [tensor.clone() for tensor in pair.predictor.parameters()]
    layers = {n: t.clone() for n, t in pair.aux.named_parameters() if t.requires_grad}
    config = options(tmp_path, 60, learning_rate=5e-3, logging_steps=20)
    trainer = KVPredictionTrainer(pair, config, Rows(learnable()))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    assert all(
        not torch.equal(a, b) for a, b in zip(maps, pair.predictor.parameters(), strict=True)
    )
    now = dict(pair.aux.named_parameters())
    assert any(not torch.equal(tensor, now[name]) for name, tensor in layers.items())
    if lora is not None:
        assert all("lora" in name for name in layers)


def test_logs_hold_the_parts_of_the_loss(tmp_path: Path) -> None:
    pair = KVPredictionModel.pruned(network(), (0, 2))
    trainer = KVPredictionTrainer(pair, options(tmp_path, 2), Rows(learnable()), Rows(learnable(8)))
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    parts = sum(entry[f"loss_{name}"] for name in ("base", "aux", "keys", "values", "z"))
    assert entry["loss"] == pytest.approx(parts, abs=1e-3)
    assert trainer.evaluate()["eval_loss"] > 0


def test_a_config_hands_its_weights_to_the_model(tmp_path: Path) -> None:
    pair = KVPredictionModel.pruned(network(), (0, 2))
    config = options(tmp_path, lambda_base=0.5, lambda_aux=0.25, lambda_kv=2.0, kv_reduce="sum")
    KVPredictionTrainer(pair, config, Rows(learnable()))
    assert pair.losses == LossWeights(0.5, 0.25, 2.0, "sum", 1e-4)
    assert (config.weight_decay, config.adam_beta2, config.max_grad_norm) == (0.1, 0.95, 1.0)
    with pytest.raises(InputError, match="lambda_kv"):
        KVPredictionTrainer(pair, options(tmp_path, lambda_kv=-1.0), Rows(learnable()))


@pytest.mark.parametrize("lora", [None, Lora(4, 8)])
def test_a_training_goes_on_from_its_checkpoint(lora: Lora | None, tmp_path: Path) -> None:
    base = network()

    def run(folder: Path, resume: bool) -> KVPredictionModel:
        torch.manual_seed(0)
        pair = KVPredictionModel.pruned(base, (0, 2), lora=lora)
        config = options(folder, 4, save_strategy="steps", save_steps=2, learning_rate=1e-2)
        trainer = KVPredictionTrainer(pair, config, Rows(learnable()))
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2") if resume else None)
        return pair.eval()

    whole, resumed = run(tmp_path, False), run(tmp_path, True)
    assert not (tmp_path / "checkpoint-2" / "model.safetensors").exists()
    torch.testing.assert_close(whole.prefill(ids())[1], resumed.prefill(ids())[1])


def test_rows_that_teach_nothing_are_refused() -> None:
    for bad in (torch.zeros(0, 4), torch.zeros(3, 1), torch.zeros(4)):
        with pytest.raises(InputError, match="shape"):
            Rows(bad)
    with pytest.raises(InputError, match="labels"):
        Rows(torch.zeros(3, 4), torch.zeros(3, 5))
    with pytest.raises(InputError, match="mask"):
        Rows(torch.zeros(3, 4), mask_NT=torch.zeros(2, 4))


# -- the method's own training --------------------------------------------------------------------


def test_fitting_gives_the_same_method_with_a_pair(tmp_path: Path) -> None:
    model = LocalModel(network(), tiny_tokenizer(), "tiny")
    method = KVPrediction(last_n_real=2)
    config = options(tmp_path, 3)
    found = method.fit(model, learnable(), config, keep=(0, 2), lora_r=2, ridge=True)
    assert found == method
    assert found.fitted is not None
    assert found.fitted.predictor.layer_map == (0, 0, 1, 1)
    assert not any(parameter.requires_grad for parameter in found.fitted.parameters())
    other = method.fit(model, learnable(), config, aux=network(seed=1, num_hidden_layers=2))
    assert other.fitted is not None
    assert other.fitted.origin.keep is None
    first = method.fit(model, learnable(), config, prefix_aux=1)
    assert first.fitted is not None
    assert first.fitted.predictor.identity == 1


def test_fitting_refuses_two_auxiliaries_and_other_tokenizers(tmp_path: Path) -> None:
    model = LocalModel(network(), tiny_tokenizer(), "tiny")
    config = options(tmp_path)
    for knobs in ({}, {"keep": (0, 2), "prefix_aux": 1}):
        with pytest.raises(InputError, match="exactly one"):
            KVPrediction().fit(model, learnable(), config, **knobs)  # type: ignore[arg-type]
    other = tiny_model(seed=1)
    tokenizer = type(other.tokenizer)(tokenizer_object=other.tokenizer.backend_tokenizer)
    tokenizer.add_tokens(["<extra>"])
    other.tokenizer = tokenizer
    with pytest.raises(InputError, match="different tokenizers"):
        KVPrediction().fit(model, learnable(), config, aux=other)


# -- low-rank additions and files -----------------------------------------------------------------


def changed(pair: KVPredictionModel) -> KVPredictionModel:
    """A pair whose every trainable number is another one."""
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in pair.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return pair.eval()


def test_merged_additions_are_what_was_trained() -> None:
    base, lora = network(), Lora(4, 8)
    pair = changed(KVPredictionModel.pruned(base, (0, 2), lora=lora))
    plain = truncated(base, (0, 2))
    before_BTV = plain(ids()).logits
    merge(plain, factors(pair.aux), lora)
    torch.testing.assert_close(plain(ids()).logits, pair.aux(ids()).logits, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(plain(ids()).logits, before_BTV, atol=1e-2)


def test_additions_of_another_network_are_refused() -> None:
    aux = truncated(network(), (0, 2))
    attach(aux, Lora(4, 8))
    found = factors(aux)
    with pytest.raises(ModelError, match="shapes"):
        merge(truncated(network(), (0, 2)), found, Lora(2, 4))
    with pytest.raises(ModelError, match="no layer"):
        merge(truncated(network(), (0,)), found, Lora(4, 8))
    with pytest.raises(InputError, match="r=0"):
        Lora(0, 8)


def makers() -> list[Any]:
    base = network()
    small = network(seed=3, hidden_size=24, num_hidden_layers=3).requires_grad_(True)
    return [
        KVPredictionModel.pruned(base, (0, 2)),
        KVPredictionModel.pruned(base, (0, 1, 3), lora=Lora(4, 8)),
        KVPredictionModel.prefix(base, 2),
        KVPredictionModel(base, small),
    ]


@pytest.mark.parametrize("which", range(4))
def test_what_is_saved_reads_prompts_as_before(which: int, tmp_path: Path) -> None:
    pair = changed(makers()[which])
    again = store.load(store.save(pair, tmp_path / "pair", about={"steps": 3}), pair.base)
    torch.testing.assert_close(
        again.prefill(ids())[1], pair.prefill(ids())[1], rtol=1e-3, atol=1e-3
    )
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert again.origin == pair.origin
    assert json.loads((tmp_path / "pair" / store.CONFIG).read_text())["about"] == {"steps": 3}


def test_a_method_reads_a_saved_pair_once(tmp_path: Path) -> None:
    model = LocalModel(network(), tiny_tokenizer(), "tiny")
    pair = changed(KVPredictionModel.pruned(model.model, (0, 2), lora=Lora(4, 8)))
    method = KVPrediction(saved=str(store.save(pair, tmp_path / "pair")))
    found = method.prefill(model, ids())
    torch.testing.assert_close(found.logits_BV, pair.prefill(ids())[1], rtol=1e-3, atol=1e-3)
    assert method.pair(model.model) is KVPrediction(saved=method.saved).pair(model.model)


def test_a_pair_of_another_base_is_refused(tmp_path: Path) -> None:
    pair = KVPredictionModel.pruned(network(), (0, 2), lora=Lora(4, 8))
    store.save(pair, tmp_path)
    for other in (network(seed=1), network(num_hidden_layers=3)):
        with pytest.raises(InputError, match="another base"):
            store.load(tmp_path, other)
    assert store.fingerprint(network().bfloat16()) == store.fingerprint(network())


def test_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    base = network()
    with pytest.raises(ModelError, match="no predictor"):
        store.load(tmp_path / "nothing", base)
    with pytest.raises(ModelError, match="no predictor"):
        KVPrediction(saved=str(tmp_path / "nothing")).pair(base)
    pair = KVPredictionModel.pruned(base, (0, 2), lora=Lora(4, 8))
    config, weights = tmp_path / store.CONFIG, tmp_path / store.WEIGHTS

    def broken(change: Any) -> None:
        store.save(pair, tmp_path)
        tensors = load_file(weights)
        change(tensors)
        save_file(tensors, weights)

    def cut(tensors: dict[str, torch.Tensor]) -> None:
        tensors["predictor.keys.0.weight"] = torch.zeros(3, 3)

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["predictor.keys.0.weight"][0, 0] = float("nan")

    def lose(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["predictor.keys.0.weight"]

    for change, names in ((cut, "has shape"), (spoil, "not finite"), (lose, "differ in")):
        broken(change)
        with pytest.raises(ModelError, match=names):
            store.load(tmp_path, base)
    store.save(pair, tmp_path)
    config.write_text(config.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(ModelError, match="format 99"):
        store.load(tmp_path, base)
    config.write_text("{}")
    with pytest.raises(ModelError, match="no predictor"):
        store.load(tmp_path, base)
