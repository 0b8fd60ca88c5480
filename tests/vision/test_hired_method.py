"""HiRED on real classes of transformers: what it reads, what it keeps, and what then runs."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from tests.vision.hired_inputs import GRID, PATCHES, SIZES, slow_masks, tiled_inputs, tokens_of
from tests.vision.tiny_vlms import (
    IMAGE,
    llava,
    llava_inputs,
    llava_next,
    onevision,
    pixels,
    ready,
    text,
)
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from outlay.errors import InputError
from outlay.vision.base import Budgeted, Pruner
from outlay.vision.hired import HiRED
from outlay.vision.hired.reading import Reader

WHOLE = [(64, 64), (32, 64), (64, 32)]
OTHER_LAYER = "ignore:final_layer=0 ranks patches"


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)  # vectors, such as the class token's, come from the global generator
        return llava_next()


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        yield


def chosen(method: HiRED, model, inputs) -> list[list[int]]:
    with method(model) as kept:
        model(**inputs)
    return [np.flatnonzero(plan.keep_K).tolist() for plan in kept.plans]


def eager_rows(model, pixel_values: torch.Tensor) -> list[torch.Tensor]:
    """Class-token rows of every layer by the eager tower, (P, H, N)."""
    tower = model.model.vision_tower
    tower.set_attn_implementation("eager")
    found = tower(pixel_values, output_attentions=True).attentions
    tower.set_attn_implementation("sdpa")
    return [layer[:, :, 0, 1:] for layer in found]


def test_hired_is_a_pruner_that_takes_a_number_of_tokens(model):
    assert isinstance(HiRED(), Pruner)
    assert isinstance(HiRED(), Budgeted)
    inputs = tiled_inputs([(64, 64)])
    with HiRED().within(17, 88, 4)(model) as kept:
        model(**inputs)
    assert kept.plans[0].tokens == 17


@pytest.mark.parametrize("make", [llava_next, onevision], ids=["next", "onevision"])
@pytest.mark.parametrize("newline", ["keep_all", "keep_nonempty"])
def test_rate_one_is_the_unmodified_model(make, newline):
    model = make()
    query = "cls" if make is llava_next else "received"
    inputs = tiled_inputs(SIZES)
    plain = model(**inputs).logits
    written = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with HiRED(rate=1.0, newline=newline, query=query)(model) as kept:
        same = model(**inputs).logits
        again = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(plain, same)
    assert torch.equal(written, again)
    assert kept.mean_rate() == 1


def test_without_newlines_rate_one_is_another_model(model):
    """The released code drops newlines even where nothing else is dropped."""
    inputs = tiled_inputs([(64, 64)])
    with HiRED(rate=1.0, newline="none")(model) as kept:
        other = model(**inputs).logits[:, -1]
    assert kept.plans[0].tokens == 5 * PATCHES
    assert not torch.allclose(other, model(**inputs).logits[:, -1], atol=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_rows_equal_eager_attention_in_all_partitions(model, size):
    inputs = tiled_inputs([size])
    reader = Reader(model, query="cls", init_layer=0, final_layer=None, head_agg="sum")
    reader.open()
    features = model.model.get_image_features(
        inputs["pixel_values"], inputs["image_sizes"], return_dict=True
    )
    reader._watch(model.model, (), {"mm_encoder_outputs": {"image": features}})
    (looked,) = reader.looked
    reader.close()
    first, last = eager_rows(model, inputs["pixel_values"][0])
    assert torch.allclose(looked.final_PN, last.sum(1), atol=1e-5)
    assert torch.allclose(looked.initial_N, first[0].sum(0), atol=1e-5)


@pytest.mark.parametrize("compat", ["official", "paper"])
@pytest.mark.parametrize("size", WHOLE)
def test_compat_runs_the_reference_on_the_eager_towers_attention(model, compat, size):
    inputs = tiled_inputs([size])
    first, last = eager_rows(model, inputs["pixel_values"][0])
    shape = (size[0] // 32, size[1] // 32)
    wanted = slow_masks(first[0].tolist(), last.tolist(), 0.3, 0.5, shape, how=compat)
    with HiRED(rate=0.3, compat=compat, return_masks=True)(model) as kept:
        model(**inputs)
    assert np.array_equal(kept.plans[0].mask_Pgg.reshape(wanted.shape), wanted)


def test_the_final_layer_is_the_one_that_makes_the_features():
    model = llava_next()
    model.config.vision_feature_layer = -2
    inputs = tiled_inputs([(64, 64)])
    assert chosen(HiRED(), model, inputs) == chosen(HiRED(final_layer=0), model, inputs)
    model.config.vision_feature_layer = -1
    assert chosen(HiRED(), model, inputs) == chosen(HiRED(final_layer=1), model, inputs)


def test_another_final_layer_is_warned_of(model):
    with pytest.warns(UserWarning, match="final_layer=0 ranks patches, and layer 1"):
        HiRED(final_layer=0)(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HiRED(final_layer=1)(model)


def test_a_batch_keeps_what_its_images_keep_alone(model):
    method = HiRED(rate=0.3)
    together = chosen(method, model, tiled_inputs(SIZES))
    alone = [chosen(method, model, tiled_inputs([size]))[0] for size in SIZES]
    assert together == alone
    assert len({len(kept) for kept in together}) > 1


def test_images_of_one_size_get_masks_of_their_own():
    kept = chosen(HiRED(rate=0.3), llava(), llava_inputs(3))
    assert len({tuple(one) for one in kept}) == 3


def test_what_is_kept_is_a_shorter_prompt_at_the_right_places(model):
    """The same numbers as a prompt with exactly the kept placeholders and features."""
    inputs = tiled_inputs([(20, 60)])
    with HiRED(rate=0.3)(model) as kept:
        logits = model(**inputs).logits
        written = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    (plan,) = kept.plans
    (features,) = model.model.get_image_features(
        inputs["pixel_values"], inputs["image_sizes"], return_dict=True
    ).pooler_output
    stay = torch.cat([torch.tensor([True]), torch.from_numpy(plan.keep_K), torch.ones(4).bool()])
    ids = inputs["input_ids"][:, stay]
    short = {
        "input_ids": ids,
        "mm_encoder_outputs": {
            "image": BaseModelOutputWithPooling(
                pooler_output=[features[torch.from_numpy(plan.keep_K)]]
            )
        },
    }
    assert int((ids == IMAGE).sum()) == plan.tokens
    assert torch.allclose(model(**short).logits, logits[:, stay], atol=1e-5)
    again = model.generate(**short, max_new_tokens=4, do_sample=False)
    assert torch.equal(again[:, -4:], written[:, -4:])


def test_caches_hold_the_text_and_what_was_kept(model):
    inputs = tiled_inputs([(64, 64)])
    with HiRED(rate=0.2)(model) as kept:
        cache = model(**inputs, use_cache=True).cache
    (plan,) = kept.plans
    assert [layer.keys.shape[2] for layer in cache.layers] == [plan.tokens + 5] * 4
    assert kept.seconds > 0


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_original_positions_keep_gaps_and_compact_ones_do_not(model, positions):
    seen = []
    hook = model.model.language_model.rotary_emb.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("position_ids", args[-1])),
        with_kwargs=True,
    )
    inputs = tiled_inputs([(64, 64)])
    with HiRED(rate=0.2, positions=positions)(model):
        model(**inputs)
    hook.remove()
    last = int(seen[0].max())
    assert (
        last == (inputs["input_ids"].shape[1] if positions == "original" else seen[0].numel()) - 1
    )


def permuted_heads(model, order: list[int]):
    """The same model, the heads of every tower layer renumbered."""
    other = copy.deepcopy(model)
    for layer in other.model.vision_tower.encoder.layers:
        attention = layer.self_attn
        index = torch.arange(32).view(4, 8)[order].flatten()
        for name in ("q_proj", "k_proj", "v_proj"):
            part = getattr(attention, name)
            part.weight.copy_(part.weight[index])
            part.bias.copy_(part.bias[index])
        attention.out_proj.weight.copy_(attention.out_proj.weight[:, index])
    return other


@pytest.mark.parametrize("head_agg", ["sum", "max"])
def test_the_order_of_heads_changes_nothing(model, head_agg):
    inputs, method = tiled_inputs(SIZES), HiRED(rate=0.3, head_agg=head_agg)
    other = permuted_heads(model, [2, 0, 3, 1])
    assert chosen(method, model, inputs) == chosen(method, other, inputs)


def test_a_constant_on_all_logits_of_a_query_changes_nothing(model):
    """A bias of the keys adds the same to every key of a query."""
    other = copy.deepcopy(model)
    for layer in other.model.vision_tower.encoder.layers:
        layer.self_attn.k_proj.bias.add_(torch.randn(32))
    inputs, method = tiled_inputs(SIZES), HiRED(rate=0.3)
    assert chosen(method, model, inputs) == chosen(method, other, inputs)


def test_sum_and_max_over_heads_differ(model):
    inputs = tiled_inputs(SIZES)
    one, two = (chosen(HiRED(head_agg=agg), model, inputs) for agg in ("sum", "max"))
    assert one != two


def test_features_are_encoded_once_and_asked_about_often(model):
    inputs = tiled_inputs([(64, 64)])
    with HiRED(rate=0.2)(model) as kept:
        features = model.model.get_image_features(
            inputs["pixel_values"], inputs["image_sizes"], return_dict=True
        )
        logits = []
        for word in (10, 20):
            ids = inputs["input_ids"].clone()
            ids[:, -1] = word
            given = {"input_ids": ids, "mm_encoder_outputs": {"image": features}}
            logits.append(model(**given).logits)
            first = kept.plans[0].keep_K
        assert np.array_equal(first, kept.plans[0].keep_K)
        again = model(**{**inputs, "attention_mask": None}).logits
    assert kept.prefills == 3
    assert torch.equal(logits[0][:, :-1], again[:, :-1])
    assert not torch.equal(logits[0], logits[1])


def test_beams_and_several_samples_keep_each_images_own_tokens(model):
    inputs = tiled_inputs(SIZES[:2])
    method = HiRED(rate=0.3)
    alone = chosen(method, model, inputs)
    with method(model) as kept:
        model.generate(**inputs, max_new_tokens=3, do_sample=False, num_beams=2)
    found = [np.flatnonzero(plan.keep_K).tolist() for plan in kept.plans]
    assert found == [alone[0]] * 2 + [alone[1]] * 2


def test_two_images_of_one_prompt_share_a_budget_by_size(model):
    one, two = (tiled_inputs([size]) for size in ((64, 64), (32, 64)))
    ids = torch.cat([one["input_ids"][:, :-4], two["input_ids"][:, 1:]], dim=1)
    pixel_values = torch.zeros(2, 5, 3, 32, 32)
    pixel_values[0] = one["pixel_values"][0]
    pixel_values[1, :3] = two["pixel_values"][0]
    inputs = {
        "input_ids": ids,
        "pixel_values": pixel_values,
        "image_sizes": torch.tensor([(64, 64), (32, 64)]),
    }
    # Between the images stands nothing, so only the features say where one ends.
    with HiRED(max_tokens=30)(model) as kept:
        model(**inputs)
    first, second = (plan.tokens for plan in kept.plans)
    sizes = [tokens_of((64, 64)), tokens_of((32, 64))]
    assert first + second == 30
    assert abs(first - 30 * sizes[0] / sum(sizes)) <= 1
    assert kept.sizes == sizes


def test_onevision_leaves_two_images_of_a_prompt_whole():
    model = onevision()
    sizes = [(64, 64), (20, 60)]
    line = [1] + [IMAGE] * 17 + [8] + [IMAGE] * 17 + [10, 11]
    inputs = {
        "input_ids": torch.tensor([line]),
        "pixel_values": pixels(2)[:, None],
        "image_sizes": torch.tensor(sizes),
        "batch_num_images": torch.tensor([2]),
    }
    plain = model(**inputs).logits
    with HiRED(rate=1.0, query="received")(model):
        assert torch.equal(model(**inputs).logits, plain)
    with HiRED(rate=0.3, query="received")(model) as kept:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert [plan.tokens for plan in kept.plans] == [5, 5]
    assert all(plan.keep_K[-1] for plan in kept.plans)  # its newline


def test_received_attention_is_the_mean_of_all_rows():
    model = onevision()
    inputs = tiled_inputs([(64, 64)])
    tower = model.model.vision_tower
    reader = Reader(model, query="received", init_layer=0, final_layer=None, head_agg="sum")
    reader.open()
    tower(inputs["pixel_values"][0])
    rows = reader.final.rows()
    reader.close()
    tower.set_attn_implementation("eager")
    wanted = tower(inputs["pixel_values"][0], output_attentions=True).attentions[-1]
    assert torch.allclose(rows, wanted.mean(2), atol=1e-6)


def test_received_attention_leaves_a_class_token_out(model):
    reader = Reader(model, query="received", init_layer=0, final_layer=None, head_agg="sum")
    reader.open()
    model.model.vision_tower(pixels(2))
    rows = reader.final.rows()
    reader.close()
    tower = model.model.vision_tower
    tower.set_attn_implementation("eager")
    wanted = tower(pixels(2), output_attentions=True).attentions[-1]
    tower.set_attn_implementation("sdpa")
    assert torch.allclose(rows, wanted[:, :, 1:, 1:].mean(2), atol=1e-6)


def siglip_llava():
    vision = SiglipVisionConfig(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text(),
        image_token_index=IMAGE,
        image_seq_length=16,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return ready(LlavaForConditionalGeneration(config))


def test_the_probe_is_the_pooling_heads_own_attention():
    model = siglip_llava()
    tower = model.model.vision_tower
    inputs = llava_inputs(2)
    hidden = tower(inputs["pixel_values"]).last_hidden_state
    probe = tower.head.probe.repeat(2, 1, 1)
    _, wanted = tower.head.attention(probe, hidden, hidden, average_attn_weights=False)
    reader = Reader(model, query="probe", init_layer=0, final_layer=None, head_agg="sum")
    reader.open()
    tower(inputs["pixel_values"])
    assert torch.allclose(reader.final.rows(), wanted[:, :, 0], atol=1e-6)
    reader.close()
    with HiRED(rate=0.25, query="probe")(model) as kept:
        model(**inputs)
    for plan, scores_N in zip(kept.plans, wanted[:, :, 0].sum(1), strict=True):
        best = sorted(scores_N.topk(4).indices.tolist())
        assert np.flatnonzero(plan.keep_K).tolist() == best


def test_text_share_keeps_what_looks_like_the_question(model):
    """The question's last word is the feature of a patch that the tower does not look at."""
    inputs = tiled_inputs([(64, 64)])
    with HiRED(rate=0.2)(model) as kept:
        model(**inputs)
    (plan,) = kept.plans
    (features,) = model.model.get_image_features(
        inputs["pixel_values"], inputs["image_sizes"], return_dict=True
    ).pooler_output
    dull = next(i for i in range(PATCHES) if not plan.keep_K[i])
    other = copy.deepcopy(model)
    word = int(inputs["input_ids"][0, -1])
    other.get_input_embeddings().weight[word] = features[dull]
    with HiRED(rate=0.2)(other) as kept:
        other(**inputs)
    assert not kept.plans[0].keep_K[dull]  # the question alone changes nothing
    with HiRED(rate=0.2, text_share=0.3)(other) as kept:
        other(**inputs)
    assert kept.plans[0].keep_K[dull]
    assert kept.plans[0].tokens == plan.tokens


