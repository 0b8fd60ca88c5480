"""Predicted caches: layer maps, a prediction that is exact, books, and what is refused."""

from __future__ import annotations

import copy
import typing
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_pairs import LAYERS, copied, ids, network, uneven
from transformers.cache_utils import DynamicCache

from outlay.budget import Budget
from outlay.cache.kv_prediction import KVPrediction
from outlay.cache.kv_prediction.baselines import (
    RandomTokens,
    RecentTokens,
    affordable,
    choose,
)
from outlay.cache.kv_prediction.layout import LayerSize
from outlay.cache.kv_prediction.mapping import canonical_map, check_map, every, pruned_map
from outlay.cache.kv_prediction.model import KVPredictionModel
from outlay.cache.kv_prediction.predictor import KVPredictor
from outlay.cache.loop import CachedDecoder, FullCache, forward
from outlay.cost import ModelShape
from outlay.errors import CapabilityError, InputError
from outlay.models.base import Account, SamplingParams
from outlay.models.local import LocalModel
from tiny_models import tiny_network, tiny_tokenizer

FAMILIES = ("Llama", "Qwen2", "Mixtral", "Granite", "Qwen3", "Olmo2")
PROMPT = "the cat in the hat sat on a mat"


def local(net: Any) -> LocalModel:
    return LocalModel(net, tiny_tokenizer(), "tiny")


# -- layer maps -----------------------------------------------------------------------------------


@given(st.integers(1, 60), st.data())
def test_a_canonical_map_is_monotone_and_serves_q_or_one_more(
    base: int, data: st.DataObject
) -> None:
    aux = data.draw(st.integers(1, base))
    found = canonical_map(base, aux)
    each, more = divmod(base, aux)
    assert len(found) == base
    assert list(found) == sorted(found)
    counts = [found.count(layer) for layer in range(aux)]
    assert counts == [each + 1] * more + [each] * (aux - more)


@given(st.integers(1, 40), st.data())
def test_a_pruned_map_names_the_last_kept_layer_at_or_before(
    base: int, data: st.DataObject
) -> None:
    keep = sorted(data.draw(st.sets(st.integers(0, base - 1), min_size=1)))
    found = pruned_map(base, keep)
    for layer, source in enumerate(found):
        before = [index for index in keep if index <= layer]
        assert keep[source] == (before[-1] if before else keep[0])
    assert check_map(found, base, len(keep)) == found


@given(st.integers(1, 60), st.data())
def test_layers_are_kept_at_regular_intervals(base: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, base))
    found = every(base, keep)
    gaps = [b - a for a, b in zip(found, (*found[1:], base), strict=True)]
    assert found[0] == 0
    assert len(found) == keep
    assert max(gaps) - min(gaps) <= 1


def test_the_papers_examples_of_maps() -> None:
    assert every(16, 8) == tuple(range(0, 16, 2))
    assert every(16, 4) == (0, 4, 8, 12)
    assert canonical_map(7, 3) == (0, 0, 0, 1, 1, 2, 2)
    assert pruned_map(6, (0, 2, 4)) == (0, 0, 1, 1, 2, 2)


@pytest.mark.parametrize(
    ("bad", "names"),
    [((0, 0, 1), "4 layers"), ((0, 0, 1, 2), "layer 2"), ((0, 1, 0, 1), "goes back")],
)
def test_a_map_that_does_not_fit_is_refused(bad: tuple[int, ...], names: str) -> None:
    with pytest.raises(InputError, match=names):
        check_map(bad, 4, 2)


