"""The HTML page and the terminal table."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from rich.console import Console

from outlay.budget import Budget
from outlay.chart import layout
from outlay.errors import InputError
from outlay.evals.base import Mark
from outlay.figure import PALETTE
from outlay.frontier import Record, points, verdicts
from outlay.ledger import Ledger
from outlay.report import (
    DETAIL_LIMIT,
    MARKED_LIMIT,
    Detail,
    View,
    rich_table,
    write_report,
)

EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\" \u2028"


def run(*, stacks=("plain", "better"), budgets=(32, 64), n=8, task="sums", notes=False):
    rows = []
    for rank, stack in enumerate(stacks):
        for budget in budgets:
            for i in range(n):
                ledger = Ledger()
                ledger.record("think", "target", prompt_new=7, generated=budget - i, branch="a")
                ledger.record(
                    "answer",
                    "verifier" if rank else "target",
                    prompt_cached=7,
                    generated=2,
                    forced=1,
                    estimated=notes,
                    note="usage does not add up" if notes else "",
                    flops=5e9,
                    seconds=0.125,
                )
                ledger.deliver(["a"])
                quality = min(1.0, 0.2 + 0.5 * rank + 0.001 * i + budget / 1000)
                rows.append(Record(task, f"ex-{i}", stack, Budget(budget), 0, quality, ledger))
    return rows


class Page(HTMLParser):
    """Collects tags, attributes and the texts of scripts and cells."""

    VOID = frozenset({"meta", "input", "br", "img", "link", "hr"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts = [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"misplaced </{tag}>"

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]

    def said(self):
        return " ".join(" ".join(parts) for parts in self.texts.values())


def written(**options):
    with TemporaryDirectory() as folder:
        path = write_report(Path(folder) / "page.html", **options)
        return path.read_bytes().decode()


def page_of(**options):
    return Page(written(**{"title": "T", "records": run(), **options}))


def data_of(page):
    texts = page.texts["script"]
    return json.loads(next(text for text in texts if text.startswith("[")))


def test_the_page_is_well_formed_and_loads_nothing():
    page = page_of()
    assert page.open == []
    for tag, attrs in page.tags:
        assert tag not in {"link", "img", "iframe", "object", "base", "form"}
        assert not {"src", "href", "action", "srcset", "data"} & set(attrs), (tag, attrs)
        assert not any(name.startswith("on") for name in attrs), (tag, attrs)
    text = written(title="T", records=run())
    assert not re.search(r"https?://|@import|url\(", text)
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    assert "default-src 'none'" in policy
    nonces = [a["nonce"] for a in page.all("script") if "nonce" in a]
    assert f"script-src 'nonce-{nonces[0]}'" in policy
    assert len(nonces) == 1


def test_text_from_models_stays_text_wherever_it_appears():
    rows = [
        Record(EVIL, EVIL, EVIL, Budget(8, stages={EVIL: 4}), 0, 1.0, Ledger()),
        Record(EVIL, EVIL, "other", Budget(8, stages={EVIL: 4}), 0, 0.5, Ledger()),
    ]
    rows[0].ledger.record("answer", "target", generated=3, method=EVIL, note=EVIL)
    rows[1].ledger.record("answer", "target", generated=5)
    text = written(
        title=EVIL,
        records=rows,
        meta={EVIL: EVIL, "seeds": [1, EVIL]},
        details={rows[0].key: Detail({EVIL: EVIL})},
        views={EVIL: View(metric=EVIL, about=EVIL)},
        notes=[EVIL],
    )
    page = Page(text)
    assert len(page.all("script")) == 2  # the data and the program
    assert not page.all("img")
    assert "<script>alert" not in text
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    found = data_of(page)[0]
    assert (found["example"], found["method"], found["texts"]) == (EVIL, EVIL, {EVIL: EVIL})
    assert EVIL in page.texts["h1"]


def test_the_program_never_builds_markup_from_text():
    program = next(t for t in page_of().texts["script"] if "use strict" in t)
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "fetch(",
    ):
        assert word not in program


def test_every_outcome_is_in_the_drill_down_with_its_texts_in_order():
    rows = run()
    details = {rows[0].key: Detail({"prompt": "p", "answer": "a", "expected": "e"})}
    found = data_of(page_of(records=rows, details=details))
    assert len(found) == len(rows)
    assert list(found[0]["texts"]) == ["prompt", "answer", "expected"]
    assert found[1]["texts"] == {}
    assert found[0]["prompt"] == rows[0].ledger.totals().prompt
    assert found[0]["quality"] == pytest.approx(rows[0].quality)


def test_marks_cut_a_text_into_pieces_that_join_to_it_again():
    rows = run(n=1)
    text = "try 1 <b>no</b> then 2 yes"
    marks = (Mark(4, 5, "first", False), Mark(21, 22, "second", True), Mark(23, 26, "word"))
    detail = Detail({"thinking": text, "answer": "2"}, {"thinking": marks})
    shown = data_of(page_of(records=rows, details={rows[0].key: detail}))[0]["texts"]
    assert "".join(piece[0] for piece in shown["thinking"]) == text
    coloured = [piece for piece in shown["thinking"] if piece[1]]
    assert coloured == [["1", "bad", "first"], ["2", "good", "second"], ["yes", "noted", "word"]]
    assert shown["answer"] == "2"


def test_overlapping_marks_and_marks_beyond_the_excerpt_are_left_out():
    rows = run(n=1)
    text = "x" * (MARKED_LIMIT + 5000)
    marks = (Mark(0, 10, "a", True), Mark(5, 20, "b", True), Mark(len(text) - 3, len(text), "c"))
    detail = Detail({"thinking": text}, {"thinking": marks})
    shown = data_of(page_of(records=rows, details={rows[0].key: detail}))[0]["texts"]["thinking"]
    assert [piece[2] for piece in shown if piece[1]] == ["a"]
    assert "characters left out" in shown[-1][0]
    assert sum(len(piece[0]) for piece in shown) < MARKED_LIMIT + 100


def test_long_texts_are_cut_in_the_middle_and_say_so():
    rows = run(n=1)
    text = "a" * DETAIL_LIMIT + "b" * DETAIL_LIMIT
    shown = data_of(page_of(records=rows, details={rows[0].key: Detail({"answer": text})}))[0][
        "texts"
    ]
    assert f"[... {DETAIL_LIMIT} characters left out ...]" in shown["answer"]
    assert shown["answer"].startswith("aaa")
    assert shown["answer"].endswith("bbb")


def test_the_table_shows_every_point_with_its_verdict():
    rows = run()
    page = page_of(records=rows)
    said = page.said()
    for point in points(rows):
        assert f"{point.quality:.3f}" in said
        assert point.budget.label() in said
    flags = [a["class"] for a in page.all("span") if a.get("class", "").startswith("flag")]
    assert flags == ["flag best", "flag best"]
    assert "separably ahead of every other method" in said


def test_overlapping_methods_are_called_not_separable():
    rows = run(n=3)
    page = page_of(records=rows)
    assert "not separable from best" in page.said()
    assert "is not separable from plain" in page.said()


def test_a_method_alone_has_no_verdict():
    page = page_of(records=run(stacks=("only",)))
    assert not [a for a in page.all("span") if a.get("class", "").startswith("flag")]
    assert "only has quality" in page.said()


def test_tables_have_scopes_and_the_chart_can_be_read_and_reached():
    page = page_of()
    headers = page.all("th")
    assert headers
    assert all("scope" in attrs for attrs in headers)
    marks = [a for a in page.all("g") if a.get("class") == "point"]
    assert len(marks) == 4
    assert all(a["tabindex"] == "0" and a["role"] == "img" and a["aria-label"] for a in marks)
    assert page.all("html") == [{"lang": "en"}]
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for a in page.all("section")} <= set(ids)


def test_the_page_follows_light_and_dark():
    assert "prefers-color-scheme: dark" in written(title="T", records=run())


def test_bars_add_up_to_the_mean_ledger():
    rows = run(stacks=("one",), budgets=(32,), n=4)
    page = page_of(records=rows)
    label = next(a["aria-label"] for a in page.all("div") if a.get("role") == "listitem")
    shown = dict(part.rsplit(" ", 1) for part in label.split(": ", 1)[1].split(", "))
    mean = sum(r.ledger.totals().all for r in rows) / len(rows)
    assert sum(map(float, shown.values())) == pytest.approx(mean)
    assert shown["think \u00b7 target \u00b7 generated"] == "30.5"


def test_every_task_has_its_section_and_view():
    rows = run() + run(task="nats")
    views = {
        "nats": View(metric="nats per token", higher_is_better=False, axis="all", about="Why.")
    }
    page = page_of(records=rows, views=views)
    headings = page.texts["h2"]
    assert "sums" in headings
    assert "nats" in headings
    assert "nats per token (lower is better)" in page.said()
    assert "Why." in page.said()
    # The worse method of "sums" leads where lower is better.
    assert "32 generated tokens: plain leads with nats per token" in page.said()


def test_notes_come_from_the_caller_and_from_the_ledgers():
    page = page_of(records=run(notes=True), notes=["3 contexts were cut"])
    said = page.said()
    assert "3 contexts were cut" in said
    assert said.count("usage does not add up") == 1
    assert "estimates of a local tokenizer" in said
    assert "Notes" not in page_of().said()


def test_the_same_run_gives_the_same_bytes(tmp_path):
    first = write_report(tmp_path / "deep" / "a.html", title="T", records=run())
    second = write_report(tmp_path / "b.html", title="T", records=run())
    assert first.read_bytes() == second.read_bytes()
    assert not list(tmp_path.rglob("*.part"))


def test_no_records_is_an_error():
    with pytest.raises(InputError, match="run a comparison first"):
        written(title="T", records=[])


@pytest.mark.parametrize("budgets", [(32,), (32, 33), (8, 64, 512)])
@pytest.mark.parametrize("count", [1, 9])
def test_the_chart_stays_inside_its_frame(budgets, count):
    rows = run(stacks=[f"m{i}" for i in range(count)], budgets=budgets)
    chart = layout(points(rows), "quality")
    assert len(chart.curves) == count > 0
    for curve in chart.curves:
        assert chart.top <= curve.label_y <= chart.bottom
        for mark in curve.marks:
            assert chart.left <= mark.x <= chart.right
            assert chart.top <= mark.y_hi <= mark.y <= mark.y_lo <= chart.bottom
    for x, _ in chart.x_ticks:
        assert chart.left <= x <= chart.right
    assert len(chart.y_ticks) >= 2


def test_a_point_without_an_interval_is_drawn_and_tabled_as_undefined():
    rows = [Record("t", "e", "m", Budget(4), 0, 2.5, Ledger())]
    rows[0].ledger.record("answer", "target", generated=4)
    said = page_of(records=rows).said()
    assert "undefined" in said
    assert "2.500" in said


def text_of(table):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_the_terminal_table_shows_counts_intervals_and_verdicts():
    rows = run(n=3)
    found = points(rows)
    shown = text_of(rich_table(found, verdicts(rows), metric="accuracy", title="sums"))
    for words in ("accuracy", "95 % CI", "not separable", "highest"):
        assert words in shown
    for p in found:
        assert f"{p.quality:.3f}" in shown
        assert f"{p.lo:.3f}\u2013{p.hi:.3f}" in shown
    assert "verdict" not in text_of(rich_table(found))


def test_brackets_in_a_method_name_are_no_markup():
    shown = text_of(rich_table(points(run(stacks=("[bold]x[/bold]", "[/]")))))
    assert "[bold]x[/bold]" in shown
    assert "[/]" in shown


def test_estimates_and_undefined_intervals_are_marked_in_the_terminal():
    rows = [Record("t", "e", "m", Budget(4), 0, 2.5, Ledger())]
    rows[0].ledger.record("answer", "target", generated=4, estimated=True)
    shown = text_of(rich_table(points(rows)))
    assert "undefined" in shown
    assert "~4" in shown


def test_an_empty_terminal_table_is_an_error():
    with pytest.raises(InputError, match="no points"):
        rich_table([])


def test_colours_are_distinct():
    assert len(set(PALETTE)) == len(PALETTE) == 7
