"""Soft embeddings: mixtures of a model's input embeddings, fed in place of a token.

Shapes: B sequences, T tokens, V vocabulary, C hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakSet

import torch

from outlay.decode.swireasoning.controller import Anchor, Decision
from outlay.errors import CapabilityError, InputError

_SAME = 1e-5  # largest relative difference between feeding a token and feeding its embedding
_LOW = 2e-2  # the same in half precision
_PROBE = 3  # tokens
_checked: WeakSet[Any] = WeakSet()


class Embeddings:
    """The input embeddings of a network, as tokens, anchors and mixtures.

    Args:
        network: a transformers causal LM.
        anchors: token of each anchor; one that is absent has no weight: the soft embedding gets it.
        top_k: probabilities beyond the k largest are left out of a mixture; None takes all.

    Raises:
        CapabilityError: if the network does not take embeddings in place of tokens.
        InputError: for top_k < 1.
    """

    def __init__(
        self, network: Any, anchors: Mapping[Anchor, int], top_k: int | None = None
    ) -> None:
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k_soft={top_k}; must be at least 1, or None for all")
        check_feeding(network)
        self._table: Any = network.get_input_embeddings()
        self._weight_VC: torch.Tensor = self._table.weight.detach()
        self._scale = _scale(self._table, type(network).__name__)
        self._top_k = top_k
        self._anchor_C = {name: self.tokens([token])[0] for name, token in anchors.items()}

    @property
    def width(self) -> int:
        """C."""
        return int(self._weight_VC.shape[-1])

    def tokens(self, ids: Sequence[int]) -> torch.Tensor:
        """Embeddings of B tokens, as the network itself looks them up."""
        return self._table(torch.tensor(list(ids), device=self._weight_VC.device)).detach()

    def soft(self, probs_BV: torch.Tensor) -> torch.Tensor:
        """Mean embeddings under B distributions, in fp32.

        Half precision would lose the tail of a large vocabulary.
        """
        if self._top_k is not None and self._top_k < probs_BV.shape[-1]:
            top_BK, place_BK = probs_BV.topk(self._top_k, dim=-1)
            weight_BK = top_BK / top_BK.sum(-1, keepdim=True)
            found_BKC = self._weight_VC[place_BK].float()
            return torch.einsum("bk,bkc->bc", weight_BK, found_BKC) * self._scale
        size = probs_BV.shape[-1]
        return probs_BV @ self._weight_VC[:size].float() * self._scale

    def fed(self, decisions: Sequence[Decision], probs_BV: torch.Tensor) -> torch.Tensor:
        """What each of B sequences is fed next, embeds_BC."""
        embeds_BC = self.tokens([each.token for each in decisions])
        rows = [row for row, each in enumerate(decisions) if each.soft > 0 or each.anchor]
        if not rows:
            return embeds_BC
        soft_NC = self.soft(probs_BV if len(rows) == len(decisions) else probs_BV[rows])
        embeds_BC = embeds_BC.clone()
        for row, mean_C in zip(rows, soft_NC, strict=True):
            decision = decisions[row]
            anchor_C = self._anchor_C.get(decision.anchor) if decision.anchor else None
            if anchor_C is not None:
                mean_C = decision.soft * mean_C + (1 - decision.soft) * anchor_C.float()
            embeds_BC[row] = mean_C.to(embeds_BC.dtype)
        return embeds_BC


def entropies(probs_BV: torch.Tensor) -> list[float]:
    """Entropy of B distributions, in nats; NaN where one is not finite."""
    values: list[float] = torch.special.entr(probs_BV).sum(-1).tolist()
    return values


def _scale(table: Any, name: str) -> float:
    """What the table multiplies its rows by (Gemma: sqrt of the width); 1 for most."""
    weight_VC = table.weight.detach()
    ids_N = torch.arange(min(8, len(weight_VC)), device=weight_VC.device)
    rows_NC, given_NC = weight_VC[ids_N].float(), table(ids_N).detach().float()
    norm = float((rows_NC * rows_NC).sum())
    scale = float((rows_NC * given_NC).sum()) / norm if norm else 1.0
    tolerance = _SAME if weight_VC.dtype == torch.float32 else _LOW
    if not torch.allclose(rows_NC * scale, given_NC, rtol=tolerance, atol=tolerance):
        raise CapabilityError(
            f"the input embeddings of {name} are no table with one scale, so a mean of them is not "
            "what the model expects; use another model"
        )
    return scale


@torch.inference_mode()
def check_feeding(network: Any) -> None:
    """Raise `CapabilityError` unless feeding a token's embedding equals feeding the token."""
    if network in _checked:
        return
    name = type(network).__name__
    if getattr(network.config, "is_encoder_decoder", False):
        raise CapabilityError(f"{name} is an encoder-decoder; use a decoder-only model")
    table = network.get_input_embeddings()
    if not isinstance(getattr(table, "weight", None), torch.Tensor):
        raise CapabilityError(f"{name} has no table of input embeddings; use another model")
    device = table.weight.device
    ids_BT = torch.arange(_PROBE, device=device)[None] % len(table.weight)
    try:
        by_embeds = network(inputs_embeds=table(ids_BT), use_cache=False).logits.float()
    except (TypeError, ValueError) as error:
        raise CapabilityError(
            f"{name} takes no embeddings in place of tokens ({error}); use another model"
        ) from error
    by_ids = network(ids_BT, use_cache=False).logits.float()
    tolerance = _SAME if by_ids.dtype == table.weight.dtype else _LOW
    if not torch.allclose(by_ids, by_embeds, rtol=tolerance, atol=tolerance):
        raise CapabilityError(
            f"{name} treats embeddings differently from the tokens that they stand for, so soft "
            "embeddings would mean something else; use another model"
        )
    _checked.add(network)
