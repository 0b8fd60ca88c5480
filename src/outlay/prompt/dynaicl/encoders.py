"""Texts as vectors of length one, for the controller and for choosing demonstrations.

- `minilm`: all-MiniLM-L6-v2, a sentence encoder (384 numbers).
- `hash`: counts of one to three neighbouring characters, hashed into 512 places; needs no model.
- anything else: a sentence-transformers model, by folder or id.

`bytes` and `seq2seq:PLACE` are no encoders of texts into vectors: they say that the seq2seq head
reads the text itself, see `seq2seq`.
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
BYTES, PRETRAINED = "bytes", "seq2seq:"


def reads_text(name: str) -> bool:
    """True for what only the seq2seq head can read with."""
    return name == BYTES or name.startswith(PRETRAINED)


def encode(name: str, texts: Sequence[str]) -> FloatArray:
    """(N, D) vectors of length one (0 for an empty text under "hash").

    Raises:
        InputError: for an empty name, or one that makes no vectors.
        ModelError: if the encoder cannot be loaded, or gives a vector that is not finite.
        DependencyError: without sentence-transformers or the packaged MiniLM.
    """
    if not name.strip():
        raise InputError("controller='' names no encoder; give minilm, hash, a folder or an id")
    if reads_text(name):
        raise InputError(
            f"{name!r} makes no vectors: it is for controllers with head='seq2seq', and for "
            "demonstrations chosen without an encoder; give minilm, hash, a folder or an id"
        )
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
