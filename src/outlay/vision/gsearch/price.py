"""What keep rates cost: the room's ledger, with the ranking that they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outlay.vision.costs import Cost, prefill
from outlay.vision.counts import counts_of
from outlay.vision.gsearch.calibration import Batch
from outlay.vision.gsearch.schedule import Rates
from outlay.vision.parts import Parts


def cost_of(rates: Rates, config: Any, text: int, visual: int, asking: int) -> Cost:
    """A prefill under keep rates.

    Args:
        rates: of every layer.
        config: of the model or its decoder.
        text: tokens that are not visual.
        visual: tokens that are.
        asking: query rows of a ranking; 0 for all tokens of the layer.
    """
    counts = counts_of(rates, visual)
    ranked: list[int] = []
    for before, after in zip([visual, *counts], counts, strict=False):
        if after < before:
            ranked += [text + before] * (asking or text + before)
    return prefill(config, text, counts, ranked=ranked)


def lengths(batches: Sequence[Batch], model: Parts) -> tuple[int, int]:
    """Mean text and visual tokens of a row, rounded.

    Args:
        batches: of samples.
        model: its parts; says which tokens are visual.
    """
    import torch

    images = torch.tensor(model.image_ids)
    visual = text = rows = 0
    for batch in batches:
        ids_BT = batch.inputs["input_ids"].cpu()
        mask = batch.inputs.get("attention_mask")
        seen = int(torch.isin(ids_BT, images).sum())
        visual += seen
        text += (ids_BT.numel() if mask is None else int(mask.sum())) - seen
        rows += len(batch)
    return max(1, round(text / rows)), round(visual / rows)
