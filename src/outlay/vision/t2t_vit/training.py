"""What training T2T-ViT needs beside a Trainer: parameter groups and averaged weights.

Schedules, mixing of images and the loop are transformers' and accelerate's. The published recipe
(300 epochs on ImageNet): AdamW, rate 5e-4 (1e-3 for the small models), weight decay .05 (.03 small,
.065 for 19 and 24 layers), cosine to 1e-5 after 10 epochs of warm-up, batch 512, drop path .1,
RandAugment, mixup .8, cutmix 1.0, random erasing .25, label smoothing .1; averaged weights are what
is evaluated.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from outlay.errors import InputError
from outlay.vision.t2t_vit.model import T2TViTForImageClassification
from outlay.vision.t2t_vit.tokens import finite, whole


def decay_for(steps: int, most: float = 0.99996) -> float:
    """Decay of averaged weights in a run of that many steps: 1 - 1 / (0.1 steps), at most `most`.

    The published .99996 remembers 25,000 steps: in a short run the average would be the initial
    weights. A tenth of the run is remembered instead (ours).

    Raises:
        InputError: for less than one step, or `most` outside [0, 1).
    """
    if not (whole(steps) and steps >= 1):
        raise InputError(f"steps={steps!r}; give the optimiser steps of the run, at least 1")
    if not (finite(most) and 0 <= most < 1):
        raise InputError(f"ema_decay={most!r}; must be in [0, 1)")
    return min(most, max(0.0, 1 - 1 / (0.1 * steps)))


def averaged(model: nn.Module, steps: int, ema_decay: float = 0.99996) -> AveragedModel:
    """Exponentially averaged weights: call `update_parameters(model)` after every optimiser step
    and evaluate the result's `module`.

    Args:
        model: whose weights are averaged.
        steps: optimiser steps of the run.
        ema_decay: at most; see `decay_for`.
    """
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay_for(steps, ema_decay)))


def parameter_groups(model: nn.Module, weight_decay: float = 0.05) -> list[dict[str, Any]]:
    """Groups for AdamW: no decay for biases, norms and the CLS token; frozen weights left out.

    Raises:
        InputError: for a negative weight decay.
    """
    if not (finite(weight_decay) and weight_decay >= 0):
        raise InputError(f"weight_decay={weight_decay!r}; must be a number >= 0")
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            free = parameter.ndim <= 1 or name.endswith("cls_token")
            (others if free else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def transfer_groups(
    model: T2TViTForImageClassification, lr: float = 0.01, factor: float = 0.01
) -> list[dict[str, Any]]:
    """Groups for fine-tuning on another data set, as released: the head at the full rate, the
    tokeniser and the layers at a hundredth; the CLS token and the final norm are not trained.

    Args:
        model: a classifier; its head is usually fresh.
        lr: of the head.
        factor: of the rest.

    Raises:
        InputError: for a rate or factor that is not above 0.
    """
    for name, value in (("lr", lr), ("factor", factor)):
        if not (finite(value) and value > 0):
            raise InputError(f"{name}={value!r}; must be a number above 0")
    body = [*model.vit.embeddings.patch_embeddings.parameters(), *model.vit.layers.parameters()]
    return [
        {"params": [p for p in body if p.requires_grad], "lr": lr * factor},
        {"params": list(model.classifier.parameters()), "lr": lr},
    ]
