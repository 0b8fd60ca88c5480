"""SPARQL endpoints: one query per hop count, labels resolved, the same paths as in memory."""

import random

import pytest
from sparql_server import serving

from outlay.errors import EndpointError, InputError
from outlay.evals.factuality.graph import Graph
from outlay.evals.factuality.paths import PathFinder
from outlay.evals.factuality.sparql import WIKIDATA_RELATION, SparqlGraph

pytestmark = pytest.mark.server

BASE = "http://example.org/"
LABEL = "http://www.w3.org/2000/01/rdf-schema#label"


def iri(name):
    return BASE + name


def labelled(facts, skip=()):
    names = {part for fact in facts for part in fact} - set(skip)
    rows = [tuple(map(iri, fact)) for fact in facts]
    rows += [(iri(name), LABEL, (name.upper(), "en")) for name in sorted(names)]
    rows += [(iri(name), LABEL, (f"{name} (de)", "de")) for name in sorted(names)]
    return rows


def network(seed, nodes=7, edges=16):
    draw = random.Random(seed)
    names = [f"n{i}" for i in range(nodes)]
    return [(draw.choice(names), f"r{draw.randrange(3)}", draw.choice(names)) for _ in range(edges)]


@pytest.mark.parametrize("directed", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_an_endpoint_gives_the_paths_that_memory_gives(seed, directed):
    facts = sorted(set(network(seed)))
    local = Graph([tuple(map(iri, fact)) for fact in facts])
    finder = PathFinder(directed=directed, max_paths=500)
    with serving(labelled(facts)) as endpoint:
        remote = SparqlGraph(endpoint.url)
        for source, target in (("n0", "n1"), ("n2", "n5"), ("n4", "n3")):
            if not {iri(source), iri(target)} <= set(local.nodes):
                continue
            here = finder.between(local, iri(source), iri(target))
            there = finder.between(remote, iri(source), iri(target))
            assert {path.steps for path in there} == {path.steps for path in here}
            for path in there:
                line = ", ".join(part.removeprefix(BASE).upper() for part in path.triples[0])
                assert remote.line(path.triples[0]) == line


def test_each_number_of_hops_costs_one_query_and_the_shortest_ends_the_search():
    facts = [("a", "r", "b"), ("b", "r", "c"), ("c", "r", "d")]
    with serving(labelled(facts)) as endpoint:
        remote = SparqlGraph(endpoint.url)
        found = PathFinder().between(remote, iri("a"), iri("c"))
        assert [path.hops for path in found] == [2]
        assert len(endpoint.queries) == 2
        assert PathFinder(max_hops=2).between(remote, iri("a"), iri("d")) == []
        assert len(endpoint.queries) == 4
        assert PathFinder().between(remote, iri("a"), iri("a")) == []
        assert len(endpoint.queries) == 4


def test_a_path_with_an_unlabelled_part_is_dropped_and_counted():
    facts = [("a", "bare", "b"), ("a", "good", "b")]
    with serving(labelled(facts, skip=("bare",))) as endpoint:
        remote = SparqlGraph(endpoint.url)
        found = PathFinder().between(remote, iri("a"), iri("b"))
    assert [remote.line(path.triples[0]) for path in found] == ["A, GOOD, B"]
    assert remote.unlabelled == 1


def test_relations_may_have_their_labels_elsewhere():
    facts = [(iri("a"), iri("direct"), iri("b"))]
    facts += [(iri(name), LABEL, (name, "en")) for name in ("a", "b")]
    facts += [(iri("P1"), "http://wikiba.se/ontology#directClaim", iri("direct"))]
    facts += [(iri("P1"), LABEL, ("knows", "en"))]
    with serving(facts) as endpoint:
        remote = SparqlGraph(endpoint.url, relation_label=WIKIDATA_RELATION)
        [path] = PathFinder().between(remote, iri("a"), iri("b"))
        assert remote.line(path.triples[0]) == "a, knows, b"


def test_blocked_relations_and_nodes_are_kept_out_by_the_endpoint():
    facts = [("a", "r", "x"), ("x", "r", "b"), ("a", "r", "y"), ("y", "s", "b")]
    with serving(labelled(facts)) as endpoint:
        remote = SparqlGraph(endpoint.url)
        for finder, passed in (
            (PathFinder(block_nodes=(iri("x"),)), ["y"]),
            (PathFinder(block_relations=(iri("s"),)), ["x"]),
            (PathFinder(), ["x", "y"]),
        ):
            found = finder.between(remote, iri("a"), iri("b"))
            assert sorted(path.nodes[1] for path in found) == [iri(name) for name in passed]
        with pytest.raises(InputError, match="max_degree"):
            PathFinder(max_degree=3).between(remote, iri("a"), iri("b"))


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (500, "overloaded", "answered 500"),
        (200, "<html>", "no SPARQL JSON"),
        (200, '{"results": {"bindings": [{"n1": 3}]}}', "no SPARQL JSON"),
        (200, '{"results": {"bindings": [{"r1": {"value": "x"}}]}}', "left 'way' out"),
    ],
)
def test_a_failing_endpoint_is_named(status, text, said):
    with serving([]) as endpoint:
        endpoint.answer = (status, text)
        with pytest.raises(EndpointError, match=said):
            PathFinder().between(SparqlGraph(endpoint.url), iri("a"), iri("b"))


def test_an_endpoint_that_is_not_there_is_an_error():
    with serving([]) as endpoint:
        url = endpoint.url
    with pytest.raises(EndpointError, match="did not answer"):
        PathFinder().between(SparqlGraph(url, seconds=2), iri("a"), iri("b"))


def test_ids_cannot_carry_a_query_of_their_own():
    remote = SparqlGraph("http://127.0.0.1:9/sparql")
    for bad in ("Q142", "http://x/> ?p ?o } #", 'http://x/"'):
        with pytest.raises(InputError, match="IRI"):
            PathFinder().between(remote, bad, iri("b"))


@pytest.mark.parametrize(
    "knobs",
    [
        {"endpoint": "ftp://x"},
        {"endpoint": "http://x", "language": 'en"'},
        {"endpoint": "http://x", "seconds": 0},
        {"endpoint": "http://x", "limit": 0},
        {"endpoint": "http://x", "node_label": "?a ?b ?c ."},
    ],
)
def test_unusable_endpoints_are_refused(knobs):
    with pytest.raises(InputError):
        SparqlGraph(**knobs)
