"""Templated questions with held-out compositions, and questions linked from files."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kg_graphs import random_graph

from outlay.errors import InputError
from outlay.evals.factuality.graph import Graph
from outlay.evals.factuality.linking import link_entities, load_cwq, load_id_map
from outlay.evals.factuality.paths import PathFinder
from outlay.evals.factuality.questions import Question, QuestionMaker, facts_of


def test_questions_read_as_english(countries):
    asked = {q.id: q for q in QuestionMaker().make(countries)}
    one = asked["country/FRA|capital"]
    assert one.text == "What is the capital of France?"
    assert one.answers[0][0] == "Paris"
    two = asked["city/Oslo/NOR|capital of|currency"]
    assert two.text == "What is the currency code of the country whose capital is Oslo?"
    assert (two.hops, two.kind, two.gold) == (2, "currency", ("currency/NOK",))
    three = asked["city/London/GBR|capital of|shares border with|capital"]
    assert three.answers[0][0] == "Dublin"


@given(st.integers(0, 100_000))
def test_the_number_of_hops_is_the_length_of_the_shortest_path(seed):
    graph = random_graph(seed)
    for question in QuestionMaker(max_gold=100).make(graph)[:40]:
        for gold in question.gold:
            paths = PathFinder(max_paths=1).between(graph, question.entities[0], gold)
            assert paths[0].hops == question.hops


@given(st.integers(0, 100_000), st.integers(0, 3), st.sampled_from([0.0, 0.25, 0.5]))
def test_compositions_are_held_out_and_facts_never(seed, split_seed, holdout):
    graph = random_graph(seed)

    def part(split):
        return QuestionMaker(
            split=split, holdout=holdout, max_gold=100, split_seed=split_seed, phrases={}
        )

    train, held = part("train"), part("heldout")
    everything = set(part("all").compositions(graph))
    assert not set(train.compositions(graph)) & set(held.compositions(graph))
    assert set(train.compositions(graph)) | set(held.compositions(graph)) == everything
    ones = {(t.subject, t.relation, t.object) for t in graph.triples if t.subject != t.object}
    stated = {tuple(t) for q in train.make(graph) if q.hops == 1 for t in facts_of(graph, q)}
    assert ones <= stated
    needed = {tuple(t) for q in held.make(graph) for t in facts_of(graph, q)}
    assert {fact for fact in needed if fact[0] != fact[2]} <= stated


def test_the_held_out_share_is_exact_and_known_from_the_split_seed_alone(countries):
    maker = QuestionMaker(holdout=0.25)
    held = maker.held_out(countries)
    for size in (2, 3):
        chains = QuestionMaker(hops=(size,)).compositions(countries)
        assert len([c for c in held if len(c) == size]) == round(0.25 * len(chains))
    assert held == QuestionMaker(hops=(2,), split="heldout", holdout=0.25).held_out(countries)
    assert held != QuestionMaker(split_seed=1).held_out(countries)


def test_no_question_gives_its_answer_away_or_names_two_nodes(countries):
    for question in QuestionMaker().make(countries):
        [node] = question.entities
        assert len(countries.find(countries.label(node))) == 1
        for names in question.answers:
            assert countries.label(node).casefold() not in {name.casefold() for name in names}


def test_questions_with_many_answers_are_left_out(countries):
    assert max(len(q.gold) for q in QuestionMaker(max_gold=3).make(countries)) == 3


def test_other_graphs_get_general_phrases(town):
    asked = {q.text for q in QuestionMaker(phrases={}).make(town)}
    assert "What is the lives in of the knows of Bob?" in asked


@pytest.mark.parametrize(
    "knobs",
    [
        {"hops": ()},
        {"hops": (0,)},
        {"hops": (4,)},
        {"hops": (1, 1)},
        {"holdout": 1.0},
        {"split": "test"},
        {"max_gold": 0},
        {"phrases": {"r": "no gap"}},
    ],
)
def test_unusable_makers_are_refused(knobs):
    with pytest.raises(InputError):
        QuestionMaker(**knobs)


def test_a_question_needs_a_gold_answer():
    with pytest.raises(InputError, match="no gold answer"):
        Question("q", "Who?", ("a",), (), ())


# -- linking --------------------------------------------------------------------------------------


def row(name, question="Where does Cat live?", answers=None, sparql="", **more):
    answers = (
        [{"answer": "York", "answer_id": "m.0york", "aliases": ["Eboracum"]}]
        if (answers is None)
        else answers
    )
    return {"ID": name, "question": question, "answers": answers, "sparql": sparql, **more}


def write(tmp_path, rows, lines=False):
    path = tmp_path / "cwq.json"
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return path


@pytest.mark.parametrize("lines", [False, True])
def test_questions_are_linked_by_the_id_map(town, tmp_path, lines):
    (tmp_path / "map.tsv").write_text("m.0cat\tcat\nm.0york\tyork\n\n")
    ids = load_id_map(tmp_path / "map.tsv")
    sparql = "SELECT ?x WHERE { ns:m.0cat ns:people.person.place ?x . ns:m.0other ns:p ns:m.0york }"
    rows = [row("WebQTest-1_a-rep-2", sparql=sparql, compositionality_type="conjunction")]
    linked = load_cwq(write(tmp_path, rows, lines), town, id_map=ids)
    [question] = linked.questions
    assert question.entities == ("cat",)
    assert question.gold == ("york",)
    assert question.answers == (("York", "Eboracum"),)
    assert (question.id, question.kind) == ("WebQTest-1_a-rep-2", "conjunction")
    assert linked.unlinked == {}


def test_without_ids_labels_and_aliases_link(town, tmp_path):
    rows = [
        row("1", "Whom does the Countess of Lovelace know?", [{"answer": "bob", "answer_id": None}])
    ]
    [question] = load_cwq(write(tmp_path, rows), town).questions
    assert question.entities == ("ada",)
    assert question.gold == ("bob",)
    assert link_entities(town, "Is Bob's York near Ada's?") == ("bob", "ada")


def test_what_cannot_be_linked_is_counted_with_the_reason(town, tmp_path):
    rows = [
        row("1", answers=[]),
        row("2", answers=[{"answer": None}]),
        row("3", answers=[{"answer": "Atlantis"}]),
        row("4", "Where does nobody live?", [{"answer": "Bob"}]),
        row("5", "Whom does Cat know?", [{"answer": "York"}]),  # two nodes of that name
    ]
    linked = load_cwq(write(tmp_path, rows), town)
    assert linked.questions == ()
    assert linked.unlinked == {
        "no gold answer": 2,
        "no gold answer is in the graph": 2,
        "no question entity is in the graph": 1,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "neither a JSON list"),
        ("[3]", "question 0 is int"),
        (json.dumps([{"question": "Who?"}]), "question 0"),
        (json.dumps([row("1", " ")]), "question 0"),
        (json.dumps([{**row("1"), "answers": "York"}]), "'1': answers"),
        (json.dumps([row("1"), row("1")]), "'1' occurs twice"),
    ],
)
def test_malformed_question_files_are_refused(town, tmp_path, text, said):
    (tmp_path / "q.json").write_text(text)
    with pytest.raises(InputError, match=said):
        load_cwq(tmp_path / "q.json", town)


def test_question_files_have_limits(town, tmp_path):
    rows = [row(str(i)) for i in range(3)]
    with pytest.raises(InputError, match="more than 2"):
        load_cwq(write(tmp_path, rows), town, max_questions=2)
    with pytest.raises(InputError, match="no file"):
        load_cwq(tmp_path / "none.json", town)


@pytest.mark.parametrize("text", ["m.1\n", "m.1\ta\tb\n", "m.1\ta\nm.1\tb\n"])
def test_malformed_id_maps_are_refused(tmp_path, text):
    (tmp_path / "map.tsv").write_text(text)
    with pytest.raises(InputError):
        load_id_map(tmp_path / "map.tsv")


def test_a_short_alias_links_only_as_it_is_written():
    graph = Graph([("a", "r", "b")], labels={"a": "IT", "b": "Belgium"})
    assert link_entities(graph, "Is it in Belgium?") == ("b",)
    assert link_entities(graph, "Is IT there?") == ("a",)
