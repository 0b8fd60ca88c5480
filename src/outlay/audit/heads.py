"""The two matching heads: do tokens belong to a block, and does a block belong to the answer?

`p = sigmoid(w * cos(M u, M v) + b)` with a linear map M that both sides share and w > 0 (the layers
are ours; the paper's head is a cosine on a fine-tuned encoder). Scoring needs numpy alone.

Shapes: N pairs, D embedding size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from outlay.audit.fingerprints import Vectors
from outlay.audit.verifiers import Track, Verifier
from outlay.errors import InputError, ModelError

Scores = npt.NDArray[np.float64]
WEIGHTS, SETTINGS = "heads.safetensors", "heads.json"
_FOLDER = "heads-"  # and the block size


def cosine(left_ND: Vectors, right_ND: Vectors) -> Scores:
    """(N,) cosines of rows."""
    left, right = np.asarray(left_ND, np.float64), np.asarray(right_ND, np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines: Scores = (left * right).sum(axis=1) / np.maximum(norms, 1e-12)
    return cosines


def sigmoid(values: Scores) -> Scores:
    """1 / (1 + exp(-x)), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * values)), np.float64)


@dataclass(frozen=True)
class Head:
    """One matching head.

    Args:
        map_DD: the shared linear map.
        scale: w, above 0.
        bias: b.

    Raises:
        ModelError: for a map that is not square, or a scale that is not above 0.
    """

    map_DD: Vectors = field(repr=False)
    scale: float
    bias: float

    def __post_init__(self) -> None:
        if self.map_DD.ndim != 2 or self.map_DD.shape[0] != self.map_DD.shape[1]:
            raise ModelError(f"a head's map has the shape {self.map_DD.shape}; it must be square")
        if not self.scale > 0:
            raise ModelError(f"a head's scale is {self.scale}; it must be above 0")

    def __call__(self, left_ND: Vectors, right_ND: Vectors) -> Scores:
        """(N,) probabilities that the pairs match."""
        mapped = cosine(left_ND @ self.map_DD.T, right_ND @ self.map_DD.T)
        return sigmoid(self.scale * mapped + self.bias)


@dataclass(frozen=True)
class Heads:
    """What an audit judges content with.

    Args:
        tokens: Tokens-to-Block.
        answer: Block-to-Answer.
        verifiers: by name.
        thresholds: of each head, for the rule and its per-block false-alarm rate.
        about: how they were made and calibrated.
    """

    tokens: Head
    answer: Head
    verifiers: Mapping[str, Verifier] = field(default_factory=dict, repr=False)
    thresholds: tuple[float, float] = (0.5, 0.5)
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def dimension(self) -> int:
        """Size of the embeddings that the heads read."""
        return int(self.tokens.map_DD.shape[0])

    def save(self, folder: Path) -> None:
        """Write `heads.safetensors` and `heads.json`."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            "tokens.map": self.tokens.map_DD.astype(np.float32),
            "answer.map": self.answer.map_DD.astype(np.float32),
        }
        for name, verifier in self.verifiers.items():
            for key, value in verifier.weights.items():
                arrays[f"{name}.{key}"] = value.astype(np.float32)
        arrays = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
        save_file(arrays, folder / WEIGHTS)
        (folder / WEIGHTS).chmod(0o644)
        settings = {
            "tokens": [self.tokens.scale, self.tokens.bias],
            "answer": [self.answer.scale, self.answer.bias],
            "thresholds": list(self.thresholds),
            "verifiers": {
                name: {
                    "kind": each.kind,
                    "prior": list(each.prior),
                    "honest": _track_json(each.honest),
                    "padded": _track_json(each.padded),
                }
                for name, each in self.verifiers.items()
            },
            "about": dict(self.about),
        }
        (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path | None = None, *, block: int = 32) -> Heads:
        """The heads of a folder; None is those that come with the package for a block size.

        Raises:
            InputError: if none come for this block size.
            ModelError: if the folder holds no heads that can be read.
        """
        home = shipped(block) if folder is None else Path(folder)
        try:
            from safetensors.numpy import load_file

            arrays = load_file(home / WEIGHTS)
            settings = json.loads((home / SETTINGS).read_text(encoding="utf-8"))
            verifiers = {}
            for name, row in settings["verifiers"].items():
                prefix = f"{name}."
                weights = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
                verifiers[name] = Verifier(
                    row["kind"],
                    weights,
                    _read_track(row["honest"]),
                    _read_track(row["padded"]),
                    (row["prior"][0], row["prior"][1]),
                )
            return cls(
                Head(arrays["tokens.map"], *settings["tokens"]),
                Head(arrays["answer.map"], *settings["answer"]),
                verifiers,
                (float(settings["thresholds"][0]), float(settings["thresholds"][1])),
                settings["about"],
            )
        except (OSError, KeyError, TypeError, ValueError, InputError) as error:
            raise ModelError(
                f"{home} holds no matching heads ({type(error).__name__}: {error}); make them "
                "with: python -m outlay.testbeds.coin --out DIR"
            ) from error


def _track_json(track: Track | None) -> dict[str, list[float]] | None:
    if track is None:
        return None
    return {
        name: [round(value, 6) for value in getattr(track, name)]
        for name in ("means", "spreads", "extremes")
    }


def _read_track(row: Any) -> Track | None:
    if row is None:
        return None
    return Track(tuple(row["means"]), tuple(row["spreads"]), tuple(row["extremes"]))


def shipped(block: int) -> Path:
    """The folder of the heads that come with the package for blocks of so many tokens.

    Raises:
        InputError: for a block size that none were calibrated for.
    """
    home = Path(__file__).parent.parent / "testbeds" / "coin"
    found = home / f"{_FOLDER}{block}"
    if not found.is_dir():
        sizes = sorted(int(each.name.removeprefix(_FOLDER)) for each in home.glob(f"{_FOLDER}*"))
        raise InputError(
            f"block={block}: the package has heads for blocks of "
            f"{' or '.join(map(str, sizes))} tokens. Agree on one of these, or calibrate your own "
            f"with: python -m outlay.testbeds.coin --block {block} --out DIR, and give heads=DIR"
        )
    return found
