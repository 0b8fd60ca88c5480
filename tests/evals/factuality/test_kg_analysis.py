"""Analyses: groups, statements of a trace against the graph, train/test overlap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.evals.factuality.analysis import (
    MAX_TRACE,
    Process,
    answer_type,
    breakdown,
    overlap,
    process,
    statements,
)
from outlay.evals.factuality.countries import WORDS

RIGHT = (
    "The capital of France is Paris.",
    "Oslo, capital of, Norway",
    "Germany borders France",
    "The currency of Japan is JPY;",
    "Kenya's continent is Africa.",
)
WRONG = (
    "The capital of France is Berlin.",
    "Oslo, capital of, Sweden",
    "Portugal borders Poland",
    "The currency of Japan is EUR;",
    "Kenya's continent is Europe.",
)
NEITHER = (
    "Is the capital of France Berlin?",
    "The capital of France is not Berlin.",
    "Let me think about France and Berlin.",
    "The capital is nice.",
    "Paris is lovely in spring.",
    "",
)


@pytest.mark.parametrize("text", RIGHT)
def test_stated_facts_are_right(countries, text):
    [one] = statements(countries, text, WORDS)
    assert one.right
    assert one.triples
    assert all(countries.has(triple) for triple in one.triples)


@pytest.mark.parametrize("text", WRONG)
def test_contradicted_facts_are_wrong(countries, text):
    [one] = statements(countries, text, WORDS)
    assert not one.right
    assert one.triples == ()


@pytest.mark.parametrize("text", NEITHER)
def test_questions_negations_and_other_clauses_are_not_judged(countries, text):
    assert statements(countries, text, WORDS) == []
    assert process(countries, text, WORDS).accuracy is None


@given(st.lists(st.sampled_from([*RIGHT, *WRONG, *NEITHER]), max_size=8))
def test_process_accuracy_is_the_share_of_right_statements(countries, lines):
    text = "\n".join(lines)
    found = statements(countries, text, WORDS)
    right, wrong = sum(line in RIGHT for line in lines), sum(line in WRONG for line in lines)
    assert process(countries, text, WORDS) == Process(right, wrong)
    assert Process(right, wrong).accuracy == (right / (right + wrong) if right + wrong else None)
    ends = 0
    for one in found:
        assert ends <= one.start < one.end <= len(text)
        assert text[one.start : one.end].strip("; ") in {line.strip("; ") for line in lines}
        ends = one.end


def test_every_fact_of_the_graph_in_the_prompts_form_is_right(countries):
    lines = [
        countries.line(triple)
        for triple in countries.triples
        if countries.label(triple.subject) != countries.label(triple.object)
    ]
    score = process(countries, "\n".join(lines), WORDS)
    assert score.wrong == 0
    assert score.right / len(lines) > 0.97


def test_scores_add_up():
    assert Process(1, 2) + Process(3, 4) == Process(4, 6)


def test_a_trace_has_a_limit(countries):
    with pytest.raises(InputError, match="characters"):
        statements(countries, "x" * (MAX_TRACE + 1))


def test_a_long_trace_without_sentences_is_read_in_time(countries):
    assert statements(countries, "France capital " * 10_000, WORDS) == []


def test_groups_have_means_and_intervals():
    found = breakdown([1, 0, 1, 1], [2, 2, 1, 1])
    assert {label: interval.mean for label, interval in found.items()} == {1: 1.0, 2: 0.5}
    assert found[2].n == 2
    assert found[2].lo < 0.5 < found[2].hi
    with pytest.raises(InputError):
        breakdown([1.0], [])


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("1999", "date"),
        ("12 March 2004", "date"),
        ("March 12, 2004", "date"),
        ("2004-03-12", "date"),
        ("49", "number"),
        ("1,250.5", "number"),
        ("12 %", "number"),
        ("Paris", "entity"),
        ("May", "entity"),
        ("7 Wonders", "entity"),
        ("yes", "yes/no"),
    ],
)
def test_answers_have_types(text, kind):
    assert answer_type(text) == kind


def test_overlap_finds_equal_and_close_questions():
    train = ["What is the capital of France?", "Who wrote Hamlet?"]
    test = [
        "what is THE capital of France",
        "What is the capital city of France?",
        "How many moons has Mars?",
    ]
    found = overlap(train, test)
    assert found.exact == ((0, 0),)
    assert {row[:2] for row in found.close} == {(0, 0), (1, 0)}
    assert all(0.9 < row[2] <= 1.0 + 1e-6 for row in found.close)
    assert found.share == pytest.approx(2 / 3)
    assert overlap(train, test, tau=1.0).close == () or found.exact
    with pytest.raises(InputError):
        overlap([], test)
    with pytest.raises(InputError):
        overlap(train, test, tau=0.0)
