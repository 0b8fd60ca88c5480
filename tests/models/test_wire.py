"""The wire format in its dialects, the bill made from it, and the client's own counting."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from misbehaving_server import Words

from outlay.errors import CapabilityError, EndpointError, InputError
from outlay.models.base import SamplingParams
from outlay.models.billing import charges
from outlay.models.probe import prompt_scores
from outlay.models.retry import Clock, RetriableError, Retry, Timeouts, attempt_until
from outlay.models.tokens import ClientTokenizer, Count
from outlay.models.wire import Reply, body, parse_logprobs, parse_usage, settle_text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["index", "text", "delta", "content", "logprobs", "tokens", "token_logprobs",
                 "text_offset", "finish_reason", "prompt_tokens", "completion_tokens"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)  # fmt: skip


def reply(*payloads: dict[str, Any]) -> Reply:
    gathered = Reply()
    for payload in payloads:
        gathered.add(payload)
    return gathered


@given(choices=JSON, usage=JSON)
def test_no_json_breaks_the_reader_but_by_an_endpoint_error(choices: Any, usage: Any) -> None:
    try:
        gathered = reply({"choices": choices, "usage": usage})
    except EndpointError:
        return
    for choice in gathered.ordered():
        assert isinstance(choice.text, str)
        assert len(choice.tokens) == len(choice.logprobs)


@pytest.mark.parametrize(
    "logprobs",
    [
        {"tokens": ["a", "b"], "token_logprobs": [-1, None], "text_offset": [0, 1]},
        {"content": [{"token": "a", "logprob": -1}, {"token": "b", "logprob": None}]},
    ],
)
def test_both_dialects_of_logprobs_read_the_same(logprobs: Any) -> None:
    tokens, values, _ = parse_logprobs(logprobs)
    assert tokens == ["a", "b"]
    assert values[0] == -1
    assert math.isnan(values[1])


def test_pieces_add_up_to_the_whole() -> None:
    whole = reply({"choices": [{"index": 0, "text": "ab", "finish_reason": "stop"}]})
    pieces = reply(
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "a"}}]},
        {"choices": [{"index": 0, "delta": {"content": "b"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    )
    assert whole.choices == pieces.choices
    assert pieces.finished


def test_neutral_knobs_are_not_sent() -> None:
    sent = body("completions", model="m", prompt="p", sampling=SamplingParams(), limit=3, seed=1)
    assert sent == {"model": "m", "prompt": "p", "max_tokens": 3, "temperature": 0.0}


def test_set_knobs_are_sent() -> None:
    params = SamplingParams(
        temperature=0.5, top_p=0.9, top_k=3, min_tokens=1, stop=("x",), stop_token_ids=(7,),
        ignore_eos=True, logprobs=True,
    )  # fmt: skip
    sent = body(
        "chat", model="m", prompt=[], sampling=params, limit=3, n=2, seed=1,
        limit_field="max_completion_tokens",
    )  # fmt: skip
    assert sent == {
        "model": "m", "messages": [], "max_completion_tokens": 3, "temperature": 0.5, "n": 2,
        "seed": 1, "top_p": 0.9, "top_k": 3, "min_tokens": 1, "stop": ["x"],
        "stop_token_ids": [7], "ignore_eos": True, "logprobs": True,
    }  # fmt: skip


def test_a_stop_string_that_the_server_took_off_is_put_back() -> None:
    row = {"index": 0, "text": "a b", "finish_reason": "stop", "stop_reason": "\n\n"}
    choice = reply({"choices": [row]}).ordered()[0]
    params = SamplingParams(stop=("\n\n", "END"))
    assert settle_text(choice, params, cut=False, truncated=False) == ("a b\n\n", "stop", "")


@given(
    counts=st.lists(st.integers(0, 20), min_size=1, max_size=5),
    generated=st.integers(0, 200),
    prompt=st.integers(0, 50),
    cached=st.integers(0, 80),
)
def test_the_bill_is_the_usage_to_the_token(
    counts: list[int], generated: int, prompt: int, cached: int
) -> None:
    rows = [{"index": i, "text": "w " * n, "finish_reason": "stop"} for i, n in enumerate(counts)]
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    parts = charges(
        reply({"choices": rows, "usage": usage}),
        SamplingParams(),
        ClientTokenizer(Words()),
        prompt=Count(prompt, "tokenizer"),
        limit=20,
        rendered=True,
    )
    assert sum(part.generated for part in parts) == generated
    assert sum(part.prompt_new + part.prompt_cached for part in parts) == prompt
    assert all(part.enforced >= part.generated for part in parts)
    slack = sum(2 + math.ceil(0.05 * n) for n in counts)
    flagged = any("counted from the local tokenizer" in part.note for part in parts)
    if abs(generated - sum(counts)) > slack:
        assert flagged
    if generated == sum(counts):
        assert not flagged
        assert [part.generated for part in parts] == counts


def test_hidden_reasoning_is_billed_and_not_called_a_lie() -> None:
    usage = {
        "prompt_tokens": 1,
        "completion_tokens": 52,
        "completion_tokens_details": {"reasoning_tokens": 50},
    }
    answer = {"choices": [{"text": "a b", "finish_reason": "stop"}], "usage": usage}
    [part] = charges(
        reply(answer), SamplingParams(), ClientTokenizer(Words()),
        prompt=Count(1, "tokenizer"), limit=60, rendered=False,
    )  # fmt: skip
    assert (part.generated, part.note) == (52, "")


def test_more_tokens_than_bytes_are_flagged_without_a_tokenizer() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 50}
    [part] = charges(
        reply({"choices": [{"text": "ab", "finish_reason": "length"}], "usage": usage}),
        SamplingParams(), ClientTokenizer(), prompt=Count(1, "bytes"), limit=60, rendered=False,
    )  # fmt: skip
    assert "usage says 50 generated tokens" in part.note


def test_usage_without_numbers_is_no_usage() -> None:
    assert parse_usage({"prompt_tokens": True, "completion_tokens": 1}) is None
    assert parse_usage([1, 2]) is None


def test_prompt_logprobs_of_vllm_are_read() -> None:
    row = {
        "index": 0,
        "text": "x",
        "prompt_logprobs": [
            None,
            {"12": {"logprob": -2.5, "rank": 9, "decoded_token": " b"}},
            {"7": {"logprob": -0.5, "decoded_token": " c"}, "9": {"logprob": -0.1}},
        ],
    }
    tokens, values = prompt_scores(reply({"choices": [row]}), "prompt_logprobs")
    assert tokens == ["", " b", " c"]
    assert values[1:] == [-2.5, -0.5]


def test_echoed_logprobs_leave_out_the_sampled_token() -> None:
    probs = {"tokens": ["a", " b", " z"], "token_logprobs": [None, -1.5, -9.0]}
    row = {"index": 0, "text": "a b z", "logprobs": probs}
    usage = {"prompt_tokens": 2, "completion_tokens": 1}
    tokens, values = prompt_scores(reply({"choices": [row], "usage": usage}), "echo")
    assert tokens == ["a", " b"]
    assert values[1:] == [-1.5]


# ---- counting -----------------------------------------------------------------------------------


def test_tokenizers_of_every_kind_count() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    fast = Tokenizer(WordLevel({"<s>": 0, "a": 1, "b": 2, "?": 3}, unk_token="?"))
    fast.pre_tokenizer = WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", unk_token="?")
    for tokenizer in (fast, wrapped):
        face = ClientTokenizer(tokenizer)
        assert face.ids("a b a") == (1, 2, 1)
        assert face.count("a b") == Count(2, "tokenizer")
        assert face.decode([1, 2]).split() == ["a", "b"]
    assert ClientTokenizer(Words()).count("x y z") == Count(3, "tokenizer")
    assert ClientTokenizer().count("xyz12") == Count(2, "bytes")
    assert ClientTokenizer().count("") == Count(0, "bytes")


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_rendered_chat_has_one_bos_on_the_server(adds_bos: bool) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    fast = Tokenizer(WordLevel({"<s>": 0, "a": 1, "user": 2, "?": 3}, unk_token="?"))
    fast.pre_tokenizer = WhitespaceSplit()
    if adds_bos:
        fast.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", unk_token="?")
    wrapped.chat_template = "<s> {% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"
    face = ClientTokenizer(wrapped)
    text = face.render([{"role": "user", "content": "a"}])
    assert list(face.ids(text, start=True)) == wrapped.encode(text)  # what the server will do
    assert wrapped.encode(text) == [0, 2, 1]


def test_rendering_without_a_template_says_what_is_missing() -> None:
    with pytest.raises(CapabilityError, match="chat template"):
        ClientTokenizer(Words()).render([{"role": "user", "content": "a"}])
    with pytest.raises(InputError, match="decode"):
        ClientTokenizer(object())


# ---- waiting ------------------------------------------------------------------------------------


@given(failures=st.integers(1, 30), base=st.floats(0, 5), cap=st.floats(0, 30))
def test_waits_are_jittered_and_bounded(failures: int, base: float, cap: float) -> None:
    wait = Retry(base=base, cap=cap).wait(failures)
    assert 0 <= wait <= cap
    assert wait <= 1.5 * base * 2 ** (failures - 1) + 1e-9


def test_no_attempt_is_made_when_waiting_is_useless() -> None:
    calls = []

    def attempt() -> None:
        calls.append(1)
        raise RetriableError(EndpointError("busy"), wait=30)

    clock = Clock(Timeouts(total=0.5), None)
    start = time.monotonic()
    with pytest.raises(EndpointError, match="busy"):
        attempt_until(attempt, clock, Retry(), 4)
    assert len(calls) == 1
    assert time.monotonic() - start < 0.4
