"""What a predicted cache has to beat at the same FLOPs to the first token: reading less.

Both keep the prompt's last token. Tokens that are kept get positions without gaps, as in a shorter
prompt.

Shapes: B sequences, T tokens, M kept tokens.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from outlay.cache.base import Prefilled
from outlay.cache.loop import FullCache
from outlay.cost import ModelShape
from outlay.errors import InputError
from outlay.models.base import Account

if TYPE_CHECKING:
    from outlay.models.local import LocalModel


def _check(share: float) -> None:
    if not 0 < share <= 1:
        raise InputError(f"share={share}; the share of the prompt to read must be in (0, 1]")


def kept(tokens: int, share: float) -> int:
    """How many of `tokens` are read; at least 1."""
    return max(1, round(share * tokens))


@dataclass(frozen=True)
class RecentTokens:
    """The base reads only the end of the prompt.

    Args:
        share: of the prompt's tokens.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        _check(self.share)

    def prefill(
        self, model: LocalModel, ids_BT: torch.Tensor, *, account: Account | None = None
    ) -> Prefilled:
        """Read the last tokens; see `CacheMethod.prefill`."""
        return FullCache().prefill(
            model, ids_BT[:, -kept(ids_BT.shape[1], self.share) :], account=account
        )


@dataclass(frozen=True)
class RandomTokens:
    """The base reads random tokens of the prompt, in their order, and the last one.

    Args:
        share: of the prompt's tokens.
        seed: of the choice.
    """

    share: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.share)

    def prefill(
        self, model: LocalModel, ids_BT: torch.Tensor, *, account: Account | None = None
    ) -> Prefilled:
        """Read a sample of the tokens; see `CacheMethod.prefill`."""
        width = ids_BT.shape[1]
        at_M = choose(width, kept(width, self.share), self.seed)
        return FullCache().prefill(model, ids_BT[:, at_M], account=account)


def choose(width: int, count: int, seed: int) -> list[int]:
    """`count` of `width` positions in order, the last among them."""
    rng = random.Random(f"tokens:{seed}:{width}")
    return [*sorted(rng.sample(range(width - 1), count - 1)), width - 1]


def affordable(shape: ModelShape, flops: float, most: int) -> int:
    """The most tokens, up to `most`, whose prefill costs at most `flops`; at least 1."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        if shape.flops(middle, logits_rows=1) <= flops:
            low = middle
        else:
            high = middle - 1
    return low
