"""What vision methods are measured against: simple choices of visual tokens.

All of them choose before the decoder: at random, on an even grid, pooled, merged, by the class
token, by a given ranking, or nothing. `outlay.vision.in_decoder` has those that drop inside it.

B rows, T prompt tokens, N visual tokens, K tokens of an image, D width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from outlay.errors import InputError
from outlay.vision.base import Choice, Kept, Seen, top
from outlay.vision.cls_attention import ClassToken, warn_if_blind
from outlay.vision.counts import budgeted, half_up
from outlay.vision.dropper import Dropper

MAX_SEED = 2**63 - 1


def _check(rate: float, max_tokens: int | None) -> None:
    budgeted(rate, max_tokens, 1)


def one_each(seen: Seen, method: str) -> None:
    """Refuse images whose features are no square grid."""
    for number, picture in enumerate(seen.pictures):
        side = math.isqrt(len(picture.at_K))
        if side * side != len(picture.at_K):
            raise InputError(
                f"image {number} has {len(picture.at_K)} tokens, which are no square grid; "
                f"{method} works on plain square images"
            )


@dataclass(frozen=True)
class RandomTokens:
    """Keep visual tokens at random, per image.

    Args:
        rate: share of each image's tokens.
        max_tokens: of each image, instead of a rate.
        seed: which tokens; an image's place in the batch decides, not its content.
    """

    rate: float = 0.25
    max_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.rate, self.max_tokens)
        if not 0 <= self.seed <= MAX_SEED:
            raise InputError(f"seed={self.seed}; need 0 <= seed <= {MAX_SEED}")

    def within(self, tokens: int, total: int, layers: int) -> RandomTokens:
        """See `outlay.vision.base.Budgeted`."""
        return replace(self, max_tokens=tokens)

    @contextmanager
    def __call__(self, model: Any) -> Iterator[Kept]:
        """See `outlay.vision.base.Pruner`."""
        generator = torch.Generator().manual_seed(self.seed)

        def choose(seen: Seen) -> Choice:
            kept = []
            for picture in seen.pictures:
                n = len(picture.at_K)
                k = budgeted(self.rate, self.max_tokens, n)
                kept.append(torch.randperm(n, generator=generator)[:k])
            return Choice.of(seen, kept)

        with Dropper(model, choose=choose) as kept:
            yield kept


@dataclass(frozen=True)
class UniformTokens:
    """Keep visual tokens in even steps along the raster, per image.

    Args:
        rate: share of each image's tokens.
        max_tokens: of each image, instead of a rate.
    """

    rate: float = 0.25
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        _check(self.rate, self.max_tokens)

    def within(self, tokens: int, total: int, layers: int) -> UniformTokens:
        """See `outlay.vision.base.Budgeted`."""
        return replace(self, max_tokens=tokens)

    @contextmanager
    def __call__(self, model: Any) -> Iterator[Kept]:
        """See `outlay.vision.base.Pruner`."""

        def choose(seen: Seen) -> Choice:
            kept = [
                even(len(p.at_K), budgeted(self.rate, self.max_tokens, len(p.at_K)))
                for p in seen.pictures
            ]
            return Choice.of(seen, kept)

        with Dropper(model, choose=choose) as kept:
            yield kept


def even(n: int, k: int) -> Tensor:
    """(k,): the middles of k equal stretches of n tokens; where both are squares, of k equal fields
    of the grid."""
    side, root = math.isqrt(n), math.isqrt(k)
    if side * side == n and root * root == k:
        line = ((torch.arange(root) + 0.5) * side / root).long()
        return (line[:, None] * side + line[None]).flatten()
    return ((torch.arange(k) + 0.5) * n / k).long()


@dataclass(frozen=True)
class PooledTokens:
    """Average square fields of a square image's features; each stands where its field's middle was.

    Args:
        rate: share of each image's tokens; rounded to a square grid, half up.
        max_tokens: of each image, instead of a rate; rounded down to a square grid.
    """

    rate: float = 0.25
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        _check(self.rate, self.max_tokens)

    def within(self, tokens: int, total: int, layers: int) -> PooledTokens:
        """See `outlay.vision.base.Budgeted`."""
        return replace(self, max_tokens=tokens)

    @contextmanager
    def __call__(self, model: Any) -> Iterator[Kept]:
        """See `outlay.vision.base.Pruner`."""

        def choose(seen: Seen) -> Choice:
            one_each(seen, "pooling")
            embeds, kept = seen.embeds_BTD.clone(), []
            for picture in seen.pictures:
                n = len(picture.at_K)
                side = math.isqrt(n)
                root = self._side(n)
                grid_DHW = seen.features(picture).T.unflatten(1, (side, side))
                small_DHW = torch.nn.functional.adaptive_avg_pool2d(grid_DHW, root)
                at = even(n, root * root)
                embeds[picture.row, picture.at_K[at.to(picture.at_K.device)]] = small_DHW.flatten(
                    1
                ).T
                kept.append(at)
            choice = Choice.of(seen, kept)
            return Choice(choice.keep_BT, embeds)

        with Dropper(model, choose=choose) as kept:
            yield kept

    def _side(self, n: int) -> int:
        if self.max_tokens is not None:
            return max(1, math.isqrt(budgeted(self.rate, self.max_tokens, n)))
        return max(1, half_up(math.sqrt(self.rate * n)))


@dataclass(frozen=True)
class MergedTokens:
    """ToMe-like merging of an image's features before the decoder (after arXiv 2210.09461).

    Tokens are split alternately; the pairs that are most alike are averaged, weighed by how many
    tokens each stands for, until the budget is met. A merged token stands where the kept one was.

    Args:
        rate: share of each image's tokens.
        max_tokens: of each image, instead of a rate.
    """

    rate: float = 0.25
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        _check(self.rate, self.max_tokens)

    def within(self, tokens: int, total: int, layers: int) -> MergedTokens:
        """See `outlay.vision.base.Budgeted`."""
        return replace(self, max_tokens=tokens)

    @contextmanager
    def __call__(self, model: Any) -> Iterator[Kept]:
        """See `outlay.vision.base.Pruner`."""

        def choose(seen: Seen) -> Choice:
            embeds, kept = seen.embeds_BTD.clone(), []
            for picture in seen.pictures:
                n = len(picture.at_K)
                k = budgeted(self.rate, self.max_tokens, n)
                at, merged = merge(seen.features(picture), k)
                embeds[picture.row, picture.at_K[at]] = merged
                kept.append(at)
            return Choice(Choice.of(seen, kept).keep_BT, embeds)

        with Dropper(model, choose=choose) as kept:
            yield kept


def merge(features_KD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Merge until k tokens are left: indices of those that stand (k,), and their means (k, D)."""
    at = torch.arange(len(features_KD), device=features_KD.device)
    value, weight = features_KD.float(), torch.ones_like(at, dtype=torch.float)
    while len(at) > k:
        unit = torch.nn.functional.normalize(value, dim=-1)
        likeness = unit[::2] @ unit[1::2].T
        best, to = likeness.max(1)
        gone = best.sort(descending=True, stable=True).indices[: len(at) - k]
        source, target = gone * 2, to[gone] * 2 + 1
        total = (value * weight[:, None]).index_add(0, target, value[source] * weight[source, None])
        weight = weight.index_add(0, target, weight[source])
        stay = torch.ones_like(at, dtype=torch.bool)
        stay[source] = False
        value = (total / weight[:, None])[stay]
        weight, at = weight[stay], at[stay]
    return at, value.to(features_KD.dtype)


