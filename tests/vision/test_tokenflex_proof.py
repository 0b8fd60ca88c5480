"""TokenFLEX's proof at its smallest: what must hold at any size does; trainings stop and go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.fashion import needs_fashion

from outlay.errors import InputError, ResultsError
from outlay.proofs import tokenflex, tokenflex_claims, tokenflex_runs
from outlay.proofs.tokenflex_runs import ARMS, FINE, KINDS, Plan, bed, by_method, cell, right
from outlay.testbeds.seer.model import build
from outlay.vision.tokenflex import TokenFlex

pytestmark = needs_fashion
PLAN = Plan(("fixed-9", "flex", "joint"), 4, 4, 12, 1, warmup=2)


def silent(message: str) -> None:
    """Says nothing."""


@pytest.fixture(scope="module")
def tower() -> Any:
    torch.set_num_threads(1)
    return build(tokenflex_runs.SIZE, 3).model.vision_tower.requires_grad_(False)


@pytest.fixture(scope="module")
def models(tower: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tokenflex_runs.trained(PLAN, tower, 1, tmp_path_factory.mktemp("whole"), silent)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    return tokenflex.run("ci", seed=2, folder=tmp_path_factory.mktemp("ci"))


def test_the_ledger_of_the_quick_proof_is_exact(result: Any) -> None:
    held = {check.claim: check for check in result.checks}
    assert held["the visual tokens told are those of the draws"].holds
    assert held["flex trains on the expected share of the tokens"].measured < 1
    assert "at 144 tokens flex is as good as the model trained with 144" in held


def test_the_quick_result_is_json_with_a_table_and_a_picture(result: Any, tmp_path: Path) -> None:
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert {(row["arm"], row["tokens"]) for row in data["data"]["accuracy"]} == {
        (arm, count) for arm in ("fixed-144", "flex") for count in (9, 36, 144)
    }
    assert {point["stack"] for point in data["points"]} == {"fixed-144", "flex"}
    assert len(result.table().splitlines()) == len(result.checks) + 2
    result.draw(tmp_path / "tokenflex.png")
    assert (tmp_path / "tokenflex.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="ci-scale"):
        result.save(tmp_path)


def test_a_stopped_training_ends_as_one_without_a_break(
    tower: Any, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenflex_runs, "EVERY", 2)

    def stop(message: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenflex_runs.trained(PLAN, tower, 1, tmp_path, stop)
    told: list[str] = []
    again = tokenflex_runs.trained(PLAN, tower, 1, tmp_path, told.append)
    assert len(told) == 1
    assert told[0].startswith("seed 1, step 4 of 4")
    for name, model in models.items():
        assert again[name].losses == model.losses
        assert again[name].tokens == model.tokens
        for ours, theirs in zip(
            again[name].seer.model.parameters(), model.seer.model.parameters(), strict=True
        ):
            assert torch.equal(ours, theirs)


def test_arms_differ_in_nothing_but_their_counts(tower: Any) -> None:
    first, second = (
        tokenflex_runs.made(ARMS[name], tower, PLAN, 1).seer.model for name in ("fixed-9", "flex")
    )
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert first.model.vision_tower is second.model.vision_tower
    assert first.lm_head is not second.lm_head


def test_training_leaves_the_tower_alone_and_counts_its_tokens(tower: Any, models: Any) -> None:
    fresh = build(tokenflex_runs.SIZE, 3).model.vision_tower
    for ours, theirs in zip(tower.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    drawn = [ARMS["flex"].draw(1).at(step)[0] for step in range(4)]
    assert models["flex"].tokens == [4 * count for count in drawn]
    assert models["fixed-9"].tokens == [36] * 4
    assert models["joint"].tokens == [4 * (9 + 36 + 144)] * 4


@pytest.mark.parametrize("count", [9, 36, 144])
def test_ready_features_answer_as_the_method_on_full_prompts(
    tower: Any, models: Any, count: int
) -> None:
    """Untrained models answer at random; that both agree on wrong answers says as much."""
    found, seer = bed(tower, 12, 0), models["flex"].seer
    direct = right(found, seer, count)
    public = by_method(found, seer, TokenFlex(count), 12)
    assert np.array_equal(direct, public, equal_nan=True)
    features = seer.model.model.multi_modal_projector.at(
        found.hidden_SNC[:2], tokenflex_runs.grid_of(count)
    )
    with TokenFlex(count)(seer.model) as kept:
        index, questions = found.asked["count"]
        inputs = seer.inputs(found.seen[index[:2]], questions[:2])
        ready = seer.inputs_of_features([[features[i]] for i in index[:2]], questions[:2])
        full = seer.model(**inputs, logits_to_keep=1).logits
    short = seer.model(**ready, logits_to_keep=1).logits
    assert torch.allclose(full, short, atol=1e-4)
    assert kept.counts()[0] == [count, count]


def test_measured_cells_are_read_and_damaged_ones_refused(tmp_path: Path) -> None:
    path, table = tmp_path / "cell.npy", np.array([[1.0, np.nan]])
    assert np.array_equal(cell(path, lambda: table), table, equal_nan=True)

    def never() -> np.ndarray:
        raise AssertionError

    assert np.array_equal(cell(path, never), table, equal_nan=True)
    path.write_bytes(b"nonsense")
    with pytest.raises(ResultsError, match="remove it"):
        cell(path, never)


def test_a_damaged_training_is_refused(tower: Any, tmp_path: Path) -> None:
    home = tmp_path / tokenflex_runs.digest(PLAN, 1, tower)
    home.mkdir()
    (home / "state.pt").write_bytes(b"nonsense")
    with pytest.raises(ResultsError, match="cannot be read"):
        tokenflex_runs.trained(PLAN, tower, 1, tmp_path, silent)


def test_a_gap_is_the_mean_over_scenes_of_their_own_means() -> None:
    one, two = np.full((4, len(KINDS)), np.nan), np.full((4, len(KINDS)), np.nan)
    digit, garment = (KINDS.index(kind) for kind in FINE)
    one[0, [digit, garment]], two[0, [digit, garment]] = [1, 0], [0, 0]  # 0.5
    one[1, digit], two[1, digit] = 1, 0  # 1
    one[2, garment], two[2, garment] = 0, 1  # -1; the last scene has no fine question
    mean, lo, hi = tokenflex_claims.gap(one, two, FINE)
    assert mean == pytest.approx(0.5 / 3)
    assert lo < mean < hi
    assert tokenflex_claims.gap(one, one, FINE)[0] == 0


def test_the_expected_share_is_that_of_the_draws() -> None:
    assert pytest.approx(84.6 / 144) == tokenflex_claims.SHARE
    drawn = [ARMS["flex"].draw(0).at(step)[0] for step in range(900)]
    assert abs(np.mean(drawn) / 144 - tokenflex_claims.SHARE) < tokenflex_claims.SHARE_OFF
