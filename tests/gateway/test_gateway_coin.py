"""Hidden reasoning through a live gateway: committed to, opened to its key alone, audited."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pydoc_data.topics import topics

import httpx
import pytest
import typer
from servers import Serving, serving
from typer.testing import CliRunner

from json_server import JsonHandler, JsonServer, running
from outlay.audit.serving import LiveProvider
from outlay.cli import audit as command
from outlay.errors import EndpointError, InputError
from outlay.gateway.app import check
from outlay.gateway.coin import reasoning, splitter
from outlay.gateway.config import ModelTable, Upstream, read
from outlay.gateway.local import LocalUpstream
from outlay.gateway.store.admin import split
from outlay.models import embedded

TEXT = topics["formatstrings"].encode("ascii", "ignore").decode()
ANSWER, REASONING = TEXT[:900], TEXT[900:6000]
MORE = """
[coin]
enabled = true
block = 32
{settings}

[models.thinker]
upstream = "thinker"
tokenizer = {tokenizer}

[models.padder]
upstream = "thinker"
tokenizer = {tokenizer}

[models.tagged]
upstream = "thinker"
tokenizer = {tokenizer}

[models.bare]
upstream = "thinker"

[models.quick]
upstream = "thinker"
tokenizer = {tokenizer}

[upstreams.thinker]
url = {url}
"""


def tokens() -> int:
    table = ModelTable(upstream="thinker", tokenizer=TOKENIZER)
    cut = splitter(table, LocalUpstream("none", Upstream(local="none")))
    assert cut is not None
    return len(cut(REASONING))


TOKENIZER = Path()


class Thinker(JsonHandler):
    """Answers with reasoning; `padder` bills twice as much of it, `quick` has none."""

    def do_POST(self) -> None:
        body = self.body()
        model = body["model"]
        thought = 0 if model == "quick" else tokens() * (2 if model == "padder" else 1)
        usage = {
            "prompt_tokens": 5,
            "completion_tokens": thought + 200,
            "total_tokens": thought + 205,
            "completion_tokens_details": {"reasoning_tokens": thought},
        }
        message = {"role": "assistant", "content": ANSWER}
        if model == "tagged":
            message["content"] = f"<think>{REASONING}</think>{ANSWER}"
        elif model != "quick":
            message["reasoning_content"] = REASONING
        shared = {"id": "x", "created": 1, "model": model}
        if not body.get("stream"):
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            kind = {"object": "chat.completion", "choices": [choice], "usage": usage}
            self.reply({**shared, **kind})
            return
        deltas = [
            {name: text[at : at + 700]}
            for name, text in reversed(message.items())
            for at in range(0, len(text), 700)
        ]
        events = [
            {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
        ]
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        events.append({"choices": [], "usage": usage})
        kind = {"object": "chat.completion.chunk", **shared}
        lines = [f"data: {json.dumps({**kind, **event})}\n\n" for event in events]
        self.send(("".join(lines) + "data: [DONE]\n\n").encode(), "text/event-stream")


@contextmanager
def gateway(folder: Path, settings: str = "") -> Iterator[Serving]:
    tokenizer = json.dumps(str(TOKENIZER))
    with running(JsonServer(Thinker)) as server:
        more = MORE.format(settings=settings, tokenizer=tokenizer, url=json.dumps(server.url))
        with serving(folder, server.url, more=more) as live:
            yield live


@pytest.fixture(scope="module", autouse=True)
def tokenizer() -> None:
    global TOKENIZER
    TOKENIZER = embedded.fetch()[0] / "tokenizer.json"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with gateway(tmp_path_factory.mktemp("coin")) as running:
        yield running


def cli(file: Path, live: Serving, key: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, dict]:
    app = typer.Typer()
    command.register(app)
    app.callback()(lambda: None)
    monkeypatch.setenv("AUDITORS_KEY", key)
    words = [str(file), "--url", f"{live.url}/coin", "--key-env", "AUDITORS_KEY"]
    words += ["--method", "block=32", "--seed", "7", "--json"]
    done = CliRunner().invoke(app, ["audit", *words])
    return done.exit_code, json.loads(done.stdout)


def ask(live: Serving, key: str, model: str, **fields: object) -> httpx.Response:
    answer = live.chat(key, model, max_tokens=8000, **fields)
    assert answer.status_code == 200
    return answer


def case(folder: Path, answer: httpx.Response) -> Path:
    data = answer.json()
    bill = {**data["usage"], "id": answer.headers["x-request-id"]}
    file = folder / "case.json"
    said = data["choices"][0]["message"]["content"]
    file.write_text(json.dumps({"bill": bill, "answer": said}), encoding="utf-8")
    return file


@pytest.mark.model
def test_an_honest_bill_is_audited_from_end_to_end(live, tmp_path, monkeypatch):
    key = live.key("payer").token
    status, said = cli(case(tmp_path, ask(live, key, "thinker")), live, key, monkeypatch)
    report = next(iter(said.values()))
    assert report["billed"] == tokens()
    assert report["verdict"] in ("benign", "inconclusive")
    assert status in (0, 4)
    assert 0 < report["token_share"] <= 0.04
    assert report["rounds"] >= 1


@pytest.mark.model
def test_a_bill_for_twice_the_reasoning_does_not_hold(live, tmp_path, monkeypatch):
    key = live.key("overcharged").token
    status, said = cli(case(tmp_path, ask(live, key, "padder")), live, key, monkeypatch)
    report = next(iter(said.values()))
    assert status == 3
    assert report["reasons"] == [f"{2 * tokens()} tokens were billed and {tokens()} committed to"]


@pytest.mark.model
def test_only_the_key_that_made_the_request_may_audit_it(live):
    mine, other = live.key("mine").token, live.key("other").token
    name = ask(live, mine, "thinker").headers["x-request-id"]
    provider = LiveProvider(f"{live.url}/coin", name, key=mine)
    assert provider.commit().tokens == tokens()
    for key, status in ((other, 404), (live.token, 404), ("", 401), ("outlay-wrong", 401)):
        with pytest.raises(EndpointError, match=f"status {status}"):
            LiveProvider(f"{live.url}/coin", name, key=key).commit()
    headers = {"authorization": f"Bearer {mine}"}
    early = "req_early"
    owner = split(mine)[0]
    live.gateway.coin.store.announce(early, owner)
    asked = httpx.post(f"{live.url}/coin/commit", json={"id": early}, headers=headers)
    assert (asked.status_code, asked.headers["retry-after"]) == (409, "1")
    live.gateway.coin.store.forget(early)


@pytest.mark.model
def test_streams_and_tags_are_committed_to_like_whole_answers(live):
    key = live.key("streamer").token
    found = []
    for model, fields in (("thinker", {}), ("thinker", {"stream": True}), ("tagged", {})):
        answer = ask(live, key, model, **fields)
        name = answer.headers["x-request-id"]
        found.append(LiveProvider(f"{live.url}/coin", name, key=key).commit())
    assert found[0] == found[1] == found[2]
    assert max(map(len, live.gateway.coin.embed.table)) <= 32  # no block is remembered


@pytest.mark.model
def test_what_has_no_reasoning_or_no_tokens_is_not_committed_to(live):
    key = live.key("plain").token
    for model, fields in (("quick", {}), ("bare", {}), ("thinker", {"n": 2})):
        name = ask(live, key, model, **fields).headers["x-request-id"]
        with pytest.raises(EndpointError, match="status 404"):
            LiveProvider(f"{live.url}/coin", name, key=key).commit()


@pytest.mark.model
def test_a_reasoning_above_the_limit_is_not_kept(tmp_path):
    with gateway(tmp_path, "max_tokens = 100") as live:
        key = live.key("long").token
        name = ask(live, key, "thinker").headers["x-request-id"]
        with pytest.raises(EndpointError, match="status 404"):
            LiveProvider(f"{live.url}/coin", name, key=key).commit()


def test_without_the_table_nothing_is_kept_and_no_page_is_there(tmp_path):
    with serving(tmp_path, "http://127.0.0.1:9/v1") as live:
        assert live.gateway.coin is None
        headers = {"authorization": f"Bearer {live.token}"}
        asked = httpx.post(f"{live.url}/coin/commit", json={"id": "x"}, headers=headers)
        assert asked.status_code == 404


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("embedder = 'ada'", "choose minilm"),
        ("ttl = 0", "coin.ttl"),
        ("block = 0", "coin.block"),
        ("max_token_exposure = 1.5", "coin.max_token_exposure"),
        ("queue = 0", "coin.queue"),
    ],
)
def test_tables_that_cannot_be_used_stop_the_start(tmp_path, line, said):
    file = tmp_path / "gateway.toml"
    file.write_text(f"[coin]\nenabled = true\n{line}\n")
    with pytest.raises(InputError, match=said):
        check(read(file))


def test_several_workers_would_not_find_each_others_fingerprints(tmp_path):
    file = tmp_path / "gateway.toml"
    file.write_text("[server]\nworkers = 2\n[coin]\nenabled = true\n")
    with pytest.raises(InputError, match="workers = 1"):
        read(file)


def test_reasoning_is_found_where_servers_put_it():
    assert reasoning({"reasoning_content": "a", "content": "b"}) == "a"
    assert reasoning({"reasoning": "a", "content": "b"}) == "a"
    assert reasoning({"content": "\n<think>a b</think>c"}) == "a b"
    for content in ("b", "a</think>b", "<think>a", "<think> </think>b", "x <think>a</think>b", ""):
        assert reasoning({"content": content}) == ""


@pytest.mark.model
def test_a_local_model_cuts_with_its_own_tokenizer():
    local = LocalUpstream("local", Upstream(local="embedded"))
    own = splitter(ModelTable(upstream="local"), local)
    file = splitter(ModelTable(upstream="local", tokenizer=TOKENIZER), local)
    assert own is not None
    assert file is not None
    assert own(REASONING) == file(REASONING)
    assert "".join(own(REASONING)) == REASONING
