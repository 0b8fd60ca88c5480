"""Fingerprints of random vectors, for tests where only the protocol matters."""

import numpy as np

from outlay.audit.exposure import Limits
from outlay.audit.fingerprints import Fingerprints, Partition, quantise

ALL = Limits(1.0, 1.0)
D = 8


def unit(n, seed=0):
    """Random unit vectors."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, D)).astype(np.float32)
    return quantise(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def prints(tokens=20, block=4, form="bound"):
    """Fingerprints of random vectors."""
    part = Partition(tokens, block)
    return Fingerprints(part, unit(part.blocks, 1), unit(tokens, 2), form)
