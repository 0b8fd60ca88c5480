"""Trails: means of the hidden states over consecutive segments of what a branch has written.

A trail is kept while tokens are computed anyway, by hooks on the decoder layers: nothing is
computed twice, and no stack of T x C states is ever held. A branch keeps the means of the segments
that were completed within it and the sum of the one still open; a child goes on where its parent
stopped, so segments run across branches. Sums are in fp32 whatever the model computes in.

A layer's state is its output. The last one is taken after the final norm, as transformers'
`hidden_states` has it; a hook on the last layer alone would see it before.

Shapes: B rows, T time, P pieces of a row (runs of tokens that fall into one segment), L chosen
layers, C hidden size, N segments.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from outlay.errors import CapabilityError, InputError
from outlay.models.base import Branch, Float32Array, Trail


def decoder_layers(base: Any, count: int) -> nn.ModuleList | None:
    """The list of `count` decoder layers inside a transformers base model, if there is one."""
    found = [
        module
        for module in (*base.children(), *base.modules())  # its own before deeper ones
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    return found[0] if found else None


def chosen_layers(trail: Trail, count: int, name: str) -> tuple[int, ...]:
    """The numbers (from 0) of the layers that a trail asks for, of `count`.

    Raises:
        InputError: for a layer that the model does not have.
    """
    if trail.layers == "all":
        return tuple(range(count))
    if trail.layers == "last_third":
        return tuple(range(count - max(1, count // 3), count))
    wrong = next((layer for layer in trail.layers if layer >= count), None)
    if wrong is not None:
        raise InputError(
            f"layers={trail.layers}: {name} has layers 0 to {count - 1}; drop layer {wrong}"
        )
    return trail.layers


@dataclass
class Walk:
    """The trail of one branch.

    Args:
        trail: what is kept.
        layers: numbers of its layers.
        closed_LC: means of the segments that were completed within this branch, in order.
        sum_LC: sum over the tokens of the open segment, those of ancestors included.
        count: tokens in it.
        begun: whether the parent's state at its end was taken over.
    """

    trail: Trail
    layers: tuple[int, ...]
    closed_LC: list[torch.Tensor] = field(default_factory=list)
    sum_LC: torch.Tensor | None = None
    count: int = 0
    begun: bool = False

    def begin(self, parent: Walk | None) -> None:
        """Go on where `parent` has stopped; all its tokens must be computed."""
        if not self.begun:
            self.begun = True
            if parent is not None:
                self.sum_LC, self.count = parent.sum_LC, parent.count

    def add(self, sum_LC: torch.Tensor, tokens: int) -> None:
        """Take in the sum over further tokens, which must not reach beyond the open segment."""
        self.sum_LC = sum_LC if self.sum_LC is None else self.sum_LC + sum_LC
        self.count += tokens
        if self.count == self.trail.k:
            self.closed_LC.append(self.sum_LC / self.count)
            self.sum_LC, self.count = None, 0


def follow(parent: Branch, trail: Trail, layers: tuple[int, ...]) -> Walk:
    """The walk of a new child of `parent`.

    Raises:
        InputError: if the parent keeps a trail of another kind.
    """
    before = walk_of(parent)
    if before is not None and before.trail != trail:
        raise InputError(
            f"branch {parent.id} keeps {before.trail}; go on with the same one, or from a branch "
            "without a trail"
        )
    return Walk(trail, layers)


def walk_of(branch: Branch | None) -> Walk | None:
    """The walk of a branch; None without one."""
    found = getattr(None if branch is None else branch.handle, "walk", None)
    return found if isinstance(found, Walk) else None


def need(branch: Branch) -> None:
    """Raise `InputError` unless the branch keeps a trail."""
    if walk_of(branch) is None:
        raise InputError(f"branch {branch.id} keeps no trail; give trail= to extend or append")


def means(branch: Branch) -> Float32Array:
    """(N, L, C) means of the segments on the branch's path; the last one may be shorter.

    Raises:
        InputError: for a branch whose trail has no token.
    """
    walks: list[Walk] = []
    at: Branch | None = branch
    while (walk := walk_of(at)) is not None:
        walks.append(walk)
        assert at is not None
        at = at.parent
    rows = [mean_LC for walk in reversed(walks) for mean_LC in walk.closed_LC]
    if walks[0].sum_LC is not None:
        rows.append(walks[0].sum_LC / walks[0].count)
    if not rows:
        raise InputError(f"branch {branch.id} has a trail without a token")
    return np.asarray(torch.stack(rows).cpu().numpy(), dtype=np.float32)


class Watch:
    """Hooks on a model that reduce every chosen layer's output to sums over pieces.

    Args:
        base: the transformers base model.
        layers: its decoder layers.
        chosen: numbers of the layers to watch.
    """

    def __init__(self, base: Any, layers: nn.ModuleList, chosen: tuple[int, ...]) -> None:
        self.base, self.layers, self.chosen = base, layers, chosen
        self.weights_BPT: torch.Tensor | None = None  # None: one token a row, taken as it is
        self._seen: dict[int, torch.Tensor] = {}

    @contextlib.contextmanager
    def on(self) -> Iterator[Watch]:
        """Hooks are in place inside."""
        last = len(self.layers) - 1
        handles = [
            (self.base if layer == last else self.layers[layer]).register_forward_hook(
                self._hook(layer)
            )
            for layer in self.chosen
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
            self._seen.clear()

    def take(self) -> torch.Tensor:
        """(B, P, L, C) sums of the last pass."""
        if len(self._seen) < len(self.chosen):
            raise CapabilityError(
                "a decoder layer was not run as a module; its states are not seen"
            )
        seen_BPLC = torch.stack([self._seen[layer] for layer in self.chosen], 2)
        self._seen.clear()
        return seen_BPLC

    def _hook(self, layer: int) -> Any:
        def see(module: nn.Module, args: object, output: Any) -> None:
            hidden_BTC = getattr(output, "last_hidden_state", None)
            if hidden_BTC is None:
                hidden_BTC = output[0] if isinstance(output, tuple) else output
            hidden_BTC = hidden_BTC.float()
            if self.weights_BPT is not None:
                hidden_BTC = torch.bmm(self.weights_BPT, hidden_BTC)
            self._seen[layer] = hidden_BTC

        return see


@dataclass(frozen=True)
class Piece:
    """Tokens [start, end) of a row, which fall into one segment of `walk`."""

    walk: Walk
    start: int
    end: int


def pieces(path: Sequence[Branch], missing: Sequence[int]) -> list[Piece]:
    """How the tokens about to be fed for a path (`missing[i]` of branch i) fall into segments.

    Nothing is changed: walks that begin with these tokens are begun by `absorb`.
    """
    found: list[Piece] = []
    at = filled = 0
    for branch, fresh in zip(path, missing, strict=True):
        walk = walk_of(branch)
        if walk is None:
            filled, at = 0, at + fresh
            continue
        if walk.begun:
            filled = walk.count
        end = at + fresh
        while at < end:
            size = min(walk.trail.k - filled, end - at)
            found.append(Piece(walk, at, at + size))
            at, filled = at + size, (filled + size) % walk.trail.k
    return found


def weights(rows: Sequence[Sequence[Piece]], width: int, device: torch.device) -> torch.Tensor:
    """(B, P, T) ones where a token belongs to a piece."""
    most = max(map(len, rows))
    weights_BPT = torch.zeros((len(rows), max(1, most), width))
    for b, row in enumerate(rows):
        for p, piece in enumerate(row):
            weights_BPT[b, p, piece.start : piece.end] = 1
    return weights_BPT.to(device)


def absorb(
    path: Sequence[Branch], row: Sequence[Piece], sums_PLC: torch.Tensor, watched: Sequence[int]
) -> None:
    """Add the sums of a path's pieces to its walks, each begun from its parent's end.

    Args:
        path: from the root on.
        row: its pieces.
        sums_PLC: their sums, over the watched layers.
        watched: numbers of those layers.
    """
    before: Walk | None = None
    for branch in path:
        walk = walk_of(branch)
        if walk is not None:
            walk.begin(before)
            own = [watched.index(layer) for layer in walk.layers]
            for p, piece in enumerate(row):
                if piece.walk is walk:
                    walk.add(sums_PLC[p, own], piece.end - piece.start)
        before = walk


class Pace:
    """The walks of the rows of one decoding batch, advanced together by a token at a time.

    Nothing is written to a walk before its row has ended, as with the row's KV.

    Args:
        walks: of the rows, one each; all of one trail, and begun.
        watch: hooks that are on.
    """

    def __init__(self, walks: Sequence[Walk], watch: Watch) -> None:
        self.walks, self.watch = list(walks), watch
        self.k = walks[0].trail.k
        self._counts = [walk.count for walk in walks]
        self._closed: list[list[torch.Tensor]] = [[] for _ in walks]
        self._sum_BLC: torch.Tensor | None = None  # None until the first token

    def step(self) -> None:
        """Take in the token that was just computed in every row."""
        seen_BLC = self.watch.take()[:, 0]
        if self._sum_BLC is None:
            zero_LC = torch.zeros_like(seen_BLC[0])
            self._sum_BLC = torch.stack(
                [zero_LC if w.sum_LC is None else w.sum_LC for w in self.walks]
            )
        self._sum_BLC += seen_BLC
        for row in range(len(self.walks)):
            self._counts[row] += 1
            if self._counts[row] == self.k:
                self._closed[row].append(self._sum_BLC[row] / self.k)
                self._counts[row] = 0
                self._sum_BLC[row] = 0

    def settle(self, row: int) -> None:
        """Write what a row that has ended has gathered to its walk."""
        if self._sum_BLC is not None:
            walk, count = self.walks[row], self._counts[row]
            walk.closed_LC += self._closed[row]
            walk.count, walk.sum_LC = count, self._sum_BLC[row].clone() if count else None

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self.walks = [self.walks[row] for row in rows]
        self._counts = [self._counts[row] for row in rows]
        self._closed = [self._closed[row] for row in rows]
        if self._sum_BLC is not None:
            self._sum_BLC = self._sum_BLC[list(rows)]
