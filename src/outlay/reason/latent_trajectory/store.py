"""Fitted methods on disk: one safetensors file of numbers, one JSON file of the rest; no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from outlay.errors import InputError, ModelError

NUMBERS, CONFIG = "latent_trajectory.safetensors", "latent_trajectory.json"
FORMAT = 1


@dataclass(frozen=True)
class Store:
    """How one of the methods is kept.

    Args:
        kind: which one.
        knobs: that a fit depends on, and brings along.
    """

    kind: str
    knobs: tuple[str, ...]

    def write(
        self, folder: str | Path, method: Any, record: Mapping[str, Any], arrays: Mapping[str, Any]
    ) -> Path:
        """Write a fitted method; returns the folder.

        Args:
            folder: where to.
            method: whose knobs are kept.
            record: the rest of its fit (JSON-ready).
            arrays: the fit's numbers.

        Raises:
            InputError: if the folder cannot be written to.
        """
        from safetensors.numpy import save_file

        base = Path(folder)
        knobs = {name: getattr(method, name) for name in self.knobs}
        whole = {"format": FORMAT, "kind": self.kind, "knobs": knobs, **record}
        try:
            base.mkdir(parents=True, exist_ok=True)
            save_file({name: np.asarray(values) for name, values in arrays.items()}, base / NUMBERS)
            (base / NUMBERS).chmod(0o644)  # the writer makes it private
            (base / CONFIG).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write to {base} ({error}); give another folder") from error
        return base

    def restore(self, method: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Set the knobs with which a method was fitted; the record and the arrays of its fit.

        Args:
            method: new, its `saved` the folder that `write` wrote.

        Raises:
            InputError: for a knob that was given and differs.
            ModelError: for a folder that holds no such method, or files that cannot be read.
        """
        record, arrays = self._read(Path(method.saved))
        defaults = {field.name: field.default for field in fields(method)}
        for name in self.knobs:
            try:
                value = record["knobs"][name]
            except (KeyError, TypeError) as error:
                raise ModelError(
                    f"saved={method.saved!r} lacks the knob {name}; fit again"
                ) from error
            value = tuple(value) if isinstance(value, list) else value
            given = getattr(method, name)
            if given not in (defaults[name], value):
                raise InputError(
                    f"{name}={given!r}, but saved={method.saved!r} was fitted with {value!r}; drop "
                    f"{name}, or fit again"
                )
            object.__setattr__(method, name, value)
        return record, arrays

    def _read(self, base: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            record = json.loads((base / CONFIG).read_text(encoding="utf-8"))
            arrays = load_file(base / NUMBERS)
            found = record["kind"]
            version = record["format"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ModelError(
                f"{base} holds no fitted method ({error!r}); fit one and save it there"
            ) from error
        if found != self.kind or version != FORMAT:
            raise ModelError(
                f"{base} holds {found!r} in format {version}; need {self.kind!r} in format {FORMAT}"
            )
        return record, arrays
