"""Minimal simple paths: equal to brute force, on graphs with cycles too."""

from itertools import pairwise, permutations

import networkx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kg_graphs import random_graph

from outlay.errors import InputError
from outlay.evals.factuality.graph import Graph, Triple
from outlay.evals.factuality.paths import Path, PathFinder, Step


def brute_force(graph: Graph, source: str, target: str, finder: PathFinder) -> set[tuple]:
    """All simple paths by trying every sequence of distinct nodes, shortest length only."""
    for hops in range(1, finder.max_hops + 1):
        found = set()
        inner = [node for node in graph.nodes if node not in (source, target)]
        for between in permutations(inner, hops - 1):
            if set(between) & set(finder.block_nodes):
                continue
            walks = [()]
            nodes = (source, *between, target)
            for a, b in pairwise(nodes):
                steps = [Step(t) for t in graph.triples if (t.subject, t.object) == (a, b)]
                if not finder.directed:
                    steps += [
                        Step(t, False) for t in graph.triples if (t.object, t.subject) == (a, b)
                    ]
                steps = [s for s in steps if s.triple.relation not in finder.block_relations]
                walks = [(*walk, step) for walk in walks for step in steps]
            found.update(walks)
        if found:
            return found
    return set()


@given(st.integers(0, 100_000), st.booleans(), st.integers(1, 3), st.data())
def test_the_search_equals_brute_force(seed, directed, max_hops, data):
    graph = random_graph(seed)
    source, target = (data.draw(st.sampled_from(graph.nodes)) for _ in range(2))
    blocked = data.draw(st.sampled_from([(), ("n3",), ("r1",)]))
    finder = PathFinder(
        max_hops=max_hops,
        directed=directed,
        max_paths=100_000,
        block_nodes=tuple(b for b in blocked if b[0] == "n"),
        block_relations=tuple(b for b in blocked if b[0] == "r"),
    )
    found = finder.between(graph, source, target)
    expected = set() if source == target else brute_force(graph, source, target, finder)
    assert {path.steps for path in found} == expected
    assert len(found) == len(expected)


@given(st.integers(0, 100_000), st.booleans())
def test_every_path_is_simple_minimal_stored_and_ends_right(seed, directed):
    graph = random_graph(seed)
    plain = networkx.Graph() if not directed else networkx.DiGraph()
    plain.add_nodes_from(graph.nodes)
    plain.add_edges_from((t.subject, t.object) for t in graph.triples)
    for source in graph.nodes[:3]:
        for target in graph.nodes[-3:]:
            for path in PathFinder(directed=directed, max_paths=50).between(graph, source, target):
                nodes = path.nodes
                assert (nodes[0], nodes[-1]) == (source, target)
                assert len(set(nodes)) == len(nodes) == path.hops + 1
                assert all(graph.has(triple) for triple in path.triples)
                assert path.hops == networkx.shortest_path_length(plain, source, target)


@given(st.integers(0, 100_000), st.integers(1, 5), st.booleans())
def test_a_cap_keeps_the_first_of_the_whole_order(seed, cap, directed):
    graph = random_graph(seed)
    source, target = graph.nodes[0], graph.nodes[-1]
    whole = PathFinder(directed=directed, max_paths=100_000).between(graph, source, target)
    assert whole == sorted(whole, key=lambda path: path.rank)
    assert all(
        path.cost == sum(graph.frequency(t.relation) for t in path.triples) for path in whole
    )
    capped = PathFinder(directed=directed, max_paths=cap).between(graph, source, target)
    assert capped == whole[:cap]
    again = PathFinder(directed=directed, max_paths=cap).connect(graph, [source], [target])
    assert again.paths == tuple(capped)
    assert again.truncated == (len(whole) > cap)


