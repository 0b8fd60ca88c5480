"""Vision transformers of transformers, tiny and with random weights, and one as timm has them."""

from __future__ import annotations

from typing import Any

import torch
from tests.vision.tiny_vlms import ready
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
)

SIZES: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
CLASSES = {"id2label": {i: str(i) for i in range(5)}, "label2id": {str(i): i for i in range(5)}}


def vit(seed: int = 0, attention: str = "sdpa", **knobs: Any) -> Any:
    return ready(
        ViTForImageClassification(ViTConfig(**{**SIZES, **CLASSES, **knobs})), seed, attention
    )


def deit(seed: int = 0, teacher: bool = False) -> Any:
    """A distillation token stands behind the class token."""
    kind = DeiTForImageClassificationWithTeacher if teacher else DeiTForImageClassification
    return ready(kind(DeiTConfig(**SIZES, **CLASSES)), seed)


def clip(seed: int = 0) -> Any:
    return ready(CLIPVisionModel(CLIPVisionConfig(**SIZES)), seed)


def siglip(seed: int = 0) -> Any:
    """No class token."""
    return ready(SiglipVisionModel(SiglipVisionConfig(**SIZES, vision_use_head=False)), seed)


class FusedAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        split = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(*split)
        return self.proj(seen.transpose(1, 2).flatten(2))


class FusedBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = FusedAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class FusedViT(nn.Module):
    """Blocks with one projection of queries, keys and values, in a list called `blocks`."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 32, 8, 8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 32))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, 32))
        self.blocks = nn.ModuleList(FusedBlock(32, 4) for _ in range(3))

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.patch_embed(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x


def pictures(images: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
