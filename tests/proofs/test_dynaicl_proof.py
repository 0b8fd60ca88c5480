"""The DynaICL proof at its smallest scale, and the arithmetic behind its figures."""

import numpy as np
import pytest

from outlay.errors import InputError
from outlay.proofs.dynaicl import MEANS, run
from outlay.proofs.dynaicl_runs import Outcome, gain_share, gap


@pytest.fixture(scope="module")
def result():
    import torch

    torch.set_num_threads(1)
    return run("ci", seed=3)


def named(result, text):
    return [check for check in result.checks if text in check.claim]


def test_no_allocation_breaks_its_budget(result):
    (check,) = named(result, "costs a token more")
    assert check.holds
    assert check.measured == 0


def test_utility_beats_uniform_at_every_budget(result):
    gains = named(result, "utility beats uniform")
    assert len(gains) == len(MEANS)
    assert all(check.measured > 0 for check in gains)


def test_families_need_different_numbers(result):
    needed = [check.measured for check in result.checks[:3]]
    assert needed[0] == 0
    assert needed[1] == 1
    assert needed[2] > 1


def test_a_controller_that_cannot_know_gains_little(result):
    assert all(check.measured < 0.08 for check in named(result, "shuffled"))  # 120 inputs


def test_every_method_spends_the_same_tokens(result):
    for mean_k in MEANS:
        rows = [r for r in result.data["methods"] if r["mean_k"] == mean_k]
        tokens = {row["method"]: row["tokens"] for row in rows}
        assert all(t <= tokens["uniform"] + 1e-9 for t in tokens.values())
        assert tokens["proportional"] > 0.97 * tokens["uniform"]


def test_the_page_can_be_written_and_a_small_run_is_not_saved(result, tmp_path):
    assert "proportional" in result.table()
    result.draw(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert result.points
    with pytest.raises(InputError, match="ci-scale"):
        result.save(tmp_path)


def test_gains_are_means_over_all_inputs_and_shares_are_their_ratio():
    def outcome(values):
        array = np.array(values, dtype=float)
        return Outcome(array, array, array, 0)

    ours, base, oracle = outcome([1, 1, 0, 1]), outcome([1, 0, 0, 0]), outcome([1, 1, 1, 1])
    assert gap([ours], [base])[0] == 0.5
    assert gain_share([ours], [base], [oracle])[0] == pytest.approx(2 / 3)
