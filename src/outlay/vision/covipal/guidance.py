"""What stage 1 learns from: how much a deeper layer of the model looks at every visual token.

A_k is the attention that visual token k gets in layer l_g of the unpruned model, summed over heads
and over the query rows after the image: question and, where it is given, answer, or the question's
last token alone. Some tokens draw attention whatever is asked ("sinks"). They can be clipped, or
the attention of the last visual token, which cannot know the question, can be taken off.

B rows, T prompt tokens, N visual tokens of a row, H heads, Q query rows.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from outlay.errors import InputError
from outlay.vision.base import Seen
from outlay.vision.counts import half_up
from outlay.vision.covipal.tokens import Watch, shown

Queries = Literal["text", "last"]
Sinks = Literal["keep", "clip", "baseline"]
CLIP = 0.99  # quantile of a row's targets
MAX_ROWS = 2**28  # numbers of attention held at once


def guidance_layer(depth: int, asked: int | None, prune: int) -> int:
    """The guidance layer: as asked for, or two thirds of the way.

    Args:
        depth: layers of the decoder.
        asked: by the user; None for two thirds.
        prune: the deepest layer before which tokens go.

    Raises:
        InputError: if it does not exist, or is not deeper than `prune`.
    """
    if prune >= depth - 1:
        raise InputError(
            f"no layer is deeper than prune_layer={prune} in a decoder with layers 0..{depth - 1}; "
            "prune earlier"
        )
    layer = min(depth - 1, max(prune + 1, half_up(2 * depth / 3))) if asked is None else asked
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < depth:
        raise InputError(f"guidance_layer={layer!r}; the decoder has layers 0..{depth - 1}")
    if layer <= prune:
        raise InputError(
            f"guidance_layer={layer} is not deeper than prune_layer={prune}; attention there does "
            f"not know the question better than the pruned layer; use {prune + 1}..{depth - 1}"
        )
    return layer


def query_rows(
    seen: Seen, which: Queries = "text", hide: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Places (B, Q) of the query rows, and which of them are real.

    Args:
        seen: the prompt.
        which: all text after a row's last visual token, answer and all; or the last token of the
            question, from which the answer is predicted.
        hide: (B, T) True at the answer; None where there is none.

    Raises:
        InputError: if a row has no text after its image, or for another word.
    """
    if which not in get_args(Queries):
        raise InputError(f"queries={which!r}; use 'text' or 'last'")
    index_T = torch.arange(seen.visual_BT.shape[1], device=seen.visual_BT.device)
    last_B = (seen.visual_BT * index_T).amax(1)
    text_BT = shown(seen.text, hide) if which == "last" else seen.text
    after_BT = text_BT & (index_T > last_B[:, None])
    if not bool(after_BT.any(1).all()):
        row = int((~after_BT.any(1)).nonzero()[0])
        raise InputError(
            f"row {row} has no text after the image, so nothing there asks for visual tokens; put "
            "the question after the image"
        )
    if which == "last":
        at_B1 = (after_BT * index_T).amax(1, keepdim=True)
        return at_B1, torch.ones_like(at_B1, dtype=torch.bool)
    most = int(after_BT.sum(1).max())
    at_BQ = (~after_BT).to(torch.int8).sort(dim=1, stable=True).indices[:, :most]
    return at_BQ, after_BT.gather(1, at_BQ)


def attention_sums(watch: Watch, layer: int, at_BQ: Tensor, real_BQ: Tensor) -> Tensor:
    """(B, T): attention that every key gets, summed over heads and real query rows.

    Every real row of every head sums to 1, so a row of this sums to heads x queries.
    """
    length = watch.seen.visual_BT.shape[1]
    heads = int(watch.parts.text_config.num_attention_heads)
    step = max(1, MAX_ROWS // max(1, len(at_BQ) * heads * length))
    total: Tensor | None = None
    for part, real in zip(at_BQ.split(step, 1), real_BQ.split(step, 1), strict=True):
        found_BT = (watch.rows(layer, part) * real[:, None, :, None]).sum((1, 2))
        total = found_BT if total is None else total + found_BT
    assert total is not None
    return total


@torch.no_grad()
def targets(
    watch: Watch, layer: int, *, queries: Queries = "text", sinks: Sinks = "keep"
) -> Tensor:
    """(B, N): guidance attention of each visual token, rows filled up with zeros.

    Args:
        watch: open on a model that has just run on a prompt, with `layer` among those looked at.
        layer: l_g.
        queries: whose attention counts.
        sinks: "keep"; "clip" at the 99th percentile of a row; "baseline" takes off what the last
            visual token looks at, as much as there are queries.

    Raises:
        InputError: for a prompt without text after its image, an unknown word, or attention that is
            no number, naming the row.
    """
    if sinks not in get_args(Sinks):
        raise InputError(f"sinks={sinks!r}; use 'keep', 'clip' or 'baseline'")
    seen = watch.seen
    at_BQ, real_BQ = query_rows(seen, queries, watch.hide)
    sums_BT = attention_sums(watch, layer, at_BQ, real_BQ)
    index_T = torch.arange(seen.visual_BT.shape[1], device=seen.visual_BT.device)
    if sinks == "baseline":
        last_B1 = (seen.visual_BT * index_T).amax(1, keepdim=True)
        blind_BT = attention_sums(watch, layer, last_B1, torch.ones_like(last_B1).bool())
        sums_BT = (sums_BT - real_BQ.sum(1, keepdim=True) * blind_BT).clamp_min(0)
    most = int(seen.visual_BT.sum(1).max())
    order = (~seen.visual_BT).to(torch.int8).sort(dim=1, stable=True).indices[:, :most]
    real_BN = seen.visual_BT.gather(1, order)
    found_BN = sums_BT.gather(1, order) * real_BN
    bad_B = ~torch.isfinite(found_BN).all(1)
    if bool(bad_B.any()):
        raise InputError(
            f"row {int(bad_B.nonzero()[0])}: attention of layer {layer} is no number; check that "
            "row's pixels and the model's dtype"
        )
    if sinks == "clip":
        found_BN = _clipped(found_BN, real_BN)
    return found_BN


def _clipped(found_BN: Tensor, real_BN: Tensor) -> Tensor:
    ceiling_B1 = found_BN.masked_fill(~real_BN, float("nan")).nanquantile(CLIP, 1, keepdim=True)
    return found_BN.minimum(ceiling_B1) * real_BN


@torch.no_grad()
def unpruned(model: Any, inputs: Any) -> Any:
    """One pass of the model over full inputs, without a cache; labels stay out."""
    kept = {name: value for name, value in inputs.items() if name != "labels"}
    return model(**kept, use_cache=False, logits_to_keep=1)
