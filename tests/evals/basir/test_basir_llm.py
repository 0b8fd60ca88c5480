"""The LLM route, the cascade and the task: parsing, retries, tokens, and what they reduce to."""

from __future__ import annotations

import re

import numpy as np
import pytest

from outlay.budget import Budget
from outlay.errors import BudgetError, InputError
from outlay.evals.base import Explains, Task
from outlay.evals.basir.cascade import Cascade
from outlay.evals.basir.labels import load_labels
from outlay.evals.basir.llm import LLMRoute, parse_reply
from outlay.evals.basir.synthetic import load_sample
from outlay.evals.basir.tasks import Basir
from outlay.evals.basir.threshold import fixed
from outlay.example import run_example
from outlay.stack import Stack
from tiny_models import chain_model

LABELS = load_labels()
TEXTS = ["Iron and steel duties fall.", "Banks lend more.", "Tea gardens get a grant."]
SCORES = np.random.default_rng(0).random((3, len(LABELS)))
RULE = fixed(0.9, len(LABELS))


@pytest.mark.parametrize(
    ("reply", "labels", "invalid", "found"),
    [
        ("[1, 3]", (0, 2), 0, True),
        ("The topics are [3, 1, 3].", (0, 2), 0, True),
        ("[]", (), 0, True),
        ("[1, 500, 0, -2]", (0,), 3, True),
        ('["2", "banks", "Iron and steel", "moon"]', None, 1, True),
        ('["1. Agriculture"]', (0,), 0, True),
        ("[1.5, true, null, {}]", (), 4, True),
        ("none of them", (), 0, False),
        ("", (), 0, False),
        ("[one] then [2]", (1,), 0, True),
        ("[" * 50_000, (), 0, False),
    ],
)
def test_replies_are_read_and_foreign_entries_counted(reply, labels, invalid, found):
    parsed = parse_reply(reply, LABELS)
    if labels is None:
        names = [LABELS.ids[i] for i in parsed.labels]
        assert names == [LABELS.ids[1], "steel", "banks"]
    else:
        assert parsed.labels == labels
    assert (parsed.invalid, parsed.found) == (invalid, found)


def test_only_offered_labels_may_be_chosen():
    parsed = parse_reply("[1, 2, 3]", LABELS, [1, 5])
    assert (parsed.labels, parsed.invalid) == ((1,), 2)


def by_words(request: str) -> str:
    """Chooses every listed label whose name shares a word with the excerpt."""
    listed, excerpt = request.split("\n\nChoose")[0], request.split("Excerpt: ")[1]
    words = set(re.findall(r"[a-z]{4,}", excerpt.lower()))
    lines = re.findall(r"^(\d+)\. ([^:\n]+)", listed, re.MULTILINE)
    chosen = [n for n, name in lines if words & set(re.findall(r"[a-z]{4,}", name.lower()))]
    return f"[{', '.join(chosen)}]"


def test_the_ledger_is_the_usage_that_the_endpoint_reported(serving):
    replies = iter(["[1]", "I cannot say", "[2, 999]", "no", "no list either"])
    with serving(lambda request: next(replies)) as (server, model):
        tagged = LLMRoute().tag(model, TEXTS, LABELS)
    assert [LABELS.chosen(row) for row in tagged.chosen_NL] == [
        (LABELS[0].id,),
        (LABELS[1].id,),
        (),
    ]
    assert (tagged.invalid, tagged.unread, len(server.usage)) == (1, 1, 5)
    total = tagged.ledger.totals()
    assert total.prompt == sum(used["prompt_tokens"] for used in server.usage)
    assert total.generated == sum(used["completion_tokens"] for used in server.usage)
    assert [len(ledger) for ledger in tagged.ledgers] == [1, 2, 2]
    assert "JSON list of numbers only" in server.prompts[2]


def test_a_cascade_over_all_labels_is_the_llm_route(serving):
    with serving(by_words) as (server, model):
        alone = LLMRoute().tag(model, TEXTS, LABELS)
        asked = list(server.prompts)
        both = Cascade(shortlist=len(LABELS)).tag(model, TEXTS, SCORES, RULE, LABELS)
    assert server.prompts[len(asked) :] == asked
    assert (both.chosen_NL == alone.chosen_NL).all()
    assert alone.chosen_NL.any()
    assert both.skipped == 0


def test_a_cascade_without_a_model_is_the_cheap_route():
    tagged = Cascade(lo=0.99).tag(None, TEXTS, SCORES, RULE, LABELS)
    assert (tagged.chosen_NL == (SCORES > 0.9)).all()
    assert (tagged.skipped, tagged.ledger.totals().calls) == (3, 0)


def test_a_cascade_that_is_sure_of_all_asks_nothing(serving):
    with serving(by_words) as (server, model):
        tagged = Cascade(hi=0.0).tag(model, TEXTS, SCORES, RULE, LABELS)
    assert not server.prompts
    assert (tagged.chosen_NL == RULE.decide(SCORES)).all()


def test_a_cascade_lists_the_best_labels_and_skips_the_sure_ones(serving):
    scores = np.full((3, len(LABELS)), 0.1)
    steel, banks = LABELS.ids.index("steel"), LABELS.ids.index("banks")
    scores[0, [steel, banks, 7]] = 0.5, 0.4, 0.3
    scores[1, banks] = 0.95
    with serving(by_words) as (server, model):
        tagged = Cascade(shortlist=3, lo=0.2, hi=0.9).tag(model, TEXTS, scores, RULE, LABELS)
    (prompt,) = server.prompts
    listed = [int(n) - 1 for n in re.findall(r"^(\d+)\. ", prompt, re.MULTILINE)]
    assert listed == sorted([7, steel, banks])
    chosen = [LABELS.chosen(row) for row in tagged.chosen_NL]
    assert chosen == [("steel",), ("banks",), ()]
    assert tagged.skipped == 2
    assert [len(ledger) for ledger in tagged.ledgers] == [1, 0, 0]


