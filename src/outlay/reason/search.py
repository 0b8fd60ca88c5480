"""Search over steps: the moves that all step searches share, and the population baselines.

A *node* is a partial solution: the branch where it ends, and its steps. `expand` samples k next
steps of every node in one call; siblings share the KV of everything before them. Populations:

- `BeamSearch` (N, M): N active nodes; each step keeps the best N/M by the verifier and samples M
  steps of each. Finished nodes leave to a pool. `groups` > 1 splits the population into independent
  subtrees, each keeping its own best (diverse verifier tree search).
- `ParticleFilter` (N) (arXiv 2502.01618): after each step N particles are resampled with weights
  softmax(logit(score)); finished particles keep their last weight and stay in the pool.

Both stop a step at the question's delimiter, and end when all are finished, at `max_steps`, or when
the budget is spent; then the answer is read from the pool, or from what has got furthest.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from outlay.errors import BudgetError, InputError
from outlay.models.base import Branch
from outlay.reason.base import Answer, Extend, Open, Request, Score, Session, Strategy, Verifier
from outlay.reason.voting import Aggregate, Solving, aggregate, answer_of, pick

_ENDS = ("eos", "stop")


@dataclass(frozen=True)
class Node:
    """A partial solution.

    Args:
        branch: where it ends.
        steps: its steps, the last one possibly unfinished.
        scores: the verifier's, one per step.
        finished: it ended by itself; nothing can be added.
        order: number of the node within its search, in order of creation.
    """

    branch: Branch
    steps: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    finished: bool = False
    order: int = 0

    @property
    def text(self) -> str:
        """Everything after the prompt."""
        return "".join(self.steps)


Nodes = Generator[Request, Any, list[list[Node]]]


def expand(
    session: Session,
    nodes: Sequence[Node],
    k: int,
    *,
    step_tokens: int,
    first: int = 1,
    seeds: Sequence[int] | None = None,
) -> Nodes:
    """k next steps of every node: [node][child].

    A child is finished when its step ended in end-of-text rather than at the delimiter.

    Args:
        session: of the question.
        nodes: to expand; none is finished.
        k: children per node.
        step_tokens: longest step.
        first: order of the first child.
        seeds: one per node, so that two copies of one node grow differently.

    Raises:
        BudgetError: if nothing is left.
    """
    delimiter = session.question.delimiter
    sampling = replace(
        session.sampling,
        stop=(*session.sampling.stop, delimiter),
        max_tokens=min(step_tokens, session.sampling.max_tokens),
        include_stop=True,
    )
    each = [replace(sampling, seed=sampling.seed + seed) for seed in seeds or [0] * len(nodes)]
    rows = yield Extend([node.branch for node in nodes], each, k)
    made: list[list[Node]] = []
    for node, row in zip(nodes, rows, strict=True):
        made.append([])
        for branch in row:
            step = (branch.text,) if branch.text else ()
            stepped = branch.finish == "stop" and branch.text.endswith(delimiter)
            finished = branch.finish in _ENDS and not stepped
            made[-1].append(Node(branch, (*node.steps, *step), node.scores, finished, first))
            first += 1
    return made


def judge(verifier: Verifier, nodes: Sequence[Node]) -> Generator[Request, Any, list[Node]]:
    """The nodes with the verifier's scores of all their steps."""
    if not nodes:
        return []
    rows = yield Score(verifier, [n.steps for n in nodes], [n.scores for n in nodes])
    return [replace(node, scores=tuple(row)) for node, row in zip(nodes, rows, strict=True)]


def read(
    session: Session,
    pool: Sequence[Node],
    active: Sequence[Node],
    vote: Literal["weighted", "naive"],
    agg: Aggregate,
    detail: dict[str, Any],
) -> Answer:
    """The answer of the pool of finished nodes; without one, of the best active node."""
    candidates = sorted(pool, key=lambda node: node.order) or list(active)
    if not candidates:
        return answer_of(session, None, (), status="budget", detail=detail)
    scores = [aggregate(node.scores, agg) for node in candidates]
    status = "voted" if pool else "unfinished"
    branches = [node.branch for node in candidates]
    found = pick(session, branches, scores, vote, status=status)
    return replace(found, detail=detail)


