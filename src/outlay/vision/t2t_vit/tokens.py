"""Geometry and cost of a tokeniser: windows, token counts, multiply-adds. No torch here.

A split (k, s, p) cuts a map into k x k windows, s apart, with p zeros around the map; every window
becomes a token. The product of all s is the total stride: a side of H pixels gives H / stride
tokens.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

from outlay.errors import InputError

Split = tuple[int, int, int]
TokensType = Literal["performer", "transformer", "conv", "patch"]
Phi = Literal["stable", "compat"]
Rows = Literal["sqrt_m", "sqrt_c"]
Start = Literal["released", "fan_in"]

SPLITS: tuple[Split, ...] = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
"""The paper's, for 224 pixels: total stride 16."""
SPLITS_MEDIUM: tuple[Split, ...] = ((7, 4, 2), (3, 2, 1))
"""For 64 to 112 pixels: total stride 8."""
SPLITS_SMALL: tuple[Split, ...] = ((3, 2, 1), (3, 2, 1))
"""For 28 to 32 pixels: total stride 4."""

MAX_SPLITS = 8
MAX_KERNEL = 64
MAX_WIDTH = 16_384
MAX_SIDE = 8_192
MAX_TOKENS = 2**18
"""Of the first split of one image."""


def splits_for(side: int) -> tuple[Split, ...]:
    """Splits for square images of that side: total stride 4 below 64 pixels, 8 to 112, else 16."""
    if side < 64:
        return SPLITS_SMALL
    return SPLITS_MEDIUM if side <= 112 else SPLITS


