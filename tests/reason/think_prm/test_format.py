"""Layouts: what a request says, which words decide, and where training text ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.reason.think_prm.format import BOXED, COMPACT, Layout, layout_of

LABELS = st.lists(st.sampled_from(["good", "bad"]), min_size=1, max_size=15)


def critique(labels: list[str], layout: Layout) -> str:
    right, wrong = layout.words
    words = [right if label == "good" else wrong for label in labels]
    if layout is COMPACT:
        return "".join(
            f"{i}:1+1=2{layout.mark(i)}2{word};" for i, word in enumerate(words, start=1)
        )
    return "\n".join(
        f"Step {i}: adds up. The step is \\boxed{{{word}}}" for i, word in enumerate(words, start=1)
    )


@pytest.mark.parametrize("layout", [BOXED, COMPACT], ids=lambda layout: layout.name)
@given(labels=LABELS)
def test_decisions_are_read_in_order_with_their_places(layout, labels):
    text = critique(labels, layout)
    found = layout.decisions(text)
    assert [decision.label for decision in found] == labels
    assert [text[d.start : d.end] for d in found] == [
        layout.words[label == "bad"] for label in labels
    ]


def test_boxes_with_anything_else_are_no_decisions():
    text = (
        r"\boxed{42} \boxed{Correct} \boxed{correct step} \boxed{\text{correct}} \boxed{incorrect"
    )
    [only] = BOXED.decisions(text)
    assert only.label == "good"
    assert BOXED.decisions(r"so \boxed{ incorrect }.")[0].label == "bad"


def test_cleaning_unwraps_text_and_cuts_after_the_last_decision():
    text = (
        "ok \\boxed{\\text{correct}}. then\nStep 2: \\boxed{incorrect}\nSo the answer is \\boxed{7}"
    )
    assert BOXED.clean(text) == "ok \\boxed{correct}. then\nStep 2: \\boxed{incorrect}"


def test_a_chain_with_think_tags_is_not_emptied():
    text = "<think>\nStep 1: fine \\boxed{correct}</think> more"
    assert BOXED.clean(text) == "Step 1: fine \\boxed{correct}"


@pytest.mark.parametrize("layout", [BOXED, COMPACT], ids=lambda layout: layout.name)
@given(labels=LABELS)
def test_cleaning_twice_is_cleaning_once_and_keeps_decisions(layout, labels):
    text = critique(labels, layout) + " and so on"
    once = layout.clean(text)
    assert layout.clean(once) == once
    assert [d.label for d in layout.decisions(once)] == labels


def test_training_text_is_opening_critique_and_verdict():
    chain = "Step 1: \\boxed{correct}"
    assert BOXED.completion(chain, True) == (
        "<think>\nLet's verify step by step:\nStep 1: \\boxed{correct}\n</think>\n"
        "Is the solution correct? Yes"
    )
    assert COMPACT.completion("1:1+1=2A3n;", False) == "<think>1:1+1=2A3n;</think>?n"


def test_a_template_that_opens_the_thinking_gets_no_second_tag():
    assert BOXED.prefix("<assistant><think>\n") == "Let's verify step by step:"
    assert BOXED.prefix("<assistant>").startswith("<think>\n")
    assert COMPACT.prefix("<assistant><think>") == ""


def test_a_request_numbers_its_steps():
    text = BOXED.render("1+1?", ["add", " carry \n"])
    assert "Step 1: add\nStep 2: carry\n" in text
    assert "Step 1" not in BOXED.render("1+1?", ["add"], number_steps=False)
    steps = ["<short>3+4=7;", "7*7=9;", "</think><answer>9<eos>"]
    assert COMPACT.render("3+4*7=?", steps) == "3+4*7=?\n3+4=A7;7*7=B9;=C9"


def test_empty_solutions_and_unknown_layouts_are_refused():
    with pytest.raises(InputError, match="no steps"):
        BOXED.render("q", [])
    with pytest.raises(InputError, match=r"step 2 .* empty"):
        BOXED.render("q", ["a", "  "])
    with pytest.raises(InputError, match="letters for 26"):
        COMPACT.render("q", ["1+1=2"] * 27)
    assert COMPACT.render("q", ["1+1=2"] * 27, number_steps=False).count(";") == 26
    with pytest.raises(InputError, match="boxed or compact"):
        layout_of("free")
