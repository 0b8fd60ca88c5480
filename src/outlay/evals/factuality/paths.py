"""Minimal paths between what a question names and what answers it (fs1, arXiv 2505.11140).

For a question entity s and a gold entity t: all simple paths of 1 hop; if there are none, of 2;
then 3. Only the minimal length is kept. Parallel relations are different paths, self-loops are
ignored, s = t has no path. Undirected search walks facts backwards, too, and still prints them as
stored.

A shortest path never visits a node twice, so the search is exact on graphs with cycles: distances
to t are found breadth-first, and the paths come out one by one, in the order of the cap (sum of
relation frequencies: rare relations say more than common ones), without listing all others.
The block-lists and the limit on a hub's degree are ours; the ends of a path are never blocked.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, runtime_checkable

from outlay.errors import InputError
from outlay.evals.checks import check_whole
from outlay.evals.factuality.graph import Graph, Triple

MOST_HOPS = 8
MOST_PAIRS = 10_000


@dataclass(frozen=True)
class Step:
    """One fact on a path, walked forwards or backwards."""

    triple: Triple
    forward: bool = True

    @property
    def start(self) -> str:
        """The node that the step leaves."""
        return self.triple.subject if self.forward else self.triple.object

    @property
    def end(self) -> str:
        """The node that the step reaches."""
        return self.triple.object if self.forward else self.triple.subject

    @property
    def key(self) -> tuple[str, int, str]:
        """What orders steps that cost the same."""
        return self.triple.relation, int(not self.forward), self.end


@dataclass(frozen=True)
class Path:
    """A chain of facts.

    Args:
        steps: each starts where the one before it ends.
        cost: sum of its relations' frequencies in the graph.
    """

    steps: tuple[Step, ...]
    cost: int = 0

    @property
    def hops(self) -> int:
        """Number of facts."""
        return len(self.steps)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes in the order walked."""
        return (self.steps[0].start, *(step.end for step in self.steps))

    @property
    def triples(self) -> tuple[Triple, ...]:
        """The facts as stored."""
        return tuple(step.triple for step in self.steps)

    @property
    def rank(self) -> tuple[int, int, tuple[tuple[str, int, str], ...]]:
        """Shortest first, then by relation frequency, then by name."""
        return self.hops, self.cost, tuple(step.key for step in self.steps)


@runtime_checkable
class RemoteGraph(Protocol):
    """A graph that is asked for paths of one length at a time: a SPARQL endpoint."""

    def paths(self, source: str, target: str, hops: int, finder: PathFinder) -> list[Path]:
        """Simple paths of exactly `hops` facts, at most one more than `finder.max_paths`."""
        ...

    def line(self, triple: Triple) -> str:
        """The fact as `subject, relation, object`, in labels."""
        ...


@dataclass(frozen=True)
class Grounding:
    """The minimal paths of one question.

    Args:
        paths: of all pairs, shortest first, then by relation frequency.
        missing: pairs (question entity, gold entity) without a path.
        truncated: whether `max_paths` left something out.
    """

    paths: tuple[Path, ...]
    missing: tuple[tuple[str, str], ...] = ()
    truncated: bool = False

    @property
    def hops(self) -> int:
        """Length of the shortest path, 0 without one."""
        return min((path.hops for path in self.paths), default=0)

    @property
    def triples(self) -> tuple[Triple, ...]:
        """The union of all paths' facts, each once: the joint subgraph of the question."""
        return tuple(dict.fromkeys(triple for path in self.paths for triple in path.triples))


