"""A CLIP vision tower that reads T2T tokens: a drop-in for `CLIPVisionModel`, also inside LLaVA.

>>> from transformers import CLIPVisionConfig
>>> from outlay.vision.t2t_vit.clip import T2TCLIPVisionConfig, T2TCLIPVisionModel
>>> from outlay.vision.t2t_vit.tokens import SPLITS_MEDIUM, Tokens
>>> small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
>>> config = T2TCLIPVisionConfig.of(
...     Tokens(SPLITS_MEDIUM, token_dim=16), CLIPVisionConfig(image_size=64, **small)
... )
>>> T2TCLIPVisionModel(config).embeddings.num_patches
64

`LlavaConfig(vision_config=config, ...)` builds a LLaVA on it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, CLIPVisionModel
from transformers import initialization as init
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

from outlay.errors import CapabilityError, InputError
from outlay.vision.t2t_vit.blocks import TokenPerformer
from outlay.vision.t2t_vit.configuration import T2TCLIPVisionConfig
from outlay.vision.t2t_vit.positions import sinusoid_table
from outlay.vision.t2t_vit.tokeniser import Tokeniser, spread_of
from outlay.vision.t2t_vit.tokens import Tokens

__all__ = ["T2TCLIPVisionConfig", "T2TCLIPVisionModel", "T2TVisionEmbeddings", "retokenised"]


class FixedPositions(nn.Module):
    """The sinusoid table where CLIP has an embedding: a buffer, so it is never trained.

    Args:
        length: rows.
        dim: channels.
    """

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", sinusoid_table(length, dim)[0])

    def forward(self, ids: Tensor) -> Tensor:
        """Rows by number."""
        return self.weight[ids]


class T2TVisionEmbeddings(CLIPVisionEmbeddings):
    """CLIP's embeddings with a tokeniser where the patch convolution was."""

    def __init__(self, config: T2TCLIPVisionConfig) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.embed_dim, self.image_size = config.hidden_size, config.image_size
        self.patch_size = config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(self.embed_dim))
        self.patch_embedding = Tokeniser(
            config.tokens, config.num_channels, self.embed_dim, self.image_size
        )
        self.num_patches = self.patch_embedding.num_patches
        self.num_positions = self.num_patches + 1
        kind = nn.Embedding if config.positions == "learned" else FixedPositions
        self.position_embedding = kind(self.num_positions, self.embed_dim)
        ids = torch.arange(self.num_positions).expand((1, -1))
        self.register_buffer("position_ids", ids, persistent=False)

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """(images, channels, height, width) -> (images, 1 + tokens, channels), CLS first.

        Raises:
            InputError: for pixels that cannot be used, or another image size without
                `interpolate_pos_encoding`.
        """
        height, width = pixel_values.shape[-2:]
        if not interpolate_pos_encoding and (height, width) != (self.image_size, self.image_size):
            raise InputError(
                f"images of {height} x {width} pixels, but the tower is for {self.image_size} x "
                f"{self.image_size}; resize them, or pass interpolate_pos_encoding=True"
            )
        if torch.is_floating_point(pixel_values):  # other kinds are refused by the tokeniser
            pixel_values = pixel_values.to(self.class_embedding.dtype)
        tokens_BND = self.patch_embedding(pixel_values)
        cls_B1D = self.class_embedding.expand(len(tokens_BND), 1, -1)
        embeddings = torch.cat([cls_B1D, tokens_BND], dim=1)
        if interpolate_pos_encoding:
            return embeddings + self.interpolate_pos_encoding(embeddings, height, width)
        out: Tensor = embeddings + self.position_embedding(self.position_ids)
        return out


class T2TCLIPVisionModel(CLIPVisionModel):
    """`CLIPVisionModel` with `T2TVisionEmbeddings`; everything else is CLIP's.

    Raises:
        InputError: for knobs that `Tokens` refuses, or an image size that is not one side.
    """

    config: T2TCLIPVisionConfig
    config_class = T2TCLIPVisionConfig
    _no_split_modules = ["T2TVisionEmbeddings", "CLIPEncoderLayer"]  # noqa: RUF012

    def __init__(self, config: T2TCLIPVisionConfig) -> None:
        if not isinstance(config.image_size, int):
            raise InputError(
                f"image_size={config.image_size!r}: CLIP towers are square; give one side, or use "
                "T2TViT for rectangles"
            )
        if config.positions not in ("learned", "sinusoid"):
            raise InputError(f"positions={config.positions!r}; choose learned or sinusoid")
        super().__init__(config)
        self.embeddings = T2TVisionEmbeddings(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
            return
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and hasattr(module, "spread"):
            init.trunc_normal_(module.weight, std=spread_of(module, 0.0))
        elif isinstance(module, TokenPerformer):
            init.copy_(module.w, module.fresh_rows())
        elif isinstance(module, T2TVisionEmbeddings) and self.config.positions == "sinusoid":
            fixed = module.position_embedding.weight
            init.copy_(fixed, sinusoid_table(*fixed.shape)[0])


def retokenised(
    tower: CLIPVisionModel, tokens: Tokens, positions: str = "learned"
) -> T2TCLIPVisionModel:
    """A copy of a CLIP tower that reads T2T tokens; all its other weights are kept.

    The learned positions are kept where the number of tokens stays, else they are fresh. The
    tokeniser is fresh: train it.

    Args:
        tower: a `CLIPVisionModel`.
        tokens: the tokeniser's knobs.
        positions: "learned", or "sinusoid".

    Raises:
        CapabilityError: for a tower that is no `CLIPVisionModel`.
        InputError: if the splits do not fit the tower's image size.
    """
    if not isinstance(tower, CLIPVisionModel):
        raise CapabilityError(
            f"{type(tower).__name__} is no CLIPVisionModel; use Tokeniser as its embedding layer"
        )
    made = T2TCLIPVisionModel(T2TCLIPVisionConfig.of(tokens, tower.config, positions))
    kept: dict[str, Any] = {
        name: value
        for name, value in tower.state_dict().items()
        if not name.startswith("embeddings.patch_embedding")
    }
    place = "embeddings.position_embedding.weight"
    if positions == "sinusoid" or kept[place].shape != made.state_dict()[place].shape:
        del kept[place]
    made.load_state_dict(kept, strict=False)
    return made.to(device=tower.device, dtype=tower.dtype).train(tower.training)


AutoConfig.register(T2TCLIPVisionConfig.model_type, T2TCLIPVisionConfig, exist_ok=True)
AutoModel.register(T2TCLIPVisionConfig, T2TCLIPVisionModel, exist_ok=True)
