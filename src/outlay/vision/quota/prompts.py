"""Prompts whose frames have other numbers of tokens than the processor gave them.

transformers fills placeholders in row-major order and checks only their sum, so ids must carry
exactly as many placeholders as there are features, frame by frame. Frames that got nothing go, with
the marks before them.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from outlay.errors import BudgetError, CapabilityError, InputError
from outlay.vision.quota.allocation import Allocation

MAX_MARKS = 64
"""Most tokens before a frame's placeholders that may belong to it."""


@dataclass(frozen=True)
class Prepared:
    """Inputs that hold to a budget.

    Args:
        inputs: for `model.generate(**inputs)` or `model(**inputs)`.
        allocations: of every row's frames.
        scores: of every row's frames.
    """

    inputs: Mapping[str, Any]
    allocations: tuple[Allocation, ...]
    scores: tuple[tuple[float, ...], ...] = field(repr=False)


def ids_of(inputs: Mapping[str, Any], allowed: Sequence[str]) -> list[Tensor]:
    """Token ids of every row, without padding.

    Raises:
        InputError: without ids, for a mask of another shape, or an input that would not be right
            any more.
    """
    other = [name for name in inputs if name not in allowed]
    if other:
        raise InputError(
            f"{', '.join(sorted(other))}: not known to hold after tokens have gone; leave it out "
            f"(known are {', '.join(allowed)})"
        )
    ids_BT = inputs.get("input_ids")
    if not isinstance(ids_BT, Tensor) or ids_BT.ndim != 2 or not ids_BT.numel():
        raise InputError(
            "the inputs have no input_ids (rows, tokens); give what the processor made"
        )
    mask_BT = inputs.get("attention_mask")
    if mask_BT is None:
        return list(ids_BT)
    if mask_BT.shape != ids_BT.shape:
        raise InputError(
            f"attention_mask has shape {tuple(mask_BT.shape)}, input_ids {tuple(ids_BT.shape)}"
        )
    return [ids_T[mask_T.bool()] for ids_T, mask_T in zip(ids_BT, mask_BT, strict=True)]


def runs_of(ids_T: Tensor, token: int) -> list[tuple[int, int]]:
    """Starts and ends of the runs of a token."""
    at = (ids_T == token).nonzero()[:, 0].tolist()
    runs: list[tuple[int, int]] = []
    for place in at:
        if runs and runs[-1][1] == place:
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    return runs


def frames_of(ids_T: Tensor, token: int, size: int, row: int) -> list[tuple[int, int]]:
    """Where each frame's `size` placeholders are; a run may hold several frames.

    Raises:
        InputError: for a row without frames, or a run that is no whole number of frames.
    """
    found = []
    for start, end in runs_of(ids_T, token):
        if (end - start) % size:
            raise InputError(
                f"row {row} has {end - start} placeholders in a run where a frame has {size} "
                "features; every frame needs exactly one placeholder a feature"
            )
        found += [(at, at + size) for at in range(start, end, size)]
    if not found:
        raise InputError(f"row {row} of the prompt has no frames; every row needs a video")
    return found


def rewritten(
    ids_T: Tensor, places: Sequence[tuple[int, int]], counts: Sequence[int], marks: int
) -> Tensor:
    """Ids with `counts[i]` placeholders for the frame at `places[i]`.

    Args:
        ids_T: of one row, without padding.
        places: of the frames' placeholders.
        counts: tokens that each frame gets; 0 drops it.
        marks: tokens right before a frame that go with it.

    Raises:
        InputError: if there is no room for that many marks before a frame.
    """
    parts: list[Tensor] = []
    done = 0
    for (start, end), count in zip(places, counts, strict=True):
        if start - marks < done:
            raise InputError(
                f"marks={marks}, but a frame has only {start - done} tokens before it that are no "
                "placeholders; lower marks"
            )
        parts.append(ids_T[done : start if count else start - marks])
        parts.append(ids_T[start].repeat(count))
        done = end
    return torch.cat([*parts, ids_T[done:]])


def padded(rows: Sequence[Tensor], pad: int) -> dict[str, Tensor]:
    """Rows side by side, padded on the left, with their mask."""
    width = max(len(row) for row in rows)
    ids_BT = torch.full((len(rows), width), pad, dtype=rows[0].dtype, device=rows[0].device)
    mask_BT = torch.zeros_like(ids_BT)
    for b, row in enumerate(rows):
        ids_BT[b, width - len(row) :] = row
        mask_BT[b, width - len(row) :] = 1
    return {"input_ids": ids_BT, "attention_mask": mask_BT}


def pad_token(model: Any) -> int:
    """A token to pad with; masked, so that any would do."""
    config = getattr(model.config, "text_config", model.config)
    found = getattr(config, "pad_token_id", None)
    return int(found) if isinstance(found, int) and found >= 0 else 0


def placeholder(model: Any, *names: str) -> int:
    """The token id that a model's config has under one of `names`.

    Raises:
        CapabilityError: if it has none of them.
    """
    for name in names:
        value = getattr(model.config, name, None)
        if isinstance(value, int):
            return value
    raise CapabilityError(f"{type(model).__name__} has no {names[0]} in its config")


def context_length(model: Any) -> int | None:
    """Tokens that a model's positions are made for, None where its config does not say."""
    config = getattr(model.config, "text_config", model.config)
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def check_budget(model: Any, n_t: int) -> None:
    """Refuse a budget that the model cannot hold.

    Raises:
        BudgetError: with both numbers.
    """
    limit = context_length(model)
    if limit is not None and n_t > limit:
        raise BudgetError(
            f"n_t={n_t} visual tokens do not fit the model's context of {limit} tokens; lower n_t"
        )


def check_length(model: Any, rows: Sequence[Tensor]) -> None:
    """Refuse a prompt that the model cannot hold.

    Raises:
        BudgetError: with both numbers.
    """
    limit, longest = context_length(model), max(len(row) for row in rows)
    if limit is not None and longest > limit:
        raise BudgetError(
            f"the prompt has {longest} tokens with its frames, more than the model's context of "
            f"{limit}; lower n_t or shorten the question"
        )
