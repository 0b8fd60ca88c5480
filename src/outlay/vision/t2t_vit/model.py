"""T2T-ViT as transformers models: the layers, forward and heads are those of transformers' ViT.

What differs from `ViTModel`: the tokeniser, fixed positions, stochastic depth, the scale of
attention scores and the initial weights (truncated normal). Everything that works on a `ViTModel`
works here: `output_attentions`, attention kernels, gradient checkpointing, Trainer.

Shapes: B images, C channels, H and W rows and columns, N tokens, D channels of the backbone.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
from transformers import initialization as init
from transformers.models.dinov2.modeling_dinov2 import Dinov2DropPath
from transformers.models.vit.modeling_vit import (
    ViTEmbeddings,
    ViTForImageClassification,
    ViTLayer,
    ViTModel,
    ViTPreTrainedModel,
)

from outlay.errors import InputError
from outlay.vision.t2t_vit.blocks import TokenPerformer
from outlay.vision.t2t_vit.configuration import T2TViTConfig
from outlay.vision.t2t_vit.method import T2TViT
from outlay.vision.t2t_vit.positions import resize_positions, sinusoid_table
from outlay.vision.t2t_vit.tokeniser import Tokeniser, check_pixels, spread_of
from outlay.vision.t2t_vit.tokens import sides

Resize = Literal["interpolate", "recompute"]

__all__ = ["T2TViTConfig", "T2TViTForImageClassification", "T2TViTModel"]


class T2TEmbeddings(ViTEmbeddings):
    """Tokens of the image behind a CLS token, with positions; rectangles included."""

    def __init__(self, config: T2TViTConfig) -> None:
        nn.Module.__init__(self)
        dim = config.hidden_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = None
        self.patch_embeddings = Tokeniser(
            config.tokens, config.num_channels, dim, config.image_size
        )
        self.position_embeddings: Tensor
        self.set_positions(
            torch.zeros(1, 1 + self.patch_embeddings.num_patches, dim),
            config.positions == "learned",
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width that the position table is for."""
        return self.patch_embeddings.img_size

    def set_positions(self, table: Tensor, learned: bool) -> None:
        """Take a position table, (1, 1 + N, D): a parameter if it is learned, else a buffer."""
        if learned:
            self.position_embeddings = nn.Parameter(table.clone())
        else:
            self.register_buffer("position_embeddings", table.clone())

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """The position table for images of another size."""
        new = self.patch_embeddings.tokens.grids(height, width)[-1]
        return resize_positions(self.position_embeddings, self.patch_embeddings.grid_size, new)

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool | None = False,
    ) -> Tensor:
        """(B, C, H, W) -> (B, 1 + N, D).

        Raises:
            InputError: for another image size without `interpolate_pos_encoding`, or for masked
                positions, which windows that overlap cannot hide.
        """
        if bool_masked_pos is not None:
            raise InputError(
                "bool_masked_pos is given, but overlapping windows show a masked token to its "
                "neighbours; mask the pixels instead"
            )
        height, width = pixel_values.shape[-2:]
        positions_1ND = self.position_embeddings
        if (height, width) != self.image_size:
            if not interpolate_pos_encoding:
                raise InputError(
                    f"images of {height} x {width} pixels, but the position table is for "
                    f"{self.image_size[0]} x {self.image_size[1]}; resize the images, call "
                    "model.resize((height, width)), or pass interpolate_pos_encoding=True"
                )
            positions_1ND = self.interpolate_pos_encoding(positions_1ND, height, width)
        tokens_BND = self.patch_embeddings(pixel_values)
        cls_B1D = self.cls_token.expand(len(tokens_BND), -1, -1)
        out: Tensor = self.dropout(torch.cat([cls_B1D, tokens_BND], dim=1) + positions_1ND)
        return out


