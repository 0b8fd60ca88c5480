"""The proof of HBPO at its smallest: mechanics hold, claims are computed from real runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from outlay.proofs import hbpo, hbpo_runs, rl_figure
from outlay.proofs.hbpo_runs import COSINE, HIERARCHY, MAIN, NO_INTRA, ONE, TWICE
from outlay.rl.grid import run
from outlay.rl.grid_compare import by_label
from outlay.rl.hbpo import HBPO
from outlay.rl.running_tasks import ChainTask


def test_mechanical_claims_hold_at_any_size() -> None:
    result = hbpo.run("ci", seed=1)
    assert [check.holds for check in result.checks] == [True, True]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> rl_figure.Runs:
    task = ChainTask(test=16, scales=(1.0, 2.0))
    wanted = hbpo_runs.cells((*MAIN, NO_INTRA, TWICE), (0,), task, steps=2, questions=1)
    return by_label(run(wanted, tmp_path_factory.mktemp("cells")))


def test_every_claim_is_computed_from_the_runs(runs: rl_figure.Runs) -> None:
    checks = hbpo.judged(runs)
    judged = [check for check in checks if check.holds is not None]
    assert len(judged) == 7
    spread = runs[HIERARCHY][0].tail("group_tokens_std", 50)
    other = runs[ONE][0].tail("group_tokens_std", 50)
    assert spread is not None
    assert other is not None
    assert checks[0].measured == pytest.approx(spread - other)
    assert checks[0].holds == (spread > other)
    against = [check.claim for check in checks if check.holds is None]
    assert f"HBPO against {COSINE}" in against


def test_the_picture_and_the_data_show_every_method(runs: rl_figure.Runs, tmp_path: Path) -> None:
    data = rl_figure.data_of(runs, ("acc",))
    assert [row["method"] for row in data["methods"]] == list(runs)
    row = data["methods"][0]
    assert len(row["evaluation"]["T=0"]["by_budget"]) == 2
    path = tmp_path / "picture.png"
    rl_figure.drawer(runs, MAIN, "acc", "y", "title")(path)
    assert path.stat().st_size > 10_000


def test_methods_share_rollouts_steps_and_rate() -> None:
    wanted = hbpo_runs.cells((*MAIN, *hbpo_runs.ABLATIONS), (0, 1))
    assert len({(c.steps, c.questions, c.group, c.learning_rate) for c in wanted}) == 1
    assert len({cell.key for cell in wanted}) == len(wanted)
    for cell in wanted:
        if isinstance(cell.method, HBPO):
            assert cell.method.l_max == hbpo_runs.L_MAX
