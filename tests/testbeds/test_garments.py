"""Garments on canvases: scenes depend on nothing but their number; the ViT knows unseen ones."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.fashion import needs_fashion

from outlay.errors import InputError, ModelError
from outlay.testbeds import fashion, garments
from outlay.testbeds.garments.card import save
from outlay.testbeds.garments.evaluate import SEED, WORLDS, table
from outlay.testbeds.garments.scenes import World, scenes
from outlay.testbeds.garments.train import Progress, TrainConfig, train

pytestmark = needs_fashion

SMALL = TrainConfig(
    steps=3, hidden=32, layers=2, heads=2, batch=8, warmup=1, world=World(side=32, split="train")
)


# -- scenes ---------------------------------------------------------------------------------------


def test_a_scene_is_the_same_alone_in_a_batch_and_whatever_the_global_state() -> None:
    world = World(sizes=(28, 56), digits=0.3)
    np.random.seed(1)
    torch.manual_seed(1)
    many = scenes(world, 12)
    torch.manual_seed(2)
    for index in (0, 5, 11):
        one = scenes(world, 1, start=index)
        assert torch.equal(one.pixels_BCHW[0], many.pixels_BCHW[index])
        assert torch.equal(one.object_BHW[0], many.object_BHW[index])
        assert one.labels_B[0] == many.labels_B[index]


def test_another_seed_or_split_shows_other_scenes() -> None:
    base = scenes(World(), 4)
    for other in (World(seed=1), World(split="train")):
        assert not torch.equal(scenes(other, 4).pixels_BCHW, base.pixels_BCHW)


def test_the_object_covers_what_its_map_says() -> None:
    """Outside the map the canvas is dark; inside, every pixel is blended with a bright colour."""
    shown = scenes(World(sizes=(28,)), 20)
    brightest_BHW = shown.pixels_BCHW.amax(1)
    assert int(brightest_BHW[~shown.object_BHW].max()) <= 70 + 13 + 25
    share = shown.object_BHW.float().mean((1, 2))
    assert bool((share > 0.01).all())
    assert bool((share <= 28**2 / 64**2).all())
    torch.testing.assert_close(shown.covered(8).mean(1), share)


def test_enlarged_objects_cover_about_four_times_as_much() -> None:
    small, large = (scenes(World(sizes=(size,)), 60).object_BHW.float().mean() for size in (28, 56))
    assert 3.5 < float(large / small) < 4.6


def test_every_picture_is_shown_once_before_any_is_shown_again() -> None:
    """Among the 450 digits of the test split; two turns show everything twice."""
    world = World(side=32, sizes=(28,), digits=1.0)
    first, second = (torch.bincount(scenes(world, 450, start).labels_B - 10) for start in (0, 450))
    assert torch.equal(first, second)
    assert int(first.sum()) == 450
    assert not torch.equal(scenes(world, 9).labels_B, scenes(world, 9, 450).labels_B)


def test_digits_are_another_world_with_labels_of_their_own() -> None:
    shown = scenes(World(digits=1.0), 450)
    assert int(shown.labels_B.min()) == 10
    assert int(shown.labels_B.max()) == 19
    mixed = scenes(World(digits=0.5), 400).labels_B
    assert 0.4 < float((mixed >= 10).double().mean()) < 0.6
    assert garments.CLASSES[:10] == fashion.GARMENTS
    assert len(garments.CLASSES) == 20


def test_models_read_pixels_between_minus_one_and_one() -> None:
    pixels = scenes(World(), 3).tensor()
    assert pixels.shape == (3, 3, 64, 64)
    assert float(pixels.min()) >= -1
    assert float(pixels.max()) <= 1


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"side": 60}, "multiple of 8"),
        ({"side": 8}, "16"),
        ({"side": 4096}, "512"),
        ({"sizes": ()}, "sizes"),
        ({"sizes": (65,)}, "side=64"),
        ({"sizes": (4,)}, "from 8"),
        ({"digits": 1.5}, "digits"),
        ({"split": "dev"}, "split"),
        ({"seed": -1}, "seed"),
    ],
    ids=str,
)
def test_bad_worlds_are_refused(knobs, words) -> None:
    with pytest.raises(InputError, match=words):
        World(**knobs)


def test_bad_counts_are_refused() -> None:
    for count, start in ((0, 0), (10**6, 0), (1, -1)):
        with pytest.raises(InputError):
            scenes(World(), count, start)


# -- training -------------------------------------------------------------------------------------


def test_training_is_the_same_twice_and_learns() -> None:
    losses: list[float] = []
    one = train(replace(SMALL, steps=8), lambda state: losses.append(state.loss))
    other = train(replace(SMALL, steps=8))
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name
    assert losses[-1] < losses[0]
    assert not one.training


def test_a_saved_model_comes_back_with_its_card(tmp_path) -> None:
    states: list[Progress] = []
    model = train(SMALL, states.append)
    model.to(torch.float16).to(torch.float32)
    shown = scenes(World(side=32), 4)
    with torch.no_grad():
        wanted = model(pixel_values=shown.tensor()).logits
    save(tmp_path, model, SMALL, [], states[-1], "a test")
    again = garments.load(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(
            again(pixel_values=shown.tensor()).logits, wanted, rtol=1e-4, atol=1e-4
        )
    card = (tmp_path / "README.md").read_text()
    assert "3 steps of AdamW, 24 scenes" in card
    assert "Not measured" in card
    assert json.loads((tmp_path / "measured.json").read_text())["config"]["steps"] == 3


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"steps": 0}, "steps"),
        ({"heads": 5}, "multiple of heads"),
        ({"patch": 7}, "must divide"),
        ({"world": World()}, "split 'train'"),
        ({"lr": 0.0}, "lr"),
    ],
    ids=str,
)
def test_bad_trainings_are_refused(knobs, words) -> None:
    with pytest.raises(InputError, match=words):
        replace(TrainConfig(), **knobs)


# -- the shipped classifier -----------------------------------------------------------------------


def test_the_shipped_classifier_is_small_and_made_by_its_card() -> None:
    path = garments.checkpoint_path()
    assert (path / "model.safetensors").stat().st_size < 2.5e6
    measured = json.loads((path / "measured.json").read_text())
    config = measured["config"]
    assert (config["steps"], config["hidden"], config["layers"]) == (3000, 96, 6)
    card = (path / "README.md").read_text()
    for row in measured["rows"]:
        assert f"| {row['world']} | {row['accuracy']:.3f} |" in card


def test_it_names_unseen_objects_as_well_as_its_card_says() -> None:
    measured = json.loads((garments.checkpoint_path() / "measured.json").read_text())
    known = {row["world"]: row for row in measured["rows"]}
    assert set(known) == set(WORLDS)
    model = garments.load()
    for row in table(model, 150):
        n, wanted = row.n, known[row.world]["accuracy"]
        assert abs(row.accuracy - wanted) < 4 * (wanted * (1 - wanted) / n) ** 0.5 + 0.02
    assert SEED not in range(100)


def test_unknown_checkpoints_are_refused(tmp_path) -> None:
    with pytest.raises(ModelError, match="shipped are"):
        garments.checkpoint_path("huge")
    with pytest.raises(ModelError, match="no checkpoint"):
        garments.load(tmp_path)
