"""The proof of G-Search at its smallest, and the schedules that it compares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fashion import needs_fashion
from tests.vision.tiny_vlms import llava, llava_inputs

from outlay.errors import InputError
from outlay.proofs import g_search
from outlay.proofs.base import ProofResult
from outlay.proofs.g_search_changes import log_probability, reported, tried
from outlay.proofs.g_search_outcomes import Outcomes
from outlay.proofs.g_search_runs import (
    FIRST,
    RandomRank,
    Way,
    any_schedule,
    bed,
    fastv,
    full,
    linear,
    pyramid,
    scheduled,
)
from outlay.testbeds.seer.model import SIZES, Seer, build
from outlay.vision.counts import check_schedule
from outlay.vision.gsearch import GSearch
from outlay.vision.gsearch.schedule import mean_rate

torch.set_num_threads(1)


@given(st.integers(5, 30), st.floats(0.02, 0.9), st.integers(0, 1000))
@settings(deadline=None)
def test_every_rival_spends_the_same_mean_rate(layers: int, share: float, seed: int) -> None:
    budget = (FIRST + share * (layers - FIRST)) / layers
    rates = [fastv(budget, layers).rates, linear(budget, layers).rates]
    rates.append(any_schedule(budget, layers, np.random.default_rng(seed)))
    if budget > 0.27:  # what PyramidDrop's first quarter alone keeps
        rates.append(pyramid(budget, layers).rates)
    for each in rates:
        check_schedule(each, layers)
        assert mean_rate(each) == pytest.approx(budget, abs=1e-6)
    assert all(each[:FIRST] == (1.0, 1.0) for each in rates[:3])


def test_the_rates_of_a_way_are_what_its_method_does() -> None:
    model, inputs = llava(layers=6), llava_inputs(2)
    ways = [fastv(0.5, 6), linear(0.5, 6), pyramid(0.5, 6)]
    rates = linear(0.5, 6).rates
    ways += [Way(RandomRank(rates, 3), rates), scheduled(GSearch().with_rates(rates))]
    for way in ways:
        assert way.method is not None
        with torch.no_grad(), way.method(model) as kept:
            model(**inputs)
        counts = [row[0] for row in kept.counts()]
        assert counts == GSearch().with_rates(way.rates).schedule.counts(16)  # type: ignore[union-attr]


def test_a_random_ranking_is_the_same_for_the_same_seed() -> None:
    model, inputs = llava(), llava_inputs(1)
    rates = (1.0, 1.0, 0.25, 0.25)

    def alive(seed: int) -> list[int]:
        with torch.no_grad(), RandomRank(rates, seed)(model) as kept:
            model(**inputs)
        return kept.layers[-1][0].tolist()

    assert alive(1) == alive(1)
    assert len({tuple(alive(seed)) for seed in range(8)}) > 4


@needs_fashion
def test_scenes_are_asked_once_and_outcomes_are_paired_by_question() -> None:
    seer = Seer(SIZES["S"], build(SIZES["S"], seed=3))
    asked = bed(seer, 5, "test", 7)
    assert len(asked) == 30
    outcomes = Outcomes(asked)
    for seed in (0, 1):
        outcomes.run("full", 1.0, seed, full(4))
    outcomes.run("fastv", 0.6, 0, fastv(0.6, 4))
    same = outcomes.gap(("full", 1.0), ("full", 1.0))
    assert (same.mean, same.lo, same.hi, same.n) == (0.0, 0.0, 0.0, 30)
    gap = outcomes.gap(("fastv", 0.6), ("full", 1.0))
    each = outcomes.each("fastv", 0.6) - outcomes.each("full", 1.0)
    assert gap.mean == pytest.approx(each.mean())
    assert outcomes.flops("fastv", 0.6) < outcomes.flops("full", 1.0)
    grown = outcomes.growth("fastv", "fastv", 0.6, 0.6)
    assert (grown.mean, grown.lo, grown.hi) == (0.0, 0.0, 0.0)
    answers = [answer for batch in asked.batches() for (answer,) in batch.answers]
    assert len(answers) == 30
    assert np.array_equal(asked.right(None), outcomes.right["full", 1.0][0])


@needs_fashion
def test_the_log_probability_is_that_of_the_right_answer() -> None:
    seer = Seer(SIZES["S"], build(SIZES["S"], seed=3))
    batch = bed(seer, 3, "train", 1).batches()[0]
    with torch.no_grad():
        logits = seer.model(**batch.inputs).logits[:, -1].double()
    found = log_probability(seer.model, batch)
    for row, (answer,) in enumerate(batch.answers):
        expected = logits[row, answer] - logits[row].exp().sum().log()
        assert found[row] == pytest.approx(float(expected), abs=1e-5)


@needs_fashion
def test_both_changes_are_reported_without_a_target() -> None:
    seer = Seer(SIZES["M"], build(SIZES["M"], seed=3))
    outcomes = Outcomes(bed(seer, 1, "test", 7))
    found = tried(outcomes, bed(seer, 1, "train", 8), 2, 0, lambda message: None)
    checks = reported(outcomes, [found])
    assert len(checks) == 4 * 3 + 2
    assert all(check.holds is None for check in checks)
    for (_, budget), seeds in outcomes.rates.items():
        for rates in seeds.values():
            assert mean_rate(rates) == pytest.approx(budget, abs=1e-6)
            assert rates[0] == 1
            assert rates[1] < 1


@pytest.fixture(scope="module")
def result() -> ProofResult:
    return g_search.run("ci", seed=2)


@needs_fashion
def test_what_must_hold_at_any_size_holds(result: ProofResult) -> None:
    held = {check.claim: check.holds for check in result.checks}
    assert held["measured FLOPs of a prefill are the ledger's"]
    assert held["all methods of a budget have its mean keep rate"]
    assert result.holds


@needs_fashion
def test_every_rival_is_reported(result: ProofResult) -> None:
    claims = [check.claim for check in result.checks if "not worse than" in check.claim]
    assert len(claims) == 5
    assert all(
        rival in " ".join(claims)
        for rival in ("FastV", "linear", "PyramidDrop", "random ranking", "random search")
    )


@needs_fashion
def test_the_result_is_json_with_a_table_and_a_picture(result: ProofResult, tmp_path: Path) -> None:
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["system"] == "g-search"
    tau = np.array(data["data"]["tau"])
    assert np.allclose(np.diag(tau), 1)
    assert np.allclose(tau, tau.T)
    assert len(result.table().splitlines()) == len(result.checks) + 2
    assert result.draw is not None
    result.draw(tmp_path / "g-search.png")
    assert (tmp_path / "g-search.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="ci-scale"):
        result.save(tmp_path)
