"""Training of the controller: supervised on k*, then by policy gradient on accuracy minus price.

Stage 2 works on the table. It holds the reward of every action, so the gradient of the expected
reward is exact (`pg="exact"`); `pg="reinforce"` samples one action per input and step, as one must
where the generalist is asked online, and has the same gradient on average.

Shapes: N inputs, F features, K1 = K + 1 numbers of demonstrations.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch

from outlay.errors import InputError
from outlay.prompt.dynaicl.config import Cost, Gradient, Training
from outlay.prompt.dynaicl.controller import Head
from outlay.prompt.dynaicl.encoders import encode, reads_text
from outlay.prompt.dynaicl.seq2seq import Writer
from outlay.prompt.dynaicl.table import Table, Targets

FloatArray = npt.NDArray[np.float64]
_LEAST = 1e-6  # chance that every action keeps
_ROWS = 1024  # inputs of one pass without gradients


def network(features: int, head: Head, K: int, config: Training, seed: int) -> torch.nn.Module:
    """A fresh two-layer network, seeded."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.nn.Linear(features, config.hidden)
    outer = torch.nn.Linear(config.hidden, K if head == "ordinal" else K + 1)
    with torch.no_grad():
        for layer in (inner, outer):
            bound = layer.in_features**-0.5
            for parameter in layer.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
        inner.weight.mul_(features**0.5)  # inputs have length one, whatever their width
    return torch.nn.Sequential(inner, torch.nn.Tanh(), outer)


def start(
    encoder: str, texts: Sequence[str], head: Head, K: int, config: Training, seed: int
) -> tuple[torch.nn.Module, torch.Tensor]:
    """An untrained network of a head, and what it reads of the texts."""
    features_NF = None if reads_text(encoder) else encode(encoder, texts)
    if head == "seq2seq":
        width = 0 if features_NF is None else features_NF.shape[1]
        writer = Writer.fresh(encoder, K, config, seed, width)
        return writer, writer.inputs(texts)
    if features_NF is None:
        raise InputError(f"controller={encoder!r} reads text, which needs head='seq2seq'")
    net = network(features_NF.shape[1], head, K, config, seed)
    return net, torch.tensor(features_NF, dtype=torch.float32)


def weights_of(net: torch.nn.Module) -> dict[str, FloatArray]:
    """The network's weights, as `Controller` names them."""
    state = net.state_dict()
    names = {"0.weight": "inner.weight", "0.bias": "inner.bias"}
    names |= {"2.weight": "outer.weight", "2.bias": "outer.bias"}
    return {ours: state[theirs].double().numpy() for theirs, ours in names.items()}


def _batches(n: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    yield from torch.randperm(n, generator=generator).split(size)


def supervise(
    net: torch.nn.Module,
    x_NF: torch.Tensor,
    table: Table,
    goal: Targets,
    head: Head,
    config: Training,
    seed: int,
) -> torch.nn.Module:
    """Stage 1, in place: the cumulative chances of k* ("ordinal") or the table itself ("curve") by
    BCE, or the digits of k* ("seq2seq") by cross-entropy.

    Args:
        net: from `network`, or a `Writer`.
        x_NF: (N, F) what it reads.
        table: labels.
        goal: k*.
        head: of the controller.
        config: sizes and rates.
        seed: of the order of inputs.
    """
    if head == "ordinal":
        steps = np.arange(table.K)
        y = torch.tensor(goal.needed_N[:, None] > steps, dtype=torch.float32)
    elif head == "seq2seq":
        y = torch.tensor(goal.needed_N)
    else:
        y = torch.tensor(table.accuracy_NK, dtype=torch.float32)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(config.epochs):
        for rows in _batches(len(x_NF), config.batch, generator):
            if isinstance(net, Writer):
                loss = -net.written(x_NF[rows], y[rows]).mean()
            else:
                logits = net(x_NF[rows])
                loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net


def policy_of(outputs: torch.Tensor, head: Head = "ordinal") -> torch.Tensor:
    """(N, K1) chances of each number; none is exactly 0.

    Args:
        outputs: (N, K) logits of more ("ordinal"), or (N, K1) log-likelihoods ("seq2seq").
        head: which of them.
    """
    if head == "seq2seq":
        policy_NK = outputs.softmax(dim=1)
    else:
        more_NK = outputs.sigmoid().cummin(dim=1).values
        edge_N1 = torch.ones_like(more_NK[:, :1])
        whole_NK = torch.cat([edge_N1, more_NK, 0 * edge_N1], dim=1)
        policy_NK = whole_NK[:, :-1] - whole_NK[:, 1:]
    return (1 - _LEAST) * policy_NK + _LEAST / policy_NK.shape[1]


def rewards(table: Table, lam: float, cost: Cost = "tokens") -> FloatArray:
    """(N, K1) `acc(x, k) - lam * cost(k) / cost(K)`.

    Raises:
        InputError: for a negative lambda.
    """
    if not lam >= 0:
        raise InputError(f"lam={lam}; must be >= 0 (0 looks at accuracy alone)")
    share_NK = np.broadcast_to(np.arange(table.K + 1) / table.K, table.accuracy_NK.shape)
    if cost == "tokens":
        share_NK = table.costs_NK / max(1e-9, float(table.costs_NK[:, -1].mean()))
    return np.asarray(table.accuracy_NK - lam * share_NK)


def policy_loss(
    policy_NK: torch.Tensor,
    reward_NK: torch.Tensor,
    pg: Gradient,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """A scalar whose gradient is minus that of the mean expected reward.

    Args:
        policy_NK: (N, K1) chances, differentiable.
        reward_NK: (N, K1) rewards of every action.
        pg: "exact", or "reinforce" for one sampled action per input.
        generator: of the samples.
    """
    base_N1 = (policy_NK * reward_NK).sum(dim=1, keepdim=True).detach()
    gain_NK = reward_NK - base_N1
    if pg == "exact":
        return -(policy_NK * gain_NK).sum(dim=1).mean()
    action_N1 = torch.multinomial(policy_NK.detach(), 1, generator=generator)
    return -(policy_NK.gather(1, action_N1).log() * gain_NK.gather(1, action_N1)).mean()


def reinforce(
    net: torch.nn.Module,
    x_NF: torch.Tensor,
    reward_NK: FloatArray,
    pg: Gradient,
    config: Training,
    seed: int,
    head: Head = "ordinal",
) -> torch.nn.Module:
    """Stage 2: policy gradient from the supervised policy on; returns a new network.

    Raises:
        InputError: for an unknown kind of gradient.
    """
    if pg not in get_args(Gradient):
        raise InputError(f"pg={pg!r}; choose {' or '.join(get_args(Gradient))}")
    r_NK = torch.tensor(reward_NK, dtype=torch.float32)
    with torch.no_grad():
        start_NK = torch.cat([policy_of(net(x), head) for x in x_NF.split(_ROWS)])
    net = copy.deepcopy(net)
    rate = config.lr / 10 if config.rl_lr is None else config.rl_lr
    optimizer: Any = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed + 2)
    for _ in range(config.rl_epochs):
        for rows in _batches(len(x_NF), config.batch, generator):
            policy_NK = policy_of(net(x_NF[rows]), head)
            log_NK = policy_NK.log()
            entropy = -(policy_NK * log_NK).sum(dim=1).mean()
            kl = (policy_NK * (log_NK - start_NK[rows].log())).sum(dim=1).mean()
            loss = policy_loss(policy_NK, r_NK[rows], pg, generator)
            loss = loss - config.entropy * entropy + config.kl * kl
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net
