"""The loop: draft a tree, read it with the target in one pass, walk it, keep what was accepted.

Several sequences run together, each with its own tree, random streams and limits, so that its text
does not depend on its batch mates.

Shapes: B sequences, R rows fed, N nodes, V vocabulary. Laws are in float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import torch

from outlay.decode.rsd.attention import TreeCache
from outlay.decode.rsd.drafts import Drafter, check_finite
from outlay.decode.rsd.trees import Beam, Shape, Tree, grow
from outlay.decode.rsd.verify import walk
from outlay.models.base import Finish, FloatArray


@dataclass(frozen=True)
class Stats:
    """What one sequence's passes brought.

    Args:
        emitted: new tokens of every pass of the target.
        nodes: draft tokens that every pass verified.
        accepted: draft tokens that are part of the text.
        begun: tokens drawn from the prompt's own logits, before the first pass.
        draft_seconds, target_seconds: wall clock of both models, shared evenly by a batch.
    """

    emitted: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()
    accepted: int = 0
    begun: int = 0
    draft_seconds: float = 0.0
    target_seconds: float = 0.0

    @property
    def block_efficiency(self) -> float:
        """New tokens per pass of the target; 0 before the first pass."""
        return sum(self.emitted) / len(self.emitted) if self.emitted else 0.0

    def mbsu(self, ratio: float, levels: int) -> float:
        """Memory-bound speed-up: block efficiency over `ratio * levels + 1` passes.

        `ratio` is the draft's size over the target's. It ignores what verifying rows costs.
        """
        return self.block_efficiency / (ratio * levels + 1)


@dataclass
class Lane:
    """One sequence of a batch.

    Args:
        prompt: its token ids.
        limit: most new tokens.
        room: most sampled tokens, draft nodes included.
        uniforms: random numbers of the verification.
        noise: random numbers of the drafting, on the target's device; None is greedy.
        wants_logprobs: keep log-probabilities under the unfiltered target.
    """

    prompt: Sequence[int]
    limit: int
    room: int
    uniforms: np.random.Generator
    noise: torch.Generator | None
    wants_logprobs: bool = False
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Finish | None = None
    emitted: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    accepted: int = 0
    bonus: int = 0  # samples of the target that are part of the text
    begun: int = 0  # of these, drawn after the prompt, before the first pass
    draft_seconds: float = 0.0
    target_seconds: float = 0.0
    draft_flops: float = 0.0
    target_flops: float = 0.0

    @property
    def greedy(self) -> bool:
        """Whether the sequence is at temperature 0."""
        return self.noise is None

    @property
    def sampled(self) -> int:
        """Tokens sampled so far, by both models."""
        return self.begun + sum(self.nodes) + len(self.nodes)

    def stats(self) -> Stats:
        """What its passes brought."""
        return Stats(
            tuple(self.emitted),
            tuple(self.nodes),
            self.accepted,
            self.begun,
            self.draft_seconds,
            self.target_seconds,
        )


class Warp(Protocol):
    """The user's filters: what a sequence's tokens are really drawn from."""

    def __call__(
        self, lane: Lane, ahead: Sequence[Sequence[int]], logits_NV: torch.Tensor
    ) -> torch.Tensor:
        """Filtered logits_NV; `ahead[n]` are the tokens tried between `lane.tokens` and row n."""
        ...


Ends = Callable[[Lane], Finish | None]
"""Whether the last of `lane.tokens` ends the sequence."""
Flops = Callable[[int, int], float]
"""FLOPs of feeding so many rows behind so many cached ones."""


def _free(rows: int, past: int) -> float:
    return 0.0


@dataclass
class Engine:
    """A target, a draft and how they work together.

    Args:
        network: the target, a transformers causal LM.
        drafter: proposes.
        shape: of the trees.
        warp: the user's filters, applied to both models.
        ends: stop rules beyond the number of tokens.
        window: most positions that both models have.
        target_flops, draft_flops: for the books.
    """

    network: Any
    drafter: Drafter
    shape: Shape
    warp: Warp
    ends: Ends
    window: int
    target_flops: Flops = _free
    draft_flops: Flops = _free
    peak_bytes: int = 0

    @torch.inference_mode()
    def read_target(self, lanes: Sequence[Lane]) -> TreeCache:
        """The target's cache of all but the last token of every prompt."""
        cache = TreeCache(self.network, len(lanes))
        cache.read([lane.prompt[:-1] for lane in lanes])
        return cache

    @torch.inference_mode()
    def read_draft(self, lanes: Sequence[Lane]) -> None:
        """The same for the draft."""
        self.drafter.open([lane.prompt for lane in lanes])

    @torch.inference_mode()
    def adopt(self, lane: Lane, cache: Any, logits_V: torch.Tensor) -> TreeCache:
        """A cache that holds the whole prompt of one lane, whose first token is drawn here."""
        tree_cache = TreeCache(self.network, 1, cache)
        lane.begun = 1
        _, token, logprobs = self._walk(lane, Tree([lane.prompt[-1]]), logits_V[None])
        self._take(lane, [], token, logprobs)
        self.drafter.append([[token]])
        return tree_cache

    def run(self, lanes: Sequence[Lane], cache: TreeCache) -> Iterator[None]:
        """Decode all lanes to their ends, yielding after every pass of the target.

        Args:
            lanes: sequences that both models have read; the last committed token of each is in no
                cache yet.
            cache: the target's.
        """
        kept, active = list(range(len(lanes))), list(lanes)
        while True:
            kept = [i for i, lane in enumerate(active) if lane.finish is None]
            if not kept:
                return
            with torch.inference_mode():
                if len(kept) < len(active):
                    cache.keep(kept)
                    self.drafter.keep(kept)
                active = [active[i] for i in kept]
                self._pass(active, cache)
            yield

    def _pass(self, lanes: Sequence[Lane], cache: TreeCache) -> None:
        """One tree a lane, one pass of the target, one walk a lane."""
        start = time.perf_counter()
        trees = self._draft(lanes)
        drafted = time.perf_counter()
        width = max(len(tree.tokens) for tree in trees)
        ids_BR = torch.zeros((len(trees), width), dtype=torch.long)
        parents = []
        for b, tree in enumerate(trees):
            ids_BR[b, : len(tree.tokens)] = torch.tensor(tree.tokens)
            parents.append([*tree.parents, *[-1] * (width - len(tree.tokens))])
        for lane, tree, length in zip(lanes, trees, cache.lengths, strict=True):
            lane.target_flops += self.target_flops(len(tree.tokens), length)
            lane.nodes.append(len(tree.tokens) - 1)
        logits_BRV = cache.feed(ids_BR, parents)
        check_finite(logits_BRV, "the target")
        self.peak_bytes = max(self.peak_bytes, cache.bytes + self.drafter.bytes)
        paths, last = [], []
        for lane, tree, logits_RV in zip(lanes, trees, logits_BRV, strict=True):
            path, token, logprobs = self._walk(lane, tree, logits_RV)
            paths.append(path)
            last.append(token)
            self._take(lane, [tree.tokens[node] for node in path], token, logprobs)
        cache.commit([[0, *path] for path in paths])
        self.drafter.commit(trees, paths, last)
        ended = time.perf_counter()
        for lane in lanes:
            lane.draft_seconds += (drafted - start) / len(lanes)
            lane.target_seconds += (ended - drafted) / len(lanes)

    def _levels(self, lane: Lane) -> int:
        """How many levels this lane's next tree may have."""
        left = lane.limit - len(lane.tokens)
        used = len(lane.prompt) + len(lane.tokens)
        return self.shape.within(
            min(self.shape.levels, left - 1, self.window - used), lane.room - lane.sampled - 1
        )

    def _draft(self, lanes: Sequence[Lane]) -> list[Tree]:
        trees = [Tree([[*lane.prompt, *lane.tokens][-1]]) for lane in lanes]
        levels = [self._levels(lane) for lane in lanes]
        if not any(levels):
            return trees
        rows = self.drafter.rows
        logits = list(self.drafter.roots()[:, None])
        frontiers = [[Beam()] if deep else [] for deep in levels]
        for level in range(max(levels)):
            if level:
                nodes = [[beam.node for beam in frontier] for frontier in frontiers]
                logits = self.drafter.expand(trees, nodes)
            for b, (lane, tree) in enumerate(zip(lanes, trees, strict=True)):
                if frontiers[b]:
                    ahead = [tree.words(beam.node) for beam in frontiers[b]]
                    logp_NV = self.warp(lane, ahead, logits[b]).double().log_softmax(-1)
                    frontiers[b] = grow(tree, frontiers[b], logp_NV, self.shape, level, lane.noise)
                if level + 1 >= levels[b]:
                    frontiers[b] = []
        share = (self.drafter.rows - rows) / len(lanes)
        for lane in lanes:
            past = len(lane.prompt) + len(lane.tokens)
            lane.draft_flops += share * self.draft_flops(1, past)
        return trees

    def _walk(
        self, lane: Lane, tree: Tree, logits_RV: torch.Tensor
    ) -> tuple[list[int], int, list[float]]:
        """Accepted nodes, the token of the target after them, and all their log-probabilities."""

        def law(node: int) -> FloatArray:
            ahead = [tree.words(node)]
            scores_V = self.warp(lane, ahead, logits_RV[node : node + 1])[0].double()
            if lane.greedy:  # all on one token: a child is accepted if it is that one
                law_V = torch.zeros_like(scores_V)
                law_V[scores_V.argmax()] = 1.0
            else:
                law_V = scores_V.softmax(-1)
            return cast(FloatArray, law_V.cpu().numpy())

        def uniform() -> float:
            return float(lane.uniforms.random())

        draw = "chosen" if lane.greedy else self.shape.draw
        path, last = walk(tree, law, uniform, draw)
        logprobs: list[float] = []
        if lane.wants_logprobs:
            tokens = [*(tree.tokens[node] for node in path), last]
            raw_NV = logits_RV[[0, *path]].float().log_softmax(-1)
            logprobs = [float(raw_V[token]) for raw_V, token in zip(raw_NV, tokens, strict=True)]
        return path, last, logprobs

    def _take(
        self, lane: Lane, accepted: Sequence[int], last: int, logprobs: Sequence[float]
    ) -> None:
        """Append what was accepted, up to the first token that ends the sequence."""
        before = len(lane.tokens)
        for place, token in enumerate([*accepted, last]):
            lane.tokens.append(token)
            if place < len(accepted):
                lane.accepted += 1
            else:
                lane.bonus += 1
            lane.finish = self.ends(lane)
            if lane.finish is not None:
                break
        made = len(lane.tokens) - before
        if lane.nodes:
            lane.emitted.append(made)
        lane.logprobs += logprobs[:made]
        if lane.finish is None and lane.sampled >= lane.room:
            lane.finish = "budget"
