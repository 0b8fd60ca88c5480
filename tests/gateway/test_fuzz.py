"""Whatever arrives as bytes or JSON, from callers or upstreams: read, bounded or refused."""

from __future__ import annotations

import contextlib
import json
from itertools import pairwise
from typing import Any

import orjson
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from outlay.gateway import sse
from outlay.gateway.bounds import BODIES, bound, parse
from outlay.gateway.config import Endpoint, ModelTable, Route
from outlay.gateway.problems import RequestError
from outlay.gateway.usage import Tally, read_usage

FAST = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)

# -- server-sent events ---------------------------------------------------------------------------

bits = st.sampled_from(
    [b"data", b":", b" ", b"\n", b"\r", b"\r\n", b"x", b"event: y", b"\xff", b"{}"]
)
streams = st.lists(bits | st.binary(max_size=6), max_size=30).map(b"".join)


@FAST
@given(stream=streams, cuts=st.lists(st.integers(0, 200), max_size=12))
@example(stream=b"data: a\r\n\r\ndata: b\r\rdata: c\n\n", cuts=[8, 9, 10, 19, 20])
def test_a_stream_gives_the_same_events_however_it_is_cut(stream: bytes, cuts: list[int]) -> None:
    whole = sse.Splitter()
    expected = list(whole.feed(stream))
    parts = sse.Splitter()
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    found: list[bytes] = []
    for start, end in pairwise(places):
        found += parts.feed(stream[start:end])
    assert found == expected
    assert parts.open == whole.open


@FAST
@given(
    events=st.lists(st.binary(min_size=1, max_size=20).filter(lambda e: not set(e) & set(b"\r\n")))
)
def test_what_was_written_as_events_is_read_as_events(events: list[bytes]) -> None:
    splitter = sse.Splitter()
    stream = b": hello\n\n" + b"".join(sse.event(each, b"name") for each in events)
    assert list(splitter.feed(stream)) == events
    assert not splitter.open


@FAST
@given(pieces=st.lists(streams, max_size=40))
def test_a_splitter_never_holds_more_than_one_event(pieces: list[bytes]) -> None:
    splitter = sse.Splitter(most=50)
    with contextlib.suppress(sse.EventTooLong):
        for piece in pieces:
            for event in splitter.feed(piece):
                assert len(event) <= 50 + len(piece)
            held = len(splitter._held) + sum(map(len, splitter._data))
            assert held <= 50


# -- usage ----------------------------------------------------------------------------------------

counts = st.integers(-5, 2**60) | leaves
names = ("prompt_tokens", "input_tokens", "completion_tokens", "output_tokens", "total_tokens")
usages = values | st.dictionaries(
    st.sampled_from([*names, "prompt_tokens_details", "completion_tokens_details"]),
    counts | st.dictionaries(st.sampled_from(["cached_tokens", "reasoning_tokens"]), counts),
)
parts = st.dictionaries(
    st.sampled_from(["content", "text", "tool_calls", "function", "arguments", "reasoning"]),
    values,
    max_size=3,
)
choices = st.dictionaries(
    st.sampled_from(["index", "delta", "message", "text", "finish_reason"]), values | parts
)
answers = st.fixed_dictionaries(
    {},
    optional={
        "usage": usages,
        "choices": values | st.lists(choices | values, max_size=3),
        "type": st.sampled_from(["response.output_text.delta", "response.completed"]) | values,
        "delta": values,
        "output": values | st.lists(parts, max_size=2),
        "output_index": values,
        "response": values | st.fixed_dictionaries({"usage": usages}),
    },
)


@FAST
@given(payload=usages)
def test_a_usage_that_is_believed_adds_up(payload: Any) -> None:
    usage = read_usage(payload)
    if usage is not None:
        assert 0 <= usage.cached <= usage.prompt < 2**53
        assert 0 <= usage.reasoning <= usage.output < 2**53


@FAST
@given(
    pieces=st.lists(answers, max_size=5), endpoint=st.sampled_from(list(BODIES)), own=st.booleans()
)
def test_a_tally_takes_any_json(pieces: list[Any], endpoint: Endpoint, own: bool) -> None:
    tally = Tally(endpoint, len if own else None)
    for piece in pieces:
        assert isinstance(tally.piece(piece), str)
    before = tally.output()
    assert before >= 0
    tally.whole(pieces[-1] if pieces else {})
    assert tally.output() >= before


# -- bounds ---------------------------------------------------------------------------------------

