"""The seer's inputs are what transformers expects, and its packed training is its prompts."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from tests.fashion import needs_fashion

from outlay.errors import InputError
from outlay.testbeds.seer.check import kept_inputs, saliency
from outlay.testbeds.seer.clips import clips, draw_of_clips
from outlay.testbeds.seer.evaluate import Examples, answered, examples, held_out, right
from outlay.testbeds.seer.grids import grid_of, random_grids, uniform_inputs, weights
from outlay.testbeds.seer.model import (
    SIZES,
    Seer,
    Size,
    build,
    look,
    normalised,
    size_of,
    tiled_tokens,
    tiles,
)
from outlay.testbeds.seer.questions import (
    BOS,
    FRAME,
    IMG,
    SCENE_KINDS,
    VOCABULARY,
    Question,
    draw,
    encode,
    pack,
)
from outlay.testbeds.seer.scenes import scenes
from outlay.testbeds.seer.tower import views
from outlay.testbeds.seer.train import (
    FEATURE,
    Prefix,
    TrainConfig,
    answer_loss,
    block_mask,
    kept,
    laid_out,
)
from outlay.testbeds.seer.train_clips import clip_prefix

torch.set_num_threads(1)
CANVASES = [(96, 96), (48, 96), (96, 48), (64, 96), (96, 80), (56, 72)]


@pytest.fixture(scope="module")
def seers() -> dict[str, Seer]:
    """Untrained seers of every size."""
    return {name: Seer(size, build(size, seed=3)) for name, size in SIZES.items()}


@needs_fashion
@pytest.mark.parametrize("name", ["S", "M", "HR", "V"])
def test_every_size_takes_its_inputs_and_generates_words(seers: dict[str, Seer], name: str) -> None:
    seer = seers[name]
    (asked,) = held_out(name, 2, ["count"], **({"length": 3} if name == "V" else {})).values()
    inputs = seer.inputs(asked.seen, asked.questions)
    written = seer.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    answers = seer.answers(written, inputs["input_ids"].shape[1])
    assert len(answers) == 2
    assert {word for answer in answers for word in answer} <= set(VOCABULARY)


@needs_fashion
@pytest.mark.parametrize("canvas", CANVASES)
def test_tiled_inputs_hold_as_many_placeholders_as_there_are_features(
    seers: dict[str, Seer], canvas: tuple[int, int]
) -> None:
    seer = seers["HR"]
    shown = scenes(2, side=canvas, max_objects=2, seed=1)
    (asked,) = examples(shown, ["count"]).values()
    inputs = seer.inputs(asked.seen, asked.questions)
    features = seer.model.get_image_features(
        inputs["pixel_values"], inputs["image_sizes"]
    ).pooler_output
    count = tiled_tokens(*canvas, seer.size)
    assert [len(f) for f in features] == [count, count]
    assert (inputs["input_ids"] == IMG).sum(1).tolist() == [count, count]
    if canvas == (96, 96):
        assert count == 36 + 144 + 12


@needs_fashion
def test_tiles_of_a_full_canvas_are_its_quarters_and_the_thumbnail_its_average() -> None:
    pixels = normalised(scenes(2, side=96, seed=1).images)
    parts = tiles(pixels, SIZES["HR"])
    assert torch.equal(parts[:, 1], pixels[..., :48, :48])
    assert torch.equal(parts[:, 2], pixels[..., :48, 48:])
    assert torch.equal(parts[:, 3], pixels[..., 48:, :48])
    assert torch.allclose(parts[:, 0].mean((2, 3)), pixels.mean((2, 3)), atol=5e-3)
    narrow = tiles(pixels[..., :64, :], SIZES["HR"])
    assert torch.equal(narrow[:, 1, :, 16:, :], pixels[..., :32, :48])
    assert (narrow[:, 1, :, :16] == -1).all()


@needs_fashion
@pytest.mark.parametrize("name", ["S", "HR"])
def test_training_lays_features_out_as_the_model_does(seers: dict[str, Seer], name: str) -> None:
    seer = seers[name]
    shown = scenes(2, side=(64, 96) if name == "HR" else 64, max_objects=2, seed=1)
    inner = seer.model.model
    hidden, salience, kinds = laid_out(inner, shown, seer.size)
    ours = inner.multi_modal_projector(hidden)
    if name == "HR":
        ours = torch.where((kinds == FEATURE)[:, None], ours, inner.image_newline)
    (asked,) = examples(shown, ["count"]).values()
    inputs = seer.inputs(asked.seen, asked.questions)
    extra = {k: v for k, v in inputs.items() if k in ("pixel_values", "image_sizes")}
    theirs = torch.stack(list(seer.model.get_image_features(**extra).pooler_output))
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert salience.shape == hidden.shape[:2]


@needs_fashion
def test_saliency_is_the_eager_attention_of_the_cls_token(seers: dict[str, Seer]) -> None:
    tower = seers["S"].model.model.vision_tower
    pixels = normalised(scenes(2, seed=1).images)
    hidden, found = look(tower, pixels)
    tower.set_attn_implementation("eager")
    output = tower(pixels, output_attentions=True)
    tower.set_attn_implementation("sdpa")
    expected = output.attentions[-1][:, :, 0, 1:].mean(1)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(hidden, output.last_hidden_state[:, 1:], atol=1e-5)
    shown = scenes(2, seed=1)
    assert torch.equal(saliency(seers["S"], shown), found)


@needs_fashion
def test_a_left_padded_batch_answers_as_single_prompts_do(seers: dict[str, Seer]) -> None:
    seer = seers["S"]
    shown = scenes(3, seed=5)
    questions = [
        Question("exist", ("is", "there", "red"), ("yes",)),
        Question("kind", ("what", "kind", "is", "red"), ("digit",)),
        Question("count", ("how", "many", "things"), ("one",)),
    ]
    inputs = seer.inputs(shown, questions)
    assert inputs["attention_mask"].sum(1).tolist() == [68, 69, 68]
    assert inputs["input_ids"][:, -1].tolist() == [VOCABULARY[q.words[-1]] for q in questions]
    together = seer.model(**inputs, logits_to_keep=1).logits[:, 0]
    for i in range(3):
        alone = seer.model(**seer.inputs(shown[i : i + 1], questions[i : i + 1])).logits[0, -1]
        assert torch.allclose(together[i], alone, atol=1e-4)


@needs_fashion
def test_packed_questions_cost_what_their_own_prompts_cost(seers: dict[str, Seer]) -> None:
    seer = seers["S"]
    shown = scenes(3, seed=6)
    rows = draw(shown, np.random.default_rng(0), limit=4)
    hidden, _, ids = laid_out(seer.model.model, shown, seer.size)
    visual = seer.model.model.multi_modal_projector(hidden)
    ones = torch.ones(3, 1, dtype=torch.long)
    prefix = Prefix(
        visual=torch.cat([visual[:, :1], visual], 1),
        ids=torch.cat([BOS * ones, ids.expand(3, -1)], 1),
        positions=torch.arange(65).expand(3, -1),
        after=torch.full((3,), 65),
    )
    found = answer_loss(seer.model, prefix, pack(rows))
    losses = []
    for i, questions in enumerate(rows):
        for question in questions:
            answer = [*encode(question.answer), VOCABULARY["<eos>"]]
            inputs = seer.inputs(shown[i : i + 1], [question])
            tail = torch.tensor([answer])
            full = torch.cat([inputs["input_ids"], tail], 1)
            logits = seer.model(input_ids=full, pixel_values=inputs["pixel_values"]).logits
            logs = logits[0, -len(answer) - 1 : -1].log_softmax(-1)
            losses += (-logs[torch.arange(len(answer)), tail[0]]).tolist()
    assert found.item() == pytest.approx(np.mean(losses), abs=1e-5)


def test_a_question_sees_the_image_and_itself_alone() -> None:
    group = torch.tensor([[0, 0, 1, 1, 2, -1]])
    seen = block_mask(group)[0, 0] == 0
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert seen.int().tolist() == expected


def test_dropping_keeps_the_salient_tokens_in_order_and_a_third_of_batches_whole() -> None:
    config = TrainConfig()
    scores = torch.linspace(0, 1, 64).expand(8, -1)
    rng = np.random.default_rng(0)
    found = [kept(scores, rng, config) for _ in range(300)]
    assert 0.25 < np.mean([index is None for index in found]) < 0.42
    parts = [index for index in found if index is not None]
    assert all((index.diff(dim=1) > 0).all() for index in parts)
    assert {index.shape[1] for index in parts} <= set(range(6, 65))
    assert np.mean([float(index.float().mean()) for index in parts]) > 36, "prefers high scores"
    assert kept(scores, rng, TrainConfig(token_drop=False)) is None


@needs_fashion
@pytest.mark.parametrize("name", ["S", "HR"])
def test_the_towers_targets_are_the_labels_of_patches(name: str) -> None:
    size = SIZES[name]
    shown = scenes(4, side=96 if name == "HR" else 64, seed=3)
    seen = views(shown, size)
    labels = torch.from_numpy(shown.patch_labels())
    if name == "HR":  # the four tiles, put together again, are the whole picture
        per = seen.colours.view(4, 5, 6, 6)[:, 1:].view(4, 2, 2, 6, 6)
        found = per.permute(0, 1, 3, 2, 4).reshape(4, 12, 12)
    else:
        found = seen.colours.view(4, 8, 8)
    for i in range(4):
        for k in range(shown.counts[i]):
            assert torch.equal(found[i] == shown.colours[i, k] + 1, labels[i] == k + 1)
    assert torch.equal(found == 0, labels == 0)
    assert torch.equal(seen.names == 0, seen.colours == 0)
    for row, colours, names in zip(seen.present, seen.colours, seen.names, strict=True):
        assert set((row[21:].nonzero()[:, 0] + 1).tolist()) == set(colours.tolist()) - {0}
        assert set((row[:21].nonzero()[:, 0] + 1).tolist()) == set(names.tolist()) - {0}


@needs_fashion
def test_features_of_ones_own_give_the_plain_models_logits(seers: dict[str, Seer]) -> None:
    shown = scenes(2, seed=7)
    (asked,) = examples(shown, ["kind"]).values()
    seer = seers["S"]
    plain = seer.model(**seer.inputs(asked.seen, asked.questions)).logits[:, -1]
    own = seer.inputs_of_features(list(seer.features(shown)), asked.questions)
    assert torch.allclose(seer.model(**own).logits[:, -1], plain, atol=1e-5)
    scores = torch.rand(2, 64)
    every = kept_inputs(seer, asked, scores, 64)
    assert torch.allclose(seer.model(**every).logits[:, -1], plain, atol=1e-5)
    few = kept_inputs(seer, asked, scores, 3)
    assert (few["input_ids"] == IMG).sum(1).tolist() == [3, 3]
    assert few["position_ids"][:, -1].tolist() == [68, 68]


@needs_fashion
def test_frames_are_marked_and_empty_ones_left_out(seers: dict[str, Seer]) -> None:
    seer = seers["V"]
    seen = clips(2, length=3, seed=1)
    (asked,) = examples(seen, ["count"]).values()
    full = seer.inputs(seen, asked.questions)
    assert (full["input_ids"] == FRAME).sum(1).tolist() == [3, 3]
    plain = seer.model(**full).logits[:, -1]
    maps = seer.features(seen)
    own = seer.inputs_of_features([list(row) for row in maps], asked.questions)
    assert torch.allclose(seer.model(**own).logits[:, -1], plain, atol=1e-4)
    ragged = [[maps[0, 0], maps[0, 1][:0], maps[0, 2][:5]], [maps[1, 0][:1]]]
    inputs = seer.inputs_of_features(ragged, asked.questions)
    assert (inputs["input_ids"] == FRAME).sum(1).tolist() == [2, 1]
    assert (inputs["input_ids"] == IMG).sum(1).tolist() == [69, 1]
    together = seer.model(**inputs, logits_to_keep=1).logits[:, 0]
    alone = seer.inputs_of_features(ragged[1:], asked.questions[1:])
    assert torch.allclose(together[1], seer.model(**alone).logits[0, -1], atol=1e-4)


@needs_fashion
def test_training_on_clips_builds_the_prompts_of_resized_frames(seers: dict[str, Seer]) -> None:
    seer = seers["V"]
    seen = clips(2, length=4, seed=2)
    grids = [[(2, 2), (0, 0), (3, 2), (1, 1)], [(8, 8), (1, 1), (0, 0), (0, 0)]]
    rows = draw_of_clips(seen, np.random.default_rng(0), limit=1)
    seer.model.float()
    prefix = clip_prefix(seer.model, seen, grids, "bilinear")
    maps = seer.features(seen)
    parts = [
        [weights(8, h, w, "bilinear") @ maps[b, t] if h * w else maps[b, t][:0]]
        for b, row in enumerate(grids)
        for t, (h, w) in enumerate(row)
    ]
    own = [[part for (part,) in parts[:4]], [part for (part,) in parts[4:]]]
    inputs = seer.inputs_of_features(own, [questions[0] for questions in rows])
    assert prefix.after.tolist() == [1 + 3 + 11, 1 + 2 + 65]
    for b in range(2):
        words = len(rows[b][0].words)
        ids = inputs["input_ids"][b][inputs["attention_mask"][b] == 1][:-words]
        length = int(prefix.after[b])
        ours = prefix.ids[b, :length]
        assert torch.equal(torch.where(ours == FEATURE, IMG, ours), ids)
        features = torch.cat(own[b])
        visual = prefix.visual[b, :length][ours == FEATURE]
        # bf16 on the way: only a rough match, far closer than any other token
        assert (visual - features).abs().max() < 0.1 * features.abs().max()
    assert answer_loss(seer.model, prefix, pack(rows)).isfinite()


def test_resizing_to_the_native_grid_is_the_identity_and_to_one_token_the_mean() -> None:
    for how in ("bilinear", "average"):
        assert torch.allclose(weights(8, 8, 8, how), torch.eye(64), atol=1e-6)  # type: ignore[arg-type]
        for h, w in ((1, 1), (3, 4), (8, 5)):
            sums = weights(8, h, w, how).sum(1)  # type: ignore[arg-type]
            assert torch.allclose(sums, torch.ones(h * w), atol=1e-6)
    assert torch.allclose(weights(4, 1, 1, "average"), torch.full((1, 16), 1 / 16))
    picture = torch.rand(1, 1, 8, 8)
    expected = torch.nn.functional.interpolate(picture, (3, 5), mode="bilinear")
    found = weights(8, 3, 5, "bilinear") @ picture.flatten()
    assert torch.allclose(found, expected.flatten(), atol=1e-6)


def test_a_grid_holds_at_most_its_tokens_and_no_larger_one_fits() -> None:
    for count in range(100):
        h, w = grid_of(count)
        assert h * w <= count
        assert 0 <= h - w <= 1
        assert (h + 1) * w > count or h == w + 1
        assert (w + 1) * (w + 1) > count


@needs_fashion
def test_random_grids_stay_in_the_budget() -> None:
    seen = clips(4, length=8, seed=3)
    rng = np.random.default_rng(0)
    for _ in range(50):
        grids = random_grids(seen, rng, 8, 100)
        for row in grids:
            assert len(row) == 8
            assert 1 <= sum(h * w for h, w in row) <= 100 + 8
            assert max(max(grid) for grid in row) <= 8


@needs_fashion
def test_a_method_is_entered_around_every_batch_and_left_again(seers: dict[str, Seer]) -> None:
    seer = seers["S"]
    (asked,) = held_out("S", 5, ["count"]).values()
    log: list[str] = []

    @contextmanager
    def method(model: Any) -> Any:
        assert model is seer.model
        log.append("in")
        yield None
        log.append("out")

    found = right(seer, asked, method, batch=2)
    assert log == ["in", "out"] * 3
    assert np.array_equal(found, right(seer, asked, batch=5))
    assert set(found) <= {0, 1}


@needs_fashion
def test_one_forward_pass_decides_as_greedy_generation_does(seers: dict[str, Seer]) -> None:
    seer = seers["S"]
    shown = scenes(30, seed=8)
    for kind, asked in examples(shown, SCENE_KINDS).items():
        inputs = seer.inputs(asked.seen, asked.questions)
        tokens = 1 if kind != "where" else 2
        written = seer.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        answers = seer.answers(written, inputs["input_ids"].shape[1])
        # An untrained model is seldom right: ask for what it says, so that some answers count.
        claimed = [
            Question(kind, q.words, answers[i] if i % 2 and answers[i] else q.answer)
            for i, q in enumerate(asked.questions)
        ]
        expected = [int(a == q.answer) for a, q in zip(answers, claimed, strict=True)]
        part = Examples(kind, asked.seen, tuple(claimed))
        with torch.no_grad():
            assert answered(seer, part, inputs).tolist() == expected
        assert sum(expected) > 0


@needs_fashion
def test_wrong_pictures_and_questions_are_refused(seers: dict[str, Seer]) -> None:
    red = Question("exist", ("is", "there", "red"), ("no",))
    shown, seen = scenes(1, seed=0), clips(1, length=2, seed=0)
    cases: list[tuple[str, Any, list[Question], str]] = [
        ("S", shown, [red, red], "1 pictures and 2 questions"),
        ("S", scenes(1, side=96), [red], "pictures of 96x96 with patch 8; size S sees 64x64"),
        ("S", scenes(1, patch=16), [red], "with patch 16"),
        ("S", seen, [red], "clips need size V"),
        ("HR", scenes(1, side=128), [red], "pictures of 128x128"),
        ("HR", scenes(1, side=60, patch=4), [red], "sides that are multiples of 8, up to 96"),
        ("V", clips(1, length=2, side=48), [red], "pictures of 48x48"),
        ("S", shown, [Question("x", ("is", "purple"), ("no",))], "unknown question word 'purple'"),
    ]
    for name, what, questions, says in cases:
        with pytest.raises(InputError, match=says):
            seers[name].inputs(what, questions)
    seer = seers["S"]
    with pytest.raises(InputError, match=r"need \(n, 96\)"):
        seer.inputs_of_features([[torch.zeros(3, 5)]], [red])
    with pytest.raises(InputError, match="no features"):
        seer.inputs_of_features([[torch.zeros(0, 96)]], [red])
    with pytest.raises(InputError, match="1 rows and 2 questions"):
        seer.inputs_of_features([[torch.zeros(1, 96)]], [red, red])
    with pytest.raises(InputError, match="keep=0"):
        kept_inputs(seer, Examples("exist", shown, (red,)), torch.zeros(1, 64), 0)
    with pytest.raises(InputError, match="size='L'"):
        size_of("L")
    with pytest.raises(InputError, match="patch=8 does not divide side=60"):
        Size("X", 60)
    with pytest.raises(InputError, match="batch=0"):
        right(seer, Examples("exist", shown, (red,)), batch=0)
    with pytest.raises(InputError, match="side=9"):
        uniform_inputs(seers["V"], seen, [red], side=9)
    with pytest.raises(InputError, match="size HR has a CLS token in every tile"):
        saliency(seers["HR"], scenes(1, side=96))
