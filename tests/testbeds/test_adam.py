"""The testbeds' optimiser: what decays, what is clipped, and where the schedule ends."""

import pytest
import torch

from outlay.testbeds.adam import Adam, cosine, groups


def test_only_matrices_decay():
    layer = torch.nn.Linear(3, 2)
    matrices, vectors = groups(list(layer.parameters()), 0.1)
    assert matrices["params"] == [layer.weight]
    assert vectors["params"] == [layer.bias]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)


def test_the_rate_rises_then_falls_to_its_lowest():
    layer = torch.nn.Linear(3, 2)
    optimiser = Adam(
        layer.parameters(), lr=1.0, weight_decay=0.0, clip=1.0, schedule=cosine(4, 20, 0.1)
    )
    rates = []
    for _ in range(20):
        optimiser.update(layer(torch.ones(1, 3)).square().sum())
        rates.append(optimiser.schedule.get_last_lr()[0])
    assert rates[3] == max(rates) == 1.0
    assert rates[:4] == sorted(rates[:4])
    assert rates[-1] == pytest.approx(0.1)


def test_gradients_are_clipped_and_then_cleared():
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    seen = []
    optimiser = Adam([weight], lr=0.1, weight_decay=0.0, clip=0.5, schedule=cosine(1, 10, 0.1))
    optimiser.adam.register_step_pre_hook(lambda *_: seen.append(float(weight.grad.norm())))
    optimiser.update((100 * weight).sum())
    assert seen == [pytest.approx(0.5, rel=1e-4)]
    assert weight.grad is None
