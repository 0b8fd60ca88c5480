"""What vision methods are measured against: simple choices of visual tokens.

All of them choose before the decoder: at random, on an even grid, pooled, merged, by the class
token, by a given ranking, or nothing. `outlay.vision.in_decoder` has those that drop inside it.

B rows, T prompt tokens, N visual tokens, K tokens of an image, D width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from outlay.errors import InputError
from outlay.vision.base import Choice, Kept, Seen, top
from outlay.vision.cls_attention import ClassToken, warn_if_blind
from outlay.vision.counts import budgeted, half_up
from outlay.vision.dropper import Dropper
from outlay.vision.tome import merge_all

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class AtInput:
    """Keeps so many tokens of each image, before the decoder.

    Args:
        rate: share of each image's tokens.
        max_tokens: of each image, instead of a rate.
    """

    rate: float = 0.25
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        budgeted(self.rate, self.max_tokens, 1)

    def within(self, tokens: int, total: int, layers: int) -> Self:
        """See `outlay.vision.base.Budgeted`."""
        return replace(self, max_tokens=tokens)

    def count(self, n: int) -> int:
        """Tokens that an image of n keeps."""
        return budgeted(self.rate, self.max_tokens, n)


@dataclass(frozen=True)
class RandomTokens(AtInput):
    """Keep visual tokens at random, per image.

    Args:
        rate: share of each image's tokens.
        max_tokens: of each image, instead of a rate.
        seed: which tokens; an image's place in the batch decides, not its content.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seed <= MAX_SEED:
            raise InputError(f"seed={self.seed}; need 0 <= seed <= {MAX_SEED}")

    def __call__(self, model: Any) -> AbstractContextManager[Kept]:
        """See `outlay.vision.base.Pruner`."""
        generator = torch.Generator().manual_seed(self.seed)

        def choose(seen: Seen) -> Choice:
            sizes = [len(picture.at_K) for picture in seen.pictures]
            kept = [torch.randperm(n, generator=generator)[: self.count(n)] for n in sizes]
            return Choice.of(seen, kept)

        return Dropper(model, choose=choose)


@dataclass(frozen=True)
class UniformTokens(AtInput):
    """Keep visual tokens in even steps along the raster, per image.

    Args:
        rate: share of each image's tokens.
        max_tokens: of each image, instead of a rate.
    """

    def __call__(self, model: Any) -> AbstractContextManager[Kept]:
        """See `outlay.vision.base.Pruner`."""
        return Dropper(model, choose=self._choose)

    def _choose(self, seen: Seen) -> Choice:
        sizes = [len(picture.at_K) for picture in seen.pictures]
        return Choice.of(seen, [even(n, self.count(n)) for n in sizes])


def even(n: int, k: int) -> Tensor:
    """(k,): the middles of k equal stretches of n tokens; where both are squares, of k equal fields
    of the grid."""
    side, root = math.isqrt(n), math.isqrt(k)
    if side * side == n and root * root == k:
        line = ((torch.arange(root) + 0.5) * side / root).long()
        return (line[:, None] * side + line[None]).flatten()
    return ((torch.arange(k) + 0.5) * n / k).long()


@dataclass(frozen=True)
class PooledTokens(AtInput):
    """Average square fields of a square image's features; each stands where its field's middle was.

    Args:
        rate: share of each image's tokens; rounded to a square grid, half up.
        max_tokens: of each image, instead of a rate; rounded down to a square grid.
    """

    def __call__(self, model: Any) -> AbstractContextManager[Kept]:
        """See `outlay.vision.base.Pruner`."""
        return Dropper(model, choose=self._choose)

    def _choose(self, seen: Seen) -> Choice:
        need_squares(seen, "pooling")
        embeds_BTD = seen.embeds_BTD.clone()
        kept = [torch.empty(0, dtype=torch.long)] * len(seen.pictures)
        for same in alike(seen):
            n = same.at_PK.shape[1]
            side, root = math.isqrt(n), self._side(n)
            grid_PDHW = same.features(seen).transpose(1, 2).unflatten(2, (side, side))
            small_PDHW = torch.nn.functional.adaptive_avg_pool2d(grid_PDHW, root)
            at = even(n, root * root)
            rows = same.row_P[:, None]
            at_Pk = same.at_PK[:, at.to(same.at_PK.device)]
            embeds_BTD[rows, at_Pk] = small_PDHW.flatten(2).transpose(1, 2)
            for number in same.numbers:
                kept[number] = at
        return Choice(Choice.of(seen, kept).keep_BT, embeds_BTD)

    def _side(self, n: int) -> int:
        if self.max_tokens is not None:
            return max(1, math.isqrt(self.count(n)))
        return max(1, half_up(math.sqrt(self.rate * n)))


@dataclass(frozen=True)
class Alike:
    """Images of a batch with equally many tokens, for one operation on all of them.

    Args:
        numbers: of the images.
        row_P: their rows.
        at_PK: places of their tokens.
    """

    numbers: list[int]
    row_P: Tensor
    at_PK: Tensor

    def features(self, seen: Seen) -> Tensor:
        """(P, K, D): as the decoder sees them."""
        return seen.embeds_BTD[self.row_P[:, None], self.at_PK]


