"""The proof of the multi-robot system at ci scale, and its figures on made-up numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from outlay.budget import Budget
from outlay.evals.robots.calls import Call
from outlay.evals.robots.episode import EpisodeLog, Turn
from outlay.ledger import Ledger
from outlay.proofs import multi_robot as proof
from outlay.proofs import multi_robot_runs as runs
from outlay.records import Record


@pytest.fixture(scope="module")
def result():
    return proof.run("ci")


def test_the_ci_variant_shows_what_belongs_to_the_topologies(result):
    checks = {check.claim: check for check in result.checks}
    held = [
        "scripted, boxnet2: success of HMAS-2 minus CMAS",
        "scripted, warehouse: success of HMAS-2 minus CMAS",
        "scripted, boxlift: success of HMAS-2 with state-action history minus without",
        "scripted, boxlift: failed runs without history go round in circles",
        "scripted: no framework needs fewer steps than breadth-first search",
        "scripted, 8+ agents: log ratio of tokens per step, HMAS-2 over CMAS",
        "scripted, 8+ agents: log ratio of tokens per step, DMAS over HMAS-1",
    ]
    for claim in held:
        assert checks[claim].holds, checks[claim]
    assert not any("real model" in claim for claim in checks)


def test_every_figure_of_a_policy_says_that_it_is_scripted(result):
    assert all(point.stack.startswith("scripted ") for point in result.points)
    for check in result.checks:
        assert check.claim.startswith(("scripted", "change tried")) or "planner" in check.claim


def test_the_result_is_data_and_draws(result, tmp_path):
    json.dumps(result.to_dict(), allow_nan=False)
    result.draw(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 20_000


def made(method: str, problem: str, tokens: list[int], ending: str = "solved") -> runs.Play:
    calls = tuple(
        Call(i + 1, "central", "planner", "answer", (), "", n, 0, n) for i, n in enumerate(tokens)
    )
    turns = tuple(Turn({}, (), ()) for _ in tokens)
    states = tuple(range(len(tokens) + 1))
    log = EpisodeLog("boxnet1-2x2", method, ending, turns, states, calls, 0)
    record = Record("boxnet1", problem, method, Budget(), 0, float(log.solved), Ledger())
    return runs.Play("boxnet1", problem, 4, method, log, record)


def test_growth_is_1_for_constant_and_2_for_linear_cost_per_step():
    flat = made("a", "p", [100] * 20).log
    rising = made("a", "p", [100 * (2 * i + 1) for i in range(20)]).log
    assert runs.growth([flat]) == pytest.approx([1.0])
    assert runs.growth([rising]) == pytest.approx([2.0])
    assert runs.growth([made("a", "p", [1] * 5).log]) == []


def test_differences_are_taken_between_the_same_instances():
    plays = [made("a", "p", [10]), made("b", "p", [4]), made("a", "q", [7]), made("b", "r", [1])]
    gaps = runs.paired(plays, "a", "b", lambda one: float(one.log.tokens))
    assert gaps.tolist() == [6.0]
    assert runs.paired(plays, "a", "b", lambda one: 1.0, world="boxnet2").size == 0


def test_ratios_are_over_the_best_of_the_same_instance_in_successful_runs():
    plays = [
        made("CMAS", "p", [10, 10]),
        made("HMAS-2", "p", [30]),
        made("CMAS", "q", [5], "collision"),
        made("HMAS-2", "q", [50, 50]),
    ]
    table = runs.ratios(plays)["boxnet1"]
    assert table["CMAS"]["success"] == 0.5
    assert (table["CMAS"]["steps"], table["CMAS"]["tokens"]) == (2.0, 1.0)
    assert table["HMAS-2"]["tokens"] == pytest.approx((1.5 + 1.0) / 2)
    assert table["HMAS-2"]["steps"] == pytest.approx(1.0)


def test_a_target_needs_the_whole_interval_above_zero():
    sure = proof._gap("c", "p", np.array([1.0, 0.9, 1.1] * 5), 0, target=True)
    unsure = proof._gap("c", "p", np.array([1.0, -0.9] * 8), 0, target=True)
    told = proof._gap("c", "p", np.array([1.0, -0.9] * 8), 0, target=False)
    assert (sure.holds, unsure.holds, told.holds) == (True, False, None)
    assert unsure.measured == pytest.approx(0.05)


def test_an_inexact_ledger_fails_its_check():
    found = {
        "model": "m",
        "episodes": 1,
        "calls": 2,
        "central_replies": 2,
        "parsed": 1,
        "usable": 0,
        "retries": 1,
        "endings": {},
        "ledger_tokens": 10,
        "logged_tokens": 10,
        "recounted_tokens": 10,
    }
    assert proof._real(found)[0].holds
    assert not proof._real({**found, "recounted_tokens": 11})[0].holds
    assert [check.measured for check in proof._real(found)[1:3]] == [0.5, 0.0]
