"""Dropping visual tokens is exactly not looking at them, in prefill and while decoding."""

from __future__ import annotations

import pytest
import torch
from tests.vision.masked import greedy, masked_logits, merged
from tests.vision.tiny_vlms import (
    IMAGE,
    llama,
    llava,
    llava_inputs,
    llava_next,
    onevision,
    pixels,
    prompt,
    qwen,
)
from torch import Tensor

from outlay.errors import CapabilityError, InputError
from outlay.vision.base import Choice, Ranking, Seen
from outlay.vision.dropper import Dropper

RATES = (1.0, 1.0, 0.5, 0.25)


def by_number(seen: Ranking) -> Tensor:
    """Ranks by a fixed shuffle of the original numbers, another one a row."""
    order = torch.stack(
        [torch.randperm(seen.total, generator=torch.Generator().manual_seed(r)) for r in (5, 6)]
    )[: len(seen.alive_BN)]
    return order.gather(1, seen.alive_BN).float()


def fixed(*kept: list[int]):
    def choose(seen: Seen) -> Choice:
        return Choice.of(seen, [torch.tensor(one) for one in kept])

    return choose


def gone_of(kept, ids: Tensor) -> list[Tensor]:
    """(B, T) of each layer from what a dropper says lived."""
    visual = ids == IMAGE
    found = []
    for layer in kept.layers:
        gone = visual.clone()
        for row, alive in enumerate(layer):
            gone[row, visual[row].nonzero()[:, 0][alive]] = False
        found.append(gone)
    return found


@pytest.fixture(scope="module")
def model():
    return llava()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_nothing_dropped_is_bit_identical(attention: str) -> None:
    model, inputs = llava(attention), llava_inputs(2)
    with torch.no_grad():
        plain = model(**inputs).logits
        with Dropper(model) as kept:
            same = model(**inputs).logits
        with Dropper(model, choose=lambda seen: Choice(torch.ones_like(seen.visual_BT))):
            chosen = model(**inputs).logits
    assert torch.equal(plain, same)
    assert torch.equal(plain, chosen)
    assert kept.mean_rate() == 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_dropping_between_layers_is_masking_their_keys(attention: str) -> None:
    model, inputs = llava(attention), llava_inputs(2)
    with torch.no_grad():
        with Dropper(model, rates=RATES, score=by_number) as kept:
            found = model(**inputs).logits
        embeds = merged(model, inputs["input_ids"], inputs["pixel_values"])
        gone = gone_of(kept, inputs["input_ids"])
        wanted = masked_logits(model, inputs["input_ids"], embeds, gone)
    lives = ~gone[-1]
    assert (found - wanted)[lives].abs().max() < 2e-5
    assert kept.counts() == [[16, 16], [16, 16], [8, 8], [4, 4]]


def test_greedy_decoding_after_drops_is_recomputation_with_masks(model) -> None:
    inputs = llava_inputs(2)
    with torch.no_grad():
        with Dropper(model, rates=RATES, score=by_number) as kept:
            found = model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=None)
        gone = gone_of(kept, inputs["input_ids"])
        wanted = greedy(model, inputs["input_ids"], inputs["pixel_values"], gone, 6)
    assert torch.equal(found, wanted)


def test_ragged_choices_before_the_decoder_are_masking_too(model) -> None:
    inputs = llava_inputs(2)
    with torch.no_grad():
        with Dropper(model, choose=fixed([1, 2, 5], [0, 3, 9, 10, 15])) as kept:
            found = model(**inputs).logits
            text = model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=None)
        gone = gone_of(kept, inputs["input_ids"])
        embeds = merged(model, inputs["input_ids"], inputs["pixel_values"])
        wanted = masked_logits(model, inputs["input_ids"], embeds, gone)
        again = greedy(model, inputs["input_ids"], inputs["pixel_values"], gone, 6)
    assert (found - wanted)[~gone[0]].abs().max() < 2e-5
    assert torch.equal(text, again)
    assert [one.tolist() for one in kept.entered] == [[1, 2, 5], [0, 3, 9, 10, 15]]


def test_both_kinds_of_dropping_compose(model) -> None:
    inputs = llava_inputs(2)
    choose = fixed([0, 1, 2, 5, 6, 7, 11, 12], [0, 3, 9, 10, 11, 13, 14, 15])
    with torch.no_grad():
        with Dropper(model, choose=choose, rates=(1, 1, 0.25, 0.25), score=by_number) as kept:
            found = model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None)
        gone = gone_of(kept, inputs["input_ids"])
        wanted = greedy(model, inputs["input_ids"], inputs["pixel_values"], gone, 5)
    assert torch.equal(found, wanted)
    assert kept.counts() == [[8, 8], [8, 8], [4, 4], [4, 4]]


