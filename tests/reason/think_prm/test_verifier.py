"""ThinkPRM on real networks: its probabilities, its chains, its books, its refusals."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest

from outlay.budget import Budget
from outlay.errors import CapabilityError, InputError
from outlay.models.base import Account, Message, SamplingParams
from outlay.models.local import LocalModel
from outlay.reason import BestOfN, solve_many
from outlay.reason.think_prm import COMPACT, ThinkPRM
from outlay.reason.verifiers import ratio
from tiny_models import chain_model, tiny_model

from ..conftest import questions

STEPS = ("3+4=7;", "7*7=9;", "</think><answer>9")
QUESTION = "3+4*7=?"
WRONG = ("3+4=7;", "7*7=8;", "</think><answer>8")


@pytest.fixture(scope="module")
def shipped() -> ThinkPRM:
    return ThinkPRM.load("reasoner")


def compact(model, **knobs):
    return ThinkPRM(model, **{"layout": "compact", "max_verify_tokens": 60, **knobs})


def score_of(verifier, steps=STEPS):
    [found] = verifier.judge([QUESTION], [steps])
    return found.score


def test_the_shipped_verifier_finds_a_wrong_step(shipped):
    right, wrong = shipped.judge([QUESTION] * 2, [STEPS, WRONG])
    assert right.valid
    assert wrong.valid
    assert right.first_error is None
    assert wrong.first_error == 1
    assert right.score > 0.5 > wrong.score
    assert right.steps[-1] > 0.5 > wrong.steps[-1]
    assert list(wrong.steps) == sorted(wrong.steps, reverse=True)


def test_swapping_labels_gives_the_rest(reasoner):
    there = score_of(compact(reasoner))
    back = score_of(compact(reasoner, labels=COMPACT.labels[::-1]))
    assert 0 <= there <= 1
    assert there + back == pytest.approx(1)


def test_a_hot_decision_is_a_coin(reasoner):
    assert score_of(compact(reasoner, tau=1e9)) == pytest.approx(0.5, abs=1e-6)
    cold, normal = score_of(compact(reasoner, tau=0.1)), score_of(compact(reasoner))
    assert abs(cold - 0.5) > abs(normal - 0.5)


def reference(model: LocalModel, chain: str, tau: float = 1.0) -> float:
    """P(yes) by one fresh reading of request, critique and question."""
    text = COMPACT.render(QUESTION, STEPS)
    root = model.open([Message(role="user", content=text)], chain + "</think>?")
    (yes,), (no,) = model.score(root, ["y", "n"])
    return ratio(yes, no, tau)


def test_the_score_is_the_mean_over_chains(shipped):
    several = replace(shipped, chains=3, temperature=1.5, seed=4)
    [found] = several.judge([QUESTION], [STEPS])
    assert len(set(found.chains)) > 1
    each = [reference(shipped.model, chain) for chain in found.chains]
    assert found.score == pytest.approx(math.fsum(each) / 3, abs=1e-4)
    assert found.score == pytest.approx(math.fsum(each[::-1]) / 3, abs=1e-4)


def test_greedy_chains_are_one_chain(reasoner):
    with pytest.warns(UserWarning, match="one chain"):
        several = compact(reasoner, chains=4, temperature=0.0)
    [many], [one] = (v.judge([QUESTION], [STEPS]) for v in (several, compact(reasoner)))
    assert many == one


def test_one_round_has_no_trigger_and_each_further_round_its_own(shipped):
    account = Account(stage="think", role="verifier")
    [one] = shipped.judge([QUESTION], [STEPS])
    [three] = replace(shipped, rounds=3).judge([QUESTION], [STEPS], accounts=[account])
    assert three.chains[0].startswith(one.chains[0])
    assert len(set(COMPACT.triggers)) == len(COMPACT.triggers)
    forced = ["\nWait\n", "\n\nWait\n", "</think>?"]
    assert account.ledger.totals().forced == sum(map(shipped.model.count, forced))


def test_no_critique_of_a_step_that_does_not_exist():
    model = chain_model(">ab2:c")
    knobs = {"layout": "compact", "max_verify_tokens": 40, "labels": ("a", "b")}
    numbered = ThinkPRM(model, **knobs)
    free = ThinkPRM(model, number_steps=False, **knobs)
    assert numbered.judge(["q"], [["one"]])[0].chains == ("ab",)
    assert numbered.judge(["q"], [["one", "two"]])[0].chains == ("ab2:c",)
    assert free.judge(["q"], [["one"]])[0].chains == ("ab2:c",)


def test_ten_and_more_steps_stop_at_the_right_one():
    model = chain_model(">2:1a")  # "2:" ends a critique of one step, not one of eleven
    verifier = ThinkPRM(model, layout="compact", max_verify_tokens=40, labels=("a", "b"))
    assert verifier.judge(["q"], [["x"] * 11])[0].chains == ("2:1a",)
    assert verifier.judge(["q"], [["x"]])[0].chains == ("",)


def test_every_token_is_the_verifiers(shipped):
    account = Account(stage="think", role="verifier", method="m")
    [found] = shipped.judge([QUESTION], [STEPS], accounts=[account])
    model, totals = shipped.model, account.ledger.totals()
    request = [Message(role="user", content=COMPACT.render(QUESTION, STEPS))]
    assert totals.prompt == model.count(model.render(request)) + 2  # and two labels
    assert totals.forced == model.count("</think>?")
    # The stop was sampled, though it is not in the text.
    assert totals.generated == model.count(found.chains[0]) + 1
    assert {(e.stage, e.role, e.method) for e in account.ledger} == {("think", "verifier", "m")}


def test_known_scores_come_back_and_cost_nothing(shipped):
    (question,) = questions(1)
    account, none = (Account(stage="think", role="verifier") for _ in range(2))
    [row] = shipped.score([question], [STEPS], [(0.9,)], accounts=[account])
    [same] = shipped.score([question], [STEPS], [row], accounts=[none])
    assert row[0] == 0.9
    assert len(row) == 3
    assert same == row
    assert not len(none.ledger)
    assert account.ledger.totals().generated > 0


def test_equal_solutions_of_a_question_are_verified_once(shipped):
    first, second = (Account(stage="think", role="verifier") for _ in range(2))
    found = shipped.judge([QUESTION] * 3, [STEPS, STEPS, STEPS], accounts=[first, first, second])
    assert found[0] == found[1] == found[2]
    assert first.ledger.totals().all == second.ledger.totals().all


def test_verdicts_do_not_depend_on_the_batch(shipped):
    together = shipped.judge([QUESTION] * 3, [STEPS, WRONG, STEPS[:1]])
    alone = [shipped.judge([QUESTION], [steps])[0] for steps in (STEPS, WRONG, STEPS[:1])]
    for a, b in zip(together, alone, strict=True):
        assert a.chains == b.chains
        assert a.score == pytest.approx(b.score, abs=1e-4)
        assert a.steps == pytest.approx(b.steps, abs=1e-4)


def test_exact_step_scores_are_those_of_a_fresh_reading(shipped):
    [found] = replace(shipped, step_scores="exact").judge([QUESTION], [WRONG])
    [quick] = shipped.judge([QUESTION], [WRONG])
    model, [chain] = shipped.model, found.chains
    text, low = COMPACT.render(QUESTION, WRONG), 1.0
    for at, decision in enumerate(COMPACT.decisions(chain)):
        root = model.open([Message(role="user", content=text)], chain[: decision.start])
        (good,), (bad,) = model.score(root, ["y", "n"])
        low = min(low, ratio(good, bad))
        assert found.steps[at] == pytest.approx(low, abs=1e-4)
        # All but these two words has hardly any mass, so the quick score is close.
        assert quick.steps[at] == pytest.approx(low, abs=0.05)


def reading(model: LocalModel, chain: str) -> list[float]:
    """Exact step scores of one chain by fresh readings, running minimum."""
    text, low, scores = COMPACT.render(QUESTION, WRONG), 1.0, []
    for decision in COMPACT.decisions(chain)[: len(WRONG)]:
        root = model.open([Message(role="user", content=text)], chain[: decision.start])
        (good,), (bad,) = model.score(root, ["y", "n"])
        low = min(low, ratio(good, bad))
        scores.append(low)
        if decision.label == "bad":
            return scores + [low] * (len(WRONG) - len(scores))
    return scores + [min(low, 0.5)] * (len(WRONG) - len(scores))


def test_several_chains_vote_on_the_first_error(shipped):
    many = replace(shipped, chains=7, temperature=1.7, seed=1, step_scores="exact")
    [found] = many.judge([QUESTION], [WRONG])
    rows = [reading(shipped.model, chain) for chain in found.chains]
    means = [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
    assert list(found.steps) == pytest.approx(means, abs=1e-4)
    named = []
    for chain in found.chains:
        labels = [decision.label for decision in COMPACT.decisions(chain)[: len(WRONG)]]
        if "bad" in labels or len(labels) == len(WRONG):  # a chain that stops short has no say
            named.append(labels.index("bad") if "bad" in labels else None)
    assert len(set(named)) > 1
    assert named.count(found.first_error) == max(map(named.count, named))


def test_step_scores_without_room_for_a_reading_are_those_that_were_sampled(shipped):
    [free] = shipped.judge([QUESTION], [WRONG])
    spent = Account.open(Budget(tokens=400, counts="all")).at("think", "verifier")
    [exact] = replace(shipped, step_scores="exact").judge([QUESTION], [WRONG], accounts=[spent])
    used = spent.ledger.totals()
    short = Account.open(Budget(calls=used.calls - 1)).at("think", "verifier")
    [found] = replace(shipped, step_scores="exact").judge([QUESTION], [WRONG], accounts=[short])
    assert exact.complete
    assert not found.complete
    assert found.steps == free.steps


def test_without_log_probabilities_verdicts_are_counted(shipped):
    blind = LocalModel(shipped.model.model, shipped.model.tokenizer, "blind")
    blind.capabilities = replace(blind.capabilities, logprobs=False)
    with pytest.warns(UserWarning, match="frequencies"):
        verifier = ThinkPRM(blind, layout="compact", max_verify_tokens=120, chains=4)
    right, wrong = verifier.judge([QUESTION] * 2, [STEPS, WRONG])
    for found in (right, wrong):
        assert found.sampled
        assert found.score * 4 == int(found.score * 4)
        assert all(step * 8 == int(step * 8) for step in found.steps)
    assert right.score > wrong.score


def test_a_spent_budget_leaves_steps_undecided(shipped):
    (question,) = questions(1)
    account = Account.open(Budget(tokens=1)).at("think", "verifier")
    account.meter.reserve(1, stage="think")
    rows = shipped.score([question], [STEPS], [()], accounts=[account])
    assert rows == [[0.5, 0.5, 0.5]]
    none = Account.open(Budget(tokens=1, counts="all")).at("think", "verifier")
    [found] = shipped.judge([QUESTION], [STEPS], accounts=[none])
    assert (found.score, found.complete, found.chains) == (0.5, False, ())


def test_it_serves_best_of_n_and_stays_in_the_budget(shipped, reasoner):
    answers = solve_many(
        BestOfN(shipped, n=3),
        reasoner,
        questions(3),
        Budget(tokens=400),
        SamplingParams(temperature=0.8, max_tokens=40),
    )
    for answer in answers:
        assert len(answer.scores) == 3
        assert answer.ledger.totals(role="verifier").generated > 0
        assert answer.ledger.totals().generated <= 400


def test_templates_that_open_the_thinking_are_continued(reasoner):
    verifier = compact(reasoner)
    account = Account(stage="think", role="verifier")
    verifier.judge([QUESTION], [STEPS], accounts=[account])
    text = reasoner.render([Message(role="user", content=COMPACT.render(QUESTION, STEPS))])
    assert text.count("<think>") == 1
    assert account.ledger.entries[0].prompt_new == reasoner.count(text)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"rounds": 5}, "at most 4 rounds"),
        ({"chains": 0}, "chains=0"),
        ({"temperature": -1.0}, "temperature"),
        ({"tau": 0.0}, "tau"),
        ({"labels": ("y", "y")}, "same token"),
        ({"max_verify_tokens": 640}, "max_verify_tokens"),
        ({"max_verify_tokens": 3}, "max_verify_tokens"),
        ({"layout": "free"}, "boxed or compact"),
        ({"decision": ""}, "decision"),
        ({"step_scores": "none"}, "step_scores"),
    ],
)
def test_bad_knobs_are_refused(reasoner, knobs, message):
    with pytest.raises(InputError, match=message):
        compact(reasoner, **knobs)


def test_bad_solutions_and_models_are_refused(reasoner):
    verifier = compact(reasoner)
    with pytest.raises(InputError, match="no steps"):
        verifier.judge([QUESTION], [()])
    with pytest.raises(InputError, match=r"step 1 .* empty"):
        verifier.judge([QUESTION], [(" ",)])
    with pytest.raises(InputError, match="2 questions, 1 solutions"):
        verifier.judge([QUESTION] * 2, [STEPS])
    with pytest.raises(InputError, match="no room for a critique"):
        verifier.judge([f"{'1+' * 305}1=?"], [STEPS])
    with pytest.raises(InputError, match="model is missing"):
        ThinkPRM()
    with pytest.raises(InputError, match="shipped is: reasoner"):
        ThinkPRM(checkpoint="other")
    mute = tiny_model()
    mute.capabilities = replace(mute.capabilities, append=False)
    with pytest.raises(CapabilityError, match="append"):
        ThinkPRM(mute, max_verify_tokens=100)


def test_a_path_without_steps_has_no_scores(shipped):
    (question,) = questions(1)
    assert shipped.score(
        [question], [()], [()], accounts=[Account(stage="think", role="verifier")]
    ) == [[]]


def test_real_layouts_run_on_any_model():
    model = tiny_model(max_position_embeddings=2048)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verifier = ThinkPRM(model, max_verify_tokens=120, chains=2)
    [found] = verifier.judge(["What is 1+1?"], [["It is 2."]])
    assert 0 <= found.score <= 1
    assert found.score != 0.5
    assert len(found.chains) == 2
