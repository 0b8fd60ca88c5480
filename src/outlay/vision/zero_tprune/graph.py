"""Weighted PageRank on attention: how important every token is, by who attends to it.

Attention is the adjacency matrix of a directed graph. Token j votes for token i with weight
`A[j, i]`, and votes of important tokens count more (section 3.2 of arXiv 2305.17328). Rows of A sum
to 1, so a step `s <- A^T s` conserves the sum of s. The paper's equation divides by N at every
step; that changes no ranking and makes s vanish in half precision, so it is left out.

Shapes: B images, H heads, N tokens, P patches (N without the special tokens).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from outlay.errors import InputError

HeadAgg = Literal["eir", "mean", "max"]
Bounds = tuple[float, float]
PUBLISHED: Bounds = (0.01, 0.7)
ROW_TOLERANCE = 1e-2
MOST_STEPS = 10_000


def checked(attention_BHNN: Tensor) -> Tensor:
    """Attention in float32 or wider, its rows summing to 1 exactly.

    Half precision leaves rows that sum to 0.999; fifty steps later a twentieth of the mass is gone.

    Raises:
        InputError: for attention that is not square, not finite, negative, or whose rows do not sum
            to 1 within 1e-2.
    """
    if attention_BHNN.ndim != 4 or attention_BHNN.shape[2] != attention_BHNN.shape[3]:
        raise InputError(
            f"attention of shape {tuple(attention_BHNN.shape)}; need (images, heads, tokens, "
            "tokens) of self-attention: cross-attention has no graph"
        )
    if not bool(torch.isfinite(attention_BHNN).all()):
        raise InputError("attention holds NaN or infinity; the model's activations overflowed")
    wide = attention_BHNN.to(torch.promote_types(attention_BHNN.dtype, torch.float32))
    sums_BHN1 = wide.sum(-1, keepdim=True)
    if bool((wide < 0).any()) or bool(((sums_BHN1 - 1).abs() > ROW_TOLERANCE).any()):
        worst = float((sums_BHN1 - 1).abs().max()) + 1
        raise InputError(
            f"attention is not row-stochastic: a row sums to {worst:.3g} or holds a negative "
            "value; give softmax(q k^T), a row for each query"
        )
    return wide / sums_BHN1


def cut(attention_BHNN: Tensor, keep_BK: Tensor) -> Tensor:
    """Attention among some tokens alone, rows summing to 1 again: (B, H, K, K)."""
    heads, count = attention_BHNN.shape[1], keep_BK.shape[1]
    rows = keep_BK[:, None, :, None].expand(-1, heads, -1, attention_BHNN.shape[3])
    columns = keep_BK[:, None, None, :].expand(-1, heads, count, -1)
    small_BHKK = attention_BHNN.gather(2, rows).gather(3, columns)
    sums_BHK1 = small_BHKK.sum(-1, keepdim=True)
    # A token that looked only at dropped ones votes for all alike.
    return torch.where(sums_BHK1 > 0, small_BHKK / sums_BHK1.clamp_min(1e-30), 1 / count)


def start(tokens: int, boosted: int = 0, like: Tensor | None = None) -> Tensor:
    """Scores before the first vote, (N,), summing to N.

    Args:
        tokens: N.
        boosted: the first tokens, each of which starts with sqrt(N) times a patch's score
            (the class token; section 3.2); 0 for "uni".
        like: gives device and type.
    """
    scores_N = torch.ones(tokens) if like is None else like.new_ones(tokens)
    scores_N[:boosted] = math.sqrt(tokens)
    return scores_N * (tokens / scores_N.sum())


def page_rank(
    attention_BHNN: Tensor, start_N: Tensor, steps: int, tolerance: float = 0.0
) -> Tensor:
    """Scores of every head after `steps` votes, (B, H, N); each row sums to N.

    Args:
        attention_BHNN: from `checked`.
        start_N: from `start`.
        steps: T; many votes forget the start and give the stationary distribution.
        tolerance: a head stops once none of its scores moves by more; 0 takes all steps.

    Raises:
        InputError: for steps out of range.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise InputError(f"T={steps} votes; need 1 to {MOST_STEPS}")
    scores_BH1N = start_N.expand(*attention_BHNN.shape[:2], 1, -1)
    still_BH11 = torch.zeros(
        *attention_BHNN.shape[:2], 1, 1, dtype=torch.bool, device=attention_BHNN.device
    )
    for _ in range(steps):
        voted_BH1N = scores_BH1N @ attention_BHNN  # (A^T s)^T
        if tolerance > 0:
            moved_BH11 = (voted_BH1N - scores_BH1N).abs().amax(-1, keepdim=True)
            # Each head stops by itself, so that an image is treated alike alone and in a batch.
            voted_BH1N = torch.where(still_BH11, scores_BH1N, voted_BH1N)
            still_BH11 = still_BH11 | (moved_BH11 < tolerance)
        scores_BH1N = voted_BH1N
        if tolerance > 0 and bool(still_BH11.all()):
            break
    return scores_BH1N[:, :, 0]


def passing(scores_BHP: Tensor, bounds: Bounds | None) -> Tensor:
    """Heads whose votes vary as a good head's do, (B, H): the variance-based head filter (VHF).

    Scores are those of patches alone, rescaled to mean 1: only so does the published range
    [0.01, 0.7] make sense. Where no head passes, all do. None passes all.
    """
    if bounds is None:
        return torch.ones(scores_BHP.shape[:2], dtype=torch.bool, device=scores_BHP.device)
    relative = scores_BHP / scores_BHP.mean(-1, keepdim=True).clamp_min(1e-30)
    variance_BH = relative.var(-1, unbiased=False)
    passed_BH = (variance_BH >= bounds[0]) & (variance_BH <= bounds[1])
    return passed_BH | ~passed_BH.any(1, keepdim=True)


def aggregate(scores_BHP: Tensor, heads_BH: Tensor, how: HeadAgg = "eir") -> Tensor:
    """One score a patch from the heads that pass, (B, P).

    "eir" emphasises informative regions: the root of the mean of squares, so that a patch which one
    head finds important stays ahead of patches which all find mediocre (section 3.2).
    """
    weights_BH1 = heads_BH[..., None].to(scores_BHP.dtype)
    count_B1 = weights_BH1.sum(1)
    if how == "max":
        return scores_BHP.masked_fill(~heads_BH[..., None], -math.inf).amax(1)
    if how == "mean":
        return (scores_BHP * weights_BH1).sum(1) / count_B1
    return ((scores_BHP.square() * weights_BH1).sum(1) / count_B1).sqrt()
