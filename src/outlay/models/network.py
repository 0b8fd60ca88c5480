"""The forward passes of a local model: behind the keys and values of a tree, and up to the logits.

Shapes: B rows, T time, N positions, C hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch

from outlay.models.base import Branch
from outlay.models.kv import gather, probe_layout


class Network:
    """A transformers causal LM, whose vocabulary projection runs only where it is asked for.

    Args:
        model: the network, in eval mode.
        name: shown in errors.

    Raises:
        CapabilityError: for a network whose state is not keys and values of every token.
    """

    def __init__(self, model: Any, name: str) -> None:
        self.model = model
        self.device: torch.device = model.device
        self._lm_head = model.get_output_embeddings()
        self._split = self._can_split()
        body = model.base_model if self._split else model
        with torch.inference_mode():
            self._layout = probe_layout(body, self.device, name)
        self.row_bytes = sum(
            (each.key_heads * each.key_dim + each.value_heads * each.value_dim)
            * each.dtype.itemsize
            for each in self._layout
        )
        taken = inspect.signature(body.forward).parameters
        self._takes_positions = "position_ids" in taken  # ALiBi models count the mask instead

    @torch.inference_mode()
    def _can_split(self) -> bool:
        """True if logits are exactly head(base(x)): no scaling or soft-capping in between."""
        config = self.model.config.get_text_config()
        soft = getattr(config, "final_logit_softcapping", None)
        if self._lm_head is None or soft:  # capping hardly shows on the probe's small logits
            return False
        ids_BT = torch.tensor([[0, 1, 2]], device=self.device) % int(config.vocab_size)
        whole = self.model(ids_BT, use_cache=False).logits
        parts = self._lm_head(self.model.base_model(ids_BT, use_cache=False).last_hidden_state)
        return bool(torch.allclose(whole, parts, rtol=1e-5, atol=1e-5))

    def gather(self, paths: Sequence[Sequence[Branch]], room: int) -> tuple[Any, list[int]]:
        """A batch cache of the paths' KV with `room` columns to grow; see `kv.gather`."""
        return gather(paths, room, layout=self._layout, device=self.device)

    def body(self, ids_BT: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """What `head` maps to logits: hidden states, or the logits themselves if not separable."""
        if not self._split:
            return cast(
                torch.Tensor, self.model(ids_BT, use_cache="cache" in kwargs, **kwargs).logits
            )
        out = self.model.base_model(ids_BT, use_cache="cache" in kwargs, **kwargs)
        return cast(torch.Tensor, out.last_hidden_state)

    def head(self, hidden_NC: torch.Tensor) -> torch.Tensor:
        """Logits of what `body` gives."""
        return cast(torch.Tensor, self._lm_head(hidden_NC)) if self._split else hidden_NC

    def behind(self, ids_BT: torch.Tensor, cache: Any, past: Sequence[int]) -> torch.Tensor:
        """`body` behind a gathered cache whose rows hold `past[b]` real columns."""
        filled, width = cache.get_seq_length(), ids_BT.shape[1]
        position_BT = torch.tensor(list(past), device=self.device)[:, None] + torch.arange(
            width, device=self.device
        )
        mask_BT = None
        if min(past) < filled:
            mask_BT = torch.ones((len(past), filled + width), dtype=torch.long, device=self.device)
            for row, real in enumerate(past):
                mask_BT[row, : filled - real] = 0
        where = {"position_ids": position_BT} if self._takes_positions else {}
        return self.body(ids_BT, cache=cache, attention_mask=mask_BT, **where)

    def logits(
        self, ids_BT: torch.Tensor, cache: Any, past: Sequence[int], last_B: torch.Tensor
    ) -> torch.Tensor:
        """Feed ids behind a gathered cache; logits_BV after each row's position `last_B`."""
        hidden_BTC = self.behind(ids_BT, cache, past)
        rows_B = torch.arange(len(last_B), device=self.device)
        return self.head(hidden_BTC[rows_B, last_B])

    @torch.inference_mode()
    def all_logits(self, ids_BT: torch.Tensor, paths: Sequence[Sequence[Branch]]) -> torch.Tensor:
        """logits_BTV after every one of the ids, fed behind the paths."""
        cache, past = self.gather(paths, ids_BT.shape[1])
        return self.head(self.behind(ids_BT, cache, past))
