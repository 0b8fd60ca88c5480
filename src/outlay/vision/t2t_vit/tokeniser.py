"""The tokens-to-token module: pixels in, tokens out. Usable alone as any model's embedding layer.

Shapes: B images, T tokens, C channels, H and W rows and columns, N final tokens, D channels of the
backbone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outlay.errors import InputError
from outlay.vision.t2t_vit.blocks import TokenPerformer, TokenTransformer
from outlay.vision.t2t_vit.tokens import Tokens, sides


class Tokeniser(nn.Module):
    """Turns images into tokens (section 3.1).

    `img_size`, `grid_size` and `num_patches` are what timm's models ask of an `embed_layer`. Other
    image sizes work as well, as long as the total stride divides them.

    Args:
        tokens: the knobs.
        channels: of the image.
        embed_dim: channels D of the result.
        img_size: side, or (height, width), that the counts speak of.

    Raises:
        InputError: if the splits do not fit the image size.
    """

    def __init__(
        self,
        tokens: Tokens,
        channels: int = 3,
        embed_dim: int = 384,
        img_size: int | tuple[int, int] = 224,
    ) -> None:
        super().__init__()
        self.tokens, self.channels, self.embed_dim = tokens, channels, embed_dim
        self.img_size = sides(img_size)
        self.grid_size = tokens.grids(*self.img_size)[-1]
        self.num_patches = math.prod(self.grid_size)
        dim, widths = tokens.token_dim, tokens.widths(channels)
        self.blocks = nn.ModuleList()
        self.projection: nn.Linear | nn.Conv2d
        if tokens.tokens_type == "patch":
            self.projection = nn.Conv2d(channels, embed_dim, tokens.stride, tokens.stride)
        elif tokens.tokens_type == "conv":
            ins = (channels, *(dim for _ in widths[1:]))
            outs = (*(dim for _ in widths[1:]), embed_dim)
            convs = [
                nn.Conv2d(wide, out, *split)
                for wide, out, split in zip(ins, outs, tokens.splits, strict=True)
            ]
            self.blocks.extend(convs[:-1])
            self.projection = convs[-1]
        else:
            for width in widths[:-1]:
                self.blocks.append(
                    TokenTransformer(width, dim)
                    if tokens.tokens_type == "transformer"
                    else TokenPerformer(width, tokens)
                )
            self.projection = nn.Linear(widths[-1], embed_dim)
        for module in self.modules():
            if isinstance(module, nn.Linear) and tokens.start == "fan_in":
                module.spread = module.in_features**-0.5
                nn.init.trunc_normal_(module.weight, std=spread_of(module, 0.0))

    def resize(self, img_size: int | tuple[int, int]) -> None:
        """Let the counts speak of another image size; no weight changes."""
        self.img_size = sides(img_size)
        self.grid_size = self.tokens.grids(*self.img_size)[-1]
        self.num_patches = math.prod(self.grid_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D), tokens row by row.

        Raises:
            InputError: for anything but a float batch of images of the right channels and a size
                that the total stride divides.
        """
        check_pixels(pixel_values, self.channels)
        grids = self.tokens.grids(*pixel_values.shape[-2:])
        x = pixel_values
        if self.tokens.tokens_type in ("patch", "conv"):
            for conv in (*self.blocks, self.projection):
                x = conv(x)
            return x.flatten(2).transpose(1, 2)
        x = unfold(x, self.tokens.splits[0])
        for block, grid, split in zip(self.blocks, grids, self.tokens.splits[1:], strict=False):
            x_BCT = block(x).transpose(1, 2)
            x = unfold(x_BCT.unflatten(-1, grid), split)
        out: Tensor = self.projection(x)
        return out

    def extra_repr(self) -> str:
        """The knobs, for `print(model)`."""
        return f"{self.tokens}, img_size={self.img_size}, num_patches={self.num_patches}"


def spread_of(module: nn.Module, usual: float) -> float:
    """Spread of a linear layer's initial weights: its own, if a tokeniser gave it one."""
    return float(getattr(module, "spread", usual))


def unfold(map_BCHW: Tensor, split: tuple[int, int, int]) -> Tensor:
    """The windows of a map as tokens: (B, T, C * k * k), each channel by channel, row by row."""
    kernel, stride, padding = split
    return F.unfold(map_BCHW, kernel, stride=stride, padding=padding).transpose(1, 2)


def check_pixels(pixel_values: Tensor, channels: int) -> None:
    """Raise `InputError` unless this is a float batch of images with that many channels."""
    if not isinstance(pixel_values, Tensor) or pixel_values.ndim != 4:
        shape = tuple(getattr(pixel_values, "shape", ()))
        raise InputError(
            f"pixel_values of shape {shape}; give a tensor (images, channels, height, width)"
        )
    if not torch.is_floating_point(pixel_values):
        raise InputError(
            f"pixel_values are {pixel_values.dtype}; scale them to floats first, as "
            "pixels.float() / 127.5 - 1"
        )
    if not len(pixel_values):
        raise InputError("pixel_values holds no image; give at least one")
    if pixel_values.shape[1] != channels:
        raise InputError(
            f"pixel_values has {pixel_values.shape[1]} channels, the tokeniser {channels}; "
            "convert the images, or build it with that many channels"
        )
