"""Training the matching heads and the verifiers on frozen embeddings.

Shapes: N pairs, D embedding size, J judged blocks of an audit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from outlay.audit.embedding import Embedder
from outlay.audit.fingerprints import Vectors, block_texts
from outlay.audit.heads import Head
from outlay.audit.verifiers import Kind, Verifier
from outlay.testbeds.coin.traces import Trace, vocabulary

TOO_ALIKE = 0.9  # a foreign block closer than this to an own one is no negative
NEAREST = 40  # a hard negative is one of so many nearest foreign blocks


@dataclass(frozen=True)
class TrainConfig:
    """The recipe.

    Args:
        block: S.
        seed: of weights, pairs and padding.
        epochs: over the pairs of the heads.
        lr: of the heads' maps; the paper's 2e-5 is for a whole encoder.
        batch: pairs per step.
        gamma, alpha: of the focal loss.
        noise: one block of random tokens against the answer for so many own blocks; 0 for none.
        verifier_steps: full-batch steps of the verifiers.
    """

    block: int = 32
    seed: int = 42
    epochs: int = 6
    lr: float = 3e-4
    batch: int = 128
    gamma: float = 2.0
    alpha: float = 0.25
    noise: int = 4
    verifier_steps: int = 400


class Matching(nn.Module):
    """sigmoid(w cos(M u, M v) + b), as logits."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.map = nn.Parameter(torch.eye(size))
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.bias = nn.Parameter(torch.tensor(-3.0))

    def forward(self, left_ND: torch.Tensor, right_ND: torch.Tensor) -> torch.Tensor:
        """(N,) logits."""
        mapped = F.cosine_similarity(left_ND @ self.map.T, right_ND @ self.map.T, dim=1)
        return self.log_scale.exp() * mapped + self.bias


def focal(
    logits_N: torch.Tensor, labels_N: torch.Tensor, gamma: float, alpha: float
) -> torch.Tensor:
    """Focal loss: well-classified pairs count little."""
    loss_N = F.binary_cross_entropy_with_logits(logits_N, labels_N, reduction="none")
    right_N = torch.exp(-loss_N)
    weight_N = torch.where(labels_N > 0, alpha, 1 - alpha)
    return (weight_N * (1 - right_N) ** gamma * loss_N).mean()


@dataclass(frozen=True)
class Pairs:
    """Pairs to match: N rows, half of them matching, or a little less with noise."""

    left_ND: Vectors
    right_ND: Vectors
    labels_N: npt.NDArray[np.float32]


