"""The RSD proof at its smallest: the mechanisms hold on tables and on the shipped reasoners."""

from __future__ import annotations

import json

import numpy as np
import pytest

from outlay.errors import InputError
from outlay.proofs import rsd, rsd_runs


@pytest.fixture(scope="module")
def result():
    import torch

    torch.set_num_threads(1)
    return rsd.run("ci", seed=3)


def test_the_text_is_the_targets_and_a_wrong_order_is_caught(result) -> None:
    laws = [check for check in result.checks if "law" in check.claim]
    assert len(laws) == 3 + 4
    assert all(check.holds for check in laws)
    held = {check.claim: check.holds for check in result.checks}
    assert held["tables: visiting siblings in the order of their ids is caught"]
    assert held["reasoner: at temperature 0 the text is plain greedy decoding's"]


def test_the_result_is_json_with_a_table_and_a_picture(result, tmp_path) -> None:
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["system"] == "rsd"
    assert set(data["data"]["reasoner"]["efficiency"]) == {"L=3", "B=6"}
    assert "RSD-S" in result.table()
    result.draw(tmp_path / "rsd.png")
    assert (tmp_path / "rsd.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="ci"):
        result.save(tmp_path)


def test_chi_square_finds_what_is_wrong_and_pools_rare_cells() -> None:
    law = np.array([0.5, 0.3, 0.199, 0.001])
    rng = np.random.default_rng(0)
    right = rng.multinomial(2000, law).astype(float)
    wrong = rng.multinomial(2000, [0.4, 0.4, 0.199, 0.001]).astype(float)
    assert rsd_runs.chi_square(right, law) > 1e-3
    assert rsd_runs.chi_square(wrong, law) < 1e-6


def test_equal_budgets_give_every_method_at_most_as_many_nodes() -> None:
    for nodes in rsd.BUDGETS:
        shapes = rsd_runs.at_budget(nodes, (0.5, 0.65, 0.7))
        assert all(shape.nodes <= nodes for shape in shapes.values())
        assert shapes["chain"].nodes == nodes
