"""Upstreams: the circuit breaker, addresses that are refused, tokenizers, and what is logged."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from recording_upstream import Running
from servers import serving
from sqlalchemy import select

from outlay.errors import InputError
from outlay.gateway import upstream as lib
from outlay.gateway.config import Upstream
from outlay.gateway.run import JsonLines
from outlay.gateway.store import schema
from outlay.gateway.upstream import Breaker, HttpUpstream, public
from tiny_models import tiny_tokenizer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(lib.time, "monotonic", lambda: now[0])
    return now


def test_a_circuit_opens_after_failures_in_a_row_and_then_lets_one_request_try(
    clock: list[float],
) -> None:
    breaker = Breaker(failures=2, seconds=30)
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert breaker.allows()  # a success between them: not in a row
    breaker.failed()
    assert breaker.open()
    assert not breaker.allows()
    assert breaker.retry_after() == 30
    clock[0] += 31
    assert not breaker.open()
    assert breaker.allows()
    assert not breaker.allows()  # one at a time
    breaker.abandoned()
    assert breaker.allows()
    breaker.failed()
    assert not breaker.allows()
    clock[0] += 31
    assert breaker.allows()
    breaker.succeeded()
    assert breaker.allows()
    assert breaker.allows()


def test_server_errors_open_the_circuit_and_refusals_close_it(
    recorder: Running, tmp_path: Path
) -> None:
    more = (
        f'\n[upstreams.weak]\nurl = "{recorder.url}"\nretries = 0\nbreaker_failures = 2\n'
        'breaker_seconds = 300\n[models.status500]\nupstream = "weak"\n'
        '[models.status400]\nupstream = "weak"\n'
    )
    with serving(tmp_path, recorder.url, more=more) as running:
        token = running.key("a").token
        for model, status in (
            ("status500", 502),
            ("status400", 400),
            ("status500", 502),
            ("status500", 502),
        ):
            assert running.chat(token, model).status_code == status
        calls = recorder.handler.calls
        refused = running.chat(token, "status400")
        assert (refused.status_code, refused.json()["error"]["code"]) == (
            503,
            "upstream_unavailable",
        )
        assert 290 <= int(refused.headers["retry-after"]) <= 300
        assert recorder.handler.calls == calls


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("8.8.8.8", True),
        ("10.0.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
    ],
)
def test_addresses_that_are_not_public_need_the_operators_word(address: str, allowed: bool) -> None:
    assert public(address) == allowed
    host = f"[{address.split('%')[0]}]" if ":" in address else address
    if allowed:
        HttpUpstream("u", Upstream(url=f"http://{host}/v1"))
        return
    with pytest.raises(InputError, match="set private = true"):
        HttpUpstream("u", Upstream(url=f"http://{host}/v1"))
    HttpUpstream("u", Upstream(url=f"http://{host}/v1", private=True))


def test_with_a_tokenizer_prompts_are_bounded_and_answers_counted_by_it(
    recorder: Running, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    file = tmp_path / "tokenizer.json"
    tokenizer.backend_tokenizer.save(str(file))
    more = (
        f'\n[models.liar]\nupstream = "recorder"\ntokenizer = {json.dumps(str(file))}\n'
        "template_tokens = 0\n"
    )
    with serving(tmp_path, recorder.url, more=more) as running:
        made = running.key("a")
        said = "in the cat " * 30
        ask: list[Any] = [{"role": "user", "content": said}]
        assert running.chat(made.token, "liar", messages=ask, max_tokens=400).status_code == 200

        def read(connection: Any, now: float) -> Any:
            return list(connection.execute(select(schema.ledger).order_by(schema.ledger.c.seq)))

        row, beyond = running.call(read)
    count = len(tokenizer(said, add_special_tokens=False)["input_ids"])
    sent = len(tokenizer(" ".join(["word"] * 400), add_special_tokens=False)["input_ids"])
    assert count < len(said)
    assert count <= row.reserved_tokens - 400 < len(said)
    assert row.output == sent > 40  # it reported 40
    assert (row.kind, beyond.kind) == ("settled", "overrun")  # 400 words are more tokens than 400


@pytest.mark.parametrize("asked", [False, True])
def test_prompts_are_logged_only_where_that_was_asked_for(
    recorder: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture, asked: bool
) -> None:
    with serving(tmp_path, recorder.url) as running:
        server = running.gateway.config.server.model_copy(update={"log_prompts": asked})
        running.gateway.config = running.gateway.config.model_copy(update={"server": server})
        made = running.key("a")
        with caplog.at_level(logging.DEBUG):
            secret: list[Any] = [{"role": "user", "content": "a secret plan"}]
            assert running.chat(made.token, messages=secret).status_code == 200
    lines = "\n".join(JsonLines().format(record) for record in caplog.records)
    assert ("a secret plan" in lines) == asked
    assert made.token not in lines
