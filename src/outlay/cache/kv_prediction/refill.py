"""An exact cache after all (ours): some tokens later, the base reads the prompt itself.

The first token came from a predicted cache; its errors need not stay. Rows of tokens that were
generated before the refill keep what they were computed from. Done in the foreground: that one step
takes as long as the base's prefill.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from transformers.cache_utils import DynamicCache

from outlay.cache.loop import booked
from outlay.errors import BudgetError
from outlay.models.base import Account

if TYPE_CHECKING:
    from outlay.models.local import LocalModel


class RefilledCache(DynamicCache):
    """A cache whose prompt rows become the base's own.

    Args:
        model: the base.
        ids_BT: the prompts.
        after: decoded tokens before the refill.
        account: where the base's reading is booked; a budget without room for it, where prompts
            count, leaves the predicted rows.
    """

    def __init__(
        self, model: LocalModel, ids_BT: torch.Tensor, after: int, account: Account
    ) -> None:
        super().__init__(config=model.model.config)
        self._model, self._ids_BT, self._after, self._account = model, ids_BT, after, account
        self._passes = 0

    def compact(self) -> None:
        """Count a forward pass (the first is the prompt's last tokens); refill when it is time."""
        self._passes += 1
        if self._passes == self._after + 1:
            self._refill()

    @torch.inference_mode()
    def _refill(self) -> None:
        rows, width = self._ids_BT.shape
        flops = self._model.flops(width, logits_rows=0, batch=rows)
        try:
            with booked(self._account, rows * width, flops, time.perf_counter()):
                own = DynamicCache(config=self._model.model.config)
                self._model.model.base_model(self._ids_BT, cache=own, use_cache=True)
        except BudgetError:
            return
        for layer, exact in zip(self.layers, own.layers, strict=True):
            layer.keys = torch.cat([exact.keys, layer.keys[:, :, width:]], dim=2)
            layer.values = torch.cat([exact.values, layer.values[:, :, width:]], dim=2)
