"""0/1 knapsack over blocks: the most valuable set whose tokens fit a capacity.

Exact dynamic programming in numpy up to 2000 items and 32k tokens (the LongCodeZip package stops at
100 blocks and 2000 tokens), greedy by value per token beyond.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from outlay.errors import InputError

MAX_ITEMS = 2000
MAX_CAPACITY = 32768


def knapsack(weights: Sequence[int], values: Sequence[float], capacity: int) -> list[int]:
    """Indices, ascending, of a set with the largest total value and total weight <= capacity.

    Items of value <= 0 are never taken. Among sets of equal value the choice is deterministic.

    Args:
        weights: tokens of each item, >= 0.
        values: worth of each item; finite.
        capacity: tokens that may be used; <= 0 leaves only items of weight 0.

    Raises:
        InputError: for lengths that differ, negative weights, or values that are not finite.
    """
    if len(weights) != len(values):
        raise InputError(f"{len(weights)} weights for {len(values)} values; give one of each")
    if any(w < 0 for w in weights) or not np.isfinite(np.asarray(values, float)).all():
        raise InputError("weights must be >= 0 and values finite")
    capacity = max(0, capacity)
    useful = [i for i, v in enumerate(values) if v > 0 and weights[i] <= capacity]
    if sum(weights[i] for i in useful) <= capacity:
        return useful
    if len(useful) > MAX_ITEMS or capacity > MAX_CAPACITY:
        return greedy(weights, values, capacity)
    best_C = np.zeros(capacity + 1)
    took_NC = np.zeros((len(useful), capacity + 1), dtype=bool)
    for row, i in enumerate(useful):
        w = weights[i]
        with_C = best_C[: capacity + 1 - w] + values[i]
        took_NC[row, w:] = with_C > best_C[w:]
        best_C[w:] = np.maximum(best_C[w:], with_C)
    chosen, room = [], capacity
    for row in range(len(useful) - 1, -1, -1):
        if took_NC[row, room]:
            chosen.append(useful[row])
            room -= weights[useful[row]]
    return chosen[::-1]


def greedy(weights: Sequence[int], values: Sequence[float], capacity: int) -> list[int]:
    """As `knapsack`, by falling value per token; at least half as good if the best item counts."""
    order = sorted(
        (i for i, v in enumerate(values) if v > 0),
        key=lambda i: (-values[i] / max(weights[i], 1e-9), i),
    )
    chosen: list[int] = []
    room = max(0, capacity)
    for i in order:
        if weights[i] <= room:
            chosen.append(i)
            room -= weights[i]
    return sorted(chosen)
