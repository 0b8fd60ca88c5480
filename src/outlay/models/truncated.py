"""Shallower copies of a model: some of its layers, everything else shared in value.

The base of drafts (speculative decoding) and of auxiliaries (predicted caches): the same tokenizer,
embeddings, final norm and head, fewer layers. Serving-foundation sheet, section 4.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from outlay.errors import CapabilityError, InputError
from outlay.models.trail import decoder_layers


def spread(layers: int, keep: int) -> tuple[int, ...]:
    """`keep` of `layers` indices, evenly spread, the first and the last among them.

    Raises:
        InputError: unless 1 <= keep <= layers.
    """
    if not 1 <= keep <= layers:
        raise InputError(f"keep={keep}; must be between 1 and the model's {layers} layers")
    if keep == 1:
        return (0,)
    return tuple(round(i * (layers - 1) / (keep - 1)) for i in range(keep))


def truncated(network: Any, keep: Sequence[int]) -> Any:
    """A copy of a transformers causal LM with only the layers `keep`, in eval mode.

    Args:
        network: the model.
        keep: indices of layers, strictly increasing.

    Raises:
        CapabilityError: if the decoder layers are not found.
        InputError: for indices that are out of range or not increasing.
    """
    config = network.config.get_text_config()
    total = int(config.num_hidden_layers)
    if decoder_layers(network.base_model, total) is None:
        raise CapabilityError(
            f"{type(network).__name__} does not show its decoder layers; truncate another model"
        )
    chosen = [int(index) for index in keep]
    if not chosen or chosen != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= total:
        raise InputError(
            f"keep={list(keep)}; give increasing layer indices between 0 and {total - 1}"
        )
    smaller = copy.deepcopy(config)
    smaller.num_hidden_layers = len(chosen)
    if getattr(config, "layer_types", None):
        smaller.layer_types = [config.layer_types[index] for index in chosen]
    prefix = _prefix(network, total)
    place = {f"{prefix}.{old}.": f"{prefix}.{new}." for new, old in enumerate(chosen)}
    state: dict[str, torch.Tensor] = {}
    for name, tensor in network.state_dict().items():
        if not name.startswith(f"{prefix}."):
            state[name] = tensor
            continue
        head = f"{prefix}.{name.removeprefix(f'{prefix}.').split('.')[0]}."
        if head in place:
            state[place[head] + name.removeprefix(head)] = tensor
    fresh = type(network)(smaller)
    for name, parameter in fresh.named_parameters():  # buffers, such as rotary tables, stay as made
        parameter.data = parameter.data.to(state[name].dtype)
    fresh.load_state_dict(state)
    fresh.generation_config = copy.deepcopy(network.generation_config)
    return fresh.to(network.device).eval()


def _prefix(network: Any, total: int) -> str:
    layers = decoder_layers(network.base_model, total)
    for name, module in network.named_modules():
        if layers is not None and len(layers) and module is layers[0]:
            return str(name).rsplit(".", 1)[0]
    raise CapabilityError(f"{type(network).__name__} does not name its decoder layers")
