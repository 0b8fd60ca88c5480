"""Training the seer's tower, before it is frozen: linear heads ask it for all that a question may.

Heads on the last hidden states: of every patch, which object and which colour covers it (background
counts 0.15), its row and column (0.3: a frozen tower forgets positions unless asked for them); of
the CLS token, which names and colours the picture holds (10: LLaVA drops CLS, so that without a
loss of its own its attention would be noise). The heads are thrown away afterwards.

Shapes: B pictures, g x g patches, K objects, C width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from outlay.testbeds.fashion import GARMENTS
from outlay.testbeds.seer.model import Size, normalised, tiles
from outlay.testbeds.seer.scenes import COLOURS, COVERED, DIGITS, Scenes, scenes

BACKGROUND_WEIGHT = 0.15
PLACE_WEIGHT = 0.3
CLS_WEIGHT = 10.0
NAMES = len(GARMENTS) + len(DIGITS) + 1
"""Kinds of object that a patch can show; all words are one."""


@dataclass(frozen=True)
class Views:
    """Pictures as the tower sees them, and what is in them.

    Args:
        pixels: (B, 3, H, W).
        names: (B, g * g) 0 for background, else 1 + the object's name.
        colours: (B, g * g) 0 for background, else 1 + its colour.
        present: (B, NAMES + 6) 1. for the names and colours that a patch shows.
    """

    pixels: torch.Tensor
    names: torch.Tensor
    colours: torch.Tensor
    present: torch.Tensor

    def __len__(self) -> int:
        return len(self.pixels)


def views(shown: Scenes, size: Size) -> Views:
    """Scenes as the tower of a size sees them: themselves, or thumbnails and tiles."""
    pixels = normalised(shown.images)
    owner = torch.from_numpy(shown.map).long()
    most = shown.kinds.shape[1]
    masks = torch.stack([owner == k + 1 for k in range(most)], 1).float()
    if size.tiled:
        pixels = tiles(pixels, size)
        masks = tiles(masks, size).clamp_min(0)
        repeats = pixels.shape[1]
        pixels, masks = pixels.flatten(0, 1), masks.flatten(0, 1)
    else:
        repeats = 1
    shares_BKgg = nn.functional.avg_pool2d(masks, size.patch)
    best_Bgg, which_Bgg = shares_BKgg.max(1)
    label_BP = torch.where(best_Bgg > COVERED, which_Bgg + 1, 0).flatten(1)
    offsets = np.array([0, len(GARMENTS), NAMES - 1, 0])  # by kind; -1 is no object
    names = np.where(shown.kinds == 2, 0, shown.names) + offsets[shown.kinds] + 1
    table = np.zeros((2, len(shown), most + 1), np.int64)
    table[0, :, 1:], table[1, :, 1:] = names, shown.colours + 1
    names_BK, colours_BK = torch.from_numpy(table).repeat_interleave(repeats, 1)
    names_BP, colours_BP = names_BK.gather(1, label_BP), colours_BK.gather(1, label_BP)
    present = torch.zeros(len(pixels), 1 + NAMES + 1 + len(COLOURS))
    present.scatter_(1, names_BP, 1.0).scatter_(1, colours_BP + 1 + NAMES, 1.0)
    keep = torch.ones(present.shape[1], dtype=torch.bool)
    keep[[0, 1 + NAMES]] = False  # background is no name and no colour
    return Views(pixels, names_BP, colours_BP, present[:, keep])


class Heads(nn.Module):
    """Linear read-outs of the tower's last hidden states."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.grid = size.grid
        self.patch = nn.Linear(size.width, 1 + NAMES + 1 + len(COLOURS) + 2 * size.grid)
        self.cls = nn.Linear(size.width, NAMES + len(COLOURS))

    def split(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of names, colours, rows and columns, (B, g * g, n) each."""
        parts = [1 + NAMES, 1 + len(COLOURS), self.grid, self.grid]
        return self.patch(hidden[:, 1:]).float().split(parts, -1)

    def loss(self, hidden: torch.Tensor, seen: Views) -> torch.Tensor:
        """The weighted sum of the five losses."""
        names, colours, rows, columns = self.split(hidden)
        weight_BP = torch.where(seen.names > 0, 1.0, BACKGROUND_WEIGHT)
        weight_BP = weight_BP / weight_BP.sum()

        def of_patches(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            losses = nn.functional.cross_entropy(
                logits.flatten(0, 1), target.flatten(), reduction="none"
            )
            return (losses * weight_BP.flatten()).sum()

        place = torch.arange(self.grid**2).expand(len(seen), -1)
        where = nn.functional.cross_entropy(
            rows.flatten(0, 1), (place // self.grid).flatten()
        ) + nn.functional.cross_entropy(columns.flatten(0, 1), (place % self.grid).flatten())
        present = nn.functional.binary_cross_entropy_with_logits(
            self.cls(hidden[:, 0]).float(), seen.present
        )
        return (
            of_patches(names, seen.names)
            + of_patches(colours, seen.colours)
            + PLACE_WEIGHT * where
            + CLS_WEIGHT * present
        )


@torch.no_grad()
def measure(tower: Any, heads: Heads, size: Size, drawing: dict[str, Any]) -> dict[str, float]:
    """Held-out accuracy of the heads: names and colours of foreground patches."""
    seen = views(scenes(256, split="test", seed=(11,), **drawing), size)
    hidden = tower(seen.pixels).last_hidden_state
    names, colours, *_ = heads.split(hidden)
    front = seen.names > 0
    return {
        "name": float((names.argmax(-1) == seen.names)[front].float().mean()),
        "colour": float((colours.argmax(-1) == seen.colours)[front].float().mean()),
    }


Step = Callable[[int, float], None]
"""Called after every step with its number and its loss."""


def resize_positions(source: Any, tower: Any) -> None:
    """Copy a tower into one with another grid; its position embeddings are interpolated."""
    state = dict(source.state_dict())
    key = "embeddings.position_embedding.weight"
    table = state[key]
    before, after = (int((len(t) - 1) ** 0.5) for t in (table, tower.state_dict()[key]))
    if before != after:
        grid = table[1:].T.unflatten(1, (before, before))[None]
        grid = nn.functional.interpolate(grid, (after, after), mode="bicubic", align_corners=False)
        state[key] = torch.cat([table[:1], grid[0].flatten(1).T])
    tower.load_state_dict(state)
