"""Which demonstrations an input gets, best first; how many is another question.

A ranking has K distinct examples, and k demonstrations are always its first k, so that prompts are
nested. An example whose text repeats the input (case and spaces aside) is never taken: its answer
would leak.

- `random`: drawn anew for every input and draw.
- `fixed`: the same prefix of the pool for everybody.
- `knn`: nearest by cosine of embeddings.
- `votek`: the same representative and diverse examples for everybody ("Selective Annotation Makes
  Language Models Better Few-Shot Learners", arXiv 2209.01975): repeatedly the example with the most
  neighbours that no chosen example has covered yet.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from outlay.errors import InputError
from outlay.prompt.dynaicl.encoders import encode
from outlay.prompt.dynaicl.prompts import Example, same_text

Selector = Literal["random", "fixed", "knn", "votek"]
SELECTORS: tuple[Selector, ...] = get_args(Selector)
_NEIGHBOURS = 10  # of vote-k's graph
_DISCOUNT = 10.0  # rho of vote-k
_TURNS = 8  # times as many representatives are ranked where answers take turns
_MAX_VOTERS = 4000  # the graph is quadratic


def rank(
    x: Example,
    pool: Sequence[Example],
    K: int,
    *,
    selector: Selector = "random",
    seed: int = 0,
    draw: int = 0,
    encoder: str = "minilm",
    balanced: bool = False,
) -> list[Example]:
    """The K demonstrations of one input, best first.

    Args:
        x: the input.
        pool: of its task.
        K: how many.
        selector: see above.
        seed: of random draws.
        draw: which of several random draws.
        encoder: of `knn` and `votek`.
        balanced: take turns between answers, where there are at most K different ones.

    Raises:
        InputError: for an unknown selector, or a pool that is too small.
    """
    if selector not in SELECTORS:
        raise InputError(f"selector={selector!r}; choose one of {', '.join(SELECTORS)}")
    own = same_text(x)
    usable = [i for i, demo in enumerate(pool) if same_text(demo) != own]
    if len(usable) < K:
        raise InputError(
            f"the pool of input {x.id!r} has {len(usable)} usable examples, K={K}; "
            "lower K or add examples"
        )
    if selector == "random":
        order = list(usable)
        random.Random(f"{seed}:{x.id}:{draw}").shuffle(order)
    elif selector == "fixed":
        order = usable
    else:
        texts = tuple(demo.input for demo in pool)
        allowed = set(usable)
        if selector == "knn":
            cosine_N = _encoded(encoder, texts) @ encode(encoder, [x.input])[0]
            found = np.argsort(-cosine_N, kind="stable").tolist()
        else:
            wanted = K * (_TURNS if balanced else 1) + len(pool) - len(usable)
            found = _representatives(encoder, texts, min(len(pool), wanted))
        order = [i for i in found if i in allowed]
    if balanced:
        order = _in_turns(order, [demo.answer for demo in pool], K)
    return [pool[i] for i in order[:K]]


@lru_cache(maxsize=16)
def _encoded(encoder: str, texts: tuple[str, ...]) -> np.ndarray:
    """Encodings of a pool, made once for all inputs."""
    return encode(encoder, texts)


@lru_cache(maxsize=16)
def _representatives(encoder: str, texts: tuple[str, ...], k: int) -> list[int]:
    return vote_k(_encoded(encoder, texts), k)


def vote_k(vectors_ND: np.ndarray, k: int) -> list[int]:
    """Indices of `k` examples that represent all, by discounted votes of nearest neighbours.

    Raises:
        InputError: for more than 4000 examples.
    """
    n = len(vectors_ND)
    if n > _MAX_VOTERS:
        raise InputError(
            f"votek compares all {n} examples of a pool; give at most {_MAX_VOTERS}, or use knn"
        )
    cosine_NN = vectors_ND @ vectors_ND.T
    np.fill_diagonal(cosine_NN, -np.inf)
    width = min(_NEIGHBOURS, n - 1)
    voters: list[list[int]] = [[] for _ in range(n)]  # who counts i among its neighbours
    near = np.argsort(-cosine_NN, axis=1, kind="stable")[:, :width]
    for u in range(n):
        for v in near[u]:
            voters[int(v)].append(u)
    covered = np.zeros(n)  # how many chosen examples u counts among its neighbours
    chosen: list[int] = []
    for _ in range(k):
        votes = [
            -1.0 if v in chosen else float(sum(_DISCOUNT ** -covered[u] for u in voters[v]))
            for v in range(n)
        ]
        best = int(np.argmax(votes))
        chosen.append(best)
        for u in voters[best]:
            covered[u] += 1
    return chosen


def _in_turns(order: Sequence[int], answers: Sequence[str], K: int) -> list[int]:
    labels = list(dict.fromkeys(answers[i] for i in order))
    if len(labels) > K:
        return list(order)
    rounds: dict[str, int] = dict.fromkeys(labels, 0)
    keyed = []
    for place, i in enumerate(order):
        keyed.append((rounds[answers[i]], place, i))
        rounds[answers[i]] += 1
    return [i for _, _, i in sorted(keyed)]
