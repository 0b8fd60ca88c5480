"""Ranking visual tokens inside the decoder by the attention that they receive.

Before a layer, the attention of the layer before is read for some query rows, averaged over query
heads (not over key heads, where queries share them), and looked up at the visual tokens that are
still there. Dropped tokens took no part in its softmax.

Shapes: B rows, M tokens of the layer, N visual tokens, Q query rows, H query heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from outlay.errors import InputError
from outlay.vision.base import Ranking, last_place
from outlay.vision.gsearch.schedule import QUERIES, Query

_BLOCK = 256  # query rows whose attention is held at once


@dataclass(frozen=True)
class AttentionScore:
    """Mean attention that a visual token receives in the layer before.

    Args:
        query: from the last token of the prompt, from the mean of the text after the image, or from
            the mean of all tokens.
        rank_normalise: rank tokens within each head, after taking out the linear trend of log
            attention along the image, and average ranks. Rotary positions let heads prefer what is
            near the end of the image; the trend is that preference, and ranks let every head count
            the same.

    Raises:
        InputError: for an unknown query.
    """

    query: Query = "last"
    rank_normalise: bool = False

    def __post_init__(self) -> None:
        if self.query not in QUERIES:
            raise InputError(f"score_query={self.query!r}; use one of {', '.join(QUERIES)}")

    def __call__(self, seen: Ranking) -> Tensor:
        """(B, N) scores.

        Raises:
            InputError: for "text_mean" and a row without text after its images.
        """
        mean_BHN = self._received(seen)
        if self.rank_normalise:
            mean_BHN = _ranks(_level(mean_BHN, seen.alive_BN))
        return mean_BHN.mean(1)

    def _received(self, seen: Ranking) -> Tensor:
        """(B, H, N): attention at visual tokens, mean over queries."""
        if self.query == "last":
            row_BHM = seen.attention(last_place(seen.valid_BM))[:, :, 0]
            return row_BHM.gather(2, seen.visual_BN[:, None].expand(-1, row_BHM.shape[1], -1))
        asks_BM = self._asking(seen)
        counts_B = asks_BM.sum(1)
        order_BM = asks_BM.to(torch.int8).sort(dim=1, descending=True, stable=True).indices
        total_BHN: Tensor | None = None
        order_BM = order_BM[:, : int(counts_B.max())]
        for start in range(0, order_BM.shape[1], _BLOCK):
            rows_BQ = order_BM[:, start : start + _BLOCK]
            heads = seen.attention(rows_BQ)
            at_BHQN = seen.visual_BN[:, None, None].expand(*heads.shape[:3], -1)
            part_BHQN = heads.gather(3, at_BHQN) * asks_BM.gather(1, rows_BQ)[:, None, :, None]
            part_BHN = part_BHQN.sum(2)
            total_BHN = part_BHN if total_BHN is None else total_BHN + part_BHN
        assert total_BHN is not None
        return total_BHN / counts_B[:, None, None]

    def _asking(self, seen: Ranking) -> Tensor:
        """(B, M): True at query rows."""
        if self.query == "all_mean":
            return seen.valid_BM
        place_M = torch.arange(seen.valid_BM.shape[1], device=seen.valid_BM.device)
        asks_BM = seen.text_BM & (place_M > seen.visual_BN[:, -1:])
        empty = (~asks_BM.any(1)).nonzero()
        if len(empty):
            raise InputError(
                f"row {int(empty[0])} has no text after its images; use score_query='last' or "
                "'all_mean'"
            )
        return asks_BM


def _level(mean_BHN: Tensor, place_BN: Tensor) -> Tensor:
    """Log attention without its least-squares line along the image."""
    tiny = torch.finfo(torch.float32).tiny
    log_BHN = mean_BHN.double().clamp_min(tiny).log()
    place_B1N = place_BN.double()[:, None]
    place_B1N = place_B1N - place_B1N.mean(-1, keepdim=True)
    spread = place_B1N.square().sum(-1, keepdim=True).clamp_min(1.0)
    slope = (log_BHN * place_B1N).sum(-1, keepdim=True) / spread
    return log_BHN - slope * place_B1N


def _ranks(values: Tensor) -> Tensor:
    """Ranks in (0, 1], the highest value 1; of equal values the first is higher."""
    n = values.shape[-1]
    order = values.sort(dim=-1, descending=True, stable=True).indices
    places = torch.arange(n, 0, -1, device=values.device, dtype=torch.float32) / n
    return torch.empty_like(values, dtype=torch.float32).scatter(
        -1, order, places.expand(values.shape)
    )
