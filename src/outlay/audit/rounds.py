"""What an audit opens, round by round: drawn once, within the limits of exposure.

The count check comes first: s tokens, uniformly drawn, the last one always among them. Their blocks
are the first that are judged. Then further blocks follow in random order, each with up to q opened
tokens, until the limits are reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from outlay.audit.exposure import Limits
from outlay.audit.fingerprints import Partition
from outlay.errors import InputError


@dataclass(frozen=True)
class Plan:
    """An audit's openings.

    Args:
        count: tokens of the count check.
        rounds: per round, the blocks to judge and all their tokens to open, count check included.
    """

    count: tuple[int, ...]
    rounds: tuple[tuple[tuple[int, tuple[int, ...]], ...], ...]

    @property
    def tokens(self) -> list[int]:
        """All tokens of the whole plan, in order of the trace."""
        judged = {index for each in self.rounds for _, opened in each for index in opened}
        return sorted(judged | set(self.count))

    @property
    def blocks(self) -> list[int]:
        """The judged blocks, in the order of their rounds."""
        return [block for each in self.rounds for block, _ in each]


def draw(
    partition: Partition,
    rng: np.random.Generator,
    *,
    s: int = 5,
    b_1: int = 5,
    b: int = 2,
    q: int = 3,
    limits: Limits | None = None,
) -> Plan:
    """Draw a plan.

    Args:
        partition: tokens and blocks.
        rng: the auditor's own randomness, seeded after it held the commitment.
        s: tokens of the count check; fewer where the limits allow fewer.
        b_1, b: blocks judged in the first and in every further round.
        q: tokens opened per judged block, where it has as many.
        limits: of exposure.

    Raises:
        InputError: for a number below 1.
    """
    for name, value in (("s", s), ("b_1", b_1), ("b", b), ("q", q)):
        if value < 1:
            raise InputError(f"{name}={value}; must be at least 1")
    limits = limits or Limits()
    most_tokens, most_blocks = limits.of(partition)
    s = min(s, most_tokens, most_blocks)
    if s < 1:
        return Plan((), ())
    last = partition.tokens - 1
    others = rng.choice(last, size=s - 1, replace=False) if s > 1 else np.empty(0, int)
    count = [last, *(int(index) for index in others)]
    opened: dict[int, list[int]] = {}
    for index in count:
        opened.setdefault(partition.of(index), []).append(index)
    shuffled = [int(block) for block in rng.permutation(partition.blocks)]
    order = [*opened, *(block for block in shuffled if block not in opened)][:most_blocks]
    left = most_tokens - s
    judged: list[tuple[int, tuple[int, ...]]] = []
    for block in order:
        have = opened.get(block, [])
        rest = [index for index in partition.span(block) if index not in have]
        more = max(0, min(q - len(have), len(rest), left))
        left -= more
        drawn = rng.permutation(rest)[:more]
        if tokens := tuple(sorted([*have, *(int(index) for index in drawn)])):
            judged.append((block, tokens))
    return Plan(tuple(sorted(count)), _cut(judged, b_1, b))


def _cut(
    judged: Sequence[tuple[int, tuple[int, ...]]], b_1: int, b: int
) -> tuple[tuple[tuple[int, tuple[int, ...]], ...], ...]:
    first = [tuple(judged[:b_1])] if judged else []
    return (*first, *(tuple(judged[at : at + b]) for at in range(b_1, len(judged), b)))