def test_caches_hold_text_and_what_lives(model) -> None:
    inputs = llava_inputs(1)
    with torch.no_grad(), Dropper(model, rates=RATES, score=by_number):
        cache = model(**inputs, use_cache=True).cache
    assert [layer.keys.shape[2] for layer in cache.layers] == [5 + n for n in (16, 16, 8, 4)]


def test_layers_before_a_drop_are_untouched(model) -> None:
    inputs, seen = llava_inputs(1), []
    handle = model.model.language_model.layers[1].register_forward_hook(
        lambda m, a, out: seen.append(out)
    )
    with torch.no_grad():
        model(**inputs)
        with Dropper(model, rates=RATES, score=by_number):
            model(**inputs)
    handle.remove()
    assert torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_left_padded_batches_equal_single_runs(attention: str) -> None:
    model = llava(attention)
    long, short = prompt(1, question=6), prompt(1, question=3, seed=1)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), short], 1)
    both = torch.cat([long, padded])
    mask = (both != 0).long()
    image = pixels(2)
    with torch.no_grad():
        with Dropper(model, rates=RATES, score=_by_attention) as kept:
            together = model(
                input_ids=both,
                attention_mask=mask,
                pixel_values=image,
                position_ids=(mask.cumsum(1) - 1).clamp_min(0),
            ).logits
        rows = kept.layers[-1]
        for row, ids in enumerate((long, short)):
            with Dropper(model, rates=RATES, score=_by_attention) as alone:
                single = model(input_ids=ids, pixel_values=image[row : row + 1]).logits
            assert torch.equal(alone.layers[-1][0], rows[row])
            gap = together[row, -3:] - single[0, -3:]
            assert gap.abs().max() < 2e-5


def _by_attention(seen: Ranking) -> Tensor:
    last = torch.full((len(seen.hidden_BMD), 1), seen.hidden_BMD.shape[1] - 1)
    row = seen.attention(last)[:, :, 0].mean(1)
    return row.gather(1, seen.visual_BN)


@pytest.mark.parametrize("padded", [False, True])
def test_attention_rows_are_those_of_eager_attention(padded: bool) -> None:
    model = llava("eager")
    ids = prompt(2)
    mask = torch.ones_like(ids)
    if padded:
        ids = torch.cat([torch.zeros(2, 2, dtype=torch.long), ids], 1)
        mask = torch.cat([torch.tensor([[0, 0], [0, 1]]), mask], 1)
        ids[1, 1] = 9
    rows = torch.tensor([[ids.shape[1] - 1, 18], [ids.shape[1] - 1, 19]])
    found = []

    def score(seen: Ranking) -> Tensor:
        found.append(seen.attention(rows))
        return torch.zeros(seen.visual_BN.shape)

    given = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels(2)}
    with torch.no_grad():
        with Dropper(model, rates=(1, 1, 0.5, 0.5), score=score):
            model(**given)
        wanted = model(**given, output_attentions=True).attentions[1]
    picked = torch.stack([wanted[b][:, rows[b]] for b in range(2)])
    assert (found[0] - picked).abs().max() < 1e-6


def test_compact_positions_are_those_of_a_shorter_prompt(model) -> None:
    inputs = llava_inputs(1)
    keep = [0, 1, 2, 3]
    with torch.no_grad():
        with Dropper(model, choose=fixed(keep), positions="compact"):
            found = model(**inputs).logits[0, -4:]
            text = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
        embeds = merged(model, inputs["input_ids"], inputs["pixel_values"])
        short = torch.cat([embeds[:, :5], embeds[:, 17:]], 1)
        wanted = model(inputs_embeds=short).logits[0, -4:]
        more = model.generate(
            inputs_embeds=short, max_new_tokens=4, do_sample=False, eos_token_id=None
        )
    assert (found - wanted).abs().max() < 2e-5
    assert torch.equal(text[0, -4:], more[0, -4:])


def test_several_images_a_row_are_told_apart(model) -> None:
    one = prompt(1, question=2)
    ids = torch.cat([one, one[:, 1:]], 1)
    with torch.no_grad(), Dropper(model, choose=fixed([0, 1], [5])) as kept:
        model(input_ids=ids, pixel_values=pixels(2))
    assert kept.sizes == [16, 16]
    assert kept.total == [32]
    assert kept.layers[0][0].tolist() == [0, 1, 16 + 5]


