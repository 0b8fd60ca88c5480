"""Phase 2: which tokens each partition keeps (HiRED, section "Token Dropping"), and which newlines
go with them.

K tokens of an image, P partitions, N patches of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from outlay.errors import InputError
from outlay.vision.hired.layout import Layout

Newline = Literal["none", "keep_nonempty", "keep_all"]
Split = Callable[[int], list[int]]
"""Quotas of the partitions, of a budget."""
Pick = Callable[[int, int], np.ndarray]
"""Tokens that a partition keeps, of its index and its quota."""


def select(
    scores_K: np.ndarray,
    layout: Layout,
    budget: int,
    split: Split,
    newline: Newline,
    *,
    exact: bool,
    pick: Pick | None = None,
) -> tuple[np.ndarray, list[int]]:
    """Kept tokens (K,) of one image and the quotas of its partitions; padding is never ranked.

    Newlines count in the budget. With `keep_nonempty`, the largest budget of patches is looked for
    that leaves room for the newlines of its rows.

    Args:
        scores_K: of tokens; larger stays.
        layout: of the image.
        budget: tokens, newlines included.
        split: quotas, of a budget for patches.
        newline: which newlines stay.
        exact: spend all of `min(budget, tokens)`, so that a token that fits nowhere else joins a
            row that has its newline.
        pick: chooses within a partition; None is `best_of(scores_K, layout)`.

    Raises:
        InputError: if the newlines alone use the budget up.
    """
    pick = pick or best_of(scores_K, layout)
    if newline == "keep_all" and layout.newlines:
        patches = budget - layout.newlines
        if patches < 1:
            raise InputError(
                f"newline='keep_all' needs {layout.newlines} tokens for newlines alone, and the "
                f"budget of this image is {budget}; raise it, or use newline='keep_nonempty'"
            )
        keep_K, quota = _taken(pick, split(patches), layout)
        return keep_K | layout.newline_K, quota
    if newline == "none" or not layout.newlines or budget == 1:  # one token is a patch, if anything
        return _taken(pick, split(budget), layout)

    def tried(patches: int) -> tuple[np.ndarray, list[int], int]:
        keep_K, quota = _taken(pick, split(patches), layout)
        keep_K = with_newlines(keep_K, layout)
        return keep_K, quota, int(keep_K.sum())

    low = max(0, budget - layout.newlines)  # holds, whatever the rows are
    high = budget
    while low < high:
        middle = (low + high + 1) // 2
        if tried(middle)[2] <= budget:
            low = middle
        else:
            high = middle - 1
    keep_K, quota, _ = tried(low)
    if exact:
        wanted = [n > 0 for n in split(budget)]
        _fill(keep_K, scores_K, layout, min(budget, layout.tokens), wanted)
        quota = count(keep_K, layout)
    return keep_K, quota


def with_newlines(keep_K: np.ndarray, layout: Layout) -> np.ndarray:
    """Kept tokens together with the newlines of the mosaic's rows that keep any."""
    lines = np.unique(layout.line_K[keep_K & ~layout.newline_K & (layout.line_K >= 0)])
    return keep_K | (layout.newline_K & np.isin(layout.line_K, lines))


def count(keep_K: np.ndarray, layout: Layout) -> list[int]:
    """Patches that each partition keeps."""
    at = layout.partition_K[keep_K & ~layout.newline_K]
    return [int(n) for n in np.bincount(at, minlength=layout.tiles + 1)]


def ranked(scores_K: np.ndarray, layout: Layout) -> list[np.ndarray]:
    """Tokens of each partition, best first; ties go to the first."""
    order = np.argsort(-scores_K, kind="stable")
    return [order[layout.partition_K[order] == p] for p in range(layout.tiles + 1)]


def best_of(scores_K: np.ndarray, layout: Layout) -> Pick:
    """The tokens with the largest scores."""
    orders = ranked(scores_K, layout)
    return lambda partition, n: orders[partition][:n]


def union_of(first_K: np.ndarray, second_K: np.ndarray, share: float, layout: Layout) -> Pick:
    """A share of every partition's tokens by another score: best of the first, then of the second
    among the rest.

    Args:
        first_K, second_K: scores of tokens.
        share: by the second, rounded down.
        layout: of the image.
    """
    pairs = list(zip(ranked(first_K, layout), ranked(second_K, layout), strict=True))

    def pick(partition: int, n: int) -> np.ndarray:
        one, two = pairs[partition]
        head = one[: n - int(share * n)]
        tail = two[~np.isin(two, head)]
        return np.concatenate([head, tail[: n - len(head)]])

    return pick


def padded_of(scores_PN: np.ndarray, layout: Layout) -> Pick:
    """The paper's choice, in which padding is ranked, too: what it wins is lost.

    Args:
        scores_PN: of patches.
        layout: of the image.

    Raises:
        InputError: for a mosaic that was shrunk, whose tokens are no patches.
    """
    if layout.shrunk:
        raise InputError(
            f"the mosaic of this image is shrunk to {layout.mosaic[0]} x {layout.mosaic[1]} "
            "tokens, so that its patches cannot be chosen one by one; use respect_unpad=True"
        )
    flat = np.full(layout.padded, -1)
    real = np.flatnonzero(layout.place_K >= 0)
    flat[layout.place_K[real]] = real
    token_PN = flat.reshape(scores_PN.shape)
    order_PN = np.argsort(-scores_PN, axis=1, kind="stable")

    def pick(partition: int, n: int) -> np.ndarray:
        found = token_PN[partition, order_PN[partition, :n]]
        return np.asarray(found[found >= 0])

    return pick


def _taken(pick: Pick, quota: list[int], layout: Layout) -> tuple[np.ndarray, list[int]]:
    keep_K = np.zeros(layout.tokens, bool)
    for partition, n in enumerate(quota):
        keep_K[pick(partition, n)] = True
    return keep_K, quota


def _fill(
    keep_K: np.ndarray,
    scores_K: np.ndarray,
    layout: Layout,
    total: int,
    wanted: Sequence[bool],
) -> None:
    """Spend what is left over of `total`, in place.

    A token in a row without newline costs two. Where one is left and only such tokens are, the
    worst token that no row depends on makes room. Partitions without a share come last.
    """
    order = np.argsort(-scores_K, kind="stable")
    order = order[~layout.newline_K[order]]
    shared = np.array(wanted)[layout.partition_K[order]]
    order = np.concatenate([order[shared], order[~shared]])
    while (left := total - int(keep_K.sum())) > 0:
        lines = set(layout.line_K[keep_K & layout.newline_K].tolist())
        free = [i for i in order.tolist() if not keep_K[i]]
        cost = {i: 1 if layout.line_K[i] in lines | {-1} else 2 for i in free}
        tiers = [[i for i in free if wanted[layout.partition_K[i]]], free]
        best = next((i for tier in tiers for i in tier if cost[i] <= left), None)
        if best is None or (not wanted[layout.partition_K[best]] and tiers[0]):
            spare = _spare(keep_K, order, layout)
            if spare is not None and tiers[0]:
                keep_K[spare] = False
                best = tiers[0][0]
        if best is None:
            return
        keep_K[best] = True
        keep_K[:] = with_newlines(keep_K, layout)


def _spare(keep_K: np.ndarray, order: np.ndarray, layout: Layout) -> int | None:
    """The worst kept token that does not hold its row's newline alone."""
    lines, many = np.unique(layout.line_K[keep_K & ~layout.newline_K], return_counts=True)
    shared = set(lines[many > 1].tolist()) | {-1}
    return next((i for i in order[::-1].tolist() if keep_K[i] and layout.line_K[i] in shared), None)
