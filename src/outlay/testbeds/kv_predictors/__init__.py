"""Auxiliary and predictor of the embedded model, and the auxiliary trained by itself.

Trained by `python -m outlay.testbeds.kv_predictors --out DIR`; shipped with the package.

>>> from outlay.testbeds.kv_predictors import alone, checkpoint_path
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from outlay.errors import InputError, ModelError

_HERE = Path(__file__).parent
ALONE = "alone.safetensors"


def checkpoint_path() -> Path:
    """Folder of the shipped pair of the embedded model."""
    return _HERE / "smollm2"


def alone(base: Any, folder: str | Path | None = None) -> Any:
    """The shipped auxiliary's rival: the same layers, trained by itself on the same tokens.

    Args:
        base: the network that it was cut from.
        folder: a folder that the training command wrote; None is the shipped one.

    Raises:
        InputError: for another base.
        ModelError: if there is none.
    """
    import json

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from outlay.cache.kv_prediction.lora import Lora, merge
    from outlay.cache.kv_prediction.store import CONFIG, fingerprint
    from outlay.models.truncated import truncated

    home = checkpoint_path() if folder is None else Path(folder)
    try:
        record = json.loads((home / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(home / ALONE)
        keep, lora = record["keep"], Lora(**record["lora"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"{home} holds no auxiliary of its own ({error}); train it again"
        ) from error
    if record["base"] != fingerprint(base):
        raise InputError(f"the auxiliary in {home} was cut from another model; load that one")
    aux = truncated(base, keep)
    merge(aux, tensors, lora)
    return aux.requires_grad_(False)