def alike(seen: Seen) -> list[Alike]:
    """Images by their number of tokens."""
    groups: dict[int, list[int]] = {}
    for number, picture in enumerate(seen.pictures):
        groups.setdefault(len(picture.host_K), []).append(number)
    made = []
    for numbers in groups.values():
        pictures = [seen.pictures[number] for number in numbers]
        rows = torch.tensor([picture.row for picture in pictures])
        at_PK = torch.stack([picture.at_K for picture in pictures])
        made.append(Alike(numbers, rows.to(at_PK.device), at_PK))
    return made


def need_squares(seen: Seen, method: str) -> None:
    """Refuse images whose features are no square grid.

    Raises:
        InputError: names the first.
    """
    for number, picture in enumerate(seen.pictures):
        side = math.isqrt(len(picture.at_K))
        if side * side != len(picture.at_K):
            raise InputError(
                f"image {number} has {len(picture.at_K)} tokens, which are no square grid; "
                f"{method} works on plain square images"
            )


@dataclass(frozen=True)
class MergedTokens(AtInput):
    """ToMe-like merging of an image's features before the decoder (after arXiv 2210.09461).

    Tokens are split alternately; the pairs that are most alike are averaged, weighed by how many
    tokens each stands for, until the budget is met. A merged token stands where the kept one was.

    Args:
        rate: share of each image's tokens.
        max_tokens: of each image, instead of a rate.
    """

    def __call__(self, model: Any) -> AbstractContextManager[Kept]:
        """See `outlay.vision.base.Pruner`."""
        return Dropper(model, choose=self._choose)

    def _choose(self, seen: Seen) -> Choice:
        embeds_BTD, keep_BT = seen.embeds_BTD.clone(), ~seen.visual_BT
        for same in alike(seen):
            merged_PkD, _, at_Pk = merge_all(same.features(seen), self.count(same.at_PK.shape[1]))
            rows, places_Pk = same.row_P[:, None], same.at_PK.gather(1, at_Pk)
            embeds_BTD[rows, places_Pk] = merged_PkD
            keep_BT[rows, places_Pk] = True
        return Choice(keep_BT, embeds_BTD)


@dataclass(frozen=True)
class ClassTopTokens(AtInput):
    """Keep what the tower's class token looks at most, summed over heads (as FasterVLM).

    Args:
        rate: share of each image's tokens.
        max_tokens: of each image, instead of a rate.
        layer: of the tower; None takes the one whose output is the visual feature.
    """

    layer: int | None = None

    @contextmanager
    def __call__(self, model: Any) -> Iterator[Kept]:
        """See `outlay.vision.base.Pruner`."""
        token = ClassToken(model, self.layer)
        token.open()
        try:
            with Dropper(model, choose=partial(self._choose, token)) as kept:
                yield kept
        finally:
            token.close()

    def _choose(self, token: ClassToken, seen: Seen) -> Choice:
        rows_PHN = token.rows()
        sizes = [len(picture.at_K) for picture in seen.pictures]
        if len(rows_PHN) != len(sizes) or set(sizes) != {rows_PHN.shape[2]}:
            raise InputError(
                f"the tower encoded {len(rows_PHN)} images of {rows_PHN.shape[2]} patches, and the "
                f"prompt has {sizes} tokens; this method works on one partition an image (hired "
                "takes tiles)"
            )
        warn_if_blind(rows_PHN)
        scores_PN = rows_PHN.sum(1)
        best_Pk = top(scores_PN, self.count(scores_PN.shape[1]))
        return Choice.of(seen, list(best_Pk), list(scores_PN))


@dataclass(frozen=True)
class GivenTokens(AtInput):
    """Keep the tokens that a given ranking puts first: an oracle's, or another program's.

    Args:
        scores: of each image of the batch, one value a token.
        rate: share of each image's tokens.
        max_tokens: of each image, instead of a rate.
    """

    scores: Sequence[Any]

    def __call__(self, model: Any) -> AbstractContextManager[Kept]:
        """See `outlay.vision.base.Pruner`."""
        return Dropper(model, choose=self._choose)

    def _choose(self, seen: Seen) -> Choice:
        if len(self.scores) != len(seen.pictures):
            raise InputError(
                f"{len(self.scores)} rankings for {len(seen.pictures)} images; give one each"
            )
        kept, shown = [], []
        for picture, given in zip(seen.pictures, self.scores, strict=True):
            score_K = torch.as_tensor(given, dtype=torch.float32)
            if score_K.shape != picture.at_K.shape:
                raise InputError(
                    f"a ranking of {tuple(score_K.shape)} for {len(picture.at_K)} tokens"
                )
            kept.append(top(score_K[None], self.count(len(score_K)))[0])
            shown.append(score_K)
        return Choice.of(seen, kept, shown)


@dataclass(frozen=True)
class NoTokens:
    """Keep no visual token at all: what the question alone gives away."""

    def __call__(self, model: Any) -> AbstractContextManager[Kept]:
        """See `outlay.vision.base.Pruner`."""
        return Dropper(model, choose=lambda seen: Choice(~seen.visual_BT))
