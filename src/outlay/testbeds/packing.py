"""Batches of tokens with their labels: rows padded on the right, packed by number of tokens.

Shapes: B examples, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch

from outlay.errors import InputError

IGNORED = -100
Batch = tuple[torch.Tensor, torch.Tensor]
"""(ids_BT, labels_BT), right-padded; labels are `IGNORED` where nothing is to be learnt."""
Pair = tuple[list[int], list[int]]
"""Token ids and labels of one example."""


def check_batch_tokens(batch_tokens: int, context: int) -> None:
    """Raise `InputError` unless a batch has room for the longest example."""
    if batch_tokens < context:
        raise InputError(f"batch_tokens={batch_tokens}; must be at least {context}")


def padded(pairs: Sequence[Pair], pad: int) -> Batch:
    """One batch, as wide as its longest example."""
    width = max(len(ids) for ids, _ in pairs)
    ids_BT = torch.full((len(pairs), width), pad)
    labels_BT = torch.full((len(pairs), width), IGNORED)
    for row, (ids, labels) in enumerate(pairs):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        labels_BT[row, : len(ids)] = torch.tensor(labels)
    return ids_BT, labels_BT


def packed(
    parts: Iterator[list[Pair]],
    *,
    pad: int,
    batch_tokens: int,
    pool: int,
    rng: random.Random,
    sort: bool = True,
) -> Iterator[Batch]:
    """Endless batches of about `batch_tokens` tokens each.

    Args:
        parts: endless examples, some at a time.
        pad: token of the padding.
        batch_tokens: tokens of a batch, padding included.
        pool: batches that are made, and ordered, together.
        rng: orders the batches of a pool.
        sort: examples of similar length share a batch; else lengths are mixed, at more padding.
    """
    while True:
        pairs: list[Pair] = []
        while sum(len(ids) for ids, _ in pairs) < pool * batch_tokens:
            pairs += next(parts)
        if sort:
            pairs.sort(key=lambda pair: len(pair[0]))
        batches: list[list[Pair]] = [[]]
        longest = 0
        for pair in pairs:
            longest = max(longest, len(pair[0]))
            if (len(batches[-1]) + 1) * longest > batch_tokens:
                batches.append([])
                longest = len(pair[0])
            batches[-1].append(pair)
        rng.shuffle(batches)
        for batch in batches:
            yield padded(batch, pad)
