"""The KV pool: blocks of tokens, counted, lent to jobs and taken back."""

from __future__ import annotations

from outlay.errors import InputError
from outlay.schedule.base import positive


class BlockPool:
    """Accounts for `num_blocks` blocks of `block_size` tokens each.

    Args:
        num_blocks: blocks in all.
        block_size: tokens of a block.

    Raises:
        InputError: for numbers below 1.
    """

    def __init__(self, num_blocks: int, block_size: int = 16) -> None:
        positive(num_blocks=num_blocks, block_size=block_size)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.lent: dict[int, int] = {}
        self.allocated = self.freed = self.peak = 0
        self._used = 0

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return self.num_blocks - self._used

    def blocks(self, tokens: int) -> int:
        """Blocks that so many tokens fill."""
        return -(-tokens // self.block_size)

    def missing(self, id_: int, tokens: int) -> int:
        """Blocks that a job lacks to hold so many tokens."""
        return max(0, self.blocks(tokens) - self.lent.get(id_, 0))

    def allocate(self, id_: int, tokens: int) -> None:
        """Give a job what it lacks to hold `tokens` tokens.

        Raises:
            InputError: if there are not enough free blocks; a plan must not ask for them.
        """
        wanted = self.missing(id_, tokens)
        if wanted > self.free:
            raise InputError(
                f"job {id_} needs {wanted} more blocks, {self.free} are free; raise num_blocks"
            )
        if wanted:
            self.lent[id_] = self.lent.get(id_, 0) + wanted
            self.allocated += wanted
            self._used += wanted
            self.peak = max(self.peak, self._used)

    def release(self, id_: int) -> int:
        """Take back all blocks of a job; returns how many it held."""
        count = self.lent.pop(id_, 0)
        self.freed += count
        self._used -= count
        return count
