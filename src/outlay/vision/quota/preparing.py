"""Inputs for a model from its processor's: scored, allocated, resized, packed, with as many
placeholders as features.

Shapes: B rows, F frames of a row, H x W map of a frame, D width, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from outlay.errors import CapabilityError, InputError
from outlay.vision.quota import qwen
from outlay.vision.quota.allocation import Allocation, Newline
from outlay.vision.quota.assigners import assign, with_newlines
from outlay.vision.quota.checks import whole
from outlay.vision.quota.features import frame_maps, newline_of
from outlay.vision.quota.prompts import (
    MAX_MARKS,
    Prepared,
    check_budget,
    check_length,
    frames_of,
    ids_of,
    pad_token,
    padded,
    placeholder,
    rewritten,
    runs_of,
)

if TYPE_CHECKING:
    from outlay.vision.quota.method import QuoTA

Scores = Sequence[float] | Sequence[Sequence[float]] | None
_KNOWN = ("input_ids", "attention_mask")


def prepare(
    method: QuoTA,
    model: Any,
    inputs: Mapping[str, Any],
    question: str | Sequence[str] | None,
    *,
    scores: Scores,
    frames: Any,
    marks: int,
) -> Prepared:
    """See `QuoTA.prepare`."""
    whole("marks", marks, 0, MAX_MARKS)
    check_budget(model, method.n_t)
    images, videos = inputs.get("pixel_values"), inputs.get("pixel_values_videos")
    if images is not None and videos is not None:
        raise InputError("images and videos in one prompt; give the video alone")
    if inputs.get("mm_encoder_outputs") is not None:
        raise InputError(
            "the inputs have ready features; give pixels, which are scored and resized"
        )
    if videos is not None and "video_grid_thw" in inputs:
        return _patches(method, model, inputs, question, scores, frames)
    if videos is not None:
        return _video(method, model, inputs, question, scores, frames)
    if images is None:
        raise InputError("the inputs have no frames; give pixel_values or pixel_values_videos")
    return _images(method, model, inputs, question, scores, frames, marks)


def _images(
    method: QuoTA,
    model: Any,
    inputs: Mapping[str, Any],
    question: str | Sequence[str] | None,
    scores: Scores,
    frames: Any,
    marks: int,
) -> Prepared:
    """One image a frame: LLaVA."""
    if method.newline in ("grid", "one_token"):
        raise CapabilityError(
            f"newline={method.newline!r} belongs to a video; with one image a frame use 'none' or "
            "'auto'"
        )
    rows = ids_of(inputs, (*_KNOWN, "pixel_values"))
    pixels = inputs["pixel_values"]
    maps_NHWD = frame_maps(model, pixels, batch=method.score_batch)
    H, W = maps_NHWD.shape[1:3]
    token = placeholder(model, "image_token_id", "image_token_index")
    places = [frames_of(ids_T, token, H * W, row) for row, ids_T in enumerate(rows)]
    counts = [len(row) for row in places]
    if sum(counts) != len(pixels):
        raise InputError(
            f"{len(pixels)} frames and placeholders for {sum(counts)}; every frame needs its own"
        )
    found = _scored(method, question, scores, frames, list(pixels.split(counts)))
    plans = [_planned(method, model, row, (H, W), "none") for row in found]
    new, features = [], []
    for ids_T, where, plan, maps_FHWD in zip(
        rows, places, plans, maps_NHWD.split(counts), strict=True
    ):
        new.append(rewritten(ids_T, where, plan.counts, marks))
        features += [grid.flatten(0, 1) for grid in _grids(method, maps_FHWD, plan)]
    check_length(model, new)
    made = {**padded(new, pad_token(model)), "mm_encoder_outputs": {"image": _pooled(features)}}
    return Prepared(made, tuple(plans), tuple(map(tuple, found)))


def _video(
    method: QuoTA,
    model: Any,
    inputs: Mapping[str, Any],
    question: str | Sequence[str] | None,
    scores: Scores,
    frames: Any,
) -> Prepared:
    """A video whose maps the model would pool: LLaVA-OneVision."""
    rows = ids_of(inputs, (*_KNOWN, "pixel_values_videos", "image_sizes_videos"))
    pixels_BF3XY = inputs["pixel_values_videos"]
    if pixels_BF3XY.ndim != 5 or len(pixels_BF3XY) != len(rows):
        raise InputError(
            f"pixel_values_videos of shape {tuple(pixels_BF3XY.shape)} for {len(rows)} rows; need "
            "(rows, frames, 3, H, W), one video a row"
        )
    newline_D = newline_of(model)
    kind: Newline = "one_token" if newline_D is not None else "none"
    if method.newline != "auto":
        kind = method.newline
    if kind != "none" and newline_D is None:
        raise CapabilityError(
            f"newline={kind!r}, and {type(model).__name__} has no newline token; use 'none'"
        )
    F = pixels_BF3XY.shape[1]
    maps_NHWD = frame_maps(model, pixels_BF3XY.flatten(0, 1), batch=method.score_batch)
    native = (int(maps_NHWD.shape[1]), int(maps_NHWD.shape[2]))
    found = _scored(method, question, scores, frames, list(pixels_BF3XY))
    plans = [_planned(method, model, row, native, kind) for row in found]
    token = placeholder(model, "video_token_id", "video_token_index")
    new, features = [], []
    for row, (ids_T, plan) in enumerate(zip(rows, plans, strict=True)):
        runs = runs_of(ids_T, token)
        if len(runs) != 1:
            raise InputError(f"row {row} has {len(runs)} videos in its prompt; need exactly one")
        new.append(rewritten(ids_T, runs, [plan.total], 0))
        grids = _grids(method, maps_NHWD[row * F : (row + 1) * F], plan)
        features += [
            with_newlines(grid, newline_D)
            if kind == "grid" and newline_D is not None
            else grid.flatten(0, 1)
            for grid in grids
        ]
        if kind == "one_token" and newline_D is not None:
            features.append(newline_D[None].to(features[-1]))
    check_length(model, new)
    video = _pooled(torch.cat(features)[None])
    made = {**padded(new, pad_token(model)), "mm_encoder_outputs": {"video": video}}
    return Prepared(made, tuple(plans), tuple(map(tuple, found)))


def _patches(
    method: QuoTA,
    model: Any,
    inputs: Mapping[str, Any],
    question: str | Sequence[str] | None,
    scores: Scores,
    frames: Any,
) -> Prepared:
    """A video whose frames change their resolution: Qwen2.5-VL."""
    if method.assigner != "bilinear" or method.newline in ("grid", "one_token"):
        raise CapabilityError(
            f"assigner={method.assigner!r}, newline={method.newline!r}: this model's frames change "
            "their resolution, and have no newlines; use 'bilinear' and 'auto'"
        )
    known = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids")
    rows = ids_of(inputs, (*_KNOWN, *known))
    grids_B3, patches = inputs["video_grid_thw"], qwen.Patches.of(model)
    if len(grids_B3) != len(rows):
        raise InputError(f"{len(grids_B3)} videos for {len(rows)} rows; give one a row")
    flat_NP = inputs["pixel_values_videos"]
    sizes = grids_B3.prod(-1).tolist()
    if sum(sizes) != len(flat_NP):
        raise InputError(f"{len(flat_NP)} patches for grids of {sum(sizes)}; give both as made")
    clips = [
        patches.pixels(part, grid)
        for part, grid in zip(flat_NP.split(sizes), grids_B3.tolist(), strict=True)
    ]
    seen = [list(clip[:, 0]) for clip in clips]
    slices = [len(clip) for clip in clips]
    found = [
        qwen.slice_scores(row, count, patches.temporal)
        for row, count in zip(
            _scored(method, question, scores, frames, seen, exact=False), slices, strict=True
        )
    ]
    new, plans, flat, sides = [], [], [], []
    for ids_T, row_scores, clip, grid in zip(rows, found, clips, grids_B3.tolist(), strict=True):
        native = (grid[1] // patches.merge, grid[2] // patches.merge)
        plan = _planned(method, model, row_scores, native, "none")
        plans.append(plan)
        size = len(clip) * native[0] * native[1]
        new.append(qwen.split_videos(ids_T, model, plan.counts, size))
        for at in plan.kept:
            h, w = plan.grids[at]
            flat.append(patches.flat(patches.resized(clip[at], (h, w))))
            sides.append([1, h * patches.merge, w * patches.merge])
    check_length(model, new)
    made = padded(new, pad_token(model))
    token = placeholder(model, "video_token_id", "video_token_index")
    kinds = {
        "pixel_values_videos": torch.cat(flat),
        "video_grid_thw": grids_B3.new_tensor(sides),
        "mm_token_type_ids": 2 * (made["input_ids"] == token).int(),
    }
    return Prepared({**made, **kinds}, tuple(plans), tuple(map(tuple, found)))


def _scored(
    method: QuoTA,
    question: str | Sequence[str] | None,
    scores: Scores,
    frames: Any,
    pixels: Sequence[Any],
    *,
    exact: bool = True,
) -> list[list[float]]:
    """Scores of every row's frames, given or found."""
    from outlay.vision.quota.method import rows_of

    rows = len(pixels)
    if scores is not None:
        found = [list(row) for row in rows_of(scores)]
    else:
        if question is None:
            raise InputError("nothing says what matters; give the question, or scores")
        asked = [question] * rows if isinstance(question, str) else list(question)
        shown = pixels if frames is None else frames
        if frames is not None and rows == 1 and isinstance(question, str):
            shown = [frames]
        if len(asked) != rows or len(shown) != rows:
            raise InputError(
                f"{rows} rows, {len(asked)} questions and frames of {len(shown)} videos; need as "
                "many of each"
            )
        found = [method.score(list(v), text) for v, text in zip(shown, asked, strict=True)]
    if len(found) != rows:
        raise InputError(f"scores of {len(found)} videos for {rows} rows; give one list a row")
    for row, (values, seen) in enumerate(zip(found, pixels, strict=True)):
        if exact and len(values) != len(seen):
            raise InputError(f"row {row} has {len(values)} scores for {len(seen)} frames")
    return found


def _planned(
    method: QuoTA, model: Any, scores: Sequence[float], native: tuple[int, int], newline: Newline
) -> Allocation:
    plan = method.allocate(scores, native=native)
    if not plan.kept:
        raise InputError(
            f"n_t={method.n_t} leaves no frame of {len(scores)} a token; raise n_t, or use "
            "rounding='largest'"
        )
    return replace(plan, newline=newline)


def _grids(method: QuoTA, maps_FHWD: Tensor, plan: Allocation) -> list[Tensor]:
    return [assign(maps_FHWD[at], plan.grids[at], method.assigner) for at in plan.kept]


def _pooled(features: Any) -> Any:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    return BaseModelOutputWithPooling(pooler_output=features)
