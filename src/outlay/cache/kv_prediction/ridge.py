"""A closed-form start for the predictor: ridge regression of the base's raw keys and values (ours).

The paper starts from a random map. Least squares on a few thousand tokens is no substitute for
training, since errors compound through the layers that attend to the prediction; it is where
training starts from.

Shapes: N rows, T tokens, S sources of a token and a 1, E targets of a token.
"""

from __future__ import annotations

import torch

from outlay.cache.kv_prediction.model import KVPredictionModel
from outlay.errors import InputError

Moments = dict[tuple[int, int], torch.Tensor]  # by keys (0) or values (1), and layer


@torch.no_grad()
def ridge_start(
    model: KVPredictionModel, rows_NT: torch.Tensor, *, ridge: float = 1e-3, batch: int = 8
) -> None:
    """Set every map to the least-squares one on `rows_NT`, in place.

    Args:
        model: whose predictor is set.
        rows_NT: token ids.
        ridge: added to the sources' second moments, relative to their mean.
        batch: rows at a time.

    Raises:
        InputError: for ridge <= 0, or fewer tokens than a map has inputs.
    """
    predictor, start = model.predictor, model.predictor.identity
    widest = max((m.in_features for maps in predictor.maps() for m in maps), default=0)
    if not ridge > 0:
        raise InputError(f"ridge={ridge}; must be positive")
    if rows_NT.numel() <= widest:
        raise InputError(f"{rows_NT.numel()} tokens for maps of {widest} inputs; give more rows")
    sources_SS: Moments = {}
    crossed_SE: Moments = {}
    for ids_BT in rows_NT.to(model.base.device).split(batch):
        with model.aux_layout.captured() as raw:
            model.aux.base_model(ids_BT, use_cache=False)
        with model.base_layout.captured() as own:
            model.base.base_model(ids_BT, use_cache=False)
        for kind, (from_, to) in enumerate(zip(raw, own, strict=True)):
            widened = [_with_one(tensor) for tensor in from_]
            for source in {*predictor.layer_map[start:]}:
                x_NS = widened[source]
                _add(sources_SS, (kind, source), x_NS.T @ x_NS)
            for layer in range(start, len(to)):
                x_NS, y_NE = widened[predictor.layer_map[layer]], to[layer].flatten(0, 1).double()
                _add(crossed_SE, (kind, layer), x_NS.T @ y_NE)
    for kind, maps in enumerate(predictor.maps()):
        for place, linear in enumerate(maps):
            layer = start + place
            square_SS = sources_SS[kind, predictor.layer_map[layer]]
            extra = ridge * square_SS.diagonal().mean() * torch.eye(len(square_SS)).to(square_SS)
            found_SE = torch.linalg.solve(square_SS + extra, crossed_SE[kind, layer])
            linear.weight.copy_(found_SE[:-1].T)
            linear.bias.copy_(found_SE[-1])


def _with_one(tensor_BTE: torch.Tensor) -> torch.Tensor:
    rows_NE = tensor_BTE.flatten(0, 1).double()
    return torch.cat([rows_NE, rows_NE.new_ones(len(rows_NE), 1)], dim=1)


def _add(into: Moments, key: tuple[int, int], what: torch.Tensor) -> None:
    into[key] = into[key] + what if key in into else what
