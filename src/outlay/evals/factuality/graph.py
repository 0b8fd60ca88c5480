"""A knowledge graph in memory: triples, adjacency, labels and aliases.

Nodes and relations have ids; what people read are their labels. Several nodes may share a label
(Luxembourg is a country and a city), and a node may have more names (aliases). Cycles, parallel
relations and self-loops are kept as they are: what walks the graph has to cope with them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from outlay.errors import DependencyError, InputError

MAX_TRIPLES = 5_000_000
MAX_NAME = 1_000
"""Characters of an id, a label or an alias."""


class Triple(NamedTuple):
    """One fact; the parts are ids."""

    subject: str
    relation: str
    object: str


@dataclass(frozen=True)
class GraphFacts:
    """What a graph looks like.

    Args:
        nodes, triples, relations: counts.
        components: weakly connected parts.
        cyclic: whether a directed cycle exists (a self-loop is one).
        self_loops: triples from a node to itself.
    """

    nodes: int
    triples: int
    relations: int
    components: int
    cyclic: bool
    self_loops: int


class Graph:
    """Triples with adjacency in both directions.

    Args:
        triples: (subject, relation, object) ids; repeated ones count once.
        labels: id -> label of nodes and relations; an id without one is its own label.
        aliases: id -> further names.
        name: of the graph.
        version: of its source, for reports.
        notes: what loading left out, reason -> count.
        max_triples: refuse larger graphs.

    Raises:
        InputError: for no triples, too many, or an empty or oversized id, label or alias.
    """

    def __init__(
        self,
        triples: Iterable[Sequence[str]],
        *,
        labels: Mapping[str, str] | None = None,
        aliases: Mapping[str, Sequence[str]] | None = None,
        name: str = "graph",
        version: str = "",
        notes: Mapping[str, int] | None = None,
        max_triples: int = MAX_TRIPLES,
    ) -> None:
        self.name, self.version, self.notes = name, version, dict(notes or {})
        self._labels: dict[str, str] = {}
        self._out: dict[str, list[Triple]] = defaultdict(list)
        self._into: dict[str, list[Triple]] = defaultdict(list)
        self._frequency: Counter[str] = Counter()
        known: dict[Triple, None] = {}
        for index, parts in enumerate(triples):
            triple = _triple(parts, index)
            if triple in known:
                continue
            if len(known) == max_triples:
                raise InputError(
                    f"{name} has more than {max_triples} triples; raise max_triples, or give the "
                    "part of the graph around the questions"
                )
            known[triple] = None
            self._out[triple.subject].append(triple)
            self._into[triple.object].append(triple)
            self._frequency[triple.relation] += 1
        if not known:
            raise InputError(f"{name} has no triples; give at least one")
        self._triples = known
        self._nodes = sorted({*self._out, *self._into})
        for key, text in (labels or {}).items():
            self._labels[key] = check_name(text, f"label of {key!r}")
        self._aliases: dict[str, tuple[str, ...]] = {
            key: tuple(dict.fromkeys(check_name(text, f"alias of {key!r}") for text in names))
            for key, names in (aliases or {}).items()
        }
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for node in self._nodes:
            for text in dict.fromkeys(map(fold, self.names(node))):
                self._by_name[text].append(node)

    def __len__(self) -> int:
        return len(self._triples)

    def __contains__(self, node: object) -> bool:
        return node in self._out or node in self._into

    def __repr__(self) -> str:
        version = f" {self.version}" if self.version else ""
        return f"<Graph {self.name}{version}: {len(self._nodes)} nodes, {len(self)} triples>"

    @property
    def triples(self) -> tuple[Triple, ...]:
        """All facts, in the order given."""
        return tuple(self._triples)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Ids of all nodes, sorted."""
        return tuple(self._nodes)

    @property
    def relations(self) -> tuple[str, ...]:
        """Ids of all relations, sorted."""
        return tuple(sorted(self._frequency))

    def label(self, key: str) -> str:
        """The label of a node or relation."""
        return self._labels.get(key, key)

    def names(self, key: str) -> tuple[str, ...]:
        """The label, then the aliases."""
        return tuple(dict.fromkeys((self.label(key), *self._aliases.get(key, ()))))

    def out(self, node: str) -> Sequence[Triple]:
        """Facts whose subject is `node`."""
        return self._out.get(node, ())

    def into(self, node: str) -> Sequence[Triple]:
        """Facts whose object is `node`."""
        return self._into.get(node, ())

    def has(self, triple: Triple) -> bool:
        """Whether the graph states this fact."""
        return triple in self._triples

    def objects(self, node: str, relation: str) -> tuple[str, ...]:
        """What `relation` leads to from `node`, in the order given."""
        return tuple(triple.object for triple in self.out(node) if triple.relation == relation)

    def degree(self, node: str) -> int:
        """Facts that `node` takes part in."""
        return len(self.out(node)) + len(self.into(node))

    def frequency(self, relation: str) -> int:
        """Facts with this relation."""
        return self._frequency[relation]

    def find(self, name: str) -> tuple[str, ...]:
        """Nodes with this label or alias, whatever the case and spacing; () for none."""
        return tuple(self._by_name.get(fold(name), ()))

    def require(self, node: str, what: str = "entity") -> str:
        """`node`, if the graph has it.

        Raises:
            InputError: naming nodes with that label, where there are any.
        """
        if node in self:
            return node
        named = self.find(node)
        hint = f"; nodes with this name: {', '.join(named)}" if named else ""
        raise InputError(
            f"{what} {node!r} is not in {self.name} ({len(self._nodes)} nodes); give the id of a "
            f"node{hint}"
        )

    def line(self, triple: Triple) -> str:
        """The fact as `subject, relation, object`, in labels."""
        return ", ".join(self.label(part) for part in triple)

    def networkx(self) -> Any:
        """The graph as a `networkx.MultiDiGraph`, relations as edge keys.

        Raises:
            DependencyError: without networkx.
        """
        try:
            import networkx
        except ImportError as error:
            raise DependencyError(
                "the shape of a graph needs networkx; pip install 'outlay[eval]'"
            ) from error
        graph = networkx.MultiDiGraph(name=self.name)
        graph.add_nodes_from((node, {"label": self.label(node)}) for node in self._nodes)
        graph.add_edges_from((t.subject, t.object, t.relation) for t in self._triples)
        return graph

    def facts(self) -> GraphFacts:
        """Counts, components and cycles.

        Raises:
            DependencyError: without networkx.
        """
        graph = self.networkx()
        import networkx

        return GraphFacts(
            nodes=len(self._nodes),
            triples=len(self),
            relations=len(self._frequency),
            components=networkx.number_weakly_connected_components(graph),
            cyclic=not networkx.is_directed_acyclic_graph(graph),
            self_loops=sum(triple.subject == triple.object for triple in self._triples),
        )


def fold(text: str) -> str:
    """The form in which names are looked up: no case, single spaces."""
    return " ".join(text.casefold().split())


def check_name(text: object, what: str) -> str:
    """A stripped id, label or alias.

    Raises:
        InputError: for anything but a non-empty text of at most `MAX_NAME` characters.
    """
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{what} is {text!r}; give a text that is not empty, or drop the triple")
    if len(text) > MAX_NAME:
        raise InputError(f"{what} has {len(text)} characters, at most {MAX_NAME} are taken")
    return text.strip()


def _triple(parts: Sequence[str], index: int) -> Triple:
    if isinstance(parts, str) or len(parts) != 3:
        raise InputError(f"triple {index} is {parts!r}; give (subject, relation, object)")
    return Triple(
        *(
            check_name(part, f"{role} of triple {index}")
            for role, part in zip(("subject", "relation", "object"), parts, strict=True)
        )
    )
