"""Other models: the paper's tags, formats asked for in words, programs that are run, servers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from outlay.budget import Budget
from outlay.errors import CapabilityError, InputError
from outlay.models.base import Message, SamplingParams
from outlay.models.endpoint import EndpointModel
from outlay.models.local import LocalModel
from outlay.reason import Question
from outlay.reason.adaptive import ARM, PROMPTED, Adaptive
from outlay.reason.adaptive.execution import LONGEST_PROGRAM, run_program
from outlay.sandbox import Sandbox

from ..conftest import questions
from .scripted import Scripted

ASK: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 3+4?"},
]
QUESTION = Question(ASK, "What is 3+4?", kind="number")
CONSENSUS = Adaptive(mode="consensus")
SAMPLING = SamplingParams(max_tokens=60)


def block(answer: str) -> str:
    return f"<ANSWER>\n{answer}\n</ANSWER>"


def replies(direct: str, cot: str, code: str, long: str = "9") -> dict[str, str]:
    return {
        "<ANSWER>\n": f"{direct} \n</ANSWER>",
        "<COT>\n": f"some steps \n</COT>\n{block(cot)}",
        "<CODE>\n": f"f() \n</CODE>\n<OUTPUT>\n{code}\n</OUTPUT>\n{block(code)}",
        "<LONG_COT>\n": f"wait, no \n</LONG_COT>\n{block(long)}",
    }


def solve(method: Adaptive, model: Scripted, question: Question = QUESTION) -> Any:
    return method.solve(model, question, sampling=SAMPLING)  # type: ignore[arg-type]


def test_three_equal_answers_in_the_papers_formats_make_three_calls() -> None:
    model = Scripted(replies("7", "7.0", "14/2"))  # equal as numbers, not as texts
    answer = solve(CONSENSUS, model)
    assert (answer.status, answer.value, len(answer.branches)) == ("agreed", "7", 3)
    assert len(model.prompts) == 1  # one prompt, whose KV the calls share
    assert answer.text == "<ANSWER>\n7 \n</ANSWER>"


def test_one_different_or_missing_answer_makes_it_think_long() -> None:
    for cheap in (("7", "7", "8"), ("8", "7", "7"), ("7", "", "7"), ("", "", "")):
        answer = solve(CONSENSUS, Scripted(replies(*cheap)))
        assert (answer.status, answer.value) == ("fallback", "9")
        formats = [call["format"] for call in answer.detail["calls"]]
        assert formats == ["direct", "cot", "code", "long_cot"]


def test_generation_stops_at_the_closing_answer_tag() -> None:
    model = Scripted(replies("7", "7", "7"))
    solve(CONSENSUS, model)
    assert all(want.stop == ("</ANSWER>",) and want.include_stop for want in model.sampled)


def test_foreign_tags_are_reported() -> None:
    model = Scripted({"": f"<COT>\nx\n</COT>\n<CODE>\n{block('7')}"})
    answer = solve(Adaptive(), model)
    assert answer.detail["calls"][0]["foreign"] == ["<CODE>"]
    assert (answer.detail["format"], answer.value) == ("cot", "7")


def test_a_long_answer_cut_by_the_budget_leaves_the_one_that_most_agree_on() -> None:
    model = Scripted(
        {
            "<ANSWER>\n": "8 \n </ANSWER>",
            "<COT>\n": f"so so \n</COT>\n{block('7')}",
            "<CODE>\n": f"f() \n \n</CODE>\n{block('7')}",
            "<LONG_COT>\n": f"wait, no \n</LONG_COT>\n{block('9')}",
        }
    )
    for spare in (0, 1, 2, 3):  # every response takes 3 tokens
        answer = CONSENSUS.solve(
            model,  # type: ignore[arg-type]
            QUESTION,
            Budget(tokens=9 + spare),
            SamplingParams(max_tokens=3),
        )
        whole = spare == 3
        assert (answer.status, answer.value) == (("fallback", "9") if whole else ("budget", "7"))
        assert len(answer.branches) == (4 if spare else 3)
        assert answer.ledger.totals().generated == 9 + spare


def test_formats_are_asked_for_in_words_and_opened_where_the_model_can_go_on() -> None:
    for append in (True, False):
        model = Scripted({"": block("7"), **(replies("7", "7", "7") if append else {})}, append)
        answer = solve(Adaptive(mode="consensus", formats="prompted"), model)
        assert answer.value == "7"
        assert len(model.prompts) == len(answer.branches) == 3
        for name, prompt in zip(PROMPTED.names, model.prompts, strict=False):
            system, user = prompt
            assert system == ASK[0]
            assert user["content"] == f"What is 3+4?\n\n{PROMPTED.request(name)}"
        forced = answer.ledger.totals().forced
        assert forced == (3 if append else 0)


def test_a_choice_of_formats_is_asked_for_in_words() -> None:
    model = Scripted({"": f"\n{block('7')}"}, append=False)
    answer = solve(Adaptive(formats="prompted"), model)
    assert (answer.value, answer.detail["format"]) == ("7", "direct")
    (prompt,) = model.prompts
    assert prompt[1]["content"].endswith(PROMPTED.request())
    text = replace(QUESTION, prompt="What is 3+4?")
    solve(Adaptive(formats="prompted"), model, text)
    assert model.prompts[1] == f"What is 3+4?\n\n{PROMPTED.request()}\n"


def test_words_cannot_be_added_to_token_ids_or_to_no_user() -> None:
    method, model = Adaptive(formats="prompted"), Scripted({"": ""})
    with pytest.raises(InputError, match="not token ids"):
        solve(method, model, Question([1, 2, 3], "x"))
    with pytest.raises(InputError, match="needs a user message"):
        solve(method, model, Question(ASK[:1], "x"))


def test_forcing_a_format_needs_a_model_that_goes_on_from_forced_text() -> None:
    model = Scripted(replies("7", "7", "7"), append=False)
    for mode in ("consensus", "guided:cot"):
        with pytest.raises(CapabilityError, match=f"arm with mode='{mode}' needs append"):
            solve(Adaptive(mode=mode), model)
    assert model.prompts == []


def test_tags_that_a_server_drops_are_refused_before_anything_is_sent() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core: Any = PreTrainedTokenizerFast
    tokenizer = core(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<LONG_COT>"]})
    model = EndpointModel("http://127.0.0.1:9/v1", "m", tokenizer=tokenizer)
    with pytest.raises(CapabilityError, match="m drops the tag '<LONG_COT>'"):
        Adaptive().solve(model, QUESTION)


def test_tags_that_a_local_tokenizer_cannot_write_are_refused(reasoner: LocalModel) -> None:
    class Lossy:
        name = "lossy"

        def encode(self, text: str) -> list[int]:
            return [ord(char) for char in text]

        def decode(self, ids: list[int]) -> str:
            return "".join(map(chr, ids)).lower()

    model: Any = Lossy()
    with pytest.raises(CapabilityError, match="lossy drops the tag '<COT>'"):
        Adaptive().solve(model, QUESTION)


# -- programs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


def test_the_result_of_a_program_is_its_answer_field_its_value_or_its_last_line(
    sandbox: Sandbox,
) -> None:
    for source, result in (
        ("def f():\n    return {'answer': 6 * 7, 'half': 3}\nf()", "42"),
        ("{'answer': 'B'}", "B"),
        ("print({'answer': 8})", "8"),
        ("print('so:')\nprint(9)", "9"),
        ("1 + 1", "2"),
        ("x = 3", None),
        ("{'result': 3}", None),
        ("1 / 0", None),
        ("def f(:", None),
        ("open('/etc/passwd').read()", None),
        ("  ", None),
        ("0" * (LONGEST_PROGRAM + 1), None),
    ):
        assert run_program(sandbox, source) == result, source


def test_a_program_that_runs_replaces_the_emulated_answer_and_others_do_not(
    sandbox: Sandbox,
) -> None:
    for source, value in (("3 + 4", "7"), ("3 +", "8"), ("1 / 0", "8")):
        model = Scripted({"<CODE>\n": f"{source} \n</CODE>\n{block('8')}"})
        method = Adaptive(mode="guided:code", execute_code=True, sandbox=sandbox)
        answer = solve(method, model)
        assert answer.value == value
        assert answer.detail["calls"][0]["executed"] == (value == "7")
        assert ARM.parse(answer.text).answer == value
        emulated = solve(replace(method, execute_code=False), model)
        assert emulated.value == "8"


def test_programs_of_the_reasoner_give_what_they_say(
    reasoner: LocalModel, sandbox: Sandbox
) -> None:
    from outlay.reason.adaptive import REASONER
    from outlay.testbeds.reasoner import parse_question

    method = Adaptive("guided:code", "reasoner", execute_code=True, sandbox=sandbox)
    exact = 0
    for question in questions(8, (1, 3)):
        answer = method.solve(reasoner, question, sampling=SAMPLING)
        assert answer.chosen is not None
        (program,) = REASONER.parse(answer.chosen.completion()).parts
        chain = parse_question(question.text).chains[0]
        copied = ",".join([str(chain.start), *(f"{b}{sign}" for sign, b in chain.operations)])
        if program.startswith(copied + ":"):
            exact += 1
            assert answer.value == str(chain.value)
    assert exact
