"""T2T-ViT's geometry: counts, windows, costs, and what is refused."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from outlay.errors import InputError
from outlay.vision.t2t_vit import PRESETS, T2TViT, Tokens, splits_for
from outlay.vision.t2t_vit.tokeniser import Tokeniser, unfold
from outlay.vision.t2t_vit.tokens import MAX_SIDE, SPLITS, SPLITS_MEDIUM, SPLITS_SMALL, TokensType

TYPES: tuple[TokensType, ...] = ("performer", "transformer", "conv", "patch")
SMALL = Tokens(SPLITS_SMALL, token_dim=6)


def _macs(module: torch.nn.Module, *shape: int) -> int:
    """As torch counts them, attention included."""
    module.eval()
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
        torch.no_grad(),
    ):
        module(torch.zeros(shape))
    return counter.get_total_flops() // 2


# -- counts ---------------------------------------------------------------------------------------


def test_an_image_of_224_pixels_has_3136_then_784_then_196_tokens() -> None:
    assert Tokens().counts(224, 224) == (3136, 784, 196)
    assert Tokens().widths(3) == (147, 576, 576)
    assert T2TViT.preset("t2t-vit-14").tokens_per_image == 196


@settings(max_examples=25)
@given(
    st.lists(
        st.integers(1, 4).flatmap(
            lambda s: st.integers(1, 7).flatmap(
                lambda k: st.sampled_from(
                    [(k, s, p) for p in range(k) if k - s <= 2 * p < k] or [(s, s, 0)]
                )
            )
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 6),
    st.integers(1, 6),
)
def test_every_side_that_the_total_stride_divides_gives_side_over_stride(
    splits: list[tuple[int, int, int]], rows: int, columns: int
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of holes
        tokens = Tokens(tuple(splits))
    height, width = rows * tokens.stride, columns * tokens.stride
    assert tokens.grids(height, width)[-1] == (rows, columns)
    shape = (height, width)
    x = torch.zeros(1, 1, height, width)
    for split, grid in zip(tokens.splits, tokens.grids(height, width), strict=True):
        made = unfold(x, split)
        assert made.shape[1] == math.prod(grid)
        assert grid == tuple(
            math.floor((side + 2 * split[2] - split[0]) / split[1] + 1) for side in shape
        )
        shape, x = grid, torch.zeros(1, 1, *grid)


@pytest.mark.parametrize("kind", TYPES)
def test_rectangles_keep_rows_and_columns_apart(kind: TokensType) -> None:
    module = Tokeniser(replace(SMALL, tokens_type=kind), 3, 10, (16, 28)).eval()
    assert (module.grid_size, module.num_patches, module.img_size) == ((4, 7), 28, (16, 28))
    x = torch.randn(2, 3, 16, 28)
    tokens = module(x)
    assert tokens.shape == (2, 28, 10)
    turned = Tokeniser(replace(SMALL, tokens_type=kind), 3, 10, (28, 16)).eval()
    assert turned(x.transpose(2, 3)).shape == (2, 28, 10)


def test_default_splits_follow_the_side() -> None:
    assert [splits_for(side) for side in (28, 32, 64, 112, 224)] == [
        SPLITS_SMALL,
        SPLITS_SMALL,
        SPLITS_MEDIUM,
        SPLITS_MEDIUM,
        SPLITS,
    ]
    assert [Tokens(splits_for(side)).stride for side in (28, 64, 224)] == [4, 8, 16]


# -- windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [(7, 4, 2), (3, 2, 1), (4, 4, 0), (5, 3, 1)])
def test_a_token_is_its_padded_window_channel_by_channel(split: tuple[int, int, int]) -> None:
    kernel, stride, padding = split
    x = torch.randn(2, 3, 4 * stride, 3 * stride)
    made = unfold(x, split)
    padded = torch.zeros(2, 3, x.shape[2] + 2 * padding, x.shape[3] + 2 * padding)
    padded[:, :, padding : padding + x.shape[2], padding : padding + x.shape[3]] = x
    for row in range(4):
        for column in range(3):
            wanted = []
            for channel in range(3):
                for ky in range(kernel):
                    for kx in range(kernel):
                        y, x_ = row * stride + ky, column * stride + kx
                        wanted.append(padded[:, channel, y, x_])
            assert torch.equal(made[:, row * 3 + column], torch.stack(wanted, dim=-1))


def test_one_convolution_without_overlap_is_plain_patch_embedding() -> None:
    conv = Tokeniser(Tokens(((4, 4, 0),), "conv"), 3, 10, 28)
    patch = Tokeniser(Tokens(((4, 4, 0),), "patch"), 3, 10, 28)
    patch.load_state_dict(conv.state_dict())
    x = torch.randn(2, 3, 28, 28)
    assert torch.equal(conv(x), patch(x))
    split = Tokeniser(Tokens(((4, 4, 0),), "transformer"), 3, 10, 28)
    split.projection.weight.data.copy_(conv.projection.weight.flatten(1))
    split.projection.bias.data.copy_(conv.projection.bias)
    assert torch.allclose(split(x), patch(x), atol=1e-6)


def test_swapping_two_regions_changes_only_tokens_that_see_them() -> None:
    """Convolutions see windows of windows: 7 pixels of every token's own square and around it."""
    module = Tokeniser(Tokens(SPLITS_SMALL, "conv", 6), 1, 8, 32).double().eval()
    x = torch.randn(1, 1, 32, 32, dtype=torch.float64)
    swapped = x.clone()
    swapped[..., 0:4, 0:4], swapped[..., 28:32, 28:32] = x[..., 28:32, 28:32], x[..., 0:4, 0:4]
    changed = (module(swapped) - module(x)).abs().amax(-1).reshape(8, 8) > 0
    # Token (r, c) sees pixels 4r - 3 .. 4r + 3 of the rows, and so of the columns.
    seen = torch.zeros(8, 8, dtype=torch.bool)
    for row in range(8):
        for column in range(8):
            rows, columns = (range(4 * at - 3, 4 * at + 4) for at in (row, column))
            seen[row, column] = any(
                set(rows) & set(part) and set(columns) & set(part)
                for part in (range(4), range(28, 32))
            )
    assert torch.equal(changed, seen)


