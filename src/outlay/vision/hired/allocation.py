"""Phase 1: how many tokens each partition of an image may keep (HiRED, section "Token Budget
Distribution").

The thumbnail gets the share `alpha` of the budget; tiles share the rest by what the class token
sees of each in the thumbnail's initial layer.

P partitions, k tiles, N = g x g patches of a partition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from outlay.budget import split_weighted
from outlay.errors import InputError
from outlay.vision.hired.layout import Layout

ContentScore = Literal["mass", "topcount", "even"]
RegionMap = Literal["exact", "uniform", "chunks"]
Rounding = Literal["largest_remainder", "floor"]


def regions(layout: Layout, how: RegionMap) -> np.ndarray:
    """(k, N): which share of every patch of the thumbnail each tile covers.

    Args:
        layout: of an image with tiles.
        how: `exact` follows the image into its padded canvas, `uniform` lays the tiles over the
            thumbnail, `chunks` cuts the flat map into k runs (as the released code does).

    Raises:
        InputError: if `chunks` does not come out even.
    """
    rows, columns, grid = layout.rows, layout.columns, layout.grid
    if how == "chunks":
        if layout.patches % layout.tiles:
            raise InputError(
                f"region_map='chunks' cuts {layout.patches} patches into {layout.tiles} equal "
                "runs, which does not come out even; use 'exact' or 'uniform'"
            )
        return np.repeat(np.eye(layout.tiles), layout.patches // layout.tiles, axis=1)
    spans = [(0.0, float(rows)), (0.0, float(columns))]  # of the image, in tiles
    if how == "exact":
        spans = _fitted(layout)
    tall, wide = (
        _overlap(span, count, grid) for span, count in zip(spans, (rows, columns), strict=True)
    )
    return np.einsum("ri,cj->rcij", tall, wide).reshape(layout.tiles, layout.patches)


def _fitted(layout: Layout) -> list[tuple[float, float]]:
    """Where the image starts and ends in its canvas, in tiles: rows, then columns.

    As the image processor does it: scaled until it fits, sides rounded up, padded evenly.
    """
    scale = min(full / side for full, side in zip(layout.canvas, layout.size, strict=True))
    spans = []
    for side, full, count in zip(
        layout.size, layout.canvas, (layout.rows, layout.columns), strict=True
    ):
        length = min(full, math.ceil(side * scale))
        start = (full - length) // 2
        spans.append((start * count / full, (start + length) * count / full))
    return spans


def _overlap(span: tuple[float, float], tiles: int, grid: int) -> np.ndarray:
    """(tiles, grid): share of each of `grid` equal pieces of the span in each tile."""
    edges = np.linspace(*span, grid + 1)
    start, end = edges[:-1], edges[1:]
    tile = np.arange(tiles)[:, None]
    shared = np.minimum(end, tile + 1) - np.maximum(start, tile)
    return np.asarray(np.maximum(shared, 0) / (end - start))


def content(
    map_N: np.ndarray, layout: Layout, score: ContentScore, how: RegionMap, top: int
) -> np.ndarray:
    """(k,): the visual content of every tile.

    Args:
        map_N: what the class token sees in the thumbnail's initial layer, heads aggregated.
        layout: of an image with tiles.
        score: `mass` of attention in each tile's region, `topcount` of how many of the `top`
            largest entries lie there (as the released code), or `even`.
        how: see `regions`.
        top: entries that `topcount` counts.
    """
    if score == "even":
        return np.ones(layout.tiles)
    share_kN = regions(layout, how)
    if score == "mass":
        return np.asarray(share_kN @ map_N)
    largest = np.argsort(-map_N, kind="stable")[:top]
    return np.asarray(share_kN[:, largest].sum(1))


def quotas(
    budget: int,
    content_k: np.ndarray,
    room_P: Sequence[int],
    alpha: float,
    rounding: Rounding,
    floor: int = 0,
) -> list[int]:
    """Tokens of every partition: the thumbnail, then the tiles.

    `floor` rounds every share down, as the paper does, and what is lost or does not fit stays
    unspent. `largest_remainder` hands exactly `min(budget, sum(room_P))` out: what has no room in
    one tile goes to others, and what has none in any goes to the thumbnail.

    Args:
        budget: of the image.
        content_k: of every tile; all zero counts as even.
        room_P: tokens that each partition can keep.
        alpha: share of the thumbnail.
        rounding: of shares.
        floor: least tokens of every tile that has them.

    Raises:
        InputError: if the tiles' part does not hold the floors.
    """
    if not len(content_k):
        return [min(budget, room_P[0])]
    first = min(math.floor(alpha * budget), room_P[0])
    room = list(room_P[1:])
    rest = min(budget - first, sum(room))
    least = [min(floor, n) for n in room]
    if sum(least) > rest:
        raise InputError(
            f"floor_per_partition={floor} needs {sum(least)} tokens in {len(room)} tiles, which "
            f"get {rest} of a budget of {budget}; lower it or alpha={alpha:g}, or raise the budget"
        )
    weights = np.asarray(content_k, dtype=np.float64)
    if not weights.sum() > 0:
        weights = np.ones(len(room))
    if rounding == "floor":
        shares = [math.floor((rest - sum(least)) * w / weights.sum()) for w in weights.tolist()]
        pairs = zip(least, shares, room, strict=True)
        return [first, *(min(low + share, n) for low, share, n in pairs)]
    tiles = filled(rest, weights, room, least)
    return [min(budget - sum(tiles), room_P[0]), *tiles]


def filled(total: int, weights: np.ndarray, room: Sequence[int], least: Sequence[int]) -> list[int]:
    """Hand `total` out in proportion to weights; what does not fit goes round again.

    Args:
        total: at most `sum(room)`, at least `sum(least)`.
        weights: of the parts.
        room: most of each part.
        least: least of each part.
    """
    found = list(least)
    left = total - sum(found)
    while left > 0:
        open_ = [i for i, n in enumerate(room) if found[i] < n]
        now = [float(weights[i]) for i in open_]
        if not any(now):
            now = [1.0] * len(open_)
        for i, share in zip(open_, split_weighted(left, now), strict=True):
            found[i] = min(room[i], found[i] + share)
        left = total - sum(found)
    return found
