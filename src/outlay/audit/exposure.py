"""What an audit may see, and what it saw: opened tokens and blocks, counted exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from outlay.audit.fingerprints import Partition
from outlay.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Shares of tokens and blocks that may be opened; the paper reports < 4 % and < 40 %.

    Raises:
        InputError: for shares outside (0, 1].
    """

    tokens: float = 0.04
    blocks: float = 0.4

    def __post_init__(self) -> None:
        for name in ("tokens", "blocks"):
            share = getattr(self, name)
            if not 0 < share <= 1:
                raise InputError(f"{name}={share}; a share above 0 and at most 1 may be opened")

    def of(self, partition: Partition) -> tuple[int, int]:
        """Most tokens and blocks of a partition."""
        most = math.floor(self.tokens * partition.tokens + 1e-9)
        return most, math.floor(self.blocks * partition.blocks + 1e-9)


@dataclass
class Exposure:
    """The ledger of one audit's openings. An opened token embedding reveals its token.

    Args:
        partition: tokens and blocks.
        limits: shares that may be opened.
    """

    partition: Partition
    limits: Limits = Limits()
    tokens: set[int] = field(default_factory=set)
    blocks: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.most_tokens, self.most_blocks = self.limits.of(self.partition)

    def open(self, indices: Iterable[int]) -> None:
        """Enter openings; nothing is entered where they would exceed a limit.

        Raises:
            InputError: for more tokens or blocks than the limits allow.
        """
        tokens = self.tokens | set(indices)
        blocks = {self.partition.of(index) for index in tokens}
        if len(tokens) > self.most_tokens or len(blocks) > self.most_blocks:
            raise InputError(
                f"{len(tokens)} tokens of {len(blocks)} blocks would be opened; the limits allow "
                f"{self.most_tokens} tokens and {self.most_blocks} blocks"
            )
        self.tokens, self.blocks = tokens, blocks
