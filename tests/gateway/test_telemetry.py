"""Traces: what is in them, what never is, and that a real collector receives them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from recording_upstream import Running
from servers import Serving, serving

from json_server import running
from outlay.errors import DependencyError, InputError
from outlay.gateway.app import build
from outlay.gateway.config import read
from outlay.gateway.run import run
from outlay.gateway.store import admin
from outlay.gateway.windows import Window

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
MORE = """
[models.stall]
upstream = "recorder"

[models.flaky]
upstream = "again"

[upstreams.again]
url = {upstream}
backoff = 0.01

[telemetry]
endpoint = {collector}
service = "gate"
sample = {sample}

[telemetry.headers]
authorization = "Bearer collectors-secret"
"""


class Collector(HTTPServer):
    """Receives OTLP over HTTP, as a collector does; the real protocol's messages."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.raw: list[bytes] = []
        self.credentials: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"


class _Receive(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/traces":
            self.server.raw.append(raw)
            self.server.credentials.add(self.headers.get("authorization", ""))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with running(Collector()) as server:
        yield server


def more(recorder: Running, collector: str, sample: float = 1.0) -> str:
    quoted = {"upstream": json.dumps(recorder.url), "collector": json.dumps(collector)}
    return MORE.format(**quoted, sample=sample)


@pytest.fixture(scope="module")
def gateway(
    recorder: Running, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("telemetry")
    with serving(folder, recorder.url, more=more(recorder, collector.url)) as running:
        yield running


@pytest.fixture
def memory(gateway: Serving) -> Iterator[InMemorySpanExporter]:
    yield from watched(gateway)


def watched(gateway: Serving) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    telemetry = gateway.gateway.telemetry
    assert telemetry is not None
    telemetry.provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield exporter
    exporter.shutdown()


def until(holds: Callable[[], object]) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, "it did not come about within 30 seconds"
        time.sleep(0.02)


def spans(memory: InMemorySpanExporter, many: int = 4) -> list[ReadableSpan]:
    """All spans once there are `many`, the request's own among them; in order of their begin."""

    def ended() -> bool:
        names = [each.name for each in memory.get_finished_spans()]
        return len(names) >= many and "POST /v1/chat/completions" in names

    until(ended)
    return sorted(memory.get_finished_spans(), key=lambda each: each.start_time or 0)


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def test_a_request_has_a_span_with_admission_upstream_and_settle_as_children(
    gateway: Serving, memory: InMemorySpanExporter
) -> None:
    token = gateway.key("children").token
    answer = gateway.chat(token, max_tokens=5, temperature=0.5)
    assert answer.status_code == 200
    request, admission, sent, settle = spans(memory)
    assert [each.name for each in (request, admission, sent, settle)] == [
        "POST /v1/chat/completions",
        "admission",
        "chat plain",
        "settle",
    ]
    assert request.context is not None
    assert request.parent is None
    assert request.kind is SpanKind.SERVER
    assert sent.kind is SpanKind.CLIENT
    for child in (admission, sent, settle):
        assert child.parent is not None
        assert child.parent.span_id == request.context.span_id
        assert (child.start_time or 0) >= (request.start_time or 0)
    for child in (admission, sent):  # an answer does not wait for its settlement
        assert (child.end_time or 0) <= (request.end_time or 0)
    usage = answer.json()["usage"]
    assert attributes(request)["http.response.status_code"] == 200
    assert attributes(request)["gen_ai.request.model"] == "plain"
    assert attributes(request)["outlay.route"] == "default"
    assert attributes(request)["outlay.request"] == answer.headers["x-request-id"]
    assert attributes(admission)["outlay.admission"] == "granted"
    reserved = attributes(admission)["outlay.reserved.tokens"]
    assert isinstance(reserved, int)
    assert reserved >= usage["total_tokens"]
    said = attributes(sent)
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.provider.name"] == "recorder"
    assert said["gen_ai.request.max_tokens"] == 5
    assert said["gen_ai.request.temperature"] == 0.5
    assert said["gen_ai.request.stream"] is False
    assert said["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert said["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert said["server.address"] == "127.0.0.1"
    assert attributes(settle)["outlay.charge"] == "used"
    charged = int(answer.headers["x-outlay-charged-tokens"])
    assert attributes(settle)["outlay.charged.tokens"] == charged
    assert all(each.status.status_code is StatusCode.UNSET for each in spans(memory))


def test_the_callers_trace_goes_on_and_reaches_the_upstream(
    gateway: Serving, memory: InMemorySpanExporter, recorder: Running
) -> None:
    token = gateway.key("traced").token
    headers = {
        "authorization": f"Bearer {token}",
        "traceparent": f"00-{TRACE}-{PARENT}-01",
        "tracestate": "vendor=7",
    }
    body = {"model": "plain", "messages": [{"role": "user", "content": "hello"}]}
    url = f"{gateway.url}/v1/chat/completions"
    assert httpx.post(url, json=body, headers=headers, timeout=60).status_code == 200
    request, _, sent, _ = spans(memory)
    assert request.parent is not None
    assert sent.context is not None
    assert f"{request.parent.span_id:016x}" == PARENT
    assert f"{sent.context.trace_id:032x}" == TRACE
    got = {name.lower(): value for name, value in recorder.handler.headers[-1].items()}
    assert got["traceparent"] == f"00-{TRACE}-{sent.context.span_id:016x}-01"
    assert got["tracestate"] == "vendor=7"


def test_a_traceparent_that_is_none_begins_a_trace_of_its_own(
    gateway: Serving, memory: InMemorySpanExporter
) -> None:
    token = gateway.key("garbled").token
    headers = [
        (b"authorization", f"Bearer {token}".encode()),
        (b"traceparent", b"00-zz-\xff-01"),
    ]
    body = {"model": "plain", "messages": [{"role": "user", "content": "hello"}]}
    url = f"{gateway.url}/v1/chat/completions"
    assert httpx.post(url, json=body, headers=headers, timeout=60).status_code == 200
    assert spans(memory)[0].parent is None


def test_a_stream_says_when_its_first_piece_came_and_what_was_used(
    gateway: Serving, memory: InMemorySpanExporter
) -> None:
    token = gateway.key("streams").token
    answer = gateway.chat(token, model="drip", stream=True, max_tokens=3)
    assert answer.text.rstrip().endswith("[DONE]")
    request, _, sent, _ = spans(memory)
    said = attributes(sent)
    assert said["gen_ai.request.stream"] is True
    assert said["gen_ai.usage.output_tokens"] == 3
    first = said["gen_ai.response.time_to_first_chunk"]
    assert isinstance(first, float)
    whole = ((request.end_time or 0) - (request.start_time or 0)) / 1e9
    assert 0 < first < whole


def test_a_refused_admission_says_why_and_nothing_was_sent(
    gateway: Serving, memory: InMemorySpanExporter
) -> None:
    made = gateway.key("poor")
    window = Window("total")
    budget = {"name": "nothing", "unit": "tokens", "amount": 1, "window": window}
    gateway.call(admin.create_budget, actor="test", key_id=made.key.id, **budget)
    assert gateway.chat(made.token).status_code == 402
    request, admission = spans(memory, 2)
    assert attributes(admission)["outlay.admission"] == "spent"
    assert attributes(request)["http.response.status_code"] == 402


def test_every_attempt_has_its_own_spans(
    gateway: Serving, memory: InMemorySpanExporter, recorder: Running
) -> None:
    token = gateway.key("again").token
    recorder.handler.calls = 0  # it fails at every odd call
    assert gateway.chat(token, model="flaky").status_code == 200
    found = spans(memory, 7)
    names = [each.name for each in found]
    assert names[1:] == ["admission", "chat flaky", "settle"] * 2
    failed, worked = found[2], found[5]
    assert attributes(failed)["error.type"] == "503"
    assert failed.status.status_code is StatusCode.ERROR
    assert worked.status.status_code is StatusCode.UNSET
    assert attributes(found[3])["outlay.charge"] == "none"
    assert [attributes(found[at])["outlay.attempt"] for at in (1, 4)] == [1, 2]


def test_a_caller_that_goes_away_is_charged_as_unknown_and_its_spans_end(
    gateway: Serving, memory: InMemorySpanExporter
) -> None:
    token = gateway.key("leaver").token
    body = {"model": "stall", "messages": [{"role": "user", "content": "hello"}]}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{gateway.url}/v1/chat/completions",
            json=body,
            headers={"authorization": f"Bearer {token}"},
            timeout=0.5,
        )
    request, _, sent, settle = spans(memory)
    assert attributes(sent)["error.type"] == "cancelled"
    assert attributes(settle)["outlay.charge"] == "unknown"
    assert attributes(request)["error.type"] == "disconnected"


def test_a_request_with_an_unknown_key_makes_no_span(
    gateway: Serving, memory: InMemorySpanExporter
) -> None:
    assert gateway.chat("olk_" + "0" * 16 + "_" + "x" * 43).status_code == 401
    token = gateway.key("known").token
    assert gateway.chat(token, model="nobody").status_code == 404
    (request,) = spans(memory, 1)
    assert attributes(request)["http.response.status_code"] == 404


def test_a_real_collector_gets_the_spans_and_neither_prompts_nor_answers_nor_keys(
    recorder: Running, tmp_path: Path
) -> None:
    with running(Collector()) as server:
        with serving(tmp_path, recorder.url, more=more(recorder, server.url)) as gateway:
            made = gateway.key("private")
            messages = [{"role": "user", "content": "my-very-private-question"}]
            assert gateway.chat(made.token, messages=messages).status_code == 200
            answer = gateway.chat(made.token, messages=messages, stream=True)
            assert answer.status_code == 200
        # the gateway has stopped: what was left has been exported
        sent = [ExportTraceServiceRequest.FromString(raw) for raw in server.raw]
        assert {
            value.value.string_value
            for request in sent
            for resource in request.resource_spans
            for value in resource.resource.attributes
            if value.key == "service.name"
        } == {"gate"}
        names = [
            span.name
            for request in sent
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        assert sorted(names) == sorted(
            ["POST /v1/chat/completions", "admission", "chat plain", "settle"] * 2
        )
        assert server.credentials == {"Bearer collectors-secret"}
        raw = b"".join(server.raw)
        secret = made.token.rsplit("_", 1)[1]
        for private in ("my-very-private-question", "word", made.token, secret, made.key.digest):
            assert private.encode() not in raw


def test_only_the_callers_sampled_traces_are_kept_where_the_share_is_zero(
    recorder: Running, collector: Collector, tmp_path: Path
) -> None:
    with serving(tmp_path, recorder.url, more=more(recorder, collector.url, 0.0)) as gateway:
        memory = next(watched(gateway))
        token = gateway.key("few").token
        assert gateway.chat(token).status_code == 200
        httpx.post(
            f"{gateway.url}/v1/chat/completions",
            json={"model": "plain", "messages": [{"role": "user", "content": "hello"}]},
            headers={
                "authorization": f"Bearer {token}",
                "traceparent": f"00-{TRACE}-{PARENT}-01",
            },
            timeout=60,
        )
        assert len(spans(memory)) == 4
        assert {f"{each.context.trace_id:032x}" for each in spans(memory) if each.context} == {
            TRACE
        }


def test_a_collector_that_is_down_costs_no_request(recorder: Running, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}/v1/traces"
        toml = more(recorder, dead).replace("sample", "timeout = 0.5\nsample")
        with serving(tmp_path, recorder.url, more=toml) as gateway:
            token = gateway.key("alone").token
            assert gateway.chat(token).status_code == 200


def test_without_a_collector_nothing_is_loaded_and_no_trace_is_forwarded(
    recorder: Running, tmp_path: Path
) -> None:
    with serving(tmp_path, recorder.url) as gateway:
        token = gateway.key("untraced").token
        answer = httpx.post(
            f"{gateway.url}/v1/chat/completions",
            json={"model": "plain", "messages": [{"role": "user", "content": "hello"}]},
            headers={
                "authorization": f"Bearer {token}",
                "traceparent": f"00-{TRACE}-{PARENT}-01",
            },
            timeout=60,
        )
        assert answer.status_code == 200
    assert "traceparent" not in {name.lower() for name in recorder.handler.headers[-1]}
    code = (
        "import sys\n"
        "from outlay.gateway.app import build\n"
        "from outlay.gateway.config import read\n"
        "build(read(sys.argv[1]))\n"
        "print([each for each in sys.modules if each.startswith('opentelemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "gateway.toml")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_a_missing_package_is_said_at_the_start_and_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(
        f'[store]\nurl = "sqlite:///{tmp_path}/gateway.db"\n'
        '[telemetry]\nendpoint = "http://127.0.0.1:4318/v1/traces"\n'
    )
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "outlay.gateway.telemetry", raising=False)
    with pytest.raises(DependencyError, match=r"outlay\[otel\]"):
        build(read(path))
    with pytest.raises(DependencyError, match=r"outlay\[otel\]"):
        run(read(path), path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('endpoint = "ftp://127.0.0.1/v1/traces"', "no http"),
        ('endpoint = "http://me:secret@127.0.0.1/v1/traces"', "use headers"),
        ('endpoint = "http://[::1/v1/traces"', "telemetry.endpoint"),
        ("sample = 1.5", "telemetry.sample"),
        ("timeout = 0", "telemetry.timeout"),
        ('service = ""', "telemetry.service"),
        ("colour = 1", "telemetry.colour"),
    ],
)
def test_settings_that_cannot_be_are_refused(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(f"[telemetry]\n{line}\n")
    with pytest.raises(InputError, match=said) as refused:
        read(path)
    assert "secret" not in str(refused.value)


def test_a_collector_at_an_address_that_is_not_public_must_be_meant(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    text = (
        f'[store]\nurl = "sqlite:///{tmp_path}/gateway.db"\n'
        '[telemetry]\nendpoint = "http://10.0.0.7:4318/v1/traces"\n'
    )
    path.write_text(text)
    with pytest.raises(InputError, match="private = true"):
        build(read(path))
    path.write_text(f"{text}private = true\n")
    assert build(read(path)).state.gateway.telemetry is not None


def test_a_name_that_resolves_to_a_private_address_gets_nothing(
    recorder: Running,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = socket.getaddrinfo

    def resolve(host: str, *args: object, **more: object) -> object:
        if host == "collector.example":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.7", 4318))]
        return real(host, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    toml = more(recorder, "http://collector.example:4318/v1/traces")
    toml = toml.replace("sample", "timeout = 0.5\nsample")
    with serving(tmp_path, recorder.url, more=toml) as gateway:
        assert gateway.chat(gateway.key("lost").token).status_code == 200
    assert "10.0.0.7: not public" in caplog.text
