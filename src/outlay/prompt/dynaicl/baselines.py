"""Simple guesses at how many demonstrations an input needs, to be beaten at equal tokens.

Each gives a number per input that stands where a controller's prediction would: the budget is then
split in proportion, as for DynaICL. `random_k` splits it by chance.

Shapes: N inputs, P examples of a pool, F features.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from outlay.errors import InputError
from outlay.prompt.dynaicl.encoders import encode
from outlay.prompt.dynaicl.prompts import Example, Pools

FloatArray = npt.NDArray[np.float64]


def random_k(n: int, seed: int = 0) -> FloatArray:
    """(N,) uniform random needs.

    Raises:
        InputError: for no inputs.
    """
    if n < 1:
        raise InputError("the batch is empty; give at least one input")
    return np.asarray(np.random.default_rng(seed).random(n))


def by_length(inputs: Sequence[Example]) -> FloatArray:
    """(N,) characters of the inputs: long ones are taken for hard."""
    return np.array([float(len(x.input)) for x in inputs])


def by_entropy(entropies: Sequence[float]) -> FloatArray:
    """(N,) the generalist's own zero-shot uncertainty; costs one more call per input.

    Raises:
        InputError: for values that are negative or not finite.
    """
    values_N = np.array(entropies, dtype=np.float64)
    if not np.isfinite(values_N).all() or (values_N < -1e-6).any():
        raise InputError("entropies must be finite and >= 0")
    return np.maximum(values_N, 0.0)


def by_label_entropy(
    inputs: Sequence[Example], pools: Pools, *, neighbours: int = 8, encoder: str = "minilm"
) -> FloatArray:
    """(N,) entropy of the answers of each input's nearest examples, in nats.

    Raises:
        InputError: for fewer than one neighbour.
    """
    if neighbours < 1:
        raise InputError(f"neighbours={neighbours}; must be >= 1")
    found = []
    for x in inputs:
        pool = pools[x.task]
        near = np.argsort(-_cosines(x, pool, encoder), kind="stable")[:neighbours]
        counts = Counter(pool[int(i)].answer for i in near)
        shares = [c / len(near) for c in counts.values()]
        found.append(-math.fsum(p * math.log(p) for p in shares))
    return np.array(found)


def by_similarity(
    inputs: Sequence[Example], pools: Pools, *, threshold: float, encoder: str = "minilm"
) -> FloatArray:
    """(N,) how many examples of the pool are at least as similar as `threshold` (cosine).

    Raises:
        InputError: for a threshold outside [-1, 1].
    """
    if not -1 <= threshold <= 1:
        raise InputError(f"threshold={threshold}; a cosine is in [-1, 1]")
    return np.array(
        [float((_cosines(x, pools[x.task], encoder) >= threshold).sum()) for x in inputs]
    )


def _cosines(x: Example, pool: Sequence[Example], encoder: str) -> FloatArray:
    vectors_PF = encode(encoder, [x.input, *(demo.input for demo in pool)])
    return np.asarray(vectors_PF[1:] @ vectors_PF[0])
