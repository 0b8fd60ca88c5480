"""Policies through a real gateway: what reaches the upstream, what is charged, what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import openai
import psutil
import pytest
import scoring_plugin
from counting import word_tokenizer
from recording_upstream import Running
from servers import Serving, serving
from sqlalchemy import select

from outlay import registry
from outlay.gateway.store import admin, schema
from outlay.gateway.windows import Window

MODELS = ("stall", "status500", "silent", "liar")
LONG = "first words\n\n" + "word " * 200 + "\n\nwhat is it?"
POLICIES = """
[scoring]
processes = 1
queue = 1
seconds = 3.0

[policies.cut]
prompt = "head"
above = 50
keep = 0.25

[policies.vote]
reason = "self-consistency:n=3"

[policies.think]
decode = 'm1:max_think=6,think_open=<think>,think_close=</think>,newline=\"\",max_answer=8'

[policies.all]
prompt = "head"
above = 50
keep = 0.25
reason = "self-consistency:n=2"
decode = 'm1:max_think=6,think_open=<think>,think_close=</think>,newline=\"\",max_answer=8'

[policies.plan]
reason = "plan-and-budget"

[policies.hasty]
reason = "self-consistency:n=2"
seconds = 0.05

[policies.bare]
reason = "self-consistency:n=2"
fallback = false
"""
ROGUES = ("longer", "crash", "hang", "raise", "chat", "slow")


@pytest.fixture(scope="module")
def gateway(recorder: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("policies")
    scoring_plugin.install(folder)
    tokenizer = word_tokenizer(folder)
    names = ", ".join(f'"{n}"' for n in ("cut", "vote", "think", "all", "plan", "hasty", "bare"))
    rogues = ", ".join(f'"{name}"' for name in ROGUES)
    more = POLICIES + "".join(
        f'\n[policies.{name}]\nprompt = "rogue:how={name}"\nabove = 10\n' for name in ROGUES
    )
    for name in ("word", "wordslow", *MODELS):
        server = name if name in MODELS else "recorder"
        real = {"word": "plain", "wordslow": "slow"}.get(name, name)
        more += (
            f'\n[models.{name}]\nupstream = "up-{server}"\nname = "{real}"\n'
            f'tokenizer = "{tokenizer}"\nprice = {{ input = 1, output = 2 }}\n'
        )
    for name in ("recorder", *MODELS):
        more += (
            f'\n[upstreams.up-{name}]\nurl = "{recorder.url}"\nretries = 0\nidle_timeout = 2\n'
            'breaker_failures = 100\noffers = ["continue_final_message"]\n'
        )
    chosen = f'choose = [{names}, {rogues}, "none"]\n'
    tight = "".join(f'"{name}", ' for name in ("word", "wordslow", *MODELS))
    routes = f"\n[routes.chosen]\nmodels = [{tight}]\ndefault_max_output = 10\n{chosen}"
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    registry._table.cache_clear()
    try:
        with serving(folder, recorder.url, more=more + routes, first=True) as running:
            yield running
    finally:
        monkeypatch.undo()
        registry._table.cache_clear()


class Caller:
    """A key with a budget, its ledger, and what the upstream served it."""

    def __init__(self, gateway: Serving, recorder: Running, amount: int = 10**6) -> None:
        self.gateway, self.recorder = gateway, recorder
        self.name = f"caller-{time.monotonic_ns()}"
        made = gateway.key(self.name)
        self.id, self.token = made.key.id, made.token
        self.budget = gateway.call(
            partial(admin.create_budget, actor="test"),
            name=self.name,
            unit="tokens",
            amount=amount,
            window=Window("total"),
            key_id=self.id,
        )

    def chat(self, policy: str, model: str = "word", **fields: Any) -> httpx.Response:
        fields = {"messages": [{"role": "user", "content": "hi you"}], "user": self.name, **fields}
        return self.gateway.chat(self.token, model, outlay={"policy": policy}, **fields)

    def served(self) -> tuple[int, int, int]:
        """Calls, prompt and output tokens by the upstream's own log."""
        rows = [row for row in self.recorder.rows if row["user"] == self.name]
        return len(rows), sum(r["prompt"] for r in rows), sum(r["output"] for r in rows)

    def bodies(self) -> list[dict[str, Any]]:
        return [b for b in self.recorder.handler.bodies if b.get("user") == self.name]

    def ledger(self) -> list[Any]:
        table = schema.ledger

        def read(connection: Any, now: float) -> list[Any]:
            found = select(table).where(table.c.key_id == self.id).order_by(table.c.at)
            return list(connection.execute(found).all())

        return self.gateway.wait(self.gateway.gateway.store.call(read))  # type: ignore[no-any-return]

    def open(self) -> int:
        table = schema.reservations

        def read(connection: Any, now: float) -> int:
            found = select(table.c.id).where(table.c.key_id == self.id)
            return len(connection.execute(found).all())

        return int(self.gateway.wait(self.gateway.gateway.store.call(read)))