@pytest.mark.parametrize("kind", ["performer", "transformer"])
def test_attention_between_splits_sees_the_whole_image(kind: TokensType) -> None:
    module = Tokeniser(Tokens(SPLITS_SMALL, kind, 6), 1, 8, 32).double().eval()
    x = torch.randn(1, 1, 32, 32, dtype=torch.float64)
    other = x.clone()
    other[..., :4, :4] += 1
    assert ((module(other) - module(x)).abs().amax(-1) > 0).all()


# -- costs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("splits", "size"), [(SPLITS_SMALL, (28, 28)), (SPLITS, (32, 48))])
def test_multiply_adds_are_those_that_torch_counts(
    kind: TokensType, splits: tuple[tuple[int, int, int], ...], size: tuple[int, int]
) -> None:
    method = T2TViT(
        splits=splits,
        tokens_type=kind,
        token_dim=8,
        embed_dim=24,
        depth=2,
        heads=3,
        img_size=size,
        num_classes=5,
    )
    tokeniser = Tokeniser(method.tokens, 3, 24, size)
    assert _macs(tokeniser, 1, 3, *size) == method.tokeniser_macs
    assert _macs(method.build(), 1, 3, *size) == method.macs


def test_the_performer_is_linear_in_the_number_of_tokens_and_the_transformer_is_not() -> None:
    performer, transformer = (
        Tokeniser(Tokens(SPLITS_SMALL, kind, 8), 1, 8, 32)  # type: ignore[arg-type]
        for kind in ("performer", "transformer")
    )
    assert _macs(performer, 1, 1, 64, 64) == 4 * _macs(performer, 1, 1, 32, 32)
    assert _macs(transformer, 1, 1, 64, 64) > 8 * _macs(transformer, 1, 1, 32, 32)


