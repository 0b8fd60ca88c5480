"""Losses of given texts, batched: the work-horse of every scorer.

Texts are sorted by length and grouped so that padding wastes little; rows are right-padded, and a
causal model needs no mask for that. The vocabulary projection runs only on the positions asked for,
in slices, so that memory does not grow with the number of positions times the vocabulary.

Shapes: B rows, T time, C hidden size, N scored positions, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from outlay.errors import InputError
from outlay.models.base import Account, FloatArray, TokenLosses, elapsed, first_characters
from outlay.models.booking import book_pass, given_back

if TYPE_CHECKING:
    from outlay.models.local import LocalModel

Head = Callable[[torch.Tensor], torch.Tensor]


def batches(lengths: Sequence[int], *, max_tokens: int, waste: float = 0.1) -> Iterator[list[int]]:
    """Group indices of texts into batches of at most `max_tokens` padded tokens.

    Within a batch, padding is at most the share `waste` of its tokens; a single text may exceed
    `max_tokens` on its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    start = 0
    while start < len(order):
        widest = lengths[order[start]]
        real = widest
        end = start + 1
        while end < len(order):
            grown = real + lengths[order[end]]
            padded = widest * (end + 1 - start)
            if padded > max_tokens or grown < (1 - waste) * padded:
                break
            real = grown
            end += 1
        yield order[start:end]
        start = end


def padding_waste(lengths: Sequence[int], groups: Sequence[Sequence[int]]) -> float:
    """Share of padded positions over all groups."""
    padded = sum(max(lengths[i] for i in group) * len(group) for group in groups)
    return 1 - sum(lengths) / padded if padded else 0.0


def position_losses(
    hidden_NC: torch.Tensor, targets_N: torch.Tensor, head: Head, *, slice_size: int = 128
) -> torch.Tensor:
    """Cross-entropy in nats of each target under the head's distribution, (N,) float32."""
    losses = [
        F.cross_entropy(head(h).float(), t, reduction="none")
        for h, t in zip(hidden_NC.split(slice_size), targets_N.split(slice_size), strict=True)
    ]
    return torch.cat(losses) if losses else hidden_NC.new_zeros(0, dtype=torch.float32)


def batch_losses(
    body: Callable[[torch.Tensor], torch.Tensor],
    head: Head,
    rows: Sequence[Sequence[int]],
    firsts: Sequence[int],
    *,
    pad: int,
    device: torch.device,
) -> list[FloatArray]:
    """Losses of one batch; `firsts[i]` is the first token of row i to score.

    Args:
        body: maps ids_BT to hidden_BTC.
        head: maps hidden_NC to logits_NV.

    Returns:
        Per row, (T,) float64 with NaN where not scored; token 0 has no context and is never scored.
    """
    width = max(len(row) for row in rows)
    ids_BT = torch.full((len(rows), width), pad, dtype=torch.long)
    for i, row in enumerate(rows):
        ids_BT[i, : len(row)] = torch.as_tensor(row)
    hidden_BTC = body(ids_BT.to(device))
    where = [(i, t) for i, row in enumerate(rows) for t in range(max(1, firsts[i]), len(row))]
    results = [np.full(len(row), np.nan) for row in rows]
    if where:
        row_N = torch.tensor([i for i, _ in where])
        time_N = torch.tensor([t for _, t in where])
        targets_N = ids_BT[row_N, time_N].to(device)
        hidden_NC = hidden_BTC[row_N.to(device), time_N.to(device) - 1]
        values_N = position_losses(hidden_NC, targets_N, head).double().cpu().numpy()
        for (i, t), value in zip(where, values_N, strict=True):
            results[i][t] = value
    return results


@torch.inference_mode()
def losses(
    model: LocalModel, texts: Sequence[str], keep_from: Sequence[int] | None, account: Account
) -> list[TokenLosses]:
    """Per-token losses of every text under a local model, batched by length; see `Scorer.losses`.

    Raises:
        InputError: if a text is longer than the model's window, or `keep_from` has not one entry a
            text.
    """
    start = time.perf_counter()
    starts = first_characters(texts, keep_from)
    if not texts:
        return []
    encoded = model.tokenizer(
        list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    rows: list[list[int]] = encoded["input_ids"]
    offsets = [np.asarray(o, dtype=np.int64).reshape(-1, 2) for o in encoded["offset_mapping"]]
    for index, row in enumerate(rows):
        if len(row) > model.context_length:
            raise InputError(
                f"text {index} has {len(row)} tokens, the window of {model.name} is "
                f"{model.context_length}; split it or cut its left"
            )
    firsts = [
        int(np.searchsorted(offset[:, 1], first, side="right"))
        for offset, first in zip(offsets, starts, strict=True)
    ]
    lengths = [len(row) for row in rows]
    total = sum(lengths)
    flops = sum(
        model.flops(t, logits_rows=max(0, t - max(1, f)))
        for t, f in zip(lengths, firsts, strict=True)
        if t
    )
    hold = account.hold([], prompt=total, flops_fixed=flops)
    nll: list[Any] = [np.empty(0)] * len(rows)
    filled = [i for i, t in enumerate(lengths) if t]
    with given_back(account, hold):
        for group in batches([lengths[i] for i in filled], max_tokens=model.max_score_tokens):
            chosen = [filled[g] for g in group]
            scored = batch_losses(
                model.network.body,
                model.network.head,
                [rows[i] for i in chosen],
                [firsts[i] for i in chosen],
                pad=0,
                device=model.device,
            )
            for i, values in zip(chosen, scored, strict=True):
                nll[i] = values
            model.computed_tokens += sum(lengths[i] for i in chosen)
    book_pass(account, hold, seconds=elapsed(start), flops=flops, prompt=total)
    return [
        TokenLosses(np.asarray(row, dtype=np.int64), offset[:, 0], offset[:, 1], values)
        for row, offset, values in zip(rows, offsets, nll, strict=True)
    ]
