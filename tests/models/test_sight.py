"""Models that see: any saved vision-language model, its tokens booked where they belong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.vision.tiny_vlms import llava
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from outlay import models
from outlay.budget import Budget
from outlay.errors import BudgetError, CapabilityError, InputError, ModelError, OutlayError
from outlay.models.base import Account, SamplingParams, Sees
from outlay.models.sight import SightModel
from outlay.vision import costs
from outlay.vision.baselines import RandomTokens
from outlay.vision.in_decoder import FastV
from outlay.vision.zero_tprune import ZeroTPrune

WORDS = ["<pad>", "<bos>", "<image>", "<eos>", *(f"w{i}" for i in range(56))]
IMAGE = np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)
SHORT = SamplingParams(max_tokens=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llava")
    words = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=["<image>"],
    )
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(path)
    llava().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return models.load(str(folder))


def test_a_saved_model_sees(model) -> None:
    assert isinstance(model, SightModel)
    assert isinstance(model, Sees)
    assert model.visual_tokens(IMAGE) == 16
    assert model.decoder_layers == 4
    found = model.see([IMAGE], "w1 w2 w3", SHORT)
    assert len(found.token_ids) == 3 or found.finish_reason == "eos"
    assert found.text.split()[0].startswith("w")


def test_visual_and_text_tokens_are_booked_apart(model) -> None:
    account = Account.open()
    model.see([IMAGE], "w1 w2 w3", SHORT, account=account)
    seen = account.ledger.totals(stage="vision")
    said = account.ledger.totals(stage="answer")
    assert seen.prompt_new == 16
    assert said.prompt_new == 3
    assert said.generated == 3
    assert seen.flops > 0
    assert said.flops > 0


@pytest.mark.parametrize(
    ("pruner", "tokens"), [(RandomTokens(rate=0.25), 4), (FastV(rate=0.25, layer=2), 10)]
)
def test_pruned_tokens_are_not_billed(model, pruner, tokens: int) -> None:
    full, less = Account.open(), Account.open()
    plain = model.see([IMAGE], "w1 w2", SHORT, account=full)
    found = model.see([IMAGE], "w1 w2", SHORT, pruner=pruner, account=less)
    assert less.ledger.totals(stage="vision").prompt_new == tokens
    assert less.ledger.totals(stage="answer").flops < full.ledger.totals(stage="answer").flops
    assert found.gauges.kv_bytes < plain.gauges.kv_bytes
    assert found.gauges.ttft > 0


def test_a_pruned_tower_is_billed_less(model) -> None:
    full, less = Account.open(), Account.open()
    model.see([IMAGE], "w1 w2", SHORT, account=full)
    method = ZeroTPrune(schedule=[(1, 0.25, 0, 1)])
    model.see([IMAGE], "w1 w2", SHORT, pruner=method, account=less)
    config = model.model.config
    whole = costs.tower(config) + costs.projector(config, 16)
    assert full.ledger.totals(stage="vision").flops == whole
    assert 0 < less.ledger.totals(stage="vision").flops < whole


def test_nothing_pruned_answers_as_generate_does(model) -> None:
    inputs = model.encode([IMAGE], "w4 w5")
    with torch.no_grad():
        ids = model.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    found = model.see([IMAGE], "w4 w5", SHORT)
    assert list(found.token_ids) == ids[0, inputs["input_ids"].shape[1] :].tolist()


def test_sampling_follows_its_seed(model) -> None:
    def warm(seed: int) -> tuple[int, ...]:
        sampling = SamplingParams(max_tokens=8, temperature=2.0, seed=seed)
        return model.see([IMAGE], "w4", sampling).token_ids

    assert warm(1) == warm(1)
    assert len({warm(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "0 images"),
        ([np.zeros((4, 4), np.uint8)], "need"),
        ([np.zeros((4, 4, 3), np.float32)], "float32"),
        ([np.zeros((0, 4, 3), np.uint8)], "no pixels"),
        ([np.zeros((8001, 8000, 3), np.uint8)], "pixels; at most"),
    ],
)
def test_images_that_are_none_are_refused(model, images, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.see(images, "w1", SHORT)


def test_stop_strings_are_refused(model) -> None:
    with pytest.raises(InputError, match="stop"):
        model.see([IMAGE], "w1", SamplingParams(stop=("w2",)))


def test_models_without_eyes_are_refused() -> None:
    from tests.vision.tiny_vlms import llama

    with pytest.raises(CapabilityError, match="none"):
        SightModel(llama(), lambda i, q: {}, str, "llama")


def test_a_folder_without_a_processor_is_refused(tmp_path) -> None:
    llava().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="processor"):
        models.load(str(tmp_path))


# Through `ask`.


def test_ask_takes_images(folder, tmp_path) -> None:
    from PIL import Image

    from outlay import api
    from outlay.models.images import read_image

    Image.fromarray(IMAGE).save(tmp_path / "seen.png")
    image = read_image(tmp_path / "seen.png")
    assert np.array_equal(image, IMAGE)
    answer = api.ask(
        "w1 w2", images=[image], model=str(folder), stack="random-visual", vision_budget=5
    )
    assert answer.ledger.totals(stage="vision").prompt_new == 5


def test_ask_refuses_what_does_not_fit(folder) -> None:
    from outlay import api

    with pytest.raises(InputError, match="there is no image"):
        api.ask("w1", model=str(folder), stack="fastv")
    with pytest.raises(CapabilityError, match="give some"):
        api.ask("w1", model=str(folder))
    with pytest.raises(CapabilityError, match="cannot be combined"):
        api.ask("w1", images=[IMAGE], model=str(folder), stack="fastv+lacache")
    with pytest.raises(OutlayError, match="no vision method"):
        api.ask("w1", images=[IMAGE], model=str(folder), vision_budget=4)


def test_files_that_are_no_images_are_refused(tmp_path) -> None:
    from outlay.models.images import read_image

    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(InputError, match="no image"):
        read_image(tmp_path / "text.png")
    with pytest.raises(InputError, match="is no file"):
        read_image(tmp_path / "missing.png")


def test_budgets_limit_answers_and_not_pictures(model) -> None:
    budget = Budget(tokens=2)
    account = Account.open(budget)
    found = model.see([IMAGE], "w1 w2", SamplingParams(max_tokens=8, min_tokens=2), account=account)
    assert len(found.token_ids) == 2
    assert found.finish_reason == "budget"
    with pytest.raises(BudgetError):
        model.see([IMAGE], "w1 w2", SHORT, account=account)


def test_a_budget_of_all_tokens_counts_the_prompt_before_it_is_read(model) -> None:
    with pytest.raises(BudgetError):
        model.see([IMAGE], "w1 w2", SHORT, account=Account.open(Budget(tokens=18, counts="all")))
    account = Account.open(Budget(tokens=20, counts="all"))
    assert len(model.see([IMAGE], "w1 w2", SHORT, account=account).token_ids) <= 2


def test_time_ends_an_answer(model) -> None:
    account = Account.open(Budget(seconds=0.4))
    sampling = SamplingParams(max_tokens=1900, min_tokens=1900)
    found = model.see([IMAGE], "w1", sampling, account=account)
    assert len(found.token_ids) < 1900
    assert found.finish_reason == "budget"


def test_no_token_is_no_answer(model) -> None:
    with pytest.raises(InputError, match="max_tokens=0"):
        model.see([IMAGE], "w1", SamplingParams(max_tokens=0))
