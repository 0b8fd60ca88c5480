"""Which layer of the auxiliary predicts which layer of the base (KV Prediction, section 3.2)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from outlay.errors import InputError


def canonical_map(base_layers: int, aux_layers: int) -> tuple[int, ...]:
    """The map of KVP-C, for a smaller model of the family.

    With `base_layers = q * aux_layers + r`, each of the first r auxiliary layers serves q + 1
    consecutive base layers, each of the others q.

    Raises:
        InputError: unless 1 <= aux_layers <= base_layers.
    """
    if not 1 <= aux_layers <= base_layers:
        raise InputError(
            f"an auxiliary of {aux_layers} layers for a base of {base_layers}; "
            "it needs at least 1 and at most as many layers as the base"
        )
    each, more = divmod(base_layers, aux_layers)
    return tuple(aux for aux in range(aux_layers) for _ in range(each + (aux < more)))


def pruned_map(base_layers: int, keep: Sequence[int]) -> tuple[int, ...]:
    """The map of KVP-LP, for a copy of the base with only the layers `keep`.

    Base layer i is predicted from the last kept layer at or before it; layers before the first
    kept one from that.

    Raises:
        InputError: for indices that are out of range or not increasing.
    """
    kept = list(keep)
    if not kept or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= base_layers:
        raise InputError(
            f"keep={kept}; give increasing layer indices between 0 and {base_layers - 1}"
        )
    return tuple(max(0, bisect_right(kept, layer) - 1) for layer in range(base_layers))


def check_map(layer_map: Sequence[int], base_layers: int, aux_layers: int) -> tuple[int, ...]:
    """`layer_map` as a tuple.

    Raises:
        InputError: for another length than the base has layers, an index that the auxiliary does
            not have, or a map that goes back.
    """
    chosen = tuple(int(index) for index in layer_map)
    if len(chosen) != base_layers:
        raise InputError(
            f"layer_map has {len(chosen)} entries, the base {base_layers} layers; "
            "give one auxiliary layer for each"
        )
    if wrong := [index for index in chosen if not 0 <= index < aux_layers]:
        raise InputError(
            f"layer_map names auxiliary layer {wrong[0]}; the auxiliary has layers 0 to "
            f"{aux_layers - 1}"
        )
    if list(chosen) != sorted(chosen):
        raise InputError(f"layer_map={list(chosen)} goes back; deeper layers need deeper sources")
    return chosen


def every(base_layers: int, keep: int) -> tuple[int, ...]:
    """`keep` layers at regular intervals from layer 0, as the paper prunes.

    Raises:
        InputError: unless 1 <= keep <= base_layers.
    """
    if not 1 <= keep <= base_layers:
        raise InputError(f"keep={keep}; must be between 1 and the base's {base_layers} layers")
    return tuple(index * base_layers // keep for index in range(keep))
