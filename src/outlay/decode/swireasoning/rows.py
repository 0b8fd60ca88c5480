"""Sequences under way: what is fed next, and rows that leave the batch.

Shapes: B sequences, T tokens, V vocabulary, C hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from outlay.cache.base import Compacting
from outlay.decode.swireasoning.controller import Decision
from outlay.decode.swireasoning.embeddings import Embeddings


class Rows:
    """A batch behind a cache, fed one embedding a step.

    Args:
        network: a transformers causal LM.
        embeddings: of the network.
        cache: holds the prompts.
        logits_BV: what follows the prompts.
        mask_BT: 1 where the cache holds a real token (left-padded prompts); None where all are.
    """

    def __init__(
        self,
        network: Any,
        embeddings: Embeddings,
        cache: Any,
        logits_BV: torch.Tensor,
        mask_BT: torch.Tensor | None = None,
    ) -> None:
        self._network, self._embeddings, self.cache = network, embeddings, cache
        self.width = embeddings.width
        self.logits_BV = logits_BV.float()
        self._mask_BT = mask_BT
        taken = inspect.signature(network.forward).parameters
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in taken else {}
        self._takes_positions = "position_ids" in taken

    def probs(self) -> torch.Tensor:
        """What the model itself expects next, unfiltered, at temperature 1; probs_BV."""
        return self.logits_BV.softmax(-1)

    @torch.inference_mode()
    def feed(
        self, decisions: Sequence[Decision], probs_BV: torch.Tensor, keep: Sequence[int]
    ) -> None:
        """Drop the rows that are not in `keep`, and feed the others what was decided."""
        if len(keep) < len(decisions):
            keep_N = torch.tensor(list(keep), device=probs_BV.device)
            self.cache.batch_select_indices(keep_N)
            probs_BV = probs_BV[keep_N]
            if self._mask_BT is not None:
                self._mask_BT = self._mask_BT[keep_N]
        embeds_BC = self._embeddings.fed([decisions[row] for row in keep], probs_BV)
        places: dict[str, torch.Tensor] = {}
        if self._mask_BT is not None:
            ones_B1 = self._mask_BT.new_ones((len(keep), 1))
            self._mask_BT = torch.cat([self._mask_BT, ones_B1], dim=1)
            places["attention_mask"] = self._mask_BT
            position_B1 = self._mask_BT.sum(1, keepdim=True) - 1
        else:
            at = self.cache.get_seq_length()
            position_B1 = torch.full((len(keep), 1), at, device=embeds_BC.device)
        if self._takes_positions:
            places["position_ids"] = position_B1
        logits_B1V = self._network(
            inputs_embeds=embeds_BC[:, None],
            cache=self.cache,
            use_cache=True,
            **self._last,
            **places,
        ).logits
        if isinstance(self.cache, Compacting):
            self.cache.compact()
        self.logits_BV = logits_B1V[:, -1].float()


@torch.inference_mode()
def prefilled(
    network: Any, prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Any, torch.Tensor, torch.Tensor | None]:
    """Read prompts of any length at once, left-padded: the cache, logits_BV and mask_BT."""
    from transformers.cache_utils import DynamicCache

    width = max(map(len, prompts))
    ids_BT = torch.zeros((len(prompts), width), dtype=torch.long)
    mask_BT = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, ids in enumerate(prompts):
        ids_BT[row, width - len(ids) :] = torch.tensor(list(ids))
        mask_BT[row, width - len(ids) :] = 1
    padded = bool((mask_BT == 0).any())
    taken = inspect.signature(network.forward).parameters
    places: dict[str, torch.Tensor] = {}
    if padded:
        places["attention_mask"] = mask_BT.to(device)
        if "position_ids" in taken:
            places["position_ids"] = (mask_BT.cumsum(-1) - 1).clamp(min=0).to(device)
    last = {"logits_to_keep": 1} if "logits_to_keep" in taken else {}
    cache = DynamicCache(config=network.config)
    out = network(ids_BT.to(device), cache=cache, use_cache=True, **last, **places)
    return cache, out.logits[:, -1], mask_BT.to(device) if padded else None
