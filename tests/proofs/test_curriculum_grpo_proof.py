"""The proof of Curriculum GRPO: its quick run, its runs, and how it measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from outlay.proofs import curriculum_grpo
from outlay.proofs.curriculum_grpo_claims import (
    BEFORE,
    FALL,
    GREEDY,
    LAG,
    SAMPLED,
    SMOOTH,
    curriculum_or_fixed,
    difference,
    first_fall,
    follows,
    hard_first,
    lags,
    shapes,
)
from outlay.proofs.curriculum_grpo_runs import (
    ABLATIONS,
    B0,
    B_FINAL,
    BAND,
    CURRICULUM,
    EXTRAS,
    FIXED,
    GATED,
    MAIN,
    START,
    STEPS,
    TRIANGLE,
    binned,
    cells,
    methods,
    table_of,
)
from outlay.proofs.rl_beside import RATE
from outlay.proofs.rl_figure import stored
from outlay.rl.curriculum import CurriculumGRPO
from outlay.rl.grid import Cell
from outlay.rl.grid_results import CellResult, EvalCell


def result(
    label: str,
    right: Sequence[int],
    tokens: Sequence[int],
    curve: dict[str, list[float | None]] | None = None,
    seed: int = 0,
) -> CellResult:
    """A stored run with these answers at both temperatures and one budget."""
    shown: dict[str, Any] = {"metrics": {}, "bins": {}, "thinking": list(tokens)}
    shown |= {"styles": [None] * len(tokens), "right": list(right), "tokens": list(tokens)}
    evaluation = [
        EvalCell(scale=2.0, budget=112, temperature=at, seed=None if at == 0 else 0, **shown)
        for at in (GREEDY, SAMPLED)
    ]
    return CellResult(
        label=label,
        key=label,
        method="CurriculumGRPO",
        task="chainarith-rl",
        seed=seed,
        steps=STEPS,
        decides={},
        curve=curve or {},
        evaluation=evaluation,
        tokens={"rollouts": 1000},
        seconds={"train": 1.0, "evaluate": 1.0},
        machine={},
        commit="",
        date="",
    )


def test_the_quick_run_holds() -> None:
    made = curriculum_grpo.run("ci")
    assert made.holds, made.table()
    assert len(made.checks) == 3


# -- runs -----------------------------------------------------------------------------------------


def test_baselines_are_the_grids_own_cells_which_other_proofs_share() -> None:
    ours = {cell.label: cell.key for cell in cells(MAIN, [1])}
    for label, spec in (("GRPO", "grpo"), ("gated length", "grpo-length")):
        same = Cell("anything", spec, seed=1, steps=STEPS, learning_rate=RATE)
        assert ours[label] == same.key
    (start,) = cells((START,), [0])
    assert start.key == Cell("anything", None).key


def test_every_method_is_another_run() -> None:
    names = (START, *MAIN, *ABLATIONS, *EXTRAS)
    made = cells(names, [0, 1])
    assert set(names) == set(methods())
    assert len({cell.key for cell in made}) == 2 * len(names) - 1  # no seed before training


def test_the_curriculum_shrinks_from_the_first_budget_to_the_last_in_four_stages() -> None:
    method = methods()[CURRICULUM]
    assert isinstance(method, CurriculumGRPO)
    table = table_of(method, STEPS)
    assert [step for step, _ in table] == [0, 38, 75, 113]
    assert [budget for _, budget in table] == pytest.approx([B0, 57.5, 42.9, B_FINAL], abs=0.05)
    assert not method.budget_in_prompt


def test_only_stored_cells_are_found(tmp_path: Any) -> None:
    wanted = cells(EXTRAS, [0])
    (tmp_path / f"{wanted[2].key}.json").write_text("{}")
    assert stored(wanted, tmp_path) == [wanted[2]]


# -- measures -------------------------------------------------------------------------------------


def test_a_difference_is_of_the_means_over_seeds_problem_by_problem() -> None:
    ours = [result("a", [1, 1, 0, 1], [4, 4, 4, 4], seed=s) for s in (0, 1)]
    theirs = [result("b", [0, 1, 0, 1], [6, 4, 4, 8]), result("b", [0, 0, 0, 1], [6, 4, 4, 8])]
    assert difference(ours, theirs, "right", GREEDY).mean == pytest.approx((1 + 0.5) / 4)
    assert difference(ours, theirs, "tokens", SAMPLED).mean == pytest.approx(-6 / 4)
    assert difference(ours, theirs, "right", GREEDY).n == 4


def test_a_lag_is_counted_from_the_drop_to_the_first_steps_that_have_arrived() -> None:
    table = [(0, 80.0), (40, 40.0)]
    for lag in (0, 7, 29):
        lengths = [80.0] * (40 + lag) + [40.0] * (60 - lag)
        assert lags(lengths, table) == [max(0, lag)]
    slow = [80.0] * 100
    assert lags(slow, table) == [None]
    late = [80.0] * (100 - SMOOTH + 1) + [40.0] * (SMOOTH - 1)
    assert lags(late, table) == [None]


def test_a_drop_to_a_budget_that_lengths_keep_already_does_not_bind() -> None:
    assert lags([43.0] * 100, [(0, 80.0), (40, 40.0)]) == []
    assert lags([45.0] * 100, [(0, 80.0), (40, 40.0)]) == [None]
    rises = [30.0] * (40 - BEFORE) + [50.0] * BEFORE + [40.0] * 60
    assert lags(rises, [(0, 80.0), (40, 40.0)]) == [0]


def test_length_that_follows_in_time_holds_and_length_that_does_not_fails() -> None:
    method = methods()[CURRICULUM]
    assert isinstance(method, CurriculumGRPO)
    steps = list(range(STEPS))
    prompt = [method.budget_at(max(0, step - 5), STEPS) for step in steps]
    late = [method.budget_at(max(0, step - LAG - 2), STEPS) for step in steps]
    for lengths, holds in ((prompt, True), (late, False), ([float(B0)] * STEPS, False)):
        runs = [result("c", [1], [9], {"tokens_mean": list(lengths)})]
        assert follows(runs).holds is holds


def test_a_fall_is_the_first_window_that_far_below_the_start() -> None:
    flat: list[float | None] = [0.5] * 60
    assert first_fall(flat) is None
    assert first_fall([0.5] * 30 + [0.5 - FALL - 0.01] * 30) == 30
    assert first_fall([0.5] * 30 + [None] * 10 + [0.1] * 20) is not None


def test_bins_are_pooled_over_operations_that_a_step_had() -> None:
    run = result("a", [1], [5], {"acc@1": [1.0, None, None], "acc@2": [0.0, 0.5, None]})
    assert binned(run, "acc", (1, 2, 3)) == [0.5, 0.5, None]


def test_claims_hold_only_in_their_direction() -> None:
    better, worse = result(CURRICULUM, [1] * 8, [9] * 8), result(FIXED, [0] * 8, [9] * 8)
    assert all(c.holds for c in curriculum_or_fixed({CURRICULUM: [better], FIXED: [worse]}))
    assert not any(c.holds for c in curriculum_or_fixed({CURRICULUM: [worse], FIXED: [better]}))
    long_right, short_wrong = result("t", [1] * 8, [30] * 8), result("b", [0] * 8, [20] * 8)
    assert all(c.holds for c in shapes({BAND: [short_wrong], TRIANGLE: [long_right]}))
    assert not any(c.holds for c in shapes({BAND: [long_right], TRIANGLE: [short_wrong]}))


def test_hard_problems_must_fall_and_before_easy_ones() -> None:
    def run(easy_from: int, hard_from: int) -> CellResult:
        curve: dict[str, list[float | None]] = {}
        for n in range(1, 9):
            start = easy_from if n <= 3 else hard_from
            curve[f"acc@{n}"] = [0.8 if step < start else 0.3 for step in range(STEPS)]
        return result("r", [1], [5], curve)

    gated = [run(STEPS, STEPS)]
    held = [
        [check.holds for check in hard_first({TRIANGLE: [run(*at)], GATED: gated})]
        for at in ((120, 40), (40, 120), (STEPS, STEPS))
    ]
    assert held == [[True, True], [False, True], [False, False]]