def test_adjacent_images_are_told_apart_by_their_features(model) -> None:
    ids = prompt(1, tokens=32)
    with torch.no_grad(), Dropper(model, choose=fixed([0], [5])) as kept:
        model(input_ids=ids, pixel_values=pixels(2))
    assert kept.sizes == [16, 16]


def test_beams_and_samples_of_one_prompt_decode(model) -> None:
    inputs = llava_inputs(1)
    with torch.no_grad(), Dropper(model, rates=RATES, score=by_number):
        beams = model.generate(**inputs, num_beams=2, max_new_tokens=4, do_sample=False)
    assert beams.shape[0] == 1


def test_a_prompt_without_images_is_left_alone(model) -> None:
    ids = torch.tensor([[1, 8, 9, 10]])
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with Dropper(model, rates=RATES, score=by_number):
            same = model(input_ids=ids).logits
    assert torch.equal(plain, same)


def test_a_plain_decoder_takes_any_span_as_image() -> None:
    model = llama()
    ids = torch.randint(7, 60, (1, 20), generator=torch.Generator().manual_seed(0))
    visual = torch.zeros(1, 20, dtype=torch.bool)
    visual[:, 3:15] = True
    with torch.no_grad(), Dropper(model, rates=RATES, score=by_number, visual=visual) as kept:
        cache = model(input_ids=ids, use_cache=True).cache
    assert kept.counts() == [[12], [12], [6], [3]]
    assert [layer.keys.shape[2] for layer in cache.layers] == [20, 20, 14, 11]


def test_gradients_flow_through_the_drops(model) -> None:
    inputs = llava_inputs(1)
    with Dropper(model, rates=RATES, score=by_number):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_hooks_are_gone_after_the_context(model) -> None:
    inputs = llava_inputs(1)
    with torch.no_grad():
        plain = model(**inputs).logits
        with pytest.raises(RuntimeError, match="stop"), Dropper(model, rates=RATES, score=_stops):
            model(**inputs)
        assert torch.equal(model(**inputs).logits, plain)


def _stops(seen: Ranking) -> Tensor:
    raise RuntimeError("stop")


