"""What each part of a thinking, and each answer, earns: section 4 of arXiv 2505.13438.

All in 64 bits. Shapes: G thinkings of a question, S budgets, A answers a budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from outlay.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

VarianceReduction = Literal["brpo", "v1", "v2", "none"]
SummaryMode = Literal["all", "last"]
AdvNorm = Literal["none", "std"]
EPS = 1e-4  # beside the standard deviation, as in TRL


def returns(rewards_GS: Tensor, prior_S: Sequence[float]) -> Tensor:
    """R_gs (G, S): the weighted rewards of this budget and all later ones.

    Raises:
        InputError: for rewards that are no finite (G, S), or another number of weights.
    """
    weighted_GS = _checked(rewards_GS, prior_S) * _weights(prior_S, rewards_GS)
    return weighted_GS.flip(1).cumsum(1).flip(1)


def from_earlier(rewards_GS: Tensor, prior_S: Sequence[float], lam: float) -> Tensor:
    """V1_gs (G, S): what the same thinking earned at earlier budgets, the later the more.

    Args:
        rewards_GS: mean reward of every thinking at every budget.
        prior_S: of the budgets.
        lam: weight of a budget against the next one, in [0, 1]; at 0 only the last one counts.
    """
    rewards_GS = _checked(rewards_GS, prior_S)
    tails_S = _weights(prior_S, rewards_GS).flip(0).cumsum(0).flip(0)
    found_GS = torch.zeros_like(rewards_GS)
    for s in range(1, rewards_GS.shape[1]):
        decay_J = torch.tensor([float(lam) ** (s - 1 - j) for j in range(s)], dtype=torch.float64)
        decay_J = decay_J.to(rewards_GS.device)
        found_GS[:, s] = (rewards_GS[:, :s] * decay_J).sum(1) / decay_J.sum() * tails_S[s]
    return found_GS


def from_group(returns_GS: Tensor, leave_one_out: bool = False) -> Tensor:
    """V2_gs (G, S): the mean return of the question's thinkings; 0 for a single one.

    Args:
        returns_GS: from `returns`.
        leave_one_out: a thinking's own return is left out of its baseline.
    """
    group = returns_GS.shape[0]
    if group == 1:
        return torch.zeros_like(returns_GS)
    total_S = returns_GS.sum(0, keepdim=True)
    if leave_one_out:
        return (total_S - returns_GS) / (group - 1)
    return (total_S / group).expand_as(returns_GS)


def baseline(
    rewards_GS: Tensor,
    prior_S: Sequence[float],
    lam: float = 0.5,
    mode: VarianceReduction = "brpo",
    leave_one_out: bool = False,
) -> Tensor:
    """What is subtracted from the return of every segment (equation 8).

    BRPO goes from the group's mean at the first budget to the thinking's own past at the last one.
    """
    returns_GS = returns(rewards_GS, prior_S)
    if mode == "none":
        return torch.zeros_like(returns_GS)
    if mode == "v2":
        return from_group(returns_GS, leave_one_out)
    v1_GS = from_earlier(rewards_GS, prior_S, lam)
    if mode == "v1":
        return v1_GS
    budgets = returns_GS.shape[1]
    past_S = torch.arange(budgets, dtype=torch.float64, device=returns_GS.device) / budgets
    return past_S * v1_GS + (1 - past_S) * from_group(returns_GS, leave_one_out)


def thinking_advantages(
    rewards_GS: Tensor,
    prior_S: Sequence[float],
    lam: float = 0.5,
    mode: VarianceReduction = "brpo",
    leave_one_out: bool = False,
    norm: AdvNorm = "none",
) -> Tensor:
    """A_gs (G, S) of every segment of the thinkings of one question; also of those that a short
    thinking does not have, which are not used.

    Args:
        rewards_GS: mean reward of the answers of each thinking at each budget.
        prior_S: sums to 1.
        lam: see `from_earlier`.
        mode: of the baseline; "v1" or "v2" alone, or "none", are ablations.
        leave_one_out: see `from_group`.
        norm: "none" (the paper's), or divide by the standard deviation over the group.

    Raises:
        InputError: for rewards that are no finite (G, S), or another number of weights.
    """
    returns_GS = returns(rewards_GS, prior_S)
    advantages_GS = returns_GS - baseline(rewards_GS, prior_S, lam, mode, leave_one_out)
    if norm == "std" and returns_GS.shape[0] > 1:
        advantages_GS = advantages_GS / (returns_GS.std(0, keepdim=True) + EPS)
    return advantages_GS


def summary_advantages(
    rewards_GSA: Tensor,
    branch_GS: Tensor,
    mode: SummaryMode = "all",
    weights_S: Sequence[float] | None = None,
) -> Tensor:
    """(G, S, A) of every answer: its reward minus the mean of its branch (section 4.3).

    With one answer a budget, the mean over the thinkings of the same budget is subtracted instead.

    Args:
        rewards_GSA: of every answer.
        branch_GS: which branch of its thinking a budget belongs to; those of equal number pool
            their answers.
        mode: "last" trains only the answers of the last budget.
        weights_S: of budgets; None weighs all alike, whatever the thinking's prior (decoupled).

    Raises:
        InputError: for rewards that are not finite, or shapes that do not fit.
    """
    if rewards_GSA.dim() != 3 or branch_GS.shape != rewards_GSA.shape[:2]:
        raise InputError(
            f"rewards {tuple(rewards_GSA.shape)} and branches {tuple(branch_GS.shape)}; give "
            "(G, S, A) and (G, S)"
        )
    if not bool(torch.isfinite(rewards_GSA).all()):
        raise InputError("rewards of answers are not all finite")
    rewards_GSA = rewards_GSA.double()
    mean_GS = rewards_GSA.mean(2)
    if rewards_GSA.shape[2] == 1:
        base_GS = mean_GS.mean(0, keepdim=True).expand_as(mean_GS)
    else:
        same_GSS = (branch_GS[:, :, None] == branch_GS[:, None, :]).double()
        base_GS = (same_GSS * mean_GS[:, None, :]).sum(2) / same_GSS.sum(2)
    advantages_GSA = rewards_GSA - base_GS[:, :, None]
    if weights_S is not None:
        advantages_GSA = advantages_GSA * _weights(weights_S, mean_GS)[None, :, None]
    if mode == "last":
        kept_GSA = torch.zeros_like(advantages_GSA)
        kept_GSA[:, -1] = advantages_GSA[:, -1]
        return kept_GSA
    return advantages_GSA


def _weights(prior_S: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(list(prior_S), dtype=torch.float64, device=like.device)


def _checked(rewards_GS: Tensor, prior_S: Sequence[float]) -> Tensor:
    if rewards_GS.dim() != 2 or rewards_GS.shape[1] != len(prior_S) or not rewards_GS.numel():
        raise InputError(
            f"rewards of shape {tuple(rewards_GS.shape)} and {len(prior_S)} weights; give (G, S) "
            "and S"
        )
    if not bool(torch.isfinite(rewards_GS).all()):
        raise InputError("rewards are not all finite")
    return rewards_GS.double()
