"""The predictor: one linear map a base layer for keys and one for values.

KV Prediction (arXiv 2410.08391), section 3.1. Layers of the base may differ in heads and sizes.

Shapes: B sequences, T tokens, E all heads' keys (or values) of a token in one row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from outlay.cache.kv_prediction.layout import LayerSize
from outlay.cache.kv_prediction.mapping import check_map
from outlay.errors import InputError


class KVPredictor(nn.Module):
    """Raw keys and values of the base, from those of the auxiliary.

    Args:
        base: sizes of the base's layers.
        aux: sizes of the auxiliary's layers.
        layer_map: the auxiliary layer behind every base layer.
        identity: the first layers whose keys and values are taken over as they are (ours, for an
            auxiliary that is the base's own first layers; the paper has none).

    Raises:
        InputError: for a map that does not fit, or identity layers of other sizes.
    """

    def __init__(
        self,
        base: Sequence[LayerSize],
        aux: Sequence[LayerSize],
        layer_map: Sequence[int],
        *,
        identity: int = 0,
    ) -> None:
        super().__init__()
        self.layer_map = check_map(layer_map, len(base), len(aux))
        if not 0 <= identity <= len(base):
            raise InputError(f"identity={identity}; must be between 0 and {len(base)} layers")
        pairs = [(size, aux[source]) for size, source in zip(base, self.layer_map, strict=True)]
        for index, (to, source) in enumerate(pairs[:identity]):
            if to != source:
                raise InputError(
                    f"layer {index} cannot be taken over: the auxiliary has {source.heads} heads "
                    f"of {source.key_dim}, the base {to.heads} of {to.key_dim}; lower prefix_aux"
                )
        self.identity = identity
        rest = pairs[identity:]
        self.keys = nn.ModuleList(nn.Linear(source.keys, to.keys) for to, source in rest)
        self.values = nn.ModuleList(nn.Linear(source.values, to.values) for to, source in rest)

    def forward(
        self, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Predicted keys_BTE and values_BTE of every base layer, from the auxiliary's."""
        of_keys, of_values = self.maps()
        return self._mapped(of_keys, keys), self._mapped(of_values, values)

    def _mapped(
        self, maps: Sequence[nn.Linear], sources: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        taken = [sources[index] for index in self.layer_map]
        mapped = taken[: self.identity]
        for linear, tensor in zip(maps, taken[self.identity :], strict=True):
            mapped.append(linear(tensor.to(linear.weight.dtype)))
        return mapped

    def maps(self) -> tuple[list[nn.Linear], list[nn.Linear]]:
        """The maps of keys and of values, of the layers from `identity` on."""
        keys, values = (
            [linear for linear in linears if isinstance(linear, nn.Linear)]
            for linears in (self.keys, self.values)
        )
        return keys, values

    def flops(self, tokens: int) -> int:
        """Multiplications and additions for `tokens` tokens."""
        keys, values = self.maps()
        return 2 * tokens * sum(m.in_features * m.out_features for m in (*keys, *values))

    @torch.no_grad()
    def become_identity(self) -> None:
        """Make every map between equal sizes the identity.

        Raises:
            InputError: for a map between different sizes.
        """
        keys, values = self.maps()
        for linear in (*keys, *values):
            if linear.in_features != linear.out_features:
                raise InputError(
                    f"a map from {linear.in_features} to {linear.out_features} numbers is no "
                    "identity; use init='default'"
                )
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)
