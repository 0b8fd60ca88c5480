"""The seer as a model that answers questions about pictures: `outlay ... --model seer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from outlay.errors import InputError
from outlay.models.sight import SightModel
from outlay.testbeds.seer.model import Seer
from outlay.testbeds.seer.questions import EOS, Question, decode
from outlay.testbeds.seer.store import load


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size that nobody drew here: (B, H, W, 3) bytes."""

    images: np.ndarray
    patch: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.images.shape[1], self.images.shape[2]


def open_seer(spec: str = "seer") -> SightModel:
    """The seer behind a model's spec.

    Args:
        spec: "seer", or "seer/SIZE" with one of the sizes for single pictures: S, M, HR.

    Raises:
        InputError: for size V, which takes clips, or an unknown size.
        ModelError: if that size does not ship.
    """
    size = spec.partition("/")[2] or "S"
    if size == "V":
        raise InputError("seer/V reads clips and has no single pictures; choose seer/S, /M or /HR")
    seer = load(size)
    return SightModel(
        seer.model,
        lambda images, question: encode(seer, images, question),
        lambda ids: " ".join(decode(ids)),
        spec,
        eos=(EOS,),
    )


def encode(seer: Seer, images: Sequence[Any], question: str) -> Mapping[str, Any]:
    """Inputs for one picture and a question in the seer's words.

    Raises:
        InputError: for several pictures, a size that it does not see, or unknown words.
    """
    if len(images) != 1:
        raise InputError(f"{len(images)} pictures; a seer of size {seer.size.name} sees one")
    seen = Pictures(np.asarray(images[0])[None], seer.size.patch)
    words = tuple(question.lower().replace("?", " ").split())
    asked = Question("", words, ())
    return seer.inputs(cast(Any, seen), [asked])
