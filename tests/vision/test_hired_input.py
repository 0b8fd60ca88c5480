"""What HiRED refuses, and what it says then."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.vision.hired_inputs import PATCHES, PINPOINTS, SIDE, tiled_inputs
from tests.vision.tiny_vlms import IMAGE, llama, llava, llava_inputs, llava_next, onevision, qwen

from outlay.errors import CapabilityError, InputError
from outlay.vision.hired import HiRED
from outlay.vision.hired.layout import tiled
from outlay.vision.hired.reading import Looked


@pytest.fixture(scope="module")
def model():
    return llava_next()


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"rate": 0}, "rate=0"),
        ({"rate": 1.01}, "rate=1.01"),
        ({"rate": math.nan}, "rate=nan"),
        ({"rate": True}, "rate=True"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": 2.5}, "max_tokens=2.5"),
        ({"alpha": -0.1}, "alpha=-0.1"),
        ({"alpha": 1.1}, "alpha=1.1"),
        ({"alpha": math.nan}, "alpha=nan"),
        ({"text_share": 2}, "text_share=2"),
        ({"init_layer": -1}, "init_layer=-1"),
        ({"final_layer": -1}, "final_layer=-1"),
        ({"topcount_k": -1}, "topcount_k=-1"),
        ({"floor_per_partition": -1}, "floor_per_partition=-1"),
        ({"head_agg": "mean"}, "head_agg='mean'"),
        ({"content_score": "area"}, "content_score='area'"),
        ({"region_map": "tiles"}, "region_map='tiles'"),
        ({"rounding": "up"}, "rounding='up'"),
        ({"newline": "some"}, "newline='some'"),
        ({"positions": "new"}, "positions='new'"),
        ({"query": "text"}, "query='text'"),
        ({"compat": "v1"}, "compat='v1'"),
        ({"compat": "paper", "region_map": "chunks"}, "compat='paper' means region_map='uniform'"),
        ({"compat": "official", "newline": "keep_all"}, "compat='official' means newline='none'"),
        ({"respect_unpad": False, "text_share": 0.5}, "text_share"),
        ({"query": "probe", "final_layer": 1}, "final_layer=1 has no meaning"),
    ],
)
def test_knobs_out_of_range_are_refused_by_name(knobs, says):
    with pytest.raises(InputError, match=says):
        HiRED(**knobs)


def test_compat_sets_five_modes_and_survives_replace():
    official = HiRED(compat="official")
    assert (official.content_score, official.region_map) == ("topcount", "chunks")
    assert (official.rounding, official.respect_unpad, official.newline) == ("floor", False, "none")
    assert replace(official, rate=0.4).region_map == "chunks"
    assert HiRED(compat="paper").content_score == "mass"


def test_a_rate_below_one_token_is_refused(model):
    with pytest.raises(InputError, match=r"rate=0.01 of 88 tokens is less than one token"):
        HiRED(rate=0.01).budget(tiled((64, 64), PINPOINTS, SIDE, 4))


def test_a_budget_below_one_token_an_image_is_refused(model):
    layouts = [tiled((64, 64), PINPOINTS, SIDE, 4)] * 3
    assert HiRED(max_tokens=3).budgets(layouts) == [1, 1, 1]
    with pytest.raises(InputError, match="max_tokens=2 for a prompt with 3 images"):
        HiRED(max_tokens=2).budgets(layouts)


def test_rates_are_not_rounded_below_what_they_say():
    layout = tiled((64, 64), PINPOINTS, SIDE, 4)
    assert HiRED(rate=0.7, newline="none").budget(layout) == 56  # 0.7 * 80 is 55.99999999999999
    assert HiRED(rate=0.3, newline="none").budget(layout) == 24


def test_a_tower_without_class_token_needs_another_query():
    with pytest.raises(CapabilityError, match="class token"):
        HiRED()(onevision())
    with pytest.raises(CapabilityError, match="query='received'"):
        HiRED(query="probe")(onevision())  # built without its pooling head


@pytest.mark.parametrize("knobs", [{"init_layer": 2}, {"final_layer": 2}])
@pytest.mark.parametrize("query", ["cls", "received"])
def test_layers_that_the_tower_lacks_are_refused(model, knobs, query):
    with pytest.raises(InputError, match=r"layer 2; the tower has layers 0\.\.1"):
        HiRED(**knobs, query=query)(model)


def test_models_that_cannot_be_read_are_refused():
    with pytest.raises(CapabilityError, match="HiRED reads the vision tower"):
        HiRED()(llama())
    for query in ("cls", "received"):
        with pytest.raises(CapabilityError):
            HiRED(query=query)(qwen())


def test_partitions_that_do_not_fit_the_sizes_are_refused(model):
    inputs = tiled_inputs([(64, 64)])
    with HiRED()(model), pytest.raises(InputError, match=r"needs \[5\] partitions"):
        model(**{**inputs, "pixel_values": inputs["pixel_values"][:, :4]})
    with HiRED()(model), pytest.raises(InputError, match=r"needs \[3\] partitions"):
        model(**{**inputs, "image_sizes": torch.tensor([(32, 64)])})


def test_reduced_placeholders_are_refused_with_the_needed_count(model):
    inputs = tiled_inputs([(64, 64)])
    short = {**inputs, "input_ids": torch.tensor([[1] + [IMAGE] * 17 + [10, 11]])}
    short["attention_mask"] = torch.ones_like(short["input_ids"])
    with (
        HiRED()(model),
        pytest.raises(InputError, match="17 image placeholders, and its images need 88"),
    ):
        model(**short)


def test_placeholders_that_match_in_sum_and_not_by_image_are_refused(model):
    inputs = tiled_inputs([(64, 64), (32, 64)])
    rows = [[1] + [IMAGE] * n + [10] * (100 - n) for n in (52, 88)]
    ids = torch.tensor(rows)
    with HiRED()(model), pytest.raises(InputError, match="52 placeholders where image 0 has 88"):
        model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)})


def test_attention_that_is_no_number_is_refused(model):
    inputs = tiled_inputs([(64, 64)])
    inputs["pixel_values"][0, 2, 0, 5, 5] = math.nan
    with HiRED()(model), pytest.raises(InputError, match="image 0 holds NaN"):
        model(**inputs)


def test_features_from_elsewhere_are_refused(model):
    inputs = tiled_inputs([(64, 64)])
    features = model.model.get_image_features(
        inputs["pixel_values"], inputs["image_sizes"], return_dict=True
    )
    given = {"input_ids": inputs["input_ids"], "mm_encoder_outputs": {"image": features}}
    with HiRED()(model), pytest.raises(CapabilityError, match="encoded in it"):
        model(**given)


def test_features_read_in_other_layers_are_refused(model):
    inputs = tiled_inputs([(64, 64)])
    with HiRED(init_layer=1)(model):
        features = model.model.get_image_features(
            inputs["pixel_values"], inputs["image_sizes"], return_dict=True
        )
    given = {"input_ids": inputs["input_ids"], "mm_encoder_outputs": {"image": features}}
    with HiRED()(model), pytest.raises(CapabilityError, match="same query, layers"):
        model(**given)
    with HiRED(init_layer=1, rate=0.1)(model) as kept:  # other knobs may differ
        model(**given)
    assert kept.plans[0].tokens == 8


def test_videos_are_refused():
    model = onevision()
    frames = torch.randn(1, 2, 3, SIDE, SIDE)
    count = 2 * 4 + 1  # frames are pooled to 2 x 2, one newline
    ids = torch.tensor([[1] + [4] * count + [10]])
    with HiRED(query="received")(model), pytest.raises(CapabilityError, match="videos"):
        model(input_ids=ids, pixel_values_videos=frames)


def test_a_class_token_among_the_features_is_refused():
    model = llava()
    model.config.vision_feature_select_strategy = "full"
    inputs = llava_inputs()
    ids = torch.cat([inputs["input_ids"][:, :2], inputs["input_ids"][:, 1:]], dim=1)
    with HiRED()(model), pytest.raises(CapabilityError, match="vision_feature_select_strategy"):
        model(input_ids=ids, pixel_values=inputs["pixel_values"])


def test_two_methods_on_one_model_are_refused_and_the_first_goes_on(model):
    inputs = tiled_inputs([(64, 64)])
    with HiRED(rate=0.2)(model) as kept:
        with pytest.raises(CapabilityError, match="open on this model"), HiRED()(model):
            pass
        model(**inputs)
    assert kept.plans[0].tokens == kept.plans[0].budget


def test_padding_cannot_be_ranked_in_a_shrunk_mosaic():
    layout = tiled((64, 64), PINPOINTS, SIDE, 4, 1)
    looked = Looked(layout, torch.rand(PATCHES), torch.rand(5, PATCHES))
    with pytest.raises(InputError, match="respect_unpad=True"):
        HiRED(respect_unpad=False).plan(looked, 10)
    assert HiRED().plan(looked, 10).tokens == 10


def test_floors_that_the_budget_does_not_hold_are_refused(model):
    with (
        HiRED(floor_per_partition=9)(model),
        pytest.raises(InputError, match="floor_per_partition=9"),
    ):
        model(**tiled_inputs([(64, 64)]))
