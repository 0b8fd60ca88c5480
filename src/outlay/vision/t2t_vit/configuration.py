"""The transformers configurations of T2T-ViT and of a CLIP vision tower on its tokens."""

from __future__ import annotations

from typing import Any

from transformers import CLIPVisionConfig, ViTConfig

from outlay.vision.t2t_vit.method import T2TViT
from outlay.vision.t2t_vit.tokens import SPLITS, Tokens


class T2TViTConfig(ViTConfig):
    """A `ViTConfig` with the tokeniser's knobs; `T2TViTConfig.of(method)` makes one.

    The patch size is the total stride of the splits. Meanings and checks of all fields are those of
    `T2TViT`, here under the names that transformers gives them.
    """

    model_type = "t2t_vit"

    splits: tuple[Any, ...] | list[Any] = SPLITS
    tokens_type: str = "performer"
    token_dim: int = 64
    kernel_ratio: float = 0.5
    phi: str = "stable"
    rows: str = "sqrt_m"
    token_dropout: float = 0.1
    start: str = "released"
    qk_scale: float | None = None
    drop_path_rate: float = 0.1
    positions: str = "sinusoid"
    hidden_size: int = 384
    num_hidden_layers: int = 14
    num_attention_heads: int = 6
    intermediate_size: int = 1152
    layer_norm_eps: float = 1e-5
    qkv_bias: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.splits = tuple(tuple(split) for split in self.splits)
        self.patch_size = self.tokens.stride
        super().__post_init__(**kwargs)

    @property
    def tokens(self) -> Tokens:
        """The tokeniser's knobs."""
        return _tokens(self)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens that the backbone sees."""
        return self.method().grid

    def method(self) -> T2TViT:
        """The knobs by the names of the paper.

        Raises:
            InputError: for a knob out of its range.
        """
        size = self.image_size
        return T2TViT(
            splits=self.tokens.splits,
            tokens_type=self.tokens_type,  # type: ignore[arg-type]
            token_dim=self.token_dim,
            kernel_ratio=self.kernel_ratio,
            embed_dim=self.hidden_size,
            depth=self.num_hidden_layers,
            heads=self.num_attention_heads,
            mlp_ratio=self.intermediate_size / self.hidden_size,
            qk_scale=self.qk_scale,
            drop_path=self.drop_path_rate,
            img_size=size if isinstance(size, int) else (size[0], size[1]),
            channels=self.num_channels,
            num_classes=max(1, self.num_labels or 1),
            pos=self.positions,  # type: ignore[arg-type]
            phi=self.phi,  # type: ignore[arg-type]
            rows=self.rows,  # type: ignore[arg-type]
            token_dropout=self.token_dropout,
            start=self.start,  # type: ignore[arg-type]
        )

    @classmethod
    def of(cls, method: T2TViT) -> T2TViTConfig:
        """The configuration of a model with these knobs."""
        return cls(
            **_fields(method.tokens),
            qk_scale=method.qk_scale,
            drop_path_rate=method.drop_path,
            positions=method.pos,
            hidden_size=method.embed_dim,
            num_hidden_layers=method.depth,
            num_attention_heads=method.heads,
            intermediate_size=method.mlp_width,
            image_size=method.img_size,
            num_channels=method.channels,
            num_labels=method.num_classes,
        )


class T2TCLIPVisionConfig(CLIPVisionConfig):
    """A `CLIPVisionConfig` with the tokeniser's knobs; positions are learned unless told otherwise.

    `T2TCLIPVisionConfig.of(tokens, hidden_size=..., ...)` makes one.
    """

    model_type = "t2t_clip_vision_model"
    base_config_key = "vision_config"

    splits: tuple[Any, ...] | list[Any] = SPLITS
    tokens_type: str = "performer"
    token_dim: int = 64
    kernel_ratio: float = 0.5
    phi: str = "stable"
    rows: str = "sqrt_m"
    token_dropout: float = 0.1
    start: str = "released"
    positions: str = "learned"
    patch_size: int | list[int] | tuple[int, int] | None = 16

    def __post_init__(self, **kwargs: Any) -> None:
        self.splits = tuple(tuple(split) for split in self.splits)
        self.patch_size = self.tokens.stride
        super().__post_init__(**kwargs)

    @property
    def tokens(self) -> Tokens:
        """The tokeniser's knobs."""
        return _tokens(self)

    @classmethod
    def of(
        cls, tokens: Tokens, tower: CLIPVisionConfig, positions: str = "learned"
    ) -> T2TCLIPVisionConfig:
        """The configuration of a CLIP tower, its patches exchanged for a tokeniser.

        Args:
            tokens: the tokeniser's knobs.
            tower: everything else; its patch size is not read.
            positions: "learned", or "sinusoid".
        """
        shared = {
            name: value
            for name, value in tower.to_dict().items()
            if name not in ("model_type", "patch_size", "architectures", "transformers_version")
        }
        return cls(**{**shared, **_fields(tokens), "positions": positions})


def _tokens(config: Any) -> Tokens:
    return Tokens(
        config.splits,
        config.tokens_type,
        config.token_dim,
        config.kernel_ratio,
        config.phi,
        config.rows,
        config.token_dropout,
        config.start,
    )


def _fields(tokens: Tokens) -> dict[str, Any]:
    return {
        "splits": tokens.splits,
        "tokens_type": tokens.tokens_type,
        "token_dim": tokens.token_dim,
        "kernel_ratio": tokens.kernel_ratio,
        "phi": tokens.phi,
        "rows": tokens.rows,
        "token_dropout": tokens.dropout,
        "start": tokens.start,
    }
