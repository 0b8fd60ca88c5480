"""Draft trees: their shapes, and how one level of children is drawn.

RSD-C draws b_l children of every node of level l by Gumbel-top-k, which is ordered sampling without
replacement. RSD-S is stochastic beam search (Kool et al., arXiv 1903.06059): the W candidates of a
level with the largest perturbed log-probabilities, each conditioned on its parent's. Children stay
in the order of their draws: the verification is exact for that order only.

Shapes: N nodes of a frontier, V vocabulary. All arithmetic is in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from operator import mul
from typing import Literal, cast

import torch

from outlay.decode.rsd.verify import Draw
from outlay.errors import InputError
from outlay.models.base import FloatArray

Mode = Literal["rsd_c", "rsd_s", "chain", "iid_tree", "greedy_tree"]
MOST_NODES = 1024  # of a tree
MOST_DEPTH = 64


@dataclass(frozen=True)
class Shape:
    """How large draft trees are and how they are drawn; knobs as in `RSD`.

    Raises:
        InputError: for an empty tree, one without a child, or one that is too large.
    """

    mode: Mode = "rsd_s"
    branching: tuple[int, ...] = (2, 2, 2)
    beam: int = 4
    depth: int = 3

    def __post_init__(self) -> None:
        if self.mode not in ("rsd_c", "rsd_s", "chain", "iid_tree", "greedy_tree"):
            raise InputError(
                f"mode={self.mode!r}; choose rsd_c, rsd_s, chain, iid_tree or greedy_tree"
            )
        if not self.branching or min(self.branching) < 1:
            raise InputError(
                f"branching={self.branching}; give at least one level, each with >= 1 children"
            )
        if self.beam < 1:
            raise InputError(f"beam={self.beam}; must be >= 1")
        if self.depth < 1:
            raise InputError(f"depth={self.depth}; must be >= 1")
        if self.levels > MOST_DEPTH or self.nodes > MOST_NODES:
            raise InputError(
                f"a tree of {self.levels} levels and {self.nodes} nodes is too large; at most "
                f"{MOST_DEPTH} levels and {MOST_NODES} nodes: lower branching=, beam= or depth="
            )

    @property
    def by_branching(self) -> bool:
        """Whether `branching` says the tree's size; else `beam` and `depth` do."""
        return self.mode in ("rsd_c", "iid_tree", "greedy_tree")

    @property
    def levels(self) -> int:
        """Levels below the root."""
        return len(self.branching) if self.by_branching else self.depth

    @property
    def widths(self) -> tuple[int, ...]:
        """Most nodes of every level."""
        if self.by_branching:
            return tuple(accumulate(self.branching, mul))
        return (self.beam if self.mode == "rsd_s" else 1,) * self.depth

    @property
    def nodes(self) -> int:
        """B: most nodes given to the target at once."""
        return sum(self.widths)

    @property
    def widest(self) -> int:
        """Most children that one node can have."""
        return max(self.branching) if self.by_branching else self.widths[0]

    @property
    def draw(self) -> Draw:
        """How children are made."""
        return {"iid_tree": "independent", "greedy_tree": "chosen"}.get(self.mode, "distinct")  # type: ignore[return-value]

    def clipped(self, vocabulary: int) -> Shape:
        """The same with at most `vocabulary` children a node."""
        return replace(
            self,
            branching=tuple(min(b, vocabulary) for b in self.branching),
            beam=min(self.beam, vocabulary**self.depth),
        )

    def within(self, levels: int, nodes: int) -> int:
        """How many levels fit into so many levels and nodes."""
        fitting = 0
        for total in accumulate(self.widths[: max(0, levels)]):
            fitting += total <= nodes
        return fitting


@dataclass
class Tree:
    """Tokens tried after the last committed one, which is node 0; parents before children.

    Args:
        tokens: of the nodes.
        parents: numbers of the nodes' parents; -1 for node 0.
        children: numbers of the children of every node, in the order of their draws; a node that
            was drawn twice is named twice.
        logps: what the children of a node were drawn from, log-probabilities of V tokens.
    """

    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [-1])
    children: list[list[int]] = field(default_factory=lambda: [[]])
    logps: dict[int, torch.Tensor] = field(default_factory=dict)

    def add(self, parent: int, token: int) -> int:
        """A new last child of `parent`; its number."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.children.append([])
        node = len(self.tokens) - 1
        self.children[parent].append(node)
        return node

    def path(self, node: int) -> list[int]:
        """Numbers of the nodes from below the root to `node`."""
        found: list[int] = []
        while node > 0:
            found.append(node)
            node = self.parents[node]
        return found[::-1]

    def law(self, node: int) -> FloatArray | None:
        """Probabilities that the children of `node` were drawn from; None where it has none."""
        logp_V = self.logps.get(node)
        return None if logp_V is None else cast(FloatArray, logp_V.exp().cpu().numpy())

    def words(self, node: int) -> list[int]:
        """Tokens from below the root to `node`."""
        return [self.tokens[each] for each in self.path(node)]


@dataclass(frozen=True)
class Beam:
    """A node whose children are drawn next.

    Args:
        node: its number.
        phi: log-probability of its path.
        psi: the same, perturbed.
        count: how often it was drawn.
    """

    node: int = 0
    phi: float = 0.0
    psi: float = 0.0
    count: int = 1


def gumbel(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Standard Gumbel noise of the shape of `like`."""
    return -torch.empty_like(like).exponential_(generator=generator).log_()