PUBLISHED = {  # parameters in millions, multiply-adds in billions
    "t2t-vit-7": (4.3, 1.1),
    "t2t-vit-10": (5.9, 1.5),
    "t2t-vit-12": (6.9, 1.8),
    "t2t-vit-14": (21.5, 4.8),
    "t2t-vit-19": (39.2, 8.5),
    "t2t-vit-24": (64.1, 13.8),
    "t2t-vit-t-14": (21.5, 6.1),
    "t2t-vit-t-19": (39.2, 9.8),
    "t2t-vit-t-24": (64.1, 15.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_size_and_cost(name: str) -> None:
    """The published sizes count the fixed position table and the performer's random rows."""
    method = PRESETS[name]
    with torch.device("meta"):
        size = sum(value.numel() for value in method.build().state_dict().values())
    assert size / 1e6 == pytest.approx(PUBLISHED[name][0], rel=0.01)
    assert method.macs / 1e9 == pytest.approx(PUBLISHED[name][1], abs=0.05, rel=0.015)


def test_the_fixed_table_is_why_a_larger_image_means_more_parameters() -> None:
    with torch.device("meta"):
        model = PRESETS["t2t-vit-14"].fit_to(384).build()
    size = sum(value.numel() for value in model.state_dict().values())
    assert size / 1e6 == pytest.approx(21.7, abs=0.05)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"splits": ()}, "1 to 8 triples"),
        ({"splits": ((3, 2),)}, "1 to 8 triples"),
        ({"splits": 5}, "1 to 8 triples"),
        ({"splits": ((3, 2, 1),) * 9}, "1 to 8 triples"),
        ({"splits": ((3, -2, 1),)}, r"\(3, -2, 1\); kernel and stride must be in 1..64"),
        ({"splits": ((0, 1, 0),)}, "kernel and stride must be in 1..64"),
        ({"splits": ((3, 2, -1),)}, "padding >= 0"),
        ({"splits": ((3, 2, 1.0),)}, "are ints"),
        ({"splits": ((True, 2, 1),)}, "are ints"),
        ({"splits": ((7, 4, 0),)}, "use a padding of 2 to 3"),
        ({"splits": ((3, 2, 2),)}, "use a padding of 1"),
        ({"splits": ((3, 2, 0),)}, r"a side H would not give H / 2 windows"),
        ({"tokens_type": "convolution"}, "choose one of: performer, transformer, conv, patch"),
        ({"phi": "relu"}, "choose one of: stable, compat"),
        ({"rows": "sqrt"}, "choose one of: sqrt_m, sqrt_c"),
        ({"start": "xavier"}, "choose one of: released, fan_in"),
        ({"token_dim": 0}, "token_dim=0"),
        ({"token_dim": True}, "token_dim=True"),
        ({"kernel_ratio": 0}, "kernel_ratio=0"),
        ({"kernel_ratio": math.nan}, "kernel_ratio=nan"),
        ({"kernel_ratio": 0.1, "token_dim": 4}, "gives no random feature"),
        ({"dropout": 1.0}, r"dropout=1.0; must be in \[0, 1\)"),
    ],
)
def test_knobs_of_the_tokeniser_that_cannot_be(knobs: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Tokens(**knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"img_size": 230}, "multiples of it"),
        ({"img_size": 0}, "img_size=0"),
        ({"img_size": (224, 230)}, "224 x 230 pixels cannot be cut with a total stride of 16"),
        ({"img_size": (224, 224, 3)}, "img_size="),
        ({"img_size": MAX_SIDE + 16}, "img_size=8208"),
        ({"heads": 5}, "heads=5 does not divide embed_dim=384"),
        ({"heads": 0}, "heads=0"),
        ({"depth": 0}, "depth=0"),
        ({"depth": 10**6}, "depth=1000000"),
        ({"embed_dim": -1}, "embed_dim=-1"),
        ({"channels": 0}, "channels=0"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"mlp_ratio": 0}, "mlp_ratio=0"),
        ({"mlp_ratio": math.inf}, "mlp_ratio=inf"),
        ({"qk_scale": 0.0}, "qk_scale=0.0"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
        ({"pos": "rotary"}, "choose sinusoid or learned"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"kernel_ratio": 0.01}, "gives no random feature"),
    ],
)
def test_knobs_of_the_model_that_cannot_be(knobs: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        T2TViT(**knobs)  # type: ignore[arg-type]


def test_too_many_tokens_are_refused_before_memory_is_taken() -> None:
    with pytest.raises(InputError, match="at most 262,144"):
        T2TViT(splits=((3, 2, 1),) * 4, img_size=8192)


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="no preset 't2t-vit-15'; there are: t2t-vit-7"):
        T2TViT.preset("t2t-vit-15")


def test_holes_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="leaves holes that no token sees"):
        Tokens(((2, 4, 0),))


@pytest.mark.parametrize(
    ("pixels", "match"),
    [
        (torch.zeros(3, 28, 28), "give a tensor"),
        (torch.zeros(0, 3, 28, 28), "holds no image"),
        (torch.zeros(1, 3, 28, 28, dtype=torch.uint8), "torch.uint8; scale them to floats first"),
        (torch.zeros(1, 1, 28, 28), "has 1 channels, the tokeniser 3"),
        (torch.zeros(1, 3, 28, 30), "28 x 30 pixels cannot be cut with a total stride of 4"),
        ([[1.0]], "give a tensor"),
    ],
)
def test_pixels_that_cannot_be_used(pixels: torch.Tensor, match: str) -> None:
    with pytest.raises(InputError, match=match):
        Tokeniser(SMALL, 3, 8, 28)(pixels)


def test_the_knobs_need_no_torch() -> None:
    code = (
        "import sys, outlay.vision.t2t_vit as t; t.T2TViT.preset('t2t-vit-14').macs; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
