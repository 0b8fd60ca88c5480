"""Weights in the released code's layout, into our models.

Only tensors are read: safetensors, or PyTorch files through `weights_only`. The names differ, the
arithmetic does not, as long as the model has the scale of attention and `phi` of the released one:
`T2TViT.preset(name, released=True)`.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outlay.errors import InputError, ModelError
from outlay.vision.t2t_vit.method import T2TViT
from outlay.vision.t2t_vit.model import T2TViTForImageClassification
from outlay.vision.t2t_vit.positions import resize_positions

MAX_BYTES = 4 * 2**30

_EMBED = "vit.embeddings"
_TOKENISER = f"{_EMBED}.patch_embeddings"
_PARTS = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"}
_OTHERS = {
    "cls_token": f"{_EMBED}.cls_token",
    "pos_embed": f"{_EMBED}.position_embeddings",
    "norm.weight": "vit.layernorm.weight",
    "norm.bias": "vit.layernorm.bias",
    "head.weight": "classifier.weight",
    "head.bias": "classifier.bias",
}
_POSITIONS = _OTHERS["pos_embed"]


def load_official(
    source: str | Path | Mapping[str, Tensor],
    method: T2TViT,
    *,
    ema: bool = True,
    resize_pos: bool = False,
) -> T2TViTForImageClassification:
    """A model with weights that the released code saved.

    Args:
        source: a `.safetensors` or PyTorch file, or a state dict.
        method: the model; `T2TViT.preset(name, released=True)` for a published one.
        ema: take the averaged weights where a file holds both.
        resize_pos: interpolate the position table to the method's image size.

    Raises:
        InputError: for a state dict that does not fit the method: other names, shapes, or another
            number of tokens without `resize_pos`.
        ModelError: for a file that cannot be read as tensors.
    """
    given = source if isinstance(source, Mapping) else read(source, ema)
    model = method.build()
    own = model.state_dict()
    state = renamed(given)
    _fit_positions(state, own, method, resize_pos)
    head = "classifier.weight"
    if head in state and state[head].shape != own[head].shape:
        warnings.warn(
            f"the weights have a head of {len(state[head])} classes, the method num_classes="
            f"{method.num_classes}; the head stays fresh",
            stacklevel=2,
        )
        state.update({name: own[name] for name in (head, "classifier.bias")})
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        raise InputError(
            f"the weights do not fit the method: missing {missing[:3]}, unknown {unknown[:3]} "
            f"({len(missing)} and {len(unknown)} in all); check depth, tokens_type and splits"
        )
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise InputError(
                f"{name} has shape {tuple(value.shape)}, the method needs "
                f"{tuple(own[name].shape)}; check embed_dim, mlp_ratio, token_dim and kernel_ratio"
            )
    model.load_state_dict(state)
    return model.eval()


def read(path: str | Path, ema: bool = True) -> dict[str, Tensor]:
    """The state dict of a file.

    Args:
        path: `.safetensors`, or a PyTorch file of a state dict or of a training checkpoint.
        ema: of a training checkpoint, the averaged weights where there are some.

    Raises:
        ModelError: if the file is missing, larger than 4 GiB, or holds no tensors by name.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise ModelError(f"{file} has {size:,} bytes; at most {MAX_BYTES:,} are read")
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        # Checkpoints of the released trainer hold their command line: a Namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            data: Any = torch.load(file, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{file} cannot be read as tensors ({type(error).__name__}: {str(error)[:200]}); give "
            "a .safetensors file, or a PyTorch file that holds nothing but tensors"
        ) from error
    if isinstance(data, dict):
        keys = ("state_dict_ema", "state_dict") if ema else ("state_dict", "state_dict_ema")
        data = next((data[key] for key in keys if isinstance(data.get(key), dict)), data)
    if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in data.values()):
        raise ModelError(f"{file} holds no state dict: no tensors by name, and no 'state_dict'")
    return data


def renamed(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The released code's names to ours; the joint query, key and value weights are split.

    Names that are not the released code's stay as they are.
    """
    state: dict[str, Tensor] = {}
    for full, value in given.items():
        name = full.removeprefix("module.")
        if found := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", name):
            for part, third in zip("qkv", value.chunk(3), strict=True):
                state[f"vit.layers.{found[1]}.attention.{part}_proj.{found[2]}"] = third.clone()
        elif found := re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name):
            state[f"vit.layers.{found[1]}.{_PARTS.get(found[2], found[2])}.{found[3]}"] = value
        elif found := re.fullmatch(r"tokens_to_token\.project\.(weight|bias)", name):
            state[f"{_TOKENISER}.projection.{found[1]}"] = value
        elif found := re.fullmatch(r"tokens_to_token\.attention(\d+)\.(.+)", name):
            inner = found[2].removeprefix("attn.").replace("mlp.0.", "mlp.fc1.")
            inner = inner.replace("mlp.2.", "mlp.fc2.")
            state[f"{_TOKENISER}.blocks.{int(found[1]) - 1}.{inner}"] = value
        elif found := re.fullmatch(r"tokens_to_token\.soft_split(\d+)\.(weight|bias)", name):
            state[f"{_TOKENISER}.blocks.{found[1]}.{found[2]}"] = value
        else:
            state[_OTHERS.get(name, name)] = value
    return state


def _fit_positions(
    state: dict[str, Tensor], own: Mapping[str, Tensor], method: T2TViT, resize_pos: bool
) -> None:
    """Bring the position table to the method's grid, if that is allowed."""
    table = state.get(_POSITIONS)
    if table is None or table.ndim != 3 or table.shape[1] == own[_POSITIONS].shape[1]:
        return
    count, side = table.shape[1] - 1, round((table.shape[1] - 1) ** 0.5)
    if not resize_pos:
        raise InputError(
            f"the weights are for {count} tokens an image, the method has "
            f"{method.tokens_per_image} (img_size={method.img_size}); pass resize_pos=True, or "
            "build the method with the weights' image size"
        )
    if side * side != count:
        raise InputError(
            f"the weights' {count} positions are no square grid; load them at their own image size "
            "and call model.resize"
        )
    state[_POSITIONS] = resize_positions(table, (side, side), method.grid)
