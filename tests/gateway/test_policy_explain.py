"""`outlay policy explain`: what is said of a request is what a gateway then does with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from counting import word_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from recording_upstream import Running
from servers import Serving, serving
from typer.testing import CliRunner

from outlay.cli import policy as cli
from outlay.errors import InputError
from outlay.gateway.config import read
from outlay.gateway.policies.explained import Explained
from outlay.gateway.policies.explaining import explain
from outlay.gateway.policies.methods import Catalogue, prepare
from outlay.gateway.policies.tables import Policy
from outlay.gateway.store import admin
from outlay.gateway.windows import Window
from outlay.worst import Shape

runner = CliRunner()
LONG = "first words\n\n" + "word " * 200 + "\n\nwhat is it?"
THINKS = 'm1:max_think=6,think_open=<think>,think_close=</think>,newline="",max_answer=8'
POLICIES = f"""
[scoring]
max_chars = 2000

[policies.cut]
prompt = "head"
above = 50
keep = 0.25
[policies.vote]
reason = "self-consistency:n=3"
[policies.think]
decode = '{THINKS}'
[policies.all]
prompt = "head"
above = 50
keep = 0.25
reason = "self-consistency:n=2"
decode = '{THINKS}'
[policies.bare]
reason = "self-consistency:n=2"
fallback = false
[policies.hidden]
reason = "shortest:n=5"
"""
NAMES = ("cut", "vote", "think", "all", "bare")
ROUTES = f"""
[routes.chosen]
models = ["word"]
default_max_output = 10
choose = {json.dumps([*NAMES, "none"])}
[routes.strict]
models = ["strict"]
policy = "vote"
default_max_output = 10
unsupported = "reject"
[routes.least]
models = ["unpriced"]
endpoints = ["chat"]
"""


def models(tokenizer: Path, address: str) -> str:
    """Models of one upstream that can continue answers."""
    text = f'[upstreams.up]\nurl = "{address}"\noffers = ["continue_final_message"]\nretries = 0\n'
    for name in ("word", "strict", "unpriced"):
        price = "" if name == "unpriced" else "price = { input = 1, output = 2 }\n"
        text += (
            f'[models.{name}]\nupstream = "up"\nname = "plain"\ntokenizer = "{tokenizer}"\n{price}'
        )
    return text


@pytest.fixture(scope="module")
def gateway(recorder: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("explain")
    more = POLICIES + models(word_tokenizer(folder), recorder.url) + ROUTES
    with serving(folder, recorder.url, more=more, first=True) as running:
        yield running


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    path = folder / "gateway.toml"
    tables = models(word_tokenizer(folder), "http://127.0.0.1:1/v1")
    path.write_text(POLICIES + tables + ROUTES, encoding="utf-8")
    return path


def body(policy: str | None = None, text: str = "hi you", **fields: Any) -> dict[str, Any]:
    """A request."""
    chosen = {} if policy is None else {"outlay": {"policy": policy}}
    messages = [{"role": "user", "content": text}]
    return {"model": "word", "messages": messages, **chosen, **fields}


def say(config: Path, request: dict[str, Any], **knobs: Any) -> Explained:
    return explain(config, request, **knobs)


# -- the same as the gateway does -----------------------------------------------------------------


def sent(gateway: Serving, request: dict[str, Any], amount: int, unit: str) -> httpx.Response:
    """A request of a key with a budget of its own."""
    made = gateway.key("explained")
    gateway.call(
        partial(admin.create_budget, actor="test"),
        name="explained",
        unit=unit,
        amount=amount,
        window=Window("total"),
        key_id=made.key.id,
    )
    return httpx.post(
        f"{gateway.url}/v1/chat/completions",
        json=request,
        headers={"authorization": f"Bearer {made.token}"},
        timeout=60,
    )


@pytest.mark.parametrize("unit", ["tokens", "nanousd"])
@pytest.mark.parametrize("name", NAMES)
def test_a_budget_of_what_is_said_to_be_reserved_just_holds_it(
    gateway: Serving, name: str, unit: str
) -> None:
    request = body(name, LONG)
    told = explain(gateway.gateway.config, request)
    assert told.reserved is not None
    assert told.plain is not None
    need, plain = (
        each.tokens if unit == "tokens" else each.nanousd for each in (told.reserved, told.plain)
    )
    assert need is not None
    assert plain is not None
    held = sent(gateway, request, need, unit)
    assert held.headers["x-outlay-policy-status"] == "applied"
    short = sent(gateway, request, need - 1, unit)
    if need == plain:
        assert short.status_code == 402
    elif need - 1 >= plain:
        assert short.headers["x-outlay-policy-reason"] == "budget"
        assert short.headers["x-outlay-policy-status"] == "skipped"
    else:
        assert short.status_code == 402


IMAGE = [{"type": "image_url", "image_url": {"url": "data:x"}}]


@pytest.mark.parametrize(
    "request_",
    [
        body(),
        body("none"),
        body("vote", temperature=0),
        body("vote", n=2),
        body("vote", logit_bias={"1": 2}),
        body("cut"),
        body("cut", "a\n\n" + "word " * 500 + "\n\nwhat?"),
        body("all", "a\n\n" + "word " * 500 + "\n\nwhat?"),
        body("cut", response_format={"type": "json_object"}, text=LONG),
        body("hidden"),
        body("gone"),
        body("vote", model="strict", n=2),
        body(model="strict"),
        body(model="other"),
        body(max_tokens=0),
        body(service_tier="flex"),
        body(messages=[{"role": "user", "content": IMAGE}]),
    ],
)
def test_what_is_said_is_what_the_gateway_answers(
    gateway: Serving, request_: dict[str, Any]
) -> None:
    told = explain(gateway.gateway.config, request_)
    got = sent(gateway, request_, 10**9, "tokens")
    if told.status == "refused":
        assert got.status_code >= 400
        assert (got.json()["error"]["code"] or "") == told.code
        return
    assert got.status_code == 200, got.text
    status = {"plain": None, "applies": "applied", "skipped": "skipped"}[told.status]
    assert got.headers.get("x-outlay-policy-status") == status
    if told.status == "skipped":
        assert got.headers.get("x-outlay-policy-reason", "") == told.reason


def test_texts_said_to_be_shortened_are(gateway: Serving, recorder: Running) -> None:
    request = body("cut", LONG, user="shortened")
    (cut,) = explain(gateway.gateway.config, request).texts
    assert (cut.path, cut.tokens, cut.most) == ("messages.0.content", 200, 50)
    sent(gateway, request, 10**9, "tokens")
    (seen,) = [b for b in recorder.handler.bodies if b.get("user") == "shortened"]
    words = seen["messages"][0]["content"].split()
    question = ["first", "words", "what", "is", "it?"]
    assert len(question) < len(words) <= cut.most + len(question)


# -- what is said ---------------------------------------------------------------------------------


def test_every_stage_has_its_worst_case_and_they_add_up(config: Path) -> None:
    told = say(config, body("all", LONG))
    assert told.status == "applies"
    assert [(each.stage, each.method) for each in told.stages] == [
        ("prompt", "head"),
        ("reason", "self-consistency:n=2"),
        ("fallback", "plain"),
    ]
    assert told.needs == ("append", "stop")
    assert "append" in told.offers
    assert told.reserved is not None
    assert told.plain is not None
    assert sum(each.worst.prompt for each in told.stages) == told.reserved.prompt
    assert sum(each.worst.output for each in told.stages) == told.reserved.output
    assert told.stages[-1].worst.tokens == told.plain.tokens
    assert told.reserved.nanousd == 1000 * told.reserved.prompt + 2000 * told.reserved.output
    # Two answers, each of at most 6 tokens of thinking and 8 of answer.
    assert told.stages[1].worst.output == 2 * (6 + 8)


@given(n=st.integers(1, 6), most=st.integers(1, 50), words=st.integers(0, 40))
@settings(max_examples=20, deadline=None)
def test_the_worst_case_is_the_methods_own(config: Path, n: int, most: int, words: int) -> None:
    given_ = read(config)
    table = Policy(reason=f"self-consistency:n={n}")
    both = given_.model_copy(update={"policies": {**given_.policies, "p": table}})
    told = explain(both, body(text="word " * words, max_tokens=most), policy="p")
    assert told.plain is not None
    ready = prepare("p", table)
    each = ready.worst(Shape(told.plain.prompt, most, len))
    (stage, _) = told.stages
    assert stage.worst.output == each.output
    assert stage.worst.calls == n
    assert stage.worst.prompt >= each.prompt


def test_without_a_fallback_nothing_is_set_aside_for_it(config: Path) -> None:
    told = say(config, body("bare"))
    assert [each.stage for each in told.stages] == ["reason"]
    assert any("without a fallback" in note for note in told.notes)


def test_compression_reserves_what_the_plain_request_does(config: Path) -> None:
    told = say(config, body("cut", LONG))
    assert told.reserved == told.plain
    assert any("whole prompt is reserved" in note for note in told.notes)


def test_texts_that_are_short_or_too_long_are_left_and_the_policy_is_skipped(config: Path) -> None:
    short = say(config, body("cut", "a\n\nfew words\n\nwhat?"))
    assert (short.status, short.reason) == ("skipped", "short")
    assert [(cut.most, cut.why) for cut in short.texts] == [(None, "short")]
    huge = say(config, body("cut", "a\n\n" + "word " * 500 + "\n\nwhat?"))
    assert [(cut.most, cut.why) for cut in huge.texts] == [(None, "too long to score")]
    assert huge.reason == "too long to score"


def test_a_question_of_the_requests_own_is_told(config: Path) -> None:
    request = body(None, LONG, outlay={"policy": "cut", "question": "which word?"})
    assert say(config, request).question == "which word?"
    assert say(config, body("cut", LONG)).question.split() == [
        "first",
        "words",
        "what",
        "is",
        "it?",
    ]


def test_a_policy_can_be_assumed_that_the_route_does_not_offer(config: Path) -> None:
    assert say(config, body("hidden")).code == "policy_not_allowed"
    told = say(config, body("vote"), policy="hidden")
    assert (told.policy, told.status) == ("hidden", "applies")
    assert any("does not offer 'hidden'" in note for note in told.notes)
    assert say(config, body("vote"), policy="none").status == "plain"
    with pytest.raises(InputError, match="no policy 'gone'; policies are: cut, vote"):
        say(config, body(), policy="gone")


def test_an_assumed_policy_that_the_model_cannot_serve_is_told(config: Path) -> None:
    text = config.read_text(encoding="utf-8").replace('offers = ["continue_final_message"]', "")
    text = text.replace('choose = ["cut", "vote", "think", "all", "bare", "none"]', "")
    path = config.with_name("bare.toml")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="policy 'think' cannot run on model 'word'"):
        say(path, body(), policy="think")
    assert say(path, body(), policy="vote").status == "applies"


def test_requests_that_are_none_are_refused_as_the_gateway_does(config: Path) -> None:
    for raw, match in ((b"{", "not JSON"), (b"[]", "no"), (b'{"model": 5}', "model"), (b"", "not")):
        told = explain(config, raw)
        assert told.status == "refused"
        assert match in told.reason
    assert say(config, body(model="unpriced"), endpoint="embeddings").code in ("", "no_route")
    gone = explain(config, {"model": "unpriced", "input": "x"}, endpoint="embeddings")
    assert (gone.status, gone.code) == ("refused", "no_route")
    with pytest.raises(InputError, match="endpoint='x'; choose chat"):
        say(config, body(), endpoint="x")
    with pytest.raises(InputError, match="cannot be written as JSON"):
        say(config, {"model": object()})


def test_a_configuration_that_no_gateway_starts_with_is_told(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(
        '[upstreams.u]\nlocal = "embedded"\n[policies.p]\nreason = "gone"\n'
        '[models.m]\nupstream = "u"\n[routes.r]\npolicy = "p"\n'
    )
    with pytest.raises(InputError, match="unknown method 'gone'"):
        explain(path, {"model": "m", "messages": [{"role": "user", "content": "x"}]})
    with pytest.raises(InputError, match="is no file"):
        explain(tmp_path / "none.toml", {})


# -- budgets --------------------------------------------------------------------------------------


def test_budgets_that_could_never_hold_it_are_named(config: Path) -> None:
    told = say(config, body("vote"))
    assert told.reserved is not None
    assert told.plain is not None
    whole, plain = told.reserved.tokens, told.plain.tokens
    tried = say(config, body("vote"), tokens=(whole, whole - 1, plain, plain - 1))
    assert [(each.whole, each.plain) for each in tried.limits] == [
        (True, True),
        (False, True),
        (False, True),
        (False, False),
    ]
    assert "it is skipped (budget)" in tried.limits[1].outcome
    assert "refused" in tried.limits[3].outcome
    assert not any("a mistake" in note for note in tried.notes)


def test_a_policy_that_exceeds_every_budget_is_a_mistake(config: Path) -> None:
    tried = say(config, body("vote"), tokens=(50,), usd=("0.00005",))
    assert any("a mistake: policy 'vote' reserves more" in note for note in tried.notes)
    strict = say(config, body(model="strict"), tokens=(60,))
    assert [each.outcome for each in strict.limits] == [
        "could never hold the policy: refused, as the route wants it"
        if strict.plain is not None and strict.plain.tokens <= 60
        else "could never hold it: refused"
    ]


def test_money_needs_a_price_and_amounts_that_are_some(config: Path) -> None:
    (limit,) = say(config, body(model="unpriced"), usd=("1",)).limits
    assert limit.outcome == "refused: the model has no price"
    with pytest.raises(InputError, match="is no amount of money"):
        say(config, body(), usd=("much",))
    with pytest.raises(InputError, match="tokens is >= 0"):
        say(config, body(), tokens=(-1,))


# -- the command line -----------------------------------------------------------------------------


@pytest.fixture
def call(config: Path) -> Any:
    app = typer.Typer()
    cli.register(app)

    def run(*words: str, stdin: str = "", code: int = 0) -> Any:
        result = runner.invoke(app, ["policy", "explain", str(config), *words], input=stdin)
        assert result.exit_code == code, result.output
        return result

    return run


def test_the_command_reads_a_file_or_standard_input(tmp_path: Path, call: Any) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(body("all", LONG)), encoding="utf-8")
    shown = call(str(path), "--budget", "100000").stdout
    assert "policy all applies" in shown
    assert "text messages.0.content: 200 tokens, at most 50" in shown
    assert "budget of 100,000 tokens: holds it" in shown
    told = json.loads(call("-", "--json", stdin=json.dumps(body("all", LONG))).stdout)
    assert told == json.loads(json.dumps(explain_again(call, path)))


def explain_again(call: Any, path: Path) -> Any:
    return json.loads(call(str(path), "--json").stdout)


def test_the_command_tells_refusals_and_mistakes(tmp_path: Path, call: Any) -> None:
    refused = call("-", stdin=json.dumps(body("gone"))).stdout
    assert "the request is refused: 'gone' is no policy that may be chosen here" in refused
    assert "no policy\n" in call("-", stdin=json.dumps(body())).stdout
    assert "cannot be read" in call(str(tmp_path / "none.json"), code=2).stderr
    wrong = json.loads(call("-", "--policy", "gone", "--json", stdin="{}", code=2).stdout)
    assert "there is no policy 'gone'" in wrong["error"]["message"]


def test_nothing_heavy_is_loaded_to_explain(config: Path) -> None:
    program = (
        "import sys, json\n"
        "from outlay.gateway.policies.explaining import explain\n"
        f"told = explain({str(config)!r}, {body('vote')!r})\n"
        "assert told.status == 'applies', told\n"
        "print(json.dumps([m for m in ('torch', 'transformers') if m in sys.modules]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []


def test_the_catalogue_of_the_tests_is_one_that_starts(config: Path) -> None:
    assert set(Catalogue(read(config)).policies) == {*NAMES, "hidden"}
