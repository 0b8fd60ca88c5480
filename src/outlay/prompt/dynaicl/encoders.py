"""Texts as vectors of length one, for the controller and for choosing demonstrations.

- `minilm`: all-MiniLM-L6-v2, a sentence encoder (384 numbers).
- `hash`: counts of one to three neighbouring characters, hashed into 512 places; needs no model.
- anything else: a sentence-transformers model, by folder or id.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from outlay.errors import InputError
from outlay.models.encoders import unit_vectors

FloatArray = npt.NDArray[np.float64]
HASH_SIZE = 512


def encode(name: str, texts: Sequence[str]) -> FloatArray:
    """(N, D) vectors of length one (0 for an empty text under "hash").

    Raises:
        InputError: for an empty name.
        ModelError: if the encoder cannot be loaded, or gives a vector that is not finite.
        DependencyError: without sentence-transformers or the packaged MiniLM.
    """
    if not name.strip():
        raise InputError("controller='' names no encoder; give minilm, hash, a folder or an id")
    if name == "hash":
        return _hashed(texts)
    return unit_vectors(texts, name)


def _hashed(texts: Sequence[str]) -> FloatArray:
    counts_ND = np.zeros((len(texts), HASH_SIZE))
    for i, text in enumerate(texts):
        for size in (1, 2, 3):
            for start in range(len(text) - size + 1):
                code = zlib.crc32(text[start : start + size].encode("utf-8", "surrogatepass"))
                counts_ND[i, code % HASH_SIZE] += 1 if code >> 31 else -1
    norms_N = np.linalg.norm(counts_ND, axis=1, keepdims=True)
    return np.asarray(counts_ND / np.where(norms_N > 0, norms_N, 1.0))
