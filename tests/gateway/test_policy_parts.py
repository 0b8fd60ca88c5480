"""The parts of policies without a server: texts, purse, worst cases, choices, checks at start."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from counting import word_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from outlay.decode.plain import NoThinking, PlainDecoder
from outlay.decode.thinking_budget import ThinkingBudget
from outlay.errors import BudgetError, InputError
from outlay.gateway.bounds import Wanted, bound, parse
from outlay.gateway.config import Config, ModelTable, Route
from outlay.gateway.policies import plan as planning
from outlay.gateway.policies import texts
from outlay.gateway.policies.methods import Catalogue, prepare
from outlay.gateway.policies.purse import Purse, Taken
from outlay.gateway.policies.tables import Policy
from outlay.gateway.problems import RequestError
from outlay.gateway.usage import Usage
from outlay.reason.plan_and_budget import PlanAndBudget
from outlay.reason.voting import Greedy, SelfConsistency, Shortest
from outlay.worst import Shape, Worst, growing

# -- texts ----------------------------------------------------------------------------------------

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=60)


def chat(*messages: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


def test_the_middle_of_the_last_user_text_is_what_is_asked_about() -> None:
    body = chat(("system", "a\n\nb\n\nc"), ("user", "Read this.\n\nlong\n\nlonger\n\nWhat is it?"))
    question, pieces = texts.find("chat", body)
    assert question.split() == ["Read", "this.", "What", "is", "it?"]
    assert [piece.text for piece in pieces] == ["long\n\nlonger"]


def test_fenced_blocks_are_what_is_asked_about() -> None:
    text = "What does it print?\n```python\nprint(1)\nprint(2)\n```\nBe brief."
    question, pieces = texts.find("chat", chat(("user", text)))
    assert question.split("\n") == ["What does it print?", "", "Be brief."]
    assert [piece.text for piece in pieces] == ["print(1)\nprint(2)\n"]


def test_earlier_user_texts_are_pieces_and_other_roles_never_are() -> None:
    body = chat(
        ("system", "s\n\ns\n\ns"),
        ("user", "first"),
        ("assistant", "a\n\na\n\na"),
        ("tool", "t\n\nt\n\nt"),
        ("user", "second"),
    )
    question, pieces = texts.find("chat", body)
    assert question == "second"
    assert [(piece.path, piece.text) for piece in pieces] == [(("messages", 1, "content"), "first")]


def test_a_text_of_one_paragraph_is_a_question_and_left_alone() -> None:
    assert texts.find("chat", chat(("user", "why?"))) == ("why?", [])


def test_a_named_question_stands() -> None:
    body = chat(("user", "a\n\nb\n\nc"))
    assert texts.find("chat", body, "mine")[0] == "mine"


def test_parts_and_the_other_endpoints_are_read() -> None:
    parts = [{"type": "text", "text": "x"}, {"type": "text", "text": "what?"}]
    question, pieces = texts.find("chat", chat(("user", parts)))
    assert (question, [piece.text for piece in pieces]) == ("what?", ["x"])
    question, pieces = texts.find("completions", {"prompt": "head\n\nmiddle\n\ntail"})
    assert [piece.text for piece in pieces] == ["middle"]
    items = [{"role": "user", "content": [{"type": "input_text", "text": "a\n\nb\n\nc"}]}]
    assert [piece.text for piece in texts.find("responses", {"input": items})[1]] == ["b"]
    assert [piece.text for piece in texts.find("responses", {"input": "a\n\nb\n\nc"})[1]] == ["b"]
    assert texts.find("embeddings", {"input": "a\n\nb\n\nc"}) == ("", [])


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), WORDS)))
def test_replacing_pieces_touches_nothing_else(messages: list[tuple[str, str]]) -> None:
    body = {"model": "m", **chat(*messages)}
    before = json.dumps(body)
    _, pieces = texts.find("chat", body)
    made = texts.replaced(body, [(piece, "<" + piece.text + ">") for piece in pieces])
    assert json.dumps(body) == before  # a copy
    for old, new in zip(body["messages"], made["messages"], strict=True):
        if old["role"] != "user":
            assert new == old
    same = texts.replaced(body, [(piece, piece.text) for piece in pieces])
    assert same == body


# -- the purse ------------------------------------------------------------------------------------


class PurseMachine(RuleBasedStateMachine):
    """Whatever is taken, sent, settled or left open, the purse never gives more than it has."""

    def __init__(self) -> None:
        super().__init__()
        self.purse = Purse(100, 40)
        self.open: list[Taken] = []
        self.closed = False
        self.most = Usage(0, 0, 0, 0)

    @rule(prompt=st.integers(0, 120), output=st.integers(0, 50), sent=st.booleans())
    def take(self, prompt: int, output: int, sent: bool) -> None:
        left = self.purse.left()
        try:
            taken = self.purse.take(prompt, output)
        except BudgetError:
            assert self.closed or prompt > left.prompt or output > left.output
            return
        assert not self.closed
        if sent:
            self.purse.send(taken)
        self.open.append(taken)

    @precondition(lambda self: self.open)
    @rule(share=st.floats(0, 1), known=st.booleans())
    def settle(self, share: float, known: bool) -> None:
        taken = self.open.pop()
        used = Usage(int(taken.prompt * share), 0, int(taken.output * share), 0)
        self.purse.settle(taken, used if known else None)

    @rule()
    def close(self) -> None:
        self.closed = True
        first = self.purse.close()
        assert self.purse.close().prompt <= first.prompt  # later settlements only lower it

    @invariant()
    def never_more_than_it_has(self) -> None:
        spent = self.purse._spent(held=True)
        assert spent.prompt <= 100
        assert spent.output <= 40


TestPurse = PurseMachine.TestCase
TestPurse.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_call_that_was_never_sent_costs_nothing() -> None:
    purse = Purse(10, 10)
    purse.take(5, 5)
    assert purse.close() == Usage(0, 0, 0, 0)
    assert not purse.unknown


def test_a_sent_call_without_an_outcome_counts_in_full_and_is_unknown() -> None:
    purse = Purse(10, 10)
    purse.send(purse.take(5, 4))
    assert purse.close() == Usage(5, 0, 4, 0)
    assert purse.unknown


def test_nothing_is_sent_after_the_request_is_over() -> None:
    purse = Purse(10, 10)
    taken = purse.take(5, 4)
    purse.close()
    with pytest.raises(BudgetError, match="the request is over"):
        purse.send(taken)


# -- worst cases ----------------------------------------------------------------------------------

SHAPE = Shape(prompt=100, answer=20, count=len)


def test_votes_cost_n_answers() -> None:
    assert SelfConsistency(n=4).worst(SHAPE) == Worst(400, 80, 4)
    assert Shortest(n=2).worst(SHAPE) == Worst(200, 40, 2)
    assert Greedy().worst(SHAPE) == Worst(100, 20, 1)


def test_votes_over_a_decoder_cost_n_of_its_answers() -> None:
    decoded = Worst(7, 5, 3)
    shape = replace(SHAPE, decoded=decoded)
    assert SelfConsistency(n=4).worst(shape) == Worst(28, 20, 12)


@given(st.integers(1, 500), st.lists(st.integers(0, 50), max_size=8))
def test_growing_reads_the_prompt_and_all_before_again(prompt: int, parts: list[int]) -> None:
    read = sum(prompt + sum(parts[:at]) for at in range(len(parts)))
    assert growing(prompt, parts) == Worst(read, sum(parts), len(parts))


def test_thinking_is_on_top_where_max_think_says_how_much() -> None:
    decoder = ThinkingBudget(max_think=50, think_open="<t>", think_close="</t>")
    assert decoder.worst(SHAPE).output == 70
    assert decoder.room(SHAPE).tokens == 70
    assert decoder.room(SHAPE).stages == {"think": 50, "answer": 20}


def test_thinking_is_within_the_answer_where_nothing_says_how_much() -> None:
    assert ThinkingBudget().worst(SHAPE).output == 20
    assert ThinkingBudget().room(SHAPE).tokens == 20
    assert PlainDecoder().worst(SHAPE) == Worst(100, 20, 1)
    assert NoThinking().worst(SHAPE).output == 20


def test_more_waits_can_only_cost_more() -> None:
    costs = [ThinkingBudget(max_think=50, n_wait=n).worst(SHAPE).prompt for n in (0, 1, 5)]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


def test_what_has_no_bound_says_so() -> None:
    with pytest.raises(BudgetError, match="n_wait=inf"):
        ThinkingBudget(n_wait=float("inf")).worst(SHAPE)
    with pytest.raises(BudgetError, match="planner of one's own"):
        PlanAndBudget(planner=lambda session: ["x"]).worst(SHAPE)
    with pytest.raises(BudgetError, match="BAM"):
        PlanAndBudget(allocator="bam").worst(SHAPE)


# -- choices and requests that a policy cannot take -----------------------------------------------

TABLE = ModelTable(upstream="u")
POLICIES = {
    "cut": prepare("cut", Policy(prompt="head")),
    "vote": prepare("vote", Policy(reason="self-consistency:n=2")),
}
ROUTE = Route(policy="cut", choose=("vote", "none"), max_n=16, allow=("modalities",))


def wanted(endpoint: Any = "chat", **fields: Any) -> Wanted:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    if endpoint == "embeddings":
        body = {"model": "m", "input": "hi", **fields}
    if endpoint == "completions":
        body = {"model": "m", "prompt": "hi", **fields}
    table = ModelTable(upstream="u", image_tokens=10, tool_tokens=10)
    return bound(parse(endpoint, orjson.dumps(body), 64), table, ROUTE, 10**6)


def plan(one: Wanted, route: Route = ROUTE) -> planning.Plan | None:
    return planning.make(POLICIES, route, one, TABLE)


def test_the_routes_policy_applies_unless_another_one_is_chosen() -> None:
    made = plan(wanted())
    assert made is not None
    assert made.books.policy == "cut"
    chosen = plan(wanted(outlay={"policy": "vote"}))
    assert chosen is not None
    assert chosen.books.policy == "vote"
    assert plan(wanted(outlay={"policy": "none"})) is None


@pytest.mark.parametrize(
    ("given_", "match"),
    [
        ({"policy": "other"}, "no policy that may be chosen here; this route offers vote, none"),
        ({"policy": 7}, "policy: Input should be a valid string"),
        ({"policy": "x" * 100}, "policy: String should have at most 64"),
        ({"method": "x"}, "method: Extra inputs are not permitted"),
        ("vote", "outlay: Input should be"),
        ({"question": 5}, "question: Input should be a valid string"),
        ({"question": "x" * 30_000}, "question: String should have at most 20000"),
    ],
)
def test_only_what_the_route_allows_can_be_chosen(given_: Any, match: str) -> None:
    with pytest.raises(RequestError, match=match) as caught:
        plan(wanted(outlay=given_))
    assert caught.value.status == 400


def test_a_route_without_policies_refuses_a_choice() -> None:
    with pytest.raises(RequestError, match="offers nothing"):
        plan(wanted(outlay={"policy": "vote"}), Route())
    assert plan(wanted(), Route()) is None


def test_the_choice_is_never_weighed_or_sent_on() -> None:
    plain, chosen = wanted(), wanted(outlay={"policy": "vote", "question": "long " * 100})
    assert "outlay" not in chosen.fields
    assert chosen.prompt == plain.prompt


IMAGE = [{"type": "image_url", "image_url": {"url": "data:x"}}]
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"n": 2}, "choices"),
        ({"response_format": {"type": "json_schema"}}, "schema"),
        ({"messages": [{"role": "user", "content": IMAGE}]}, "images"),
    ],
)
def test_what_a_policy_cannot_take_is_skipped_or_refused(
    fields: dict[str, Any], reason: str
) -> None:
    for name in ("cut", "vote"):
        route = Route(policy=name)
        made = planning.make(POLICIES, route, wanted(**fields), TABLE)
        assert made is not None
        assert made.policy is None
        assert (made.books.status, made.books.reason) == ("skipped", reason)
        strict = Route(policy=name, unsupported="reject")
        with pytest.raises(RequestError, match=reason) as caught:
            planning.make(POLICIES, strict, wanted(**fields), TABLE)
        assert caught.value.code == "policy_unsupported"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"logit_bias": {"1": 2}}, "field logit_bias"),
        ({"temperature": 0}, "temperature"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tools"),
    ],
)
def test_methods_refuse_what_their_calls_cannot_honour(fields: Any, reason: str) -> None:
    made = planning.make(POLICIES, Route(policy="vote"), wanted(**fields), TABLE)
    assert made is not None
    assert made.books.reason == reason
    kept = planning.make(POLICIES, Route(policy="cut"), wanted(**fields), TABLE)
    assert kept is not None
    assert kept.policy is not None  # a compressor leaves all of it as it is


def test_methods_answer_chats_only() -> None:
    for endpoint in ("completions", "embeddings"):
        made = planning.make(POLICIES, Route(policy="vote"), wanted(endpoint), TABLE)
        assert made is not None
        assert made.books.reason == "endpoint"
    made = planning.make(POLICIES, Route(policy="cut"), wanted("embeddings"), TABLE)
    assert made is not None
    assert made.books.reason == "endpoint"


# -- checks at start ------------------------------------------------------------------------------


def config(**tables: Any) -> Config:
    given_ = {
        "upstreams": {"u": {"url": "http://127.0.0.1:1/v1"}, "here": {"local": "embedded"}},
        "models": {"m": {"upstream": "u"}, "l": {"upstream": "here"}},
        **tables,
    }
    return Config.model_validate(given_)


def routed(policy: dict[str, Any], model: str = "m", **more: Any) -> Config:
    return config(policies={"p": policy}, routes={"r": {"models": [model], "policy": "p"}}, **more)


@pytest.mark.parametrize(
    ("policy", "match"),
    [
        ({"prompt": "plain"}, "policies.p: plain lives in decode/ and cannot be the prompt"),
        ({"decode": "head"}, "head lives in prompt/"),
        ({"reason": "nobody"}, "unknown method 'nobody'"),
        ({"reason": "a-star-decoding", "verifier": "chain-prm"}, "does not say what it costs"),
        ({"reason": "best-of-n"}, "needs a verifier"),
        ({"reason": "shortest", "verifier": "chain-prm"}, "takes no verifier"),
        ({"decode": "m1:n_wait=inf"}, "n_wait"),
        ({"reason": "plan-and-budget", "decode": "plain"}, "decodes by itself"),
        ({"reason": "best-of-n", "verifier": "nobody"}, "unknown verifier"),
    ],
)
def test_policies_that_cannot_be_are_refused_with_the_reason(
    policy: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        Catalogue(routed(policy, "l"))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A tokenizer that counts words, and a configuration beside it."""
    return {
        "tokenizer": str(word_tokenizer(tmp_path)),
        "tokenizer_config": str(tmp_path / "tokenizer_config.json"),
    }