@pytest.fixture
def caller(gateway: Serving, recorder: Running) -> Caller:
    return Caller(gateway, recorder)


def settled(caller: Caller) -> Any:
    """The one row of the ledger, which agrees with the upstream's own log."""
    [row] = caller.ledger()
    _, prompt, output = caller.served()
    assert (row.kind, row.prompt, row.output) == ("settled", prompt, output)
    assert row.nanousd == prompt * 1000 + output * 2000
    assert caller.open() == 0
    return row


def outlay(answer: httpx.Response) -> dict[str, Any]:
    told: dict[str, Any] = answer.json()["usage"]["outlay"]
    return told


# -- what methods do ------------------------------------------------------------------------------


def test_a_vote_is_one_request_of_several_calls(caller: Caller) -> None:
    answer = caller.chat("vote")
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-outlay-policy"] == "vote"
    assert answer.headers["x-outlay-policy-status"] == "applied"
    assert caller.served()[0] == 3
    row = settled(caller)
    usage = answer.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (row.prompt, row.output)
    [stage] = outlay(answer)["stages"]
    assert (stage["method"], stage["calls"], stage["generated_tokens"]) == (
        "self-consistency",
        3,
        30,
    )
    assert sum(e["generated"] for e in json.loads(row.stages)["entries"]) == row.output
    assert len({body["seed"] for body in caller.bodies()}) == 3


def test_a_thinking_budget_continues_the_answer_that_it_began(caller: Caller) -> None:
    answer = caller.chat("think", max_tokens=5)
    assert answer.status_code == 200, answer.text
    thinking, answering = caller.bodies()
    assert thinking["max_tokens"] == 6
    assert answering["max_tokens"] == 5  # the caller's own limit, for the answer
    assert answering["messages"][-1]["role"] == "assistant"
    assert "</think>" in answering["messages"][-1]["content"]
    assert answering["continue_final_message"] is True
    message = answer.json()["choices"][0]["message"]
    assert message["reasoning_content"].split() == ["word"] * 6
    assert message["content"].split()[-5:] == ["word"] * 5
    settled(caller)


def test_all_slots_work_together(caller: Caller) -> None:
    messages = [{"role": "system", "content": "s " * 60}, {"role": "user", "content": LONG}]
    answer = caller.chat("all", messages=messages, max_tokens=5)
    assert answer.status_code == 200, answer.text
    bodies = caller.bodies()
    assert len(bodies) == 4  # two samples of two calls
    for body in bodies:
        assert body["messages"][0] == messages[0]
        assert len(body["messages"][1]["content"].split()) < 80
        assert body["messages"][1]["content"].endswith("\n\nwhat is it?")
    assert outlay(answer)["saved_prompt_tokens"] > 100
    settled(caller)


