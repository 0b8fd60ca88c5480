"""Prompts with tiled images, and the paper's selection once more, slow and plain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from tests.vision.tiny_vlms import IMAGE
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

PINPOINTS = [[32, 64], [64, 32], [64, 64]]
SIDE, GRID = 32, 4
PATCHES = GRID * GRID
SIZES = [(64, 64), (20, 60), (60, 21), (48, 64), (33, 100)]
"""Heights and widths of five shapes: square, wide, tall, 3 : 4 and 1 : 3."""


def shape_of(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of tiles."""
    found = get_anyres_image_grid_shape(size, PINPOINTS, SIDE)
    return int(found[0]), int(found[1])


def unpadded(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the mosaic in patches, by the rule of the foundation sheet."""
    rows, columns = (n * GRID for n in shape_of(size))
    height, width = size
    if width / height > columns / rows:
        pad = (rows - int(round(height * columns / width, 7))) // 2
        return rows - 2 * pad, columns
    pad = (columns - int(round(width * rows / height, 7))) // 2
    return rows, columns - 2 * pad


def tokens_of(size: tuple[int, int]) -> int:
    """g^2 + h w + h."""
    height, width = unpadded(size)
    return PATCHES + height * width + height


def tiled_inputs(
    sizes: Sequence[tuple[int, int]], seed: int = 0, question: int = 4
) -> dict[str, torch.Tensor]:
    """One image a row, padded on the left; every image has its own noise, whatever the batch."""
    counts = [tokens_of(size) for size in sizes]
    partitions = [math.prod(shape_of(size)) + 1 for size in sizes]
    ids = torch.zeros(len(sizes), max(counts) + 1 + question, dtype=torch.long)
    pixels = torch.zeros(len(sizes), max(partitions), 3, SIDE, SIDE)
    for row, (size, count, k) in enumerate(zip(sizes, counts, partitions, strict=True)):
        line = [1] + [IMAGE] * count + list(range(10, 10 + question))
        ids[row, -len(line) :] = torch.tensor(line)
        generator = torch.Generator().manual_seed(seed + 1000 * size[0] + size[1])
        pixels[row, :k] = torch.randn(k, 3, SIDE, SIDE, generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "pixel_values": pixels,
        "image_sizes": torch.tensor(sizes),
    }


def slow_masks(
    initial_HN: Sequence[Sequence[float]],
    final_PHN: Sequence[Sequence[Sequence[float]]],
    rate: float,
    alpha: float,
    shape: tuple[int, int],
    how: str,
) -> np.ndarray:
    """(P, N) kept patches, padding not looked at: the released code's and the paper's selection,
    written from their descriptions, number by number.

    Args:
        initial_HN: class-token attention of the thumbnail's initial layer.
        final_PHN: of every partition's final layer.
        rate, alpha: as in the paper.
        shape: rows and columns of tiles.
        how: "official" or "paper".
    """
    k, patches = len(final_PHN) - 1, len(initial_HN[0])
    side = math.isqrt(patches)
    budget = math.floor((k + 1) * patches * rate)
    seen = [sum(row[j] for row in initial_HN) for j in range(patches)]
    content = [0.0] * k
    if how == "official":
        top = sorted(range(patches), key=lambda j: (-seen[j], j))
        for j in top[: math.floor(patches * (1 - alpha))]:
            content[j // (patches // k)] += 1
    else:
        for j in range(patches):
            y, x = divmod(j, side)
            content[(y * shape[0] // side) * shape[1] + x * shape[1] // side] += seen[j]
    first = min(math.floor(alpha * budget), patches)
    rest = min(budget - first, k * patches)
    total = sum(content)
    quota = [first]
    for i in range(k):
        share = content[i] / total if total else 1 / k
        quota.append(min(math.floor(rest * share), patches))
    mask = np.zeros((k + 1, patches), bool)
    for p in range(k + 1):
        score = [sum(row[j] for row in final_PHN[p]) for j in range(patches)]
        best = sorted(range(patches), key=lambda j: (-score[j], j))[: quota[p]]
        for j in best:
            mask[p, j] = True
    return mask