def grow(
    tree: Tree,
    frontier: Sequence[Beam],
    logp_NV: torch.Tensor,
    shape: Shape,
    level: int,
    generator: torch.Generator | None,
) -> list[Beam]:
    """Draw one level of children and return the next frontier.

    Args:
        tree: grows.
        frontier: the nodes of the last level.
        logp_NV: what follows each of them, log-probabilities in float64; -inf is never drawn.
        shape: of the tree.
        level: number of the new level, from 0.
        generator: of the noise; None is the deterministic limit (temperature 0).
    """
    for beam, logp_V in zip(frontier, logp_NV, strict=True):
        tree.logps[beam.node] = logp_V
    if shape.mode == "rsd_s":
        return _beams(tree, frontier, logp_NV, shape.beam, generator)
    fan = shape.branching[level] if shape.by_branching else 1
    if shape.mode == "iid_tree" and generator is not None:
        grown: list[Beam] = []
        for beam, logp_V in zip(frontier, logp_NV, strict=True):
            drawn = torch.multinomial(
                logp_V.exp(), beam.count * fan, replacement=True, generator=generator
            )
            grown += _merged(tree, beam.node, drawn.tolist())
        return grown
    if shape.mode == "iid_tree":  # at temperature 0 all independent draws are the same one
        fan = 1
    noisy_NV = logp_NV
    if generator is not None and shape.mode != "greedy_tree":
        noisy_NV = logp_NV + gumbel(logp_NV, generator)
    top = noisy_NV.topk(min(fan, logp_NV.shape[1]), dim=1)
    return [
        Beam(tree.add(beam.node, token))
        for beam, values, tokens in zip(
            frontier, top.values.tolist(), top.indices.tolist(), strict=True
        )
        for value, token in zip(values, tokens, strict=True)
        if value > -torch.inf
    ]


def _merged(tree: Tree, parent: int, drawn: Sequence[int]) -> list[Beam]:
    """Independent draws as nodes: equal ones share a node and go on with all their draws."""
    nodes: dict[int, int] = {}
    for token in drawn:
        if token in nodes:
            tree.children[parent].append(nodes[token])
        else:
            nodes[token] = tree.add(parent, token)
    return [Beam(node, count=drawn.count(token)) for token, node in nodes.items()]


def _beams(
    tree: Tree,
    frontier: Sequence[Beam],
    logp_NV: torch.Tensor,
    width: int,
    generator: torch.Generator | None,
) -> list[Beam]:
    phi_NV = logp_NV + logp_NV.new_tensor([[beam.phi] for beam in frontier])
    psi_NV = phi_NV if generator is None else _conditioned(phi_NV, frontier, generator)
    vocabulary = logp_NV.shape[1]
    top = psi_NV.flatten().topk(min(width, psi_NV.numel()))
    phis = phi_NV.flatten()[top.indices].tolist()
    grown = []
    for value, at, phi in zip(top.values.tolist(), top.indices.tolist(), phis, strict=True):
        if value > -torch.inf:
            n, token = divmod(at, vocabulary)
            grown.append(Beam(tree.add(frontier[n].node, token), phi, value))
    return grown


def _conditioned(
    phi_NV: torch.Tensor, frontier: Sequence[Beam], generator: torch.Generator
) -> torch.Tensor:
    """Gumbels of all children, given that each parent's largest is the parent's own."""
    psi_N1 = phi_NV.new_tensor([[beam.psi] for beam in frontier])
    noisy_NV = phi_NV + gumbel(phi_NV, generator)
    top_N1 = noisy_NV.amax(1, keepdim=True)
    # log(1 - exp(g - Z)) is -inf at the largest child by design, which then gets psi itself.
    v_NV = psi_N1 - noisy_NV + torch.log1p(-(noisy_NV - top_N1).exp())
    psi_NV = psi_N1 - v_NV.clamp(min=0) - torch.log1p((-v_NV.abs()).exp())
    return psi_NV.masked_fill_(phi_NV == -torch.inf, -torch.inf)
