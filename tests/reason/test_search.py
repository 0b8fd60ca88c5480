"""Search over steps: degenerate settings are baselines, siblings share their KV, budgets hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from outlay.budget import Budget
from outlay.errors import InputError
from outlay.models.base import SamplingParams
from outlay.models.local import LocalModel
from outlay.reason import BeamSearch, ParticleFilter, solve_many
from outlay.reason.search import resampled, softmax_logits
from outlay.testbeds.reasoner import label_steps, parse_question

from .conftest import Constant, questions

SAMPLING = SamplingParams(temperature=1.0, max_tokens=64, seed=5)


class Exact(Constant):
    """Knows which steps are right."""

    def score(self, questions: Any, paths: Any, known: Any, *, accounts: Any) -> list[list[float]]:
        super().score(questions, paths, known, accounts=accounts)
        rows = []
        for question, path in zip(questions, paths, strict=True):
            problem = parse_question(question.text)
            row, good = [], True
            for size in range(1, len(path) + 1):
                labels = label_steps(problem, "".join(path[:size]))
                good = all(label.on_path for label in labels if label.kind != "check")
                row.append(0.99 if good else 0.01)
            rows.append(row)
        return rows


def test_a_verifier_that_knows_finds_more_than_one_sample_does(reasoner: LocalModel) -> None:
    some = questions(12, (8, 10))
    answers = [parse_question(q.text).answer for q in some]
    beam = solve_many(BeamSearch(Exact(), n=8, m=4), reasoner, some, sampling=SAMPLING)
    alone = solve_many(BeamSearch(Constant(), n=1, m=1), reasoner, some, sampling=SAMPLING)
    right = [
        sum(a.value == t for a, t in zip(each, answers, strict=True)) for each in (beam, alone)
    ]
    assert right[0] > right[1]


def test_many_questions_at_a_time_search_as_one_does(reasoner: LocalModel) -> None:
    some = questions(4, (4, 6))
    for method in (BeamSearch(Exact(), n=4, m=2), ParticleFilter(Exact(), n=4)):
        alone = [method.solve(reasoner, q, sampling=SAMPLING) for q in some]
        batch = solve_many(method, reasoner, some, sampling=SAMPLING)
        assert [a.text for a in alone] == [a.text for a in batch]
        assert [a.ledger.totals().generated for a in alone] == [
            a.ledger.totals().generated for a in batch
        ]


def test_siblings_never_compute_their_prefix_again(reasoner: LocalModel) -> None:
    (question,) = questions(1, (6, 6))
    for method in (BeamSearch(Constant(), n=8, m=4), ParticleFilter(Exact(), n=8)):
        before = reasoner.computed_tokens
        answer = method.solve(reasoner, question, sampling=SAMPLING)
        computed = reasoner.computed_tokens - before
        total = answer.ledger.totals()
        distinct = total.prompt_new + total.generated + total.forced
        assert computed <= 1.05 * distinct
        assert answer.ledger.totals(role="target").prompt_new == len(
            reasoner.prompt_ids(question.prompt)
        )


@pytest.mark.parametrize("tokens", [1, 13, 90])
def test_search_never_spends_more_than_its_budget(reasoner: LocalModel, tokens: int) -> None:
    methods = (
        BeamSearch(Constant(), n=4, m=2),
        BeamSearch(Constant(), n=4, m=2, groups=2),
        ParticleFilter(Constant(), n=4),
    )
    for method in methods:
        for answer in solve_many(method, reasoner, questions(3), Budget(tokens=tokens), SAMPLING):
            assert answer.ledger.totals().generated <= tokens


def test_a_search_that_runs_out_answers_with_what_got_furthest(reasoner: LocalModel) -> None:
    (question,) = questions(1, (10, 10))
    question = replace(question, prompt=f"{question.prompt}<long>")  # 12 tokens an operation
    answer = BeamSearch(Constant(), n=4, m=2).solve(reasoner, question, Budget(tokens=60), SAMPLING)
    assert answer.status == "unfinished"
    assert answer.text
    assert answer.value is None


def test_groups_keep_their_own_best(reasoner: LocalModel) -> None:
    (question,) = questions(1, (3, 3))
    answer = BeamSearch(Constant(), n=8, m=2, groups=4).solve(reasoner, question, sampling=SAMPLING)
    firsts = {branch.lineage()[1].id for branch in answer.branches}
    assert len(firsts) >= 4


def test_equal_scores_resample_uniformly() -> None:
    rng = np.random.default_rng(0)
    weights = softmax_logits([0.3] * 8)
    assert weights == pytest.approx(np.full(8, 1 / 8))
    counts = Counter(i for _ in range(500) for i in resampled(weights, "multinomial", rng))
    assert chisquare([counts[i] for i in range(8)]).pvalue > 1e-3
    assert resampled(weights, "systematic", rng) == list(range(8))


def test_resampling_follows_the_weights() -> None:
    rng = np.random.default_rng(1)
    weights = softmax_logits([0.9, 0.5, 0.1])
    assert weights == pytest.approx(np.array([9, 1, 1 / 9]) / (9 + 1 + 1 / 9))
    for how in ("systematic", "multinomial"):
        counts = Counter(i for _ in range(4000) for i in resampled(weights, how, rng))
        shares = np.array([counts[i] for i in range(3)]) / 12000
        assert shares == pytest.approx(weights, abs=0.02)
    assert not np.isnan(softmax_logits([0.0, 1.0])).any()


def test_sizes_that_do_not_fit_are_refused() -> None:
    for knobs, said in (
        ({"n": 6, "m": 4}, "multiple of m"),
        ({"n": 8, "m": 2, "groups": 3}, "groups=3"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"step_tokens": 0}, "step_tokens=0"),
    ):
        with pytest.raises(InputError, match=said):
            BeamSearch(Constant(), **knobs)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="n=0"):
        ParticleFilter(Constant(), n=0)
    with pytest.raises(InputError, match="resample"):
        ParticleFilter(Constant(), resample="never")  # type: ignore[arg-type]
