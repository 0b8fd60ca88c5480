"""T2T-ViT's knobs: what to build, and what it costs.

"Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet" (arXiv 2101.11986).
An image is re-tokenised step by step: attention over the tokens, back to a map, overlapping
windows; so the backbone gets as many tokens as plain patches would give, but each of them knows its
neighbourhood.

Differs from the paper:

- kernels, strides, number of splits, widths and image size are free; rectangles work;
- the performer's arithmetic is stabilised (`phi="stable"`); `phi="compat"` is the released code's;
- the decay of the averaged weights shrinks with the number of steps, see `training.averaged`.

>>> from outlay.vision.t2t_vit import T2TViT
>>> T2TViT.preset("t2t-vit-14").tokens_per_image
196
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from outlay.errors import InputError
from outlay.vision.t2t_vit.tokens import (
    MAX_WIDTH,
    SPLITS,
    Phi,
    Rows,
    Split,
    Start,
    Tokens,
    TokensType,
    finite,
    sides,
    whole,
)

if TYPE_CHECKING:
    from outlay.vision.t2t_vit.model import T2TViTForImageClassification

Positions = Literal["sinusoid", "learned"]
MAX_DEPTH = 512
MAX_CHANNELS = 1_024
MAX_CLASSES = 1_000_000


@dataclass(frozen=True)
class T2TViT:
    """A vision transformer on tokens of tokens; the defaults are T2T-ViT-14.

    Args:
        splits: (kernel, stride, padding) of every split of the image into tokens.
        tokens_type: how tokens look at each other between splits: "performer", "transformer",
            "conv" (convolutions instead), or "patch" (no steps: plain patches of the same size).
        token_dim: channels between splits.
        kernel_ratio: random features of the performer, as a share of `token_dim`.
        embed_dim: channels of the backbone.
        depth: its layers.
        heads: its attention heads.
        mlp_ratio: width of its MLPs, in `embed_dim`.
        qk_scale: of its attention scores; None is (embed_dim / heads)^-0.5. Released weights need
            embed_dim^-0.5.
        drop_path: chance that the last layer is skipped in training; earlier ones rise to it.
        img_size: side, or (height, width), in pixels.
        channels: of the image.
        num_classes: of the head.
        pos: positions, "sinusoid" (fixed) or "learned".
        phi: the performer's arithmetic, "stable", or "compat" as released.
        rows: length of the performer's random rows, "sqrt_m" as released, or "sqrt_c", as long as
            Gaussian rows, whose features estimate the softmax kernel.
        token_dropout: in the performer's blocks, in training.
        start: of the tokeniser's linear layers: "released" (spread .02), or "fan_in"
            (1 / sqrt(inputs)), which small tokenisers need to be heard beside the positions.
        ema_decay: of averaged weights, at most, for `training.averaged`; short runs get less.

    Raises:
        InputError: for a knob out of its range, or an image that the splits do not fit.
    """

    splits: tuple[Split, ...] = SPLITS
    tokens_type: TokensType = "performer"
    token_dim: int = 64
    kernel_ratio: float = 0.5
    embed_dim: int = 384
    depth: int = 14
    heads: int = 6
    mlp_ratio: float = 3.0
    qk_scale: float | None = None
    drop_path: float = 0.1
    img_size: int | tuple[int, int] = 224
    channels: int = 3
    num_classes: int = 1000
    pos: Positions = "sinusoid"
    phi: Phi = "stable"
    rows: Rows = "sqrt_m"
    token_dropout: float = 0.1
    start: Start = "released"
    ema_decay: float = 0.99996

    def __post_init__(self) -> None:
        tokens = self.tokens  # checks its own knobs
        object.__setattr__(self, "splits", tokens.splits)
        if not isinstance(self.img_size, int):
            object.__setattr__(self, "img_size", sides(self.img_size))
        for name, most in (
            ("embed_dim", MAX_WIDTH),
            ("depth", MAX_DEPTH),
            ("heads", MAX_WIDTH),
            ("channels", MAX_CHANNELS),
            ("num_classes", MAX_CLASSES),
        ):
            value = getattr(self, name)
            if not (whole(value) and 1 <= value <= most):
                raise InputError(f"{name}={value!r}; must be an int in 1..{most:,}")
        if self.embed_dim % self.heads:
            raise InputError(
                f"heads={self.heads} does not divide embed_dim={self.embed_dim}; change one"
            )
        if not (finite(self.mlp_ratio) and 1 <= self.mlp_ratio * self.embed_dim <= 8 * MAX_WIDTH):
            raise InputError(f"mlp_ratio={self.mlp_ratio!r}; 2 to 4 is usual")
        if self.qk_scale is not None and not (finite(self.qk_scale) and self.qk_scale > 0):
            raise InputError(f"qk_scale={self.qk_scale!r}; give None or a number above 0")
        if not (finite(self.drop_path) and 0 <= self.drop_path < 1):
            raise InputError(f"drop_path={self.drop_path!r}; must be in [0, 1)")
        if self.pos not in get_args(Positions):
            raise InputError(f"pos={self.pos!r}; choose sinusoid or learned")
        if not (finite(self.ema_decay) and 0 <= self.ema_decay < 1):
            raise InputError(f"ema_decay={self.ema_decay!r}; must be in [0, 1)")
        tokens.grids(*sides(self.img_size))

    @classmethod
    def preset(cls, name: str, *, released: bool = False) -> T2TViT:
        """A published model.

        Args:
            name: one of `PRESETS`.
            released: also what its released weights need: their scale of attention and arithmetic.

        Raises:
            InputError: for an unknown name.
        """
        if name not in PRESETS:
            raise InputError(f"no preset {name!r}; there are: {', '.join(PRESETS)}")
        method = PRESETS[name]
        if not released:
            return method
        # The wide model's released weights were trained with the scale of 512 channels.
        scale = 512 if name == "t2t-vit-14-wide" else method.embed_dim
        return replace(method, qk_scale=scale**-0.5, phi="compat")

    @property
    def tokens(self) -> Tokens:
        """The tokeniser's knobs alone."""
        return Tokens(
            self.splits,
            self.tokens_type,
            self.token_dim,
            self.kernel_ratio,
            self.phi,
            self.rows,
            self.token_dropout,
            self.start,
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens that the backbone sees."""
        return self.tokens.grids(*sides(self.img_size))[-1]

    @property
    def tokens_per_image(self) -> int:
        """Tokens that the backbone sees, CLS not counted."""
        return math.prod(self.grid)

    @property
    def mlp_width(self) -> int:
        """Hidden width of the backbone's MLPs."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def tokeniser_macs(self) -> int:
        """Multiply-adds of tokenising one image."""
        return self.tokens.macs(*sides(self.img_size), self.channels, self.embed_dim)

    @property
    def macs(self) -> int:
        """Multiply-adds of classifying one image; two FLOPs each."""
        length, dim = self.tokens_per_image + 1, self.embed_dim
        layer = length * (4 * dim * dim + 2 * dim * self.mlp_width) + 2 * length * length * dim
        return self.tokeniser_macs + self.depth * layer + dim * self.num_classes

    def fit_to(self, img_size: int | tuple[int, int]) -> T2TViT:
        """The same model for another image size."""
        return replace(self, img_size=img_size)

    def build(self) -> T2TViTForImageClassification:
        """A classifier with fresh weights: a transformers model, for Trainer and `save_pretrained`.

        Raises:
            DependencyError: without torch and transformers.
        """
        return _module().T2TViTForImageClassification(_module().T2TViTConfig.of(self))


def _module() -> Any:
    try:
        from outlay.vision.t2t_vit import model
    except ImportError as error:
        from outlay.errors import DependencyError

        raise DependencyError(
            f"T2T-ViT needs torch and transformers ({error}); pip install 'outlay[vision]'"
        ) from error
    return model


def _lite(depth: int) -> T2TViT:
    return T2TViT(embed_dim=256, depth=depth, heads=4, mlp_ratio=2.0)


_BASE = {
    "t2t-vit-14": T2TViT(),
    "t2t-vit-19": T2TViT(embed_dim=448, depth=19, heads=7),
    "t2t-vit-24": T2TViT(embed_dim=512, depth=24, heads=8),
}
PRESETS: dict[str, T2TViT] = {
    "t2t-vit-7": _lite(7),
    "t2t-vit-10": _lite(10),
    "t2t-vit-12": _lite(12),
    **_BASE,
    **{
        name.replace("vit", "vit-t"): replace(method, tokens_type="transformer")
        for name, method in _BASE.items()
    },
    "t2t-vit-14-wide": T2TViT(embed_dim=768, depth=4, heads=12),
    "t2t-vit-14-resnext": T2TViT(heads=32),
}
"""The published models by name."""