def test_a_plan_costs_what_its_calls_cost(caller: Caller) -> None:
    with pytest.warns(UserWarning, match="solved directly"):
        answer = caller.chat("plan")
    assert answer.status_code == 200, answer.text
    assert {stage["role"] for stage in outlay(answer)["stages"]} == {"planner", "target"}
    settled(caller)


def test_a_shortened_request_streams_as_any_other(caller: Caller) -> None:
    messages = [{"role": "system", "content": LONG}, {"role": "user", "content": LONG}]
    client = openai.OpenAI(base_url=f"{caller.gateway.url}/v1", api_key=caller.token, max_retries=0)
    stream = client.chat.completions.create(
        model="word",
        messages=messages,  # type: ignore[arg-type]
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
        user=caller.name,
        extra_body={"outlay": {"policy": "cut"}},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text.split() == ["word"] * 4
    assert sum(bool(c.choices) for c in chunks) > 4  # as it came, not in one piece
    usage: Any = chunks[-1].usage
    assert usage.outlay["status"] == "applied"
    assert usage.outlay["saved_prompt_tokens"] > 100
    [body] = caller.bodies()
    assert "outlay" not in body
    assert body["messages"][0] == messages[0]
    assert len(body["messages"][1]["content"].split()) < 80
    settled(caller)


def test_a_solved_answer_streams_in_one_piece(caller: Caller) -> None:
    client = openai.OpenAI(base_url=f"{caller.gateway.url}/v1", api_key=caller.token, max_retries=0)
    stream = client.chat.completions.create(
        model="word",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True},
        user=caller.name,
        extra_body={"outlay": {"policy": "vote"}},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text.split() == ["word"] * 10
    assert chunks[-2].choices[0].finish_reason == "length"
    usage: Any = chunks[-1].usage
    assert usage.outlay["policy"] == "vote"
    settled(caller)


def test_a_short_request_is_left_as_it_is(caller: Caller) -> None:
    answer = caller.chat("cut")
    assert answer.headers["x-outlay-policy-status"] == "skipped"
    assert answer.headers["x-outlay-policy-reason"] == "short"
    settled(caller)


def test_requests_that_a_policy_cannot_take_go_on_with_a_header(caller: Caller) -> None:
    answer = caller.chat("vote", n=2)
    assert answer.status_code == 200
    assert answer.headers["x-outlay-policy-status"] == "skipped"
    assert answer.headers["x-outlay-policy-reason"] == "choices"
    assert len(answer.json()["choices"]) == 2
    [body] = caller.bodies()
    assert "outlay" not in body
    settled(caller)


def test_an_idempotency_key_covers_all_calls_of_a_policy(caller: Caller) -> None:
    body = {
        "model": "word",
        "messages": [{"role": "user", "content": "hi"}],
        "user": caller.name,
        "outlay": {"policy": "vote"},
    }
    headers = {"authorization": f"Bearer {caller.token}", "idempotency-key": "once"}
    url = f"{caller.gateway.url}/v1/chat/completions"
    first, second = (httpx.post(url, json=body, headers=headers) for _ in range(2))
    assert second.headers["x-outlay-replayed"] == "true"
    assert first.json() == second.json()
    assert caller.served()[0] == 3
    settled(caller)


# -- what is reserved -----------------------------------------------------------------------------


def test_a_policy_that_does_not_fit_the_budget_makes_way_for_the_request(
    gateway: Serving, recorder: Running
) -> None:
    poor = Caller(gateway, recorder, amount=150)  # the request alone may cost 79
    answer = poor.chat("vote")
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-outlay-policy-reason"] == "budget"
    assert poor.served()[0] == 1
    settled(poor)


def test_nothing_is_sent_where_not_even_the_request_fits(
    gateway: Serving, recorder: Running
) -> None:
    broke = Caller(gateway, recorder, amount=20)
    answer = broke.chat("vote")
    assert answer.status_code == 402
    assert "are needed" in answer.json()["error"]["message"]
    assert broke.served()[0] == 0


def test_many_voters_never_exceed_their_budget(gateway: Serving, recorder: Running) -> None:
    crowd = Caller(gateway, recorder, amount=1500)  # room for some votes and some bare requests
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: crowd.chat("vote", "wordslow"), range(24)))
    statuses = [answer.headers.get("x-outlay-policy-status") for answer in answers]
    assert "applied" in statuses
    _, prompt, output = crowd.served()
    assert prompt + output <= 1500
    rows = [row for row in crowd.ledger() if row.kind == "settled"]
    assert sum(row.prompt + row.output for row in rows) == prompt + output
    assert crowd.open() == 0


