"""The task: problems, verification by replay, episodes through budgets, servers and models."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from json_server import JsonHandler, JsonServer, running
from outlay.budget import Budget
from outlay.errors import EndpointError, InputError
from outlay.evals.base import Explains, Interactive, Marks, Problem, Task
from outlay.evals.robots import planner
from outlay.evals.robots.scripted import ScriptedModel
from outlay.evals.robots.tasks import PAPER_SIZES, Robots
from outlay.models.base import Account, SamplingParams
from outlay.models.endpoint import EndpointModel

FRAMEWORKS = ("cmas", "hmas2", "dmas", "hmas1", "hmas1-fast")


def test_it_is_an_episode_task():
    task = Robots()
    assert isinstance(task, Task)
    assert isinstance(task, Interactive)
    assert isinstance(task, Explains)
    assert isinstance(task, Marks)
    assert (task.kind, task.metric, task.name) == ("episode", "success", "robots/boxnet1/hmas2")
    assert pickle.loads(pickle.dumps(task)) == task  # noqa: S301 - our own
    assert hash(task) == hash(Robots())


@pytest.mark.parametrize("world", PAPER_SIZES)
def test_samples_take_turns_through_the_paper_s_sizes_and_extend(world):
    task = Robots(world=world)
    small, large = task.sample(3, 5), task.sample(3, 9)
    assert large[:5] == small
    assert len({problem.id for problem in large}) == 9
    assert len({problem.meta["world"] for problem in large[:4]}) == 4
    assert large[4].meta["world"] == large[0].meta["world"]
    assert task.sample(4, 5) != small


@pytest.mark.parametrize("world", PAPER_SIZES)
def test_verify_replays_and_corrupted_answers_fail_with_a_reason(world):
    task = Robots(world=world)
    (problem,) = task.sample(0, 1)
    rules, state = task.instance(problem)
    plans, solved = planner.rollout(rules, state, lambda s: planner.greedy(rules, s))
    assert solved
    assert task.verify(problem, json.dumps(plans)) == 1.0
    assert task.explain(problem, json.dumps(plans))["steps"] == str(len(plans))
    key = next(iter(plans[0]))
    wrong = {
        "not solved": plans[:-1],
        "comes after": [*plans, {}],
        "plan 1": [{key: "dance"}, *plans[1:]],
        "no list": {"plans": plans},
        "not JSON": None,
        "more than": [{}] * (rules.step_limit + 1),
    }
    for reason, answer in wrong.items():
        text = "[" * 9000 if answer is None else json.dumps(answer)
        assert task.verify(problem, text) == 0.0
        assert reason in task.explain(problem, text)["reason"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_play_gives_the_quality_that_verify_gives_and_names_the_policy(framework):
    task = Robots(world="warehouse", framework=framework)
    seen = set()
    for problem in task.sample(1, 6):
        model = ScriptedModel(task.instance(problem)[0])
        account = Account.open(Budget())
        episode = task.play(
            model, problem, Budget(), SamplingParams(), decode=None, account=account
        )
        assert episode.quality == task.verify(problem, episode.texts["answer"])
        facts = json.loads(episode.texts["facts"])
        assert facts["tokens"] == account.ledger.totals().all
        assert sum(row["calls"] for row in facts["by_role"].values()) == facts["api_calls"]
        assert "not a language model" in episode.texts["scripted"]
        assert episode.texts["transcript"].rstrip().splitlines()[-1].startswith("ended: ")
        seen.add(episode.quality)
    assert seen <= {0.0, 1.0}


def test_marks_show_where_a_transcript_s_plans_led():
    task = Robots(world="warehouse", framework="cmas")
    endings = {}
    for problem in Robots(world="warehouse").sample(1, 8):
        for checker in ("feasible", "collisions"):
            task = Robots(world="warehouse", framework="cmas", checker=checker)
            log = task.run(ScriptedModel(task.instance(problem)[0]), problem, SamplingParams())
            text = log.transcript()
            marks = task.marks(problem, text)
            shown = [json.loads(text[mark.start : mark.end]) for mark in marks]
            assert shown == [turn.plan for turn in log.turns]
            assert all(mark.good is None for mark in marks[:-1])
            endings[log.ending] = (marks[-1].good, marks[-1].label)
    assert endings["solved"][0] is True
    assert endings["collision"][0] is False
    assert "collision at" in endings["collision"][1]
    (bad,) = task.marks(problem, 'x\n-> {"agent0": "dance"}\ny')
    assert (bad.good, "not one of" in bad.label) == (False, True)
    assert task.marks(problem, "[]") == []


def test_a_spent_budget_ends_the_episode_as_a_failure_not_as_an_error():
    task = Robots(framework="dmas")
    (problem,) = task.sample(0, 1)
    budget = Budget(tokens=60)
    account = Account.open(budget)
    model = ScriptedModel(task.instance(problem)[0])
    episode = task.play(model, problem, budget, SamplingParams(), decode=None, account=account)
    assert (episode.quality, episode.texts["finish"]) == (0.0, "out of tokens")
    assert account.ledger.totals().generated <= 60


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"world": "kitchen"}, "world='kitchen'"),
        ({"framework": "boss"}, "framework='boss'"),
        ({"size": (2,)}, "size="),
        ({"size": (2, 2, 2)}, "size="),
        ({"world": "warehouse", "size": (3, 5)}, "size="),
        ({"size": (0, 2)}, "rows=0"),
        ({"framework": "hmas2", "votes": 3}, "votes"),
        ({"framework": "cmas", "max_rounds": 3}, "max_rounds"),
        ({"token_budget": 0}, "token_budget=0"),
        ({"history_tokens": 0}, "history_tokens=0"),
        ({"step_limit": 0}, "step_limit=0"),
        ({"reply_tokens": 0}, "reply_tokens=0"),
        ({"agree": "maybe"}, "agree='maybe'"),
        ({"history": "long"}, "history='long'"),
        ({"colours": ("red", "red")}, "duplicates"),
        ({"world": "warehouse", "occupancy": 2.0}, "occupancy=2.0"),
    ],
)
def test_bad_knobs_are_refused_by_name(knobs, says):
    with pytest.raises(InputError, match=says):
        Robots(**knobs)


def test_problems_of_another_world_are_refused():
    with pytest.raises(InputError, match="is not of"):
        Robots().verify(Problem("x", "q", meta={"world": "boxlift-4x10", "seed": 1}), "[]")
    with pytest.raises(InputError, match="n=0"):
        Robots().sample(0, 0)


# -- a chat server that answers by script ---------------------------------------------------------


class Handler(JsonHandler):
    server: Server

    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": "scripted", "max_model_len": 8192}]})

    def do_POST(self) -> None:
        made = self.server.model.generate(self.body()["messages"])
        (entry,) = made.ledger.entries
        answer: dict[str, Any] = {
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": made.text},
                    "finish_reason": "stop",
                }
            ]
        }
        if self.server.usage:
            answer["usage"] = {
                "prompt_tokens": entry.prompt_new,
                "completion_tokens": entry.generated,
                "total_tokens": entry.prompt_new + entry.generated,
            }
        self.reply(answer)


class Server(JsonServer):
    def __init__(self, model: ScriptedModel, usage: bool) -> None:
        super().__init__(Handler)
        self.model, self.usage = model, usage


@contextmanager
def serving(model: ScriptedModel, *, usage: bool) -> Iterator[EndpointModel]:
    with running(Server(model, usage)) as server:
        yield EndpointModel(server.url, "scripted", api="chat")


@pytest.mark.server
def test_an_episode_over_http_is_the_episode_and_books_the_server_s_usage():
    task = Robots(size=(2, 2))
    (problem,) = task.sample(0, 1)
    model = ScriptedModel(task.instance(problem)[0])
    direct = task.run(model, problem, SamplingParams())
    account = Account()
    with serving(model, usage=True) as endpoint:
        remote = task.run(endpoint, problem, SamplingParams(), account=account)
    assert remote.to_dict(calls=False) == direct.to_dict(calls=False)
    assert account.ledger.totals().all == direct.tokens == sum(c.booked for c in remote.calls)


@pytest.mark.server
def test_a_server_without_usage_and_without_a_tokenizer_is_refused():
    task = Robots(size=(2, 2))
    (problem,) = task.sample(0, 1)
    model = ScriptedModel(task.instance(problem)[0])
    with (
        serving(model, usage=False) as endpoint,
        pytest.raises(EndpointError, match=r"tokenizer=\.\.\."),
    ):
        task.run(endpoint, problem, SamplingParams())


@pytest.mark.model
def test_a_real_model_plays_and_its_ledger_is_exact(model):
    task = Robots(size=(1, 1), framework="cmas", max_retries=1, reply_tokens=24)
    (problem,) = task.sample(0, 1)
    account = Account()
    log = task.run(model, problem, SamplingParams(), account=account)
    assert log.calls
    total = account.ledger.totals()
    assert total.prompt + total.generated == sum(call.booked for call in log.calls)
    prompts = [
        [{"role": role, "content": text} for role, text in call.messages] for call in log.calls
    ]
    assert total.prompt == sum(len(model.prompt_ids(turns)) for turns in prompts)
