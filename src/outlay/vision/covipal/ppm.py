"""The pruning module: a small transformer that scores visual tokens in view of the question.

Both streams pass one norm and linear map into a narrow width, get a learned type, and positions:
row, column and image of a visual token, distance from the prompt's end of a text token. `joint`
attends over both streams in both directions; in `cross` visual tokens attend to text alone, which
is linear in their number. A last linear map gives one logit a visual token.

Shapes: B rows, N visual tokens, S text tokens, D width of the model, P width of the module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from outlay.errors import InputError

Variant = Literal["joint", "cross"]
MAX_WIDTH, MAX_LAYERS, MAX_HEADS = 8192, 24, 128
GRID_BASE, TEXT_BASE = 100.0, 10_000.0  # longest wavelengths, in patches and in tokens


@dataclass(frozen=True)
class Shape:
    """What a pruning module is built from.

    Args:
        hidden: width of the model's decoder.
        d_p: width of the module.
        layers: its transformer layers.
        heads: its attention heads.
        mlp: width of its MLPs, in d_p.
        variant: "joint" or "cross".
        text_context: whether it sees the text at all.

    Raises:
        InputError: for a number out of range, or a cross module without text.
    """

    hidden: int
    d_p: int = 256
    layers: int = 2
    heads: int = 4
    mlp: int = 2
    variant: Variant = "joint"
    text_context: bool = True

    def __post_init__(self) -> None:
        limits = {"hidden": 1_000_000, "d_p": MAX_WIDTH, "layers": MAX_LAYERS, "heads": MAX_HEADS}
        for name, most in (*limits.items(), ("mlp", 16)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise InputError(f"{name}={value!r}; need an int from 1 to {most}")
        if self.d_p % self.heads:
            raise InputError(f"d_p={self.d_p} is no multiple of heads={self.heads}")
        if self.d_p < 6:
            raise InputError(f"d_p={self.d_p}; positions in three directions need at least 6")
        if self.variant not in get_args(Variant):
            raise InputError(f"variant={self.variant!r}; use 'joint' or 'cross'")
        if self.variant == "cross" and not self.text_context:
            raise InputError(
                "variant='cross' attends to text alone, and text_context=False leaves none; use "
                "variant='joint'"
            )


class PPM(nn.Module):
    """Scores visual tokens: larger is more worth keeping; the sigmoid is the chance to be kept.

    Args:
        shape: what to build.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.enter = nn.Sequential(
            nn.LayerNorm(shape.hidden), nn.Linear(shape.hidden, shape.d_p)
        )  # of both streams: they live in one space
        self.types = nn.Parameter(0.02 * torch.randn(2, shape.d_p))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.d_p)
        self.head = nn.Linear(shape.d_p, 1)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        visual_BND: Tensor,
        places_BN3: Tensor,
        text_BSD: Tensor,
        visual_BN: Tensor | None = None,
        text_BS: Tensor | None = None,
    ) -> Tensor:
        """(B, N) logits; those at padding mean nothing.

        Args:
            visual_BND: visual tokens as they enter the layer.
            places_BN3: row, column and image of each.
            text_BSD: text tokens, likewise.
            visual_BN: False at padding; None where there is none.
            text_BS: likewise.

        Raises:
            InputError: for tokens of another width.
        """
        if visual_BND.shape[-1] != self.shape.hidden:
            raise InputError(
                f"tokens are {visual_BND.shape[-1]} wide and this pruning module was made for "
                f"{self.shape.hidden}; it belongs to another model"
            )
        if visual_BN is None:
            visual_BN = torch.ones(visual_BND.shape[:2], dtype=torch.bool, device=self.types.device)
        if text_BS is None:
            text_BS = torch.ones(text_BSD.shape[:2], dtype=torch.bool, device=self.types.device)
        dtype = self.types.dtype
        x_BNP = self.enter(visual_BND.to(dtype)) + self.types[0]
        x_BNP = x_BNP + grid_code(places_BN3.to(dtype), self.shape.d_p)
        if not self.shape.text_context:
            for block in self.blocks:
                x_BNP = block(x_BNP, x_BNP, visual_BN)
            return self._score(x_BNP)
        to_end_BS = text_BS.flip(1).cumsum(1).flip(1).to(dtype) - 1
        text_BSP = self.enter(text_BSD.to(dtype)) + self.types[1]
        text_BSP = text_BSP + wave(to_end_BS, self.shape.d_p, TEXT_BASE)
        if self.shape.variant == "cross":
            for block in self.blocks:
                x_BNP = block(x_BNP, text_BSP, text_BS)
            return self._score(x_BNP)
        both_BMP = torch.cat([x_BNP, text_BSP], dim=1)
        valid_BM = torch.cat([visual_BN, text_BS], dim=1)
        for block in self.blocks:
            both_BMP = block(both_BMP, both_BMP, valid_BM)
        return self._score(both_BMP[:, : x_BNP.shape[1]])

    def flops(self, visual: int, text: int) -> int:
        """Of one row; a multiply-add is 2, norms and activations are not counted."""
        p, mlp = self.shape.d_p, self.shape.mlp
        read = text if self.shape.text_context else 0
        cross = self.shape.variant == "cross"
        queries = visual if cross else visual + read
        keys = read if cross else queries
        linear = queries * (2 + 2 * mlp) * p * p + keys * 2 * p * p
        layers = self.shape.layers * 2 * (linear + 2 * queries * keys * p)
        return 2 * (visual + read) * self.shape.hidden * p + layers + 2 * visual * p

    def _score(self, x_BNP: Tensor) -> Tensor:
        score_BN: Tensor = self.head(self.norm(x_BNP))[..., 0]
        return score_BN


