"""Moving cached keys to other positions: rotary embeddings compose.

A key that was rotated for position a and is turned by b - a is the key of position b, exactly, as
long as the frequencies do not change with the length of the text (serving-foundation sheet,
section 1). Whether a network's keys do turn so is not believed but tried: its own keys of one token
at two positions are compared, in every layer.

Shapes: B sequences, H key heads, N rows, D head width, F frequencies.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

from outlay.errors import CapabilityError

MOVING = ("dynamic", "longrope")  # tables that follow the length of the text
_APART = 7  # positions between the two keys that are compared
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}  # relative; half precision: 0.03
_checked: weakref.WeakKeyDictionary[Any, torch.Tensor] = weakref.WeakKeyDictionary()


def frequencies(network: Any) -> torch.Tensor:
    """Angles per position of a transformers causal LM, (F,) in fp32, checked on its own keys.

    Raises:
        CapabilityError: for frequencies that follow the length of the text, several tables, or
            keys that do not turn by them.
    """
    if network not in _checked:
        found_F = _table(network)
        _check(network, found_F)
        _checked[network] = found_F
    return _checked[network]


def turn(keys_BHND: torch.Tensor, cos_NF: torch.Tensor, sin_NF: torch.Tensor) -> torch.Tensor:
    """Keys turned by the angles of each row; dimensions beyond 2 F stay. Computed in fp32."""
    half = cos_NF.shape[-1]
    low, high, rest = keys_BHND.float().split([half, half, keys_BHND.shape[-1] - 2 * half], dim=-1)
    turned = (low * cos_NF - high * sin_NF, high * cos_NF + low * sin_NF, rest)
    return torch.cat(turned, dim=-1).to(keys_BHND.dtype)


def angles(shift_N: torch.Tensor, frequency_F: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, (N, F), that move a key by `shift_N` positions."""
    angle_NF = shift_N[:, None].to(frequency_F) * frequency_F
    return angle_NF.cos(), angle_NF.sin()


def _table(network: Any) -> torch.Tensor:
    name = type(network).__name__
    tables = [
        module
        for module in network.modules()
        if isinstance(getattr(module, "inv_freq", None), torch.Tensor)
    ]
    if not tables:
        raise CapabilityError(
            f"{name} has no rotary table, so its keys cannot move to other positions; "
            "use rotate='absolute'"
        )
    for module in tables:
        kind = getattr(module, "rope_type", "default")
        if kind in MOVING:
            raise CapabilityError(
                f"{name} has rotary scaling {kind!r}, whose frequencies follow the length of the "
                "text, so that cached keys cannot be moved; use rotate='absolute', or a model "
                "with default, linear or llama3 frequencies"
            )
    first_F = tables[0].inv_freq.float()
    if any(not torch.equal(first_F, module.inv_freq.float()) for module in tables[1:]):
        raise CapabilityError(
            f"{name} has several rotary tables, one per kind of layer; use rotate='absolute'"
        )
    return first_F


@torch.inference_mode()
def _check(network: Any, frequency_F: torch.Tensor) -> None:
    """One token at two positions: without a context its keys differ by a rotation alone."""
    from transformers.cache_utils import DynamicCache

    device = network.device
    cache = DynamicCache(config=network.config)
    ids_BT = torch.full(
        (2, 1), int(network.config.get_text_config().vocab_size) // 2, device=device
    )
    position_BT = torch.tensor([[0], [_APART]], device=device)
    network(ids_BT, cache=cache, position_ids=position_BT, use_cache=True)
    for index, layer in enumerate(cache.layers):
        near_BHND, far_BHND = layer.keys[:1].float(), layer.keys[1:].float()
        if 2 * len(frequency_F) <= near_BHND.shape[-1]:
            shift_N = torch.tensor([_APART], device=near_BHND.device)
            moved_BHND = turn(near_BHND, *angles(shift_N, frequency_F.to(near_BHND.device)))
            worst = float(
                (moved_BHND - far_BHND).abs().max() / far_BHND.abs().max().clamp_min(1e-9)
            )
            if worst <= _TOLERANCE.get(layer.keys.dtype, 0.03):
                continue
        raise CapabilityError(
            f"the keys of layer {index} of {type(network).__name__} do not turn with their "
            "position as rotate_half does, so they cannot be moved; use rotate='absolute'"
        )
