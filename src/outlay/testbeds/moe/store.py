"""The routers' files: one bf16 tensor of all layers, checked when read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from outlay.errors import InputError, ModelError

if TYPE_CHECKING:
    import torch

SHIPPED = (16, 48)
"""Numbers of experts that a trained router ships for."""
KEY = "router_LEC"
_HERE = Path(__file__).parent / "routers"


def file_name(experts: int) -> str:
    """Name of the file of a router over so many experts."""
    return f"experts-{experts}.safetensors"


def router_path(experts: int) -> Path:
    """Where the shipped router over so many experts lies.

    Raises:
        ModelError: if none ships.
    """
    path = _HERE / file_name(experts)
    if experts not in SHIPPED or not path.is_file():
        raise ModelError(
            f"no trained router for {experts} experts; shipped are {SHIPPED}: choose one of them, "
            "router='random', or train one with 'python -m outlay.testbeds.moe'"
        )
    return path


def write_router(path: str | Path, router_LEC: torch.Tensor) -> Path:
    """Save a router in bf16."""
    import torch
    from safetensors.torch import save_file

    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    save_file({KEY: router_LEC.to("cpu", torch.bfloat16).contiguous()}, place)
    place.chmod(0o644)
    return place


def read_router(path: str | Path, *, layers: int, experts: int, width: int) -> torch.Tensor:
    """A router's weights, router_LEC, in fp32.

    Raises:
        ModelError: if the file is missing, damaged, or of another model.
        InputError: for numbers that are not finite.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path} cannot be read as a router ({error}); install outlay again, or train one with "
            "'python -m outlay.testbeds.moe'"
        ) from error
    if set(found) != {KEY}:
        raise ModelError(f"{path} holds {sorted(found)}, expected the one tensor {KEY}")
    router_LEC = found[KEY].float()
    if tuple(router_LEC.shape) != (layers, experts, width):
        raise ModelError(
            f"{path} has shape {tuple(router_LEC.shape)}, this model needs "
            f"({layers}, {experts}, {width}); choose the router of the same model"
        )
    if not torch.isfinite(router_LEC).all():
        raise InputError(f"{path} holds numbers that are not finite; train the router again")
    return router_LEC