def sides(img_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image size that may be one number.

    Raises:
        InputError: unless both are integers in 1..8192.
    """
    pair = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(pair) != 2 or not all(whole(side) and 1 <= side <= MAX_SIDE for side in pair):
        raise InputError(
            f"img_size={img_size!r}; give one side or (height, width) in 1..{MAX_SIDE:,}"
        )
    return pair[0], pair[1]


def whole(value: object) -> bool:
    """Whether a value is an int and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def finite(value: object) -> bool:
    """Whether a value is a finite number and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Tokens:
    """How an image becomes tokens.

    Args:
        splits: (kernel, stride, padding) of every split (section 3.1).
        tokens_type: what is between splits: "performer" or "transformer" attention over the
            tokens, "conv" (every split is a convolution), or "patch" (one convolution whose
            kernel is the total stride: plain patch embedding).
        token_dim: channels c between splits.
        kernel_ratio: random features of the performer as a share of token_dim.
        phi: "stable" (no overflow, no fading), or "compat": the released code's arithmetic.
        rows: length of the performer's random rows: "sqrt_m" as released, or "sqrt_c", as long as
            Gaussian rows, whose features estimate exp(q k).
        dropout: in the performer's blocks, in training only; the released code always has it.
        start: spread of the linear layers' initial weights: "released" (what the model around it
            gives all of its own, .02), or "fan_in" (1 / sqrt(inputs), ours), with which the tokens
            of small tokenisers do not start far below the positions that are added to them.

    Raises:
        InputError: for a knob out of its range.
    """

    splits: tuple[Split, ...] = SPLITS
    tokens_type: TokensType = "performer"
    token_dim: int = 64
    kernel_ratio: float = 0.5
    phi: Phi = "stable"
    rows: Rows = "sqrt_m"
    dropout: float = 0.1
    start: Start = "released"

    def __post_init__(self) -> None:
        object.__setattr__(self, "splits", _checked(self.splits))
        for name, kind in (
            ("tokens_type", TokensType),
            ("phi", Phi),
            ("rows", Rows),
            ("start", Start),
        ):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise InputError(f"{name}={getattr(self, name)!r}; choose one of: {known}")
        if not (whole(self.token_dim) and 1 <= self.token_dim <= MAX_WIDTH):
            raise InputError(f"token_dim={self.token_dim!r}; must be an int in 1..{MAX_WIDTH:,}")
        if not (finite(self.kernel_ratio) and 0 < self.kernel_ratio <= 16):
            raise InputError(f"kernel_ratio={self.kernel_ratio!r}; must be in (0, 16]")
        if self.features < 1:
            raise InputError(
                f"kernel_ratio={self.kernel_ratio} x token_dim={self.token_dim} gives no random "
                "feature; raise one of them so that the product is at least 1"
            )
        if not (finite(self.dropout) and 0 <= self.dropout < 1):
            raise InputError(f"dropout={self.dropout!r}; must be in [0, 1)")

    @property
    def stride(self) -> int:
        """Pixels between final tokens, in each direction."""
        return math.prod(stride for _, stride, _ in self.splits)

    @property
    def features(self) -> int:
        """Random features m of the performer."""
        return int(self.token_dim * self.kernel_ratio)

    def widths(self, channels: int) -> tuple[int, ...]:
        """Length of a token right after every split."""
        first, *later = (kernel * kernel for kernel, _, _ in self.splits)
        return (channels * first, *(self.token_dim * area for area in later))

    def grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """Rows and columns of tokens after every split.

        Raises:
            InputError: unless both sides are multiples of the total stride, or for more than
                262,144 tokens after the first split.
        """
        stride = self.stride
        if height < 1 or width < 1 or height % stride or width % stride:
            raise InputError(
                f"an image of {height} x {width} pixels cannot be cut with a total stride of "
                f"{stride} (splits={self.splits}); resize or pad both sides to multiples of it"
            )
        found, shape = [], (height, width)
        for kernel, step, padding in self.splits:
            shape = (
                (shape[0] + 2 * padding - kernel) // step + 1,
                (shape[1] + 2 * padding - kernel) // step + 1,
            )
            found.append(shape)
        first = found[0][0] * found[0][1]
        if first > MAX_TOKENS and self.tokens_type != "patch":
            raise InputError(
                f"{height} x {width} pixels give {first:,} tokens after the first split; at most "
                f"{MAX_TOKENS:,}: use a larger stride in splits, or smaller images"
            )
        return tuple(found)

    def counts(self, height: int, width: int) -> tuple[int, ...]:
        """Tokens after every split."""
        return tuple(rows * columns for rows, columns in self.grids(height, width))

    def macs(self, height: int, width: int, channels: int, embed_dim: int) -> int:
        """Multiply-adds of tokenising one image, to tokens of `embed_dim` channels.

        Matrix products only, as `torch.utils.flop_counter` counts them.
        """
        counts, dim = self.counts(height, width), self.token_dim
        if self.tokens_type == "patch":
            return counts[-1] * channels * self.stride**2 * embed_dim
        outs = (*(dim for _ in counts[1:]), embed_dim)
        if self.tokens_type == "conv":
            return sum(
                count * wide * out
                for count, wide, out in zip(counts, self.widths(channels), outs, strict=True)
            )
        total = counts[-1] * self.widths(channels)[-1] * embed_dim
        for count, wide in zip(counts[:-1], self.widths(channels)[:-1], strict=True):
            total += count * (3 * wide * dim + 3 * dim * dim)  # q, k, v; projection and MLP
            if self.tokens_type == "transformer":
                total += 2 * count * count * dim
            else:  # features of q and k, keys with values, queries with both, denominator
                total += count * self.features * (4 * dim + 1)
        return total


def _checked(splits: Any) -> tuple[Split, ...]:
    """The splits as tuples of ints, or why they cannot be used."""
    try:
        made = tuple(tuple(split) for split in splits)
    except TypeError:
        made = ()
    if not 1 <= len(made) <= MAX_SPLITS or any(len(split) != 3 for split in made):
        raise InputError(
            f"splits={splits!r}; give 1 to {MAX_SPLITS} triples (kernel, stride, padding)"
        )
    for kernel, stride, padding in made:
        shown = f"({kernel}, {stride}, {padding})"
        if not all(whole(value) for value in (kernel, stride, padding)):
            raise InputError(f"splits has {shown}; kernel, stride and padding are ints")
        if not (1 <= kernel <= MAX_KERNEL and 1 <= stride <= MAX_KERNEL and padding >= 0):
            raise InputError(
                f"splits has {shown}; kernel and stride must be in 1..{MAX_KERNEL}, padding >= 0"
            )
        if not kernel - stride <= 2 * padding < kernel:
            least, most = max(0, -(-(kernel - stride) // 2)), (kernel - 1) // 2
            raise InputError(
                f"splits has {shown}: a side H would not give H / {stride} windows; use a padding "
                f"of {least}" + (f" to {most}" if most > least else "")
            )
        if stride > kernel:
            warnings.warn(
                f"splits has {shown}: a stride above the kernel leaves holes that no token sees",
                stacklevel=4,
            )
    return made