class T2TLayer(ViTLayer):
    """transformers' ViT layer with stochastic depth and a free scale of scores."""

    def __init__(self, config: T2TViTConfig, drop_path: float) -> None:
        super().__init__(config)
        self.drop_path = Dinov2DropPath(drop_path) if drop_path > 0 else nn.Identity()
        if config.qk_scale is not None:
            self.attention.scaling = config.qk_scale

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """(B, 1 + N, D) -> the same."""
        mixed, _ = self.attention(self.layernorm_before(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + self.drop_path(self.dropout(mixed))
        made = self.mlp(self.layernorm_after(hidden_states))
        return hidden_states + self.drop_path(self.dropout(made))


class _Initial(ViTPreTrainedModel):
    """Initial weights of the released code."""

    config: T2TViTConfig
    config_class = T2TViTConfig
    _no_split_modules = ["T2TEmbeddings", "T2TLayer"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=spread_of(module, std))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, TokenPerformer):
            init.copy_(module.w, module.fresh_rows())
        elif isinstance(module, T2TEmbeddings):
            init.trunc_normal_(module.cls_token, std=std)
            table = module.position_embeddings
            if self.config.positions == "learned":
                init.trunc_normal_(table, std=std)
            else:
                init.copy_(table, sinusoid_table(*table.shape[1:]))
        else:
            super()._init_weights(module)


class T2TViTModel(_Initial, ViTModel):
    """The backbone: final hidden states, CLS first, as `ViTModel` gives them; no pooler.

    Raises:
        InputError: for knobs that `T2TViT` refuses.
    """

    def __init__(self, config: T2TViTConfig) -> None:
        method = config.method()
        ViTPreTrainedModel.__init__(self, config)
        rates = torch.linspace(0, method.drop_path, method.depth, device="cpu").tolist()
        self.embeddings = T2TEmbeddings(config)
        self.layers = nn.ModuleList(T2TLayer(config, rate) for rate in rates)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = None
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """As `ViTModel.forward`; `interpolate_pos_encoding=True` for other image sizes.

        Raises:
            InputError: for pixels that are no float batch of images of the right channels.
        """
        check_pixels(pixel_values, self.config.num_channels)
        return super().forward(pixel_values, **kwargs)

    @torch.no_grad()
    def resize(self, img_size: int | tuple[int, int], how: Resize = "interpolate") -> None:
        """Make the model one for another image size, in place.

        Args:
            img_size: side, or (height, width).
            how: "interpolate" the position table over the grid, as the released code does for
                fine-tuning; or "recompute" the sinusoids for the new number of tokens.

        Raises:
            InputError: if the splits do not fit the size, or to recompute learned positions.
        """
        if how not in ("interpolate", "recompute"):
            raise InputError(f"how={how!r}; choose interpolate or recompute")
        embeddings, table = self.embeddings, self.embeddings.position_embeddings
        new = self.config.tokens.grids(*sides(img_size))[-1]
        if how == "interpolate":
            made = resize_positions(table, embeddings.patch_embeddings.grid_size, new)
        elif self.config.positions == "sinusoid":
            made = sinusoid_table(1 + math.prod(new), table.shape[-1])
        else:
            raise InputError("learned positions have no formula; use how='interpolate'")
        embeddings.set_positions(made.to(table), self.config.positions == "learned")
        embeddings.patch_embeddings.resize(img_size)
        self.config.image_size = img_size


class T2TViTForImageClassification(_Initial, ViTForImageClassification):
    """The backbone and a linear head on CLS; forward takes `pixel_values` and `labels`."""

    def __init__(self, config: T2TViTConfig) -> None:
        ViTPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.vit = T2TViTModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @property
    def method(self) -> T2TViT:
        """The knobs that the model was built with."""
        return self.config.method()

    def resize(self, img_size: int | tuple[int, int], how: Resize = "interpolate") -> None:
        """See `T2TViTModel.resize`."""
        self.vit.resize(img_size, how)


AutoConfig.register(T2TViTConfig.model_type, T2TViTConfig, exist_ok=True)
AutoModel.register(T2TViTConfig, T2TViTModel, exist_ok=True)
AutoModelForImageClassification.register(T2TViTConfig, T2TViTForImageClassification, exist_ok=True)
