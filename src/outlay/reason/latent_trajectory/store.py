"""Fitted weights on disk: one safetensors file of numbers, one JSON file of the rest; no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from outlay.errors import InputError, ModelError

NUMBERS, CONFIG = "latent_trajectory.safetensors", "latent_trajectory.json"
FORMAT = 1


def write(
    folder: str | Path, kind: str, record: Mapping[str, Any], arrays: Mapping[str, Any]
) -> Path:
    """Write a fitted method; returns the folder."""
    from safetensors.numpy import save_file

    base = Path(folder)
    try:
        base.mkdir(parents=True, exist_ok=True)
        save_file({name: np.asarray(values) for name, values in arrays.items()}, base / NUMBERS)
        (base / NUMBERS).chmod(0o644)  # the writer makes it private
        whole = {"format": FORMAT, "kind": kind, **record}
        (base / CONFIG).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write to {base} ({error}); give another folder") from error
    return base


def read_record(folder: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `write` wrote: the record and the arrays.

    Raises:
        ModelError: for a folder that holds no such method, or files that cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    base = Path(folder)
    try:
        record = json.loads((base / CONFIG).read_text(encoding="utf-8"))
        arrays = load_file(base / NUMBERS)
        found = record["kind"]
        version = record["format"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"{base} holds no fitted method ({error!r}); fit one and save it there"
        ) from error
    if found != kind or version != FORMAT:
        raise ModelError(
            f"{base} holds {found!r} in format {version}; need {kind!r} in format {FORMAT}"
        )
    return record, arrays
