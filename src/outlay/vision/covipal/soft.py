"""Removal made soft: visual keys that are kept with a chance, so that gradients reach the module.

From layer l on, every query's attention logit of visual key k gets `log p_k` added; text keys get
nothing. p = 1 changes nothing, p = 0 removes the key, and with p in {0, 1} this is hard removal
with original positions. Several layers may remove one after the other; their chances multiply.

B rows, T prompt tokens, N visual tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from outlay.errors import InputError
from outlay.vision.covipal.losses import log_gate
from outlay.vision.covipal.tokens import Tokens, Watch, gather, need_mask_attention

Chance = Callable[[Tokens, Tensor], Tensor]
"""Streams before a layer and chances so far (B, N) -> chances to be kept there (B, N)."""
EPS = 1e-4


class SoftMask:
    """A context in which layers look less at visual tokens that are unlikely to be kept.

    Args:
        model: a vision-language model under eager or SDPA attention.
        chances: layer -> chance; from that layer on the keys are softly removed.
        eps: what is left of a key of chance 0.
        hide: (B, T) True at words that the chances must not depend on, such as the answer's.

    Raises:
        CapabilityError: for attention that takes no float mask.
        InputError: for no layer, one that does not exist, or eps outside (0, 1).
    """

    def __init__(
        self,
        model: Any,
        chances: Mapping[int, Chance],
        eps: float = EPS,
        hide: Tensor | None = None,
    ) -> None:
        if not chances:
            raise InputError("no layer says how likely its tokens are kept; give one")
        if not 0 < eps < 1:
            raise InputError(f"eps={eps!r}; need 0 < eps < 1, {EPS} is usual")
        self.watch = Watch(model, entering=tuple(chances))
        self.watch.hide = hide
        need_mask_attention(self.watch.parts.decoder)
        self.chances, self.eps = dict(chances), eps
        self.kept: dict[int, Tensor] = {}  # layer -> chances that tokens live there
        self._bias_BT: Tensor | None = None
        self._handles: list[Any] = []

    def __enter__(self) -> SoftMask:
        self.watch.__enter__()
        layers = self.watch.parts.decoder.layers
        self._handles = [
            layers[i].register_forward_pre_hook(self._layer(i), with_kwargs=True)
            for i in range(min(self.chances), len(layers))
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._bias_BT = None
        self.watch.__exit__()

    @property
    def alive(self) -> Tensor:
        """(B, N): chances that tokens live in the last layer."""
        return self.kept[max(self.kept)]

    def _layer(self, index: int) -> Any:
        def hook(
            module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            hidden = args[0] if args else kwargs["hidden_states"]
            if index in self.chances:
                self._remove(index, hidden)
            kwargs = dict(kwargs)
            kwargs["attention_mask"] = biased(
                kwargs.get("attention_mask"), self._bias_BT, hidden.dtype
            )
            return args, kwargs

        return hook

    def _remove(self, index: int, hidden_BTD: Tensor) -> None:
        seen = self.watch.seen
        tokens = gather(hidden_BTD, seen.visual_BT, self.watch.text, self.watch.places)
        before = [layer for layer in self.kept if layer < index]
        if not before:
            self.kept.clear()
            so_far_BN = tokens.visual_BN.to(tokens.places_BN3.dtype)
        else:
            so_far_BN = self.kept[max(before)]
        p_BN = self.chances[index](tokens, so_far_BN)
        self.kept[index] = so_far_BN * p_BN
        gate_BN = log_gate(self.kept[index].clamp(0, 1), self.eps)
        blank_BT = gate_BN.new_zeros(seen.visual_BT.shape)
        self._bias_BT = blank_BT.scatter_add(1, tokens.at_BN, gate_BN * tokens.visual_BN)


def biased(mask: Tensor | None, bias_BT: Tensor | None, dtype: torch.dtype) -> Tensor:
    """(B, 1, T, T) float mask: a layer's own, with something added to keys.

    Args:
        mask: as the layer gets it: None (causal), True where open, or added to logits.
        bias_BT: added to every query's logit of a key.
        dtype: of the layer.
    """
    assert bias_BT is not None
    length = bias_BT.shape[1]
    shut = torch.finfo(dtype).min
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=bias_BT.device).tril()[
            None, None
        ]
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, shut)
    return (mask.to(bias_BT.dtype) + bias_BT[:, None, None]).clamp_min(shut).to(dtype)
