"""Pictures of what was kept: an image with its dropped patches faded.

A panel is one image under one or more grids of patches (a partition, or all tiles of a mosaic);
panels stand side by side. Colours are those of every picture of the project.

H x W pixels, h x w patches of a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outlay.errors import DependencyError, InputError
from outlay.figure import PALETTE

MAX_PANELS = 64
MAX_PIXELS = 2**24
"""Of one panel, before it is enlarged."""
FADE = 0.22
"""How much of a dropped patch is left."""
PAPER = 245.0
"""What dropped patches fade to, and rows without grid stay."""
LEAST_SIDE = 384
"""Panels are enlarged by a whole number until their longer side has at least so many pixels."""


@dataclass(frozen=True)
class Grid:
    """Which patches of a part of an image were kept.

    Args:
        kept_hw: True where a patch was kept; numbers in [0, 1] fade a patch in part.
        box: top, left, height, width in pixels of the image; None is all of it.
    """

    kept_hw: Any
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Panel:
    """One image under its grids.

    Args:
        image: (H, W, 3) uint8 array, or a Pillow image.
        grids: of patches; pixels under none are left as they are.
        title: above it.
    """

    image: Any
    grids: Sequence[Grid]
    title: str = ""


def faded(panel: Panel) -> np.ndarray:
    """(H', W', 3) uint8: the image, enlarged, with dropped patches faded and fields outlined.

    Raises:
        InputError: for an image of another shape, or a grid outside it.
    """
    pixels_HW3 = _pixels(panel.image)
    factor = max(1, -(-LEAST_SIDE // max(pixels_HW3.shape[:2])))
    shown = pixels_HW3.repeat(factor, 0).repeat(factor, 1).astype(np.float32)
    outlines = []
    for grid in panel.grids:
        kept_hw = _flags(grid.kept_hw)
        box = grid.box or (0, 0, *pixels_HW3.shape[:2])
        top, left, height, width = (float(side) * factor for side in box)
        edges = [
            np.round(start + np.arange(count + 1) * length / count).astype(int)
            for start, length, count in zip(
                (top, left), (height, width), kept_hw.shape, strict=True
            )
        ]
        if min(edges[0][0], edges[1][0]) < 0 or (
            edges[0][-1] > shown.shape[0] or edges[1][-1] > shown.shape[1]
        ):
            raise InputError(f"a grid's box {box} lies outside its image of {pixels_HW3.shape[:2]}")
        for i, row in enumerate(kept_hw):
            for j, share in enumerate(row):
                field = np.s_[edges[0][i] : edges[0][i + 1], edges[1][j] : edges[1][j + 1]]
                part = FADE + (1 - FADE) * float(share)
                shown[field] = PAPER + part * (shown[field] - PAPER)
                shown[field][:1] = shown[field][:, :1] = PAPER  # a thin line between patches
        outlines.append(edges)
    blue = np.array([int(PALETTE[0][i : i + 2], 16) for i in (1, 3, 5)], np.float32)
    for rows, columns in outlines:
        _outline(shown, rows[0], rows[-1], columns[0], columns[-1], blue)
    return np.clip(np.rint(shown), 0, 255).astype(np.uint8)


def _outline(shown: np.ndarray, top: int, bottom: int, left: int, right: int, ink: Any) -> None:
    for line in (np.s_[top : top + 2], np.s_[bottom - 2 : bottom]):
        shown[line, left:right] = ink
    for line in (np.s_[left : left + 2], np.s_[right - 2 : right]):
        shown[top:bottom, line] = ink


def draw(
    panels: Sequence[Panel],
    path: str | Path,
    *,
    title: str = "",
    columns: int = 4,
    inches: float = 2.6,
    dpi: int = 130,
) -> Path:
    """Draw panels row by row and save them; the suffix of `path` chooses the format.

    Args:
        panels: at most `MAX_PANELS`.
        path: ends in .png, .svg or .pdf.
        title: above the picture.
        columns: panels of a row.
        inches: width of a panel.
        dpi: of PNG files.

    Raises:
        InputError: for no panel, too many, or another suffix.
    """
    if not 1 <= len(panels) <= MAX_PANELS or columns < 1:
        raise InputError(
            f"{len(panels)} panels in {columns} columns; need 1 to {MAX_PANELS} in at least one"
        )
    if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"{path}: choose a name that ends in .png, .svg or .pdf")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError("pictures need matplotlib: pip install 'outlay[eval]'") from error
    pictures = [faded(panel) for panel in panels]
    wide = min(columns, len(panels))
    rows = -(-len(panels) // wide)
    heights = [
        max(p.shape[0] / p.shape[1] for p in pictures[row * wide : (row + 1) * wide])
        for row in range(rows)
    ]
    lines = [
        max(panel.title.count("\n") + 1 for panel in panels[row * wide : (row + 1) * wide])
        for row in range(rows)
    ]
    tall = sum(inches * h + 0.17 * n + 0.16 for h, n in zip(heights, lines, strict=True))
    figure = Figure(
        figsize=(inches * wide + 0.3, tall + (0.4 if title else 0.1)),
        dpi=dpi,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows, wide, height_ratios=heights)
    for index, (panel, picture) in enumerate(zip(panels, pictures, strict=True)):
        axes = figure.add_subplot(grid[index // wide, index % wide])
        axes.imshow(picture)
        axes.set_axis_off()
        if panel.title:
            axes.set_title(panel.title, fontsize=8.5, loc="left", pad=4)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    figure.savefig(path, metadata={"Date": None} if str(path).endswith(".svg") else None)
    return Path(path)


def _pixels(image: Any) -> np.ndarray:
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None].repeat(3, -1)
    if pixels.ndim != 3 or pixels.shape[-1] not in (3, 4) or pixels.dtype != np.uint8:
        raise InputError(
            f"an image of shape {pixels.shape} and type {pixels.dtype}; need (H, W, 3) uint8"
        )
    if not 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS:
        raise InputError(
            f"an image of {pixels.shape[0]} x {pixels.shape[1]} pixels; need 1 to {MAX_PIXELS}"
        )
    return pixels[..., :3]


def _flags(kept: Any) -> np.ndarray:
    flags = np.asarray(kept).astype(np.float32)
    if flags.ndim != 2 or not flags.size or not ((flags >= 0) & (flags <= 1)).all():
        raise InputError(
            f"kept patches of shape {flags.shape}; need an (h, w) grid of True and False"
        )
    return flags


__all__ = ["Grid", "Panel", "draw", "faded"]