def thinking(upstream: dict[str, Any], **model: str) -> Config:
    return routed(
        {"decode": "m1:max_think=8"},
        models={"m": {"upstream": "u", **model}},
        upstreams={"u": {"url": "http://127.0.0.1:1/v1", **upstream}},
    )


def test_methods_that_the_upstream_cannot_serve_are_refused_at_start(files: dict[str, str]) -> None:
    completions = {"offers": ["completions"]}
    with pytest.raises(InputError, match="it needs append, which upstream 'u' does not offer"):
        Catalogue(thinking({}))
    with pytest.raises(InputError, match=r"no tokenizer; set models\.m\.tokenizer"):
        Catalogue(thinking(completions))
    with pytest.raises(InputError, match=r"chat template; set models\.m\.tokenizer_config"):
        Catalogue(thinking(completions, tokenizer=files["tokenizer"]))
    with pytest.raises(InputError, match="is no file"):
        Catalogue(thinking(completions, **{**files, "tokenizer_config": "gone.json"}))
    with pytest.raises(InputError, match=r"gone\.json is no tokenizer"):
        Catalogue(thinking(completions, **{**files, "tokenizer": "gone.json"}))


def test_what_the_upstream_offers_is_accepted(files: dict[str, str]) -> None:
    spoken = thinking({"offers": ["continue_final_message"]}, tokenizer=files["tokenizer"])
    continued = thinking({"offers": ["completions"]}, **files)
    for found in (spoken, continued):
        assert Catalogue(found).policies["p"].solves


def test_hidden_states_are_of_local_models_only() -> None:
    policy = {"reason": "latent-trajectory:R=2"}
    with pytest.raises(InputError, match="it needs hidden_states, which upstream 'u' does not"):
        Catalogue(routed(policy))
    assert Catalogue(routed(policy, "l")).policies["p"].needs() == ("hidden_states",)


def test_compressors_need_nothing_of_the_upstream() -> None:
    assert not Catalogue(routed({"prompt": "head"})).policies["p"].solves


@pytest.mark.parametrize(
    ("tables", "match"),
    [
        ({"routes": {"r": {"policy": "gone"}}}, "names 'gone'; policies are: none"),
        ({"policies": {"none": {"prompt": "head"}}}, "that name says that there is no policy"),
        ({"policies": {"p": {}}}, "needs prompt, reason or decode"),
        ({"policies": {"p": {"prompt": "head", "verifier": "x"}}}, "verifier is for a reason"),
        ({"policies": {"p": {"prompt": "head", "keep": 1.0}}}, "less than 1"),
        ({"policies": {"p": {"prompt": "head", "what": 1}}}, "Extra inputs"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(tables: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        config(**tables)
