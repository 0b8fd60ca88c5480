"""The S-stage: patches that are near copies of better ones are dropped.

Patches are split into two groups, and those of group A that are most similar to some patch of group
B go (section 3.3 of arXiv 2305.17328). They are dropped, not merged: their copy stays.

Shapes: B images, P patches, F features, G patches of group A, J of group B.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from outlay.errors import InputError

Partition = Literal["seq_u", "seq_i", "alt", "random", "full"]
Metric = Literal["cos", "dot", "l1", "l2"]


def groups(importance_BP: Tensor, partition: Partition, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Indices of group A, from which patches go, and of group B: (B, G) and (B, J).

    Args:
        importance_BP: of every patch; equal ones are ordered by index.
        partition: "seq_u" takes the less important half (floor) as A, as the paper does; "seq_i"
            the more important half; "alt" every other patch, beginning with the first; "random" a
            random half; "full" all patches are in both groups.
        seed: of "random".
    """
    size, patches = importance_BP.shape
    if partition == "full":
        everything = torch.arange(patches, device=importance_BP.device).expand(size, -1)
        return everything, everything
    half = patches // 2
    if partition == "alt":
        order_BP = torch.arange(patches, device=importance_BP.device).expand(size, -1)
        return order_BP[:, ::2][:, :half], torch.cat(
            [order_BP[:, 1::2], order_BP[:, ::2][:, half:]], dim=1
        )
    if partition == "random":
        # Drawn once for all images, so that an image is treated alike alone and in a batch.
        generator = torch.Generator().manual_seed(seed)
        order_BP = torch.randperm(patches, generator=generator).expand(size, -1)
        order_BP = order_BP.to(importance_BP.device)
    else:
        up = partition == "seq_u"
        order_BP = importance_BP.sort(dim=-1, descending=not up, stable=True).indices
    return order_BP[:, :half], order_BP[:, half:]


def likeness(one_BGF: Tensor, other_BJF: Tensor, metric: Metric) -> Tensor:
    """How alike every pair is, (B, G, J): larger is more alike."""
    if metric in ("l1", "l2"):
        return -torch.cdist(one_BGF, other_BJF, p=float(metric[1]))
    if metric == "cos":
        one_BGF = torch.nn.functional.normalize(one_BGF, dim=-1)
        other_BJF = torch.nn.functional.normalize(other_BJF, dim=-1)
    return one_BGF @ other_BJF.transpose(1, 2)


def near_copies(
    features_BPF: Tensor,
    importance_BP: Tensor,
    count: int,
    *,
    partition: Partition = "seq_u",
    metric: Metric = "cos",
    seed: int = 0,
) -> Tensor:
    """(B, count): patches of group A that resemble a patch of group B most; ties go to the first.

    Raises:
        InputError: for NaN, or more patches than group A has.
    """
    if bool(features_BPF.isnan().any()) or bool(importance_BP.isnan().any()):
        raise InputError("features or importance hold NaN; the model's activations overflowed")
    from_BG, to_BJ = groups(importance_BP, partition, seed)
    if not 0 <= count <= from_BG.shape[1]:
        raise InputError(f"{count} near copies to drop of a group of {from_BG.shape[1]} patches")

    def rows(index_BK: Tensor) -> Tensor:
        return features_BPF.gather(1, index_BK[..., None].expand(-1, -1, features_BPF.shape[-1]))

    alike_BGJ = likeness(rows(from_BG).float(), rows(to_BJ).float(), metric)
    same_BGJ = from_BG[:, :, None] == to_BJ[:, None, :]
    best_BG = alike_BGJ.masked_fill(same_BGJ, -math.inf).amax(-1)
    # By index first, so that equal likeness goes to the first patch whatever the groups' order.
    by_index = from_BG.sort(dim=1)
    best_BG = best_BG.gather(1, by_index.indices)
    chosen = best_BG.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return by_index.values.gather(1, chosen).sort(dim=1).values
