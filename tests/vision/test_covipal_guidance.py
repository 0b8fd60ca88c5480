"""Stage 1's targets are the model's own attention, whatever else is in the batch."""

from __future__ import annotations

import pytest
import torch
from tests.vision.tiny_vlms import IMAGE, llava, llava_inputs

from outlay.errors import InputError
from outlay.vision.covipal.guidance import (
    attention_sums,
    guidance_layer,
    query_rows,
    targets,
    unpruned,
)
from outlay.vision.covipal.lessons import collect
from outlay.vision.covipal.tokens import Watch


@pytest.fixture(scope="module")
def model():
    return llava()


def target(model, inputs, layer: int = 2, **knobs) -> torch.Tensor:
    with Watch(model, attention=[layer]) as watch:
        unpruned(model, inputs)
        return targets(watch, layer, **knobs)


def padded(inputs, left: int):
    """Rows with padding on the left."""
    rows = len(inputs["input_ids"])
    blank = torch.zeros(rows, left, dtype=torch.long)
    return {
        **inputs,
        "input_ids": torch.cat([blank, inputs["input_ids"]], 1),
        "attention_mask": torch.cat([blank, inputs["attention_mask"]], 1),
    }


def eager_attention(model, inputs) -> torch.Tensor:
    """(B, H, T, T) of layer 2, as the model itself computes it."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(**inputs, output_attentions=True).attentions[2]
    model.set_attn_implementation("sdpa")
    return found


def test_targets_are_the_eager_model_s_attention(model) -> None:
    inputs = llava_inputs(2)
    seen = eager_attention(model, inputs)
    wanted = seen[:, :, 17:, 1:17].sum((1, 2))  # the four words of the question
    found = target(model, inputs)
    assert torch.allclose(found, wanted, atol=1e-5)
    last = target(model, inputs, queries="last")
    assert torch.allclose(last, seen[:, :, -1, 1:17].sum(1), atol=1e-5)


def test_the_last_query_is_the_question_s_and_not_the_answer_s(model) -> None:
    inputs = llava_inputs(2)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -2:] = inputs["input_ids"][:, -2:]  # an answer of two words
    seen = eager_attention(model, inputs)
    found = collect(model, [{**inputs, "labels": labels}], guidance=2, queries="last")[0]
    assert torch.allclose(found["target"], seen[:, :, -3, 1:17].sum(1), atol=1e-5)
    whole = collect(model, [{**inputs, "labels": labels}], guidance=2)[0]
    assert torch.allclose(whole["target"], seen[:, :, 17:, 1:17].sum((1, 2)), atol=1e-5)


@pytest.mark.parametrize("which", ["text", "last"])
def test_attention_over_all_keys_sums_to_heads_times_queries(model, which) -> None:
    inputs = padded(llava_inputs(3), 2)
    with Watch(model, attention=[1]) as watch:
        unpruned(model, inputs)
        at, real = query_rows(watch.seen, which)
        sums = attention_sums(watch, 1, at, real)
    heads = model.config.text_config.num_attention_heads
    assert torch.allclose(sums.sum(1), heads * real.sum(1).float(), atol=1e-4)


@pytest.mark.parametrize("sinks", ["keep", "clip", "baseline"])
def test_targets_do_not_depend_on_padding_or_neighbours(model, sinks) -> None:
    inputs = llava_inputs(3)
    together = target(model, inputs, sinks=sinks)
    assert torch.allclose(target(model, padded(inputs, 3), sinks=sinks), together, atol=1e-5)
    for row in range(3):
        alone = {name: value[row : row + 1] for name, value in inputs.items()}
        found = target(model, alone, sinks=sinks)
        assert torch.allclose(found, together[row : row + 1], atol=1e-5)


def test_rows_of_unlike_length_keep_their_own_targets(model) -> None:
    inputs = llava_inputs(2)
    short = inputs["input_ids"][1:, :-2]  # a question of two words
    both = padded(
        {n: inputs[n][1:] for n in ("attention_mask", "pixel_values")}
        | {"input_ids": short, "attention_mask": torch.ones_like(short)},
        2,
    )
    mixed = {name: torch.cat([inputs[name][:1], both[name]]) for name in inputs}
    alone = target(model, {"input_ids": short, "pixel_values": inputs["pixel_values"][1:]})
    assert torch.allclose(target(model, mixed)[1:], alone, atol=1e-5)


def test_a_baseline_takes_off_what_does_not_know_the_question(model) -> None:
    inputs = llava_inputs(1)
    eager = eager_attention(model, inputs)
    blind = eager[:, :, 16, 1:17].sum(1)  # the last visual token's row
    wanted = (eager[:, :, 17:, 1:17].sum((1, 2)) - 4 * blind).clamp_min(0)
    assert torch.allclose(target(model, inputs, sinks="baseline"), wanted, atol=1e-5)


def test_clipping_bounds_a_sink(model) -> None:
    found, clipped = (target(model, llava_inputs(2), sinks=s) for s in ("keep", "clip"))
    ceiling = found.quantile(0.99, dim=1, keepdim=True)
    assert torch.allclose(clipped, found.minimum(ceiling))
    assert bool((clipped < found).any())


def test_the_guidance_layer_is_two_thirds_down_and_deeper_than_pruning() -> None:
    assert [guidance_layer(depth, None, 0) for depth in (2, 4, 6, 28)] == [1, 3, 4, 19]
    assert guidance_layer(6, None, 4) == 5
    assert guidance_layer(6, 2, 1) == 2
    with pytest.raises(InputError, match="guidance_layer=1 is not deeper than prune_layer=1"):
        guidance_layer(6, 1, 1)
    for wrong in (6, -1, True):
        with pytest.raises(InputError, match=r"layers 0\.\.5"):
            guidance_layer(6, wrong, 0)
    with pytest.raises(InputError, match="no layer is deeper than prune_layer=0"):
        guidance_layer(1, None, 0)


def test_prompts_without_text_after_the_image_are_refused(model) -> None:
    ids = torch.tensor([[1, 9, *[IMAGE] * 16]])
    given = {"input_ids": ids, "pixel_values": llava_inputs(1)["pixel_values"]}
    with pytest.raises(InputError, match="batch 0: row 0 has no text after the image"):
        collect(model, [given])


def test_prompts_without_images_are_refused(model) -> None:
    with pytest.raises(InputError, match="batch 1: no image in the prompt"):
        collect(model, [llava_inputs(1), {"input_ids": torch.tensor([[1, 9, 10]])}])


def test_unknown_words_are_refused(model) -> None:
    with pytest.raises(InputError, match="queries='first'"):
        target(model, llava_inputs(1), queries="first")
    with pytest.raises(InputError, match="sinks='drop'"):
        target(model, llava_inputs(1), sinks="drop")


def test_attention_that_is_no_number_names_the_row(model) -> None:
    inputs = llava_inputs(2)
    pictures = inputs["pixel_values"].clone()
    pictures[1, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="row 1: attention of layer 2 is no number"):
        target(model, {**inputs, "pixel_values": pictures})


class Counted:
    """A model that counts its passes."""

    def __init__(self, model) -> None:
        self.passes = 0
        self.handle = model.model.register_forward_pre_hook(self.count)

    def count(self, *_: object) -> None:
        self.passes += 1


def test_guidance_is_computed_once_for_every_batch(model) -> None:
    counted = Counted(model)
    batches = [llava_inputs(2, seed=s) for s in range(3)]
    told = []
    kept = collect(
        model, batches, guidance=[1, 2, 3], progress=lambda done, of: told.append((done, of))
    )
    again = collect(model, batches, guidance=2, keep_states=False)
    assert counted.passes == 6
    first = [kept.guided_by(2)[i] for i in range(3)]
    assert counted.passes == 6  # nothing runs again
    second = [again[i] for i in range(3)]
    assert counted.passes == 9  # streams do, attention does not
    counted.handle.remove()
    assert told == [(1, 3), (2, 3), (3, 3)]
    for ours, theirs in zip(first, second, strict=True):
        assert torch.equal(ours["target"], theirs["target"])
        for name, tensor in ours["streams"]["0"].items():
            assert torch.equal(tensor, theirs["streams"]["0"][name])
    assert kept.guided_by(1)[0]["target"].ne(first[0]["target"]).any()
    with pytest.raises(InputError, match="no attention of layer 0 was kept"):
        kept.guided_by(0)


def test_lessons_need_batches_and_layers_that_exist(model) -> None:
    with pytest.raises(InputError, match="0 batches"):
        collect(model, [])
    with pytest.raises(InputError, match="layer 4; the decoder has layers"):
        collect(model, [llava_inputs(1)], prune_layers=[4])
    with pytest.raises(InputError, match="no prune layer"):
        collect(model, [llava_inputs(1)], prune_layers=[])


def test_streams_that_do_not_fit_are_refused(model, monkeypatch) -> None:
    monkeypatch.setattr("outlay.vision.covipal.lessons.MAX_STATE_BYTES", 1000)
    with pytest.raises(InputError, match="set keep_states=False"):
        collect(model, [llava_inputs(1)])
