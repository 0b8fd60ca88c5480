"""Requests through a real gateway to a real, recording upstream: what is charged, what is said."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from recording_upstream import Running
from servers import Serving, serving
from sqlalchemy import select

from outlay.gateway.store import admin, schema
from outlay.gateway.store.engine import open_engine
from outlay.gateway.windows import Window

NAMES = (
    *("gate", "slow", "liar", "silent", "html", "error200", "stall", "cut", "garbage", "fat"),
    *("status500", "status503", "status400", "status401", "redirect", "flaky"),
)
MORE = "".join(f'\n[models.{name}]\nupstream = "{name}"\n' for name in NAMES)
MORE += """
[models.images]
upstream = "recorder"
image_tokens = 100
tool_tokens = 10

[models.small]
upstream = "recorder"
context = 200

[models.unreachable]
upstream = "nowhere"

[upstreams.nowhere]
url = "http://127.0.0.1:9/v1"
retries = 0

[routes.strict]
models = ["never"]
"""


@pytest.fixture(scope="module")
def gateway(recorder: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("gateway")
    ups = "".join(
        f'\n[upstreams.{name}]\nurl = "{recorder.url}"\nretries = {int(name == "flaky")}\n'
        "backoff = 0.01\nidle_timeout = 1\nbreaker_failures = 100\n"
        for name in NAMES
    )
    with serving(folder, recorder.url, more=ups + MORE) as running:
        yield running


class Caller:
    """A key with a budget, and what it was charged."""

    def __init__(self, gateway: Serving, amount: int = 10**6, **knobs: Any) -> None:
        self.gateway = gateway
        made = gateway.key(f"caller-{time.monotonic_ns()}")
        self.id, self.token = made.key.id, made.token
        fields = {
            "actor": "test",
            "name": f"budget of {self.id}",
            "unit": "tokens",
            "amount": amount,
            "window": Window("day"),
            "key_id": self.id,
            **knobs,
        }
        self.budget = gateway.call(admin.create_budget, **fields)

    def post(self, path: str = "chat/completions", **body: Any) -> httpx.Response:
        if path == "chat/completions":
            body = {"model": "plain", "messages": [{"role": "user", "content": "hi you"}], **body}
        headers = {"authorization": f"Bearer {self.token}", **body.pop("headers", {})}
        return httpx.post(f"{self.gateway.url}/v1/{path}", json=body, headers=headers, timeout=60)

    def stream(self, **body: Any) -> tuple[int, list[Any]]:
        """Status and the events of a stream."""
        answer = self.post(stream=True, **body)
        return answer.status_code, events(answer.text)

    def rows(self) -> list[Any]:
        def read(connection: Any, now: float) -> list[Any]:
            where = schema.ledger.c.key_id == self.id
            return list(connection.execute(select(schema.ledger).where(where)))

        return self.gateway.call(read)

    def row(self) -> Any:
        """The only ledger row, once there is one."""
        for _ in range(200):
            if found := self.rows():
                (one,) = found
                return one
            time.sleep(0.05)
        pytest.fail("nothing was settled")

    def used(self) -> tuple[int, int]:
        """Settled and reserved tokens."""

        def read(connection: Any, now: float) -> Any:
            where = schema.counters.c.budget_id == self.budget.id
            return connection.execute(select(schema.counters).where(where)).one_or_none()

        row = self.gateway.call(read)
        return (0, 0) if row is None else (row.settled, row.reserved)


def events(text: str) -> list[Any]:
    found = []
    for block in text.split("\n\n"):
        data = "".join(line[6:] for line in block.splitlines() if line.startswith("data: "))
        if data:
            found.append(data if data == "[DONE]" else json.loads(data))
    return found


def test_an_answer_is_passed_on_and_what_the_upstream_reports_is_charged(
    gateway: Serving, recorder: Running
) -> None:
    caller = Caller(gateway)
    answer = caller.post(max_tokens=5)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "word word word word word"
    usage = answer.json()["usage"]
    row = caller.row()
    assert (row.kind, row.prompt, row.output) == ("settled", usage["prompt_tokens"], 5)
    assert row.nanousd == usage["prompt_tokens"] * 1000 + 5 * 2000
    assert answer.headers["x-outlay-charged-tokens"] == str(usage["total_tokens"])
    assert answer.headers["x-outlay-remaining-tokens"] == str(10**6 - usage["total_tokens"])
    assert answer.headers["x-request-id"] == row.request
    assert caller.used() == (usage["total_tokens"], 0)


def test_a_limit_that_is_missing_is_the_routes_and_only_what_was_reserved_is_asked_for(
    gateway: Serving, recorder: Running
) -> None:
    caller = Caller(gateway)
    caller.post()
    assert recorder.handler.bodies[-1]["max_tokens"] == 16
    caller.post(max_tokens=50, max_completion_tokens=7, max_output_tokens=999)
    sent = recorder.handler.bodies[-1]
    assert sent["max_tokens"] == 7
    assert not {"max_completion_tokens", "max_output_tokens"} & set(sent)


def test_headers_that_are_not_the_upstreams_business_stay_here(
    gateway: Serving, recorder: Running
) -> None:
    caller = Caller(gateway)
    caller.post(max_tokens=1, headers={"cookie": "a=b", "x-forwarded-for": "1.2.3.4"})
    sent = {name.lower(): value for name, value in recorder.handler.headers[-1].items()}
    assert "authorization" not in sent
    assert not {"cookie", "x-forwarded-for"} & set(sent)


@pytest.mark.parametrize(
    ("path", "body", "output"),
    [
        ("completions", {"prompt": "one two three", "max_tokens": 4}, 4),
        ("completions", {"prompt": ["a", "b"], "max_tokens": 4, "n": 2}, 8),
        ("responses", {"input": "one two", "max_output_tokens": 6}, 6),
        ("embeddings", {"input": ["one two", "three"]}, 0),
    ],
)
def test_every_endpoint_is_served_and_charged(
    gateway: Serving, path: str, body: dict[str, Any], output: int
) -> None:
    caller = Caller(gateway)
    answer = caller.post(path, model="plain", **body)
    assert answer.status_code == 200, answer.text
    assert caller.row().output == output


def test_a_stream_comes_in_pieces_and_its_usage_is_shown_only_if_asked_for(
    gateway: Serving,
) -> None:
    for asked in (False, True):
        caller = Caller(gateway)
        extra = {"stream_options": {"include_usage": True}} if asked else {}
        status, found = caller.stream(max_tokens=3, **extra)
        assert status == 200
        assert found[-1] == "[DONE]"
        texts = [e["choices"][0]["delta"].get("content", "") for e in found[:-1] if e["choices"]]
        assert "".join(texts) == "word word word "
        assert any(not e["choices"] for e in found[:-1]) == asked
        row = caller.row()
        assert (row.kind, row.output) == ("settled", 3)
        assert row.ttft is not None


def test_a_stream_of_responses_keeps_its_event_names(gateway: Serving) -> None:
    caller = Caller(gateway)
    answer = caller.post("responses", model="plain", input="hi", stream=True, max_output_tokens=2)
    assert "event: response.completed" in answer.text
    assert caller.row().output == 2


@pytest.mark.parametrize("stream", [False, True])
def test_an_upstream_that_reports_too_little_is_charged_by_what_it_sent(
    gateway: Serving, stream: bool
) -> None:
    caller = Caller(gateway)
    caller.post(model="liar", max_tokens=40, stream=stream)
    row = caller.row()
    # Without a tokenizer a whole answer has no count of our own.
    assert (row.kind, row.output) == ("settled", 40 if stream else 4)


@pytest.mark.parametrize("stream", [False, True])
def test_without_usage_the_whole_reservation_is_charged(gateway: Serving, stream: bool) -> None:
    caller = Caller(gateway)
    answer = caller.post(model="silent", max_tokens=9, stream=stream)
    assert answer.status_code == 200
    row = caller.row()
    assert row.kind == "unknown"
    assert row.prompt + row.output == row.reserved_tokens


@pytest.mark.parametrize(
    ("model", "stream", "status", "kind"),
    [
        ("html", False, 502, "unknown"),
        ("html", True, 502, "unknown"),
        ("error200", False, 502, "unknown"),
        ("redirect", False, 502, "unknown"),
        ("status500", False, 502, "unknown"),
        ("status503", False, 502, "released"),
        ("status400", False, 400, "released"),
        ("status401", False, 502, "released"),
        ("unreachable", False, 502, "released"),
        ("stall", False, 504, "unknown"),
    ],
)
def test_failures_are_told_and_charged_unless_nothing_can_have_been_spent(
    gateway: Serving, model: str, stream: bool, status: int, kind: str
) -> None:
    caller = Caller(gateway)
    answer = caller.post(model=model, max_tokens=5, stream=stream)
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert caller.row().kind == kind
    assert caller.used()[1] == 0


@pytest.mark.parametrize("model", ["cut", "garbage", "fat"])
def test_a_stream_that_breaks_ends_with_an_error_and_is_charged_in_full(
    gateway: Serving, recorder: Running, model: str
) -> None:
    caller = Caller(gateway)
    recorder.handler.gate.clear()
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}
    with httpx.stream(
        "POST",
        f"{gateway.url}/v1/chat/completions",
        json={**body, "stream": True},
        headers={"authorization": f"Bearer {caller.token}"},
        timeout=60,
    ) as answer:
        text = ""
        for piece in answer.iter_text():
            text += piece
            recorder.handler.gate.set()  # something has come: now it breaks
    assert answer.status_code == 200
    last = events(text)[-1]
    assert last["error"]["code"] == "upstream_error"
    assert caller.row().kind == "unknown"


def test_a_stream_that_stalls_is_given_up_with_an_error_and_charged_in_full(
    gateway: Serving, recorder: Running
) -> None:
    caller = Caller(gateway)
    recorder.handler.gate.clear()
    try:
        status, found = caller.stream(model="cut", max_tokens=20)
    finally:
        recorder.handler.gate.set()
    assert status == 200
    assert found[0]["choices"]
    assert "took too long" in found[-1]["error"]["message"]
    assert caller.row().kind == "unknown"


def test_a_failure_before_the_first_byte_is_tried_again_and_each_attempt_has_its_row(
    gateway: Serving,
) -> None:
    caller = Caller(gateway)
    answers = [caller.post(model="flaky", max_tokens=2) for _ in range(2)]
    assert [each.status_code for each in answers] == [200, 200]
    attempts = {(row.attempt, row.kind) for row in caller.rows()}
    assert (1, "released") in attempts
    assert (2, "settled") in attempts


def test_a_caller_that_goes_away_stops_the_upstream_and_pays_in_full(
    gateway: Serving, recorder: Running
) -> None:
    caller = Caller(gateway)
    before = recorder.handler.cancelled
    body = {
        "model": "drip",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "max_tokens": 400,
    }
    headers = {"authorization": f"Bearer {caller.token}"}
    url = f"{gateway.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=30) as answer:
        for _ in zip(range(3), answer.iter_lines(), strict=False):
            pass
    row = caller.row()
    assert row.kind == "unknown"
    assert row.note == "the caller went away"
    for _ in range(100):
        if recorder.handler.cancelled > before:
            break
        time.sleep(0.05)
    assert recorder.handler.cancelled > before


def test_a_spent_budget_refuses_and_says_when_it_renews(gateway: Serving) -> None:
    caller = Caller(gateway, amount=60)
    refused = caller.post(max_tokens=500)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "insufficient_quota"
    assert refused.headers["x-should-retry"] == "false"
    assert float(refused.headers["x-outlay-renews-at"]) > time.time()
    never = Caller(gateway, amount=60, window=Window("total"))
    assert never.post(max_tokens=500).status_code == 402
    assert caller.used() == (0, 0)


@contextmanager
def in_flight(recorder: Running, caller: Caller, **body: Any) -> Iterator[Future[httpx.Response]]:
    """A request that stays at the upstream while the block runs; its answer comes after it."""
    recorder.handler.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(caller.post, model="gate", **body)
        try:
            until = time.monotonic() + 30
            while not caller.used()[1]:
                assert time.monotonic() < until, "it was not admitted within 30 seconds"
                time.sleep(0.01)
            yield answer
        finally:
            recorder.handler.gate.set()


def test_a_budget_that_others_have_reserved_asks_to_wait(
    gateway: Serving, recorder: Running
) -> None:
    caller = Caller(gateway, amount=260)
    with in_flight(recorder, caller, max_tokens=100) as first:
        busy = caller.post(max_tokens=100)
        assert not first.done()
    assert busy.status_code == 429
    assert busy.json()["error"]["code"] == "budget_busy"
    assert busy.headers["retry-after"] == "1"
    assert "x-should-retry" not in busy.headers
    assert first.result().status_code == 200


def test_a_shrinking_budget_lowers_the_limit_to_what_is_left(
    gateway: Serving, recorder: Running
) -> None:
    caller = Caller(gateway, amount=200, mode="shrink")
    answer = caller.post(max_tokens=5000)
    assert answer.status_code == 200
    assert recorder.handler.bodies[-1]["max_tokens"] < 200
    assert sum(caller.used()) <= 200


def test_money_budgets_hold_in_nano_dollars_and_need_a_price(gateway: Serving) -> None:
    caller = Caller(gateway, amount=50_000, unit="nanousd")
    assert caller.post(max_tokens=500).status_code == 429
    assert caller.post(max_tokens=5).status_code == 429  # the worst case of the prompt alone
    rich = Caller(gateway, amount=10_000_000, unit="nanousd")
    assert rich.post(max_tokens=5).status_code == 200
    assert rich.used()[0] == rich.row().nanousd
    unpriced = rich.post(model="slow", max_tokens=5)
    assert unpriced.status_code == 400
    assert unpriced.json()["error"]["code"] == "model_unpriced"


def test_an_upstream_that_overruns_is_suspended_for_that_model(gateway: Serving) -> None:
    caller = Caller(gateway)
    answer = caller.post(model="greedy", max_tokens=60)
    assert answer.status_code == 200
    kinds = [row.kind for row in caller.rows()]
    assert kinds == ["settled", "overrun"]
    refused = caller.post(model="greedy", max_tokens=5)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "upstream_suspended"
    assert caller.post(max_tokens=5).status_code == 200
    gateway.call(admin.lift, actor="test", upstream="recorder", model="greedy")
    assert caller.post(model="greedy", max_tokens=1).status_code == 200


def test_an_idempotency_key_gives_the_stored_outcome_and_never_a_second_request(
    gateway: Serving, recorder: Running
) -> None:
    for stream in (False, True):
        caller = Caller(gateway)
        headers = {"idempotency-key": "once"}
        first = caller.post(max_tokens=3, headers=headers, stream=stream)
        calls = recorder.handler.calls
        again = caller.post(max_tokens=3, headers=headers, stream=stream)
        assert (again.status_code, again.text) == (200, first.text)
        assert again.headers["x-outlay-replayed"] == "true"
        assert recorder.handler.calls == calls
        assert len(caller.rows()) == 1
        other = caller.post(max_tokens=4, headers=headers, stream=stream)
        assert other.status_code == 422


def test_a_failure_that_cost_nothing_gives_its_idempotency_key_up(gateway: Serving) -> None:
    caller = Caller(gateway)
    headers = {"idempotency-key": "again"}
    for _ in range(2):
        assert caller.post(model="unreachable", max_tokens=2, headers=headers).status_code == 502
    same = caller.post(model="status500", max_tokens=2, headers={"idempotency-key": "other"})
    assert same.status_code == 502
    lost = caller.post(model="status500", max_tokens=2, headers={"idempotency-key": "other"})
    assert (lost.status_code, lost.json()["error"]["code"]) == (409, "idempotency_lost")


def test_a_retry_keeps_its_idempotency_key(gateway: Serving) -> None:
    caller = Caller(gateway)
    headers = {"idempotency-key": "retried"}
    answers = [caller.post(model="flaky", max_tokens=2, headers=headers) for _ in range(2)]
    assert [each.status_code for each in answers] == [200, 200]
    assert answers[1].headers["x-outlay-replayed"] == "true"


def test_a_duplicate_in_flight_gets_409(gateway: Serving, recorder: Running) -> None:
    caller = Caller(gateway)
    twin: Any = {"max_tokens": 3, "headers": {"idempotency-key": "twin"}}
    with in_flight(recorder, caller, **twin) as first, ThreadPoolExecutor(4) as pool:
        twins = list(pool.map(lambda _: caller.post(model="gate", **twin), range(4)))
        assert not first.done()
    assert [each.status_code for each in twins] == [409] * 4
    assert {each.json()["error"]["code"] for each in twins} == {"idempotency_in_flight"}
    assert first.result().status_code == 200
    again = caller.post(model="gate", **twin)
    assert again.status_code == 200
    assert again.headers["x-outlay-replayed"] == "true"
    assert len(caller.rows()) == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"service_tier": "priority"}, 400, "unsupported_parameter"),
        ({"prediction": {"type": "content", "content": "x"}}, 400, "unsupported_parameter"),
        ({"tools": [{"type": "web_search"}]}, 400, "unsupported_parameter"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "unbounded_content"),
        ({"model": "unknown"}, 404, "model_not_found"),
        ({"model": "small", "max_tokens": 500}, 400, "context_length_exceeded"),
        ({"max_tokens": 0}, 400, None),
        ({"max_tokens": "5"}, 400, None),
        ({"n": 99}, 400, None),
        ({"messages": []}, 400, None),
        ({"messages": "hi"}, 400, None),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "data:,"}}],
                    }
                ]
            },
            400,
            "unbounded_content",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, 400, None),
    ],
)
def test_what_has_no_bound_or_is_wrong_is_refused_before_it_costs_anything(
    gateway: Serving, body: dict[str, Any], status: int, code: str | None
) -> None:
    caller = Caller(gateway)
    answer = caller.post(**body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == code
    assert caller.rows() == []


def test_images_and_tools_with_a_declared_bound_are_served(gateway: Serving) -> None:
    caller = Caller(gateway)
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 50_000}}
    content = [{"type": "text", "text": "what?"}, part]
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    answer = caller.post(
        model="images", messages=[{"role": "user", "content": content}], tools=[tool], max_tokens=2
    )
    assert answer.status_code == 200
    row = caller.row()
    assert 100 < row.reserved_tokens < 1000  # the image by its bound, not by its bytes


def raw(gateway: Serving, token: str, body: bytes, **headers: str) -> httpx.Response:
    sent = {"authorization": f"Bearer {token}", "content-type": "application/json", **headers}
    url = f"{gateway.url}/v1/chat/completions"
    return httpx.post(url, content=body, headers=sent, timeout=60)


def test_bodies_that_cannot_be_read_are_refused(gateway: Serving) -> None:
    token = Caller(gateway).token
    assert raw(gateway, token, b"").status_code == 400
    assert raw(gateway, token, b"[1]").status_code == 400
    assert raw(gateway, token, b"\xff\xfe{}").status_code == 400
    assert raw(gateway, token, b'{"a":' * 2000 + b"1" + b"}" * 2000).status_code == 400
    deep = {"model": "plain", "messages": [{"role": "user", "content": "x"}], "a": 1}
    for _ in range(100):
        deep["a"] = [deep["a"]]  # type: ignore[assignment]
    answer = raw(gateway, token, json.dumps(deep).encode())
    assert "nests deeper" in answer.json()["error"]["message"]
    for media in ("text/plain", "application/json; charset=utf-16"):
        answer = raw(gateway, token, b"{}", **{"content-type": media})
        assert answer.status_code == 415
    assert raw(gateway, token, b"x" * 10_000_001).status_code == 413


def test_without_a_good_key_nothing_is_served(gateway: Serving) -> None:
    good = Caller(gateway).token
    bad = good[:-1] + ("A" if good[-1] != "A" else "B")
    for token in ("nonsense", bad, "olk_0000000000000000_" + "x" * 43, "é"):
        answer = httpx.post(
            f"{gateway.url}/v1/chat/completions",
            json={},
            headers={"authorization": f"Bearer {token}".encode()},
        )
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"


def test_a_revoked_key_is_refused_from_the_next_request_on(gateway: Serving) -> None:
    caller = Caller(gateway)
    assert caller.post(max_tokens=1).status_code == 200
    gateway.call(admin.revoke_key, actor="test", identity=caller.id)
    assert caller.post(max_tokens=1).status_code == 401


def test_unknown_keys_do_not_reach_the_database(gateway: Serving) -> None:
    before = gateway.gateway.store.batches
    began = time.monotonic()
    with httpx.Client() as client:
        for _ in range(200):
            token = "olk_" + "0" * 16 + "_" + "x" * 43
            headers = {"authorization": f"Bearer {token}"}
            assert client.get(f"{gateway.url}/v1/models", headers=headers).status_code == 401
    looks = 2 * (time.monotonic() - began) + 2
    upkeep = (time.monotonic() - began) + 4
    assert gateway.gateway.store.batches - before <= looks + upkeep


def test_callers_that_come_together_with_another_replicas_key_all_get_in(
    gateway: Serving,
) -> None:
    """A key that this worker has not read yet: whoever asks while it looks shares the look."""
    url = gateway.gateway.config.store.url.get_secret_value()
    engine = open_engine(url, "process")
    with engine.begin() as connection:
        made = admin.create_key(connection, time.time(), actor="test", name="elsewhere")
    engine.dispose()
    time.sleep(0.6)  # the last look is over
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: gateway.chat(made.token).status_code, range(32)))
    assert found == [200] * 32


def test_models_are_listed_for_the_key_that_asks(gateway: Serving) -> None:
    made = gateway.key("narrow", models=["pl*"])
    headers = {"authorization": f"Bearer {made.token}"}
    listed = httpx.get(f"{gateway.url}/v1/models", headers=headers).json()
    assert [each["id"] for each in listed["data"]] == ["plain"]
    assert gateway.chat(made.token, "slow").status_code == 403
    assert httpx.get(f"{gateway.url}/v1/models/plain", headers=headers).status_code == 200
    assert httpx.get(f"{gateway.url}/v1/models/slow", headers=headers).status_code == 404


def test_health_and_metrics_tell_what_is(gateway: Serving) -> None:
    assert httpx.get(f"{gateway.url}/health/live").json() == {"status": "live"}
    assert httpx.get(f"{gateway.url}/health/ready").json()["database"] is True
    text = httpx.get(f"{gateway.url}/metrics").text
    assert "outlay_requests_total" in text
    assert "olk_" not in text


def test_pages_that_are_not_there_and_wrong_methods_are_said_in_json(gateway: Serving) -> None:
    missing = httpx.get(f"{gateway.url}/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert httpx.get(f"{gateway.url}/v1/chat/completions").status_code == 405


def test_nothing_a_thousand_requests_do_at_once_exceeds_the_budget(
    gateway: Serving, recorder: Running
) -> None:
    caller = Caller(gateway, amount=3000, window=Window("total"))
    served = len(recorder.rows)
    lock = threading.Lock()
    codes: list[int] = []
    with httpx.Client(limits=httpx.Limits(max_connections=50), timeout=60) as client:

        def one(_: int) -> None:
            body = {
                "model": "plain",
                "messages": [{"role": "user", "content": "hi you"}],
                "max_tokens": 20,
                "user": caller.id,
            }
            headers = {"authorization": f"Bearer {caller.token}"}
            answer = client.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers)
            with lock:
                codes.append(answer.status_code)

        with ThreadPoolExecutor(50) as pool:
            list(pool.map(one, range(300)))
    mine = [row for row in recorder.rows[served:] if row["user"] == caller.id]
    total = sum(row["prompt"] + row["output"] for row in mine)
    assert total <= 3000
    assert codes.count(200) == len(mine)
    assert set(codes) <= {200, 402, 429}
    settled, reserved = caller.used()
    assert (settled, reserved) == (total, 0)


def test_the_configurations_file_is_read_again_when_it_changes(
    recorder: Running, tmp_path: Path
) -> None:
    from outlay.gateway.app import reload
    from outlay.gateway.config import read

    with serving(tmp_path, recorder.url) as running:
        token = running.key("a").token
        assert running.chat(token, "slow").status_code == 404
        path = tmp_path / "gateway.toml"
        path.write_text(path.read_text() + '\n[models.slow]\nupstream = "recorder"\n')

        async def again() -> None:
            reload(running.gateway, read(path))

        running.wait(again())
        assert running.chat(token, "slow").status_code == 200