some = st.sampled_from
kinds = some(["text", "image_url", "input_audio", "file", "function", "custom", "message"]) | values
content = st.text(max_size=9) | st.lists(
    st.fixed_dictionaries({"type": kinds}, optional={"text": values, "image_url": values}) | values,
    max_size=3,
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": some(["user", "system"])}, optional={"content": content | values}
    )
    | st.dictionaries(some(["role", "content", "type", "output"]), content | values),
    min_size=1,
    max_size=3,
)
numbers = st.integers(-1, 40) | values
bodies = st.fixed_dictionaries(
    {"model": st.just("m") | values, "messages": messages, "input": content | messages},
    optional={
        "prompt": st.text() | st.lists(st.text(max_size=4)) | st.lists(st.integers(0, 9)) | values,
        "max_tokens": numbers,
        "max_completion_tokens": numbers,
        "max_output_tokens": numbers,
        "n": numbers,
        "best_of": numbers,
        "stream": st.booleans() | values,
        "stream_options": st.just({"include_usage": True}) | values,
        "tools": st.lists(st.fixed_dictionaries({"type": kinds, "function": values}), max_size=2),
        "functions": st.lists(st.dictionaries(st.text(max_size=4), values), max_size=2) | values,
        "service_tier": values,
        "response_format": values,
    },
)


def _text(value: Any) -> int:
    """UTF-8 bytes of every string inside: what a prompt can hold of a body, counted apart."""
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, dict):
        return sum(len(key.encode()) + _text(inner) for key, inner in value.items())
    return sum(_text(inner) for inner in value) if isinstance(value, list) else 0


@settings(FAST, max_examples=200)
@given(body=bodies, endpoint=st.sampled_from(list(BODIES)), declared=st.booleans())
@example(
    body={"model": "m", "messages": [{"content": [{"type": []}]}], "input": [{"type": {}}]},
    endpoint="chat",
    declared=True,
)
@example(
    body={"model": "m", "messages": [{"content": "x"}], "input": [{"type": {}}]},
    endpoint="responses",
    declared=True,
)
@example(
    body={"model": "m", "messages": [{"content": "x"}], "best_of": [None]},
    endpoint="chat",
    declared=False,
)
@example(
    body={"model": "m", "messages": [{"content": "x"}], "tools": [{"type": []}]},
    endpoint="chat",
    declared=True,
)
def test_a_body_is_refused_or_bounded_by_what_it_holds(
    body: dict[str, Any], endpoint: Endpoint, declared: bool
) -> None:
    constants = {"image_tokens": 50, "audio_tokens": 60, "tool_tokens": 7} if declared else {}
    model = ModelTable(upstream="u", **constants)
    raw = orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS) if is_json(body) else b"[1]"
    try:
        wanted = bound(parse(endpoint, raw, 64), model, Route(), 10_000)
    except RequestError:
        return
    fields = orjson.loads(raw)
    assert 0 <= wanted.output <= 10_000
    assert wanted.choices >= 1
    if endpoint == "chat":
        limits = [fields[n] for n in ("max_tokens", "max_completion_tokens") if fields.get(n)]
        assert wanted.output == min(limits, default=1024)
        assert wanted.choices == (max(fields.get("n") or 1, fields.get("best_of") or 1))
        pictures = json.dumps(fields["messages"])
        if "image_url" not in pictures and "audio" not in pictures:
            own = sum(_text(m.get("content")) for m in fields["messages"])
            own += sum(_text(tool) for tool in fields.get("tools") or ())
            assert wanted.prompt >= own


def is_json(value: Any) -> bool:
    try:
        orjson.dumps(value)
    except (TypeError, orjson.JSONEncodeError):
        return False
    return True


@FAST
@given(raw=st.binary(max_size=60), endpoint=st.sampled_from(list(BODIES)))
@example(raw=b"\xff\xfe{}", endpoint="chat")
@example(raw=b'{"model": "m", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", endpoint="chat")
@example(raw=b'{"model":"m","messages":[{}],"max_tokens":1e400}', endpoint="chat")
@example(raw=b'{"model":"m","messages":[{}],"max_tokens":' + b"9" * 5000 + b"}", endpoint="chat")
def test_bytes_that_are_no_body_are_refused(raw: bytes, endpoint: Endpoint) -> None:
    with contextlib.suppress(RequestError):
        bound(parse(endpoint, raw, 64), ModelTable(upstream="u"), Route(), 10_000)