# -- an exact prediction --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_whole_base_as_auxiliary_gives_the_bases_own_cache(kind: str) -> None:
    base = network(kind)
    ids_BT = ids()
    own = DynamicCache(config=base.config)
    with torch.inference_mode():
        base(ids_BT, cache=own, use_cache=True)
    made = copied(base).predict(ids_BT)
    for ours, theirs in zip(made.layers, own.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.values, theirs.values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("last", [1, 3])
def test_with_an_exact_prediction_the_first_logits_are_the_bases(kind: str, last: int) -> None:
    base = network(kind)
    ids_BT = ids()
    with torch.inference_mode():
        wanted_BV = base(ids_BT).logits[:, -1]
    cache, logits_BV = copied(base).prefill(ids_BT, last_n_real=last)
    torch.testing.assert_close(logits_BV, wanted_BV, rtol=1e-4, atol=1e-4)
    assert cache.get_seq_length() == ids_BT.shape[1]


def test_with_an_exact_prediction_every_later_token_is_the_bases() -> None:
    model = local(network())
    sampling = SamplingParams(max_tokens=24, ignore_eos=True)
    method = KVPrediction(fitted=copied(model.model))
    own = CachedDecoder(FullCache()).generate(model, PROMPT, sampling=sampling)
    ours = CachedDecoder(method).generate(model, PROMPT, sampling=sampling)
    assert ours.text == own.text
    assert ours.token_ids == own.token_ids


def test_generate_goes_on_from_a_predicted_cache() -> None:
    base = network()
    ids_BT = ids(1)
    with torch.inference_mode():
        wanted = base.generate(ids_BT, max_new_tokens=8, do_sample=False)
        cache = copied(base).predict(ids_BT[:, :-1])
        found = base.generate(ids_BT, cache=cache, max_new_tokens=8, do_sample=False)
    assert found.tolist() == wanted.tolist()


def test_layers_of_different_sizes_are_predicted() -> None:
    base = uneven()
    ids_BT = ids()
    pair = KVPredictionModel(base, copy.deepcopy(base))
    pair.predictor.become_identity()
    assert [size.heads for size in pair.base_layout.sizes] == [2, 4, 2, 2]
    with torch.inference_mode():
        wanted_BV = base(ids_BT).logits[:, -1]
    torch.testing.assert_close(pair.prefill(ids_BT)[1], wanted_BV, rtol=1e-4, atol=1e-4)


def test_an_auxiliary_of_other_heads_and_width_serves() -> None:
    base = uneven()
    aux = network(seed=3, hidden_size=24, num_hidden_layers=3, num_key_value_heads=4)
    pair = KVPredictionModel(base, aux)
    assert pair.predictor.layer_map == (0, 0, 1, 2)
    cache, logits_BV = pair.prefill(ids())
    assert [layer.keys.shape[1] for layer in cache.layers] == [2, 4, 2, 2]
    assert torch.isfinite(logits_BV).all()


def test_padded_prompts_are_read_as_if_alone() -> None:
    base = network()
    pair = KVPredictionModel.pruned(base, (0, 2))
    short_BT, long_BT = ids(1, 7, seed=1), ids(1, 12, seed=2)
    padded_BT = torch.cat([torch.zeros(1, 5, dtype=torch.long), short_BT], 1)
    both_BT = torch.cat([padded_BT, long_BT])
    mask_BT = torch.ones_like(both_BT)
    mask_BT[0, :5] = 0
    _, together_BV = pair.prefill(both_BT, mask_BT)
    alone_BV = torch.cat([pair.prefill(short_BT)[1], pair.prefill(long_BT)[1]])
    torch.testing.assert_close(together_BV, alone_BV, rtol=1e-4, atol=1e-4)


def test_first_layers_taken_over_are_exact() -> None:
    base = network()
    ids_BT = ids()
    own = DynamicCache(config=base.config)
    with torch.inference_mode():
        base(ids_BT, cache=own, use_cache=True)
    pair = KVPredictionModel.prefix(base, 2)
    made = pair.predict(ids_BT)
    for layer in range(2):
        torch.testing.assert_close(made.layers[layer].keys, own.layers[layer].keys)
        torch.testing.assert_close(made.layers[layer].values, own.layers[layer].values)
    assert len(pair.predictor.keys) == LAYERS - 2
    assert {n.split(".")[0] for n, p in pair.named_parameters() if p.requires_grad} == {"predictor"}


# -- the method and its books ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "knobs"), [(1, {}), (3, {"last_n_real": 3}), (9, {"min_prompt": 10})]
)
def test_prompts_with_nothing_to_predict_are_read_by_the_base(
    width: int, knobs: dict[str, int]
) -> None:
    model = local(network())
    pair = KVPredictionModel.pruned(model.model, (0, 2))
    ran = []
    pair.aux.register_forward_hook(lambda *_: ran.append(1))
    pair.aux.base_model.register_forward_hook(lambda *_: ran.append(1))
    ids_BT = ids(1, width)
    found = KVPrediction(fitted=pair, **knobs).prefill(model, ids_BT)
    own = FullCache().prefill(model, ids_BT)
    assert not ran
    torch.testing.assert_close(found.logits_BV, own.logits_BV)


