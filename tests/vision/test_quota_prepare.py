"""QuoTA on models of transformers: inputs with quotas, and the room's context manager."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import tiny_vlms
import torch

from outlay.errors import BudgetError, CapabilityError, InputError
from outlay.vision.base import Pruner
from outlay.vision.quota import QuoTA
from outlay.vision.quota.features import frame_maps
from outlay.vision.quota.qwen import Patches, slice_scores

MARK, VIDEO = 9, 4
EVEN, UNEVEN = [0.5] * 3, [0.9, 0.02, 0.3]


@pytest.fixture(scope="module")
def llava() -> Any:
    return tiny_vlms.llava()


@pytest.fixture(scope="module")
def onevision() -> Any:
    return tiny_vlms.onevision()


@pytest.fixture(scope="module")
def qwen() -> Any:
    return tiny_vlms.qwen()


def frames_inputs(frames: int = 3, rows: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    """<bos> (<mark> 16 placeholders)* question, one image a frame."""
    words = torch.tensor([[10 + seed, 11 + row, 12] for row in range(rows)])
    frame = torch.tensor([MARK] + [tiny_vlms.IMAGE] * 16)
    ids = torch.cat(
        [torch.ones(rows, 1, dtype=torch.long), frame.repeat(rows, frames), words], dim=1
    )
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": tiny_vlms.pixels(rows * frames, seed=seed),
    }


def changed(**other: Any) -> dict[str, Any]:
    return {
        name: value for name, value in {**frames_inputs(), **other}.items() if value is not None
    }


IDS = frames_inputs()["input_ids"]


def video_inputs(frames: int = 3, rows: int = 1) -> dict[str, torch.Tensor]:
    """<bos> placeholders question, as LLaVA-OneVision pools them: 2 x 2 a frame, one newline."""
    words = torch.tensor([[10, 11 + row, 12] for row in range(rows)])
    places = torch.full((rows, 4 * frames + 1), VIDEO)
    ids = torch.cat([torch.ones(rows, 1, dtype=torch.long), places, words], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": tiny_vlms.pixels(rows * frames).unflatten(0, (rows, frames)),
    }


def patch_inputs(model: Any, slices: int = 3) -> dict[str, torch.Tensor]:
    """<bos> <start> placeholders <end> question; slices of two frames of 64 x 64."""
    clip = torch.randn(slices, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    flat = torch.cat([Patches.of(model).flat(part) for part in clip])
    ids = torch.tensor([[1, 5, *[VIDEO] * (16 * slices), 6, 10, 11]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": flat,
        "video_grid_thw": torch.tensor([[slices, 8, 8]]),
        "mm_token_type_ids": 2 * (ids == VIDEO).int(),
    }


@torch.no_grad()
def last(model: Any, inputs: Any) -> torch.Tensor:
    return model(**inputs).logits[:, -1]


# -- one image a frame ----------------------------------------------------------------------------


def test_maps_are_what_the_model_makes_of_frames(llava: Any) -> None:
    pixels = tiny_vlms.pixels(5)
    maps = frame_maps(llava, pixels, batch=2)
    assert maps.shape == (5, 4, 4, 32)
    with torch.no_grad():
        wanted = torch.stack(list(llava.get_image_features(pixels).pooler_output))
    torch.testing.assert_close(maps.flatten(1, 2), wanted, atol=1e-5, rtol=1e-5)


def test_an_even_split_of_the_whole_budget_is_the_model_itself(llava: Any) -> None:
    inputs = frames_inputs()
    made = QuoTA(n_t=48).prepare(llava, inputs, scores=EVEN)
    assert torch.equal(made.inputs["input_ids"], inputs["input_ids"])
    torch.testing.assert_close(last(llava, made.inputs), last(llava, inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("assigner", ["bilinear", "avgpool", "linspace", "merge", "lines"])
def test_every_frame_has_as_many_placeholders_as_features(llava: Any, assigner: Any) -> None:
    made = QuoTA(n_t=20, assigner=assigner).prepare(llava, frames_inputs(), scores=UNEVEN, marks=1)
    plan = made.allocations[0]
    assert sum(plan.counts) <= 20
    ids = made.inputs["input_ids"][0].tolist()
    runs = [part.count(tiny_vlms.IMAGE) for part in split(ids, MARK)[1:]]
    features = made.inputs["mm_encoder_outputs"]["image"].pooler_output
    assert runs == [plan.counts[at] for at in plan.kept] == [len(one) for one in features]
    assert last(llava, made.inputs).isfinite().all()


def split(ids: Sequence[int], mark: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for token in ids:
        if token == mark:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def test_frames_without_tokens_go_with_their_marks_and_the_others_keep_their_order(
    llava: Any,
) -> None:
    made = QuoTA(n_t=8).prepare(llava, frames_inputs(), scores=[0.9, 0.0, 0.9], marks=1)
    ids = made.inputs["input_ids"][0].tolist()
    frame = [MARK] + [tiny_vlms.IMAGE] * 4
    assert ids == [1, *frame, *frame, 10, 11, 12]
    assert made.allocations[0].kept == (0, 2)
    maps = frame_maps(llava, frames_inputs()["pixel_values"])
    wanted = torch.nn.functional.interpolate(
        maps[2].permute(2, 0, 1)[None], (2, 2), mode="bilinear"
    )
    found = made.inputs["mm_encoder_outputs"]["image"].pooler_output[1]
    torch.testing.assert_close(found, wanted[0].flatten(1).T)
    without = QuoTA(n_t=8).prepare(llava, frames_inputs(), scores=[0.9, 0.0, 0.9])
    assert without.inputs["input_ids"][0].tolist().count(MARK) == 3


def test_a_batch_of_videos_equals_each_alone(llava: Any) -> None:
    inputs = frames_inputs(rows=2)
    scores = [UNEVEN, [0.4, 0.9, 0.4]]
    quota = QuoTA(n_t=17, assigner="linspace")
    both = quota.prepare(llava, inputs, scores=scores, marks=1)
    assert both.inputs["attention_mask"].sum(1).unique().numel() == 2  # of other lengths
    together = last(llava, both.inputs)
    for row in range(2):
        alone = {
            "input_ids": inputs["input_ids"][row : row + 1],
            "pixel_values": inputs["pixel_values"][3 * row : 3 * row + 3],
        }
        one = quota.prepare(llava, alone, scores=scores[row], marks=1)
        torch.testing.assert_close(
            together[row : row + 1], last(llava, one.inputs), atol=1e-4, rtol=1e-4
        )


def test_videos_of_different_lengths_go_in_one_batch(llava: Any) -> None:
    long, short = frames_inputs(3), frames_inputs(2, seed=1)
    pad = torch.zeros(1, 17, dtype=torch.long)
    ids = torch.cat([long["input_ids"], torch.cat([pad, short["input_ids"]], dim=1)])
    both = {
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "pixel_values": torch.cat([long["pixel_values"], short["pixel_values"]]),
    }
    quota = QuoTA(n_t=14, cap_upsample=True)
    made = quota.prepare(llava, both, scores=[UNEVEN, [0.2, 0.9]])
    together = last(llava, made.inputs)
    for row, (inputs, scores) in enumerate([(long, UNEVEN), (short, [0.2, 0.9])]):
        one = quota.prepare(llava, inputs, scores=scores)
        assert one.allocations[0] == made.allocations[row]
        torch.testing.assert_close(
            together[row : row + 1], last(llava, one.inputs), atol=1e-4, rtol=1e-4
        )
    with quota.given([UNEVEN, [0.2, 0.9]])(llava):
        torch.testing.assert_close(last(llava, both), together, atol=1e-4, rtol=1e-4)


def test_a_tower_that_gives_no_map_is_refused() -> None:
    whole = tiny_vlms.llava()
    whole.config.vision_feature_select_strategy = "full"
    with pytest.raises(CapabilityError, match="17 tokens for 4 x 4 patches"):
        frame_maps(whole, tiny_vlms.pixels(1))


@pytest.mark.parametrize("assigner", ["bilinear", "merge"])
def test_the_context_manager_gives_the_same_answers(llava: Any, assigner: Any) -> None:
    inputs = frames_inputs(rows=2)
    scores = [UNEVEN, [0.1, 0.9, 0.5]]
    quota = QuoTA(n_t=20, assigner=assigner, cap_upsample=True)
    made = quota.prepare(llava, inputs, scores=scores)
    pruner = quota.given(scores)
    assert isinstance(pruner, Pruner)
    with pruner(llava) as kept:
        inside = last(llava, inputs)
        written = llava.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
    torch.testing.assert_close(inside, last(llava, made.inputs), atol=1e-4, rtol=1e-4)
    counts = [list(plan.counts) for plan in made.allocations]
    assert [len(one) for one in kept.entered] == counts[0] + counts[1]
    outside = llava.generate(**made.inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(written[:, -4:], outside[:, -4:])
    torch.testing.assert_close(last(llava, inputs), last(llava, frames_inputs(rows=2)))


def test_a_frame_does_not_grow_inside_the_context_manager(llava: Any) -> None:
    with QuoTA(n_t=48).given([0.9, 0.001, 0.001])(llava) as kept:
        last(llava, frames_inputs())
    assert max(len(one) for one in kept.entered) == 16


def test_generation_over_quotas_equals_generation_token_by_token(llava: Any) -> None:
    made = QuoTA(n_t=20).prepare(llava, frames_inputs(), scores=UNEVEN, marks=1)
    written = llava.generate(**made.inputs, max_new_tokens=5, do_sample=False, pad_token_id=0)
    ids = made.inputs["input_ids"]
    for _ in range(5):
        more = {**made.inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        ids = torch.cat([ids, last(llava, more).argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(written, ids)


def test_a_scorer_sees_the_pixels_or_what_it_is_given(llava: Any) -> None:
    seen: list[Any] = []

    def one(frames: Sequence[Any], asked: Any) -> list[float]:
        seen.extend(frames)
        return [0.1 * (k + 1) for k in range(len(frames))]

    inputs = frames_inputs()
    quota = QuoTA(n_t=20, frame_scorer=one)
    made = quota.prepare(llava, inputs, "where is the cup?")
    assert torch.equal(torch.stack(seen), inputs["pixel_values"])
    assert made.scores == (tuple(0.1 * (k + 1) for k in range(3)),)
    seen.clear()
    again = quota.prepare(llava, inputs, "where is the cup?", frames=["a", "b", "c"])
    assert seen == ["a", "b", "c"]
    assert torch.equal(again.inputs["input_ids"], made.inputs["input_ids"])
    seen.clear()
    as_rows = quota.prepare(llava, inputs, ["where is the cup?"], frames=[["a", "b", "c"]])
    assert as_rows.scores == made.scores
    seen.clear()
    alone = quota.prepare(llava, frames_inputs(1), "where is the cup?", frames=["a"])
    assert (alone.scores, seen) == (((0.1,),), ["a"])
    seen.clear()
    both = quota.prepare(llava, frames_inputs(rows=2), ["where?", "what is the cup?"])
    assert len(seen) == 6
    assert both.allocations[0] == both.allocations[1] == made.allocations[0]
    with quota.about(["a", "b", "c"], "where is the cup?")(llava) as kept:
        last(llava, inputs)
    assert [len(one) for one in kept.entered] == list(made.allocations[0].counts)
    assert quota.about([["a"], ["b"]], ["where?", "what?"]).scores == ((0.1,), (0.1,))


def test_the_budget_must_fit_the_context(llava: Any) -> None:
    limit = llava.config.text_config.max_position_embeddings
    with pytest.raises(BudgetError, match=f"n_t={limit + 1} .* context of {limit} tokens"):
        QuoTA(n_t=limit + 1).prepare(llava, frames_inputs(), scores=EVEN)
    long = torch.cat([IDS, torch.full((1, 60), 12)], dim=1)
    with pytest.raises(BudgetError, match=f"more than the model's context of {limit}"):
        QuoTA(n_t=limit).prepare(
            llava, changed(input_ids=long, attention_mask=None), scores=[0.9, 0.0, 0.0]
        )


@pytest.mark.parametrize(
    ("inputs", "knobs", "said"),
    [
        (changed(pixel_values=None), {}, "no frames"),
        (changed(pixel_values=torch.zeros(0, 3, 32, 32)), {}, "no frames"),
        (changed(pixel_values=torch.zeros(3, 32, 32)), {}, "frames of shape"),
        (changed(pixel_values=torch.zeros(3, 3, 4, 4)), {}, "frames of 4 x 4 pixels"),
        (changed(pixel_values=tiny_vlms.pixels(2)), {}, "2 frames and placeholders for 3"),
        (changed(input_ids=None), {}, "no input_ids"),
        (changed(input_ids=IDS[:, 3:]), {"attention_mask": None}, "15 placeholders in a run"),
        (changed(input_ids=torch.tensor([[1, 10]])), {}, "attention_mask has shape"),
        (changed(labels=IDS), {}, "labels"),
        (changed(position_ids=IDS), {}, "position_ids"),
        (changed(pixel_values_videos=torch.zeros(1, 3, 3, 32, 32)), {}, "images and videos"),
        (changed(), {"scores": [0.1, 0.2]}, "row 0 has 2 scores for 3 frames"),
        (changed(), {"scores": [EVEN, EVEN]}, "scores of 2 videos for 1 rows"),
        (changed(), {"scores": []}, "no scores"),
        (changed(), {"scores": [0.1, -1.0, 0.2]}, "frame 1"),
        (changed(), {"scores": None}, "give the question, or scores"),
        (changed(), {"scores": None, "question": ["a cup?", "b cup?"]}, "2 questions"),
        (changed(), {"marks": 2, "scores": [0.9, 0.0, 0.9]}, "marks=2"),
        (changed(), {"marks": -1}, "marks=-1"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    llava: Any, inputs: dict[str, Any], knobs: dict[str, Any], said: str
) -> None:
    if "attention_mask" in knobs:
        inputs = {k: v for k, v in inputs.items() if k != "attention_mask"}
    rest = {"scores": EVEN, **{k: v for k, v in knobs.items() if k != "attention_mask"}}
    with pytest.raises(InputError, match=said):
        QuoTA(n_t=12).prepare(llava, inputs, **rest)


def test_ready_features_and_a_prompt_without_frames_are_refused(llava: Any) -> None:
    with pytest.raises(InputError, match="ready features"):
        QuoTA(n_t=12).prepare(llava, changed(mm_encoder_outputs={}), scores=EVEN)
    ids = torch.tensor([[1, 10, 11]])
    bare = changed(input_ids=ids, attention_mask=torch.ones_like(ids))
    with pytest.raises(InputError, match="row 0 of the prompt has no frames"):
        QuoTA(n_t=12).prepare(llava, bare, scores=EVEN)


def test_a_budget_that_leaves_no_frame_a_token_is_refused(llava: Any) -> None:
    with pytest.raises(InputError, match="leaves no frame of 3 a token"):
        QuoTA(n_t=2, rounding="floor").prepare(llava, frames_inputs(), scores=EVEN)


def test_models_that_have_not_what_is_needed_say_so(llava: Any, qwen: Any) -> None:
    with pytest.raises(CapabilityError, match="newline='grid'"):
        QuoTA(n_t=12, newline="grid").prepare(llava, frames_inputs(), scores=EVEN)
    with pytest.raises(CapabilityError, match="newline='one_token'"):
        QuoTA(n_t=12, newline="one_token").given(EVEN)(llava)
    with pytest.raises(CapabilityError, match="vision tower"):
        QuoTA(n_t=12).prepare(tiny_vlms.llama(), frames_inputs(), scores=EVEN)
    with pytest.raises(CapabilityError, match="no projector"):
        QuoTA(n_t=12).prepare(qwen, frames_inputs(), scores=EVEN)
    with (
        pytest.raises(InputError, match=r"rows of \[3\] frames, and scores for \[2\]"),
        QuoTA(n_t=12).given([0.1, 0.2])(llava),
    ):
        last(llava, frames_inputs())
    with pytest.raises(InputError, match="2 videos and 1 questions"):
        QuoTA(frame_scorer=lambda f, a: [0.5]).about([["a"], ["b"]], ["where?"])


# -- LLaVA-OneVision ------------------------------------------------------------------------------


def test_an_even_split_of_the_pooled_size_is_the_models_own_pooling(onevision: Any) -> None:
    inputs = video_inputs()
    made = QuoTA(n_t=12).prepare(onevision, inputs, scores=EVEN)
    plan = made.allocations[0]
    assert (plan.tokens, plan.newlines, plan.total) == (12, 1, 13)
    assert torch.equal(made.inputs["input_ids"], inputs["input_ids"])
    with torch.no_grad():
        own = onevision.get_video_features(inputs["pixel_values_videos"]).pooler_output
    found = made.inputs["mm_encoder_outputs"]["video"].pooler_output
    torch.testing.assert_close(found, own, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        last(onevision, made.inputs), last(onevision, inputs), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("assigner", "newline"),
    [
        ("bilinear", "grid"),
        ("bilinear", "one_token"),
        ("bilinear", "none"),
        ("avgpool", "grid"),
        ("lines", "grid"),
        ("linspace", "one_token"),
        ("merge", "auto"),
    ],
)
def test_newlines_have_placeholders_of_their_own(
    onevision: Any, assigner: Any, newline: Any
) -> None:
    quota = QuoTA(n_t=24, assigner=assigner, newline=newline)
    made = quota.prepare(onevision, video_inputs(), scores=UNEVEN)
    plan = made.allocations[0]
    features = made.inputs["mm_encoder_outputs"]["video"].pooler_output
    places = int((made.inputs["input_ids"] == VIDEO).sum())
    assert places == plan.total == features.shape[1]
    rows = {"grid": sum(h for h, _ in plan.grids), "none": 0}.get(newline, 1)
    assert plan.newlines == rows
    ends = (features[0] == onevision.model.image_newline).all(-1)
    assert int(ends.sum()) == rows
    assert last(onevision, made.inputs).isfinite().all()


def test_a_batch_of_pooled_videos_equals_each_alone(onevision: Any) -> None:
    inputs, scores = video_inputs(rows=2), [UNEVEN, [0.2, 0.2, 0.9]]
    quota = QuoTA(n_t=17, newline="grid")
    together = last(onevision, quota.prepare(onevision, inputs, scores=scores).inputs)
    for row in range(2):
        alone = {name: inputs[name][row : row + 1] for name in ("input_ids", "pixel_values_videos")}
        one = quota.prepare(onevision, alone, scores=scores[row])
        torch.testing.assert_close(
            together[row : row + 1], last(onevision, one.inputs), atol=1e-4, rtol=1e-4
        )


def test_pooled_videos_can_be_generated_from(onevision: Any) -> None:
    made = QuoTA(n_t=30).prepare(onevision, video_inputs(), scores=UNEVEN)
    assert max(made.allocations[0].counts) > 16  # a frame grew beyond its map
    written = onevision.generate(**made.inputs, max_new_tokens=3, do_sample=False)
    assert written.shape[1] == made.inputs["input_ids"].shape[1] + 3


def test_videos_that_do_not_fit_are_refused(onevision: Any) -> None:
    inputs = video_inputs()
    flat = {**inputs, "pixel_values_videos": inputs["pixel_values_videos"][0]}
    with pytest.raises(InputError, match="one video a row"):
        QuoTA(n_t=12).prepare(onevision, flat, scores=EVEN)
    ids = inputs["input_ids"].clone()
    ids[0, 5] = 10
    with pytest.raises(InputError, match="row 0 has 2 videos"):
        QuoTA(n_t=12).prepare(onevision, {**inputs, "input_ids": ids}, scores=EVEN)


# -- Qwen2.5-VL -----------------------------------------------------------------------------------


def test_patches_are_laid_out_as_the_models_own_processor_does(qwen: Any) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    frame = torch.randn(3, 48, 64, generator=torch.Generator().manual_seed(1))
    patches = Patches.of(qwen)
    wanted, gh, gw = Qwen2VLImageProcessorPil().patchify(frame.numpy(), 8, 2, 2)
    found = patches.flat(frame.expand(2, -1, -1, -1))
    torch.testing.assert_close(found, torch.tensor(wanted))
    back = patches.pixels(found, (1, gh, gw))
    torch.testing.assert_close(back[0], frame.expand(2, -1, -1, -1))


def test_an_even_split_of_the_whole_budget_gives_the_same_features(qwen: Any) -> None:
    inputs = patch_inputs(qwen)
    made = QuoTA(n_t=48).prepare(qwen, inputs, scores=EVEN)
    assert made.inputs["video_grid_thw"].tolist() == [[1, 8, 8]] * 3
    torch.testing.assert_close(made.inputs["pixel_values_videos"], inputs["pixel_values_videos"])
    with torch.no_grad():
        own = qwen.get_video_features(
            inputs["pixel_values_videos"], inputs["video_grid_thw"]
        ).pooler_output
        found = qwen.get_video_features(
            made.inputs["pixel_values_videos"], made.inputs["video_grid_thw"]
        ).pooler_output
    torch.testing.assert_close(torch.cat(found), torch.cat(own), atol=1e-5, rtol=1e-5)


def test_quotas_become_resolutions_with_as_many_placeholders(qwen: Any) -> None:
    made = QuoTA(n_t=20).prepare(qwen, patch_inputs(qwen), scores=[0.9, 0.001, 0.5])
    plan = made.allocations[0]
    assert plan.kept == (0, 2)
    grids = made.inputs["video_grid_thw"].tolist()
    assert grids == [[1, 2 * h, 2 * w] for h, w in plan.grids if h]
    ids = made.inputs["input_ids"][0].tolist()
    video = [[5, *[VIDEO] * plan.counts[at], 6] for at in plan.kept]
    assert ids == [1, *video[0], *video[1], 10, 11]
    assert made.inputs["mm_token_type_ids"].tolist() == [[2 * (t == VIDEO) for t in ids]]
    assert last(qwen, made.inputs).isfinite().all()
    written = qwen.generate(**made.inputs, max_new_tokens=3, do_sample=False)
    assert written.shape[1] == len(ids) + 3


def test_a_smaller_frame_is_the_larger_one_resized(qwen: Any) -> None:
    made = QuoTA(n_t=4).prepare(qwen, patch_inputs(qwen), scores=[0.9, 0.0, 0.0])
    patches, inputs = Patches.of(qwen), patch_inputs(qwen)
    clip = patches.pixels(inputs["pixel_values_videos"], (3, 8, 8))
    small = patches.pixels(made.inputs["pixel_values_videos"], made.inputs["video_grid_thw"][0])
    assert small.shape == (1, 2, 3, 32, 32)
    # Resizing keeps the mean up to the border that bicubic weights.
    torch.testing.assert_close(small.mean(), clip[0].mean(), atol=5e-3, rtol=0)


def test_frames_that_are_taken_together_share_the_best_score() -> None:
    assert slice_scores([0.1, 0.2, 0.3], 3, 2) == [0.1, 0.2, 0.3]
    assert slice_scores([0.1, 0.9, 0.3, 0.2], 2, 2) == [0.9, 0.3]
    with pytest.raises(InputError, match="5 scores for 3 slices of 2 frames"):
        slice_scores([0.1] * 5, 3, 2)


def test_a_scorer_sees_a_frame_of_every_slice(qwen: Any) -> None:
    seen: list[Any] = []
    quota = QuoTA(n_t=20, frame_scorer=lambda f, a: [seen.append(x) or 0.5 for x in f])
    quota.prepare(qwen, patch_inputs(qwen), "where is the cup?")
    assert [tuple(frame.shape) for frame in seen] == [(3, 64, 64)] * 3


def test_patches_that_do_not_fit_are_refused(qwen: Any, llava: Any) -> None:
    inputs = patch_inputs(qwen)

    def refused(said: str, error: type[Exception] = InputError, **other: Any) -> None:
        knobs = {k: other.pop(k) for k in ("assigner", "newline") if k in other}
        model = other.pop("model", qwen)
        with pytest.raises(error, match=said):
            QuoTA(n_t=12, **knobs).prepare(model, {**inputs, **other}, scores=EVEN)

    refused("patches for grids of", video_grid_thw=torch.tensor([[2, 8, 8]]))
    refused("2 videos for 1 rows", video_grid_thw=torch.tensor([[3, 8, 8]] * 2))
    refused("for a grid of", video_grid_thw=torch.tensor([[64, 3, 1]]))
    ids = torch.tensor([[1, 5, *[VIDEO] * 47, 6, 10, 11, 12]])
    refused("one video has 48 tokens", input_ids=ids)
    refused("change their resolution", CapabilityError, assigner="merge")
    refused("have no newlines", CapabilityError, newline="grid")
    refused("does not merge patches", CapabilityError, model=llava)
