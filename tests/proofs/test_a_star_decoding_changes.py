"""The changes that the A*-decoding proof tries, and the real model that judges itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from outlay.models.local import LocalModel
from outlay.proofs.a_star_decoding_changes import (
    AT_CHANCE,
    FEWER_PASSES,
    at_chance,
    billed,
    straight,
    truthful,
)
from outlay.proofs.a_star_decoding_runs import AXES, Setting, groups
from outlay.proofs.a_star_decoding_self import SHOWN, TOKENS, self_evaluated, sums
from outlay.proofs.a_star_decoding_world import SIZES, World
from outlay.proofs.base import silent
from outlay.testbeds.reasoner import checkpoint_path
from outlay.testbeds.reasoner.prm import ChainPRM


@pytest.fixture(scope="module")
def world() -> World:
    model = LocalModel.load(checkpoint_path())
    some = groups(2, [0, 1])
    size = replace(SIZES["ci"], tried=1, successors=(2,))
    return World(model, 1.2, some, some, size, silent)


def test_fewer_passes_are_billed_on_the_tried_questions_alone(world: World) -> None:
    dear = [
        Setting("best-of-N", n, np.ones(4), {axis: np.full(4, 1e5 * n) for axis in AXES})
        for n in (1, 2)
    ]
    checks, settings = billed(world, ChainPRM(), dear, dear[1], 0.9)
    assert len(settings) == len(FEWER_PASSES)
    assert len(checks) == 2 * len(FEWER_PASSES)
    assert all(check.holds is None for check in checks)
    assert all("2 questions" in check.note for check in checks)
    assert all(len(setting.right_N) == 2 for setting in settings)
    for name in FEWER_PASSES:
        assert any(name in check.claim for check in checks)
    for at, setting in enumerate(settings):
        if setting.accuracy == 1:
            measured = checks[2 * at].measured
            assert measured == pytest.approx(setting.cost("billed") / 2e5)


def test_fewer_passes_are_fewer_than_one_a_state(world: World) -> None:
    plain = world.astar(world.all, ChainPRM(), 2)
    for knobs in FEWER_PASSES.values():
        assert world.astar(world.all, ChainPRM(), 2, **knobs).cost("passes") < plain.cost("passes")


def test_the_oracle_at_chance_is_set_against_one_sample(world: World) -> None:
    single_N = np.array([0.25])
    checks, settings = at_chance(replace(world, part=groups(1, [0])), single_N, 0)
    assert [name in check.claim for name, check in zip(AT_CHANCE, checks, strict=True)] == [
        True
    ] * 2
    for check, setting in zip(checks, settings, strict=True):
        assert check.holds is None
        assert check.measured == pytest.approx(setting.accuracy - single_N.mean())


def test_a_cool_truthful_search_goes_straight_down(world: World) -> None:
    checks, settings = truthful(replace(world, temperature=0.5), 0)
    assert len(checks) == len(settings) == 2
    for check, setting in zip(checks, settings, strict=True):
        assert straight(setting)
        assert check.measured == np.mean(straight(setting)) == 1


def test_sums_are_right_different_and_not_shown() -> None:
    asked = sums(200, 3)
    texts = [question.text for question, _ in asked]
    assert len(set(texts)) == 200
    for text, (_, gold) in zip(texts, asked, strict=True):
        numbers = [int(part) for part in text.removesuffix(" = ?").split(" + ")]
        assert sum(numbers) == int(gold)
        assert tuple(numbers) not in SHOWN
    question, _ = asked[0]
    assert question.answer("1 + 2 = 3\n3 + 3 = 6\nAnswer: 6") == "6"


@pytest.mark.model
def test_a_real_model_judges_itself_within_the_budget(model: LocalModel) -> None:
    checks, data = self_evaluated(model, 1, 0)
    assert [check.holds for check in checks] == [None] * 3
    rows = data["rows"]
    assert 0 < rows["A*"]["most generated"] <= TOKENS
    assert rows["A*"]["read"] > 0
    assert rows["greedy"]["read"] == 0
    assert data["N"] == max(1, round(rows["A*"]["generated"] / rows["greedy"]["generated"]))