def test_the_auxiliarys_tokens_are_a_drafts_and_the_rest_the_bases() -> None:
    model = local(network())
    pair = KVPredictionModel.pruned(model.model, (0, 2))
    account = Account()
    KVPrediction(fitted=pair, last_n_real=2).prefill(model, ids(3, 10), account=account)
    draft, target = account.ledger.totals(role="draft"), account.ledger.totals(role="target")
    assert (draft.prompt_new, target.prompt_new) == (3 * 8, 3 * 2)
    aux = pair.shapes[1]
    assert aux is not None
    maps = 2 * sum(m.in_features * m.out_features for part in pair.predictor.maps() for m in part)
    assert draft.flops == 3 * (aux.flops(8, logits_rows=0) + 8 * maps)
    assert target.flops == model.flops(2, 8, logits_rows=1, batch=3)
    assert pair.flops(10, last_n_real=2, batch=3) == (draft.flops, target.flops)


def test_a_budget_that_counts_everything_counts_a_prompt_once() -> None:
    model = local(network())
    method = KVPrediction(fitted=KVPredictionModel.pruned(model.model, (0, 2)))
    budget = Budget(tokens=20, counts="all")
    ids_T = ids(1, 12)[0].tolist()
    found = CachedDecoder(method).generate(
        model, ids_T, budget, SamplingParams(max_tokens=20, ignore_eos=True)
    )
    assert found.finish_reason == "budget"
    assert len(found.token_ids) == 8


def test_a_long_prompt_costs_what_the_auxiliary_costs() -> None:
    pair = KVPredictionModel.pruned(network(), (0, 2))
    base, aux = pair.shapes
    assert base is not None
    assert aux is not None
    width = 500
    ratio = base.flops(width, logits_rows=1) / sum(pair.flops(width))
    per_token = aux.flops(width, logits_rows=0) / width + pair.predictor.flops(1)
    assert ratio == pytest.approx(base.flops(width, logits_rows=1) / width / per_token, rel=0.02)


def test_a_refill_makes_the_prompts_rows_the_bases_own() -> None:
    model = local(network())
    pair = KVPredictionModel.pruned(model.model, (0, 2))
    account = Account()
    ids_BT = ids(2, 10)
    read = KVPrediction(fitted=pair, refill_after=2).prefill(model, ids_BT, account=account)
    own = FullCache().prefill(model, ids_BT).cache
    fed_BT = ids(2, 1, seed=4)
    for step in (1, 2):
        assert not torch.allclose(read.cache.layers[1].keys[:, :, :10], own.layers[1].keys)
        before_BHTD = read.cache.layers[1].keys
        forward(model, fed_BT, read.cache)
        assert account.ledger.totals(role="target").prompt_new == (2 if step == 1 else 22)
    for ours, theirs in zip(read.cache.layers, own.layers, strict=True):
        torch.testing.assert_close(ours.keys[:, :, :10], theirs.keys)
        torch.testing.assert_close(ours.values[:, :, :10], theirs.values)
    torch.testing.assert_close(read.cache.layers[1].keys[:, :, 10:11], before_BHTD[:, :, 10:])
    assert read.cache.get_seq_length() == 12


def test_a_refill_that_a_budget_has_no_room_for_is_left_out() -> None:
    model = local(network())
    method = KVPrediction(fitted=KVPredictionModel.pruned(model.model, (0, 2)), refill_after=1)
    ids_T = ids(1, 12)[0].tolist()
    sampling = SamplingParams(max_tokens=6, ignore_eos=True)
    account = Account.open(Budget(tokens=18, counts="all"))
    found = CachedDecoder(method).generate(model, ids_T, None, sampling, account=account)
    assert len(found.token_ids) == 6
    assert account.ledger.totals().prompt_new == 12
    free = CachedDecoder(method).generate(model, ids_T, None, sampling)
    assert free.ledger.totals().prompt_new == 24


def test_a_method_refuses_a_pair_of_another_base() -> None:
    pair = copied(network())
    with pytest.raises(InputError, match="fitted on another model"):
        KVPrediction(fitted=pair).prefill(local(network(seed=1)), ids())


# -- reading less ---------------------------------------------------------------------------------


def test_recent_tokens_are_the_end_of_the_prompt() -> None:
    model = local(network())
    ids_BT = ids(2, 12)
    account = Account()
    found = RecentTokens(0.5).prefill(model, ids_BT, account=account)
    own = FullCache().prefill(model, ids_BT[:, 6:])
    torch.testing.assert_close(found.logits_BV, own.logits_BV)
    assert account.ledger.totals().prompt_new == 12


@given(st.integers(1, 300), st.floats(0.01, 1), st.integers(0, 5))
def test_random_tokens_are_in_order_and_end_with_the_last(
    width: int, share: float, seed: int
) -> None:
    count = max(1, round(share * width))
    found = choose(width, count, seed)
    assert found == sorted(set(found))
    assert len(found) == count
    assert found[-1] == width - 1


