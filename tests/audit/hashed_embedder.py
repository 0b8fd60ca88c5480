"""An embedder without a model, and a reasoning, for tests of the protocol."""

import numpy as np

from outlay.audit.embedding import Embedder

ANSWER = "The train needs three hours for the whole trip of 180 miles at 60 miles per hour."
TOKENS = tuple(f" word{i}" for i in range(400))


def vectors(texts):
    """Unit vectors that depend on a text alone: no meaning, but every rule of the protocol."""
    found = []
    for text in texts:
        rng = np.random.default_rng(list(text.encode()) or [0])
        drawn = rng.normal(size=384)
        found.append(drawn / np.linalg.norm(drawn))
    return np.array(found, np.float32)


class Hashed(Embedder):
    """Vectors from a hash of the text."""

    def __call__(self, texts):
        return vectors(texts)


EMBED = Hashed()
