"""How tasks draw problems from sources of many: in turns, so that none dominates, and with ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import TypeVar

from outlay.evals.base import Problem

S = TypeVar("S")


def in_turns(streams: Sequence[Sequence[Problem]], n: int) -> Iterator[Problem]:
    """At most n problems, one from every stream per round: no module dominates a sample."""
    taken = 0
    for turn in range(max(map(len, streams), default=0)):
        for stream in streams:
            if turn < len(stream):
                if taken == n:
                    return
                taken += 1
                yield stream[turn]


def drawn(
    sources: Sequence[S], key: str, n: int, make: Callable[[S], list[Problem]]
) -> list[Problem]:
    """At most n problems that `make` finds in sources, from as many of them as possible.

    Args:
        sources: files or documents.
        key: seeds the order in which they are asked.
        n: problems wanted.
        make: all problems of one source.
    """
    order = list(sources)
    Random(key).shuffle(order)
    streams: list[list[Problem]] = []
    for source in order:
        if len(streams) >= n:  # every stream gives one problem in the first round
            break
        if problems := make(source):
            streams.append(problems)
    return list(in_turns(streams, n))


def digest(*parts: str) -> str:
    """A short content hash for ids."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:10]
