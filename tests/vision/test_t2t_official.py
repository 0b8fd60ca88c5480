"""Weights in the released layout: the same logits as a plain reading of the released arithmetic.

No released file is at hand; state dicts of its names and shapes are drawn at random, and
`_reference` computes what the released code does with them, one operation after the other.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from outlay.errors import InputError, ModelError
from outlay.vision.t2t_vit import T2TViT
from outlay.vision.t2t_vit.official import load_official, read, renamed
from outlay.vision.t2t_vit.positions import resize_positions, sinusoid_table
from outlay.vision.t2t_vit.tokens import TokensType

DIM, DEPTH, HEADS, WIDE, CLASSES, C, M = 12, 2, 3, 24, 5, 6, 3
TINY = T2TViT(
    token_dim=C,
    embed_dim=DIM,
    depth=DEPTH,
    heads=HEADS,
    mlp_ratio=2.0,
    img_size=32,
    num_classes=CLASSES,
    qk_scale=DIM**-0.5,
    phi="compat",
)


def _state(kind: TokensType, tokens: int = 4) -> dict[str, Tensor]:
    """Random weights with the released names and shapes."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, DIM)}

    def linear(name: str, out: int, wide: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (out, wide)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def norm(name: str, dim: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (dim,)

    root = "tokens_to_token"
    if kind == "conv":
        for index, (channels, kernel) in enumerate(((3, 7), (C, 3))):
            shapes[f"{root}.soft_split{index}.weight"] = (C, channels, kernel, kernel)
            shapes[f"{root}.soft_split{index}.bias"] = (C,)
        shapes[f"{root}.project.weight"] = (DIM, C, 3, 3)
        shapes[f"{root}.project.bias"] = (DIM,)
    else:
        for index, wide in ((1, 147), (2, 9 * C)):
            name = f"{root}.attention{index}"
            norm(f"{name}.norm1", wide)
            norm(f"{name}.norm2", C)
            if kind == "performer":
                shapes[f"{name}.w"] = (M, C)
                linear(f"{name}.kqv", 3 * C, wide)
                linear(f"{name}.proj", C, C)
                linear(f"{name}.mlp.0", C, C)
                linear(f"{name}.mlp.2", C, C)
            else:
                linear(f"{name}.attn.qkv", 3 * C, wide, bias=False)
                linear(f"{name}.attn.proj", C, C)
                linear(f"{name}.mlp.fc1", C, C)
                linear(f"{name}.mlp.fc2", C, C)
        linear(f"{root}.project", DIM, 9 * C)
    for index in range(DEPTH):
        name = f"blocks.{index}"
        norm(f"{name}.norm1", DIM)
        norm(f"{name}.norm2", DIM)
        linear(f"{name}.attn.qkv", 3 * DIM, DIM, bias=False)
        linear(f"{name}.attn.proj", DIM, DIM)
        linear(f"{name}.mlp.fc1", WIDE, DIM)
        linear(f"{name}.mlp.fc2", DIM, WIDE)
    norm("norm", DIM)
    linear("head", CLASSES, DIM)
    state = {
        name: 0.3 * torch.randn(shape, generator=generator) + ("norm" in name)
        for name, shape in shapes.items()
    }
    return {**state, "pos_embed": sinusoid_table(tokens + 1, DIM)}


def _reference(state: dict[str, Tensor], images: Tensor, kind: TokensType) -> Tensor:
    """Logits, by the released arithmetic."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def features(u: Tensor, w: Tensor) -> Tensor:
        return torch.exp(u @ w.T - (u * u).sum(-1, keepdim=True) / 2) / math.sqrt(len(w))

    def block(name: str, x: Tensor) -> Tensor:
        wide, x = x.shape[-1], norm(f"{name}.norm1", x)
        if kind == "performer":
            k, q, v = linear(f"{name}.kqv", x).split(C, -1)
            k, q = features(k, state[f"{name}.w"]), features(q, state[f"{name}.w"])
            weights = q @ k.transpose(1, 2)
            mixed = weights @ v / (weights.sum(-1, keepdim=True) + 1e-8)
            x = v + linear(f"{name}.proj", mixed)
            inner = linear(f"{name}.mlp.0", norm(f"{name}.norm2", x))
            return x + linear(f"{name}.mlp.2", F.gelu(inner))
        q, k, v = linear(f"{name}.attn.qkv", x).split(C, -1)
        mixed = (q * wide**-0.5 @ k.transpose(1, 2)).softmax(-1) @ v
        x = v + linear(f"{name}.attn.proj", mixed)
        inner = linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x))
        return x + linear(f"{name}.mlp.fc2", F.gelu(inner))

    def attended(name: str, x: Tensor) -> Tensor:
        count, length, _ = x.shape
        parts = linear(f"{name}.qkv", x).reshape(count, length, 3, HEADS, DIM // HEADS)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-2, -1) * DIM**-0.5).softmax(-1) @ v
        return linear(f"{name}.proj", mixed.transpose(1, 2).reshape(count, length, DIM))

    root = "tokens_to_token"
    if kind == "conv":
        x = images
        for name, stride, padding in (("soft_split0", 4, 2), ("soft_split1", 2, 1)):
            weight, bias = state[f"{root}.{name}.weight"], state[f"{root}.{name}.bias"]
            x = F.conv2d(x, weight, bias, stride, padding)
        weight, bias = state[f"{root}.project.weight"], state[f"{root}.project.bias"]
        x = F.conv2d(x, weight, bias, 2, 1).flatten(2).transpose(1, 2)
    else:
        x = F.unfold(images, 7, stride=4, padding=2).transpose(1, 2)
        for index in (1, 2):
            x = block(f"{root}.attention{index}", x)
            side = math.isqrt(x.shape[1])
            x = x.transpose(1, 2).reshape(len(x), C, side, side)
            x = F.unfold(x, 3, stride=2, padding=1).transpose(1, 2)
        x = linear(f"{root}.project", x)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    for index in range(DEPTH):
        name = f"blocks.{index}"
        x = x + attended(f"{name}.attn", norm(f"{name}.norm1", x))
        hidden = F.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x)))
        x = x + linear(f"{name}.mlp.fc2", hidden)
    return linear("head", norm("norm", x)[:, 0])


@pytest.mark.parametrize("kind", ["performer", "transformer", "conv"])
def test_released_weights_give_the_released_logits(kind: TokensType) -> None:
    state = _state(kind)
    model = load_official(state, replace(TINY, tokens_type=kind))
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        made = model(images).logits
    wanted = _reference(state, images, kind)
    assert torch.allclose(made, wanted, atol=1e-5)
    assert wanted.std() > 0.1
    assert not model.training


def test_without_the_released_scale_the_logits_differ() -> None:
    state, images = _state("performer"), torch.randn(3, 3, 32, 32)
    model = load_official(state, replace(TINY, qk_scale=None))
    assert not torch.allclose(model(images).logits, _reference(state, images, "performer"), 1e-3)


def test_published_presets_have_the_released_names_and_shapes() -> None:
    """The names of a whole published model: every one of ours is filled."""
    for name, kind in (("t2t-vit-7", "performer"), ("t2t-vit-t-14", "transformer")):
        method = T2TViT.preset(name, released=True)
        with torch.device("meta"):
            own = method.build().state_dict()
        layers = {key: key.split(".")[1] for key in _state(kind) if key.startswith("blocks.1.")}
        given = {key: torch.empty(3, 1) for key in _state(kind)}
        for key in layers:
            for index in range(method.depth):
                given[key.replace("blocks.1.", f"blocks.{index}.")] = torch.empty(3, 1)
        assert renamed(given).keys() == own.keys()


# -- files ----------------------------------------------------------------------------------------


def test_files_hold_a_state_dict_or_a_checkpoint_with_averaged_weights(tmp_path: Path) -> None:
    state, images = _state("performer"), torch.randn(1, 3, 32, 32)
    other = {name: value + 1 for name, value in state.items()}
    other["pos_embed"] = state["pos_embed"]
    prefixed = {f"module.{name}": value for name, value in state.items()}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(prefixed, tmp_path / "b.pth")
    torch.save(
        {"state_dict": other, "state_dict_ema": state, "args": argparse.Namespace(lr=1.0)},
        tmp_path / "c.pth.tar",
    )
    wanted = _reference(state, images, "performer")
    for name in ("a.safetensors", "b.pth", "c.pth.tar"):
        made = load_official(tmp_path / name, TINY)(images).logits
        assert torch.allclose(made, wanted, atol=1e-5)
    last = load_official(tmp_path / "c.pth.tar", TINY, ema=False)(images).logits
    assert not torch.allclose(last, wanted, atol=1e-2)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code was run')",))


def test_files_that_hold_more_than_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": _state("conv"), "more": _Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match="cannot be read as tensors"):
        read(tmp_path / "evil.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ModelError, match="holds no state dict"):
        read(tmp_path / "empty.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="holds no state dict"):
        read(tmp_path / "list.pth")
    (tmp_path / "text.safetensors").write_text("nothing")
    for name in ("text.safetensors", "missing.pth"):
        with pytest.raises(ModelError, match="cannot be read as tensors"):
            read(tmp_path / name)


# -- what does not fit ----------------------------------------------------------------------------


def test_another_number_of_tokens_needs_resize_pos() -> None:
    state = _state("performer", tokens=9)  # of an image of 48 pixels
    with pytest.raises(InputError, match=r"for 9 tokens an image, the method has 4 .*resize_pos"):
        load_official(state, TINY)
    model = load_official(state, TINY, resize_pos=True)
    wanted = resize_positions(state["pos_embed"], (3, 3), (2, 2))
    assert torch.equal(model.vit.embeddings.position_embeddings, wanted)
    state["pos_embed"] = torch.zeros(1, 8, DIM)
    with pytest.raises(InputError, match="no square grid"):
        load_official(state, TINY, resize_pos=True)


def test_another_number_of_classes_keeps_a_fresh_head() -> None:
    method = replace(TINY, num_classes=7)
    with pytest.warns(UserWarning, match="a head of 5 classes, the method num_classes=7"):
        model = load_official(_state("performer"), method)
    assert model.classifier.out_features == 7


def test_weights_of_another_model_are_refused() -> None:
    state = _state("performer")
    with pytest.raises(InputError, match=r"do not fit the method: missing .*check depth"):
        load_official(state, replace(TINY, depth=3))
    with pytest.raises(InputError, match=r"unknown .*check depth, tokens_type"):
        load_official(state, replace(TINY, tokens_type="transformer"))
    with pytest.raises(InputError, match=r"has shape .*check embed_dim, mlp_ratio"):
        load_official(state, replace(TINY, mlp_ratio=3.0))
    with pytest.raises(InputError, match="check embed_dim"):
        load_official(state, replace(TINY, kernel_ratio=1.0))