def test_cycles_self_loops_and_parallel_relations(town):
    finder = PathFinder()
    found = finder.between(town, "ada", "bob")
    assert {path.triples[0].relation for path in found} == {"knows", "taught"}
    assert all(path.hops == 1 for path in found)
    assert finder.between(town, "ada", "ada") == []
    assert finder.between(town, "bob", "bob") == []
    [around] = finder.between(town, "cat", "ada")
    assert around.nodes == ("cat", "ada")
    two = finder.between(town, "ada", "cat")
    assert [path.nodes for path in two] == [("ada", "bob", "cat")] * 2


def test_walking_backwards_prints_facts_as_they_are_stored(town):
    assert PathFinder().between(town, "york", "cat") == []
    [path] = PathFinder(directed=False).between(town, "york", "cat")
    assert path.nodes == ("york", "cat")
    assert town.line(path.triples[0]) == "Cat, lives in, York"


def test_hubs_are_not_passed_through_but_may_be_ends():
    spokes = [("hub", "r", f"n{i}") for i in range(9)] + [("a", "r", "hub"), ("a", "r", "m")]
    graph = Graph([*spokes, ("m", "r", "k"), ("k", "r", "n3")])
    [short] = PathFinder().between(graph, "a", "n3")
    assert short.nodes == ("a", "hub", "n3")
    [around] = PathFinder(max_degree=5).between(graph, "a", "n3")
    assert around.nodes == ("a", "m", "k", "n3")
    assert PathFinder(max_degree=5).between(graph, "hub", "n3")
    assert PathFinder(max_degree=5).between(graph, "a", "hub")


def test_rare_relations_come_first():
    graph = Graph(
        [("a", "common", "b"), ("a", "rare", "b"), ("x", "common", "y"), ("y", "common", "z")]
    )
    assert [p.triples[0].relation for p in PathFinder().between(graph, "a", "b")] == [
        "rare",
        "common",
    ]


def test_a_large_hub_graph_needs_no_listing_of_all_paths():
    size = 300  # 90 000 minimal paths
    facts = [("s", "r", f"a{i}") for i in range(size)] + [(f"b{i}", "r", "t") for i in range(size)]
    facts += [(f"a{i}", "r", f"b{j}") for i in range(size) for j in range(size)]
    found = PathFinder(max_paths=3).between(Graph(facts), "s", "t")
    assert [path.nodes for path in found] == [("s", "a0", f"b{j}", "t") for j in (0, 1, 10)]


def test_several_entities_give_the_union_of_all_pairs(town):
    joint = PathFinder().connect(town, ["ada", "cat"], ["york", "york-city"])
    assert joint.missing == (("ada", "york-city"), ("cat", "york-city"))
    assert joint.hops == 1
    assert {path.nodes[0] for path in joint.paths} == {"ada", "cat"}
    assert len(joint.triples) == len(set(joint.triples)) == 4
    assert Triple("cat", "lives in", "york") in joint.triples


def test_paths_without_a_question_or_an_answer_are_refused(town):
    with pytest.raises(InputError, match="no gold entity"):
        PathFinder().connect(town, ["ada"], [])
    with pytest.raises(InputError, match="no question entity"):
        PathFinder().connect(town, [], ["ada"])
    with pytest.raises(InputError, match="pairs"):
        PathFinder().connect(town, [f"{i}" for i in range(200)], [f"{i}" for i in range(200)])


def test_an_unknown_entity_is_named_with_its_namesakes(town):
    with pytest.raises(InputError, match=r"'York' is not in town.*york, york-city"):
        PathFinder().between(town, "ada", "York")


@pytest.mark.parametrize(
    "knobs",
    [{"max_hops": 0}, {"max_hops": 99}, {"max_hops": True}, {"max_paths": 0}, {"max_degree": 0}],
)
def test_knobs_out_of_range_are_refused(knobs):
    with pytest.raises(InputError):
        PathFinder(**knobs)


def test_a_path_knows_its_nodes_in_walking_order():
    step = Step(Triple("a", "r", "b"), forward=False)
    assert Path((step,)).nodes == ("b", "a")
