"""Claims of the vision proofs, judged from made-up outcomes: they hold one way round, and fail the
other way round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from outlay.proofs import g_search, hired, tokenflex_claims
from outlay.proofs import zero_tprune_claims as tprune
from outlay.proofs.base import Check
from outlay.proofs.g_search_outcomes import Outcomes
from outlay.proofs.g_search_runs import (
    FASTV,
    LINEAR,
    PYRAMID,
    RANDOM_RANK,
    RANDOM_SEARCH,
    Bed,
)
from outlay.proofs.g_search_runs import OURS as SIGMOID
from outlay.proofs.zero_tprune_runs import CLASS, KEPT, NO_COPIES, OURS, RANDOM, SIZES, Cell
from outlay.testbeds.seer.evaluate import Examples
from outlay.testbeds.seer.model import SIZES as SEERS
from outlay.testbeds.seer.model import Seer
from outlay.testbeds.seer.questions import Question
from outlay.vision.gsearch import KeepSchedule
from outlay.vision.zero_tprune import Found, Stage, ZeroTPrune
from outlay.vision.zero_tprune.cost import Shape
from outlay.vision.zero_tprune.search import Trial

N = 200  # scenes


def right(share: float, n: int = N) -> np.ndarray:
    """(n,) 1 for the first share, 0 for the rest: differences of two are of one sign."""
    return (np.arange(n) < round(share * n)).astype(np.float64)


def held(checks: Sequence[Check]) -> list[bool | None]:
    return [check.holds for check in checks]


# -- TokenFLEX: tables by arm and count, a column for every kind of question ----------------------


def table(fine: float, coarse: float) -> np.ndarray:
    kinds = tokenflex_claims.KINDS
    return np.stack(
        [right(fine if kind in tokenflex_claims.FINE else coarse) for kind in kinds], axis=1
    )


FEW, MIDDLE, MANY = tokenflex_claims.COUNTS


@pytest.mark.parametrize(
    ("flex", "fixed", "holds"),
    [
        (0.7, 0.4, [True, True]),
        (0.4, 0.7, [False, False]),
        (0.7, 0.65, [False, True]),  # above, but not by a tenth
    ],
)
def test_specialists_fall_where_flex_is_above_them_on_fine_questions(
    flex: float, fixed: float, holds: list[bool]
) -> None:
    # Coarse questions say the contrary, and so does the specialist at its own count.
    tables = {("flex", n): table(flex, fixed) for n in tokenflex_claims.COUNTS}
    tables |= {("fixed-144", n): table(fixed, flex) for n in (FEW, MIDDLE)}
    tables |= {("fixed-144", MANY): table(2 * flex - fixed, fixed)}
    checks = tokenflex_claims.specialists_fall(tables)
    assert held(checks) == holds
    assert [check.measured for check in checks] == pytest.approx([flex - fixed] * 2)


@pytest.mark.parametrize(
    ("flex", "fixed", "holds"), [(0.6, 0.5, True), (0.5, 0.6, False), (0.49, 0.5, True)]
)
def test_parity_holds_where_flex_is_not_far_below_its_specialists(
    flex: float, fixed: float, holds: bool
) -> None:
    tables = {("flex", n): table(flex, flex) for n in tokenflex_claims.COUNTS}
    tables |= {(f"fixed-{n}", n): table(fixed, fixed) for n in tokenflex_claims.COUNTS}
    checks = tokenflex_claims.parity(tables)
    assert held(checks) == [holds] * 3
    assert [check.measured for check in checks] == pytest.approx([flex - fixed] * 3)


def test_parity_is_with_the_specialist_of_the_same_count() -> None:
    tables = {("flex", n): table(0.5, 0.5) for n in tokenflex_claims.COUNTS}
    tables |= {(f"fixed-{n}", m): table(0.9, 0.9) for n in (FEW, MANY) for m in (FEW, MANY)}
    tables |= {("fixed-36", MIDDLE): table(0.4, 0.4)}
    assert held(tokenflex_claims.parity(tables)) == [False, True, False]


@pytest.mark.parametrize(
    ("few", "many", "holds"),
    [
        ((0.3, 0.8), (0.7, 0.8), [True, True, True]),
        ((0.7, 0.8), (0.3, 0.8), [False, True, False]),  # few and many exchanged
        ((0.8, 0.3), (0.8, 0.7), [False, False, False]),  # fine and coarse exchanged
        ((0.3, 0.3), (0.7, 0.8), [True, False, False]),  # coarse ones gain still more
    ],
)
def test_fine_questions_gain_from_tokens_and_coarse_ones_do_not(
    few: tuple[float, float], many: tuple[float, float], holds: list[bool]
) -> None:
    tables = {("flex", n): table(*accuracies) for n, accuracies in ((FEW, few), (MANY, many))}
    tables |= {("flex", MIDDLE): table(*few)}
    checks = tokenflex_claims.who_gains(tables)
    assert held(checks) == holds
    fine, coarse = many[0] - few[0], many[1] - few[1]
    assert [c.measured for c in checks] == pytest.approx([fine, coarse, fine - coarse])


def test_changes_of_tokenflex_are_reported_with_the_sides_that_they_name() -> None:
    tables = {("flex-mlp", FEW): table(0.5, 0.9), (f"fixed-{FEW}", FEW): table(0.7, 0.7)}
    tables |= {("flex", 4): table(0.2, 0.8), ("flex", MANY): table(0.6, 0.9)}
    gate, reach = tokenflex_claims.changes(tables)
    assert held([gate, reach]) == [None, None]
    fine = len(tokenflex_claims.FINE) / len(tokenflex_claims.KINDS)
    assert gate.measured == pytest.approx(-0.2 * fine + 0.2 * (1 - fine))
    assert "fine -0.200" in gate.note
    assert "coarse +0.200" in gate.note
    assert reach.measured == pytest.approx(0.4)
    assert "coarse +0.100" in reach.note
    assert len(tokenflex_claims.changes({k: v for k, v in tables.items() if k != ("flex", 4)})) == 1


# -- HiRED: (scenes, kinds) by method and rate ----------------------------------------------------

LIMITS = {0.4: 76, 0.2: 38, 0.1: 19}
RIVALS = ("random", "uniform grid", "thumbnail only")


def answers(accuracy: float, **of_kind: float) -> np.ndarray:
    return np.stack([right(of_kind.get(kind, accuracy)) for kind in hired.KINDS], axis=1)


def rates(ours: float, theirs: float) -> hired.Scores:
    """At the rate that is judged; at the others the numbers are exchanged."""
    scores: hired.Scores = {}
    for rate in LIMITS:
        one, other = (ours, theirs) if rate == hired.MAIN else (theirs, ours)
        scores["HiRED", rate] = answers(one)
        scores |= {(name, rate): answers(other) for name in RIVALS}
    return scores


@pytest.mark.parametrize(
    ("ours", "theirs", "holds"),
    [
        (0.8, 0.6, [True, True, True]),
        (0.6, 0.8, [False, False, False]),
        (0.8, 0.775, [False, True, True]),  # above all, but not clearly above random
    ],
)
def test_hired_is_above_its_rivals_where_it_answers_more(
    ours: float, theirs: float, holds: list[bool]
) -> None:
    checks = hired._random(rates(ours, theirs), LIMITS)
    assert held(checks) == [None] * 3 + holds + [None] * 3
    assert [check.measured for check in checks[3:6]] == pytest.approx([ours - theirs] * 3)


@pytest.mark.parametrize("beaten_by", RIVALS)
def test_each_of_hireds_rivals_is_judged_by_its_own_answers(beaten_by: str) -> None:
    scores = rates(0.7, 0.5)
    scores[beaten_by, hired.MAIN] = answers(0.9)
    judged = [check for check in hired._random(scores, LIMITS) if check.holds is not None]
    assert held(judged) == [name != beaten_by for name in RIVALS]


def test_hired_is_not_above_where_chance_may_explain_it() -> None:
    scores = rates(0.525, 0.475)
    for name in RIVALS:  # right on other scenes than HiRED, which is noise
        scores[name, hired.MAIN] = answers(0.475)[::-1]
    judged = [check for check in hired._random(scores, LIMITS) if check.holds is not None]
    assert held(judged) == [False] * 3
    assert [check.measured for check in judged] == pytest.approx([0.05] * 3)


def allocated(ours: float, even: float) -> hired.Scores:
    found = {("HiRED", rate): answers(ours) for rate in LIMITS}
    return found | {("even allocation", rate): answers(even) for rate in LIMITS}


def test_weighing_by_content_must_not_lose_against_an_even_split_on_clustered_scenes() -> None:
    for ours, even, holds in ((0.7, 0.6, True), (0.6, 0.7, False), (0.6, 0.62, False)):
        check = hired._content(allocated(ours, even), "clustered")
        assert check.holds is holds
        assert check.measured == pytest.approx(ours - even)


def test_weighing_by_content_must_make_no_difference_on_spread_scenes() -> None:
    cases = ((0.6, 0.6, True), (0.61, 0.6, True), (0.7, 0.6, False), (0.6, 0.7, False))
    for ours, even, holds in cases:
        check = hired._content(allocated(ours, even), "spread")
        assert check.holds is holds
        assert check.measured == pytest.approx(ours - even)


@pytest.mark.parametrize(("digit", "garment", "holds"), [(0.5, 0.8, True), (0.8, 0.5, False)])
def test_digits_lose_more_where_fewer_of_them_are_read(
    digit: float, garment: float, holds: bool
) -> None:
    scores = {("HiRED", rate): answers(0.9, digit=garment, garment=digit) for rate in LIMITS}
    scores["HiRED", hired.MAIN] = answers(0.1, digit=digit, garment=garment)
    checks = hired._fine(scores, answers(0.9))
    assert held(checks) == [None, holds, None]
    assert checks[1].measured == pytest.approx(garment - digit)


def test_what_is_lost_is_counted_from_the_full_model_and_not_from_zero() -> None:
    scores = {("HiRED", rate): answers(0.5, digit=0.4, garment=0.5) for rate in LIMITS}
    (judged,) = (c for c in hired._fine(scores, answers(0.9, digit=0.5)) if c.holds is not None)
    assert judged.holds is False  # digits are read worst, but lost less
    assert judged.measured == pytest.approx(0.1 - 0.4)


# -- G-Search: answers by method, budget and seed -------------------------------------------------

LAYERS = SEERS["M"].layers
ASKED = 100  # questions
BUDGETS = g_search.BUDGETS
SEARCHES = (FASTV, LINEAR, PYRAMID, RANDOM_RANK, RANDOM_SEARCH)
HALF, MOST = (1.0, 1.0, 0.4, 0.2, 0.1, 0.0), (1.0, 1.0, 1.0, 0.8, 0.6, 0.4)


def outcomes(shares: Mapping[tuple[str, float], float]) -> Outcomes:
    """Two seeds of every cell, one a little better than the other."""
    question = Question("count", ("how", "many"), ("two",))
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
    )
    seer = Seer(SEERS["M"], SimpleNamespace(config=config))  # nothing but its cost is asked for
    asked = Bed(seer, [(Examples("count", (), (question,) * ASKED), torch.zeros(ASKED, 0, 0))])
    found = Outcomes(asked)
    for cell, share in shares.items():
        found.right[cell] = {n: right(share + gap, ASKED) for n, gap in enumerate((-0.01, 0.01))}
        found.rates[cell] = {0: HALF, 1: HALF}
    return found


def searched(kept: tuple[float, ...], held: bool) -> list[KeepSchedule]:
    return [KeepSchedule("seer", LAYERS, kept, held=held, calls=9) for _ in range(2)]


@pytest.mark.parametrize(
    ("kept", "held_up", "ours", "holds"),
    [
        (HALF, True, 0.9, [True, True, True]),
        (MOST, False, 0.7, [False, False, False]),
        (MOST, True, 0.9, [False, True, True]),
        (HALF, False, 0.9, [True, False, True]),
        (HALF, True, 0.7, [True, True, False]),
    ],
)
def test_mode_one_holds_where_few_tokens_are_kept_and_nothing_is_lost(
    kept: tuple[float, ...], held_up: bool, ours: float, holds: list[bool]
) -> None:
    found = outcomes({(g_search.MODE_I, 1.0): ours, (g_search.FULL, 1.0): 0.8})
    schedules = {g_search.MODE_I: searched(kept, held_up)}
    checks = g_search._mode_one(found, schedules, judged=True)
    assert held(checks) == holds
    expected = [sum(kept) / LAYERS, float(held_up), ours - 0.8]
    assert [check.measured for check in checks] == pytest.approx(expected)


def test_mode_one_needs_every_split_to_hold() -> None:
    found = outcomes({(g_search.MODE_I, 1.0): 0.8, (g_search.FULL, 1.0): 0.8})
    schedules = {g_search.MODE_I: [*searched(HALF, True), *searched(HALF, False)]}
    assert held(g_search._mode_one(found, schedules, judged=True)) == [True, False, True]


def leads(by_budget: Sequence[float]) -> dict[tuple[str, float], float]:
    shares = {}
    for budget, lead in zip(BUDGETS, by_budget, strict=True):
        shares[SIGMOID, budget] = 0.5 + lead / 2
        shares |= {(name, budget): 0.5 - lead / 2 for name in SEARCHES}
    return shares


@pytest.mark.parametrize(
    ("by_budget", "ahead", "grows"),
    [
        ((0.1, 0.2, 0.4), True, True),
        ((-0.1, -0.2, -0.4), False, False),
        ((0.4, 0.2, 0.1), True, False),
        ((-0.4, -0.2, -0.1), False, True),
    ],
)
def test_mode_two_holds_where_the_sigmoid_is_ahead_and_its_lead_grows(
    by_budget: tuple[float, ...], ahead: bool, grows: bool
) -> None:
    checks = g_search._mode_two(outcomes(leads(by_budget)), BUDGETS, judged=True)
    assert held(checks) == [ahead] * 15 + [grows] * 2
    assert [check.measured for check in checks[:3]] == pytest.approx(list(by_budget))
    grown = by_budget[-1] - by_budget[0]
    assert [check.measured for check in checks[15:]] == pytest.approx([grown] * 2)


@pytest.mark.parametrize("rival", SEARCHES)
def test_mode_two_judges_each_rival_and_budget_by_its_own_answers(rival: str) -> None:
    shares = leads((0.2, 0.2, 0.2)) | {(rival, BUDGETS[1]): 0.9}
    checks = g_search._mode_two(outcomes(shares), BUDGETS, judged=True)
    lost = [at for at, check in enumerate(checks[:15]) if not check.holds]
    assert lost == [3 * SEARCHES.index(rival) + 1]


# -- Zero-TPrune: cells by method, budget and size ------------------------------------------------

PRUNED = tuple(KEPT)  # from light to tight


def cell(name: str, budget: str, size: int, share: float) -> Cell:
    return Cell(name, budget, size, right(share), 0.5)


def cells(shares: Mapping[str, float]) -> dict[tuple[str, str, int], Cell]:
    return {
        (name, budget, size): cell(name, budget, size, share)
        for name, share in shares.items()
        for budget in PRUNED
        for size in SIZES
    }


def test_zero_tprune_is_above_where_it_is_right_more_often_at_every_budget() -> None:
    good = cells({OURS: 0.7, RANDOM: 0.5, CLASS: 0.5})
    assert held(tprune.above(good, PRUNED)) == [True] * 4
    bad = tprune.above(cells({OURS: 0.5, RANDOM: 0.7, CLASS: 0.7}), PRUNED)
    assert held(bad) == [False] * 4
    assert [check.measured for check in bad] == pytest.approx([-0.2] * 4)


@pytest.mark.parametrize("budget", PRUNED)
def test_zero_tprune_is_not_above_where_one_budget_is_lost(budget: str) -> None:
    found = cells({OURS: 0.7, RANDOM: 0.5, CLASS: 0.5})
    found[CLASS, budget, 56] = cell(CLASS, budget, 56, 0.8)
    checks = tprune.above(found, PRUNED)
    assert held(checks) == [True, True, True, False]
    assert checks[3].measured == pytest.approx(-0.1)


@pytest.mark.parametrize(("ours", "without", "holds"), [(0.7, 0.5, True), (0.5, 0.7, False)])
def test_dropping_copies_pays_where_more_scenes_are_right_with_it(
    ours: float, without: float, holds: bool
) -> None:
    found = cells({OURS: ours, NO_COPIES: without})
    for budget in PRUNED[:-1]:  # at 56 px the tight budget alone is judged
        found[OURS, budget, 56], found[NO_COPIES, budget, 56] = (
            found[NO_COPIES, budget, 56],
            found[OURS, budget, 56],
        )
    checks = tprune.copies(found, PRUNED)
    assert held(checks) == [holds, holds]
    assert [check.measured for check in checks] == pytest.approx([ours - without] * 2)


def test_dropping_copies_may_cost_a_little_at_28_px_and_nothing_at_56() -> None:
    found = cells({OURS: 0.69, NO_COPIES: 0.7})
    assert held(tprune.copies(found, PRUNED)) == [False, True]
    found[OURS, PRUNED[0], 28] = cell(OURS, PRUNED[0], 28, 0.6)
    assert held(tprune.copies(found, PRUNED)) == [False, False]


@pytest.mark.parametrize(
    ("block", "by_search", "by_hand", "holds"),
    [
        (3, 0.7, 0.6, [True, True, True]),
        (1, 0.6, 0.7, [False, False, False]),
        (2, 0.69, 0.7, [False, True, True]),
    ],
)
def test_a_search_holds_where_it_leaves_early_blocks_alone_and_loses_nothing(
    block: int, by_search: float, by_hand: float, holds: list[bool]
) -> None:
    stages = (Stage(block, 0.5),)
    found = Found(ZeroTPrune(schedule=stages), (Trial(stages, 0.9, 0.7),))
    shape = Shape(width=32, mlp=64, heads=4, depth=6, patches=64, special=1, patch=8)
    checks = tprune.of_search(
        found,
        shape,
        {size: cell("found", "", size, by_search) for size in SIZES},
        {size: cell("by hand", "", size, by_hand) for size in SIZES},
        {"PageRank after block 1": cell(OURS, "", 28, 0.2)},
    )
    assert held(checks) == holds
    share = 1.0 if block == 3 else 0.5
    gap = by_search - by_hand
    assert [check.measured for check in checks] == pytest.approx([share, gap, gap])