@dataclass(frozen=True)
class ClassTopTokens:
    """Keep what the tower's class token looks at most, summed over heads (as FasterVLM).

    Args:
        rate: share of each image's tokens.
        max_tokens: of each image, instead of a rate.
        layer: of the tower; None takes the one whose output is the visual feature.
    """

    rate: float = 0.25
    max_tokens: int | None = None
    layer: int | None = None

    def __post_init__(self) -> None:
        _check(self.rate, self.max_tokens)

    def within(self, tokens: int, total: int, layers: int) -> ClassTopTokens:
        """See `outlay.vision.base.Budgeted`."""
        return replace(self, max_tokens=tokens)

    @contextmanager
    def __call__(self, model: Any) -> Iterator[Kept]:
        """See `outlay.vision.base.Pruner`."""
        token = ClassToken(model, self.layer)

        def choose(seen: Seen) -> Choice:
            rows_PHN = token.rows()
            if len(rows_PHN) != len(seen.pictures) or any(
                len(p.at_K) != rows_PHN.shape[2] for p in seen.pictures
            ):
                raise InputError(
                    f"the tower encoded {len(rows_PHN)} images of {rows_PHN.shape[2]} patches, and "
                    f"the prompt has {[len(p.at_K) for p in seen.pictures]} tokens; this method "
                    "works on one partition an image (hired takes tiles)"
                )
            warn_if_blind(rows_PHN)
            scores_PN = rows_PHN.sum(1)
            k = budgeted(self.rate, self.max_tokens, scores_PN.shape[1])
            return Choice.of(seen, list(top(scores_PN, k)), list(scores_PN))

        token.open()
        try:
            with Dropper(model, choose=choose) as kept:
                yield kept
        finally:
            token.close()


@dataclass(frozen=True)
class GivenTokens:
    """Keep the tokens that a given ranking puts first: an oracle's, or another program's.

    Args:
        scores: of each image of the batch, one value a token.
        rate: share of each image's tokens.
        max_tokens: of each image, instead of a rate.
    """

    scores: Sequence[Any]
    rate: float = 0.25
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        _check(self.rate, self.max_tokens)

    def within(self, tokens: int, total: int, layers: int) -> GivenTokens:
        """See `outlay.vision.base.Budgeted`."""
        return replace(self, max_tokens=tokens)

    @contextmanager
    def __call__(self, model: Any) -> Iterator[Kept]:
        """See `outlay.vision.base.Pruner`."""

        def choose(seen: Seen) -> Choice:
            if len(self.scores) != len(seen.pictures):
                raise InputError(
                    f"{len(self.scores)} rankings for {len(seen.pictures)} images; give one each"
                )
            kept, shown = [], []
            for picture, given in zip(seen.pictures, self.scores, strict=True):
                score = torch.as_tensor(given, dtype=torch.float32)
                if score.shape != picture.at_K.shape:
                    raise InputError(
                        f"a ranking of {tuple(score.shape)} for {len(picture.at_K)} tokens"
                    )
                k = budgeted(self.rate, self.max_tokens, len(score))
                kept.append(top(score[None], k)[0])
                shown.append(score)
            return Choice.of(seen, kept, shown)

        with Dropper(model, choose=choose) as kept:
            yield kept


@dataclass(frozen=True)
class NoTokens:
    """Keep no visual token at all: what the question alone gives away."""

    @contextmanager
    def __call__(self, model: Any) -> Iterator[Kept]:
        """See `outlay.vision.base.Pruner`."""

        def choose(seen: Seen) -> Choice:
            return Choice(~seen.visual_BT)

        with Dropper(model, choose=choose) as kept:
            yield kept
