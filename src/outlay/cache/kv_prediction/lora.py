"""A cheap way to train the auxiliary: low-rank additions to its linear layers, through peft.

Trained with peft, stored as plain factors, and merged on loading, so that reading a prompt needs no
peft and costs nothing more.

Shapes: R rank, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from outlay.errors import DependencyError, InputError, ModelError

_NAME = "default"
_A, _B = f".lora_A.{_NAME}.weight", f".lora_B.{_NAME}.weight"


@dataclass(frozen=True)
class Lora:
    """Low-rank additions to all linear layers of the auxiliary.

    Args:
        r: rank.
        alpha: scale; what is added is multiplied by alpha / r.

    Raises:
        InputError: for values below 1.
    """

    r: int = 16
    alpha: int = 32

    def __post_init__(self) -> None:
        if self.r < 1 or self.alpha < 1:
            raise InputError(f"r={self.r}, alpha={self.alpha}; both must be at least 1")


def attach(aux: nn.Module, lora: Lora) -> None:
    """Freeze `aux` and give its linear layers trainable additions (fp32), in place.

    Raises:
        DependencyError: without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise DependencyError(
            f"low-rank training needs peft ({error}); pip install 'outlay[train]'"
        ) from error
    body: Any = aux.base_model
    names = sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, part in body.named_modules()
            if isinstance(part, nn.Linear)
        }
    )
    aux.requires_grad_(False)
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=names)
    inject_adapter_in_model(config, aux, adapter_name=_NAME)
    for parameter in aux.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def factors(aux: nn.Module) -> dict[str, torch.Tensor]:
    """The factors of an auxiliary that `attach` prepared: module name + ".A" (RI) or ".B" (OR)."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in aux.state_dict().items():
        for ending, letter in ((_A, ".A"), (_B, ".B")):
            if name.endswith(ending):
                found[name.removesuffix(ending) + letter] = tensor.detach()
    return found


@torch.no_grad()
def assign(aux: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Set the factors of an auxiliary that `attach` prepared, in place.

    Raises:
        ModelError: for other factors than it has.
    """
    mine = factors(aux)
    if mine.keys() != tensors.keys() or any(mine[n].shape != tensors[n].shape for n in mine):
        raise ModelError("the stored additions fit other layers or another rank than these")
    for name, tensor in mine.items():
        tensor.copy_(tensors[name])


@torch.no_grad()
def merge(aux: nn.Module, tensors: Mapping[str, torch.Tensor], lora: Lora) -> None:
    """Add stored factors to the weights of a plain auxiliary, in place.

    Raises:
        ModelError: for factors of modules that it does not have, or of another shape.
    """
    modules = dict(aux.named_modules())
    for name in sorted({key.rsplit(".", 1)[0] for key in tensors}):
        part = modules.get(name)
        weight_OI = getattr(part, "weight", None)
        a_RI, b_OR = tensors.get(f"{name}.A"), tensors.get(f"{name}.B")
        if weight_OI is None or a_RI is None or b_OR is None:
            raise ModelError(f"the additions to {name!r} fit no layer of the auxiliary; save again")
        if (*b_OR.shape, *a_RI.shape) != (weight_OI.shape[0], lora.r, lora.r, weight_OI.shape[1]):
            raise ModelError(
                f"the additions to {name!r} have shapes {tuple(b_OR.shape)} and "
                f"{tuple(a_RI.shape)}, its weights {tuple(weight_OI.shape)}; train for this base"
            )
        scale = lora.alpha / lora.r
        change_OI = scale * b_OR.float().to(weight_OI.device) @ a_RI.float().to(weight_OI.device)
        weight_OI.add_(change_OI.to(weight_OI.dtype))
