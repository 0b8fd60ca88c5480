"""Losses of both stages, and the gate that stands for removal while stage 2 trains.

B rows, N visual tokens, S logits.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from outlay.errors import InputError
from outlay.vision.counts import half_up

Stage1Loss = Literal["kl+bce", "kl", "bce"]
Gate = Literal["soft", "st_topk"]
Teacher = Literal["auto", "ce", "kl", "both"]
BCE_WEIGHT = 0.5
SOLVE_STEPS = 60  # bisections for the threshold of a budget


def counts(valid_BN: Tensor, ratio: float) -> Tensor:
    """(B,) tokens that a ratio keeps of each row: half up, at least 1."""
    n_B = valid_BN.sum(1)
    kept = [max(1, half_up(ratio * int(n))) for n in n_B.tolist()]
    return torch.tensor(kept, device=n_B.device).minimum(n_B)


def top_mask(score_BN: Tensor, valid_BN: Tensor, k_B: Tensor) -> Tensor:
    """(B, N): True at the k best valid ones of each row; ties go to the first."""
    order_BN = (
        score_BN.masked_fill(~valid_BN, float("-inf"))
        .sort(dim=1, descending=True, stable=True)
        .indices
    )
    rank_BN = torch.empty_like(order_BN).scatter_(
        1, order_BN, torch.arange(order_BN.shape[1], device=order_BN.device).expand_as(order_BN)
    )
    return (rank_BN < k_B[:, None]) & valid_BN


def stage_one(
    score_BN: Tensor,
    target_BN: Tensor,
    valid_BN: Tensor,
    *,
    kind: Stage1Loss = "kl+bce",
    ratio: float = 0.25,
    tau: float = 1.0,
) -> Tensor:
    """How far scores are from guidance attention (our choice of loss).

    Args:
        score_BN: logits S.
        target_BN: guidance A, not negative.
        valid_BN: False at padding.
        kind: `kl`: KL(A / sum A || softmax(S / tau)); `bce`: the top `ratio` of A are labels;
            `kl+bce`: the first plus half of the second.
        ratio: of the labels.
        tau: temperature.

    Raises:
        InputError: for another kind.
    """
    if kind not in get_args(Stage1Loss):
        raise InputError(f"stage1_loss={kind!r}; use one of {', '.join(get_args(Stage1Loss))}")
    loss = score_BN.new_zeros(())
    if "kl" in kind:
        log_BN = (score_BN / tau).masked_fill(~valid_BN, float("-inf")).log_softmax(1)
        mass_B1 = target_BN.sum(1, keepdim=True)
        share_BN = target_BN / mass_B1.clamp_min(1e-30)
        gap_BN = torch.special.xlogy(share_BN, share_BN) - share_BN * log_BN.masked_fill(
            ~valid_BN, 0.0
        )
        loss = loss + gap_BN.sum(1).mean()
    if "bce" in kind:
        label_BN = top_mask(target_BN, valid_BN, counts(valid_BN, ratio)).to(score_BN.dtype)
        each_BN = functional.binary_cross_entropy_with_logits(score_BN, label_BN, reduction="none")
        bce = (each_BN * valid_BN).sum() / valid_BN.sum()
        loss = loss + (bce if kind == "bce" else BCE_WEIGHT * bce)
    return loss


def log_gate(p_BN: Tensor, eps: float) -> Tensor:
    """(B, N): what is added to the attention logit of a key that is kept with chance p.

    log(p + eps (1 - p)): exactly 0 at p = 1, log(eps) at p = 0. Never in half precision.
    """
    p_BN = p_BN if p_BN.dtype == torch.float64 else p_BN.float()
    return (p_BN + eps * (1 - p_BN)).log()


def budgeted_sigmoid(score_BN: Tensor, k_B: Tensor, valid_BN: Tensor, tau: float) -> Tensor:
    """(B, N): sigmoid((S - t) / tau) with t such that every row sums to k.

    The threshold is found without gradients; one Newton step on it, which changes nothing at the
    solution, carries the implicit gradient dt/dS_j = s'_j / sum s'. So gradients of a row sum to 0.
    """
    wanted_B1 = k_B[:, None].to(score_BN.dtype)
    with torch.no_grad():
        far = 40 * tau
        low_B1 = score_BN.masked_fill(~valid_BN, torch.inf).amin(1, keepdim=True) - far
        high_B1 = score_BN.masked_fill(~valid_BN, -torch.inf).amax(1, keepdim=True) + far
        for _ in range(SOLVE_STEPS):
            mid_B1 = (low_B1 + high_B1) / 2
            total_B1 = (torch.sigmoid((score_BN - mid_B1) / tau) * valid_BN).sum(1, keepdim=True)
            low_B1 = torch.where(total_B1 > wanted_B1, mid_B1, low_B1)
            high_B1 = torch.where(total_B1 > wanted_B1, high_B1, mid_B1)
        t_B1 = (low_B1 + high_B1) / 2
        s_BN = torch.sigmoid((score_BN - t_B1) / tau) * valid_BN
        slope_B1 = (s_BN * (1 - s_BN) / tau).sum(1, keepdim=True).clamp_min(1e-12)
    sum_B1 = (torch.sigmoid((score_BN - t_B1) / tau) * valid_BN).sum(1, keepdim=True)
    moved_B1 = t_B1 + (sum_B1 - sum_B1.detach()) / slope_B1
    return torch.sigmoid((score_BN - moved_B1) / tau) * valid_BN


def straight_through(score_BN: Tensor, k_B: Tensor, valid_BN: Tensor, tau: float) -> Tensor:
    """(B, N): exactly k ones a row in the forward pass, `budgeted_sigmoid` in the backward."""
    hard_BN = top_mask(score_BN.detach(), valid_BN, k_B).to(score_BN.dtype)
    soft_BN = budgeted_sigmoid(score_BN, k_B, valid_BN, tau)
    return hard_BN + (soft_BN - soft_BN.detach())


def budget_terms(p_BN: Tensor, valid_BN: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Squared distance of mean(p) from the ratio, and mean(p (1 - p)), over rows."""
    n_B = valid_BN.sum(1).clamp_min(1)
    mean_B = (p_BN * valid_BN).sum(1) / n_B
    open_B = (p_BN * (1 - p_BN) * valid_BN).sum(1) / n_B
    return ((mean_B - ratio) ** 2).mean(), open_B.mean()


def answer_loss(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Cross-entropy of the next token where labels are not -100.

    Raises:
        InputError: if no label is left.
    """
    wanted_BT = labels_BT[:, 1:]
    if not bool((wanted_BT != -100).any()):
        raise InputError(
            "all labels are -100, so teacher='ce' has nothing to learn from; mark the answer's "
            "tokens, or use teacher='kl'"
        )
    return functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1).float(), wanted_BT.flatten(), ignore_index=-100
    )


def teacher_loss(logits_BTV: Tensor, full_BTV: Tensor, where_BT: Tensor) -> Tensor:
    """KL from the unpruned model's next-token distribution, mean over chosen places."""
    ours, full = (
        found[where_BT].float().log_softmax(-1) for found in (logits_BTV, full_BTV.detach())
    )
    return functional.kl_div(ours, full, reduction="batchmean", log_target=True)