@dataclass(frozen=True)
class PathFinder:
    """Finds minimal simple paths.

    Args:
        max_hops: longest path looked for.
        directed: walk facts from subject to object only.
        max_paths: most paths kept, per pair and per question.
        block_relations: relations never walked.
        block_nodes: nodes never passed through.
        max_degree: nodes with more facts are never passed through; None for no limit.

    Raises:
        InputError: for values out of range.
    """

    max_hops: int = 3
    directed: bool = True
    max_paths: int = 20
    block_relations: tuple[str, ...] = ()
    block_nodes: tuple[str, ...] = ()
    max_degree: int | None = None

    def __post_init__(self) -> None:
        check_whole("max_hops", self.max_hops, least=1)
        if self.max_hops > MOST_HOPS:
            raise InputError(f"max_hops={self.max_hops} is more than {MOST_HOPS}; the paper's is 3")
        check_whole("max_paths", self.max_paths, least=1)
        if self.max_degree is not None:
            check_whole("max_degree", self.max_degree, least=1)
        object.__setattr__(self, "block_relations", tuple(self.block_relations))
        object.__setattr__(self, "block_nodes", tuple(self.block_nodes))

    def between(self, graph: Graph | RemoteGraph, source: str, target: str) -> list[Path]:
        """All minimal paths from `source` to `target`, at most `max_paths`, best first.

        Raises:
            InputError: for a node that a `Graph` does not have.
        """
        return self._search(graph, source, target)[: self.max_paths]

    def connect(
        self, graph: Graph | RemoteGraph, sources: Sequence[str], targets: Sequence[str]
    ) -> Grounding:
        """The minimal paths of every pair of a question entity and a gold entity.

        Raises:
            InputError: for no sources, no targets, too many pairs or an unknown node.
        """
        for what, nodes in (("question entity", sources), ("gold entity", targets)):
            if not nodes:
                raise InputError(f"no {what}; a path needs both ends: link the question first")
        pairs = [(s, t) for s in dict.fromkeys(sources) for t in dict.fromkeys(targets)]
        if len(pairs) > MOST_PAIRS:
            raise InputError(f"{len(pairs)} pairs of entities, at most {MOST_PAIRS} are searched")
        found: list[Path] = []
        missing = []
        for source, target in pairs:
            paths = self._search(graph, source, target)
            found += paths
            if not paths:
                missing.append((source, target))
        found.sort(key=lambda path: path.rank)
        kept = tuple(found[: self.max_paths])
        return Grounding(kept, tuple(missing), len(kept) < len(found))

    def _search(self, graph: Graph | RemoteGraph, source: str, target: str) -> list[Path]:
        """Minimal paths, at most one more than `max_paths`."""
        if isinstance(graph, Graph):
            graph.require(source, "question entity")
            graph.require(target, "gold entity")
            walk = _minimal(graph, source, target, self) if source != target else iter(())
            return list(islice(walk, self.max_paths + 1))
        if source != target:
            for hops in range(1, self.max_hops + 1):
                if paths := graph.paths(source, target, hops, self):
                    return sorted(paths, key=lambda path: path.rank)
        return []


def _steps(graph: Graph, node: str, finder: PathFinder, *, back: bool) -> Iterator[Step]:
    """Steps that leave `node`, or with `back` those that reach it; self-loops left out."""
    ways = [(graph.into(node) if back else graph.out(node), True)]
    if not finder.directed:
        ways.append((graph.out(node) if back else graph.into(node), False))
    for triples, forward in ways:
        for triple in triples:
            if triple.subject != triple.object and triple.relation not in finder.block_relations:
                yield Step(triple, forward)


def _distances(graph: Graph, source: str, target: str, finder: PathFinder) -> dict[str, int]:
    """Hops to `target`, of the nodes from which it is reached before or with `source`."""
    blocked = set(finder.block_nodes)
    hops = {target: 0}
    queue = deque([target])
    while queue:
        node = queue.popleft()
        if hops[node] == min(finder.max_hops, hops.get(source, finder.max_hops)):
            break
        crowded = finder.max_degree is not None and graph.degree(node) > finder.max_degree
        if node != target and (node in blocked or crowded):
            continue
        for step in _steps(graph, node, finder, back=True):
            if step.start not in hops:
                hops[step.start] = hops[node] + 1
                queue.append(step.start)
    return hops


def _minimal(graph: Graph, source: str, target: str, finder: PathFinder) -> Iterator[Path]:
    """All minimal paths by increasing cost: best-first search with exact costs to go."""
    hops = _distances(graph, source, target, finder)
    if source not in hops:
        return
    least: dict[str, int | None] = {target: 0}
    barred = set(finder.block_nodes)

    def nearer(node: str) -> Iterator[Step]:
        for step in _steps(graph, node, finder, back=False):
            if hops.get(step.end, -1) == hops[node] - 1 and to_go(step.end) is not None:
                yield step

    def to_go(node: str) -> int | None:
        """Cost of the cheapest rest; None where a blocked node leaves none."""
        if node not in least:
            crowded = finder.max_degree is not None and graph.degree(node) > finder.max_degree
            if node != source and (node in barred or crowded):
                least[node] = None
            else:
                costs = [
                    graph.frequency(step.triple.relation) + (to_go(step.end) or 0)
                    for step in nearer(node)
                ]
                least[node] = min(costs, default=None)
        return least[node]

    whole = to_go(source)
    if whole is None:
        return
    heap: list[tuple[int, tuple[tuple[str, int, str], ...], int, tuple[Step, ...]]]
    heap = [(whole, (), 0, ())]
    while heap:
        _, key, spent, steps = heapq.heappop(heap)
        at = steps[-1].end if steps else source
        if at == target:
            yield Path(steps, spent)
            continue
        for step in nearer(at):
            cost = spent + graph.frequency(step.triple.relation)
            rest = cost + (to_go(step.end) or 0)
            heapq.heappush(heap, (rest, (*key, step.key), cost, (*steps, step)))