def test_a_flat_class_token_is_warned_of():
    model = llava_next()
    for layer in model.model.vision_tower.encoder.layers:
        layer.self_attn.q_proj.weight.zero_()
        layer.self_attn.q_proj.bias.zero_()
    with HiRED()(model), pytest.warns(UserWarning, match="almost flat"):
        model(**tiled_inputs([(64, 64)]))


@pytest.mark.filterwarnings(OTHER_LAYER)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype):
    model = llava_next()
    for layer in model.model.vision_tower.encoder.layers:
        for name in ("q_proj", "k_proj"):
            getattr(layer.self_attn, name).weight.mul_(300)  # q k is far above what fp16 holds
    inputs = tiled_inputs([(64, 64)])
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    reader = Reader(model.to(dtype), query="cls", init_layer=0, final_layer=0, head_agg="sum")
    reader.open()
    hidden = model.model.vision_tower.embeddings(inputs["pixel_values"][0])
    attention = model.model.vision_tower.encoder.layers[0].self_attn
    query, key = attention.q_proj(hidden), attention.k_proj(hidden)
    assert float(query.float().abs().max() * key.float().abs().max()) > 65504
    assert bool(reader.final.rows().isfinite().all())
    reader.close()


def test_gradients_reach_what_is_kept_and_nothing_else(model):
    inputs = tiled_inputs([(64, 64)])
    with torch.enable_grad(), HiRED(rate=0.2)(model) as kept:
        embeds = []
        hook = model.model.multi_modal_projector.register_forward_hook(
            lambda module, args, output: (output.retain_grad(), embeds.append(output))[1]
        )
        model(**inputs).logits[:, -1].sum().backward()
        hook.remove()
    model.zero_grad()
    (plan,) = kept.plans
    place = torch.tensor(plan.layout.place_K)
    own = torch.from_numpy(plan.keep_K & ~plan.layout.newline_K)
    touched = embeds[0].grad.abs().sum(-1).flatten() > 0
    assert set(touched.nonzero()[:, 0].tolist()) <= set(place[own].tolist())


