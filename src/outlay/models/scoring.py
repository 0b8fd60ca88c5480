"""Losses of given texts, batched: the work-horse of every scorer.

Texts are sorted by length and grouped so that padding wastes little; rows are right-padded, and a
causal model needs no mask for that. The vocabulary projection runs only on the positions asked for,
in slices, so that memory does not grow with the number of positions times the vocabulary.

Shapes: B rows, T time, C hidden size, N scored positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from outlay.models.base import FloatArray

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