# -- what goes wrong ------------------------------------------------------------------------------


def test_methods_that_take_too_long_fall_back_to_the_request(caller: Caller) -> None:
    answer = caller.chat("hasty", "wordslow")
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-outlay-policy-status"] == "fallback"
    assert answer.headers["x-outlay-policy-reason"] == "timeout"
    rows = [row for row in caller.ledger() if row.kind == "unknown"]
    [row] = rows  # the calls that were given up count in full
    _, prompt, output = caller.served()
    assert row.prompt >= prompt
    assert row.output >= output
    assert caller.open() == 0


def test_without_a_fallback_a_failure_is_an_error_and_is_charged(caller: Caller) -> None:
    answer = caller.chat("bare", "status500")
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "policy_failed"
    [row] = caller.ledger()
    assert row.kind == "unknown"  # a server error may be billed
    assert row.prompt > 0
    assert caller.open() == 0


def test_a_caller_who_leaves_stops_the_calls(caller: Caller) -> None:
    body = {
        "model": "stall",
        "messages": [{"role": "user", "content": "hi"}],
        "outlay": {"policy": "vote"},
    }
    headers = {"authorization": f"Bearer {caller.token}"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{caller.gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=0.7
        )
    until = time.monotonic() + 20
    while caller.open() and time.monotonic() < until:
        time.sleep(0.05)
    [row] = caller.ledger()
    assert row.kind == "unknown"
    assert 0 < row.output <= 30


def test_a_lying_usage_never_lowers_the_charge(caller: Caller) -> None:
    answer = caller.chat("vote", "liar")
    assert answer.status_code == 200, answer.text
    [row] = caller.ledger()
    assert row.output == caller.served()[2] == 30


def test_an_upstream_without_usage_is_counted(caller: Caller) -> None:
    answer = caller.chat("vote", "silent")
    assert answer.status_code == 200, answer.text
    [row] = caller.ledger()
    _, prompt, output = caller.served()
    assert (row.kind, row.output) == ("settled", output)
    assert row.prompt >= prompt


LONGER = [{"role": "user", "content": LONG}]


def test_a_compressed_text_that_is_longer_is_never_used(caller: Caller) -> None:
    answer = caller.chat("longer", messages=LONGER)
    assert answer.status_code == 200, answer.text
    [body] = caller.bodies()
    assert body["messages"] == LONGER
    [prompt, _] = outlay(answer)["stages"]
    assert prompt["method"] == "rogue"
    assert outlay(answer)["saved_prompt_tokens"] == 0
    settled(caller)


@pytest.mark.parametrize(
    ("how", "reason"),
    [("crash", "scorer crashed"), ("raise", "scorer failed"), ("hang", "scorer timeout")],
)
def test_a_scorer_that_fails_leaves_the_request_as_it_was(
    caller: Caller, how: str, reason: str
) -> None:
    answer = caller.chat(how, messages=LONGER)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-outlay-policy-status"] == "fallback"
    assert answer.headers["x-outlay-policy-reason"] == reason
    [body] = caller.bodies()
    assert body["messages"] == LONGER
    settled(caller)
    again = caller.chat("cut", messages=LONGER)  # a new process serves the next one
    assert again.headers["x-outlay-policy-status"] == "applied"


def test_what_a_scorer_prints_does_not_disturb_it(caller: Caller) -> None:
    answer = caller.chat("chat", messages=LONGER)
    assert answer.headers["x-outlay-policy-status"] == "applied"
    assert "short" in caller.bodies()[0]["messages"][0]["content"]


def test_a_full_queue_lets_requests_go_on(caller: Caller) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: caller.chat("slow", messages=LONGER), range(6)))
    assert all(answer.status_code == 200 for answer in answers)
    reasons = [answer.headers.get("x-outlay-policy-reason", "") for answer in answers]
    assert "scorer busy" in reasons
    assert "" in reasons  # and some were served


