"""CoViPAL as it is used: knobs, contexts, caches, files, and what it refuses."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.vision.covipal_cases import FAMILIES, labelled
from tests.vision.tiny_vlms import IMAGE, llama, llava, llava_inputs, pixels, prompt

from outlay.errors import CapabilityError, InputError, ModelError
from outlay.vision.base import Budgeted, Pruner
from outlay.vision.counts import counts_of, half_up, staircase
from outlay.vision.covipal import CoViPAL, Trained, load, save
from outlay.vision.covipal.pruning import Amount
from outlay.vision.covipal.store import CONFIG, WEIGHTS, fingerprint


@pytest.fixture(scope="module")
def model():
    return llava()


def untrained(method: CoViPAL, model, seed: int = 0) -> CoViPAL:
    """With modules of random weights: what is pruned does not matter here, how does."""
    ppms = {layer: ppm.eval() for layer, ppm in method.new_modules(model, seed).items()}
    return replace(method, fitted=Trained(ppms, 3, fingerprint(model), "tiny"))


@pytest.mark.parametrize("layer", [0, 2])
def test_a_ratio_of_one_is_bit_identical(model, layer: int) -> None:
    method = untrained(CoViPAL(ratio=1.0, d_p=24, prune_layer=layer), model)
    inputs = llava_inputs(2)
    with torch.no_grad():
        plain = model(**inputs).logits
        with method(model) as kept:
            same = model(**inputs).logits
    assert torch.equal(plain, same)
    assert kept.mean_rate() == 1


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("ratio", [0.5, 0.28125, 0.0001])
def test_caches_hold_the_text_and_the_share_of_visual_tokens(model, layer, ratio) -> None:
    method = untrained(CoViPAL(ratio=ratio, d_p=24, prune_layer=layer), model)
    with torch.no_grad(), method(model) as kept:
        cache = model(**llava_inputs(2), use_cache=True).cache
    k = max(1, half_up(ratio * 16))  # 8, 5 (4.5 is rounded up), 1
    assert [one.keys.shape[2] for one in cache.layers] == [5 + 16] * layer + [5 + k] * (4 - layer)
    assert kept.counts() == [[16, 16]] * layer + [[k, k]] * (4 - layer)
    assert kept.seconds > 0


def test_the_best_scores_stay_in_their_order(model) -> None:
    method = untrained(CoViPAL(ratio=0.25, d_p=24), model)
    with torch.no_grad(), method(model) as kept:
        model(**llava_inputs(2))
    for scores, alive in zip(kept.scores, kept.entered, strict=True):
        assert alive.tolist() == sorted(scores.topk(4).indices.tolist())


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("layer", [0, 2])
def test_every_family_generates_on_fewer_tokens(family: str, layer: int) -> None:
    case = FAMILIES[family]()
    method = untrained(CoViPAL(ratio=0.25, d_p=24, prune_layer=layer), case.model)
    rows = len(case.inputs["input_ids"])
    with torch.no_grad(), method(case.model) as kept:
        text = case.model.generate(
            **case.inputs, max_new_tokens=3, do_sample=False, eos_token_id=None
        )
    assert text.shape[1] == case.inputs["input_ids"].shape[1] + 3
    assert kept.counts()[-1] == [half_up(case.visual / 4)] * rows
    assert kept.counts()[0] == ([half_up(case.visual / 4)] if layer == 0 else [case.visual]) * rows
    assert kept.prefills == 1


def test_a_schedule_prunes_survivors_relative_to_the_original(model) -> None:
    method = untrained(CoViPAL(schedule=((0, 0.5), (2, 0.25)), d_p=24), model)
    with torch.no_grad(), method(model) as kept:
        model(**llava_inputs(2))
    assert kept.counts() == [[8, 8], [8, 8], [4, 4], [4, 4]]
    for early, late in zip(kept.layers[1], kept.layers[2], strict=True):
        assert set(late.tolist()) <= set(early.tolist())


@pytest.mark.parametrize("layer", [0, 2])
def test_limits_in_tokens_hold_whatever_the_ratio(model, layer) -> None:
    inputs = llava_inputs(1)
    for knobs, wanted in (
        ({"ratio": 0.5, "max_tokens": 3}, 3),
        ({"ratio": 1.0, "max_tokens": 3}, 3),
        ({"ratio": 0.1, "min_keep": 6}, 6),
        ({"ratio": 0.1, "min_keep": 99}, 16),
    ):
        method = untrained(CoViPAL(**knobs, d_p=24, prune_layer=layer), model)
        with torch.no_grad(), method(model) as kept:
            model(**inputs)
        assert kept.counts()[-1] == [wanted], knobs


def test_a_ratio_that_rounds_to_none_keeps_one_or_is_refused(model) -> None:
    inputs = llava_inputs(1)
    with torch.no_grad(), untrained(CoViPAL(ratio=0.02, d_p=24), model)(model) as kept:
        model(**inputs)
    assert kept.counts()[0] == [1]
    strict = untrained(CoViPAL(ratio=0.02, d_p=24, min_keep=0), model)
    with (
        torch.no_grad(),
        strict(model),
        pytest.raises(InputError, match=r"ratio=0.02 of 16 .* rounds to none"),
    ):
        model(**inputs)


def two_images() -> dict[str, torch.Tensor]:
    one = prompt(1, question=2)
    ids = torch.cat([one, one[:, 1:]], 1)
    return {"input_ids": ids, "pixel_values": pixels(2)}


def test_images_of_a_row_compete_or_have_their_own_ratios(model) -> None:
    inputs = two_images()
    with torch.no_grad(), untrained(CoViPAL(ratio=0.25, d_p=24), model)(model) as kept:
        model(**inputs)
    assert sum(map(len, kept.entered)) == 8
    best = torch.cat(kept.scores).topk(8).indices.sort().values
    assert torch.cat([kept.entered[0], 16 + kept.entered[1]]).tolist() == best.tolist()
    each = untrained(CoViPAL(ratio=(0.5, 0.125), d_p=24), model)
    with torch.no_grad(), each(model) as kept:
        model(**inputs)
    assert [len(one) for one in kept.entered] == [8, 2]


def test_ratios_for_another_number_of_images_are_refused(model) -> None:
    method = untrained(CoViPAL(ratio=(0.5, 0.5, 0.5), d_p=24), model)
    with (
        torch.no_grad(),
        method(model),
        pytest.raises(InputError, match="ratio has 3 entries and row 0 of the batch has 2 images"),
    ):
        model(**two_images())


def test_a_later_question_is_scored_anew(model) -> None:
    method = untrained(CoViPAL(ratio=0.25, d_p=24), model)
    inputs = llava_inputs(1)
    longer = torch.cat([inputs["input_ids"], torch.tensor([[20, 21, 22]])], 1)
    with torch.no_grad(), method(model) as kept:
        model(**inputs)
        first = kept.scores[0]
        model(input_ids=longer, pixel_values=inputs["pixel_values"])
    assert kept.prefills == 2
    assert not torch.equal(kept.scores[0], first)


def test_compact_positions_close_ranks(model) -> None:
    inputs = llava_inputs(1)
    found = {}
    for positions in ("original", "compact"):
        method = untrained(CoViPAL(ratio=0.25, d_p=24, positions=positions), model)
        with torch.no_grad(), method(model) as kept:
            found[positions] = model(**inputs).logits[:, -1]
    assert not torch.allclose(found["original"], found["compact"], atol=1e-4)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    features = model.get_image_features(inputs["pixel_values"]).pooler_output[0]
    alive = features[kept.entered[0]]
    short = torch.cat([embeds[:, :1], alive[None], embeds[:, 17:]], 1)
    with torch.no_grad():
        wanted = model(inputs_embeds=short).logits[:, -1]
    assert torch.allclose(found["compact"], wanted, atol=2e-5)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 3000),
    ratio=st.floats(0.001, 1.0),
    most=st.none() | st.integers(1, 500),
    least=st.integers(1, 50),
)
def test_amounts_stay_within_their_limits(n, ratio, most, least) -> None:
    least = least if most is None else min(least, most)
    k = Amount(((0, ratio),), None, most, least).of(ratio, n)
    assert 1 <= k <= n
    assert k <= (n if most is None else most)
    assert k >= min(n, least)
    if most is None and least == 1 and ratio < 1:
        assert k == min(n, max(1, half_up(ratio * n)))


def test_a_budget_in_tokens_is_met(model) -> None:
    for method, least in (
        (CoViPAL(), 1),
        (CoViPAL(prune_layer=1), 5),
        (CoViPAL(schedule=((0, 0.5), (2, 0.25))), 2),
        (CoViPAL(schedule=((1, 0.5), (3, 0.25))), 7),
    ):
        for tokens in (least, 8, 12):
            fitted = method.within(tokens, 16, 4)
            mean = sum(counts_of(staircase(dict(fitted.stairs), 4), 16)) / 4
            assert mean <= tokens
            assert mean > tokens - 1.1
    with pytest.raises(InputError, match="the layers before 2 alone"):
        CoViPAL(prune_layer=2).within(4, 16, 4)
    assert isinstance(CoViPAL(), Budgeted)
    assert isinstance(CoViPAL(), Pruner)


def test_saved_modules_are_the_same_modules(model, tmp_path) -> None:
    batches = [labelled(seed=s) for s in range(2)]
    method = CoViPAL(d_p=24).fit(model, batches, validation=batches[:1])
    again = method.save(str(tmp_path))
    assert again.fitted is None
    inputs = llava_inputs(2)
    with torch.no_grad():
        with method(model) as ours:
            first = model(**inputs).logits
        with again(model) as theirs:
            second = model(**inputs).logits
    assert torch.equal(first, second)
    assert [a.tolist() for a in ours.entered] == [b.tolist() for b in theirs.entered]
    record = json.loads((tmp_path / CONFIG).read_text())
    assert record["model"] == fingerprint(model)
    assert record["guidance_layer"] == 3
    assert record["ratios"] == [0.1, 0.75]
    assert record["modules"]["0"]["d_p"] == 24
    assert set(record["calibration"]) == {"0.5", "0.25", "0.125", "0.0625"}
    assert load(tmp_path).calibration == method.fitted.calibration
    with pytest.raises(InputError, match="nothing to save"):
        again.save(str(tmp_path))


def test_modules_of_another_model_are_refused(model, tmp_path) -> None:
    method = untrained(CoViPAL(d_p=24), model)
    save(method.fitted, tmp_path)
    other = llava(seed=1)
    for stranger in (method, CoViPAL(saved=str(tmp_path))):
        with pytest.raises(InputError, match="was trained for tiny with fingerprint"):
            stranger(other)
    with pytest.raises(InputError, match="was trained for tiny"):
        load(tmp_path, other)
    assert load(tmp_path, model).model_id == "tiny"


def test_one_changed_weight_changes_the_fingerprint_and_precision_does_not() -> None:
    model = llava()
    mark = fingerprint(model)
    assert fingerprint(deepcopy(model).to(torch.bfloat16)) == mark
    assert fingerprint(deepcopy(model).double()) == mark
    with torch.no_grad():
        model.model.language_model.layers[2].mlp.up_proj.weight += 0.01
    assert fingerprint(model) != mark


def test_weights_that_were_written_behind_autograd_s_back_are_another_model_s() -> None:
    model = llava()
    method = untrained(CoViPAL(d_p=24), model)
    with method(model):
        pass
    model.model.language_model.layers[2].mlp.up_proj.weight.data += 0.01
    with pytest.raises(InputError, match="was trained for tiny"):
        method(model)


def test_a_model_that_was_trained_on_is_another_model() -> None:
    model = llava()
    method = untrained(CoViPAL(d_p=24), model)
    method(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.1)
    with pytest.raises(InputError, match="was trained for tiny"):
        method(model)


def test_modules_for_other_layers_are_refused(model) -> None:
    method = untrained(CoViPAL(d_p=24), model)
    with pytest.raises(InputError, match=r"no module was trained for layer 2.*\[0\]"):
        replace(method, prune_layer=2)(model)


def test_a_method_without_modules_says_how_to_get_some(model) -> None:
    with pytest.raises(InputError, match=r"no shipped pruning module is for this .*call fit"):
        CoViPAL()(model)
    with pytest.raises(ModelError, match="nowhere holds no pruning module"):
        CoViPAL(saved="nowhere")(model)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / CONFIG).write_text("{"), "holds no pruning module that can be read"),
        (lambda f: (f / WEIGHTS).write_bytes(b"x" * 40), "holds no pruning module"),
        (lambda f: (f / WEIGHTS).unlink(), "holds no pruning module"),
        (lambda f: _config(f, format=9), "has format 9"),
        (lambda f: _config(f, modules={}), "names 0 modules"),
        (lambda f: _config(f, modules={"0": {"hidden": 32, "d_p": 25}}), "multiple of heads"),
        (lambda f: _config(f, modules={"0": {"hidden": 40, "d_p": 24}}), "has shape"),
        (lambda f: _config(f, modules={"1": {"hidden": 32, "d_p": 24}}), "is missing"),
        (lambda f: _weights(f, lambda t: t.fill_(float("nan"))), "is not finite"),
    ],
)
def test_damaged_files_are_refused(model, tmp_path, spoil, words: str) -> None:
    save(untrained(CoViPAL(d_p=24), model).fitted, tmp_path)
    spoil(tmp_path)
    with pytest.raises(ModelError, match=words):
        load(tmp_path, model)


def _config(folder, **changed) -> None:
    record = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(record | changed))


def _weights(folder, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors["0.types"])
    save_file(tensors, folder / WEIGHTS)


def test_a_prompt_without_images_is_refused(model) -> None:
    method = untrained(CoViPAL(d_p=24), model)
    with torch.no_grad(), method(model), pytest.raises(InputError, match="no image in the prompt"):
        model(input_ids=torch.tensor([[1, 9, 10]]))


def test_pixels_that_are_no_numbers_name_the_row(model) -> None:
    method = untrained(CoViPAL(d_p=24), model)
    inputs = llava_inputs(2)
    inputs["pixel_values"][1, 0, 0, 0] = float("nan")
    with torch.no_grad(), method(model), pytest.raises(InputError, match="row 1 of the batch"):
        model(**inputs)


def test_models_without_a_tower_are_refused() -> None:
    with pytest.raises(CapabilityError, match="has none"):
        CoViPAL(d_p=24).new_modules(llama(), 0)


def test_only_one_method_is_open_on_a_model(model) -> None:
    method = untrained(CoViPAL(d_p=24), model)
    with method(model):
        with pytest.raises(CapabilityError, match="open on this model already"), method(model):
            pass
        with torch.no_grad():
            model(**llava_inputs(1))
    with method(model):  # and closed again
        pass


def test_hooks_are_gone_after_an_error(model) -> None:
    inputs = llava_inputs(1)
    decoder = model.model.language_model
    with torch.no_grad():
        plain = model(**inputs).logits
        method = untrained(CoViPAL(d_p=24, ratio=(0.5, 0.5)), model)
        with pytest.raises(InputError), method(model):
            model(**inputs)
        assert torch.equal(model(**inputs).logits, plain)
    assert not decoder._forward_pre_hooks
    assert not decoder._forward_hooks


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"ratio": 0.0}, "ratio=0.0"),
        ({"ratio": 1.2}, "ratio=1.2"),
        ({"ratio": float("nan")}, "ratio=nan"),
        ({"ratio": ()}, "names no image"),
        ({"ratio": (0.5, 0.0)}, "ratio=0.0"),
        ({"ratio": (0.5,), "prune_layer": 1}, "needs prune_layer=0, not 1"),
        ({"ratio": (0.5,), "schedule": ((0, 0.5),)}, "give ratio or schedule"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": 2, "min_keep": 3}, "more than max_tokens=2"),
        ({"min_keep": -1}, "min_keep=-1"),
        ({"prune_layer": -1}, "prune_layer=-1"),
        ({"prune_layer": 2, "guidance_layer": 2}, "not deeper than prune_layer=2"),
        ({"schedule": ((0, 0.5), (3, 0.2)), "guidance_layer": 3}, "not deeper than prune_layer=3"),
        ({"schedule": ((2, 0.5), (1, 0.2))}, "layers must rise"),
        ({"schedule": ((0, 0.2), (1, 0.5))}, "must not grow"),
        ({"schedule": ((0, 0.0),)}, r"schedule\[0\]=0.0"),
        ({"schedule": (("a", 0.5),)}, r"layer of schedule\[0\]='a'"),
        ({"guidance_layer": "deep"}, "guidance_layer='deep'"),
        ({"stage1_loss": "mse"}, "stage1_loss='mse'"),
        ({"gate": "hard"}, "gate='hard'"),
        ({"teacher": "none"}, "teacher='none'"),
        ({"positions": "none"}, "positions='none'"),
        ({"variant": "none"}, "variant='none'"),
        ({"d_p": 2}, "d_p=2"),
    ],
)
def test_knobs_out_of_range_name_themselves(knobs, words: str) -> None:
    with pytest.raises(InputError, match=words):
        CoViPAL(**knobs)


def test_a_layer_that_the_decoder_lacks_is_refused(model) -> None:
    method = untrained(CoViPAL(d_p=24, prune_layer=7), model)
    with pytest.raises(InputError, match="layer 7; the decoder has"):
        method(model)


def test_the_method_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        CoViPAL().ratio = 0.5  # type: ignore[misc]


def test_placeholders_are_never_counted_as_text(model) -> None:
    method = untrained(CoViPAL(ratio=0.25, d_p=24), model)
    ids = prompt(2)
    with torch.no_grad(), method(model) as kept:
        model(input_ids=ids, pixel_values=pixels(2))
    assert kept.text == [int((row != IMAGE).sum()) for row in ids]
