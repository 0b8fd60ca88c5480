"""The embedder that provider and auditor agree on.

Every distinct text is embedded once. A text that is longer than the encoder's window is cut into
windows whose vectors are averaged (ours; the encoder would drop the rest).

Shapes: N texts, D embedding size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from outlay.audit.fingerprints import Vectors
from outlay.errors import InputError

_WORDS = 160  # of a window: about 256 word pieces at most


@dataclass
class Embedder:
    """MiniLM unit vectors, remembered per text.

    Args:
        name: of the encoder, as `outlay.models.encoders` knows it.
        table: vectors of texts that are known already.
    """

    name: str = "minilm"
    table: dict[str, Vectors] = field(default_factory=dict, repr=False)

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """(N, D) unit vectors of texts."""
        if not texts:
            raise InputError("no text to embed; give at least one")
        missing = [text for text in dict.fromkeys(texts) if text not in self.table]
        if missing:
            from outlay.models.encoders import unit_vectors

            missing.sort(key=len)  # texts of one length share a batch
            vectors = unit_vectors(missing, self.name).astype(np.float32)
            self.table.update(zip(missing, vectors, strict=True))
        return np.stack([self.table[text] for text in texts])

    def whole(self, text: str) -> Vectors:
        """(D,) the mean over windows of a text of any length, as a unit vector.

        Raises:
            InputError: for a text without a word.
        """
        words = text.split()
        if not words:
            raise InputError("an empty text has no embedding")
        windows = [" ".join(words[at : at + _WORDS]) for at in range(0, len(words), _WORDS)]
        mean: Vectors = self(windows).mean(axis=0)
        return mean / np.linalg.norm(mean)

    def save(self, path: Path) -> None:
        """Keep the table in a file."""
        texts = np.frombuffer(json.dumps(list(self.table)).encode(), dtype=np.uint8)
        vectors = np.stack(list(self.table.values())).astype(np.float32)
        np.savez(path, texts=texts, vectors=vectors)

    @classmethod
    def load(cls, path: Path, name: str = "minilm") -> Embedder:
        """The embedder with a saved table; an empty one where there is no file."""
        if not path.exists():
            return cls(name)
        with np.load(path) as held:
            texts = json.loads(held["texts"].tobytes())
            return cls(name, dict(zip(texts, held["vectors"], strict=True)))


EMBEDDERS: Mapping[str, Callable[[], Embedder]] = {"minilm": Embedder}


def embedder(name: str) -> Embedder:
    """A new embedder by its agreed name.

    Raises:
        InputError: for one that nobody agreed on.
    """
    if name not in EMBEDDERS:
        raise InputError(f"embedder {name!r}; choose {', '.join(EMBEDDERS)}")
    return EMBEDDERS[name]()
