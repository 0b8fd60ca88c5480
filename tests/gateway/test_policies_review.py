"""What a review of policies found: calls that cost and were not charged, or were charged twice."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import recording_upstream
import scoring_plugin
from aiohttp import web
from benches import bench
from counting import word_tokenizer
from recording_upstream import Running, upstream
from servers import Serving, serving
from test_policies import Caller, outlay

from outlay import registry
from outlay.decode.thinking_budget import ThinkingBudget
from outlay.errors import BudgetError, InputError
from outlay.gateway.app import reload
from outlay.gateway.config import Config
from outlay.gateway.policies import running
from outlay.gateway.policies.methods import Catalogue
from outlay.gateway.policies.purse import Purse
from outlay.gateway.policies.scoring import Scorers, ScoringError
from outlay.gateway.policies.tables import Scoring
from outlay.gateway.store import schema
from outlay.gateway.store.batch import Admit
from outlay.gateway.usage import Usage
from outlay.worst import Shape

THINK = 'max_think=6,think_open=<think>,think_close=</think>,newline=\\"\\",max_answer=8'
POLICIES = f"""
[scoring]
processes = 1
seconds = 5.0

[policies.waves]
reason = "self-consistency:n=3,wave=1,early_stop=false"

[policies.hasty]
reason = "self-consistency:n=3"
seconds = 0.2

[policies.think]
decode = "m1:{THINK}"

[policies.served]
decode = "m1:{THINK},server=vllm"

[policies.plan]
reason = "plan-and-budget:level=1,allocator=uniform"

[policies.tell]
prompt = "rogue:how=tell"
above = 10
"""
NAMES = ("waves", "hasty", "think", "served", "plan", "tell")


class Scripted(recording_upstream.Handler):
    """Answers with the statuses that a request's metadata lists, call by call, then with 200."""

    def __init__(self, log: recording_upstream.Log) -> None:
        super().__init__(log)
        self.asked: Counter[str] = Counter()
        self.left: Counter[str] = Counter()  # calls whose caller went away

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        body = await request.json()
        user = body.get("user", "")
        script = ((body.get("metadata") or {}).get("script") or "200").split(",")
        status = (script[self.asked[user] :] or ["200"])[0]
        self.asked[user] += 1
        if status == "200":
            return await super().answer(request)
        if status == "wait":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.left[user] += 1
                raise
        if status == "201":
            answer = await super().answer(request)
            answer.set_status(201)
            return answer
        self.bodies.append(body)
        error = {"error": {"message": "no", "type": "x", "code": "c"}}
        return web.json_response(error, status=int(status))


@pytest.fixture(scope="module")
def recorder() -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording_upstream, "Handler", Scripted)
        with upstream() as made:
            yield made


@pytest.fixture(scope="module")
def gateway(recorder: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("review")
    scoring_plugin.install(folder)
    tokenizer = word_tokenizer(folder)
    models = {
        "word": ("up", 'name = "plain"'),
        "again": ("up-again", 'name = "plain"'),
        "fee": ("up", 'name = "plain"'),
        "heavy": ("up", 'name = "silent"\ntemplate_tokens = 500'),
        "plain2": ("up-vllm", ""),
    }
    more = POLICIES
    for name, (server, rest) in models.items():
        fee = ", request = 0.01" if name == "fee" else ""
        more += (
            f'\n[models.{name}]\nupstream = "{server}"\ntokenizer = "{tokenizer}"\n'
            f"price = {{ input = 1, output = 2{fee} }}\n{rest}\n"
        )
    for name, rest in (
        ("up", "retries = 0"),
        ("up-again", "retries = 1\nbackoff = 0"),
        ("up-vllm", 'retries = 0\nserved_by = "vllm"'),
    ):
        more += (
            f'\n[upstreams.{name}]\nurl = "{recorder.url}"\n{rest}\n'
            'breaker_failures = 100\noffers = ["continue_final_message"]\n'
        )
    for route, names, choose in (
        ("some", [n for n in models if n != "plain2"], [n for n in NAMES if n != "served"]),
        ("vllm", ["plain2"], ["served"]),
    ):
        listed = ", ".join(f'"{n}"' for n in names)
        chosen = ", ".join(f'"{n}"' for n in choose)
        more += (
            f"\n[routes.{route}]\nmodels = [{listed}]\ndefault_max_output = 10\n"
            f'choose = [{chosen}, "none"]\n'
        )
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(folder))
    patch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    patch.setenv("OUTLAY_STORE__KEEP_OUTCOMES", "77")
    patch.setenv("OPENAI_API_KEY", "sk-of-the-operator")
    registry._table.cache_clear()
    try:
        with serving(folder, recorder.url, more=more, first=True) as made:
            yield made
    finally:
        patch.undo()
        registry._table.cache_clear()


