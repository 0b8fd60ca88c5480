"""Search and verification over an endpoint: the same answers, and honest books."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from outlay.budget import Budget
from outlay.errors import CapabilityError
from outlay.models.base import SamplingParams
from outlay.models.endpoint import EndpointModel
from outlay.models.local import LocalModel
from outlay.reason import BestOfN, Question
from outlay.reason.astar import AStarDecoding
from outlay.reason.latent_trajectory import LTEarly, LTScorer, collect
from outlay.reason.think_prm import ThinkPRM
from outlay.testbeds.reasoner import parse_question
from outlay.testbeds.reasoner.oracle import ChainOracle
from outlay.testbeds.reasoner.prm import ChainPRM

from .conftest import questions
from .recording_server import MODEL, Server, serving

pytestmark = pytest.mark.server

QUESTION = "3+4*7=?"
RIGHT = ("3+4=7;", "7*7=9;", "</think><answer>9")
WRONG = ("3+4=7;", "7*7=8;", "</think><answer>8")


@pytest.fixture(scope="module")
def server(reasoner: LocalModel) -> Iterator[Server]:
    with serving(reasoner) as running:
        yield running


@pytest.fixture(scope="module")
def remote(server: Server, reasoner: LocalModel) -> EndpointModel:
    return EndpointModel(server.url, MODEL, api="completions", tokenizer=reasoner.tokenizer)


def test_a_star_asks_for_all_successors_at_once_and_finds_the_answer(
    server: Server, remote: EndpointModel
) -> None:
    method = AStarDecoding(ChainOracle(1.0), 3, max_expansions=60)
    sampling = SamplingParams(temperature=1.2, max_tokens=120, seed=3)
    assert remote.capabilities.n
    for question in questions(3, (4, 6)):
        before = len(server.requests)
        answer = method.solve(remote, question, sampling=sampling)
        asked = server.requests[before:]
        assert answer.status == "goal"
        assert answer.value == parse_question(question.text).answer
        assert len(asked) == answer.detail["expansions"]
        assert all(body["n"] == 3 and body["stop"] == [";"] for body in asked)
        assert all(body["prompt"].startswith(question.prompt) for body in asked)
        total = answer.ledger.totals()
        assert total.generated == total.delivered + total.discarded
        assert answer.ledger.totals(role="verifier").calls == answer.detail["passes"]


def test_one_greedy_successor_is_what_the_local_model_writes(
    remote: EndpointModel, reasoner: LocalModel
) -> None:
    greedy = SamplingParams(max_tokens=120)
    for question in questions(2, (3, 5)):
        method = AStarDecoding(ChainPRM(), 1)
        there = method.solve(remote, question, sampling=greedy)
        here = method.solve(reasoner, question, sampling=greedy)
        assert there.text.removesuffix("<eos>") == here.text.removesuffix("<eos>")
        assert there.value == here.value is not None


@pytest.mark.parametrize("tokens", [20, 60])
def test_a_star_keeps_its_budget_there(remote: EndpointModel, tokens: int) -> None:
    method = AStarDecoding(ChainPRM(), 2)
    sampling = SamplingParams(temperature=1.0, max_tokens=120)
    for question in questions(2, (4, 6)):
        answer = method.solve(remote, question, Budget(tokens=tokens), sampling)
        assert answer.ledger.totals(role="target").generated <= tokens


@pytest.fixture(scope="module")
def verifiers() -> Iterator[tuple[ThinkPRM, ThinkPRM, Server]]:
    here = ThinkPRM.load("reasoner")
    assert isinstance(here.model, LocalModel)
    with serving(here.model) as server:
        judge = EndpointModel(
            server.url,
            MODEL,
            api="completions",
            tokenizer=here.model.tokenizer,
            context_length=here.model.context_length,
        )
        there = ThinkPRM(judge, layout="compact", max_verify_tokens=here.max_verify_tokens)
        yield here, there, server


def test_a_served_verifier_says_what_the_local_one_says(
    verifiers: tuple[ThinkPRM, ThinkPRM, Server],
) -> None:
    here, there, server = verifiers
    asked = [QUESTION] * 2
    local, served = here.judge(asked, [RIGHT, WRONG]), there.judge(asked, [RIGHT, WRONG])
    for one, other in zip(local, served, strict=True):
        assert other.chains == one.chains
        assert other.first_error == one.first_error
        assert other.score == pytest.approx(one.score, abs=1e-3)
        assert other.steps == pytest.approx(one.steps, abs=1e-3)
        assert not other.sampled
    assert served[1].first_error == 1
    assert any(body.get("echo") for body in server.requests)


def test_a_served_verifier_judges_a_served_policy(
    verifiers: tuple[ThinkPRM, ThinkPRM, Server], remote: EndpointModel
) -> None:
    _, there, _ = verifiers
    (question,) = questions(1, (2, 3))
    sampling = SamplingParams(temperature=1.0, max_tokens=60)
    answer = BestOfN(there, 3).solve(remote, question, None, sampling)
    assert answer.value is not None
    assert len(answer.scores) == 3
    assert answer.ledger.totals(role="verifier").generated > 0


def test_a_server_that_scores_no_prompts_is_asked_for_verdicts() -> None:
    here = ThinkPRM.load("reasoner").model
    assert isinstance(here, LocalModel)
    with serving(here, echoes=False) as server:
        judge = EndpointModel(server.url, MODEL, api="completions", tokenizer=here.tokenizer)
        assert judge.capabilities.logprobs
        with pytest.warns(UserWarning, match="frequencies"):
            verifier = ThinkPRM(judge, layout="compact", max_verify_tokens=120, chains=2)
        right, wrong = verifier.judge([QUESTION] * 2, [RIGHT, WRONG])
    assert right.sampled
    assert {right.score, wrong.score} <= {0.0, 0.5, 1.0}
    assert right.score > wrong.score
    assert wrong.first_error == 1


def test_latent_trajectory_refuses_an_endpoint_by_name(
    remote: EndpointModel, reasoner: LocalModel
) -> None:
    asked = questions(20, (8, 12))
    sampling = SamplingParams(temperature=1.3, max_tokens=120)

    def right(question: Question, value: str | None) -> bool:
        return value == parse_question(question.text).answer

    pool = collect(reasoner, asked, right, R=2, k=12, sampling=sampling)
    fitted = LTEarly(k=12, K=2, classifier="logistic").fit(pool)
    refused = pytest.raises(CapabilityError, match=rf"latent-trajectory.*hidden_states.*{MODEL}")
    with refused:
        fitted.solve(remote, asked[0], sampling=sampling)
    with refused:
        collect(remote, asked, right)
    with refused:
        LTScorer(remote)  # type: ignore[arg-type]
