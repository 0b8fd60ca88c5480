"""Training the router alone: the sliced model is to say what the dense one says.

The loss has four parts: the KL divergence from the dense model's next-token distribution; for every
layer, the cross-entropy between the router and how much each expert contributes to the dense MLP's
output on the same input (so that experts that are not chosen are learnt about, too); a tenth of the
next-token cross-entropy; and the usual balance term (E times the sum over experts of token share x
mean probability). Beside it, load is balanced as by a bias that moves against it after every step;
Mixtral's router has no bias, so the part of its weights along the mean hidden state serves as one.

While training, the mixture is computed as the dense MLP with its neurons weighted by their expert's
routing weight, which is the same function without expert kernels.

Shapes: N tokens, E experts, k chosen, C hidden size, F neurons, L layers, V vocabulary.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from outlay.errors import InputError
from outlay.testbeds.moe.build import TOP_K

SPREAD = 0.3
"""Deviation of a router's logits before training."""


@dataclass(frozen=True)
class TrainConfig:
    """How a router is trained.

    Args:
        experts: slices of every MLP.
        top_k: slices of a token.
        steps: optimiser steps.
        rows, length: a batch is `rows` pieces of `length` tokens.
        lr: peak learning rate of Adam; warm-up over a twentieth, then cosine to a tenth.
        balance: weight of the balance term.
        local: weight of the cross-entropy with the experts' contributions.
        push: how far the stand-in for a bias moves in a step.
        ce: weight of the cross-entropy.
        seed: of weights and text.

    Raises:
        InputError: for numbers out of range.
    """

    experts: int = 48
    top_k: int = TOP_K
    steps: int = 600
    rows: int = 16
    length: int = 256
    lr: float = 1e-3
    balance: float = 0.3
    local: float = 1.0
    push: float = 0.01
    ce: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("experts", "top_k", "steps", "rows", "length"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; must be at least 1")
        if not self.lr > 0:
            raise InputError(f"lr={self.lr}; must be above 0")


class RoutedMLP(nn.Module):
    """A dense MLP whose neurons are weighted by a router: a mixture of its slices."""

    def __init__(self, mlp: Any, router_EC: torch.Tensor, top_k: int) -> None:
        super().__init__()
        self.mlp, self.top_k = mlp, top_k
        self.router_EC = nn.Parameter(router_EC)
        self.balance: torch.Tensor | None = None
        self.error: torch.Tensor | None = None
        self.chosen_NE: torch.Tensor | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The mixture's output; `balance`, `error` and `chosen_NE` are kept."""
        experts = len(self.router_EC)
        with torch.autocast(hidden.device.type, enabled=False):
            probs = (hidden.float() @ self.router_EC.T).softmax(-1)
        top, index = probs.topk(self.top_k, dim=-1)
        weights = torch.zeros_like(probs).scatter(-1, index, top / top.sum(-1, keepdim=True))
        chosen_NE = (weights > 0).flatten(0, -2).float()
        shares_E = chosen_NE.mean(0) / self.top_k
        self.balance = experts * (shares_E.detach() * probs.flatten(0, -2).mean(0)).sum()
        self.chosen_NE = chosen_NE.detach()
        inner = self.mlp.act_fn(self.mlp.gate_proj(hidden)) * self.mlp.up_proj(hidden)
        scale = (weights * self.top_k).repeat_interleave(inner.shape[-1] // experts, dim=-1)
        output: torch.Tensor = self.mlp.down_proj(inner * scale.to(inner.dtype))
        with torch.no_grad():  # the part of the dense output that each expert explains
            dense = self.mlp.down_proj(inner)
            explained = inner * (dense @ self.mlp.down_proj.weight.to(dense.dtype))
            share = explained.float().unflatten(-1, (experts, -1)).sum(-1).clamp_min(0)
            share = share / share.sum(-1, keepdim=True).clamp_min(1e-9)
        self.error = -(share * probs.clamp_min(1e-9).log()).sum(-1).mean()
        return output


def routed(dense: Any, router_LEC: torch.Tensor, top_k: int) -> tuple[Any, list[RoutedMLP]]:
    """A copy of a dense Llama with routed MLPs; only the routers can be trained."""
    student = copy.deepcopy(dense).requires_grad_(False)
    found = []
    for layer, router_EC in zip(student.model.layers, router_LEC, strict=True):
        layer.mlp = RoutedMLP(layer.mlp, router_EC.clone().float().to(dense.device), top_k)
        found.append(layer.mlp)
    return student, found


@torch.no_grad()
def start(
    dense: Any, ids_BT: torch.Tensor, experts: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random routers whose logits have mean 0 and a small deviation on given tokens, with a bias.

    The first token of a row, whose hidden state is extreme in this model, does not count.

    Returns:
        router_LEC, and bias_LC: adding b times its row l to an expert's weights adds about b to
        that expert's logits in layer l.
    """
    inputs: list[torch.Tensor] = []
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0, 1:].float()))
        for layer in dense.model.layers
    ]
    for ids_1T in ids_BT.to(dense.device).split(1):
        dense(ids_1T, use_cache=False, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    layers = len(hooks)
    generator = torch.Generator().manual_seed(seed)
    routers, biases = [], []
    for index in range(layers):
        hidden_NC = torch.cat(inputs[index::layers]).double().cpu()
        mean_C = hidden_NC.mean(0)
        router_EC = torch.randn(experts, len(mean_C), generator=generator, dtype=torch.float64)
        bias_C = mean_C / mean_C.square().sum()
        router_EC -= (router_EC @ mean_C)[:, None] * bias_C
        routers.append(SPREAD * router_EC / (hidden_NC @ router_EC.T).std(0)[:, None])
        biases.append(bias_C)
    return torch.stack(routers).float(), torch.stack(biases).float()


@dataclass
class Trained:
    """A router and how it was made.

    Args:
        router_LEC: weights.
        losses: (step, KL, balance, local loss) at every tenth of the way.
        seconds: of training.
        measured: held-out figures; see `measure`.
    """

    router_LEC: torch.Tensor
    losses: list[tuple[int, float, float, float]]
    seconds: float
    measured: dict[str, float] = field(default_factory=dict)


def train(
    dense: Any,
    tokenizer: Any,
    config: TrainConfig,
    report: Callable[[int, float], None] | None = None,
) -> Trained:
    """Train routers for `dense`, on the device that it is on."""
    from outlay.testbeds.text import batch, rows

    device = dense.device
    sample_BT = batch(tokenizer, config.rows, length=config.length, seed=config.seed, split="train")
    first_LEC, bias_LC = start(dense, sample_BT, config.experts, config.seed)
    student, mlps = routed(dense, first_LEC, config.top_k)
    bias_LC = bias_LC.to(device)
    optimizer = torch.optim.Adam([mlp.router_EC for mlp in mlps], lr=config.lr, betas=(0.9, 0.98))
    warmup = max(1, config.steps // 20)

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    stream = rows(tokenizer, length=config.length, seed=config.seed)
    losses: list[tuple[int, float, float, float]] = []
    began = time.perf_counter()
    for step in range(config.steps):
        ids_BT = torch.stack([next(stream) for _ in range(config.rows)]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                target_NV = dense(ids_BT, use_cache=False).logits[:, :-1].flatten(0, 1)
            logits_NV = student(ids_BT, use_cache=False).logits[:, :-1].flatten(0, 1)
        ours_NV = logits_NV.float().log_softmax(-1)
        target_NV = target_NV.float().log_softmax(-1)
        kl = nn.functional.kl_div(ours_NV, target_NV, log_target=True, reduction="batchmean")
        ce = nn.functional.nll_loss(ours_NV, ids_BT[:, 1:].flatten())
        balance = torch.stack([mlp.balance for mlp in mlps if mlp.balance is not None]).mean()
        error = torch.stack([mlp.error for mlp in mlps if mlp.error is not None]).mean()
        loss = kl + config.ce * ce + config.balance * balance + config.local * error
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_([mlp.router_EC for mlp in mlps], 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for mlp, bias_C in zip(mlps, bias_LC, strict=True):
                assert mlp.chosen_NE is not None
                load_E = mlp.chosen_NE.mean(0) - config.top_k / config.experts
                mlp.router_EC.sub_(config.push * load_E.sign()[:, None] * bias_C)
        if step % max(1, config.steps // 10) == 0 or step == config.steps - 1:
            losses.append((step, kl.item(), balance.item(), error.item()))
            if report is not None:
                report(step, kl.item())
    router_LEC = torch.stack([mlp.router_EC.detach() for mlp in mlps]).cpu()
    # What ships is bf16: measure that.
    router_LEC = router_LEC.to(torch.bfloat16).float()
    return Trained(router_LEC, losses, time.perf_counter() - began)


@torch.inference_mode()
def measure(
    dense: Any,
    tokenizer: Any,
    router_LEC: torch.Tensor,
    top_k: int,
    *,
    rows: int = 8,
    length: int = 256,
    chunk: int = 32,
) -> dict[str, float]:
    """Held-out figures of a router, in fp32.

    Returns:
        `nll` of the mixture and `nll_dense`, in nats per token; `largest_share`: tokens of the most
        used expert over the mean, averaged over layers; `distinct`: mean distinct experts of a
        layer over `chunk` successive tokens, and `distinct_uniform` for uniform routing.
    """
    from outlay.schedule.counters import expected_experts
    from outlay.testbeds.text import batch

    ids_BT = batch(tokenizer, rows, length=length).to(dense.device)
    student, mlps = routed(dense, router_LEC, top_k)
    experts = router_LEC.shape[1]
    sums = dict.fromkeys(("nll", "nll_dense"), 0.0)
    counts_LE = torch.zeros(len(mlps), experts)
    distinct: list[float] = []
    for ids_1T in ids_BT.split(1):
        for name, network in (("nll", student), ("nll_dense", dense)):
            logits_TV = network(ids_1T, use_cache=False).logits[0, :-1].float()
            sums[name] += float(nn.functional.cross_entropy(logits_TV, ids_1T[0, 1:]))
        for index, mlp in enumerate(mlps):
            assert mlp.chosen_NE is not None
            chosen_NE = mlp.chosen_NE.cpu()
            counts_LE[index] += chosen_NE.sum(0)
            distinct += [float((part.sum(0) > 0).sum()) for part in chosen_NE.split(chunk)]
    return {
        **{name: total / rows for name, total in sums.items()},
        "largest_share": float((counts_LE.max(1).values / counts_LE.mean(1)).mean()),
        "distinct": sum(distinct) / len(distinct),
        "distinct_uniform": expected_experts(experts, top_k, chunk),
    }
