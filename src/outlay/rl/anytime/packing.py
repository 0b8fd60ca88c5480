"""Training rows: a thinking and its answers as one tree, or as one row each.

A tree holds `[question | thinking | template answer answer | template answer | ...]`: what is
shared is there once. A branch continues the positions of its cut, sees the thinking up to it, its
own template, and itself. Only thinkings and answers are trained.

Where this differs from the paper (figure 3): the answers of one cut share the template, all but its
last token. Each answer begins with a copy of that token, so that every trained token still follows
the token that predicts it, and TRL's shifted labels are right.

Shapes: B rows, P tokens of a question, T of the rest, L = P + T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from outlay.rl.anytime.outcomes import KEY, TREES, Outcome

if TYPE_CHECKING:
    from torch import Tensor

    from outlay.rl.anytime.method import AnytimeBRPO
    from outlay.rl.base import Context

TREE_KEYS = ("tree_cut", "tree_branch", "tree_leaf", "tree_position")
"""(B, T) tensors that describe trees; `tree_mask` and `tree_positions` read them."""


@dataclass
class Line:
    """A training row that is being written."""

    ids: list[int] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    advantage: list[float] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)
    leaf: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)

    def add(
        self,
        ids: Sequence[int],
        advantages: Sequence[float] | None,
        *,
        at: int,
        cut: int = 0,
        branch: int = -1,
        leaf: int = -1,
    ) -> None:
        """Append tokens that begin at position `at` after the question; None is context only."""
        n = len(ids)
        self.ids += ids
        self.trained += [int(advantages is not None)] * n
        self.advantage += [0.0] * n if advantages is None else advantages
        self.cut += [cut] * n
        self.branch += [branch] * n
        self.leaf += [leaf] * n
        self.position += range(at, at + n)


def pack(method: AnytimeBRPO, batch: dict[str, Any], context: Context) -> dict[str, Any]:
    """TRL's batch, with this process's thinkings and answers as its rows.

    Args:
        method: with its advantages.
        batch: of rollouts.
        context: with every rollout's outcome.
    """
    outcomes: list[Outcome] = context.column(KEY)
    segments = method.advantages(context)
    answers: list[Tensor] = []
    for start in range(0, len(outcomes), context.group):
        answers += list(method.of_summaries(outcomes[start : start + context.group]))
    trees = all(context.column(TREES))
    lines, owners = [], []
    for index, outcome in enumerate(outcomes):
        dense = [0.0] * len(outcome.thinking)
        for start, end, value in segments[index]:
            dense[start:end] = [value] * (end - start)
        chosen = _chosen(method, outcome, answers[index])
        made = [tree(outcome, dense, chosen)] if trees else rows(outcome, dense, chosen)
        lines += made
        owners += [index] * len(made)
    # Each process divides by its own number of rows; what counts is the number of thinkings.
    scale = len(lines) / len(outcomes)
    local = range(len(outcomes))[context.local]
    mine = [at for at, owner in enumerate(owners) if owner in local]
    picked = [owners[at] - local.start for at in mine]
    return _batch(batch, [lines[at] for at in mine], picked, scale, trees)


Chosen = list[list[tuple[tuple[int, ...], float]]]
"""For every cut, the answers that are trained, with their advantages."""


def _chosen(method: AnytimeBRPO, outcome: Outcome, advantages_SA: Tensor) -> Chosen:
    last = len(method.budgets) - 1
    found: Chosen = []
    values = advantages_SA.tolist()
    for place, given in zip(outcome.cuts, outcome.summaries, strict=True):
        flat = [(slot, a) for slot in place.slots for a in range(method.n_summaries)]
        kept = []
        for (slot, a), ids in zip(flat, given, strict=True):
            if method.summary_mode == "last" and slot != last:
                continue
            if method.skip_flat and values[slot][a] == 0:
                continue
            kept.append((ids, values[slot][a]))
        found.append(kept)
    return found


def tree(outcome: Outcome, advantages: Sequence[float], chosen: Chosen) -> Line:
    """One row for a thinking and its answers.

    Args:
        outcome: cuts and templates.
        advantages: of the tokens of the thinking.
        chosen: answers of each cut that are trained, with their advantages.
    """
    line = Line()
    line.add(outcome.thinking, advantages, at=0)
    leaf = 0
    for number, (place, suffix, given) in enumerate(
        zip(outcome.cuts, outcome.suffixes, chosen, strict=True)
    ):
        if not given:
            continue
        # The last token before an answer is copied into it; without a template, the thinking's.
        cut = place.cut if suffix else place.cut - 1
        head = suffix[-1] if suffix else outcome.thinking[place.cut - 1]
        shared = suffix[:-1]
        line.add(shared, None, at=cut, cut=cut, branch=number)
        at = cut + len(shared)
        for ids, value in given:
            line.add((head,), None, at=at, cut=cut, branch=number, leaf=leaf)
            line.add(ids, [value] * len(ids), at=at + 1, cut=cut, branch=number, leaf=leaf)
            leaf += 1
    return line


def rows(outcome: Outcome, advantages: Sequence[float], chosen: Chosen) -> list[Line]:
    """One row for a thinking, and one for each of its answers, prefix included.

    Args: as for `tree`.
    """
    first = Line()
    first.add(outcome.thinking, advantages, at=0)
    made = [first]
    for place, suffix, given in zip(outcome.cuts, outcome.suffixes, chosen, strict=True):
        for ids, value in given:
            line = Line()
            line.add((*outcome.thinking[: place.cut], *suffix), None, at=0)
            line.add(ids, [value] * len(ids), at=len(line.ids))
            made.append(line)
    return made


def _batch(
    batch: dict[str, Any], lines: Sequence[Line], owners: Sequence[int], scale: float, trees: bool
) -> dict[str, Any]:
    ids_BT = batch["completion_ids"]
    device = ids_BT.device
    width = max(len(line.ids) for line in lines)

    def dense(name: str, fill: float, dtype: torch.dtype) -> Tensor:
        made = [getattr(line, name) + [fill] * (width - len(line.ids)) for line in lines]
        return torch.tensor(made, dtype=dtype, device=device)

    owners_B = torch.tensor(owners, device=device)
    lengths = [[1] * len(line.ids) + [0] * (width - len(line.ids)) for line in lines]
    like = batch["advantages"]
    found: dict[str, Any] = {
        "prompt_ids": batch["prompt_ids"][owners_B],
        "prompt_mask": batch["prompt_mask"][owners_B],
        "completion_ids": dense("ids", 0, ids_BT.dtype),
        "completion_mask": torch.tensor(
            lengths, dtype=batch["completion_mask"].dtype, device=device
        ),
        "tool_mask": dense("trained", 0, batch["completion_mask"].dtype),
        "advantages": dense("advantage", 0.0, torch.float64).mul(scale).to(like.dtype),
        "num_items_in_batch": batch["num_items_in_batch"],
    }
    if trees:
        for key, fill in zip(TREE_KEYS, (0, -1, -1, 0), strict=True):
            found[key] = dense(key.removeprefix("tree_"), fill, torch.long)
    return found


def tree_positions(prompt_mask_BP: Tensor, position_BT: Tensor) -> Tensor:
    """(B, L) position ids: a branch continues those of its cut.

    Args:
        prompt_mask_BP: 1 on the question's tokens (left-padded).
        position_BT: after the question.
    """
    prompt_BP = (prompt_mask_BP.cumsum(1) - 1).clamp(min=0)
    lengths_B = prompt_mask_BP.sum(1, keepdim=True)
    return torch.cat([prompt_BP, lengths_B + position_BT], dim=1).long()


def tree_mask(
    prompt_mask_BP: Tensor,
    completion_mask_BT: Tensor,
    cut_BT: Tensor,
    branch_BT: Tensor,
    leaf_BT: Tensor,
) -> Tensor:
    """(B, 1, L, L) bool: what each token sees. Padding sees itself only, so that no softmax is
    empty.

    Args:
        prompt_mask_BP: 1 on the question's tokens (left-padded).
        completion_mask_BT: 1 on the tree's tokens.
        cut_BT: tokens of the thinking that a branch's token sees.
        branch_BT: number of the branch, -1 on the thinking.
        leaf_BT: number of the answer, -1 on the thinking and on shared templates.
    """
    rows_B, before = prompt_mask_BP.shape
    size = before + completion_mask_BT.shape[1]
    device = prompt_mask_BP.device

    def whole(values_BT: Tensor, fill: int) -> Tensor:
        front = torch.full((rows_B, before), fill, dtype=values_BT.dtype, device=device)
        return torch.cat([front, values_BT], dim=1)

    branch_BL, leaf_BL = whole(branch_BT, -1), whole(leaf_BT, -1)
    limit_BL = whole(cut_BT, 0) + before
    order_L = torch.arange(size, device=device)
    earlier_LL = order_L[None, :] <= order_L[:, None]
    trunk_BL = branch_BL < 0
    own_BLL = branch_BL[:, :, None] == branch_BL[:, None, :]
    line_BLL = (leaf_BL[:, None, :] < 0) | (leaf_BL[:, :, None] == leaf_BL[:, None, :])
    below_BLL = trunk_BL[:, None, :] & (order_L[None, None, :] < limit_BL[:, :, None])
    seen_BLL = (own_BLL & line_BLL) | (below_BLL & ~trunk_BL[:, :, None])
    real_BL = torch.cat([prompt_mask_BP, completion_mask_BT], dim=1).bool()
    seen_BLL = seen_BLL & earlier_LL[None] & real_BL[:, None, :] & real_BL[:, :, None]
    seen_BLL = seen_BLL | torch.eye(size, dtype=torch.bool, device=device)[None]
    return seen_BLL[:, None]
