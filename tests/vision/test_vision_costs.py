"""The ledger of vision tokens counts what the decoder computes and caches."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.vision.tiny_vlms import llava, llava_inputs
from torch.utils.flop_counter import FlopCounterMode

from outlay.errors import InputError
from outlay.vision import costs
from outlay.vision.baselines import RandomTokens
from outlay.vision.counts import (
    budgeted,
    check_schedule,
    counts_of,
    half_up,
    kept,
    staircase,
)
from outlay.vision.in_decoder import FastV, PyramidDrop
from outlay.vision.zero_tprune import PatchRanking, Stage, ZeroTPrune


def counted(model, method, **more) -> tuple[int, object]:
    inputs = llava_inputs(1)
    ready = model.get_image_features(pixel_values=inputs.pop("pixel_values"))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), method(model) as seen, counter:
        out = model(**inputs, mm_encoder_outputs={"image": ready}, logits_to_keep=1, use_cache=True)
    return counter.get_total_flops(), (seen, out.cache)


@pytest.mark.parametrize("method", [RandomTokens(rate=1.0), RandomTokens(rate=0.25)])
def test_prefill_flops_equal_the_flop_counter(method) -> None:
    model = llava("eager")
    flops, (seen, cache) = counted(model, method)
    visual = [layer[0] for layer in seen.counts()]
    cost = costs.prefill(model.config, seen.text[0], visual, itemsize=4)
    assert flops == cost.flops
    assert cost.kv_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@pytest.mark.parametrize("method", [FastV(rate=0.25, layer=2), PyramidDrop()])
def test_ranking_rows_are_counted_too(method) -> None:
    model = llava("eager")
    flops, (seen, _) = counted(model, method)
    visual = [layer[0] for layer in seen.counts()]
    ranked = [seen.text[0] + before for before, after in pairwise(visual) if after < before]
    assert flops == costs.prefill(model.config, seen.text[0], visual, ranked=ranked).flops


def test_decode_steps_attend_to_what_each_layer_holds() -> None:
    model = llava("eager")
    inputs = llava_inputs(1)
    with torch.no_grad(), FastV(rate=0.25, layer=2)(model) as seen:
        cache = model(**inputs, use_cache=True).cache
        counter = FlopCounterMode(display=False)
        with counter:
            model(input_ids=torch.tensor([[9]]), cache=cache)
    visual = [layer[0] for layer in seen.counts()]
    assert counter.get_total_flops() == costs.decode_flops(model.config, seen.text[0], visual, 0)


def test_tower_and_projector_flops_equal_the_flop_counter() -> None:
    model = llava("eager")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.get_image_features(pixel_values=llava_inputs(2)["pixel_values"])
    wanted = costs.tower(model.config, images=2) + costs.projector(model.config, 32)
    assert counter.get_total_flops() == wanted


@pytest.mark.parametrize(
    "method",
    [
        None,
        ZeroTPrune(schedule=[(1, 0.5, 2, 3)]),
        ZeroTPrune(schedule=[(1, 0.5, 0, 1)], protect=(3,)),
        PatchRanking([Stage(1, 0.25)], "column"),
    ],
)
@pytest.mark.parametrize("layer", [-1, -2])
def test_a_pruned_tower_is_billed_for_what_it_computes(method, layer: int) -> None:
    model = llava("eager")
    model.config.vision_feature_layer = layer
    blocks = model.model.vision_tower.encoder.layers
    while len(blocks) < 3:
        blocks.append(copy.deepcopy(blocks[-1]))
    model.config.vision_config.num_hidden_layers = len(blocks)
    inputs = llava_inputs(2)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), (method or RandomTokens(rate=0.5))(model) as kept:
        model(**inputs)
        with counter:
            model.get_image_features(pixel_values=inputs["pixel_values"])
    assert counter.get_total_flops() == costs.seeing(model.config, 2, kept)
    whole = costs.tower(model.config, images=2) + costs.projector(model.config, 32)
    assert (costs.seeing(model.config, 2, kept) == whole) == (method is None)


def test_equal_budgets_are_found() -> None:
    config = llava().config
    target = costs.scheduled(config, 5, 16, (1, 1, 0.25, 0.25)).flops
    rate = costs.match_budget(
        lambda r: costs.scheduled(config, 5, 16, (max(r, 0.01),) * 4).flops, target
    )
    found = costs.scheduled(config, 5, 16, (rate,) * 4).flops
    more = costs.scheduled(config, 5, 16, (rate + 1 / 16,) * 4).flops
    assert found <= target < more


@given(st.floats(0.001, 1), st.integers(1, 300))
def test_counts_are_rounded_half_up_and_never_empty(rate: float, n: int) -> None:
    assert kept(rate, n) == max(1, min(n, int(rate * n + 0.5)))
    assert half_up(2.5) == 3


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(1, 100))
def test_counts_never_grow(rates: list[float], n: int) -> None:
    found = counts_of(sorted(rates, reverse=True), n)
    assert found == sorted(found, reverse=True)


def test_staircases_hold_until_the_next_step() -> None:
    assert staircase({1: 0.5, 3: 0.1}, 5) == (1, 0.5, 0.5, 0.1, 0.1)


# Bad input.


def test_schedules_of_another_depth_are_refused() -> None:
    with pytest.raises(InputError, match="3 counts for a decoder of 4"):
        costs.prefill(llava().config, 5, [16, 16, 8])
    with pytest.raises(InputError, match=r"layers 0\.\.3"):
        staircase({4: 0.5}, 4)
    with pytest.raises(InputError, match="cannot come back"):
        staircase({1: 0.5, 2: 0.7}, 4)
    with pytest.raises(InputError, match="outside"):
        check_schedule((1, 2), 2)


def test_budgets_below_the_cheapest_setting_are_refused() -> None:
    with pytest.raises(InputError, match="above the budget"):
        costs.match_budget(lambda rate: 10 + rate, 5)


def test_a_budget_is_a_rate_or_a_number() -> None:
    assert budgeted(0.5, None, 16) == 8
    assert budgeted(0.5, 3, 16) == 3
    assert budgeted(0.5, 30, 16) == 16
    for number in (0, True, 1.5):
        with pytest.raises(InputError, match="max_tokens"):
            budgeted(0.5, number, 16)