def hooks_of(model) -> dict[str, int]:
    return {
        name: len(part._forward_pre_hooks) + len(part._forward_hooks)
        for name, part in model.named_modules()
    }


def test_the_model_is_left_as_it_was_even_after_an_error(model):
    inputs = tiled_inputs([(64, 64)])
    before, hooks = model(**inputs).logits, hooks_of(model)
    with HiRED()(model):
        model(**inputs)
        assert hooks_of(model) != hooks
        with pytest.raises(InputError):
            model(**{**inputs, "image_sizes": torch.tensor([(32, 64)])})
    assert "get_image_features" not in vars(model.model)
    assert hooks_of(model) == hooks
    assert torch.equal(model(**inputs).logits, before)


def test_a_prompt_without_images_runs_as_ever(model):
    ids = torch.tensor([[1, 10, 11, 12]])
    plain = model(input_ids=ids).logits
    with HiRED()(model):
        assert torch.equal(model(input_ids=ids).logits, plain)


def test_masks_are_made_where_they_are_asked_for(model):
    inputs = tiled_inputs([(64, 64)])
    with HiRED()(model) as kept:
        model(**inputs)
    assert kept.plans[0].mask_Pgg is None
    with HiRED(return_masks=True)(model) as kept:
        model(**inputs)
    (plan,) = kept.plans
    assert plan.mask_Pgg.shape == (5, GRID, GRID)
    assert plan.mask_Pgg.sum((1, 2)).tolist() == list(plan.quota)