def test_all_random_tokens_are_the_prompt() -> None:
    model = local(network())
    ids_BT = ids(1, 12)
    found = RandomTokens(1.0).prefill(model, ids_BT)
    torch.testing.assert_close(found.logits_BV, FullCache().prefill(model, ids_BT).logits_BV)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_shares_out_of_range_are_refused(share: float) -> None:
    for method in (RecentTokens, RandomTokens):
        with pytest.raises(InputError, match="share"):
            method(share)


@given(st.floats(0.05, 1.2))
@settings(max_examples=25)
def test_affordable_tokens_are_the_most_within_the_flops(share: float) -> None:
    shape = ModelShape.from_config(network().config)
    limit = share * shape.flops(60, logits_rows=1)
    slow = [n for n in range(1, 61) if shape.flops(n, logits_rows=1) <= limit]
    assert affordable(shape, limit, 60) == max(slow, default=1)


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("Mistral", "layer 0 .*Sliding"),
        ("Gemma2", "layer 0 .*Sliding"),
        ("GPT2", "k_proj"),
        ("Phi", "way of its own"),
    ],
)
def test_networks_whose_keys_cannot_be_predicted_are_refused_by_name(kind: str, names: str) -> None:
    with pytest.raises(CapabilityError, match=names):
        KVPredictionModel(network(kind), network())
    with pytest.raises(CapabilityError, match=names):
        KVPredictionModel(network(), network(kind))


def test_a_recurrent_auxiliary_is_refused() -> None:
    with pytest.raises(CapabilityError, match="Mamba"):
        KVPredictionModel(network(), tiny_network("Mamba", num_hidden_layers=2))


def test_different_vocabularies_are_refused() -> None:
    with pytest.raises(InputError, match="same tokenizer"):
        KVPredictionModel(network(), network(vocab_size=300, seed=1))


def test_a_base_that_could_be_trained_is_frozen_with_a_warning() -> None:
    base = network().requires_grad_(True)
    with pytest.warns(UserWarning, match="frozen"):
        KVPredictionModel(base, network(seed=1))
    assert not any(parameter.requires_grad for parameter in base.parameters())


def test_prompts_that_cannot_be_read_are_refused() -> None:
    pair = KVPredictionModel.pruned(network(), (0, 2))
    for bad, names in (
        ({"ids_BT": ids(1, 0)}, "empty"),
        ({"ids_BT": ids(1, 513)}, "513 tokens"),
        ({"ids_BT": ids(), "last_n_real": 0}, "last_n_real=0"),
        ({"ids_BT": ids(), "mask_BT": torch.ones(2, 5)}, "shape"),
        ({"ids_BT": ids(), "mask_BT": torch.tensor([[1, 0] * 6, [1] * 12])}, "gaps"),
        ({"ids_BT": ids(), "mask_BT": torch.zeros(2, 12)}, "pads the last"),
    ):
        with pytest.raises(InputError, match=names):
            pair.prefill(**bad)  # type: ignore[arg-type]


def test_a_cache_in_use_is_refused_and_an_empty_one_is_filled() -> None:
    pair = KVPredictionModel.pruned(network(), (0, 2))
    cache = DynamicCache(config=pair.base.config)
    found, _ = pair.prefill(ids(), cache=cache)
    assert found is cache
    assert cache.get_seq_length() == 12
    with pytest.raises(InputError, match="12 rows"):
        pair.prefill(ids(), cache=cache)


@pytest.mark.parametrize("knobs", [{"last_n_real": 0}, {"min_prompt": 0}, {"refill_after": -1}])
def test_knobs_out_of_range_are_refused(knobs: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(knobs))):
        KVPrediction(**knobs)  # type: ignore[arg-type]


def test_layers_of_other_sizes_cannot_be_taken_over() -> None:
    size, other = LayerSize(2, 8, 8), LayerSize(4, 8, 8)
    with pytest.raises(InputError, match="prefix_aux"):
        KVPredictor([size, size], [other], (0, 0), identity=1)
    with pytest.raises(InputError, match="no identity"):
        KVPredictor([size], [other], (0,)).become_identity()
    for prefix in (0, LAYERS):
        with pytest.raises(InputError, match="prefix_aux"):
            KVPredictionModel.prefix(network(), prefix)


def test_knobs_of_the_method_have_types_that_text_can_be_read_as() -> None:
    hints = typing.get_type_hints(KVPrediction)
    assert (hints["saved"], hints["last_n_real"], hints["min_prompt"]) == (str, int, int)
