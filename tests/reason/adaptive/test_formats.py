"""Formats: detection by the first tag, the last complete answer, parse after render."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.reason.adaptive import ARM, PRESETS, PROMPTED, REASONER, Block, Format, Formats
from outlay.testbeds.reasoner import render_trace, sample_problem
from outlay.testbeds.reasoner.evaluate import read_answer

SETS = st.sampled_from(list(PRESETS.values()))
TEXTS = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), max_size=30)
PIECES = st.lists(
    st.sampled_from(["a", "\n", "<", *ARM.tags, "<ANSWER>\n", "\n</ANSWER>"]), max_size=14
)


@given(SETS, st.data())
def test_parsing_what_was_rendered_gives_it_back(formats: Formats, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(formats.names))
    parts = tuple(data.draw(TEXTS) for _ in formats[name].blocks)
    answer = data.draw(TEXTS)
    response = formats.render(name, parts, answer)
    parsed = formats.parse(response)
    assert (parsed.format, parsed.parts, parsed.answer) == (name, parts, answer)
    assert parsed.foreign == ()
    assert response.startswith(formats.prefix(name))


@given(SETS, st.data())
def test_only_the_first_tag_decides_and_the_others_are_foreign(
    formats: Formats, data: st.DataObject
) -> None:
    first, second = data.draw(st.permutations(formats.names))[:2]
    one = formats.render(first, [""] * len(formats[first].blocks), "1")
    other = formats.render(second, [""] * len(formats[second].blocks), "2")
    parsed = formats.parse(one + other)
    assert parsed.format == first
    shared = {formats.answer.opening, formats.answer.closing}
    shared |= {tag for block in formats[first].blocks for tag in (block.opening, block.closing)}
    tags = {tag for block in formats[second].blocks for tag in (block.opening, block.closing)}
    assert set(parsed.foreign) == tags - shared


def test_any_tag_of_code_or_of_a_chain_is_foreign_to_a_direct_answer() -> None:
    for tag in ("<CODE>", "</CODE>", "<COT>", "</COT>", "<LONG_COT>", "</LONG_COT>", "<OUTPUT>"):
        parsed = ARM.parse(f"<ANSWER>\n3\n</ANSWER>{tag}")
        assert (parsed.format, parsed.foreign) == ("direct", (tag,))


@given(PIECES)
def test_the_answer_is_the_last_complete_block(pieces: list[str]) -> None:
    """Against a reference that looks at every opening tag."""
    response = "".join(pieces)
    opening, closing = ARM.answer.opening, ARM.answer.closing
    found = None
    for at in range(len(response)):
        if response.startswith(opening, at):
            rest = response[at + len(opening) :]
            if closing in rest:
                found = rest.split(closing)[0]
    if found is not None:
        found = found.removeprefix("\n").removesuffix("\n")
    assert ARM.parse(response).answer == found


def test_two_answer_blocks_are_not_read_as_one_span() -> None:
    assert ARM.parse("<ANSWER>3</ANSWER> no: <ANSWER>4</ANSWER>").answer == "4"
    assert ARM.parse("<ANSWER>3</ANSWER> no: <ANSWER>4").answer == "3"
    assert ARM.parse("<ANSWER>3").answer is None
    assert REASONER.parse("<direct></think><answer>7").answer == "7"  # servers drop <eos>


def test_strict_detection_allows_no_space_and_strip_does() -> None:
    for space in (" ", "\n"):
        assert ARM.detect(space + "<COT>") == "unknown"
        assert PROMPTED.detect(space + "<COT>") == "cot"
    assert ARM.detect("so <COT>") == PROMPTED.detect("so <COT>") == "unknown"
    assert ARM.detect("<LONG_COT>") == "long_cot"
    assert ARM.detect("") == "unknown"


def test_all_tags_are_foreign_to_a_response_without_a_format() -> None:
    parsed = ARM.parse("well, <COT>x</COT><ANSWER>3</ANSWER>")
    assert (parsed.format, parsed.parts, parsed.answer) == ("unknown", (), "3")
    assert parsed.foreign == ("<COT>", "</COT>")


@given(TEXTS)
def test_an_answer_can_be_replaced_and_added(answer: str) -> None:
    for before in ("<CODE>\nx\n</CODE>\n<ANSWER>\n3\n</ANSWER>", "<CODE>\nx\n</CODE>"):
        parsed = ARM.parse(ARM.answered(before, answer))
        assert (parsed.format, parsed.parts, parsed.answer) == ("code", ("x",), answer)


def test_the_testbeds_own_traces_are_read() -> None:
    import random

    for seed in range(20):
        problem = sample_problem(random.Random(seed), [1 + seed % 5])
        for name in ("direct", "short", "code", "long"):
            trace = render_trace(problem, name)
            parsed = REASONER.parse(trace)
            assert (parsed.format, parsed.answer) == (name, read_answer(trace))
            assert parsed.foreign == ()


def test_postfix_programs_become_python_with_the_same_result() -> None:
    import random

    for seed in range(20):
        problem = sample_problem(random.Random(seed), [1 + seed % 6])
        program = REASONER.code_of(render_trace(problem, "code"))
        assert program is not None
        *steps, last = program.splitlines()
        scope: dict[str, object] = {}
        exec("\n".join(steps), scope)
        assert str(scope["value"]) == problem.answer
        assert last == "{'answer': value}"
    assert REASONER.code_of(render_trace(problem, "short")) is None
    assert REASONER.code_of("<code>3,4+") is None  # not closed
    with pytest.raises(InputError, match="no postfix program"):
        REASONER.code_of("<code>3+4</think>")


def test_requests_name_the_tags_of_their_format() -> None:
    for name in PROMPTED.names:
        request = PROMPTED.request(name)
        assert PROMPTED.opening(name) in request
        assert PROMPTED.answer.closing in request
        assert request.splitlines()[-1] in PROMPTED.request()
    assert ARM.request() == ARM.request("cot") == ""


TWO = (Format("a", (Block("<a>", "</a>"),)), Format("b", (Block("<b>", "</b>"),)))
ANSWER = Block("<x>", "</x>")


def test_sets_that_cannot_work_are_refused() -> None:
    with pytest.raises(InputError, match="1 formats; give 2"):
        Formats(TWO[:1], ANSWER)
    with pytest.raises(InputError, match="share a name"):
        Formats((TWO[0], TWO[0]), ANSWER)
    short = Format("short", (Block("COT", "/COT"),))
    with pytest.raises(InputError, match="'COT' of format 'short' begins that of 'long'"):
        Formats((Format("long", (Block("COT_LONG", "/COT_LONG"),)), short), ANSWER)
    with pytest.raises(InputError, match="begins that of"):
        Formats((Format("one"), Format("two")), ANSWER)
    with pytest.raises(InputError, match="opening and a closing"):
        Block("<a>", " ")
    with pytest.raises(InputError, match="both open and close"):
        Block("<a>", "<a>")
    with pytest.raises(InputError, match="answer tag '<x>' is missing from what format 'a'"):
        Formats((replace(TWO[0], ask="use <a>"), TWO[1]), ANSWER, ask="use", choose="choose")
    with pytest.raises(InputError, match="give both, or neither"):
        Formats(TWO, ANSWER, ask="use")
    with pytest.raises(InputError, match="code='c' is no format"):
        Formats(TWO, ANSWER, code="c")
    with pytest.raises(InputError, match="no block that could hold a program"):
        replace(ARM, code="direct")
    with pytest.raises(InputError, match="pad="):
        Formats(TWO, ANSWER, pad="|")
    with pytest.raises(InputError, match="detector="):
        Formats(TWO, ANSWER, detector="loose")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rename"):
        Format("unknown")
    with pytest.raises(InputError, match="letters, digits"):
        Format("a:b")


def test_texts_that_hold_tags_cannot_be_rendered() -> None:
    with pytest.raises(InputError, match="holds the tag '</COT>'"):
        ARM.render("cot", ["a</COT>b"], "3")
    with pytest.raises(InputError, match="0 parts for format 'cot'"):
        ARM.render("cot", [], "3")
    with pytest.raises(InputError, match="choose one of direct, cot"):
        ARM.render("poem", [], "3")
    same = Formats((Format("a", (Block("<a>", "aa"),)), TWO[1]), ANSWER)
    with pytest.raises(InputError, match="read as another tag"):
        same.render("a", ["xa"], "3")  # "xa" + "aa" closes one letter early
