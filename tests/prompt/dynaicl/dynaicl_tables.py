"""Labels of three kinds of inputs that need different numbers of demonstrations."""

import numpy as np

from outlay.prompt.dynaicl import Table

K = 4
KINDS = ("easy {}", "one more {}", "hard word {}")
ENOUGH = (0, 1, 3)  # demonstrations after which each kind is right


def made_table(n=120, draws=3, seed=0, noise=0.1):
    """Inputs of three kinds, which their words give away."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    texts = tuple(KINDS[k].format(rng.integers(1000)) for k in kind)
    enough = np.array(ENOUGH)[kind][:, None, None]
    quality = (np.arange(K + 1)[None, :, None] >= enough) * np.ones((1, 1, draws))
    quality = np.where(rng.random(quality.shape) < noise, 1 - quality, quality)
    steps = rng.integers(5, 9, (n, K, 1)).cumsum(axis=1)
    tokens = 10 + np.concatenate([np.zeros((n, 1, 1)), steps], axis=1) + np.zeros((1, 1, draws))
    ids = tuple(f"{seed}-{i}" for i in range(n))
    return Table(ids, texts, quality.astype(float), tokens.astype(np.int64)), kind
