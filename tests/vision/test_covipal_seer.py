"""CoViPAL on the seer: its training data, the modules that ship, and the quick proof."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests.fashion import needs_fashion

from outlay.errors import InputError
from outlay.proofs.covipal import IDENTITY, SIZES, run
from outlay.proofs.covipal_cost import CACHE
from outlay.proofs.covipal_runs import difference
from outlay.testbeds.seer import load
from outlay.testbeds.seer.model import Seer, build, size_of
from outlay.testbeds.seer.questions import ONE_TOKEN, WORDS
from outlay.vision.covipal import CoViPAL
from outlay.vision.covipal.seer_data import asked, batches, drawn
from outlay.vision.covipal.shipped import folders
from outlay.vision.covipal.store import load as load_modules

pytestmark = needs_fashion


@pytest.fixture(scope="module")
def seer() -> Seer:
    return load("S")


def test_batches_are_prompts_whose_last_word_is_the_labelled_answer(seer) -> None:
    first, second = batches(seer, 2, seed=3, rows=8)
    ids, labels = first["input_ids"], first["labels"]
    assert torch.equal(labels[:, -1], ids[:, -1])
    assert (labels[:, :-1] == -100).all()
    assert ((ids == seer.model.config.image_token_id).sum(1) == 64).all()
    assert not torch.equal(second["input_ids"], ids)
    again = batches(seer, 1, seed=3, rows=8)[0]
    assert torch.equal(again["input_ids"], ids)
    features = [batch["mm_encoder_outputs"]["image"].pooler_output for batch in (first, again)]
    assert all(torch.equal(a, b) for a, b in zip(*features, strict=True))
    assert torch.equal(features[0][0], features[0][1])  # two questions share a scene


def test_kinds_and_yes_or_no_are_equally_likely(seer) -> None:
    seen = drawn(seer, 60, seed=1)
    made = asked(seen, ("count", "exist"), 10, np.random.default_rng(0))
    share = np.mean([question.kind == "exist" for _, question in made])
    yes = np.mean([q.answer == ("yes",) for _, q in made if q.kind == "exist"])
    assert share == pytest.approx(0.5, abs=0.07)
    assert yes == pytest.approx(0.5, abs=0.1)
    assert (seen.counts == 3).all()  # dense: as many as this size knows


def test_the_seer_answers_its_training_batches(seer) -> None:
    batch = batches(seer, 1, seed=5, rows=64)[0]
    plain = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        said = seer.model(**plain).logits[:, -2].argmax(-1)
    right = (said == batch["labels"][:, -1]).float().mean()
    assert right > 0.7, [WORDS[int(i)] for i in said]


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"n": 0}, "n=0"),
        ({"n": 1, "rows": 5}, "multiple of each"),
        ({"n": 1, "kinds": ("where",)}, "no one-word answer"),
        ({"n": 1_000_000}, "at most 100000 scenes"),
    ],
)
def test_data_out_of_range_name_the_number(seer, knobs, words: str) -> None:
    with pytest.raises(InputError, match=words):
        batches(seer, **knobs)


def test_seers_of_tiles_and_clips_are_refused() -> None:
    size = size_of("HR")
    with pytest.raises(InputError, match="size HR has tiles or frames"):
        drawn(Seer(size, build(size)), 1, seed=0)


@pytest.mark.parametrize("folder", folders(), ids=lambda path: path.name)
def test_shipped_modules_are_small_and_belong_to_their_seer(folder) -> None:
    trained = load_modules(folder)
    size = trained.model_id.partition("/")[2]
    owner = load(size)
    trained.check(owner.model)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 300_000
    batch = batches(owner, 1, seed=11, rows=8, split="test")[0]
    prompt = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad(), CoViPAL(ratio=0.125)(owner.model) as kept:
        owner.model(**prompt)
    assert kept.counts()[0] == [owner.size.tokens // 8] * 8


def test_a_module_ships_for_the_default_seer(seer) -> None:
    assert CoViPAL().trained(seer.model).model_id == "seer/S"


def test_the_quick_proof_holds_and_says_what_it_measured() -> None:
    told: list[str] = []
    result = run("ci", progress=told.append)
    claims = {check.claim: check for check in result.checks}
    assert len(claims) == len(result.checks)
    assert claims[IDENTITY].holds
    assert claims[CACHE].holds
    assert claims["the shipped module is better than random tokens"].holds  # by three points
    assert result.holds
    json.dumps(result.to_dict(), allow_nan=False)
    assert told
    methods = {row["method"] for row in result.data["before_decoder"]}
    assert {"CoViPAL", "stage 1 only", "without text", "class token", "random"} <= methods
    large = sum(weight.numel() for weight in build(size_of("M")).parameters())
    assert result.data["module_weights"] < 0.05 * large  # the laptop proof's model


def test_the_laptop_proof_is_as_large_as_the_sheet_asks() -> None:
    laptop = SIZES["laptop"]
    assert laptop.scenes >= 1000
    assert len(laptop.seeds) == 3
    assert set(ONE_TOKEN) >= {"digit", "garment", "kind", "count", "exist"}


def test_a_difference_needs_the_same_questions() -> None:
    gap = difference(np.array([1.0, 1.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0, 1.0]))
    assert gap.mean == 0.25
    with pytest.raises(InputError, match="3 and 2 answers"):
        difference(np.zeros(3), np.zeros(2))