def test_no_excerpt_spends_more_than_its_limit(serving):
    with serving(lambda request: "no list") as (server, model):
        with pytest.raises(BudgetError, match="max_tokens_per_excerpt=100"):
            LLMRoute(max_tokens_per_excerpt=100).tag(model, TEXTS, LABELS)
        assert not server.prompts
        cascade = Cascade(shortlist=3, llm=LLMRoute(max_tokens_per_excerpt=110))
        tagged = cascade.tag(model, TEXTS[:1], SCORES[:1], RULE, LABELS)
    assert len(server.prompts) == 1  # the retry did not fit
    assert tagged.unread == 1
    assert tagged.ledger.totals().all <= 110


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LLMRoute(answer_tokens=0), "answer_tokens"),
        (lambda: LLMRoute(max_tokens_per_excerpt=0), "max_tokens_per_excerpt"),
        (lambda: Cascade(shortlist=0), "shortlist"),
        (lambda: Cascade(lo=0.5, hi=0.1), "swap them"),
        (lambda: Cascade(hi=float("nan")), "hi=nan"),
        (lambda: Cascade().tag(None, TEXTS, SCORES[:2], RULE, LABELS), "scores of shape"),
        (lambda: LLMRoute().tag(None, [" "], LABELS), "excerpt 0 is empty"),
        (lambda: Basir(labels=1), "labels"),
        (lambda: Basir(test_from="soon"), "test_from"),
        (lambda: Basir().sample(0, 10_000), "10000 wanted"),
        (lambda: Basir(labels=100).sample(0, 1), "labels=100"),
    ],
)
def test_bad_knobs_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


# -- the task -------------------------------------------------------------------------------------


def test_the_task_judges_by_f1_and_explains():
    task = Basir()
    assert isinstance(task, Task)
    assert isinstance(task, Explains)
    problem = next(p for p in task.sample(0, 40) if len(p.meta["true"]) == 2)
    first, second = (i + 1 for i in problem.meta["true"])
    other = next(n for n in range(1, 82) if n not in (first, second))
    assert task.verify(problem, problem.answer) == 1.0
    assert task.verify(problem, f"I think [{second}, {first}]") == 1.0
    assert task.verify(problem, f"[{first}]") == pytest.approx(2 / 3)
    assert task.verify(problem, f"[{first}, {other}]") == pytest.approx(1 / 2)
    assert task.verify(problem, f"{first} and {second}") == 0.0
    told = task.explain(problem, f"[{first}, {other}, 999]")
    assert told["missed"] == LABELS[second - 1].name
    assert told["wrong"] == LABELS[other - 1].name
    assert told["dropped entries"] == "1"
    assert task.explain(problem, "none")["reply"] == "no JSON list"


def test_samples_extend_each_other_and_prompts_hold_the_excerpt_last():
    task = Basir(labels=5)
    assert task.sample(3, 20)[:7] == task.sample(3, 7)
    assert task.sample(3, 7) != task.sample(4, 7)
    for problem in task.sample(0, 5):
        prompt = task.prompt(problem, problem.context)
        assert prompt.endswith(problem.context)
        assert len(re.findall(r"^\d+\. ", prompt, re.MULTILINE)) == 5
        assert all(f"\n{i + 1}. " in prompt for i in problem.meta["true"])


def test_only_late_events_are_asked_where_wanted():
    days = {problem.meta["date"] for problem in Basir(test_from="2022-01-01").sample(0, 20)}
    assert min(days) >= "2022-01-01"
    assert len(load_sample()[0]) > len(Basir(test_from="2022-01-01").rows())


@pytest.mark.model
def test_the_embedded_model_runs_the_task(model):
    task = Basir(labels=4, definitions=False)
    (problem,) = task.sample(0, 1)
    outcome = run_example(model, Stack(), task, problem, Budget(tokens=16))
    assert 0 <= outcome.record.quality <= 1
    assert outcome.record.ledger.totals().generated <= 16
    assert outcome.texts["expected"] == problem.answer


@pytest.mark.parametrize(
    ("says", "tokens", "chosen"), [("[3]", 9, [2]), ("[3,12]", 3, [2]), ("[3,1]", 9, [0, 2])]
)
def test_an_opened_reply_is_a_list_and_costs_one_prompt(says, tokens, chosen):
    model = chain_model(says)  # after "[" it goes on as `says` does; any other prompt confuses it
    route = LLMRoute(definitions=False, answer_tokens=tokens, open_list=True)
    tagged = route.tag(model, TEXTS[:1], LABELS, [range(3)])
    assert np.flatnonzero(tagged.chosen_NL[0]).tolist() == chosen
    assert (tagged.unread, tagged.invalid) == (0, 0)
    total = tagged.ledger.totals()
    assert 0 < total.generated == total.delivered <= tokens
    assert len([entry for entry in tagged.ledger if entry.prompt_new]) == 1
    plain = LLMRoute(definitions=False, answer_tokens=1).tag(model, TEXTS[:1], LABELS, [range(3)])
    assert plain.unread == 1
