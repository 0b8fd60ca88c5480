"""Rows, labels, splits and segmentation: what is refused, and what is never lost."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.evals.basir.data import Excerpt, read_excerpts, split_rows, texts_and_truth
from outlay.evals.basir.labels import Label, LabelSet, load_labels
from outlay.evals.basir.speech import excerpts, read_speech, segment
from outlay.evals.basir.synthetic import PROVENANCE, load_sample, make_sample

LABELS = LabelSet(
    (Label("steel", "Iron and steel", "Making steel.", ("iron",)), Label("banks", "Banks"))
)


def row(event="b-2020", date="2020-02-01", identity="1", **more):
    return Excerpt(event, date, identity, more.pop("text", "Some words."), **more)


# -- labels ---------------------------------------------------------------------------------------


def test_there_are_81_sectors_with_definitions_and_aliases():
    labels = load_labels()
    assert len(labels) == 81
    assert all(label.definition and label.aliases for label in labels)
    assert len({label.name for label in labels}) == 81
    assert "others" not in labels.names()


def test_ids_names_and_aliases_mean_the_same_label():
    truth = LABELS.matrix([["steel"], ["Iron  and STEEL"], ["iron"], ["banks", "steel"], []])
    assert truth.tolist() == [[1, 0], [1, 0], [1, 0], [1, 1], [0, 0]]
    assert LABELS.chosen(truth[3]) == ("steel", "banks")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"labels": [{"id": "a"}]}, "1 labels"),
        ({"labels": [{"id": "a"}, {"id": "a"}]}, "share the name"),
        ({"labels": [{"id": "a"}, {"id": "b", "aliases": ["A"]}]}, "share the name"),
        ({"labels": [{"id": "a b"}, {"id": "c"}]}, "id 'a b'"),
        ({"labels": [{"id": "a", "colour": 1}, {"id": "b"}]}, "unknown fields"),
        ({"labels": [{"id": "a", "definition": "x" * 2000}, {"id": "b"}]}, "definition"),
        ({"labels": [{"id": "a", "aliases": "x"}, {"id": "b"}]}, "aliases"),
        ({"labels": ["a", "b"]}, "not an object"),
        ({}, "no list"),
    ],
)
def test_a_bad_label_file_is_refused_with_the_reason(tmp_path, data, words):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=words):
        load_labels(path)


def test_a_label_file_can_be_written_and_read(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"labels": LABELS.to_dict()}))
    assert load_labels(path) == LABELS
    path.write_text("[1")
    with pytest.raises(InputError, match="not JSON"):
        load_labels(path)


# -- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text": "  "}, "empty text"),
        ({"text": "x" * 20_001}, "outlay basir segment"),
        ({"date": "1.2.2020"}, "YYYY-MM-DD"),
        ({"split": "holdout"}, "split"),
        ({"event": ""}, "event"),
    ],
)
def test_a_bad_excerpt_is_refused_with_the_reason(change, words):
    with pytest.raises(InputError, match=words):
        row(**change)


def test_jsonl_and_csv_give_the_same_rows(tmp_path):
    wanted = [row(sectors=("steel", "banks"), split="train"), row(identity="2")]
    lines = [
        '{"event":"b-2020","date":"2020-02-01","excerpt_id":"1","text":"Some words.",'
        '"sectors":["steel","banks"],"split":"train"}',
        "",
        '{"event":"b-2020","date":"2020-02-01","excerpt_id":2,"text":"Some words."}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "a.csv").write_text(
        "event,date,excerpt_id,text,sectors,split\n"
        "b-2020,2020-02-01,1,Some words.,steel; banks,train\n"
        "b-2020,2020-02-01,2,Some words.,,\n"
    )
    assert read_excerpts(tmp_path / "a.jsonl") == wanted
    assert read_excerpts(tmp_path / "a.csv") == wanted


GOOD = '{"event":"e","excerpt_id":"1","text":"x","date":"2020-01-01"}\n'


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", GOOD + GOOD, "appears twice"),
        ("a.jsonl", GOOD + "{", "line 2 is not JSON"),
        ("a.jsonl", GOOD + "[]", "line 2 is not an object"),
        ("a.jsonl", GOOD + '{"event":"e","excerpt_id":"2","txt":"x"}', "unknown fields"),
        ("a.jsonl", '{"event":"e","excerpt_id":"2"}', "lacks text"),
        ("a.jsonl", '{"event":"e","excerpt_id":"2","text":["x"]}', "text is"),
        ("a.jsonl", '{"event":"e","excerpt_id":"2","text":"x","sectors":[1]}', "sectors"),
        (
            "a.jsonl",
            GOOD + '{"event":"e","excerpt_id":"2","text":"x","date":"2021-01-01"}',
            "one date",
        ),
        ("a.csv", "event,excerpt_id,text\ne,1\n", "another number of columns"),
        ("a.csv", 'event,excerpt_id,text\ne,1,"x\n', "not CSV"),
        ("a.csv", "event,excerpt_id,text\n", "no row"),
        ("a.txt", GOOD, "jsonl or .csv"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        read_excerpts(tmp_path / name)


def test_an_unknown_sector_is_named():
    with pytest.raises(InputError, match="excerpt '1' has the unknown label 'moon'"):
        texts_and_truth([row(sectors=("moon",))], LABELS)


# -- splits ---------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 11), min_size=12, max_size=60),
    st.sampled_from(["time", "random"]),
    st.integers(0, 5),
)
def test_no_event_lies_in_two_splits_and_time_runs_forward(events, by, seed):
    rows = [
        row(f"e{event}", f"20{event // 2 + 10}-02-01", str(i)) for i, event in enumerate(events)
    ]
    if len({r.date for r in rows}) < 3:  # no day for each split
        return
    try:
        splits = split_rows(rows, by, seed=seed)
    except InputError:
        assert len({r.event for r in rows}) < 5  # both events of a day are the test
        return
    parts = [{r.event for r in part} for part in splits]
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert sum(map(len, splits)) == len(rows)
    if by == "time":
        train, held, test = splits
        assert max(r.date for r in (*train, *held)) < min(r.date for r in test)
        assert max(r.date for r in train) <= min(r.date for r in held)


def test_splits_that_leak_or_are_empty_are_refused():
    rows = [row(split="train"), row(identity="2", split="test")]
    with pytest.raises(InputError, match="lies in the splits"):
        split_rows(rows, "given")
    with pytest.raises(InputError, match="has no split"):
        split_rows([row()], "given")
    with pytest.raises(InputError, match="has no date"):
        split_rows([row(date="")])
    years = [row(f"e{y}", f"{y}-02-01", str(y)) for y in range(2010, 2020)]
    with pytest.raises(InputError, match="test split has no rows"):
        split_rows(years, test_from="2030-01-01")
    assert {r.event for r in split_rows(years, test_from="2018-01-01").test} == {"e2018", "e2019"}
    for knobs in ({"by": "luck"}, {"test": 0.0}, {"validation": 1.0}, {"test_from": "soon"}):
        with pytest.raises(InputError):
            split_rows(years, **knobs)


# -- segmentation ---------------------------------------------------------------------------------

WORDS = st.lists(st.sampled_from(["rate.", "Duty", "is", "cut", "by", "half;", "A", "(iv)"]))


@given(st.lists(WORDS, min_size=1, max_size=8), st.integers(1, 9), st.integers(0, 20))
def test_segmentation_loses_no_word_and_keeps_the_order(blocks, least, more):
    text = "\n\n".join(" ".join(words) for words in blocks)
    if not text.strip():
        return
    found = segment(text, min_words=least, max_words=least + more)
    assert " ".join(found).split() == text.split()
    assert all(len(part.split()) <= least + more for part in found)


def test_a_speech_is_cut_at_numbers_and_pages_are_dropped():
    text = (
        "Budget Speech\n\n1. I begin with agri-\nculture and farm incomes.\n"
        "2. Steel duties fall.\n17\n3. Banks will lend more.\n- 4 -\nThey will be asked to."
    )
    assert segment(text, min_words=1) == [
        "Budget Speech",
        "1. I begin with agriculture and farm incomes.",
        "2. Steel duties fall.",
        "3. Banks will lend more. They will be asked to.",
    ]
    rows = excerpts(segment(text, min_words=4), "b-2020", "2020-02-01")
    assert rows[0].excerpt_id == "b-2020-0001"
    assert rows[0].text.startswith("Budget Speech 1. I begin")


@pytest.mark.parametrize(
    ("text", "knobs", "words"),
    [
        ("  \n", {}, "empty"),
        ("12\n13\n", {}, "page numbers only"),
        ("x" * 5_000, {}, "no text"),
        ("fine", {"min_words": 0}, "min_words"),
        ("fine", {"min_words": 9, "max_words": 3}, "max_words"),
    ],
)
def test_a_speech_without_text_is_refused(text, knobs, words):
    with pytest.raises(InputError, match=words):
        segment(text, **knobs)


def make_pdf(text: str) -> bytes:
    """One page with one line of text, written by hand."""
    stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << "
        b"/Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
    ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start = len(out)
    out += b"xref\n0 5\n0000000000 65535 f \n" + table
    return out + b"trailer << /Size 5 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % start


def test_a_pdf_is_read_and_a_bad_one_is_refused(tmp_path):
    (tmp_path / "good.pdf").write_bytes(make_pdf("The duty on steel falls."))
    assert read_speech(tmp_path / "good.pdf").strip() == "The duty on steel falls."
    (tmp_path / "scan.pdf").write_bytes(make_pdf(""))
    with pytest.raises(InputError, match="scan"):
        read_speech(tmp_path / "scan.pdf")
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4 nothing")
    with pytest.raises(InputError, match="not a PDF"):
        read_speech(tmp_path / "bad.pdf")
    with pytest.raises(InputError, match="not a file"):
        read_speech(tmp_path / "none.pdf")
    (tmp_path / "plain.txt").write_text("Plain words.")
    assert read_speech(tmp_path / "plain.txt") == "Plain words."


# -- the sample -----------------------------------------------------------------------------------


def test_the_shipped_sample_is_what_its_rule_makes_and_says_so():
    from importlib import resources

    stored = resources.files("outlay.evals.basir").joinpath("sample.json").read_text()
    assert json.loads(stored) == json.loads(json.dumps(make_sample()))
    assert json.loads(stored)["provenance"] == PROVENANCE
    assert "Synthetic" in PROVENANCE
    rows, prices, labels = load_sample()
    _, truth = texts_and_truth(rows, labels)
    assert truth.any(axis=1).all()
    assert np.unique(truth.sum(axis=1)).tolist() == [1, 2]
    assert {p.event for p in prices} == {r.event for r in rows}
