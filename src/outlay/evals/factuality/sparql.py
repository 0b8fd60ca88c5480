"""A graph behind a SPARQL endpoint: one query per number of hops, labels resolved in it.

Paths of one length are asked for in one query; walking facts backwards adds one alternative per
combination of directions. A path with a node or relation that has no label is dropped and counted
(`SparqlGraph.unlabelled`): the paths released with fs1 (arXiv 2505.11140) contain raw property
IRIs. The endpoint's order is not ours, so under a cap its best paths may differ from those that a
local graph gives.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from outlay.errors import EndpointError, InputError
from outlay.evals.factuality.graph import Triple
from outlay.evals.factuality.paths import Path, PathFinder, Step

_IRI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s<>\"{}|^`\\]+")
_LANGUAGE = re.compile(r"[A-Za-z]{1,8}(-[A-Za-z0-9]{1,8})*")
MAX_BYTES = 50_000_000
NODE_LABEL = "{node} <http://www.w3.org/2000/01/rdf-schema#label> {label} ."
WIKIDATA_RELATION = (
    "?{name}Property <http://wikiba.se/ontology#directClaim> {node} ; "
    "<http://www.w3.org/2000/01/rdf-schema#label> {label} ."
)


@dataclass(frozen=True)
class SparqlGraph:
    """Asks an endpoint for paths; node and relation ids are IRIs.

    Args:
        endpoint: URL of a SPARQL 1.1 query endpoint.
        language: of the labels.
        node_label: pattern that leads from "{node}" to "{label}".
        relation_label: the same for relations ("{name}" makes further variables unique); None is
            `node_label`. Wikidata's is `WIKIDATA_RELATION`.
        seconds: longest wait for one query.
        limit: most rows asked for, per query, beyond which a `PathFinder` cap is cut short.
        user_agent: what the endpoint's operators see; public ones ask for a contact.

    Raises:
        InputError: for an unusable URL, language or number.
    """

    endpoint: str
    language: str = "en"
    node_label: str = NODE_LABEL
    relation_label: str | None = None
    seconds: float = 60.0
    limit: int = 1_000
    user_agent: str = "outlay (factuality evaluation)"
    _labels: dict[str, str] = field(init=False, repr=False, compare=False, default_factory=dict)
    _bare: set[str] = field(init=False, repr=False, compare=False, default_factory=set)
    _lock: threading.Lock = field(
        init=False, repr=False, compare=False, default_factory=threading.Lock
    )

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^\s/]+", self.endpoint):
            raise InputError(f"endpoint={self.endpoint!r} is no http(s) URL; give a query endpoint")
        if not _LANGUAGE.fullmatch(self.language):
            raise InputError(f"language={self.language!r} is no language tag; 'en' is usual")
        if not self.seconds > 0 or self.limit < 1:
            raise InputError(f"seconds={self.seconds}, limit={self.limit}; both must be positive")
        for pattern in filter(None, (self.node_label, self.relation_label)):
            if "{node}" not in pattern or "{label}" not in pattern:
                raise InputError(f"the label pattern {pattern!r} needs {{node}} and {{label}}")

    @property
    def unlabelled(self) -> int:
        """Paths dropped because a part of them has no label."""
        return len(self._bare)

    def label(self, iri: str) -> str:
        """The label of a node or relation that some path held; else the IRI."""
        return self._labels.get(iri, iri)

    def line(self, triple: Triple) -> str:
        """The fact as `subject, relation, object`, in labels."""
        return ", ".join(self.label(part) for part in triple)

    def query(self, source: str, target: str, hops: int, finder: PathFinder) -> str:
        """The one query for all simple paths of exactly `hops` facts.

        Raises:
            InputError: for an id that is no IRI.
        """
        for iri in (source, target, *finder.block_relations, *finder.block_nodes):
            _check_iri(iri)
        if finder.max_degree is not None:
            raise InputError("max_degree= cannot be asked of an endpoint; use block_nodes=")
        # Names of two characters are nodes and relations; their labels have longer ones.
        nodes = [f"<{source}>", *(f"?n{i}" for i in range(1, hops)), f"<{target}>"]
        ways = product("><", repeat=hops) if not finder.directed else iter([(">",) * hops])
        groups = [_group(nodes, way) for way in ways]
        inner, relations = nodes[1:-1], [f"?r{i}" for i in range(1, hops + 1)]
        lines = [" UNION ".join(groups)]
        distinct = [
            f"{one} != {other}"
            for i, one in enumerate(inner)
            for other in (nodes[0], nodes[-1], *inner[:i])
        ]
        distinct += [f"{one} != <{iri}>" for one in inner for iri in finder.block_nodes]
        distinct += [f"{one} != <{iri}>" for one in relations for iri in finder.block_relations]
        distinct += [f"isIRI({one})" for one in inner]
        if distinct:
            lines.append(f"FILTER({' && '.join(distinct)})")
        lines += [self._optional(node, self.node_label) for node in inner]
        lines += [self._optional(r, self.relation_label or self.node_label) for r in relations]
        lines += [
            self._optional(iri, self.node_label, name)
            for iri, name in ((nodes[0], "source"), (nodes[-1], "target"))
        ]
        body = "\n  ".join(lines)
        return f"SELECT DISTINCT * WHERE {{\n  {body}\n}}\nLIMIT {self.limit}"

    def paths(self, source: str, target: str, hops: int, finder: PathFinder) -> list[Path]:
        """Simple paths of exactly `hops` facts whose parts all have labels.

        Raises:
            InputError: for an id that is no IRI.
            EndpointError: if the endpoint fails or answers nonsense.
        """
        found: dict[tuple[Step, ...], None] = {}
        for row in self._rows(self.query(source, target, hops, finder)):
            steps = self._steps(row, source, target, hops)
            parts = {part for step in steps for part in step.triple}
            with self._lock:
                for part in parts:
                    key = _variable(part, row, source, target)
                    if key in row:
                        self._labels.setdefault(part, row[key])
                if any(part not in self._labels for part in parts):
                    self._bare.add(" ".join(part for step in steps for part in step.triple))
                    continue
            found[steps] = None
        paths = sorted((Path(steps) for steps in found), key=lambda path: path.rank)
        return paths[: finder.max_paths + 1]

    def _optional(self, node: str, pattern: str, name: str = "") -> str:
        name = name or node.removeprefix("?")
        label = f"?{name}Label"
        told = pattern.replace("{node}", node).replace("{label}", label).replace("{name}", name)
        return f'OPTIONAL {{ {told} FILTER(LANG({label}) IN ("{self.language}", "")) }}'

    def _steps(
        self, row: Mapping[str, str], source: str, target: str, hops: int
    ) -> tuple[Step, ...]:
        try:
            nodes = [source, *(row[f"n{i}"] for i in range(1, hops)), target]
            relations = [row[f"r{i}"] for i in range(1, hops + 1)]
            ways = row["way"]
        except KeyError as error:
            raise EndpointError(
                f"{self.endpoint} left {error} out of its answer; is it a SPARQL 1.1 endpoint?"
            ) from error
        return tuple(
            Step(Triple(*((a, relation, b) if way == ">" else (b, relation, a))), way == ">")
            for a, relation, b, way in zip(nodes[:-1], relations, nodes[1:], ways, strict=True)
        )

    def _rows(self, query: str) -> Iterator[dict[str, str]]:
        """The bindings of a query, as plain text."""
        import httpx

        headers = {
            "Accept": "application/sparql-results+json",
            "User-Agent": self.user_agent,
        }
        try:
            with httpx.Client(timeout=self.seconds) as client:
                answer = client.post(self.endpoint, data={"query": query}, headers=headers)
        except httpx.HTTPError as error:
            raise EndpointError(
                f"{self.endpoint} did not answer ({error or type(error).__name__}); check the URL, "
                "or raise seconds="
            ) from error
        if answer.status_code != 200:
            raise EndpointError(
                f"{self.endpoint} answered {answer.status_code}: {answer.text[:200]!r}; ask for "
                "fewer hops, or try again later"
            )
        if len(answer.content) > MAX_BYTES:
            raise EndpointError(f"{self.endpoint} sent {len(answer.content)} bytes; lower limit=")
        try:
            rows = answer.json()["results"]["bindings"]
            plain = [{key: str(cell["value"]) for key, cell in row.items()} for row in rows]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EndpointError(
                f"{self.endpoint} sent no SPARQL JSON results ({error!r}); give the address of a "
                "query endpoint"
            ) from error
        yield from plain


def _group(nodes: list[str], way: tuple[str, ...]) -> str:
    facts = []
    for i, direction in enumerate(way):
        pair = (nodes[i], nodes[i + 1]) if direction == ">" else (nodes[i + 1], nodes[i])
        facts.append(f"{pair[0]} ?r{i + 1} {pair[1]} .")
    return f'{{ {" ".join(facts)} BIND("{"".join(way)}" AS ?way) }}'


def _variable(part: str, row: Mapping[str, Any], source: str, target: str) -> str:
    """The name of the variable that holds a part's label."""
    if part in (source, target):
        return "sourceLabel" if part == source else "targetLabel"
    return next(f"{key}Label" for key, value in row.items() if value == part and len(key) == 2)


def _check_iri(text: str) -> None:
    if not _IRI.fullmatch(text):
        raise InputError(f"{text!r} is no IRI; give full ids (http://www.wikidata.org/entity/Q142)")