class Block(nn.Module):
    """A pre-norm transformer layer whose queries and keys may be different tokens.

    Args:
        shape: of the module.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d = shape.d_p
        self.heads = shape.heads
        self.before = nn.LayerNorm(d)
        self.query, self.key_value = nn.Linear(d, d), nn.Linear(d, 2 * d)
        self.out = nn.Linear(d, d)
        self.mlp = nn.Sequential(
            nn.LayerNorm(d), nn.Linear(d, shape.mlp * d), nn.GELU(), nn.Linear(shape.mlp * d, d)
        )

    def forward(self, x_BQP: Tensor, context_BKP: Tensor, valid_BK: Tensor) -> Tensor:
        """(B, Q, P): attention from `x` to `context`, padding left out; then an MLP."""
        query_BQP = self.query(self.before(x_BQP))
        key_BKP, value_BKP = self.key_value(self.before(context_BKP)).chunk(2, dim=-1)
        query, key, value = (
            flat.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for flat in (query_BQP, key_BKP, value_BKP)
        )
        open_B1QK = valid_BK[:, None, None].expand(-1, -1, x_BQP.shape[1], -1)
        seen_BHQD = functional.scaled_dot_product_attention(query, key, value, attn_mask=open_B1QK)
        x_BQP = x_BQP + self.out(seen_BHQD.transpose(1, 2).flatten(2))
        result_BQP: Tensor = x_BQP + self.mlp(x_BQP)
        return result_BQP


def wave(at: Tensor, width: int, base: float) -> Tensor:
    """(..., width): sines and cosines of places (...), wavelengths from 2 pi to 2 pi x base."""
    half = width // 2
    steps = torch.arange(half, device=at.device, dtype=at.dtype) / max(half - 1, 1)
    angle = at[..., None] * torch.exp(-steps * math.log(base))
    return functional.pad(torch.cat([angle.sin(), angle.cos()], -1), (0, width - 2 * half))


def grid_code(places_BN3: Tensor, width: int) -> Tensor:
    """(B, N, width): a third each for row, column and image."""
    third = width // 6 * 2
    flat_BNP = wave(places_BN3, third, GRID_BASE).flatten(-2)
    return functional.pad(flat_BNP, (0, width - 3 * third))
