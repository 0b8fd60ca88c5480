"""Every way in which an upstream can fail or lie, against a real server that does it."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
from misbehaving_server import (
    MODEL,
    Upstream,
    Words,
    answer,
    drips,
    fails,
    hangs,
    piece,
    says,
    sends,
    streams,
    upstream,
    usage,
)

from outlay.budget import Budget
from outlay.cost import Price
from outlay.errors import BudgetError, CapabilityError, EndpointError, InputError
from outlay.models.base import Account, Capabilities, Model, SamplingParams
from outlay.models.endpoint import EndpointModel
from outlay.models.retry import Retry, Timeouts

FAST = Retry(attempts=3, base=0.01)
FOUR = SamplingParams(max_tokens=4)
PROMPT = "one two three"
GOOD = says("a b c", usage=usage(3, 3))


def model(server: Upstream, **knobs: Any) -> EndpointModel:
    knobs = {"tokenizer": Words(), "retry": FAST, **knobs}
    return EndpointModel(server.url, MODEL, **knobs)


def test_an_endpoint_is_a_model() -> None:
    with upstream(GOOD) as server:
        tiny = model(server)
        tiny.capabilities  # noqa: B018
        assert isinstance(tiny, Model)


# ---- retries ------------------------------------------------------------------------------------


def test_server_errors_are_retried_and_counted() -> None:
    with upstream(fails(500), fails(503), GOOD) as server:
        result = model(server).generate(PROMPT, None, FOUR)
    assert result.text == "a b c"
    [entry] = result.ledger.entries
    assert (entry.prompt_new, entry.generated) == (3, 3)
    assert entry.retried == 2 * 3  # two prompts that may have been billed
    assert len(server.requests) == 3


def test_too_many_requests_waits_as_told_and_is_not_billed() -> None:
    with upstream(fails(429, retry_after="0.4"), GOOD) as server:
        start = time.monotonic()
        result = model(server).generate(PROMPT, None, FOUR)
    assert time.monotonic() - start >= 0.4
    assert result.ledger.totals().retried == 0


def test_a_wait_beyond_patience_is_an_error_at_once() -> None:
    with upstream(fails(429, "slow down", retry_after="3600")) as server:
        with pytest.raises(EndpointError, match=r"slow down.*3600 s.*retry\.patience=60"):
            model(server).generate(PROMPT, None, FOUR)
        assert len(server.requests) == 1


def test_retry_after_may_be_a_date() -> None:
    with upstream(fails(503, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"), GOOD) as server:
        assert model(server).generate(PROMPT, None, FOUR).text == "a b c"


def test_retries_are_bounded_and_booked_after_the_last() -> None:
    account = Account.open(Budget(tokens=10))
    with upstream(fails(500, "boom")) as server:
        with pytest.raises(EndpointError, match=r"500: boom \(3 attempts\)"):
            model(server).generate(PROMPT, None, FOUR, account=account)
        assert len(server.requests) == 3
    assert account.ledger.totals().retried == 9
    assert account.meter is not None
    assert account.meter.remaining() == 10  # the reservation was given back


def test_refusals_are_not_retried() -> None:
    with upstream(fails(400, "bad temperature")) as server:
        with pytest.raises(EndpointError, match="400: bad temperature"):
            model(server).generate(PROMPT, None, FOUR)
        assert len(server.requests) == 1


def test_a_cut_answer_is_retried_and_its_tokens_counted_as_possibly_billed() -> None:
    with upstream(sends(b'{"choices": [', length="500", connection="close"), GOOD) as server:
        result = model(server).generate(PROMPT, None, FOUR)
    assert result.text == "a b c"
    assert result.ledger.totals().retried == 3 + 4  # the prompt, and up to max_tokens


# ---- time ---------------------------------------------------------------------------------------


def test_a_server_that_is_down_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    with pytest.raises(EndpointError, match=rf"cannot reach {url}.*base_url"):
        EndpointModel(url, MODEL, retry=FAST).generate(PROMPT, None, FOUR)


def test_slow_headers_time_out_naming_the_knob() -> None:
    account = Account()
    with upstream(hangs(5)) as server:
        slow = model(server, timeouts=Timeouts(read=0.2))
        with pytest.raises(EndpointError, match=r"sent nothing for 0\.2 s.*timeouts\.read"):
            slow.generate(PROMPT, None, FOUR, account=account)
        assert len(server.requests) == 1  # it may have been billed: trying again could double it
    assert account.ledger.totals().retried == 3 + 4


def test_a_dripping_body_cannot_outlast_the_total() -> None:
    with upstream(drips(5)) as server:
        slow = model(server, timeouts=Timeouts(read=1, total=0.4))
        start = time.monotonic()
        with pytest.raises(EndpointError, match=r"0\.4 s.*timeouts\.total"):
            slow.generate(PROMPT, None, FOUR)
        assert time.monotonic() - start < 3


def test_a_stream_that_opens_and_says_nothing_may_have_been_billed() -> None:
    account = Account()
    with upstream(streams()) as server, pytest.raises(EndpointError, match="ended the stream"):
        list(model(server).stream(PROMPT, None, FOUR, account=account))
    assert account.ledger.totals().retried == 3 + 4


def test_time_that_runs_out_before_any_text_gives_an_empty_answer() -> None:
    with upstream(hangs(5)) as server:
        tiny = model(server)
        account = Account.open(Budget(seconds=0.3))
        [children] = tiny.extend([tiny.open(PROMPT)], FOUR, n=2, account=account)
    assert [(child.text, child.finish) for child in children] == [("", "budget")] * 2
    assert account.ledger.totals().retried == 3 + 2 * 4


def test_a_budget_in_seconds_keeps_what_had_arrived() -> None:
    events = [piece(f"w{i} ") for i in range(100)]
    with upstream(streams(*events, pause=0.1)) as server:
        start = time.monotonic()
        result = model(server).generate(PROMPT, Budget(seconds=0.5), SamplingParams(max_tokens=99))
        assert time.monotonic() - start < 4  # the whole stream takes 10 s
    assert result.finish_reason == "budget"
    assert result.text.startswith("w0 w1 ")
    [entry] = result.ledger.entries
    assert entry.estimated
    assert entry.generated == len(result.text.split())
    assert "time limit" in entry.note


# ---- streams ------------------------------------------------------------------------------------


def test_a_cut_stream_raises_and_books_what_was_received() -> None:
    account = Account.open(Budget(tokens=10))
    with upstream(streams(piece("a "), piece("b "), piece("c "))) as server:
        chunks = model(server).stream(PROMPT, None, SamplingParams(max_tokens=8), account=account)
        seen = []
        with pytest.raises(EndpointError, match="before the answer was complete"):
            seen.extend(chunk.text for chunk in chunks)
    [entry] = account.ledger.entries
    assert (entry.prompt_new, entry.generated, entry.estimated) == (3, 3, True)
    assert "ended the stream" in entry.note
    assert account.meter is not None
    assert account.meter.remaining() == 7


def test_a_stream_ends_with_the_generation() -> None:
    events = [piece("a "), piece("b", "stop"), {"choices": [], "usage": usage(3, 2)}, "[DONE]"]
    with upstream(streams(*events)) as server:
        *parts, last = model(server).stream(PROMPT, None, FOUR)
    assert [part.text for part in parts] == ["a ", "b"]
    assert last.generation is not None
    assert (last.generation.text, last.generation.finish_reason) == ("a b", "eos")
    [entry] = last.generation.ledger.entries
    assert (entry.generated, entry.estimated, entry.note) == (2, False, "")
    assert server.requests[0]["stream_options"] == {"include_usage": True}


def test_an_error_inside_a_stream_is_raised_with_its_message() -> None:
    with upstream(streams(piece("a "), {"error": {"message": "out of memory"}})) as server:
        account = Account()
        with pytest.raises(EndpointError, match="out of memory"):
            list(model(server).stream(PROMPT, None, FOUR, account=account))
    assert account.ledger.totals().generated == 1


def test_closing_a_stream_early_books_what_was_read() -> None:
    with upstream(streams(*[piece(f"w{i} ") for i in range(50)], pause=0.02)) as server:
        account = Account.open(Budget(tokens=60))
        chunks = model(server).stream(PROMPT, None, SamplingParams(max_tokens=50), account=account)
        assert [next(chunks).text, next(chunks).text] == ["w0 ", "w1 "]
        chunks.close()  # type: ignore[attr-defined]
    [entry] = account.ledger.entries
    assert entry.generated == 2
    assert "closed early" in entry.note
    assert account.meter is not None
    assert account.meter.remaining() == 58


def test_a_server_that_does_not_stream_still_answers() -> None:
    with upstream(GOOD) as server:
        *_, last = model(server).stream(PROMPT, None, FOUR)
    assert last.generation is not None
    assert last.generation.text == "a b c"


def test_a_refused_optional_field_is_left_out() -> None:
    done = streams(piece("a b", "stop"), "[DONE]")
    with (
        upstream(fails(422, "Unknown field: 'stream_options'"), done) as server,
        pytest.warns(UserWarning, match="refuses stream_options"),
    ):
        *_, last = model(server).stream(PROMPT, None, FOUR)
    assert last.generation is not None
    assert last.generation.text == "a b"
    assert "stream_options" not in server.requests[1]


# ---- usage --------------------------------------------------------------------------------------


def test_usage_that_disagrees_with_the_text_is_flagged_with_both_numbers() -> None:
    with upstream(says("a b c", usage=usage(3, 90))) as server:
        result = model(server).generate(PROMPT, None, SamplingParams(max_tokens=100))
    [entry] = result.ledger.entries
    assert entry.generated == 90  # what is billed
    assert "usage says 90 generated tokens, 3 counted" in entry.note


def test_prompt_usage_that_disagrees_is_flagged() -> None:
    with upstream(says("a b c", usage=usage(300, 3))) as server:
        result = model(server).generate(PROMPT, None, FOUR)
    assert result.ledger.notes() == [
        "usage says 300 prompt tokens, 3 counted from the local tokenizer"
    ]


def test_a_total_that_does_not_add_up_is_flagged() -> None:
    wrong = {**usage(3, 3), "total_tokens": 50}
    with upstream(says("a b c", usage=wrong)) as server:
        [note] = model(server).generate(PROMPT, None, FOUR).ledger.notes()
    assert "50" in note
    assert "6" in note


def test_under_reported_tokens_do_not_stretch_the_budget() -> None:
    probs = {"tokens": ["a", " b", " c"], "token_logprobs": [-1.0, -0.5, -0.1]}
    reply = answer("a b c", usage=usage(3, 0))
    reply["choices"][0]["logprobs"] = probs
    account = Account.open(Budget(tokens=5))
    with upstream(lambda handler, body: handler.json(reply)) as server:
        params = SamplingParams(max_tokens=4, logprobs=True)
        result = model(server).generate(PROMPT, None, params, account=account)
    assert result.logprobs == (-1.0, -0.5, -0.1)
    [entry] = account.ledger.entries
    assert entry.generated == 0
    assert "usage says 0 generated tokens, 3 counted" in entry.note
    assert account.meter is not None
    assert account.meter.remaining() == 2


@pytest.mark.parametrize("bad", [None, "many", {}, {"prompt_tokens": -1, "completion_tokens": 2}])
def test_missing_or_broken_usage_is_estimated(bad: Any) -> None:
    with upstream(says("a b c", usage=bad)) as server:
        result = model(server).generate(PROMPT, None, FOUR)
    [entry] = result.ledger.entries
    assert (entry.prompt_new, entry.generated, entry.estimated) == (3, 3, True)
    assert "no usage" in entry.note


def test_without_a_tokenizer_four_bytes_are_a_token() -> None:
    with upstream(says("x" * 40)) as server:
        result = model(server, tokenizer=None).generate("y" * 80, None, SamplingParams())
    [entry] = result.ledger.entries
    assert (entry.prompt_new, entry.generated, entry.estimated) == (20, 10, True)


def test_cached_prompt_tokens_are_booked_apart() -> None:
    counts = usage(3, 3, prompt_tokens_details={"cached_tokens": 2})
    with upstream(says("a b c", usage=counts)) as server:
        [entry] = model(server).generate(PROMPT, None, FOUR).ledger.entries
    assert (entry.prompt_new, entry.prompt_cached) == (1, 2)


def test_more_tokens_than_asked_for_are_booked_and_noted() -> None:
    account = Account.open(Budget(tokens=6))
    with upstream(says("a b c d e f g", usage=usage(3, 7))) as server:
        tiny = model(server)
        tiny.generate(PROMPT, None, FOUR, account=account)
        [entry] = account.ledger.entries
        assert entry.generated == 7
        assert "generated 7 tokens, 4 asked for" in entry.note
        with pytest.raises(BudgetError, match="exhausted"):
            tiny.generate(PROMPT, None, FOUR, account=account)
    assert len(server.requests) == 1


# ---- things that are ignored --------------------------------------------------------------------


def test_fewer_choices_than_n_are_asked_for_one_by_one() -> None:
    with upstream(GOOD) as server:
        tiny = model(server)
        root = tiny.open(PROMPT)
        warm = SamplingParams(max_tokens=4, temperature=1.0, seed=7)
        account = Account()
        with pytest.warns(UserWarning, match="gave 1 of n=3"):
            [children] = tiny.extend([root], warm, n=3, account=account)
        again = tiny.extend([root], warm, n=2)
    assert [child.text for child in children] == ["a b c"] * 3
    assert [request.get("n") for request in server.requests] == [3, None, None, None, None]
    seeds = [request["seed"] for request in server.requests]
    assert seeds[0] == 7
    assert len(set(seeds[:3])) == 3
    assert set(seeds[3:]) < set(seeds[:3])  # the same path, the same seed
    assert account.ledger.totals().prompt == 9  # each request paid for the prompt
    assert len({child.id for child in children}) == 3
    assert len(again[0]) == 2


def test_more_choices_than_n_are_booked_as_discarded() -> None:
    with upstream(says("a", "b c", usage=usage(3, 3))) as server:
        account = Account()
        tiny = model(server)
        [[child]] = tiny.extend([tiny.open(PROMPT)], FOUR, account=account)
    assert child.text == "a"
    account.ledger.deliver(child.ids())
    totals = account.ledger.totals()
    assert (totals.generated, totals.delivered, totals.discarded) == (3, 1, 2)
    assert any("more than was asked" in note for note in account.ledger.notes())


def test_ignored_logprobs_are_noticed() -> None:
    params = SamplingParams(max_tokens=4, logprobs=True)
    with upstream(GOOD) as server, pytest.warns(UserWarning, match="log-probabilities"):
        result = model(server).generate(PROMPT, None, params)
    assert result.logprobs is None


def test_an_ignored_stop_string_is_applied_here() -> None:
    long = says("a b STOP c d", finish="length", usage=usage(3, 5))
    params = SamplingParams(max_tokens=5, stop=("STOP",))
    with upstream(long) as server, pytest.warns(UserWarning, match="ignored stop"):
        result = model(server).generate(PROMPT, None, params)
    assert (result.text, result.finish_reason) == ("a b STOP", "stop")
    assert result.ledger.totals().generated == 5  # all of it is billed


def test_ignored_min_tokens_are_noticed() -> None:
    with upstream(GOOD) as server, pytest.warns(UserWarning, match="ignored min_tokens=9"):
        model(server).generate(PROMPT, None, SamplingParams(max_tokens=20, min_tokens=9))


def test_probing_finds_that_a_server_ignores_everything() -> None:
    with upstream(says("a b c d e", finish="length", usage=usage(9, 5))) as server:
        tiny = model(server, api="completions")
        found = tiny.capabilities
        asked = len(server.requests)
        assert tiny.capabilities is found
        assert len(server.requests) == asked  # probed once
    assert found == Capabilities(append=True)
    assert tiny.overhead.totals().calls == asked
    with pytest.raises(CapabilityError, match=r"prompt_logprobs.*echo"):
        tiny.score(tiny.open(PROMPT), ["x"])


def scorer(shift: int) -> Any:
    """A server whose words have log-probability minus their length; its echo is off by `shift`."""

    def react(handler: Any, body: dict[str, Any]) -> None:
        words = [" " + word for word in body["prompt"].split()]
        fresh = [" aa", " bbbb", " c", " dd"][: body["max_tokens"]]
        told = words + fresh if body.get("echo") else fresh
        values: list[float | None] = [1.0 - len(word) for word in told]
        if body.get("echo"):
            values = [None, *values[1 + shift :], *[-7.0] * shift]
        reply = answer("".join(told), finish="length", usage=usage(len(words), len(fresh)))
        reply["choices"][0]["logprobs"] = {"tokens": told, "token_logprobs": values}
        handler.json(reply if body.get("logprobs") else answer("".join(fresh)))

    return react


def test_echoed_logprobs_are_used_where_they_agree_with_sampling() -> None:
    with upstream(scorer(shift=0)) as server:
        tiny = model(server)
        account = Account.open(Budget(tokens=2))
        root = tiny.open(PROMPT)
        assert tiny.score(root, [" yes", " not at all"], account=account) == [
            (-3.0,),
            (-3.0, -2.0, -3.0),
        ]
        assert account.ledger.totals().generated == 2
        assert account.ledger.notes() == []
        with pytest.raises(BudgetError, match="exhausted"):
            tiny.score(root, [" no"], account=account)
        with pytest.raises(InputError, match="empty"):
            tiny.score(root, [""])


def test_echoed_logprobs_that_disagree_with_sampling_are_refused() -> None:
    with upstream(scorer(shift=1)) as server:
        tiny = model(server)
        assert tiny.capabilities.logprobs
        assert not tiny.capabilities.prompt_logprobs
        with pytest.raises(CapabilityError, match="agree"):
            tiny.score(tiny.open(PROMPT), [" yes"])


# ---- nonsense -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"choices": [', "not JSON"),
        (b"<html>hello</html>", "/v1"),
        (b"[1, 2]", "not an object"),
        (b'{"choices": []}', "without choices"),
        (b'{"choices": 5}', "not a list"),
        (b'{"error": {"message": "GPU fell off"}}', "GPU fell off"),
    ],
)
def test_nonsense_is_an_error_that_quotes_it(data: bytes, words: str) -> None:
    with upstream(sends(data)) as server:
        with pytest.raises(EndpointError, match=words):
            model(server).generate(PROMPT, None, FOUR)
        assert len(server.requests) == 1


def test_an_unknown_model_lists_the_ones_that_are_there() -> None:
    with (
        upstream(fails(404, "The model does not exist")) as server,
        pytest.raises(EndpointError, match=r"no model 'huge'; it has 'tiny', 'other'"),
    ):
        EndpointModel(server.url, "huge", retry=FAST).generate(PROMPT)


def test_a_forgotten_v1_is_found_out() -> None:
    with (
        upstream(fails(404, "Not Found")) as server,
        pytest.raises(EndpointError, match=rf"base_url='{server.root}/v1'"),
    ):
        EndpointModel(server.root, MODEL, retry=FAST).generate(PROMPT)


def test_a_missing_api_is_a_lack_of_capability() -> None:
    with (
        upstream(fails(404, "Not Found")) as server,
        pytest.raises(CapabilityError, match=r"/v1/completions.*api="),
    ):
        model(server).generate(PROMPT, None, FOUR)


def test_probing_falls_back_to_chat() -> None:
    def chat_only(handler: Any, body: dict[str, Any]) -> None:
        if handler.path.endswith("/chat/completions"):
            handler.json(answer("a b c d", usage=usage(5, 4)))
        else:
            handler.json({"detail": "Not Found"}, 404)

    with upstream(chat_only) as server:
        tiny = model(server)
        assert not tiny.capabilities.append
        hello = [{"role": "user", "content": "hello"}]
        assert tiny.generate(hello, None, FOUR).text == "a b c d"


def test_the_key_is_sent_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    secret = "sk-very-secret-key"

    def echoes(handler: Any, body: dict[str, Any]) -> None:
        handler.json({"error": {"message": f"bad key: {handler.headers['Authorization']}"}}, 401)

    caplog.set_level("DEBUG")
    with upstream(echoes) as server:
        tiny = model(server, api_key=secret)
        with pytest.raises(EndpointError, match="OPENAI_API_KEY") as caught:
            tiny.generate(PROMPT, None, FOUR)
    for text in (str(caught.value), repr(tiny), repr(vars(tiny)), caplog.text):
        assert secret not in text
    assert "Bearer ***" in str(caught.value)


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "from-env")
    seen = []

    def look(handler: Any, body: dict[str, Any]) -> None:
        seen.append(handler.headers["Authorization"])
        GOOD(handler, body)

    with upstream(look) as server:
        model(server).generate(PROMPT, None, FOUR)
        model(server, api_key="argument").generate(PROMPT, None, FOUR)
    assert seen == ["Bearer from-env", "Bearer argument"]


# ---- context, budgets, order --------------------------------------------------------------------


def test_a_prompt_beyond_a_known_context_is_refused_unsent() -> None:
    with upstream(GOOD) as server:
        server.rows = [{"id": MODEL, "max_model_len": 6}]
        tiny = model(server)
        assert tiny.context_length == 6
        with pytest.raises(InputError, match=r"3 tokens and max_tokens=4.*6 tokens"):
            tiny.generate(PROMPT, None, FOUR)
        assert server.requests == []


def test_a_context_refusal_of_the_server_is_the_users_error() -> None:
    text = "This model's maximum context length is 8 tokens, you asked for 4000"
    with upstream(fails(400, text)) as server, pytest.raises(InputError, match="4000"):
        model(server, tokenizer=None).generate(PROMPT, None, FOUR)


def test_max_tokens_is_what_the_budget_grants() -> None:
    with upstream(says("a b", finish="length", usage=usage(3, 2))) as server:
        result = model(server).generate(PROMPT, Budget(tokens=2), SamplingParams(max_tokens=50))
    assert server.requests[0]["max_tokens"] == 2
    assert result.finish_reason == "budget"


def test_a_budget_smaller_than_n_asks_for_fewer() -> None:
    def honest(handler: Any, body: dict[str, Any]) -> None:
        n = body.get("n", 1)
        handler.json(answer(*["a"] * n, finish="length", usage=usage(3, n)))

    with upstream(honest) as server:
        tiny = model(server)
        account = Account.open(Budget(tokens=3))
        [children] = tiny.extend([tiny.open(PROMPT)], FOUR, n=5, account=account)
    assert [request["n"] for request in server.requests] == [3]
    assert [child.text for child in children] == ["a", "a", "a", "", ""]
    assert [child.finish for child in children] == ["budget"] * 5
    assert account.ledger.totals().generated == 3


def test_a_budget_in_usd_bounds_the_tokens() -> None:
    price = Price(prompt=1.0, cached=0.5, generated=10.0)
    with upstream(says("a b", finish="length", usage=usage(3, 2))) as server:
        tiny = model(server, price=price)
        account = Account.open(Budget(usd=25e-6))  # 3e-6 for the prompt, 10e-6 a token
        tiny.generate(PROMPT, None, SamplingParams(max_tokens=50), account=account)
        assert server.requests[0]["max_tokens"] == 2
        assert account.meter is not None
        assert account.meter.usd == pytest.approx(23e-6)
        with pytest.raises(BudgetError):
            tiny.generate(PROMPT, None, FOUR, account=account)


def test_a_budget_in_usd_needs_prices() -> None:
    with upstream(GOOD) as server, pytest.raises(BudgetError, match="price="):
        model(server).generate(PROMPT, Budget(usd=1.0), FOUR)


def test_a_budget_over_all_tokens_settles_the_true_prompt() -> None:
    with upstream(says("a b c", usage=usage(5, 3))) as server:
        account = Account.open(Budget(tokens=20, counts="all"))
        model(server).generate(PROMPT, None, FOUR, account=account)
    assert account.meter is not None
    assert account.meter.spent == 8


def test_parallel_results_come_in_request_order() -> None:
    running, most = 0, 0

    def later_first(handler: Any, body: dict[str, Any]) -> None:
        nonlocal running, most
        with handler.server.lock:
            running += 1
            most = max(most, running)
        number = int(body["prompt"].split()[-1])
        time.sleep(0.05 * (6 - number))
        with handler.server.lock:
            running -= 1
        handler.json(answer(f"r{number}", usage=usage(2, 1)))

    with upstream(later_first) as server:
        tiny = model(server, max_concurrency=3)
        roots = [tiny.open(f"number {i}") for i in range(6)]
        rows = tiny.extend(roots, FOUR)
    assert most == 3
    assert [row[0].text for row in rows] == [f"r{i}" for i in range(6)]


def test_one_failure_among_many_books_the_rest() -> None:
    def mixed(handler: Any, body: dict[str, Any]) -> None:
        if body["prompt"].endswith("2"):
            time.sleep(0.2)
            handler.json({"error": "no"}, 400)
        else:
            handler.json(answer("ok", usage=usage(2, 1)))

    with upstream(mixed) as server:
        tiny = model(server)
        account = Account.open(Budget(tokens=100))
        roots = [tiny.open(f"number {i}") for i in range(3)]
        with pytest.raises(EndpointError, match="400"):
            tiny.extend(roots, FOUR, account=account)
    assert account.ledger.totals().generated == 2
    assert account.meter is not None
    assert account.meter.remaining() == 98


# ---- branches and bad input ---------------------------------------------------------------------


def test_a_branch_sends_its_whole_text() -> None:
    with upstream(says(" a", finish="length", usage=usage(3, 1))) as server:
        tiny = model(server)
        account = Account()
        [[child]] = tiny.extend([tiny.open(PROMPT)], FOUR)
        forced = tiny.append(child, " Wait", account=account)
        tiny.extend([forced], FOUR)
    assert server.requests[1]["prompt"] == "one two three a Wait"
    assert account.ledger.totals().forced == 1
    assert forced.finish == "forced"


def test_chats_continue_where_the_server_takes_it() -> None:
    chat = [{"role": "user", "content": "hello there"}]
    with upstream(says(" a", finish="length", usage=usage(3, 1))) as server:
        able = model(server, continue_final_message=True)
        able.extend([able.open(chat, "Well,")], FOUR)
        unable = model(server)
        [[child]] = unable.extend([unable.open(chat)], FOUR)
        with pytest.raises(CapabilityError, match="continue_final_message"):
            unable.append(child, "Wait")
        with pytest.raises(CapabilityError, match="continue_final_message"):
            unable.extend([child], FOUR)
    first = server.requests[0]
    assert first["messages"][-1] == {"role": "assistant", "content": "Well,"}
    assert (first["continue_final_message"], first["add_generation_prompt"]) == (True, False)


def test_finished_and_released_branches_are_not_extended() -> None:
    with upstream(GOOD) as server:
        tiny = model(server)
        root = tiny.open(PROMPT)
        [[ended]] = tiny.extend([root], FOUR)
        assert ended.finish == "eos"
        with pytest.raises(InputError, match="ended with end-of-text"):
            tiny.extend([ended], FOUR)
        tiny.release(root)
        with pytest.raises(InputError, match="released"):
            tiny.extend([root], FOUR)


def test_server_side_thinking_budgets_use_the_servers_own_field() -> None:
    chat = [{"role": "user", "content": "hello"}]
    with upstream(GOOD) as server:
        server.rows = [{"id": MODEL, "owned_by": "vllm"}]
        model(server).with_thinking_budget(64).generate(chat, None, FOUR)
        server.rows = [{"id": MODEL, "owned_by": "llamacpp"}]
        model(server).with_thinking_budget(0).generate(chat, None, FOUR)
        server.rows = [{"id": MODEL, "owned_by": "me"}]
        with pytest.raises(CapabilityError, match=r"me.*extra_body"):
            model(server).with_thinking_budget(64)
    assert server.requests[0]["thinking_token_budget"] == 64
    assert server.requests[1]["thinking_budget_tokens"] == 0


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"base_url": "localhost:8000"}, "scheme"),
        ({"base_url": "http://x/v1/chat/completions"}, "before it"),
        ({"model": ""}, "empty"),
        ({"api": "soap"}, "soap"),
        ({"max_concurrency": 0}, "max_concurrency=0"),
        ({"context_length": 0}, "context_length=0"),
        ({"tokenizer": object()}, "encode"),
        ({"api_key": "two words"}, "api_key"),
    ],
)
def test_bad_knobs_are_named(knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        EndpointModel(**{"base_url": "http://localhost/v1", "model": "m", **knobs})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Timeouts(read=0),
        lambda: Timeouts(total=-1),
        lambda: Retry(attempts=0),
        lambda: Retry(base=-1),
    ],
)
def test_bad_limits_are_refused(make: Any) -> None:
    with pytest.raises(InputError, match="must be"):
        make()


def test_prompts_of_the_wrong_kind_are_refused() -> None:
    tiny = EndpointModel("http://localhost:1/v1", MODEL, api="chat")
    with pytest.raises(CapabilityError, match="messages"):
        tiny.open("raw text")
    with pytest.raises(InputError, match="empty"):
        tiny.open("")
    rendered = EndpointModel("http://localhost:1/v1", MODEL, api="completions")
    with pytest.raises(CapabilityError, match="chat template"):
        rendered.open([{"role": "user", "content": "hi"}])
