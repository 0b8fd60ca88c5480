"""The proof of AnytimeBRPO: its small variant runs, and what it claims follows from its runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from outlay.proofs import anytime_brpo
from outlay.proofs.anytime_brpo_figure import drawer
from outlay.proofs.anytime_brpo_runs import (
    EQUAL_STEPS,
    GRID,
    METHOD,
    START,
    TASK,
    cell,
    methods,
    right_of,
)
from outlay.proofs.base import silent
from outlay.proofs.rl_beside import finished
from outlay.rl.anytime.cuts import branches
from outlay.rl.anytime.outcomes import Outcome
from outlay.rl.base import Judgement
from outlay.rl.grid import CellResult, EvalCell

N = 60


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def made(name: str, seed: int, low: float, high: float, thinking: int) -> CellResult:
    """A result whose accuracy rises from `low` at the smallest budget to `high` at the largest."""
    rng = np.random.default_rng(seed)
    chance = np.linspace(low, high, len(GRID))
    cells = [
        EvalCell(
            scale=scale,
            budget=budget,
            temperature=0.6,
            seed=0,
            metrics={},
            bins={},
            right=[int(value) for value in rng.random(N) < p],
            tokens=[thinking + 4] * N,
            thinking=[thinking + at % 3 for at in range(N)],
            styles=[None] * N,
        )
        for scale, budget, p in zip(TASK.scales, GRID, chance, strict=True)
    ]
    return CellResult(
        label=name,
        key=f"{name}{seed}",
        method="AnytimeBRPO",
        task="chainarith-rl",
        seed=seed,
        steps=0 if name == START else 20,
        decides={},
        curve={"tokens_mean": [30.0] * 20},
        evaluation=cells,
        tokens={"rollouts": 10, "probe": 5},
        seconds={},
        machine={},
        commit="",
        date="",
    )


def runs_of(low: float, thinking: int) -> dict[str, list[CellResult]]:
    return {
        "uniform": [made("uniform", s, low, 0.8, thinking) for s in range(3)],
        "GRPO": [made("GRPO", s + 10, 0.2, 0.8, 31) for s in range(3)],
        EQUAL_STEPS: [made(EQUAL_STEPS, 20, 0.2, 0.8, 31)],
        START: [made(START, 30, 0.0, 0.1, 31)],
    }


def test_a_better_and_shorter_policy_proves_the_claims() -> None:
    checks = anytime_brpo.claims(runs_of(0.7, 20))
    assert len(checks) == 5
    assert all(check.holds for check in checks)


def test_an_equal_policy_proves_nothing() -> None:
    checks = anytime_brpo.claims(runs_of(0.2, 31))
    assert [check.claim for check in checks if check.holds] == [
        check.claim for check in checks if check.claim.startswith("final accuracy")
    ]


def test_accuracy_is_read_by_question_and_budget() -> None:
    results = [made("GRPO", s, 0.0, 1.0, 31) for s in range(2)]
    found = right_of(results)
    assert found.shape == (N, len(GRID))
    for at, scale in enumerate(TASK.scales):
        pairs = [result.at(0.6, scale)[0].right for result in results]
        assert found[:, at].tolist() == [(a + b) / 2 for a, b in zip(*pairs, strict=True)]


def test_stored_cells_are_not_trained_again(tmp_path: Path) -> None:
    wanted = cell("GRPO", 0)
    (tmp_path / f"{wanted.key}.json").write_text(made("GRPO", 0, 0.2, 0.8, 31).to_json())
    missing = cell("linear", 0)  # shown only where it is stored
    runs = finished([wanted], [missing], tmp_path, silent, train_extra=False)
    assert list(runs) == ["GRPO"]
    (found,) = runs["GRPO"]
    assert right_of([found]).tolist() == right_of([made("GRPO", 0, 0.2, 0.8, 31)]).tolist()


def test_every_method_is_a_run_of_its_own() -> None:
    keys = {cell(name, 0).key for name in (*methods(), START)}
    assert len(keys) == len(methods()) + 1
    assert cell("uniform", 0).key != cell("uniform", 1).key


def test_the_picture_shows_all_methods(tmp_path: Path) -> None:
    runs = runs_of(0.7, 20)
    row = {
        "budget": 8,
        **{f"ratio {name}": [0.5, 0.4, 0.6] for name in ("v1", "v2", "brpo")},
    }
    table = [row, {**row, "budget": 16}]
    curves = {name: right_of(group).mean(axis=0).tolist() for name, group in runs.items()}
    draw = drawer(GRID, curves, runs, {"own return": table, "leave one out": table})
    draw(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 20_000


def test_baselines_are_what_they_are_called() -> None:
    all_of = {name: method for name, (method, _) in methods().items()}
    rewards = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    grpo = all_of["GRPO"].of_thinkings(rewards[:, -1:])
    torch.testing.assert_close(grpo[:, 0], rewards[:, -1] - rewards[:, -1].mean())
    progress = all_of["progress"].of_thinkings(rewards)
    expected = torch.tensor([[0, -0.5, 0.5, 0.5], [0, 0.5, -0.5, -0.5]], dtype=torch.float64)
    torch.testing.assert_close(progress, expected)
    assert not torch.equal(all_of["coupled"].of_summaries([OUTCOME] * 2), OUTCOME_ADVANTAGES)
    torch.testing.assert_close(all_of["linear"].of_summaries([OUTCOME] * 2), OUTCOME_ADVANTAGES)


NOTHING = Judgement(False, 0.0, False, 1, 1, 0, False)
OUTCOME = Outcome(
    thinking=(5,) * 64,
    ended=False,
    cuts=tuple(branches(64, False, METHOD.budgets)),
    suffixes=(),
    summaries=(),
    rewards=((1.0, 0.0, 0.0, 0.0),) * 4,
    last=NOTHING,
)
OUTCOME_ADVANTAGES = torch.tensor([[[0.75, -0.25, -0.25, -0.25]] * 4] * 2, dtype=torch.float64)


def test_the_length_penalty_pays_short_thinkings_more() -> None:
    from outlay.testbeds.chainarith_rl import build_tokenizer

    tokenizer = build_tokenizer()
    method = methods()["length"][0].tokenized(tokenizer)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    outcomes = method.outcomes(
        [{"answer": "7"}] * 2,
        [ids("<user>3+4=?<assistant><think>")] * 2,
        [ids("<direct></think>"), ids("<short>3+4=7;</think>")],
        lambda prompts, most: [ids("7<eos>")] * len(prompts),
    )
    assert [one.rewards[0][0] for one in outcomes] == pytest.approx(
        [1 - 0.2 * 2 / 64, 1 - 0.2 * 8 / 64]
    )


def test_the_small_variant_runs() -> None:
    result = anytime_brpo.run("ci")
    by = {check.claim: check for check in result.checks}
    assert by["answers at all budgets cost no second pass over the shared prefix"].holds
    first = result.data["variance"]["own return"][0]
    assert first["ratio brpo"] == first["ratio v2"]  # before the first budget there is no past
    assert first["ratio v2"][0] < first["ratio v1"][0] == 1
    assert len(result.data["curve"]["tokens_mean"]) == 2
    assert max(result.data["curve"]["grad_norm"]) > 0
    assert result.minutes < 0.5
