"""The oracle is as reliable as it is asked to be; the learned model reads each token once."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from outlay.budget import Budget
from outlay.errors import InputError, ModelError
from outlay.ledger import Ledger
from outlay.models.base import Account, SamplingParams
from outlay.models.local import LocalModel
from outlay.reason import (
    BeamSearch,
    BestOfN,
    ParticleFilter,
    Question,
    SelfConsistency,
    Verifier,
    solve_many,
)
from outlay.stats import auc
from outlay.testbeds.reasoner import (
    ChainArith,
    ChainProblem,
    checkpoint_path,
    label_steps,
    parse_question,
    render_prompt,
    render_trace,
)
from outlay.testbeds.reasoner.evaluate import read_answer
from outlay.testbeds.reasoner.oracle import ChainOracle, beta_for, opened_by, verdicts
from outlay.testbeds.reasoner.prm import SHIPPED, ChainPRM
from outlay.testbeds.reasoner.prm_reader import features, is_answer, load_network
from outlay.testbeds.reasoner.prm_train import (
    TrainConfig,
    features_of,
    label,
    make,
    measure,
    sample_chains,
    train,
)
from outlay.testbeds.reasoner.tokenizer import build_tokenizer
from outlay.testbeds.reasoner.traces import Format

PROBLEM = parse_question("3+4*7-2=?")  # 7, 9, 7
RIGHT = ("3+4=7;", "7*7=9;", "9-2=7;", "</think><answer>7")


def chains(n: int) -> list[Question]:
    task = ChainArith(operations=(4, 8))
    return [
        Question(
            render_prompt(problem.question, "short"),
            problem.question,
            "custom",
            read=partial(task.read, problem),
            delimiter=";",
            id=problem.id,
        )
        for problem in task.sample(1, n)
    ]


@pytest.fixture(scope="module")
def sampled() -> list[tuple[Question, list[tuple[str, ...]]]]:
    """Questions with sampled solutions, cut into steps."""
    questions = chains(10)
    sampling = SamplingParams(temperature=1.0, max_tokens=120)
    model = LocalModel.load(checkpoint_path())
    answers = solve_many(SelfConsistency(4, early_stop=False), model, questions, sampling=sampling)
    return [
        (question, [question.steps(branch.completion()) for branch in answer.branches])
        for question, answer in zip(questions, answers, strict=True)
    ]


def judged(
    verifier: Verifier, question: Question, paths: Sequence[Sequence[str]], account: Account
) -> list[list[float]]:
    return verifier.score(
        [question] * len(paths), paths, [()] * len(paths), accounts=[account] * len(paths)
    )


# -- labels ---------------------------------------------------------------------------------------


def test_exact_traces_are_right_in_every_format_and_at_every_step() -> None:
    for question in ("3+4*7-2=?", "(3+4*7)+(7-2)=?"):
        problem = parse_question(question)
        formats: tuple[Format, ...] = ("short", "long", "code", "direct")
        for format in formats:
            if format == "code" and len(problem.chains) > 1:
                continue
            text = render_trace(problem, format)
            steps = Question("q", delimiter=";").steps(text)
            assert all(verdicts(problem, steps)), (format, steps)
            if format == "short":
                assert all(verdicts(problem, [text[7:]], "<short>"))


@pytest.mark.parametrize(
    ("steps", "right"),
    [
        (RIGHT, [1, 1, 1, 1]),
        (("3+4=8;", "8*7=16;", "16-2=14;", "</think><answer>14"), [0, 0, 0, 0]),
        (("3+4=7;", "7*7=8;", "8-2=6;", "</think><answer>7"), [1, 0, 0, 0]),
        (("3+4=7;", "7-2=5;"), [1, 0]),  # a right result that does not continue the chain
        (("3+4=8;", "7*7=9;", "9-2=7;"), [0, 0, 0]),  # right values after a wrong one
        (("3+4=8;", "Wait3+4=7;", "7*7=9;"), [0, 1, 1]),  # repeated, and right then
        (("3+4=8;", "8*7=16;", "Wait8*7=16;"), [0, 0, 0]),
        (("3+4=7;", "7*7=9;", "9-2=7;", "</think><answer>8"), [1, 1, 1, 0]),
        (("3+4=7;", "7*7=9;", "</think>"), [1, 1, 0]),
        (("3+4=7;", "7*7"), [1, 1]),  # nothing finished is wrong
        (("3+4=7;", "xyz;", "7*7=9;"), [1, 0, 0]),
        (("[2];", "3+4=7;"), [0, 0]),
    ],
)
def test_a_step_is_right_if_all_is_right_so_far(steps: tuple[str, ...], right: list[int]) -> None:
    assert verdicts(PROBLEM, steps) == [bool(r) for r in right]


def slow_verdict(problem: ChainProblem, text: str) -> bool:
    """Whether all is right, from the labels of this text alone."""
    thinking, closed, rest = text.partition("</think>")
    right = before = True
    for step in label_steps(problem, thinking):
        if step.kind != "recheck":
            before = right
        right = before and step.right and step.on_path
    return right and (not closed or read_answer(rest) == problem.answer)


def test_labels_of_a_prefix_do_not_depend_on_what_follows(
    sampled: list[tuple[Question, list[tuple[str, ...]]]],
) -> None:
    for question, paths in sampled:
        problem, opened = parse_question(question.text), opened_by(question)
        for path in paths:
            whole = verdicts(problem, path, opened)
            for size in range(len(path) + 1):
                assert verdicts(problem, path[:size], opened) == whole[:size]
                text = opened + "".join(path[:size])
                assert slow_verdict(problem, text) == (whole[size - 1] if size else True)


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(["3", "+", "4", "=", "7", ";", "Wait", "[1]", "<long>", "*", "9", "W"]),
        max_size=30,
    )
)
def test_any_text_is_labelled_as_its_prefixes_are(pieces: list[str]) -> None:
    text = "".join(pieces)
    steps = Question("q", delimiter=";").steps(text)
    found = verdicts(PROBLEM, steps, "<short>")
    for size in range(1, len(steps) + 1):
        assert found[size - 1] == slow_verdict(PROBLEM, "<short>" + "".join(steps[:size]))


def test_endless_solutions_are_refused() -> None:
    with pytest.raises(InputError, match="2001 steps"):
        verdicts(PROBLEM, ["3+4=7;"] * 2001)


# -- the oracle -----------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(wanted=st.floats(0.5, 0.995))
def test_noise_has_the_auc_that_was_asked_for(wanted: float) -> None:
    a = beta_for(wanted)
    rng = np.random.default_rng(0)
    right, wrong = rng.beta(a, 1, 40_000), rng.beta(1, a, 40_000)
    assert float((right > wrong).mean()) == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("wanted", [0.5, 0.75, 0.9])
def test_the_oracles_scores_have_their_auc(wanted: float) -> None:
    question = Question("q", "3+4*7-2=?", delimiter=";")
    right, wrong = (
        np.array(
            [
                judged(ChainOracle(wanted, s), question, [(step,)], Account())[0][0]
                for s in range(500)
            ]
        )
        for step in ("3+4=7;", "3+4=8;")
    )
    assert (right[:, None] > wrong[None]).mean() == pytest.approx(wanted, abs=0.05)


def test_the_truth_is_told_at_auc_1() -> None:
    (question,) = chains(1)
    trace = render_trace(parse_question(question.text), "short").removeprefix("<short>")
    path = question.steps(trace)
    account = Account(role="verifier")
    assert judged(ChainOracle(), question, [path], account) == [[1.0] * len(path)]
    assert judged(ChainOracle(), question, [("1+1=3;",)], account) == [[0.0]]


def test_the_oracle_does_not_depend_on_its_batch_but_on_its_seed(
    sampled: list[tuple[Question, list[tuple[str, ...]]]],
) -> None:
    oracle = ChainOracle(auc=0.8, seed=4)
    questions = [question for question, paths in sampled for _ in paths]
    paths = [path for _, some in sampled for path in some]
    account = Account(role="verifier")
    batch = oracle.score(questions, paths, [()] * len(paths), accounts=[account] * len(paths))
    for question, path, row in zip(questions, paths, batch, strict=True):
        assert judged(oracle, question, [path], Account()) == [row]
        half = row[: len(path) // 2]
        [rest] = oracle.score([question], [path], [half], accounts=[Account()])
        assert rest == row
    other = judged(ChainOracle(auc=0.8, seed=5), questions[0], [paths[0]], Account())
    assert other != [batch[0]]


def test_the_oracle_books_one_call_a_judged_path_and_no_tokens() -> None:
    (question,) = chains(1)
    account = Account(role="verifier")
    oracle = ChainOracle()
    oracle.score(
        [question] * 2, [RIGHT[:2], RIGHT[:2]], [(1.0,), (1.0, 1.0)], accounts=[account] * 2
    )
    total = account.ledger.totals(role="verifier")
    assert (total.calls, total.all) == (1, 0)


def test_aucs_out_of_range_and_foreign_questions_are_refused() -> None:
    with pytest.raises(InputError, match="auc="):
        ChainOracle(auc=0.4)
    with pytest.raises(InputError, match="auc=1"):
        beta_for(1.0)
    with pytest.raises(InputError, match="not a chain"):
        judged(ChainOracle(), Question("Why?"), [("Because.",)], Account())


# -- the learned model ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prm() -> ChainPRM:
    return ChainPRM()


def test_a_path_is_scored_as_the_bare_network_scores_it(
    prm: ChainPRM, sampled: list[tuple[Question, list[tuple[str, ...]]]]
) -> None:
    (network, head), tokenizer = load_network(SHIPPED), build_tokenizer()
    for question, paths in sampled[:4]:
        rows = judged(prm, question, paths, Account(role="verifier"))
        for path, row in zip(paths, rows, strict=True):
            sample = label(question, "".join(path), tokenizer)
            with torch.inference_mode():
                plain = head(features_of(network, [sample])).softmax(-1)[:, 1]
            assert row == pytest.approx(plain.tolist(), abs=1e-5)


def test_scores_do_not_depend_on_batch_memory_or_what_is_known(
    sampled: list[tuple[Question, list[tuple[str, ...]]]],
) -> None:
    questions = [question for question, paths in sampled for _ in paths]
    paths = [path for _, some in sampled for path in some]
    accounts = [Account(role="verifier") for _ in paths]
    whole = ChainPRM().score(questions, paths, [()] * len(paths), accounts=accounts)
    forgetful = ChainPRM(keep_tokens=0, batch_tokens=200)
    for question, path, row in zip(questions, paths, whole, strict=True):
        account = Account(role="verifier")
        stepwise: list[float] = []
        for size in range(1, len(path) + 1):
            [stepwise] = ChainPRM.score(
                forgetful, [question], [path[:size]], [stepwise], accounts=[account]
            )
        assert stepwise == pytest.approx(row, abs=1e-5)
        told = [0.123] * (len(path) - 1)
        [again] = forgetful.score([question], [path], [told], accounts=[account])
        assert again[:-1] == told
        assert again[-1] == pytest.approx(row[-1], abs=1e-5)


def test_every_token_is_read_once_for_one_question(prm: ChainPRM) -> None:
    (question,) = chains(1)
    tokenizer = build_tokenizer()
    count = {
        text: len(tokenizer(text)["input_ids"])
        for text in (question.prompt, *RIGHT)
        if isinstance(text, str)
    }
    prompt = count[str(question.prompt)]
    account = Account(role="verifier")
    row: list[float] = []
    for size in range(1, len(RIGHT) + 1):
        [row] = prm.score([question], [RIGHT[:size]], [row], accounts=[account])
    total = account.ledger.totals(role="verifier")
    steps = [count[step] for step in RIGHT]
    assert total.calls == len(RIGHT)
    assert total.prompt_new == prompt + sum(steps)
    assert total.prompt == sum(prompt + sum(steps[:size]) for size in range(1, len(RIGHT) + 1))
    assert total.generated == total.forced == 0
    assert total.flops > 0
    prm.score([question], [RIGHT], [row], accounts=[account])
    assert account.ledger.totals().calls == len(RIGHT)


def test_the_same_path_twice_is_read_once(prm: ChainPRM) -> None:
    (question,) = chains(1)
    account = Account(role="verifier")
    rows = judged(prm, question, [RIGHT, RIGHT, RIGHT[:2]], account)
    entries = account.ledger.entries
    assert rows[0] == rows[1]
    assert entries[0].prompt_new == entries[1].prompt_cached
    assert entries[1].prompt_new == 0
    assert entries[2].prompt_cached == len(build_tokenizer()(str(question.prompt))["input_ids"])
    later = judged(prm, question, [RIGHT], account)
    assert later == [rows[0]]
    assert account.ledger.entries[-1].prompt_new == 0


def test_what_one_question_costs_does_not_depend_on_others(prm: ChainPRM) -> None:
    first, second = chains(2)
    alone = Account(role="verifier")
    judged(prm, first, [RIGHT], alone)
    together = [Account(role="verifier") for _ in range(3)]
    prm.score([first, second, first], [RIGHT] * 3, [()] * 3, accounts=together)
    for account in (together[0], together[2]):
        assert account.ledger.totals().prompt_new == alone.ledger.totals().prompt_new
        assert account.ledger.totals().prompt_cached == 0


def test_memory_is_bounded_and_closed_books_are_forgotten() -> None:
    (question,) = chains(1)
    prm = ChainPRM(keep_tokens=200)
    books = [Account(role="verifier") for _ in range(20)]
    for account in books:
        judged(prm, question, [RIGHT[:1]], account)
    reader = prm._lazy.reader
    assert reader is not None
    held = sum(some.tokens for some in reader._books.values())
    assert 0 < held <= 200
    assert len(reader._books) < 20
    del books, account
    gc.collect()
    alive = Account(role="verifier")
    judged(prm, question, [RIGHT[:1]], alive)
    assert len(reader._books) == 1


def test_a_budget_without_room_leaves_steps_undecided(prm: ChainPRM) -> None:
    (question,) = chains(1)
    account = Account.open(Budget(tokens=5, counts="all")).at(role="verifier")
    assert judged(prm, question, [RIGHT], account) == [[0.5] * len(RIGHT)]
    assert account.ledger.totals().all == 0


def test_a_budget_without_a_call_left_does_not_stop_the_other_questions(prm: ChainPRM) -> None:
    model = LocalModel.load(checkpoint_path())
    sampling = SamplingParams(temperature=1.0, max_tokens=80)
    some = chains(3)
    for method in (BestOfN(prm, 4), BeamSearch(prm, 4, 2), ParticleFilter(prm, 3)):
        few = [Account.open(Budget(calls=calls)) for calls in (3, 60, 60)]
        answers = solve_many(method, model, some, sampling=sampling, accounts=few)
        free = solve_many(method, model, some[1:], sampling=sampling)
        assert [a.text for a in answers[1:]] == [a.text for a in free]
        assert answers[0].ledger.totals().generated > 0


def test_search_pays_the_learned_model_for_new_tokens_only(prm: ChainPRM) -> None:
    model = LocalModel.load(checkpoint_path())
    sampling = SamplingParams(temperature=1.0, max_tokens=120)
    for answer in solve_many(BeamSearch(prm, 4, 2), model, chains(3), sampling=sampling):
        target = answer.ledger.totals(role="target")
        read = answer.ledger.totals(role="verifier")
        assert read.prompt_new <= target.prompt_new + target.generated
        assert read.prompt_cached > read.prompt_new


def test_the_shipped_model_tells_right_from_wrong() -> None:
    config = TrainConfig(held=150, seed=11)
    model = LocalModel.load(checkpoint_path())
    held = sample_chains(config, model, 150, "heldout")
    found = measure(*load_network(SHIPPED), held)
    assert found["auc"] > 0.9
    assert found["mean_right"] > found["mean_wrong"] + 0.3
    assert (SHIPPED / "model.safetensors").stat().st_size <= 2e6
    flawless = [sample for sample in held if all(sample.labels)]
    with pytest.raises(InputError, match="AUC"):
        measure(*load_network(SHIPPED), flawless)


def test_training_writes_what_can_be_loaded(tmp_path: Path) -> None:
    said: list[str] = []
    config = TrainConfig(chains=24, held=24, seed=3)
    found = make(config, tmp_path, said.append)
    assert 0.5 < found["auc"] <= 1
    assert f"{found['auc']:.3f}" in (tmp_path / "README.md").read_text()
    [row] = judged(ChainPRM(str(tmp_path)), chains(1)[0], [RIGHT], Account())
    assert len(row) == len(RIGHT)


def test_the_head_is_the_maximum_likelihood_one() -> None:
    rng = np.random.default_rng(0)
    features_NF = torch.tensor(rng.normal(size=(600, 4)), dtype=torch.float32)
    right = rng.random(600) < 1 / (1 + np.exp(-(2 * features_NF[:, 0].numpy() + 0.5)))
    head = train(features_NF, right.tolist())
    reference = LogisticRegression(C=1e6).fit(features_NF.numpy(), right)
    slope = (head.weight[1] - head.weight[0]).tolist()
    assert slope == pytest.approx(reference.coef_[0].tolist(), abs=0.02)


def test_features_are_those_of_the_tokens_before_a_step_ends() -> None:
    rows = features([-1.0, -3.0, -0.5, -0.5, -99.0], [1, 3, 4], -0.2, [False, False, True])
    assert rows == [[-3.0, -3.0, -2.0, 0.0], [-3.0, -0.5, -0.5, 0.0], [-30.0, -30.0, -30.0, 1.0]]
    assert features([-1.0], [0], -4.0, [False])[0][0] == -4.0
    assert is_answer("</think><answer>7")
    assert not is_answer("3+4=7;")


def test_bad_folders_and_foreign_text_are_refused(tmp_path: Path, prm: ChainPRM) -> None:
    with pytest.raises(ModelError, match="holds no process reward model"):
        judged(ChainPRM(str(tmp_path)), chains(1)[0], [RIGHT], Account())
    (tmp_path / "prm.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be loaded"):
        judged(ChainPRM(str(tmp_path)), chains(1)[0], [RIGHT], Account())
    with pytest.raises(InputError, match="alphabet"):
        judged(prm, chains(1)[0], [("é;",)], Account())
    with pytest.raises(InputError, match="window"):
        judged(prm, chains(1)[0], [("3+4=7;",) * 200], Account())
    for sizes in ((0, 0), (1, -1)):
        with pytest.raises(InputError, match="at least 1"):
            ChainPRM("", *sizes)
    for knobs in ({"chains": 0}, {"short": 2.0}, {"temperatures": ()}):
        with pytest.raises(InputError):
            replace(TrainConfig(), **knobs)


def test_a_ledger_of_its_own_is_kept_apart() -> None:
    ledger = Ledger()
    prm = ChainPRM()
    account = Account(ledger, role="verifier")
    judged(prm, chains(1)[0], [RIGHT[:1]], account)
    assert ledger.totals(role="verifier").calls == 1
    assert ledger.totals(role="target").calls == 0


def test_the_auc_counts_ties_half() -> None:
    scores = np.array([0.1, 0.4, 0.4, 0.8, 0.4])
    right = np.array([False, False, True, True, False])
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[right] for b in scores[~right]]
    assert auc(scores, right) == pytest.approx(np.mean(pairs))
