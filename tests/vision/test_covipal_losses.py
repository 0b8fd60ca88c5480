"""Losses and gates against slow, obvious forms, in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.vision.covipal.losses import (
    answer_loss,
    budget_terms,
    budgeted_sigmoid,
    counts,
    log_gate,
    stage_one,
    straight_through,
    teacher_loss,
    top_mask,
)


def drawn(seed: int, rows: int = 3, n: int = 12):
    generator = torch.Generator().manual_seed(seed)
    score = torch.randn(rows, n, generator=generator, dtype=torch.double) * 2
    valid = torch.ones(rows, n, dtype=torch.bool)
    for row in range(1, rows):  # the first row is full
        valid[row, n - int(torch.randint(0, n // 2, (), generator=generator)) :] = False
    valid[0] = True
    return score, valid


def test_the_divergence_is_the_sum_by_hand() -> None:
    score, valid = drawn(0)
    target = torch.rand(3, 12, dtype=torch.double) * valid
    target[0, 3] = 0.0
    wanted = []
    for row in range(3):
        n = int(valid[row].sum())
        a = [float(x) / float(target[row].sum()) for x in target[row, :n]]
        z = [math.exp(float(x) / 0.7) for x in score[row, :n]]
        q = [x / sum(z) for x in z]
        wanted.append(sum(p * math.log(p / w) for p, w in zip(a, q, strict=True) if p > 0))
    found = stage_one(score, target, valid, kind="kl", tau=0.7)
    assert float(found) == pytest.approx(sum(wanted) / 3, abs=1e-12)


def test_scores_that_are_the_log_of_the_target_have_no_divergence() -> None:
    _, valid = drawn(1)
    target = (torch.rand(3, 12, dtype=torch.double) + 0.1) * valid
    score = target.clamp_min(1e-9).log() + 5.0  # softmax takes off any constant
    assert float(stage_one(score, target, valid, kind="kl")) == pytest.approx(0, abs=1e-12)


def test_the_labels_of_cross_entropy_are_the_top_of_the_target() -> None:
    score, valid = drawn(2)
    target = torch.rand(3, 12, dtype=torch.double) * valid
    total, number = 0.0, 0
    for row in range(3):
        n = int(valid[row].sum())
        k = max(1, math.floor(0.3 * n + 0.5))
        best = set(sorted(range(n), key=lambda i: -float(target[row, i]))[:k])
        for i in range(n):
            p = 1 / (1 + math.exp(-float(score[row, i])))
            total -= math.log(p if i in best else 1 - p)
            number += 1
    found = stage_one(score, target, valid, kind="bce", ratio=0.3)
    assert float(found) == pytest.approx(total / number, abs=1e-12)


def test_the_default_loss_is_the_divergence_and_half_of_the_labels() -> None:
    score, valid = drawn(3)
    target = torch.rand(3, 12, dtype=torch.double) * valid
    both, kl, bce = (
        float(stage_one(score, target, valid, kind=kind, ratio=0.4))
        for kind in ("kl+bce", "kl", "bce")
    )
    assert both == pytest.approx(kl + 0.5 * bce, abs=1e-12)


@pytest.mark.parametrize("kind", ["kl", "bce", "kl+bce"])
def test_stage_one_does_not_see_padding(kind) -> None:
    score, valid = drawn(4, rows=1)
    target = torch.rand(1, 12, dtype=torch.double)
    wide = torch.nn.functional.pad
    found = stage_one(
        wide(score, (0, 4), value=9.0), wide(target, (0, 4)), wide(valid, (0, 4)), kind=kind
    )
    assert float(found) == pytest.approx(
        float(stage_one(score, target, valid, kind=kind)), abs=1e-12
    )


def test_an_unknown_loss_is_refused() -> None:
    score, valid = drawn(0)
    with pytest.raises(InputError, match="stage1_loss='l2'"):
        stage_one(score, score, valid, kind="l2")


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), ratio=st.floats(0.01, 1.0), tau=st.floats(0.05, 3.0))
def test_the_exact_gate_has_k_ones_and_gradients_that_sum_to_nothing(
    seed: int, ratio: float, tau: float
) -> None:
    score, valid = drawn(seed)
    score.requires_grad_(True)
    k = counts(valid, ratio)
    mask = straight_through(score, k, valid, tau)
    assert ((mask == 0) | (mask == 1)).all()
    assert mask.sum(1).tolist() == k.tolist()
    assert (mask.detach()[~valid] == 0).all()
    weights = torch.randn(3, 12, generator=torch.Generator().manual_seed(seed)).double()
    (mask * weights).sum().backward()
    assert score.grad is not None
    assert score.grad.sum(1).abs().max() < 1e-9  # the budget cannot move
    assert (score.grad[~valid] == 0).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), ratio=st.floats(0.1, 0.9))
def test_the_budgeted_sigmoid_sums_to_its_budget(seed: int, ratio: float) -> None:
    score, valid = drawn(seed)
    k = counts(valid, ratio)
    soft = budgeted_sigmoid(score, k, valid, 0.8)
    reachable = k < valid.sum(1)  # all of a row needs an infinite threshold
    assert torch.allclose(soft.sum(1)[reachable], k.double()[reachable], atol=1e-8)


def test_the_implicit_gradient_is_that_of_finite_differences() -> None:
    score, valid = drawn(7)
    k = counts(valid, 0.4)
    weights = torch.randn(3, 12, generator=torch.Generator().manual_seed(1)).double()

    def loss(of: torch.Tensor) -> torch.Tensor:
        return (budgeted_sigmoid(of, k, valid, 0.6) * weights).sum()

    leaf = score.clone().requires_grad_(True)
    loss(leaf).backward()
    assert leaf.grad is not None
    step = 1e-5
    for row, column in ((0, 0), (0, 5), (1, 2), (2, 1)):
        moved = torch.zeros_like(score)
        moved[row, column] = step
        slope = (loss(score + moved) - loss(score - moved)) / (2 * step)
        assert float(leaf.grad[row, column]) == pytest.approx(float(slope), abs=1e-6)


def test_ties_go_to_the_first_and_padding_never_wins() -> None:
    score = torch.tensor([[1.0, 2.0, 2.0, 9.0]])
    valid = torch.tensor([[True, True, True, False]])
    assert top_mask(score, valid, torch.tensor([1])).tolist() == [[False, True, False, False]]
    assert top_mask(score, valid, torch.tensor([3])).tolist() == [[True, True, True, False]]


def test_a_certain_key_is_not_touched_and_a_gone_one_is_eps() -> None:
    p = torch.tensor([1.0, 0.0, 0.5], dtype=torch.double)
    found = log_gate(p, 1e-4)
    assert float(found[0]) == 0.0
    assert float(found[1]) == pytest.approx(math.log(1e-4))
    assert float(found[2]) == pytest.approx(math.log(0.5 + 0.5e-4))
    half = torch.tensor([0.0], dtype=torch.float16, requires_grad=True)
    gate = log_gate(half, 1e-7)
    assert gate.dtype == torch.float32  # in fp16 this would be minus infinity
    gate.sum().backward()
    assert half.grad is not None


def test_budget_terms_are_their_formulas() -> None:
    p = torch.tensor([[0.5, 1.0, 0.3], [0.2, 0.0, 0.0]], dtype=torch.double)
    valid = torch.tensor([[True, True, False], [True, True, True]])
    budget, spread = budget_terms(p, valid, 0.25)
    assert float(budget) == pytest.approx(((0.75 - 0.25) ** 2 + (0.2 / 3 - 0.25) ** 2) / 2)
    assert float(spread) == pytest.approx((0.25 / 2 + 0.16 / 3) / 2)


def test_counts_are_rounded_half_up_and_at_least_one() -> None:
    valid = torch.tensor([[True] * 10, [True] * 3 + [False] * 7])
    assert counts(valid, 0.25).tolist() == [3, 1]
    assert counts(valid, 0.01).tolist() == [1, 1]


def test_answers_are_learned_where_labels_are() -> None:
    logits = torch.randn(1, 4, 5, dtype=torch.double)
    labels = torch.tensor([[-100, -100, 3, -100]])
    wanted = -logits[0, 1].log_softmax(-1)[3]
    assert float(answer_loss(logits, labels)) == pytest.approx(float(wanted), abs=1e-6)
    with pytest.raises(InputError, match="all labels are -100"):
        answer_loss(logits, torch.full((1, 4), -100))


def test_the_teacher_is_compared_where_asked() -> None:
    ours, full = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    where = torch.tensor([[False, True, False], [True, False, False]])
    total = 0.0
    for row, place in ((0, 1), (1, 0)):
        p, q = full[row, place].softmax(-1), ours[row, place].softmax(-1)
        total += float((p * (p / q).log()).sum())
    assert float(teacher_loss(ours, full, where)) == pytest.approx(total / 2, abs=1e-5)
    assert float(teacher_loss(full, full, where)) == pytest.approx(0, abs=1e-6)