def test_llava_next_images_of_other_shapes_share_a_batch() -> None:
    model = llava_next()
    sizes = torch.tensor([[32, 64], [64, 64]])
    tiles = torch.randn(2, 5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    counts = [len(one) for one in model.get_image_features(tiles, image_sizes=sizes).pooler_output]
    longest = max(counts)
    rows = []
    for count in counts:
        row = torch.cat([torch.ones(1), torch.full((count,), IMAGE), torch.tensor([9, 10])])
        rows.append(torch.cat([torch.zeros(longest - count), row]).long())
    ids = torch.stack(rows)
    given = {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "pixel_values": tiles,
        "image_sizes": sizes,
    }
    with torch.no_grad():
        plain = model.generate(**given, max_new_tokens=4, do_sample=False, eos_token_id=None)
        with Dropper(model, choose=fixed(list(range(counts[0])), list(range(counts[1])))) as kept:
            same = model.generate(**given, max_new_tokens=4, do_sample=False, eos_token_id=None)
        with Dropper(model, choose=fixed([0, 3, 7], [1, 2, 3, 30])) as kept:
            model.generate(**given, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(plain, same)
    assert kept.counts()[0] == [3, 4]
    assert kept.sizes == counts


def test_onevision_drops_in_both_places() -> None:
    model = onevision()
    tiles = torch.randn(1, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[32, 64]])
    count = len(model.get_image_features(tiles, image_sizes=sizes).pooler_output[0])
    ids = torch.cat([torch.ones(1), torch.full((count,), IMAGE), torch.tensor([9, 10])])[None]
    given = {"input_ids": ids.long(), "pixel_values": tiles, "image_sizes": sizes}
    choose = fixed(list(range(0, count, 2)))
    rates = (1, 1, 0.25, 0.25)
    with torch.no_grad(), Dropper(model, choose=choose, rates=rates, score=_by_attention) as kept:
        model.generate(**given, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert kept.counts()[0] == [len(range(0, count, 2))]
    assert kept.counts()[-1] == [int(count * 0.25 + 0.5)]


def test_qwen_vl_drops_in_both_places() -> None:
    model = qwen()
    grid = torch.tensor([[1, 8, 8]])
    patches = torch.randn(64, 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 5, *[IMAGE] * 16, 6, 9, 10]])
    given = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": patches,
        "image_grid_thw": grid,
        "mm_token_type_ids": (ids == IMAGE).int(),
    }
    with torch.no_grad():
        plain = model.generate(**given, max_new_tokens=4, do_sample=False, eos_token_id=None)
        with Dropper(model, choose=fixed(list(range(16)))):
            same = model.generate(**given, max_new_tokens=4, do_sample=False, eos_token_id=None)
        rates = (1, 1, 0.25, 0.25)
        choose = fixed([0, 2, 4, 6, 8, 10, 12, 14])
        with Dropper(model, choose=choose, rates=rates, score=_by_attention) as kept:
            model.generate(**given, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(plain, same)
    assert kept.counts() == [[8], [8], [4], [4]]


# Bad input.


def test_placeholders_that_match_in_sum_only_are_refused(model) -> None:
    ids = torch.cat([prompt(1, tokens=15, question=5), prompt(1, tokens=17, question=3)])
    with (
        pytest.raises(InputError, match="placeholders where image 0 has 16 features"),
        Dropper(model),
    ):
        model(input_ids=ids, pixel_values=pixels(2))


def test_pixels_and_ready_features_together_are_refused(model) -> None:
    inputs = llava_inputs(1)
    ready = model.get_image_features(pixel_values=inputs["pixel_values"])
    with pytest.raises(InputError, match="give one of them"), Dropper(model):
        model(**inputs, mm_encoder_outputs={"image": ready})


def test_rows_with_other_counts_cannot_drop_between_layers(model) -> None:
    long = torch.cat([prompt(1, question=2), prompt(1, question=1)[:, 1:]], 1)
    short = torch.cat([torch.zeros(1, 17, dtype=torch.long), prompt(1, question=2)], 1)[:, -36:]
    ids = torch.cat([long, torch.nn.functional.pad(short, (long.shape[1] - short.shape[1], 0))])
    with (
        pytest.raises(InputError, match="the same number from every row"),
        Dropper(model, rates=RATES, score=by_number),
    ):
        model(input_ids=ids, attention_mask=(ids != 0).long(), pixel_values=pixels(3))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"rates": (1, 0.5, 0.6, 0.5), "score": by_number}, "cannot come back"),
        ({"rates": (1, 0.5), "score": by_number}, "2 rates for a decoder of 4"),
        ({"rates": (0.5, 0.5, 0.5, 0.5), "score": by_number}, "before layer 0"),
        ({"rates": (1, 1, float("nan"), 0), "score": by_number}, "outside"),
        ({"rates": (1, 1, 0.5, 0.5)}, "give score"),
        ({"positions": "relative"}, "compact"),
    ],
)
def test_knobs_that_cannot_be_applied_are_refused(model, knobs, message) -> None:
    with pytest.raises(InputError, match=message):
        Dropper(model, **knobs)


def test_scores_that_are_no_numbers_name_their_row(model) -> None:
    def score(seen: Ranking) -> Tensor:
        found = torch.zeros(seen.visual_BN.shape)
        found[1, 2] = float("nan")
        return found

    with pytest.raises(InputError, match="row 1"), Dropper(model, rates=RATES, score=score):
        model(**llava_inputs(2))


def test_static_caches_are_refused(model) -> None:
    with (
        pytest.raises(CapabilityError, match="DynamicCache"),
        Dropper(model, rates=RATES, score=by_number),
    ):
        model.generate(**llava_inputs(1), max_new_tokens=2, cache_implementation="static")


def test_a_second_method_on_an_open_model_is_refused(model) -> None:
    with (
        Dropper(model),
        pytest.raises(CapabilityError, match="open on this model"),
        Dropper(model),
    ):
        pass


def test_plain_decoders_need_to_be_told_what_is_visual() -> None:
    with pytest.raises(CapabilityError, match="no vision tower"):
        Dropper(llama(), rates=RATES, score=by_number)
    with pytest.raises(InputError, match="False everywhere"):
        Dropper(llama(), visual=torch.zeros(1, 4, dtype=torch.bool))


def test_embeddings_do_not_say_what_is_visual(model) -> None:
    with pytest.raises(InputError, match="input_ids"), Dropper(model):
        model(inputs_embeds=torch.zeros(1, 4, 32))


def test_a_mean_rate_needs_a_prompt(model) -> None:
    with Dropper(model) as kept, pytest.raises(InputError, match="no prompt with images"):
        kept.mean_rate()
