"""Low-rank updates of a network's linear layers: trained beside frozen weights, merged for use.

Shapes: I inputs, O outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from outlay.errors import InputError, ModelError


class LowRankLinear(nn.Module):
    """A frozen linear layer plus `up @ down`; it starts as the layer itself.

    Args:
        linear: the layer.
        rank: R.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        device = linear.weight.device
        self.down_RI = nn.Parameter(torch.empty((rank, linear.in_features), device=device))
        self.up_OR = nn.Parameter(torch.zeros((linear.out_features, rank), device=device))
        nn.init.normal_(self.down_RI, std=linear.in_features**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., I) to (..., O)."""
        out: torch.Tensor = self.linear(x)
        return out + F.linear(F.linear(x, self.down_RI), self.up_OR)


def _linears(network: Any) -> list[tuple[str, nn.Linear]]:
    head = network.get_output_embeddings()
    return [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    ]


def _vectors(network: Any) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in network.named_parameters() if p.ndim == 1]


def attach(network: Any, rank: int) -> list[nn.Parameter]:
    """Freeze `network`, put a `LowRankLinear` around every linear layer but the head.

    Returns:
        What may be trained: the updates, and the norms' vectors.

    Raises:
        InputError: unless rank >= 1.
    """
    if rank < 1:
        raise InputError(f"rank={rank}; must be >= 1")
    network.requires_grad_(False)
    trained: list[nn.Parameter] = []
    for name, linear in _linears(network):
        wrapped = LowRankLinear(linear, rank)
        network.set_submodule(name, wrapped)
        trained += [wrapped.down_RI, wrapped.up_OR]
    for _, vector in _vectors(network):
        vector.requires_grad_(True)
        trained.append(vector)
    return trained


def extract(network: Any) -> dict[str, torch.Tensor]:
    """The trained parts of an attached network, in bf16: `<layer>.down`, `<layer>.up`, vectors."""
    state: dict[str, torch.Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, LowRankLinear):
            state[f"{name}.down"] = module.down_RI.detach()
            state[f"{name}.up"] = module.up_OR.detach()
    for name, vector in _vectors(network):
        state[name] = vector.detach()
    return {name: each.to("cpu", torch.bfloat16).contiguous() for name, each in state.items()}


@torch.no_grad()
def merge(network: Any, state: Mapping[str, torch.Tensor]) -> None:
    """Add stored updates to the weights of a network without adapters, in place.

    Raises:
        ModelError: if names or shapes do not fit the network.
    """
    linears, vectors = dict(_linears(network)), dict(_vectors(network))
    wanted = {f"{name}.{part}" for name in linears for part in ("down", "up")} | set(vectors)
    if wanted != set(state):
        odd = sorted(wanted ^ set(state))[:3]
        raise ModelError(
            f"the stored draft does not fit this model: {', '.join(odd)} are on one side only; "
            "train one for it with outlay.testbeds.drafts"
        )
    for name, linear in linears.items():
        up_OR, down_RI = state[f"{name}.up"], state[f"{name}.down"]
        shape = (up_OR.shape[0], down_RI.shape[-1])
        if shape != tuple(linear.weight.shape) or up_OR.shape[1] != down_RI.shape[0]:
            raise ModelError(
                f"the stored draft's update of {name} is for weights {shape}, the model has "
                f"{tuple(linear.weight.shape)}; train one for it with outlay.testbeds.drafts"
            )
        update_OI = up_OR.float() @ down_RI.float()
        linear.weight += update_OI.to(linear.weight.device, linear.weight.dtype)
    for name, vector in vectors.items():
        if state[name].shape != vector.shape:
            raise ModelError(f"the stored draft's {name} has shape {tuple(state[name].shape)}")
        vector.copy_(state[name].to(vector.device, vector.dtype))
