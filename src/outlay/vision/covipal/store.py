"""Trained pruning modules on disk: safetensors and JSON, bound to the model they were made for.

A fingerprint samples every weight of the model, in bf16, so that a model loaded in another
precision is still itself and another model (or a fine-tuned one) is not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from outlay.errors import InputError, ModelError, OutlayError
from outlay.vision.covipal.ppm import PPM, Shape

FORMAT = 1
WEIGHTS, CONFIG = "ppm.safetensors", "ppm.json"
SAMPLED = 64  # numbers of every weight in the fingerprint
MAX_MODULES = 64
# Of each model: its weights' versions, and the fingerprint that they had.


@dataclass(frozen=True)
class Trained:
    """Pruning modules by the layer before which they work.

    Args:
        ppms: layer -> module.
        guidance_layer: l_g that they were taught by.
        model: fingerprint of their model.
        model_id: its name, for people.
        ratios: lowest and highest reserve ratio of their training.
        calibration: reserve ratio -> accuracy on validation data; may be empty.
        about: how they were trained, JSON-ready.
    """

    ppms: Mapping[int, PPM]
    guidance_layer: int
    model: str
    model_id: str = ""
    ratios: tuple[float, float] = (0.1, 0.75)
    calibration: Mapping[float, float] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def check(self, model: Any) -> None:
        """Refuse another model than theirs.

        Raises:
            InputError: if the fingerprints differ.
        """
        if (found := fingerprint(model)) != self.model:
            raise InputError(
                f"this pruning module was trained for {self.model_id or 'a model'} with "
                f"fingerprint {self.model[:12]}, and this {type(model).__name__} has "
                f"{found[:12]}; load that model, or fit CoViPAL on this one"
            )


@torch.no_grad()
def fingerprint(model: Any) -> str:
    """SHA-256 over names, shapes and evenly spaced values of all weights."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        flat = weight.detach().reshape(-1)
        at = torch.linspace(0, len(flat) - 1, min(SAMPLED, len(flat)), device=flat.device).long()
        some = flat[at].to(torch.bfloat16).cpu().contiguous()
        digest.update(some.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def save(trained: Trained, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write modules to a folder; returns it.

    Args:
        trained: the modules.
        folder: made if need be.
        dtype: of the stored tensors; None keeps theirs.
    """
    base = Path(folder)
    base.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{layer}.{name}": tensor.detach().to(dtype or tensor.dtype).cpu().contiguous()
        for layer, ppm in trained.ppms.items()
        for name, tensor in ppm.state_dict().items()
    }
    save_file(tensors, base / WEIGHTS)
    (base / WEIGHTS).chmod(0o644)  # the writer makes it private; packages need it read
    record = {
        "format": FORMAT,
        "model": trained.model,
        "model_id": trained.model_id,
        "guidance_layer": trained.guidance_layer,
        "ratios": list(trained.ratios),
        "modules": {str(layer): asdict(ppm.shape) for layer, ppm in trained.ppms.items()},
        "calibration": {str(ratio): value for ratio, value in trained.calibration.items()},
        "about": dict(trained.about),
    }
    (base / CONFIG).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return base


def load(folder: str | Path, model: Any = None) -> Trained:
    """Read what `save` wrote; nothing is trainable.

    Args:
        folder: where.
        model: checked, if given.

    Raises:
        InputError: for another model.
        ModelError: for a folder without modules, or with ones that cannot be used.
    """
    home = Path(folder)
    try:
        record = json.loads((home / CONFIG).read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ModelError(f"{home} has format {record['format']}; this version reads {FORMAT}")
        shapes = {int(layer): Shape(**shape) for layer, shape in record["modules"].items()}
        if not 1 <= len(shapes) <= MAX_MODULES:
            raise ModelError(f"{home} names {len(shapes)} modules; need 1 to {MAX_MODULES}")
        tensors = load_file(home / WEIGHTS)
        ppms = {layer: _built(home, layer, shape, tensors) for layer, shape in shapes.items()}
        low, high = record["ratios"]
        trained = Trained(
            ppms,
            int(record["guidance_layer"]),
            str(record["model"]),
            str(record["model_id"]),
            (float(low), float(high)),
            {float(ratio): float(value) for ratio, value in record["calibration"].items()},
            dict(record["about"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        detail = str(error) if isinstance(error, OutlayError) else repr(error)
        raise ModelError(
            f"{home} holds no pruning module that can be read ({detail}); train one with "
            "CoViPAL(...).fit, and save it"
        ) from error
    if model is not None:
        trained.check(model)
    return trained


def _built(home: Path, layer: int, shape: Shape, tensors: Mapping[str, torch.Tensor]) -> PPM:
    ppm = PPM(shape)
    for name, wanted in ppm.state_dict().items():
        found = tensors.get(f"{layer}.{name}")
        if found is None or found.shape != wanted.shape:
            has = "is missing" if found is None else f"has shape {tuple(found.shape)}"
            raise ModelError(
                f"{name} of layer {layer} in {home} {has}; {CONFIG} wants {tuple(wanted.shape)}"
            )
        if not bool(torch.isfinite(found).all()):
            raise ModelError(f"{name} of layer {layer} in {home} is not finite; train it again")
        wanted.copy_(found)  # from half precision, where it was stored so
    return ppm.requires_grad_(False).eval()
