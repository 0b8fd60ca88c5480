"""LLaVA and LLaVA-NeXT with a chosen number of visual tokens."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.vision.tiny_vlms import IMAGE, llama, llava, llava_inputs, llava_next, onevision, pixels

from outlay.errors import CapabilityError, InputError
from outlay.vision.base import Budgeted, Pruner
from outlay.vision.tokenflex import (
    FlexLlavaForConditionalGeneration,
    FlexLlavaNextForConditionalGeneration,
    Grid,
    ProjectorConfig,
    TokenFlex,
    convert,
    prepare,
    using,
)
from outlay.vision.tokenflex.models import flexible, tiled_tokens

COUNTS = (1, 4, 16)
SIZES = [(64, 64), (40, 60), (20, 64), (64, 24), (33, 31)]


@pytest.fixture(scope="module")
def model() -> Any:
    return convert(llava(), ProjectorConfig(counts=COUNTS))


@pytest.fixture(scope="module")
def tiled_model() -> Any:
    return convert(llava_next(), ProjectorConfig(counts=COUNTS))


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def tiled_inputs(model: Any, sizes: list[tuple[int, int]], grid: Grid) -> dict[str, Any]:
    """One image a row, padded on the left."""
    counts = [tiled_tokens(model.config, size, grid) for size in sizes]
    most = max(counts)
    rows = [[0] * (most - n) + [1] + [IMAGE] * n + [9, 11, 13] for n in counts]
    ids = torch.tensor(rows)
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "pixel_values": pixels(5 * len(sizes)).unflatten(0, (len(sizes), 5)),
        "image_sizes": torch.tensor(sizes),
    }


def answer(model: Any, inputs: dict[str, Any], **more: Any) -> torch.Tensor:
    made = model.generate(**inputs, max_new_tokens=4, do_sample=False, **more)
    return made[:, inputs["input_ids"].shape[1] :]


# -- all placeholders, or exactly as many as features ----------------------------------------------


@pytest.mark.parametrize("n", [1, 4, 9, (2, 3), 16])
def test_all_placeholders_answer_as_exactly_those_needed(model: Any, n: Any) -> None:
    full = llava_inputs(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with TokenFlex(n)(model) as kept:
            logits, words = model(**full).logits, answer(model, full)
        with TokenFlex(n)(model):
            exact = TokenFlex(n).prepare(model, full)
            inside = model(**exact).logits
    count = n if isinstance(n, int) else n[0] * n[1]
    assert (exact["input_ids"] == IMAGE).sum(1).tolist() == [count, count]
    assert kept.counts()[0] == [count, count]
    assert kept.mean_rate() == count / 16
    with using(model, n):
        alone, said = model(**exact).logits, answer(model, exact)
    assert torch.equal(inside, alone)
    assert torch.allclose(logits[:, -4:], alone[:, -4:], atol=1e-5)
    assert torch.equal(words, said)


@pytest.mark.parametrize("beams", [1, 3])
def test_beams_and_samples_of_a_batch_see_their_own_image(model: Any, beams: int) -> None:
    full = llava_inputs(3)
    with TokenFlex(4)(model):
        together = answer(model, full, num_beams=beams, num_return_sequences=beams)
        for row in range(3):
            alone = {name: value[row : row + 1] for name, value in full.items()}
            said = answer(model, alone, num_beams=beams, num_return_sequences=beams)
            assert torch.equal(together[row * beams : (row + 1) * beams], said)


def test_two_images_of_a_row_keep_their_features_apart(model: Any) -> None:
    block = [IMAGE] * 16
    ids = torch.tensor([[1, *block, 8, *block, 9], [0, 0, 1, *block, *block]])
    inputs = {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "pixel_values": pixels(4),
    }
    with TokenFlex(4)(model) as kept:
        logits = model(**inputs).logits
    assert kept.sizes == [16] * 4
    exact = prepare(model, inputs, 4)
    places = (exact["input_ids"] == IMAGE).nonzero()
    with using(model, 4):
        features = torch.cat(list(model.model.get_image_features(inputs["pixel_values"])[1]))
        embeds = model.get_input_embeddings()(exact["input_ids"])
        embeds[places[:, 0], places[:, 1]] = features
    slow = model(inputs_embeds=embeds, attention_mask=exact["attention_mask"]).logits
    assert torch.allclose(logits[:, -1], slow[:, -1], atol=1e-5)


def test_decoding_goes_on_over_the_short_cache(model: Any) -> None:
    full = llava_inputs(1)
    with TokenFlex(4)(model):
        out = model(**full, use_cache=True)
        assert out.cache.get_seq_length() == 1 + 4 + 4


@pytest.mark.parametrize("n", [1, 4, 16])
def test_tiles_are_pooled_before_they_are_put_together(tiled_model: Any, n: int) -> None:
    full = tiled_inputs(tiled_model, SIZES, Grid(4, 4))
    with TokenFlex(n)(tiled_model) as kept:
        logits, words = tiled_model(**full).logits, answer(tiled_model, full)
    exact = prepare(tiled_model, full, n)
    side = int(n**0.5)
    counts = [tiled_tokens(tiled_model.config, size, Grid(side, side)) for size in SIZES]
    assert (exact["input_ids"] == IMAGE).sum(1).tolist() == counts == kept.counts()[0]
    with using(tiled_model, n):
        alone, said = tiled_model(**exact).logits, answer(tiled_model, exact)
    assert torch.allclose(logits[:, -3:], alone[:, -3:], atol=1e-4)
    assert torch.equal(words, said)


def test_the_full_grid_packs_tiles_as_transformers_does(tiled_model: Any) -> None:
    """The mosaic of LLaVA-NeXT itself, for five shapes of images."""
    plain = llava_next()
    mlp = convert(plain, ProjectorConfig("mlp", counts=COUNTS))
    inputs = tiled_inputs(mlp, SIZES, Grid(4, 4))
    assert torch.equal(mlp(**inputs).logits, plain(**inputs).logits)


def test_beams_of_tiled_images_see_their_own_image(tiled_model: Any) -> None:
    full = tiled_inputs(tiled_model, SIZES[:2], Grid(4, 4))
    exact = prepare(tiled_model, full, 4)
    with TokenFlex(4)(tiled_model):
        words = answer(tiled_model, full, num_beams=2)
    with using(tiled_model, 4):
        assert torch.equal(words, answer(tiled_model, exact, num_beams=2))


def test_one_token_a_tile_is_its_mean(tiled_model: Any) -> None:
    projector = tiled_model.model.multi_modal_projector
    inputs = tiled_inputs(tiled_model, SIZES[:1], Grid(1, 1))
    tower = tiled_model.model.vision_tower(inputs["pixel_values"][0], output_hidden_states=True)
    slow = projector.project(tower.hidden_states[-1][:, 1:].mean(1, keepdim=True))[:, 0]
    newline = tiled_model.model.image_newline
    with using(tiled_model, 1):
        found = tiled_model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
    rows = torch.stack([slow[0], slow[1], slow[2], newline, slow[3], slow[4], newline])
    assert torch.allclose(found[1][0], rows, atol=1e-5)


# -- a plain model made flexible, and stored -------------------------------------------------------


def test_an_mlp_at_the_full_grid_is_the_model_that_it_came_from() -> None:
    plain = llava()
    made, inputs = convert(plain, ProjectorConfig("mlp", counts=COUNTS)), llava_inputs(2)
    assert torch.equal(made(**inputs).logits, plain(**inputs).logits)
    assert made.model.vision_tower is plain.model.vision_tower
    assert flexible(plain) is None


@pytest.mark.parametrize("which", ["llava", "llava_next"])
def test_a_stored_model_comes_back_through_transformers(which: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    plain, kind = {
        "llava": (llava(), FlexLlavaForConditionalGeneration),
        "llava_next": (llava_next(), FlexLlavaNextForConditionalGeneration),
    }[which]
    made = convert(plain, ProjectorConfig(counts=COUNTS, n_visual_tokens=4, hidden=24))
    inputs = llava_inputs() if which == "llava" else tiled_inputs(made, SIZES[1:2], Grid(4, 4))
    made.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert kind.__name__ in (tmp_path / "config.json").read_text()
    for loaded in (
        kind.from_pretrained(tmp_path),
        AutoModelForImageTextToText.from_pretrained(tmp_path, trust_remote_code=True),
    ):
        assert flexible(loaded).settings == flexible(made).settings  # type: ignore[union-attr]
        with TokenFlex(4)(loaded), TokenFlex(4)(made):
            assert torch.equal(loaded(**inputs).logits, made(**inputs).logits)
            assert torch.equal(answer(loaded, inputs), answer(made, inputs))


def test_a_fresh_model_is_initialised_and_uses_its_native_count() -> None:
    config = llava().config
    config.tokenflex = ProjectorConfig(counts=COUNTS, n_visual_tokens=4).to_dict()
    made = FlexLlavaForConditionalGeneration(config).eval()
    weights = made.model.multi_modal_projector.gate.weight
    assert 0.01 < float(weights.std()) < 0.03
    inputs = prepare(made, llava_inputs(), 4)
    assert torch.equal(made(**inputs).logits, made(**inputs).logits)
    assert made.model.get_image_features(inputs["pixel_values"])[1][0].shape == (4, 32)


def test_the_method_follows_the_rooms_protocol() -> None:
    assert isinstance(TokenFlex(), Pruner)
    assert isinstance(TokenFlex(), Budgeted)
    assert TokenFlex().n == 64
    assert [TokenFlex().within(n, 144, 4).n for n in (1, 35, 36, 80, 200)] == [1, 25, 36, 64, 144]
    with pytest.raises(InputError, match="tokens=0"):
        TokenFlex().within(0, 144, 4)


# -- prompts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_all_that_runs_along_a_prompt_is_rebuilt(model: Any, side: Any) -> None:
    ids = torch.tensor([[1, IMAGE, 7, 8, 9], [1, IMAGE, 7, 0, 0]])
    inputs = {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "labels": torch.tensor([[-100, -100, -100, 8, 9], [-100, -100, 7, -100, -100]]),
        "mm_token_type_ids": (ids == IMAGE).long(),
        "position_ids": torch.arange(5).expand(2, -1),
        "pixel_values": pixels(2),
    }
    made = prepare(model, inputs, [4, 1], padding=side)
    long, short = [1, *[IMAGE] * 4, 7, 8, 9], [1, IMAGE, 7]
    fill = [0] * 5
    wanted = [long, fill + short if side == "left" else short + fill]
    assert made["input_ids"].tolist() == wanted
    assert made["attention_mask"].tolist() == [[int(t != 0) for t in row] for row in wanted]
    types = [[int(t == IMAGE) for t in row] for row in wanted]
    assert made["mm_token_type_ids"].tolist() == types
    assert made["labels"][0].tolist() == [-100] * 6 + [8, 9]
    assert made["labels"][1].sum() == -100 * 7 + 7
    assert "position_ids" not in made
    assert made["pixel_values"] is inputs["pixel_values"]


def test_placeholders_are_as_many_as_images_times_the_count(model: Any) -> None:
    ids = torch.tensor([[1, IMAGE, 7, IMAGE, IMAGE], [1, 5, 6, 7, 8]])
    for n in (1, 4, 9, 16):
        made = prepare(model, {"input_ids": ids, "pixel_values": pixels(3)}, n)
        assert int((made["input_ids"] == IMAGE).sum()) == 3 * n


def test_rows_of_different_counts_answer_as_they_would_alone(model: Any) -> None:
    inputs = llava_inputs(3)
    made = prepare(model, inputs, [4, 16, 1])
    with using(model, [4, 16, 1]):
        together = answer(model, made)
    for row, n in enumerate((4, 16, 1)):
        alone = prepare(model, {k: v[row : row + 1] for k, v in inputs.items()}, n)
        with using(model, n):
            assert torch.equal(answer(model, alone)[0], together[row])


# -- bad input -------------------------------------------------------------------------------------


def test_a_plain_model_has_only_its_own_count() -> None:
    plain, inputs = llava(), llava_inputs()
    with TokenFlex(16)(plain) as kept:
        assert torch.equal(model_logits(plain, inputs), plain(**inputs).logits)
    assert kept.mean_rate() == 1
    with (
        pytest.raises(CapabilityError, match=r"no flexible projector.*hired or covipal"),
        TokenFlex(4)(plain),
    ):
        pass
    with pytest.raises(CapabilityError, match="no flexible projector"):
        TokenFlex(4).prepare(plain, inputs)


def model_logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    found: torch.Tensor = model(**inputs).logits
    return found


def test_models_without_a_tower_or_of_another_class_are_refused() -> None:
    with pytest.raises(CapabilityError, match="has none"), TokenFlex(4)(llama()):
        pass
    with pytest.raises(CapabilityError, match=r"convert takes .* not LlavaOnevision"):
        convert(onevision())


def test_a_tower_without_a_square_grid_is_refused() -> None:
    plain = llava()
    plain.config.vision_config.patch_size = None
    with pytest.raises(CapabilityError, match="image_size and patch_size"):
        convert(plain)


def test_counts_that_the_encoder_cannot_give_are_refused(model: Any) -> None:
    with pytest.raises(InputError, match="4 x 4 = 16 tokens"), TokenFlex(25)(model):
        pass
    with pytest.raises(InputError, match="not a square number; the nearest is 9"):
        TokenFlex(10)
    with pytest.raises(InputError, match="counts=64; the encoder gives 4 x 4"):
        convert(llava())
    with pytest.raises(InputError, match="2 counts for 1 images"):
        prepare(model, llava_inputs(), [4, 4])


def test_a_count_outside_the_trained_set_is_allowed_with_a_warning(model: Any) -> None:
    with (
        pytest.warns(UserWarning, match=r"n=9 is none of the counts .* \(1, 4, 16\)"),
        TokenFlex(9)(model) as kept,
    ):
        model(**llava_inputs())
    assert kept.counts()[0] == [9]


def test_tiles_are_refused_where_single_ones_were_trained() -> None:
    made = convert(llava_next(), ProjectorConfig(counts=COUNTS, tiles=False))
    several = tiled_inputs(made, [(64, 64)], Grid(4, 4))
    with pytest.raises(InputError, match="an image has 4 tiles, and this model was trained with"):
        made(**several)
    made.config.image_grid_pinpoints = [[32, 32]]
    single = tiled_inputs(made, [(32, 32)], Grid(4, 4))
    with TokenFlex(4)(made) as kept:
        made(**single)
    assert kept.counts()[0] == [4 + 2 * 3]


def test_tiled_images_share_one_count(tiled_model: Any) -> None:
    inputs = tiled_inputs(tiled_model, SIZES[:2], Grid(4, 4))
    with pytest.raises(CapabilityError, match="share one count"):
        prepare(tiled_model, inputs, [1, 4])
    del inputs["image_sizes"]
    with pytest.raises(InputError, match="need image_sizes"):
        prepare(tiled_model, inputs, 4)


def test_placeholders_that_fit_nothing_are_refused(model: Any) -> None:
    inputs = llava_inputs(2)
    inputs["input_ids"] = inputs["input_ids"][:, 4:]
    del inputs["attention_mask"]
    for call in (model, model.generate):
        with (
            TokenFlex(4)(model),
            pytest.raises(InputError, match=r"26 placeholders for 2 images, by row \[13, 13\]"),
        ):
            call(**inputs)
    with pytest.raises(InputError, match="26 placeholders for 2 images"):
        prepare(model, inputs, 4)


def test_placeholders_of_the_wrong_row_are_refused(model: Any) -> None:
    """As many as features over the batch, and not row by row."""
    block = [IMAGE] * 4
    ids = torch.tensor([[1, *block, IMAGE, 7, 8, 9], [1, *block[1:], 7, 8, 9, 10, 11]])
    with TokenFlex(4)(model), pytest.raises(InputError, match=r"8 placeholders .*\[5, 3\]"):
        model(input_ids=ids, pixel_values=pixels(2))


def test_pixels_and_features_together_are_refused(model: Any) -> None:
    inputs = llava_inputs()
    ready = model.model.get_image_features(inputs["pixel_values"], return_dict=True)
    with TokenFlex(4)(model), pytest.raises(InputError, match="give one of them"):
        model(**inputs, mm_encoder_outputs={"image": ready})


@pytest.mark.parametrize("missing", ["input_ids", "pixel_values"])
def test_prompts_without_ids_or_pictures_are_refused(model: Any, missing: str) -> None:
    inputs = llava_inputs()
    del inputs[missing]
    with pytest.raises(InputError, match=f"no {missing}"):
        prepare(model, inputs, 4)


def test_embeddings_do_not_say_where_images_are(model: Any) -> None:
    inputs = llava_inputs()
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    with TokenFlex(4)(model), pytest.raises(InputError, match="inputs_embeds"):
        model(inputs_embeds=embeds, **inputs)


def test_padding_between_tokens_is_refused(model: Any) -> None:
    inputs = llava_inputs()
    inputs["attention_mask"][0, 18] = 0
    with pytest.raises(InputError, match="row 0 has padding between its tokens"):
        prepare(model, inputs, 4)
    with pytest.raises(InputError, match="padding='middle'"):
        prepare(model, llava_inputs(), 4, padding="middle")  # type: ignore[arg-type]


def test_a_text_prompt_is_left_alone(model: Any) -> None:
    ids = torch.tensor([[1, 7, 8, 9]])
    with TokenFlex(4)(model):
        inside, said = model(input_ids=ids).logits, answer(model, {"input_ids": ids})
    assert torch.equal(inside, model(input_ids=ids).logits)
    assert torch.equal(said, answer(model, {"input_ids": ids}))
