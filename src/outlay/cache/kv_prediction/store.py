"""Saved predictors: safetensors and JSON, without the base.

What is stored is the predictor and what makes the auxiliary out of the base: the layers that it
keeps and its low-rank additions, or, where all its weights are its own, the auxiliary itself in a
folder `aux/`. A fingerprint of the base's embeddings tells whose it is.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from outlay.cache.kv_prediction.lora import Lora, assign, factors, merge
from outlay.cache.kv_prediction.model import KVPredictionModel, Origin
from outlay.errors import InputError, ModelError, OutlayError
from outlay.models.truncated import truncated

FORMAT = 1
WEIGHTS, CONFIG, AUX = "predictor.safetensors", "predictor.json", "aux"
_ROWS = 64  # of the embedding, in the fingerprint
_PREDICTOR, _LORA = "predictor.", "lora."


def fingerprint(network: Any) -> int:
    """A checksum of a network's first embeddings, the same in fp32 and bf16."""
    rows_VC = network.get_input_embeddings().weight[:_ROWS].detach()
    return zlib.crc32(rows_VC.to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy())


def save(
    model: KVPredictionModel,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write auxiliary and predictor to a folder; returns it.

    Args:
        model: the pair.
        folder: made if need be.
        dtype: of the stored tensors; None keeps theirs.
        about: how it was trained, JSON-ready.
    """
    base = Path(folder)
    base.mkdir(parents=True, exist_ok=True)
    tensors = {_PREDICTOR + name: t for name, t in model.predictor.state_dict().items()}
    origin = model.origin
    if origin.lora is not None:
        tensors |= {_LORA + name: t for name, t in factors(model.aux).items()}
    elif not origin.frozen:
        model.aux.save_pretrained(base / AUX)
    stored = {n: t.detach().to(dtype or t.dtype).cpu().contiguous() for n, t in tensors.items()}
    save_file(stored, base / WEIGHTS)
    (base / WEIGHTS).chmod(0o644)  # the writer makes it private; packages need it read
    record = {
        "format": FORMAT,
        "base": fingerprint(model.base),
        "layer_map": list(model.predictor.layer_map),
        "identity": model.predictor.identity,
        "keep": None if origin.keep is None else list(origin.keep),
        "lora": None if origin.lora is None else {"r": origin.lora.r, "alpha": origin.lora.alpha},
        "frozen": origin.frozen,
        "about": dict(about or {}),
    }
    (base / CONFIG).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return base


def load(folder: str | Path, base: Any) -> KVPredictionModel:
    """Read what `save` wrote, for the base that it was trained with; nothing is trainable.

    Raises:
        InputError: for another base.
        ModelError: for a folder without a predictor, or with one that cannot be used.
    """
    home = Path(folder)
    try:
        record = json.loads((home / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(home / WEIGHTS)
        if record["format"] != FORMAT:
            raise ModelError(f"{home} has format {record['format']}; this version reads {FORMAT}")
        lora = None if record["lora"] is None else Lora(**record["lora"])
        keep = None if record["keep"] is None else tuple(record["keep"])
        origin = Origin(keep, lora, bool(record["frozen"]))
        layer_map, identity = tuple(record["layer_map"]), int(record["identity"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, OutlayError):
            raise
        raise ModelError(
            f"{home} holds no predictor that can be read ({error!r}); train one with "
            "python -m outlay.testbeds.kv_predictors"
        ) from error
    layers = int(base.config.get_text_config().num_hidden_layers)
    if len(layer_map) != layers or record["base"] != fingerprint(base):
        raise InputError(
            f"the predictor in {home} was trained for another base model than this "
            f"{type(base).__name__} of {layers} layers; load that one, or train a predictor"
        )
    aux = _aux(home, base, origin, tensors)
    model = KVPredictionModel(base, aux, layer_map, origin=origin, identity=identity)
    own = _under(_PREDICTOR, tensors)
    _check(home, model.predictor.state_dict(), own)
    model.predictor.load_state_dict(own)
    return model.to(base.dtype).requires_grad_(False).eval()


def restore(model: KVPredictionModel, folder: str | Path) -> None:
    """Set a pair that is in training to what `save` wrote of it.

    Raises:
        ModelError: for a folder that holds no such pair.
    """
    home = Path(folder)
    try:
        tensors = load_file(home / WEIGHTS)
        if model.origin.lora is None and not model.origin.frozen:
            model.aux.load_state_dict(load_file(home / AUX / "model.safetensors"), strict=False)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{home} holds no checkpoint of this pair ({error})") from error
    own = _under(_PREDICTOR, tensors)
    _check(home, model.predictor.state_dict(), own)
    model.predictor.load_state_dict(own)
    if model.origin.lora is not None:
        assign(model.aux, _under(_LORA, tensors))


def _aux(home: Path, base: Any, origin: Origin, tensors: Mapping[str, torch.Tensor]) -> Any:
    if origin.keep is not None and (origin.lora is not None or origin.frozen):
        aux = truncated(base, origin.keep)
        if origin.lora is not None:
            merge(aux, _under(_LORA, tensors), origin.lora)
        return aux
    from transformers import AutoModelForCausalLM

    try:
        aux = AutoModelForCausalLM.from_pretrained(home / AUX, dtype=base.dtype)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{home / AUX} holds no auxiliary that can be read; save it again"
        ) from error
    return aux.to(base.device).eval()


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _check(
    home: Path, wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]
) -> None:
    if missing := sorted(set(wanted) ^ set(found)):
        raise ModelError(f"{home} and the base's layers differ in {missing[0]}; train it again")
    for name, tensor in wanted.items():
        if tensor.shape != found[name].shape:
            raise ModelError(
                f"{name} in {home} has shape {tuple(found[name].shape)}, base and auxiliary need "
                f"{tuple(tensor.shape)}; train it for this base"
            )
        if not bool(torch.isfinite(found[name]).all()):
            raise ModelError(f"{name} in {home} is not finite; train it with a smaller lr")
