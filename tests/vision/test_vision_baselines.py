"""Baselines keep what they say, on every prompt, and refuse what they cannot do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.vision.tiny_vlms import llama, llava, llava_inputs, llava_next, onevision, pixels, prompt

from outlay.errors import CapabilityError, InputError
from outlay.vision.base import Pruner
from outlay.vision.baselines import (
    ClassTopTokens,
    GivenTokens,
    MergedTokens,
    NoTokens,
    PooledTokens,
    RandomTokens,
    UniformTokens,
    even,
)
from outlay.vision.cls_attention import ClassToken, feature_layer, focus
from outlay.vision.in_decoder import FastV, PyramidDrop
from outlay.vision.tome import merge_to

AT_INPUT = (RandomTokens, UniformTokens, PooledTokens, MergedTokens, ClassTopTokens)


@pytest.fixture(scope="module")
def model():
    return llava()


def run(model, method, batch: int = 2):
    with torch.no_grad(), method(model) as kept:
        logits = model(**llava_inputs(batch)).logits
    return logits, kept


@pytest.mark.parametrize("method", AT_INPUT)
def test_a_quarter_of_the_tokens_enters(model, method) -> None:
    _, kept = run(model, method(rate=0.25))
    assert kept.counts() == [[4, 4]] * 4
    assert kept.mean_rate() == 0.25


@pytest.mark.parametrize("method", AT_INPUT)
def test_keeping_everything_changes_nothing(model, method) -> None:
    with torch.no_grad():
        plain = model(**llava_inputs(2)).logits
    logits, _ = run(model, method(rate=1.0))
    assert (
        torch.equal(plain, logits)
        if method is not PooledTokens
        else torch.allclose(plain, logits, atol=1e-5)
    )


@pytest.mark.parametrize("method", [*AT_INPUT, FastV, PyramidDrop, NoTokens])
def test_every_method_generates(model, method) -> None:
    made = method(rate=0.25) if method in AT_INPUT else method()
    assert isinstance(made, Pruner)
    with torch.no_grad(), made(model):
        text = model.generate(**llava_inputs(2), max_new_tokens=3, do_sample=False)
    assert text.shape[0] == 2


def test_fastv_drops_once_and_pyramiddrop_by_quarters(model) -> None:
    assert run(model, FastV(rate=0.25, layer=2))[1].counts() == [[16, 16]] * 2 + [[4, 4]] * 2
    assert run(model, PyramidDrop())[1].counts() == [[16, 16], [8, 8], [4, 4], [2, 2]]


def test_fastv_keeps_what_the_last_token_looks_at(model) -> None:
    eager = llava("eager")
    with torch.no_grad():
        row = eager(**llava_inputs(1), output_attentions=True).attentions[1][0, :, -1].mean(0)
        with FastV(rate=0.25, layer=2)(eager) as kept:
            eager(**llava_inputs(1))
    assert kept.layers[2][0].tolist() == row[1:17].topk(4).indices.sort().values.tolist()


def test_no_tokens_is_the_question_alone(model) -> None:
    logits, kept = run(model, NoTokens(), 1)
    ids = llava_inputs(1)["input_ids"]
    with torch.no_grad():
        text = torch.cat([ids[:, :1], ids[:, 17:]], 1)
        place = torch.tensor([[0, 17, 18, 19, 20]])
        alone = model(input_ids=text, position_ids=place).logits
    assert kept.counts() == [[0]] * 4
    assert (logits[0, -4:] - alone[0, -4:]).abs().max() < 2e-5


def test_random_tokens_depend_on_the_seed_alone(model) -> None:
    torch.manual_seed(1)
    one = run(model, RandomTokens(rate=0.5, seed=3))[1].entered
    torch.manual_seed(2)
    again = run(model, RandomTokens(rate=0.5, seed=3))[1].entered
    other = run(model, RandomTokens(rate=0.5, seed=4))[1].entered
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


@given(st.integers(1, 200), st.data())
def test_even_steps_are_distinct_and_ascend(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    at = even(n, k)
    assert len(at) == k
    assert bool((at.diff() > 0).all())
    assert 0 <= int(at[0]) <= int(at[-1]) < n


def test_class_token_rows_are_those_of_the_eager_tower() -> None:
    model = llava("eager")
    token = ClassToken(model)
    token.open()
    with torch.no_grad():
        tower = model.model.vision_tower(pixels(2), output_attentions=True)
    wanted = tower.attentions[feature_layer(model)][:, :, 0, 1:]
    assert (token.rows() - wanted).abs().max() < 1e-6
    token.close()


def test_class_top_keeps_what_the_class_token_looks_at(model) -> None:
    _, kept = run(model, ClassTopTokens(rate=0.25))
    for entered, scores in zip(kept.entered, kept.scores, strict=True):
        assert entered.tolist() == scores.topk(4).indices.sort().values.tolist()


def test_flat_class_attention_is_warned_about(model) -> None:
    flat = torch.full((1, 2, 16), 1 / 17)
    assert focus(flat) == pytest.approx(1)
    blind = llava()
    for layer in blind.model.vision_tower.encoder.layers:
        layer.self_attn.q_proj.weight.data.zero_()
        layer.self_attn.q_proj.bias.data.zero_()
    with pytest.warns(UserWarning, match="almost flat"):
        run(blind, ClassTopTokens(rate=0.5))


def test_given_rankings_are_followed(model) -> None:
    scores = [list(range(16)), list(range(16, 0, -1))]
    _, kept = run(model, GivenTokens(scores, max_tokens=3))
    assert [one.tolist() for one in kept.entered] == [[13, 14, 15], [0, 1, 2]]


@given(st.integers(1, 12), st.integers(0, 99))
def test_merging_keeps_the_mean_of_all_features(k: int, seed: int) -> None:
    features = torch.randn(12, 4, generator=torch.Generator().manual_seed(seed))
    merged, sizes, at = merge_to(features, k)
    assert int(sizes.sum()) == 12
    assert len(at) == k == len(merged)
    assert bool((at.diff() > 0).all())
    if k == 1:
        assert torch.allclose(merged[0], features.mean(0), atol=1e-5)


def test_merging_takes_the_most_alike_first() -> None:
    features = torch.eye(6, 8)
    features[1] = features[0]
    merged, _, at = merge_to(features, 5)
    assert at.tolist() == [1, 2, 3, 4, 5]
    assert torch.equal(merged[0], features[0])


def test_pooling_averages_fields(model) -> None:
    seen = []
    with torch.no_grad(), PooledTokens(rate=0.25)(model):
        handle = model.model.language_model.layers[0].register_forward_pre_hook(
            lambda m, a, k: seen.append(a[0]), with_kwargs=True
        )
        model(**llava_inputs(1))
        handle.remove()
        features = model.get_image_features(pixel_values=pixels(1)).pooler_output[0]
    grid = features.view(2, 2, 2, 2, -1).mean((1, 3)).flatten(0, 1)
    assert torch.allclose(seen[-1][0, 1:5], grid, atol=1e-5)


# Bad input.


@pytest.mark.parametrize("method", AT_INPUT)
@pytest.mark.parametrize("rate", [0, -0.1, 1.5, float("nan"), True, "half"])
def test_rates_outside_their_range_are_refused(method, rate) -> None:
    with pytest.raises(InputError, match="rate"):
        method(rate=rate)


@pytest.mark.parametrize("method", AT_INPUT)
def test_a_number_of_tokens_takes_the_place_of_the_rate(model, method) -> None:
    assert run(model, method(rate=1.0, max_tokens=4))[1].counts() == [[4, 4]] * 4
    with pytest.raises(InputError, match="max_tokens=0"):
        method(max_tokens=0)


@pytest.mark.parametrize("method", [*AT_INPUT, FastV, PyramidDrop])
@pytest.mark.parametrize("tokens", [9, 12, 16])
def test_budgets_are_means_over_the_layers(model, method, tokens: int) -> None:
    _, kept = run(model, method().within(tokens, 16, 4), 1)
    mean = sum(layer[0] for layer in kept.counts()) / 4
    wanted = 9 if method is PooledTokens and tokens == 12 else tokens
    assert wanted - 1 <= mean <= wanted + 0.25


@pytest.mark.parametrize("method", [FastV, PyramidDrop])
def test_budgets_below_the_first_layers_are_refused(method) -> None:
    with pytest.raises(InputError, match="prune at the input"):
        method().within(1, 16, 4)


def test_models_without_a_tower_are_refused() -> None:
    for method in (FastV(), PyramidDrop(), ClassTopTokens(rate=0.5)):
        with pytest.raises(CapabilityError, match="tower"), method(llama()):
            pass
    with pytest.raises(CapabilityError, match="tower"), RandomTokens(rate=0.5)(llama()):
        pass


def test_towers_without_a_class_token_are_refused() -> None:
    with (
        pytest.raises(CapabilityError, match="no class token"),
        ClassTopTokens(rate=0.5)(onevision()),
    ):
        pass


def test_layers_that_do_not_exist_are_refused(model) -> None:
    with pytest.raises(InputError, match=r"layers 0\.\.1"):
        ClassToken(model, 2)
    with pytest.raises(InputError, match=r"layers 0\.\.3"), FastV(layer=4)(model):
        pass
    with pytest.raises(InputError, match="need >= 1"):
        FastV(layer=0)


def test_tiles_are_left_to_methods_that_know_them() -> None:
    model = llava_next()
    sizes, tiles = torch.tensor([[32, 64]]), torch.randn(1, 3, 3, 32, 32)
    count = len(model.get_image_features(tiles, image_sizes=sizes).pooler_output[0])
    given_ = {"input_ids": prompt(1, count), "pixel_values": tiles, "image_sizes": sizes}
    for method in (ClassTopTokens(rate=0.5), PooledTokens(rate=0.5)):
        with pytest.raises(InputError, match=r"tiles|square"), method(model):
            model(**given_)


def test_rankings_of_another_size_are_refused(model) -> None:
    for scores, message in (([[1.0] * 16], "1 rankings for 2"), ([[1.0] * 3] * 2, "for 16 tokens")):
        with pytest.raises(InputError, match=message):
            run(model, GivenTokens(scores, rate=0.5))