def pairs(traces: Sequence[Trace], embed: Embedder, config: TrainConfig) -> tuple[Pairs, Pairs]:
    """Training pairs of both heads, as (Tokens-to-Block, Block-to-Answer).

    Negatives are half easy (anything foreign) and half hard (one of the nearest foreign blocks of
    the same source, unless it is so alike that it may be of the same template). For the answer
    there are also blocks of random tokens: no natural text teaches that these do not belong.
    """
    rng = np.random.default_rng(config.seed)
    texts = [block_texts(trace.tokens, config.block) for trace in traces]
    owner = np.repeat(np.arange(len(traces)), [len(each) for each in texts])
    source = np.array([trace.source for trace in traces])[owner]
    blocks_BD = embed([text for each in texts for text in each])
    rows: list[tuple[Vectors, Vectors, float]] = []
    answer_rows: list[tuple[Vectors, Vectors, float]] = []
    for number, trace in enumerate(traces):
        answer_D = embed.whole(trace.answer)
        own = np.flatnonzero(owner == number)
        alike_KB = blocks_BD[own] @ blocks_BD.T
        foreign_KB = (owner != number)[None] & (alike_KB < TOO_ALIKE)
        hard_KB = np.where(foreign_KB & (source == trace.source)[None], alike_KB, -2.0)
        for at, place in enumerate(own):
            tokens = trace.tokens[at * config.block : (at + 1) * config.block]
            easy = int(rng.choice(np.flatnonzero(foreign_KB[at])))
            near = np.argpartition(-hard_KB[at], NEAREST)[:NEAREST]
            for other in (easy, int(rng.choice(near))):
                drawn = rng.choice(len(tokens), size=min(len(tokens), int(rng.integers(1, 6))))
                mean_D = embed([tokens[i] for i in drawn]).mean(axis=0)
                rows.append((mean_D, blocks_BD[place], 1.0))
                rows.append((mean_D, blocks_BD[other], 0.0))
                answer_rows.append((blocks_BD[place], answer_D, 1.0))
                answer_rows.append((blocks_BD[other], answer_D, 0.0))
    if config.noise:
        words = vocabulary()
        for number, trace in enumerate(traces):
            count = max(1, int(np.sum(owner == number)) // config.noise)
            drawn = rng.integers(len(words), size=(count, config.block))
            vectors = embed(["".join(words[i] for i in row) for row in drawn])
            answer_D = embed.whole(trace.answer)
            answer_rows += [(vector_D, answer_D, 0.0) for vector_D in vectors]
    return _stack(rows), _stack(answer_rows)


def _stack(rows: Sequence[tuple[Vectors, Vectors, float]]) -> Pairs:
    left, right, labels = zip(*rows, strict=True)
    return Pairs(np.stack(left), np.stack(right), np.array(labels, np.float32))


def train_head(data: Pairs, config: TrainConfig) -> Head:
    """Train one matching head."""
    torch.manual_seed(config.seed)
    network = Matching(data.left_ND.shape[1])
    left, right = torch.from_numpy(data.left_ND), torch.from_numpy(data.right_ND)
    labels = torch.from_numpy(data.labels_N)
    optimiser = torch.optim.Adam(
        [
            {"params": [network.map], "lr": config.lr},
            {"params": [network.log_scale, network.bias], "lr": 10 * config.lr},
        ]
    )
    for _ in range(config.epochs):
        for part in torch.randperm(len(labels)).split(config.batch):
            optimiser.zero_grad()
            loss = focal(network(left[part], right[part]), labels[part], config.gamma, config.alpha)
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        return Head(network.map.numpy().copy(), float(network.log_scale.exp()), float(network.bias))


class DeepSets(nn.Module):
    """rho(mean phi(a, b)): no order."""

    def __init__(self) -> None:
        super().__init__()
        self.phi1, self.phi2 = nn.Linear(2, 32), nn.Linear(32, 32)
        self.rho1, self.rho2 = nn.Linear(32, 32), nn.Linear(32, 1)

    def forward(self, pairs_NJ2: torch.Tensor, mask_NJ: torch.Tensor) -> torch.Tensor:
        """(N,) log-odds of inflation."""
        hidden = F.relu(self.phi2(F.relu(self.phi1(pairs_NJ2)))) * mask_NJ[..., None]
        mean = hidden.sum(1) / mask_NJ.sum(1, keepdim=True)
        result: torch.Tensor = self.rho2(F.relu(self.rho1(mean)))[:, 0]
        return result

    def weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """As `Verifier` reads them."""
        layers = {"phi1": self.phi1, "phi2": self.phi2, "rho1": self.rho1, "rho2": self.rho2}
        return {
            key: value.detach().numpy().copy()
            for name, layer in layers.items()
            for key, value in ((name, layer.weight), (f"{name}b", layer.bias))
        }


class Recurrent(nn.Module):
    """A plain recurrent network over blocks in order."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.RNNCell(2, 32), nn.Linear(32, 1)

    def forward(self, pairs_NJ2: torch.Tensor, mask_NJ: torch.Tensor) -> torch.Tensor:
        """(N,) log-odds of inflation."""
        state = torch.zeros(len(pairs_NJ2), 32)
        for j in range(pairs_NJ2.shape[1]):
            state = torch.where(mask_NJ[:, j, None] > 0, self.cell(pairs_NJ2[:, j], state), state)
        result: torch.Tensor = self.out(state)[:, 0]
        return result

    def weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """As `Verifier` reads them."""
        cell = self.cell
        found = {
            "in": cell.weight_ih,
            "rec": cell.weight_hh,
            "recb": cell.bias_ih + cell.bias_hh,
            "out": self.out.weight,
            "outb": self.out.bias,
        }
        return {name: value.detach().numpy().copy() for name, value in found.items()}


def train_verifier(
    kind: Kind,
    scores: Sequence[Sequence[tuple[float, float]]],
    inflated: Sequence[bool],
    config: TrainConfig,
) -> Verifier:
    """Train a learned verifier on audits' scores, cut at random numbers of blocks."""
    rng = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)
    cut = [list(each[: int(rng.integers(2, len(each) + 1))]) for each in scores for _ in range(2)]
    labels = torch.tensor([float(flag) for flag in inflated for _ in range(2)])
    longest = max(map(len, cut))
    mask = torch.zeros(len(cut), longest)
    data = torch.zeros(len(cut), longest, 2)
    for row, each in enumerate(cut):
        mask[row, : len(each)] = 1
        data[row, : len(each)] = torch.tensor(each, dtype=torch.float32)
    network: DeepSets | Recurrent = DeepSets() if kind == "deepset" else Recurrent()
    # Honest and padded audits weigh the same, however many there are of each.
    weight = torch.where(labels > 0, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3, weight_decay=1e-4)
    for _ in range(config.verifier_steps):
        optimiser.zero_grad()
        logits = network(data, mask)
        loss = F.binary_cross_entropy_with_logits(logits, labels, weight=weight)
        loss.backward()
        optimiser.step()
    return Verifier(kind, network.weights())