@dataclass(frozen=True)
class BeamSearch(Solving):
    """Beam search over steps, or diverse verifier tree search with `groups`.

    Args:
        verifier: judges prefixes.
        n: active nodes N.
        m: children of each node that is kept, M; N must be a multiple of it.
        groups: independent subtrees; must divide N/M.
        step_tokens: longest step.
        max_steps: most steps.
        agg: how a prefix is ranked from its steps' scores.
        vote: over finished nodes.

    Raises:
        InputError: for sizes that do not fit together.
    """

    verifier: Verifier
    n: int = 16
    m: int = 4
    groups: int = 1
    step_tokens: int = 256
    max_steps: int = 40
    agg: Aggregate = "last"
    vote: Literal["weighted", "naive"] = "weighted"

    def __post_init__(self) -> None:
        if self.n < 1 or self.m < 1 or self.n % self.m:
            raise InputError(f"n={self.n}, m={self.m}; n must be a positive multiple of m")
        if self.groups < 1 or (self.n // self.m) % self.groups:
            raise InputError(f"groups={self.groups} must divide n/m = {self.n // self.m}")
        check_steps(self.step_tokens, self.max_steps)
        aggregate((), self.agg)

    def plan(self, session: Session) -> Strategy:
        """The strategy for one question."""
        root = Node((yield Open()))
        pool: list[Node] = []
        keep = self.n // self.m // self.groups  # per group
        beams: list[list[Node]] = [[] for _ in range(self.groups)]
        made, width, steps = 1, [[root]] * self.groups, 0
        per_node = self.n // self.groups  # children of the root, per group
        try:
            while any(width) and steps < self.max_steps:
                parents = [node for group in width for node in group]
                copies = [index for index, group in enumerate(width) for _ in group]
                rows = yield from expand(
                    session,
                    parents,
                    per_node,
                    step_tokens=self.step_tokens,
                    first=made,
                    seeds=copies if steps == 0 else None,
                )
                made += sum(map(len, rows))
                children = yield from judge(self.verifier, [c for row in rows for c in row])
                places = [group for group, row in zip(copies, rows, strict=True) for _ in row]
                for index in range(self.groups):
                    mine = [c for c, at in zip(children, places, strict=True) if at == index]
                    pool += [node for node in mine if node.finished]
                    active = [node for node in mine if not node.finished]
                    active.sort(key=lambda c: (-aggregate(c.scores, self.agg), c.order))
                    beams[index] = active[:keep]
                width, per_node, steps = [list(beam) for beam in beams], self.m, steps + 1
        except BudgetError:
            pass
        rest = [node for beam in beams for node in beam]
        detail = {"steps": steps, "nodes": made - 1}
        return read(session, pool, rest, self.vote, self.agg, detail)


@dataclass(frozen=True)
class ParticleFilter(Solving):
    """Particle filtering over steps.

    Args:
        verifier: judges prefixes.
        n: particles.
        step_tokens: longest step.
        max_steps: most steps.
        agg: how a prefix is scored from its steps'.
        resample: "systematic" (low variance) or "multinomial".

    Raises:
        InputError: for values out of range.
    """

    verifier: Verifier
    n: int = 16
    step_tokens: int = 256
    max_steps: int = 40
    agg: Aggregate = "last"
    resample: Literal["systematic", "multinomial"] = "systematic"

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"n={self.n}; must be at least 1")
        if self.resample not in ("systematic", "multinomial"):
            raise InputError(f"resample={self.resample!r}; choose systematic or multinomial")
        check_steps(self.step_tokens, self.max_steps)
        aggregate((), self.agg)

    def plan(self, session: Session) -> Strategy:
        """The strategy for one question."""
        rng = np.random.default_rng([session.sampling.seed, 0x5EED])
        root = Node((yield Open()))
        particles, made, steps = [root] * self.n, 1, 0
        try:
            while steps < self.max_steps and not all(p.finished for p in particles):
                moving = [i for i, p in enumerate(particles) if not p.finished]
                rows = yield from expand(
                    session,
                    [particles[i] for i in moving],
                    1,
                    step_tokens=self.step_tokens,
                    first=made,
                    seeds=moving,
                )
                made += len(moving)
                judged = yield from judge(self.verifier, [row[0] for row in rows])
                for i, node in zip(moving, judged, strict=True):
                    particles[i] = node
                steps += 1
                weights = softmax_logits([aggregate(p.scores, self.agg) for p in particles])
                particles = [particles[i] for i in resampled(weights, self.resample, rng)]
        except BudgetError:
            pass
        best: dict[int, Node] = {p.order: p for p in particles if p.order}
        pool = [p for p in best.values() if p.finished]
        active = [p for p in best.values() if not p.finished]
        return read(session, pool, active, "naive", self.agg, {"steps": steps, "nodes": made - 1})


def softmax_logits(scores: Sequence[float]) -> np.ndarray:
    """softmax(logit(score)), with scores clipped away from 0 and 1: (N,) -> (N,)."""
    clipped = [min(1 - 1e-7, max(1e-7, score)) for score in scores]
    logits = np.array([math.log(p / (1 - p)) for p in clipped])
    weights: np.ndarray = np.exp(logits - logits.max())
    return weights / weights.sum()


def resampled(
    weights: np.ndarray, how: Literal["systematic", "multinomial"], rng: np.random.Generator
) -> list[int]:
    """Indices of N particles drawn with `weights` (N,)."""
    n = len(weights)
    if how == "multinomial":
        return [int(i) for i in rng.choice(n, size=n, p=weights)]
    at = (rng.random() + np.arange(n)) / n
    return [int(i) for i in np.minimum(np.searchsorted(np.cumsum(weights), at, "right"), n - 1)]


def check_steps(step_tokens: int, max_steps: int) -> None:
    """Raise `InputError` unless both are at least 1."""
    if step_tokens < 1 or max_steps < 1:
        raise InputError(
            f"step_tokens={step_tokens}, max_steps={max_steps}; both must be at least 1"
        )