@pytest.fixture
def caller(gateway: Serving, recorder: Running) -> Caller:
    return Caller(gateway, recorder)


def charged(caller: Caller) -> int:
    return sum(row.prompt + row.output for row in caller.ledger())


# -- what is charged ------------------------------------------------------------------------------


def test_calls_that_were_served_are_charged_though_the_plain_request_is_refused(
    caller: Caller,
) -> None:
    answer = caller.chat("waves", metadata={"script": "200,400,400"})
    assert answer.status_code == 400
    calls, prompt, output = caller.served()
    assert calls == 1
    assert charged(caller) == prompt + output
    assert caller.open() == 0


def test_an_answer_with_another_status_than_200_that_was_served_is_charged(
    caller: Caller,
) -> None:
    answer = caller.chat("waves", metadata={"script": "201,400"})
    assert answer.status_code == 400
    _, prompt, output = caller.served()
    assert output == 10
    assert charged(caller) >= prompt + output


def test_a_second_attempt_does_not_pay_for_the_calls_of_the_first(
    caller: Caller, gateway: Serving, recorder: Running
) -> None:
    caller.chat("waves", "again", metadata={"script": "200,200,200,200"})
    [row] = caller.ledger()
    tight = Caller(gateway, recorder, amount=row.reserved_tokens)  # room for one attempt with it
    answer = tight.chat("waves", "again", metadata={"script": "200,500,500,200"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-outlay-policy-reason"] == "budget"
    first, second = tight.ledger()
    assert (first.kind, second.kind) == ("unknown", "settled")
    rows = [row for row in recorder.rows if row["user"] == tight.name]
    assert (second.prompt, second.output) == (rows[-1]["prompt"], rows[-1]["output"])
    assert outlay(answer)["stages"][-1]["generated_tokens"] == rows[-1]["output"]


def test_every_call_of_a_policy_pays_the_price_per_request(caller: Caller) -> None:
    answer = caller.chat("waves", "fee")
    assert answer.status_code == 200, answer.text
    calls, prompt, output = caller.served()
    [row] = caller.ledger()
    assert calls == 3
    assert row.nanousd == prompt * 1000 + output * 2000 + calls * 10_000_000
    assert row.reserved_nanousd >= 4 * 10_000_000  # and the plain request


def test_a_purse_holds_no_more_calls_than_were_reserved() -> None:
    purse = Purse(100, 100, calls=2)
    purse.settle(purse.take(1, 1), Usage(0, 0, 0, 0))  # refused: it cost nothing
    for _ in range(2):
        purse.send(purse.take(1, 1))
    with pytest.raises(BudgetError, match="calls"):
        purse.take(1, 1)
    assert purse.calls == 2


def test_an_attempt_that_could_not_be_sent_charges_what_the_policy_spent(
    caller: Caller,
) -> None:
    answer = caller.chat("waves", "again", metadata={"script": "200,429,429"})
    assert answer.status_code == 200, answer.text  # by the second attempt
    calls, prompt, output = caller.served()
    assert calls == 1 + 3
    assert charged(caller) == prompt + output
    assert [row.kind for row in caller.ledger()] == ["settled", "settled"]
    assert answer.headers["x-outlay-policy-status"] == "applied"


def test_a_caller_who_leaves_takes_the_calls_along_and_pays_for_them(
    caller: Caller, gateway: Serving, recorder: Running
) -> None:
    body = {
        "model": "word",
        "messages": [{"role": "user", "content": "hi you"}],
        "user": caller.name,
        "metadata": {"script": "200,wait"},
        "outlay": {"policy": "waves"},
    }
    headers = {"authorization": f"Bearer {caller.token}"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=0.7)
    until = time.monotonic() + 20
    while (caller.open() or not caller.ledger()) and time.monotonic() < until:
        time.sleep(0.05)
    handler = recorder.handler
    assert isinstance(handler, Scripted)
    while not handler.left[caller.name] and time.monotonic() < until:
        time.sleep(0.05)
    assert handler.asked[caller.name] == 2  # the third was never sent
    assert handler.left[caller.name] == 1
    [row] = caller.ledger()
    assert (row.kind, row.output) == ("unknown", 20)
    _, prompt, output = caller.served()
    assert output == 10
    assert row.prompt > prompt


# -- what is reserved -----------------------------------------------------------------------------


def test_a_question_of_the_request_is_reserved_for(caller: Caller) -> None:
    body = {"policy": "plan", "question": "why " * 3000}
    answer = caller.gateway.chat(caller.token, "word", outlay=body, user=caller.name, max_tokens=5)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-outlay-policy-status"] == "applied"


def test_a_continued_answer_is_one_more_message(caller: Caller) -> None:
    answer = caller.chat("think", "heavy", max_tokens=5)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-outlay-policy-status"] == "applied"
    assert answer.json()["choices"][0]["message"]["content"].split()[-5:] == ["word"] * 5


def test_an_answer_for_which_nothing_was_left_is_none(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Purse.take

    def once(purse: Purse, prompt: int, output: int) -> Any:
        if purse._calls:
            raise BudgetError("full")
        return take(purse, prompt, output)

    monkeypatch.setattr(Purse, "take", once)
    answer = caller.chat("think", max_tokens=5)
    assert answer.headers["x-outlay-policy-status"] == "fallback"
    assert answer.headers["x-outlay-policy-reason"] == "budget"
    assert answer.json()["choices"][0]["message"]["content"].split() == ["word"] * 5
    calls, prompt, output = caller.served()
    assert calls == 2
    assert charged(caller) == prompt + output


def test_waiting_until_there_is_enough_thinking_is_reserved_for() -> None:
    shape = Shape(100, 20, lambda text: len(text.split()))
    waits = ThinkingBudget(
        max_think=50, min_think=30, min_by="wait", think_open="a", think_close="b"
    )
    assert waits.worst(shape).calls >= 1 + 30 + 1  # each wait may be all that a round adds


def test_a_server_that_bounds_the_thinking_needs_no_second_name(caller: Caller) -> None:
    answer = caller.chat("served", "plain2", max_tokens=5)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-outlay-policy-status"] == "applied"
    assert caller.bodies()[0]["thinking_token_budget"] == 6


@pytest.mark.parametrize(
    ("upstream_", "server", "match"),
    [
        ({"url": "http://127.0.0.1:1/v1"}, "vllm", "served_by"),
        ({"url": "http://127.0.0.1:1/v1", "served_by": "llamacpp"}, "vllm", "served_by"),
        ({"local": "embedded"}, "llama.cpp", "served_by"),
    ],
)
def test_a_thinking_budget_of_another_server_is_refused_at_start(
    tmp_path: Path, upstream_: dict[str, Any], server: str, match: str
) -> None:
    config = Config.model_validate(
        {
            "upstreams": {"u": upstream_},
            "models": {"m": {"upstream": "u", "tokenizer": word_tokenizer(tmp_path)}},
            "policies": {"p": {"decode": f"m1:server={server},max_think=5"}},
            "routes": {"r": {"policy": "p"}},
        }
    )
    with pytest.raises(InputError, match=match):
        Catalogue(config)


# -- what callers get -----------------------------------------------------------------------------


def test_a_field_of_the_body_cannot_write_a_header(caller: Caller) -> None:
    fields: dict[str, Any] = {"a\r\nx-evil: 1\u20ac": True}
    answer = caller.chat("waves", **fields)
    assert answer.status_code == 200, answer.text
    assert "x-evil" not in answer.headers
    assert answer.headers["x-outlay-policy-reason"].startswith("field a")


def test_a_message_of_which_methods_would_drop_a_part_is_sent_as_it_is(caller: Caller) -> None:
    messages = [{"role": "user", "name": "Ann", "content": "hi you"}]
    answer = caller.chat("waves", messages=messages)
    assert answer.headers["x-outlay-policy-status"] == "skipped"
    assert answer.headers["x-outlay-policy-reason"] == "message"
    assert caller.bodies()[0]["messages"] == messages


def test_messages_as_a_client_library_repeats_them_are_taken(caller: Caller) -> None:
    rest: dict[str, Any] = {"refusal": None, "annotations": [], "audio": None}
    said = {"role": "assistant", "content": "hi", **rest}
    messages = [{"role": "user", "content": "a"}, said, {"role": "user", "content": "b"}]
    answer = caller.chat("waves", messages=messages)
    assert answer.headers["x-outlay-policy-status"] == "applied"


def test_requests_without_a_seed_are_not_all_the_same(caller: Caller) -> None:
    for _ in range(2):
        caller.chat("waves")
    seeds = [body["seed"] for body in caller.bodies()]
    assert len(set(seeds)) == 6


# -- what is kept to oneself ----------------------------------------------------------------------

LONGER = [{"role": "user", "content": "intro\n\n" + "secret " * 50 + "\n\nwhat is it?"}]


def test_no_prompt_is_in_the_log_of_a_failed_scorer(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "outlay.gateway"):
        answer = caller.chat("tell", messages=LONGER)
    assert answer.headers["x-outlay-policy-reason"] == "scorer failed"
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def test_a_scoring_process_does_not_get_the_gateways_secrets(caller: Caller) -> None:
    caller.chat("tell", messages=LONGER)
    workers = [
        child
        for child in psutil.Process().children(recursive=True)
        if "outlay.gateway.policies.worker" in " ".join(child.cmdline())
    ]
    assert workers
    for worker in workers:
        environment = worker.environ()
        assert "PYTHONPATH" in environment
        assert not [name for name in environment if name.startswith("OUTLAY_STORE")]
        assert "sk-of-the-operator" not in environment.values()


# -- what is given back ---------------------------------------------------------------------------


def test_a_process_that_cannot_start_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no more processes")

    async def use() -> None:
        scorers = Scorers(Scoring(processes=2, seconds=1.0))
        monkeypatch.setattr(asyncio, "create_subprocess_exec", failing)
        await scorers.warm([{"do": "load", "method": "head", "scorer": "embedded"}])
        for _ in range(3):
            with pytest.raises(ScoringError) as caught:
                await scorers.run({"do": "compress", "method": "head", "scorer": "embedded"})
            assert caught.value.why == "crashed"

    asyncio.run(use())


HANGING = """
import asyncio, os, sys
from outlay.gateway.policies.scoring import Scorers
from outlay.gateway.policies.tables import Scoring

async def main():
    scorers = Scorers(Scoring(seconds=600.0))
    job = {"do": "compress", "method": "rogue:how=hang", "scorer": "embedded", "text": "a",
           "question": "", "tokens": 1, "tokenizer": None}
    working = asyncio.ensure_future(scorers.run(job))
    while not (scorers._all[0]._child and scorers._all[0]._child.pid):
        await asyncio.sleep(0.01)
    print(scorers._all[0]._child.pid, flush=True)
    await working

asyncio.run(main())
"""


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_scoring_process_ends_with_its_gateway(tmp_path: Path) -> None:
    scoring_plugin.install(tmp_path)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen(
        [sys.executable, "-c", HANGING],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    try:
        time.sleep(5)  # it hangs in its job by now
        parent.kill()
        parent.wait(10)
        until = time.monotonic() + 10
        while alive(worker) and time.monotonic() < until:
            time.sleep(0.05)
        assert not alive(worker)
    finally:
        parent.kill()
        if alive(worker):
            worker.kill()


def test_a_reload_that_drops_an_upstream_does_not_break_requests_in_flight(
    gateway: Serving, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, config = gateway.gateway, gateway.gateway.config
    smaller = config.model_copy(
        update={
            "upstreams": {n: u for n, u in config.upstreams.items() if n == "up-vllm"},
            "models": {n: m for n, m in config.models.items() if n == "plain2"},
        }
    )
    admit = state.store.admit

    async def reloading(ask: Any) -> Any:
        reload(state, smaller)
        return await admit(ask)

    monkeypatch.setattr(state.store, "admit", reloading)
    try:
        answer = caller.chat("waves")
    finally:
        monkeypatch.undo()

        async def back() -> None:
            reload(state, config)

        gateway.wait(back())
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-outlay-policy-status"] == "applied"


def test_methods_that_no_thread_has_taken_are_given_up_at_once(
    gateway: Serving, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    with ThreadPoolExecutor(1) as busy:
        busy.submit(over.wait, 30)
        monkeypatch.setattr(gateway.gateway.runner, "_threads", busy)
        began = time.monotonic()
        answer = caller.chat("hasty")
        took = time.monotonic() - began
        over.set()
    assert answer.headers["x-outlay-policy-reason"] == "timeout"
    assert took < 5
    [row] = caller.ledger()
    assert row.kind == "settled"  # only the plain request was sent


# -- a model of this process ----------------------------------------------------------------------

LOCAL = """
[upstreams.here]
local = "reasoner/small"

[models.reasoner]
upstream = "here"
price = { input = 1, output = 2 }

[policies.slow]
reason = "self-consistency:n=2"
seconds = 0.2

[routes.local]
models = ["reasoner"]
default_max_output = 20
choose = ["slow"]
"""


@pytest.fixture(scope="module")
def here(recorder: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("here")
    with serving(folder, recorder.url, more=LOCAL, first=True) as made:
        yield made


def test_a_local_model_that_does_not_stop_keeps_its_turn_and_is_charged_in_full(
    here: Serving, recorder: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = Caller(here, recorder)

    def stubborn(*args: Any, **kwargs: Any) -> Any:
        time.sleep(2)
        raise RuntimeError("nobody waits for this")

    assert here.chat(here.key("first").token, "reasoner").status_code == 200  # it is loaded
    monkeypatch.setattr(running, "answer", stubborn)
    monkeypatch.setattr(running, "_LEAVE", 0.1)
    answer = caller.chat("slow", "reasoner")
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-outlay-policy-reason"] == "timeout"
    [row] = caller.ledger()
    assert row.kind == "unknown"
    assert row.output >= 2 * 20
    assert row.prompt + row.output <= row.reserved_tokens
    assert row.at - row.admitted_at >= 1.9  # the plain request had waited for the model
    assert caller.open() == 0


# -- admissions -----------------------------------------------------------------------------------


def test_a_caller_who_leaves_as_the_grant_arrives_leaves_nothing_reserved(tmp_path: Path) -> None:
    async def use() -> None:
        async with bench(f"sqlite:///{tmp_path / 'books.db'}") as b:
            submit = b.store.submit
            admitting: asyncio.Task[Any]

            def leaving(operation: Any, **fields: Any) -> asyncio.Future[Any]:
                future = submit(operation, **fields)
                if isinstance(operation, Admit):  # called before the task wakes up to its result
                    future.add_done_callback(lambda done: admitting.cancel())
                return future

            b.store.submit = leaving  # type: ignore[method-assign]
            admitting = asyncio.create_task(b.store.admit(b.ask()))
            with pytest.raises(asyncio.CancelledError):
                await admitting
            for _ in range(3):
                await b.store.refresh()
            assert await b.counters() == (0, 0)
            assert await b.rows(schema.reservations) == []

    asyncio.run(use())
