"""Dropping inside the decoder by attention, once (as FastV) or down a staircase (as PyramidDrop).

B rows, M tokens of a layer, N visual tokens, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from outlay.errors import InputError
from outlay.vision.base import Ranking, last_place
from outlay.vision.costs import match_budget
from outlay.vision.counts import check_rate, counts_of, staircase
from outlay.vision.dropper import Dropper
from outlay.vision.parts import need_tower, parts


def last_row(seen: Ranking) -> Tensor:
    """(B, N): attention that each visual token gets from the prompt's last token, mean of heads."""
    row_BM = seen.attention(last_place(seen.valid_BM))[:, :, 0].mean(1)
    return row_BM.gather(1, seen.visual_BN)


@dataclass(frozen=True)
class FastV:
    """Drop once inside the decoder, by the attention of the last prompt token (arXiv 2403.06764).

    Args:
        rate: share of visual tokens from `layer` on.
        layer: before which tokens go; its predecessor's attention ranks.
    """

    rate: float = 0.5
    layer: int = 2

    def __post_init__(self) -> None:
        check_rate(self.rate)
        if self.layer < 1:
            raise InputError(
                f"layer={self.layer}; before layer 0 there is no attention to rank by, need >= 1"
            )

    def within(self, tokens: int, total: int, layers: int) -> FastV:
        """The rate at which the layers' mean is the budget.

        Raises:
            InputError: if the layers before the drop alone cost more.
        """
        left = tokens * layers - self.layer * total
        return replace(self, rate=_share(left / (layers - self.layer), total, self.layer, layers))

    def __call__(self, model: Any) -> Any:
        """See `outlay.vision.base.Pruner`."""
        need_tower(model, "FastV")
        rates = staircase({self.layer: self.rate}, parts(model).num_layers)
        return Dropper(model, rates=rates, score=last_row)


@dataclass(frozen=True)
class PyramidDrop:
    """Drop a share at each quarter of the decoder's depth (arXiv 2410.17247, ranking by the last
    token).

    Args:
        ratio: share that stays at each of the three steps, of what was there before.
        drops: layer -> rate, relative to the original count, instead of the quarters.
    """

    ratio: float = 0.5
    drops: Mapping[int, float] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        check_rate(self.ratio, "ratio")

    def within(self, tokens: int, total: int, layers: int) -> PyramidDrop:
        """The ratio at which the layers' mean is the budget.

        Raises:
            InputError: if the layers before the first drop alone cost more.
        """

        def mean(ratio: float) -> float:
            rates = staircase(quarters(ratio, layers), layers)
            return sum(counts_of(rates, total)) / layers

        if mean(1e-6) > tokens:
            raise InputError(
                f"{tokens} of {total} visual tokens: the first layers alone have a mean of "
                f"{mean(1e-6):.1f} over {layers} layers; raise the budget, or prune at the input"
            )
        return replace(self, ratio=match_budget(mean, tokens, lo=1e-6), drops=None)

    def __call__(self, model: Any) -> Any:
        """See `outlay.vision.base.Pruner`."""
        need_tower(model, "PyramidDrop")
        layers = parts(model).num_layers
        drops = quarters(self.ratio, layers) if self.drops is None else self.drops
        return Dropper(model, rates=staircase(drops, layers), score=last_row)


def quarters(ratio: float, layers: int) -> dict[int, float]:
    """Layer -> rate: another share gone at each quarter of the depth."""
    return {max(1, q * layers // 4): ratio**q for q in (1, 2, 3)}


def _share(left: float, total: int, layer: int, layers: int) -> float:
    """The rate that leaves `left` tokens of `total`."""
    if left < 1:
        raise InputError(
            f"the budget leaves {max(0.0, left):.1f} visual tokens after layer {layer} of "
            f"{layers}, since all {total} live before it; raise the budget, or prune at the input"
        )
    return min(1.0, left / total)
