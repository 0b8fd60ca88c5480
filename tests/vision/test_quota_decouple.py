"""QuoTA: what every frame is asked about a question."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.models.base import Account, Generation
from outlay.vision.quota import QuoTA, asker, decouple, parse_entities, templated
from outlay.vision.quota.decoupling import ENTITY_PROMPT, parse_event
from outlay.vision.quota.templated import LONGEST_ENTITY, MOST_ENTITIES


@pytest.mark.parametrize(
    ("reply", "entities"),
    [
        ('Step 1: yes\nStep 2: ["dog", "night"]\nStep 3: ["dog"]', ("dog",)),
        ("STEP 1: YES\nSTEP 3: ['Red Car', 'gate']", ("red car", "gate")),
        ('**Step 1:** Yes\n\n**Step 3**: `["cup"]`', ("cup",)),
        ("<think>step 3: ['wrong']</think>step 1: yes step 3: ['right']", ("right",)),
        ('step 1: yes\nstep 3: ["cup", "pl', ("cup",)),  # cut off
        ("step 1: yes\nstep 3: [cup, red plate]", ("cup", "red plate")),  # not quoted
        ("step 1: yes\nstep 3: ['cup', \"it's\"]", ("cup", "it's")),
        ('step 1: yes\nstep 3: ["cup", "Cup ", "cup."]', ("cup",)),
        ('step 1: yes\nstep 3: ["cup", 3, null, ["plate"]]', ("cup", "plate")),
        ('step 1: no\nstep 2: []\nstep 3: ["boats"]', ("boats",)),  # contradicts itself
        ("step 1: yes\nstep 3: ['a']\nstep 4: ['b']", ("a",)),
    ],
)
def test_entities_are_read_from_what_models_write(reply: str, entities: tuple[str, ...]) -> None:
    assert parse_entities(reply) == entities


@pytest.mark.parametrize(
    "reply",
    [
        "Step 1: no",
        "Step 1: no\nStep 3: null",
        "Step 1: yes\nStep 2: []\nStep 3: null",
        "step 1: yes\nstep 3: **None**",
        "step 1: yes\nstep 3: []",
        "Step 1: no\nStep 3: nothing to list",
        "Step 1: no\nStep 3: there is no such thing",
    ],
)
def test_nothing_to_look_for_is_an_answer(reply: str) -> None:
    assert parse_entities(reply) == ()


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "The woman puts it on the floor.",
        "step 1: yes",
        "step 1: yes\nstep 3: the dog",
        "step 1: yes\nstep 2: ['dog']",
        "step 1: yes\nstep 3: [",
    ],
)
def test_a_reply_that_cannot_be_read_is_told_apart(reply: str) -> None:
    assert parse_entities(reply) is None


def test_a_reply_is_read_and_never_run(tmp_path: Any) -> None:
    trap = tmp_path / "trap"
    reply = f"step 1: yes\nstep 3: [open({str(trap)!r}, 'w')]"
    parse_entities(reply)
    assert not trap.exists()


@given(st.text(max_size=400))
def test_no_reply_breaks_the_reader(noise: str) -> None:
    for reply in (noise, f"step 1: yes\nstep 3: {noise}", f"step 3: [{noise}", "[" * 5000 + noise):
        found = parse_entities(reply)
        assert found is None or all(0 < len(name) <= LONGEST_ENTITY for name in found)
        parse_event(reply)


def test_entities_are_limited_in_number_and_length() -> None:
    many = [f"thing {k} " + "x" * 200 for k in range(50)]
    found = parse_entities(f"step 1: yes\nstep 3: {many}")
    assert found is not None
    assert len(found) == MOST_ENTITIES
    assert max(map(len, found)) <= LONGEST_ENTITY


@given(st.lists(st.text("abcdefg ", min_size=1, max_size=20).filter(str.strip), max_size=8))
def test_a_list_written_by_python_comes_back(names: list[str]) -> None:
    found = parse_entities(f"Step 1: yes\nStep 3: {names!r}")
    wanted = tuple(dict.fromkeys(" ".join(name.split()) for name in names))
    assert found == wanted


def test_the_worked_examples_of_the_prompt_are_in_the_form_that_is_read() -> None:
    shown = ENTITY_PROMPT.split("Question: ")[1:-1]
    assert [parse_entities(example) for example in shown] == [
        ("woman", "blue umbrella"),
        (),
        ("dogs", "bridge"),
    ]


def test_entities_make_the_two_choice_question() -> None:
    asked = decouple("Where is the cup?", lambda prompt: 'step 1: yes\nstep 3: ["cup", "saucer"]')
    assert asked.entities == ("cup", "saucer")
    assert "cup, saucer" in asked.text
    assert "A. yes" in asked.text
    assert "B. no" in asked.text
    assert "Where is" not in asked.text


def test_the_model_is_asked_in_three_steps_about_the_question() -> None:
    seen: list[str] = []
    decouple("Where is {the} cup?", lambda prompt: seen.append(prompt) or "step 1: no")
    assert "Question: Where is {the} cup?" in seen[0]
    assert all(f"Step {k}" in seen[0] for k in (1, 2, 3))


@pytest.mark.parametrize("reply", ["I cannot say.", "step 1: no"])
def test_without_entities_the_question_itself_is_put(reply: str) -> None:
    asked = decouple("Where is the cup?", lambda prompt: reply)
    assert asked.entities == ()
    assert "Where is the cup?" in asked.text
    assert "enough information" in asked.text
    assert asked.parsed == (reply != "I cannot say.")
    assert asked.reply == reply


def test_mode_none_asks_nobody() -> None:
    def never(prompt: str) -> str:
        raise AssertionError(prompt)

    asked = decouple("Where is the cup?", never, "none")
    assert "Where is the cup?" in asked.text


def test_an_event_becomes_one_question_about_a_frame() -> None:
    reply = "Frame question: Is a boy dropping a cup?\nQuestion: more"
    asked = decouple("Why does he drop it?", lambda prompt: reply, "event")
    assert asked.event == "Is a boy dropping a cup?"
    assert asked.text.startswith("Is a boy dropping a cup?\nA. yes")
    lost = decouple("Why does he drop it?", lambda prompt: "He slipped.", "event")
    assert not lost.parsed
    assert "Why does he drop it?" in lost.text
    with pytest.raises(InputError, match="needs a text model"):
        decouple("Why?", mode="event")


@pytest.mark.parametrize(
    ("question", "entities"),
    [
        ("Where does the woman put the blue umbrella?", ("woman", "blue umbrella")),
        ("How many dogs run across the bridge?", ("dogs", "across", "bridge")),
        ("What is the mood of the whole film?", ("whole",)),
        ("how many things", ()),
        ("What happens?", ()),
        ("which digit is red", ("digit", "red")),
        ("Which is it?\nA. a lion\nB. a tiger", ()),  # options are no part of it
    ],
)
def test_the_template_takes_what_is_left_between_common_words(
    question: str, entities: tuple[str, ...]
) -> None:
    assert templated(question) == entities
    asked = decouple(question)
    assert asked.entities == entities
    assert asked.parsed


@given(st.text(max_size=300).filter(str.strip))
def test_the_template_takes_any_text(question: str) -> None:
    assert all(templated(question))


def test_quota_asks_with_its_own_model() -> None:
    quota = QuoTA(ask=lambda prompt: 'step 1: yes\nstep 3: ["cup"]')
    assert quota.asked("Where is it?").entities == ("cup",)
    assert QuoTA(decouple="none").asked("Where is the cup?").entities == ()


class Says:
    """A model of `outlay.models` that writes one text."""

    def __init__(self, text: str, *, takes_chat: bool) -> None:
        self.text, self.takes_chat = text, takes_chat
        self.prompts: list[Any] = []

    def generate(self, prompt: Any, budget: Any, sampling: Any, *, account: Account) -> Generation:
        self.prompts.append(prompt)
        account.ledger.record(account.stage, account.role, generated=7, method=account.method)
        return Generation(self.text, (), "stop", account.ledger)


def test_a_small_model_continues_after_the_first_step() -> None:
    model, account = Says(' yes\nStep 3: ["cup"]', takes_chat=True), Account()
    ask = asker(model, chat=False, account=account)
    assert decouple("Where is it?", ask).entities == ("cup",)
    assert model.prompts[0].endswith("Question: Where is it?\nStep 1:")
    assert account.ledger.totals().generated == 7
    decouple("Why?", ask, "event")
    assert model.prompts[1].endswith("Frame question:")


def test_a_chat_model_gets_a_message() -> None:
    model = Says('step 1: yes\nstep 3: ["cup"]', takes_chat=True)
    assert decouple("Where is it?", asker(model)).entities == ("cup",)
    assert model.prompts[0][0]["role"] == "user"
    plain = Says("", takes_chat=False)
    assert not decouple("Where is it?", asker(plain)).parsed
    assert isinstance(plain.prompts[0], str)


@pytest.mark.parametrize("question", ["", "  \n", "x" * 20_001, 3])
def test_questions_that_say_nothing_or_too_much_are_refused(question: Any) -> None:
    with pytest.raises(InputError, match="question"):
        decouple(question)


def test_other_bad_knobs_are_named() -> None:
    with pytest.raises(InputError, match="decouple='nouns'"):
        decouple("Where?", mode="nouns")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="max_tokens=0"):
        asker(Says("", takes_chat=True), max_tokens=0)