def test_the_event_loop_goes_on_while_a_scorer_works(caller: Caller) -> None:
    worst = 0.0
    over = threading.Event()

    def watch() -> None:
        nonlocal worst
        while not over.is_set():
            began = time.monotonic()
            httpx.get(f"{caller.gateway.url}/health/live", timeout=30)
            worst = max(worst, time.monotonic() - began)

    thread = threading.Thread(target=watch)
    thread.start()
    answer = caller.chat("hang", messages=LONGER)
    over.set()
    thread.join()
    assert answer.headers["x-outlay-policy-reason"] == "scorer timeout"
    assert worst < 2.5  # the scorer was stopped after 3 s; the gateway answered meanwhile


def test_a_killed_scoring_process_is_replaced(caller: Caller) -> None:
    assert caller.chat("cut", messages=LONGER).headers["x-outlay-policy-status"] == "applied"
    workers = [
        child
        for child in psutil.Process().children(recursive=True)
        if "outlay.gateway.policies.worker" in " ".join(child.cmdline())
    ]
    assert workers
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait(10)
    answers = [caller.chat("cut", messages=LONGER) for _ in range(2)]
    assert answers[-1].headers["x-outlay-policy-status"] == "applied"


# -- a model of this process ----------------------------------------------------------------------

LOCAL = """
[upstreams.here]
local = "reasoner/small"

[models.reasoner]
upstream = "here"
price = { input = 1, output = 2 }

[policies.best]
reason = "best-of-n:n=3"
verifier = "chain-prm"
answer = "text"

[policies.votes]
reason = "self-consistency:n=3"
decode = "m1:max_think=40"

[policies.thinks]
decode = "m1:max_think=24"

[routes.local]
models = ["reasoner"]
default_max_output = 60
choose = ["best", "votes", "thinks", "none"]
"""


@pytest.fixture(scope="module")
def here(recorder: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("here"), recorder.url, more=LOCAL, first=True) as running:
        yield running


@pytest.mark.parametrize("policy", ["best", "votes", "thinks"])
def test_methods_run_on_a_local_model_within_what_was_reserved(
    here: Serving, recorder: Running, policy: str
) -> None:
    caller = Caller(here, recorder)
    messages = [{"role": "user", "content": "3+4*7=?"}]
    answer = caller.chat(policy, "reasoner", messages=messages, seed=1)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-outlay-policy-status"] == "applied"
    assert answer.json()["choices"][0]["message"]["content"]
    [row] = caller.ledger()
    assert row.kind == "settled"
    assert 0 < row.prompt + row.output <= row.reserved_tokens
    roles = {stage["role"] for stage in outlay(answer)["stages"]}
    assert ("verifier" in roles) == (policy == "best")
    assert caller.open() == 0


def test_the_same_seed_gives_the_same_answer(here: Serving, recorder: Running) -> None:
    caller = Caller(here, recorder)
    messages = [{"role": "user", "content": "3+4*7-2=?"}]
    first, second = (
        caller.chat("votes", "reasoner", messages=messages, seed=4).json() for _ in range(2)
    )
    assert first["choices"][0]["message"] == second["choices"][0]["message"]
    assert first["usage"]["completion_tokens"] == second["usage"]["completion_tokens"]
