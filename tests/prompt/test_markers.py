import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.errors import BudgetError
from outlay.prompt.markers import Assembly, Source, keep_ranked, marker_text

TEXT = "\n".join(
    ["import a", "", "def f(x):", "    y = x + 1", "", "    return y", "", "", "z = f(2)", "w = 3"]
)


def words(text: str) -> int:
    from cache_lm import TOKEN

    return len(TOKEN.findall(text))


def assembly(kept, limit=1000, **knobs) -> Assembly:
    return Assembly(Source.read(TEXT, words), words, limit, marker="# ...", kept=kept, **knobs)


def test_every_run_of_missing_lines_becomes_one_marker_at_its_indentation() -> None:
    assert assembly([0, 2, 5, 9]).text() == "\n".join(
        ["import a", "def f(x):", "    # ...", "    return y", "# ...", "w = 3"]
    )
    assert assembly([]).text() == "# ..."


def test_missing_blank_lines_need_no_marker() -> None:
    kept = [0, 2, 3, 5, 8, 9]
    assert assembly(kept).text() == "\n".join(TEXT.split("\n")[i] for i in kept)


def test_paper_join_puts_a_blank_line_before_blocks() -> None:
    text = assembly([2, 3, 5], breaks={2, 3, 5, 8}).text()
    assert text == "# ...\n\ndef f(x):\n\n    y = x + 1\n\n    return y\n# ..."


def test_spans_point_into_the_original_whatever_its_line_ends() -> None:
    crlf = TEXT.replace("\n", "\r\n") + "\r\n\r\n"
    source = Source.read(crlf, words)
    spans = Assembly(source, words, 99, marker="#", kept=[2, 3, 9]).spans()
    assert [crlf[a:b] for a, b in spans] == ["def f(x):\r\n    y = x + 1", "w = 3"]


lines = st.sampled_from(["", "a b", "    c = d", "x", "    ", "        return e(f, g)", "}"])
sets = st.sets(st.integers(0, 19))


@given(st.lists(lines, min_size=1, max_size=20), sets, sets, sets, sets, st.booleans())
def test_local_prices_equal_full_recounts(rows, kept, add, drop, breaks, marked) -> None:
    source = Source.read("\n".join(rows), words)
    n = len(source)
    kept, add, drop = ({i for i in s if i < n} for s in (kept, add, drop - add))
    it = Assembly(source, words, 99, marker="# ..." if marked else "", kept=kept, breaks=breaks)
    before = it.tokens
    price = it.price(add=add, drop=drop)
    it.change(add=add, drop=drop, price=price)
    assert set(it.kept) == (kept | add) - (drop & kept)
    assert it.tokens == before + price == words(it.text())


@settings(max_examples=50)
@given(st.lists(lines, min_size=3, max_size=20), st.integers(5, 60), st.randoms())
def test_after_filling_no_missing_line_fits(rows, limit, random) -> None:
    source = Source.read("\n".join(rows), words)
    it = Assembly(source, words, limit, marker="# ...")
    order = list(range(len(source)))
    random.shuffle(order)
    keep_ranked(it, [[i] for i in order])
    assert it.tokens == words(it.text()) <= limit
    for i in range(len(source)):
        if i not in it and not source.blank(i):
            more = Assembly(source, words, limit, marker="# ...", kept=[*it.kept, i])
            assert more.tokens > limit


def test_too_small_a_budget_names_the_minimum() -> None:
    with pytest.raises(BudgetError, match="at least 4"):
        assembly([], limit=2).require_fit("an omission marker")


def test_markers_follow_the_language() -> None:
    assert [marker_text(x) for x in ("python", "rust", "sql", "text")] == [
        *("# ...", "// ...", "-- ...", "...")
    ]


def test_long_lines_of_prose_are_cut_into_sentences_and_joined_again() -> None:
    text = "\n\n".join(" ".join(f"Sentence {j} of part {i}." for j in range(20)) for i in range(3))
    source = Source.read(text, words, "text")
    assert len(source) == 20 * 3 + 2
    assert [text[a:b] for a, b in zip(source.starts, source.ends, strict=True)] == list(
        source.lines
    )
    whole = Assembly(source, words, 9999, marker="...", kept=range(len(source)))
    assert whole.text() == text
    some = Assembly(source, words, 9999, marker="...", kept=[0, 1, 4])
    assert (
        some.text()
        == "Sentence 0 of part 0. Sentence 1 of part 0. \n...\nSentence 4 of part 0. \n..."
    )
    one = Source.read("x" * 1000, words, "text")
    assert "".join(one.lines) == "x" * 1000
    assert len(one) > 2
