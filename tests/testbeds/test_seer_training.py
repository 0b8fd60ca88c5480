"""Seers are trained deterministically, and the shipped ones are what their cards say."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.fashion import needs_fashion

from outlay.errors import InputError, ModelError
from outlay.testbeds.seer import checkpoint_path, load
from outlay.testbeds.seer.card import card, save
from outlay.testbeds.seer.check import TARGETS, blind_right, check, holds, precision, with_kept
from outlay.testbeds.seer.check_clips import is_needle, uniform_right
from outlay.testbeds.seer.clips import clips
from outlay.testbeds.seer.evaluate import examples, held_out, mean, right, score
from outlay.testbeds.seer.model import SIZES, Seer, build
from outlay.testbeds.seer.recipe import DEFAULTS, TrainConfig, drawing
from outlay.testbeds.seer.scenes import Scenes
from outlay.testbeds.seer.store import record
from outlay.testbeds.seer.train import adopt, train

torch.set_num_threads(1)
TINY = TrainConfig(tower_steps=3, llm_steps=3, batch=4, warmup=1)


def state(seer: Seer) -> dict[str, torch.Tensor]:
    return dict(seer.model.state_dict())


@pytest.fixture(scope="module")
def shipped() -> Seer:
    return load("S")


@needs_fashion
@pytest.mark.parametrize("size", ["S", "HR", "V"])
def test_the_same_seed_gives_the_same_weights_whatever_the_global_generator_holds(
    size: str,
) -> None:
    config = replace(TINY, size=size, tower_steps=0 if size == "V" else 3)
    made = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        np.random.seed(noise)
        made.append(state(train(config)[0]))
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    other = state(train(replace(config, seed=1))[0])
    assert not all(torch.equal(made[0][name], other[name]) for name in other)


@needs_fashion
def test_the_tower_is_frozen_while_the_language_model_learns() -> None:
    first = state(train(replace(TINY, llm_steps=0))[0])
    both = state(train(TINY)[0])
    fresh = state(Seer(SIZES["S"], build(SIZES["S"], 0)))
    for name in first:
        learnt = "vision_tower" in name and "post_layernorm" not in name
        assert torch.equal(first[name], both[name]) == ("vision_tower" in name), name
        assert torch.equal(first[name], fresh[name]) != learnt, name


@needs_fashion
def test_training_lowers_the_loss() -> None:
    losses: dict[str, list[float]] = {"tower": [], "llm": []}
    config = TrainConfig(tower_steps=20, llm_steps=20, batch=8, warmup=5)
    train(config, report=lambda stage, step, loss: losses[stage].append(loss))
    for found in losses.values():
        assert len(found) == 20
        assert np.mean(found[-5:]) < 0.8 * np.mean(found[:3])


def test_a_larger_size_starts_as_the_seer_that_it_adopts() -> None:
    small = Seer(SIZES["S"], build(SIZES["S"], 1))
    large = Seer(SIZES["M"], build(SIZES["M"], 2))
    adopt(large.model, small)
    ids = torch.tensor([[1, 8, 15, 30]])
    assert torch.allclose(small.model(ids).logits, large.model(ids).logits, atol=1e-5)
    table = large.model.model.vision_tower.embeddings.position_embedding.weight
    source = small.model.model.vision_tower.embeddings.position_embedding.weight
    assert table.shape == (145, 96)
    assert torch.equal(table[0], source[0])
    assert torch.allclose(table[1:].mean(0), source[1:].mean(0), atol=0.01)
    with pytest.raises(InputError, match="start has 6 layers"):
        adopt(small.model, large)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"size": "L"}, "size='L'"),
        ({"tower_steps": -1}, "tower_steps=-1"),
        ({"batch": 0}, "batch=0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"compact": 2.0}, "compact=2.0"),
        ({"question_mix": {}}, "question_mix"),
    ],
)
def test_bad_trainings_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        TrainConfig(**wrong)


@needs_fashion
def test_a_loss_that_is_not_finite_stops_training() -> None:
    with pytest.raises(InputError, match="choose a smaller learning rate"):
        train(replace(TINY, tower_steps=0, llm_steps=30, lr=1e6, clip=1e9))


def test_tiled_training_sees_canvases_of_every_shape_and_both_layouts() -> None:
    config = DEFAULTS["HR"]
    drawn = [drawing(config, step) for step in range(12)]
    assert {d["side"] for d in drawn} == {(96, 96), (48, 96), (96, 48), (96, 64)}
    assert {d["layout"] for d in drawn} == {"clustered", "spread"}


@pytest.mark.parametrize("size", list(SIZES))
def test_the_shipped_weights_are_those_of_the_card(size: str) -> None:
    folder = checkpoint_path(size)
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert record(folder)["sha256"] == found
    text = (folder / "README.md").read_text()
    assert re.findall(r"\b[0-9a-f]{64}\b", text) == [found]
    assert text == card(load(size), record(folder))


@pytest.mark.parametrize("size", list(SIZES))
def test_the_shipped_recipe_is_the_default_one(size: str) -> None:
    written = record(checkpoint_path(size))["config"]
    assert TrainConfig(**written) == DEFAULTS[size]


def test_all_shipped_seers_together_are_small() -> None:
    files = [p for size in SIZES for p in checkpoint_path(size).iterdir()]
    assert sum(p.stat().st_size for p in files) < 12 * 2**20


@needs_fashion
def test_the_shipped_seer_reads_held_out_scenes_and_needs_its_eyes(shipped: Seer) -> None:
    asked = held_out("S", 256, seed=77)
    found = score(shipped, asked)
    assert mean(found) >= TARGETS["all"]
    blind = mean({kind: blind_right(shipped, part) for kind, part in asked.items()})
    assert blind <= TARGETS["blind"]
    written = {row["kind"]: row["accuracy"] for row in record(checkpoint_path("S"))["rows"]}
    for kind, part in found.items():
        assert part.mean() == pytest.approx(written[kind], abs=0.12), kind


@needs_fashion
def test_its_cls_token_looks_at_objects_and_beats_chance_with_an_eighth_of_the_tokens(
    shipped: Seer,
) -> None:
    asked = held_out("S", 256, ["digit", "count", "kind"], seed=78)
    seen = asked["count"].seen
    assert isinstance(seen, Scenes)
    found, base = precision(shipped, seen)
    assert found >= TARGETS["precision"]
    assert base < 0.25
    ranks = {
        rank: mean({k: with_kept(shipped, part, rank, 8) for k, part in asked.items()})
        for rank in ("cls", "random", "oracle")
    }
    assert ranks["cls"] > ranks["random"] + 0.03
    assert ranks["oracle"] > ranks["random"] + 0.03


def test_the_measured_check_is_judged_by_the_targets_alone() -> None:
    good = {"all": 0.75, "blind": 0.45, "precision": 0.55, "cls": 0.6, "random": 0.5}
    assert all(holds(good).values())
    assert not holds({**good, "blind": 0.46})["blind"]
    assert not holds({**good, "random": 0.6})["cls above random"]


@needs_fashion
def test_the_check_itself_runs_on_an_untrained_seer_and_fails_it() -> None:
    figures = check(Seer(SIZES["S"], build(SIZES["S"], 5)), n=12)
    assert set(figures) >= {"all", "blind", "precision", "base", "cls", "random", "oracle"}
    assert not holds(figures)["all"]


@needs_fashion
def test_the_seer_of_clips_finds_needles_and_scores_single_frames() -> None:
    seer = load("V")
    seen = clips(48, seed=5)
    asked = examples(seen, ["digit", "garment"], seed=1)
    full = np.concatenate([uniform_right(seer, part) for part in asked.values()])
    blind = np.concatenate([blind_right(seer, part) for part in asked.values()])
    assert full.mean() > blind.mean() + 0.2
    assert any(is_needle(part).any() for part in asked.values())
    single = clips(100, length=2, seed=6).each_frame()
    (frames,) = examples(single, ["exist"]).values()
    assert right(seer, frames).mean() > 0.85


@needs_fashion
@pytest.mark.parametrize("size", ["M", "HR"])
def test_the_larger_seers_read_their_own_scenes(size: str) -> None:
    asked = held_out(size, 48, seed=9)
    seer = load(size)
    found = mean(score(seer, asked))
    blind = mean({kind: blind_right(seer, part) for kind, part in asked.items()})
    assert found > blind + 0.2


@needs_fashion
def test_saving_and_loading_keeps_every_weight_in_half_precision(tmp_path: Path) -> None:
    seer, training = train(replace(TINY, tower_steps=1, llm_steps=1))
    save(tmp_path, seer, TINY, training)
    again = load("S", tmp_path)
    for name, value in state(seer).items():
        assert torch.equal(value.half().float(), state(again)[name])
    with pytest.raises(ModelError, match="holds a seer of size S, not M"):
        load("M", tmp_path)


def test_missing_and_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no model"):
        load("S", tmp_path)
    with pytest.raises(InputError, match="size='XL'"):
        load("XL")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="cannot be read"):
        load("S", tmp_path)
