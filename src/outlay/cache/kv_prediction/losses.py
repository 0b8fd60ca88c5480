"""The losses of KV Prediction (arXiv 2410.08391, section 3.3 and appendix).

`L = lambda_base * CE(base) + lambda_aux * CE(aux) + lambda_kv * (L1 of keys + L1 of values)`, with
an optional z-loss on both cross-entropies. The paper prefers the mean over layers, its released
configurations use the sum: `kv_reduce`.

Shapes: B sequences, T tokens, V vocabulary, E keys (or values) of a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from outlay.errors import InputError

KVReduce = Literal["mean", "sum"]
IGNORED = -100


@dataclass(frozen=True)
class LossWeights:
    """What the parts of the loss count.

    Args:
        lambda_base: of the base's cross-entropy on predicted keys and values.
        lambda_aux: of the auxiliary's own cross-entropy.
        lambda_kv: of the distance between predicted and true keys and values.
        kv_reduce: mean or sum over layers.
        z_loss: of the squared log-partition, added to each cross-entropy; 0 is off.

    Raises:
        InputError: for negative or infinite weights, or when all are 0.
    """

    lambda_base: float = 1.0
    lambda_aux: float = 1.0
    lambda_kv: float = 1.0
    kv_reduce: KVReduce = "mean"
    z_loss: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("lambda_base", "lambda_aux", "lambda_kv", "z_loss"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name}={value}; must be finite and >= 0 (0 is off)")
        if self.kv_reduce not in ("mean", "sum"):
            raise InputError(f"kv_reduce={self.kv_reduce!r}; choose mean or sum")
        if not (self.lambda_base or self.lambda_aux or self.lambda_kv):
            raise InputError("lambda_base, lambda_aux and lambda_kv are all 0: nothing is learnt")


def next_token_loss(
    logits_BTV: torch.Tensor, labels_BT: torch.Tensor, z_loss: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy of the next tokens, and `z_loss` times the mean squared log-partition.

    Labels are aligned with the inputs, and `IGNORED` where nothing is to be learnt.
    """
    logits_NV = logits_BTV[:, :-1].flatten(0, 1).float()
    target_N = labels_BT[:, 1:].flatten()
    kept_N = target_N != IGNORED
    count = kept_N.sum().clamp(min=1)
    # One log-partition serves both terms: over a large vocabulary, memory is what limits a batch.
    partition_N = logits_NV.logsumexp(-1)
    picked_N = logits_NV.gather(1, target_N.clamp(min=0)[:, None])[:, 0]
    entropy = ((partition_N - picked_N) * kept_N).sum() / count
    return entropy, z_loss * (partition_N.square() * kept_N).sum() / count


def kv_distance(
    predicted: Sequence[torch.Tensor],
    true: Sequence[torch.Tensor],
    mask_BT: torch.Tensor | None,
    reduce: KVReduce,
) -> torch.Tensor:
    """Mean absolute error of each layer over kept positions, reduced over layers.

    Args:
        predicted: keys_BTE or values_BTE of every layer.
        true: likewise, of the base itself.
        mask_BT: 1 where a position counts; None for everywhere.
        reduce: over layers.
    """
    terms = []
    for ours_BTE, own_BTE in zip(predicted, true, strict=True):
        error_BT = (ours_BTE.float() - own_BTE.float()).abs().mean(-1)
        if mask_BT is None:
            terms.append(error_BT.mean())
        else:
            terms.append((error_BT * mask_BT).sum() / mask_BT.sum().clamp(min=1))
    total = torch.stack(terms).sum()
    return total / len(terms) if reduce == "mean" else total
