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
from outlay.prompt.dynaicl.table import Table, targets

FloatArray = npt.NDArray[np.float64]


def random_k(n: int, seed: int = 0) -> FloatArray:
    """(N,) uniform random needs.

    Raises:
        InputError: for no inputs.
    """
    if n < 1:
        raise InputError("the batch is empty; give at least one input")
    return np.asarray(np.random.default_rng(seed).random(n))


def by_task(tasks: Sequence[str], table: Table, known: Sequence[str], t: float = 0.7) -> FloatArray:
    """(N,) the best number of each input's task: the fewest whose mean accuracy exceeds `t`.

    Args:
        tasks: (N,) of the inputs.
        table: labels of other inputs.
        known: their tasks.
        t: see `targets`, which also decides where no number is enough.

    Raises:
        InputError: for a task without labels, or tasks that do not fit the table.
    """
    if len(known) != len(table):
        raise InputError(f"{len(known)} tasks for a table of {len(table)} inputs; give one each")
    best = {}
    for task in sorted(set(tasks)):
        rows = [i for i, name in enumerate(known) if name == task]
        if not rows:
            raise InputError(f"no input of the table is of task {task!r}; collect labels of it")
        part = table.rows(rows)
        whole = Table(
            (task,),
            ("",),
            part.accuracy_NK.mean(axis=0)[None, :, None],
            np.round(part.tokens_NKD.mean(axis=(0, 2))).astype(np.int64)[None, :, None],
        )
        best[task] = float(targets(whole, t).needed_N[0])
    return np.array([best[task] for task in tasks])


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
    for x, cosine_P in zip(inputs, _cosines(inputs, pools, encoder), strict=True):
        pool = pools[x.task]
        near = np.argsort(-cosine_P, kind="stable")[:neighbours]
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
        [float((cosine_P >= threshold).sum()) for cosine_P in _cosines(inputs, pools, encoder)]
    )


def _cosines(inputs: Sequence[Example], pools: Pools, encoder: str) -> list[FloatArray]:
    """(P,) similarities of every input to the examples of its pool; every text is encoded once."""
    tasks = list(dict.fromkeys(x.task for x in inputs))
    texts = [x.input for x in inputs] + [demo.input for task in tasks for demo in pools[task]]
    vectors_F = encode(encoder, texts)
    by_task, at = {}, len(inputs)
    for task in tasks:
        by_task[task] = vectors_F[at : at + len(pools[task])]
        at += len(pools[task])
    return [by_task[x.task] @ vector_F for x, vector_F in zip(inputs, vectors_F, strict=False)]
