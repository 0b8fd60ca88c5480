"""The proof of T2T-ViT at its smallest: runs are stored, claims are computed from them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from outlay.errors import InputError, ResultsError
from outlay.proofs import (
    t2t_vit,
    t2t_vit_claims,
    t2t_vit_figure,
    t2t_vit_runs,
    t2t_vit_seer,
)
from outlay.proofs.base import silent
from outlay.proofs.t2t_vit import PLANS, Plan, main_cells, trained
from outlay.proofs.t2t_vit_claims import DEEPER, Runs
from outlay.proofs.t2t_vit_runs import (
    ATTENTION,
    NAMES,
    PATCH,
    PERFORMER,
    TYPES,
    Cell,
    Outcome,
    World,
    augmented,
    fresh,
    load,
    pictures,
    run_cells,
)
from outlay.testbeds import fashion

TINY = Cell("digits", 20, PATCH, 0, 64, 30, token_dim=8, embed_dim=24, depth=1, batch=16)

garments = pytest.mark.skipif(
    not fashion.installed() and os.environ.get("OUTLAY_CI") != "1",
    reason=f"NOT RUN: install Debian's package {fashion.PACKAGE}",
)


def test_the_quick_proof_holds() -> None:
    torch.set_num_threads(1)
    result = t2t_vit.run("ci", seed=1)
    assert len(result.checks) == 4
    assert [check.holds for check in result.checks] == [True] * 4
    assert result.seeds == [1]


# -- runs -----------------------------------------------------------------------------------------


def test_a_run_is_stored_once_and_read_back(tmp_path: Path) -> None:
    said: list[str] = []
    first = run_cells([TINY], tmp_path, said.append)
    again = run_cells([TINY], tmp_path, said.append)
    assert len(said) == 1
    assert again == first
    assert first[0].cell == TINY
    assert len(first[0].right) == 30
    assert load(tmp_path / f"{TINY.key}.json") == first[0]
    anew = t2t_vit_runs.train(TINY)
    assert (anew.right, anew.loss) == (first[0].right, first[0].loss)


def test_every_field_of_a_cell_decides_its_key() -> None:
    others = [
        replace(TINY, seed=1),
        replace(TINY, samples=30),
        replace(TINY, tokens_type=PERFORMER),
        replace(TINY, rate=2e-3),
        replace(TINY, depth=2),
        replace(TINY, curve=True),
        replace(TINY, start="fan_in"),
    ]
    assert len({cell.key for cell in (TINY, *others)}) == 8


def test_processes_that_share_a_gpu_give_what_one_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only this process believes in a GPU: those that it starts look for themselves."""
    cells = [TINY, replace(TINY, seed=1), TINY]
    one_by_one = run_cells(cells, tmp_path / "one", silent)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    said: list[str] = []
    shared = run_cells(cells, tmp_path / "shared", said.append)
    assert len(said) == 2  # a cell that is asked for twice is trained once
    for one, other in zip(one_by_one, shared, strict=True):
        assert (one.cell, one.right, one.loss) == (other.cell, other.right, other.loss)


def test_damaged_stores_are_named(tmp_path: Path) -> None:
    (tmp_path / f"{TINY.key}.json").write_text("{}")
    with pytest.raises(ResultsError, match="delete it and run again"):
        run_cells([TINY], tmp_path, silent)
    with pytest.raises(ResultsError, match="give another folder"):
        run_cells([TINY], tmp_path / f"{TINY.key}.json", silent)


def test_runs_that_cannot_be() -> None:
    with pytest.raises(InputError, match="choose garments or digits"):
        replace(TINY, world="letters")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least one picture and one step"):
        replace(TINY, seen=10)
    for samples in (15, 5000):
        with pytest.raises(InputError, match=f"samples={samples} of digits; give a multiple"):
            pictures(replace(TINY, samples=samples))
    with pytest.raises(InputError, match="test=1000 of digits; there are 450"):
        pictures(replace(TINY, test=1000))


def test_training_pictures_are_balanced_and_apart_from_test_pictures() -> None:
    train_NSS, labels_N, test_NSS, test_labels_T = pictures(replace(TINY, samples=200, test=450))
    assert np.bincount(labels_N).tolist() == [20] * 10
    assert train_NSS.shape == (200, 28, 28)
    assert len(test_NSS) == len(test_labels_T) == 450
    assert train_NSS.min() >= -1
    assert train_NSS.max() <= 1
    known = {picture.tobytes() for picture in train_NSS}
    assert not known & {picture.tobytes() for picture in test_NSS}
    other = pictures(replace(TINY, samples=200, seed=1))[0]
    assert not np.array_equal(train_NSS, other)


@garments
def test_garments_come_from_their_files() -> None:
    train_NSS, labels_N, test_NSS, _ = pictures(replace(TINY, world="garments", samples=100))
    assert np.bincount(labels_N).tolist() == [10] * 10
    wanted = fashion.images("test")[0][:30] / 127.5 - 1
    assert np.allclose(test_NSS, wanted, atol=1e-6)
    assert train_NSS.dtype == np.float32


def test_all_tokenisers_of_a_seed_start_with_one_backbone() -> None:
    states = [fresh(replace(TINY, tokens_type=kind)).state_dict() for kind in TYPES]
    shared = [name for name in states[0] if "patch_embeddings" not in name]
    assert len(shared) > 15
    for name in shared:
        assert all(torch.equal(states[0][name], state[name]) for state in states)
    assert not torch.equal(
        states[0][shared[0]], fresh(replace(TINY, seed=1)).state_dict()[shared[0]]
    )


def test_augmentation_shifts_and_mirrors_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.arange(28.0 * 28).reshape(1, 28, 28)
    seen = set()
    for _ in range(200):
        made = augmented(picture, True, generator)[0]
        for flipped in (False, True):
            whole = made.flip(1) if flipped else made
            row, column = int(whole[14, 14]) // 28 - 14, int(whole[14, 14]) % 28 - 14
            inside = picture[0, 2 + row : 26 + row, 2 + column : 26 + column]
            if max(abs(row), abs(column)) <= 2 and torch.equal(whole[2:26, 2:26], inside):
                seen.add((row, column, flipped))
                break
        else:
            pytest.fail("a picture was changed in another way")
    assert {row for row, _, _ in seen} == {-2, -1, 0, 1, 2}
    assert {flipped for _, _, flipped in seen} == {False, True}
    still = augmented(picture.repeat(50, 1, 1), False, generator)
    assert (still[:, 14].diff(dim=1)[:, 4:-4] > 0).all()  # never mirrored


def test_epochs_are_evaluated_where_asked() -> None:
    outcome = t2t_vit_runs.train(replace(TINY, curve=True))
    assert len(outcome.curve) == 64 // 20
    assert outcome.curve[-1] == pytest.approx(outcome.accuracy, abs=0.35)


# -- claims ---------------------------------------------------------------------------------------


def _outcome(cell: Cell, right: Sequence[int]) -> Outcome:
    return Outcome(cell, list(right), sum(right) / len(right), [], [2.0, 1.0], 1.0, 1000, {})


def _made_up(gaps: dict[tuple[int, str], float]) -> Runs:
    """Outcomes with chosen accuracies, each test picture right below a threshold."""
    plan = Plan((100, 1000), 320, 16, 400)
    runs: dict[tuple[World, int, str], list[Outcome]] = {}
    for name, cell in main_cells({"digits": plan}, (0, 1), layers=1):
        share = gaps.get((cell.samples, name), 0.5)
        right = (np.arange(400) < 400 * share).astype(int).tolist()
        runs.setdefault(("digits", cell.samples, name), []).append(_outcome(cell, right))
    return runs


def test_claims_hold_where_the_runs_say_so() -> None:
    t2t = {(100, NAMES[k]): 0.7 for k in (ATTENTION, PERFORMER)}
    t2t |= {(1000, NAMES[k]): 0.6 for k in (ATTENTION, PERFORMER)}
    checks = {check.claim: check for check in t2t_vit_claims.judged(_made_up(t2t))}
    judged = [check for check in checks.values() if check.holds is not None]
    assert len(judged) == 7
    assert all(check.holds for check in judged)
    name = f"digits: {NAMES[ATTENTION]} beats patches at every sample size"
    assert checks[name].measured == pytest.approx(0.1)
    growth = f"digits: the lead of {NAMES[ATTENTION]} over patches grows as samples shrink"
    assert checks[growth].measured == pytest.approx(0.1)


def test_claims_fail_where_the_runs_say_so() -> None:
    flat = t2t_vit_claims.judged(
        _made_up({(1000, NAMES[PERFORMER]): 0.6, (100, NAMES[PERFORMER]): 0.4})
    )
    holds = {check.claim: check.holds for check in flat if check.holds is not None}
    assert sum(value for value in holds.values() if value) == 1  # the tie, on average
    assert holds["the performer's tokens are as good as the transformer's"]
    far = t2t_vit_claims.tie(_made_up({(1000, NAMES[PERFORMER]): 0.6}))
    assert far.holds is False
    assert far.measured == pytest.approx(0.05)


def test_a_loss_that_only_knows_how_often_classes_come_is_not_learning() -> None:
    runs = _made_up({})
    assert t2t_vit_claims.learns(runs).holds
    key = next(iter(runs))
    bad = [replace(outcome, loss=[2.35, 2.3026]) for outcome in runs[key]]
    assert t2t_vit_claims.learns({**runs, key: bad}).holds is False


def test_samples_saved_are_read_from_the_curve() -> None:
    t2t = {(100, NAMES[ATTENTION]): 0.4, (1000, NAMES[ATTENTION]): 0.6}
    runs = _made_up(t2t)  # patches reach 0.5 everywhere
    assert t2t_vit_claims.saved(runs, "digits", ATTENTION).measured == f"{10**2.5:.0f}"
    assert t2t_vit_claims.saved(runs, "digits", PERFORMER).measured == "100"
    low = _made_up({(100, NAMES[ATTENTION]): 0.1, (1000, NAMES[ATTENTION]): 0.2})
    assert t2t_vit_claims.saved(low, "digits", ATTENTION).measured == "not reached"


def test_changes_are_tried_where_t2t_loses(tmp_path: Path) -> None:
    plan = Plan((20, 40), 32, 16, 30)
    cells = t2t_vit.change_cells(plan, "digits", [PERFORMER], (0,))
    assert [name for name, _ in cells] == [
        "patches, twice as long",
        "T2T, performer, 64 channels",
        "T2T, performer, twice as long",
        "T2T, performer, start by fan-in",
        "T2T, performer, start by fan-in, twice as long",
    ]
    assert [cell.seen for _, cell in cells] == [64, 32, 64, 32, 64]
    assert [cell.token_dim for _, cell in cells] == [32, 64, 32, 32, 32]
    assert [cell.start for _, cell in cells] == ["released"] * 3 + ["fan_in"] * 2
    runs = {
        **trained(main_cells({"digits": plan}, (0,), layers=1), tmp_path, silent),
        **trained([(name, replace(cell, depth=1)) for name, cell in cells], tmp_path, silent),
    }
    checks = t2t_vit_claims.changed(runs, "digits", [PERFORMER])
    assert [check.holds for check in checks] == [None] * 4
    longer = runs["digits", 20, "T2T, performer, twice as long"][0].accuracy
    base = runs["digits", 20, "patches, twice as long"][0].accuracy
    assert checks[1].measured == pytest.approx(longer - base)
    rows = t2t_vit_figure.data_of(runs)["runs"]
    assert len(rows) == 4 * 2 + 1 + 5
    assert {row["tokens"] for row in rows} == {49}
    path = tmp_path / "picture.png"
    t2t_vit_figure.drawer(runs, [NAMES[kind] for kind in TYPES])(path)
    assert path.stat().st_size > 10_000


def test_methods_differ_in_their_tokeniser_alone() -> None:
    for scale in ("laptop", "gpu"):
        cells = main_cells(PLANS[scale], (0, 1, 2))  # type: ignore[index]
        assert len({cell.key for _, cell in cells}) == len(cells)
        for name, cell in cells:
            assert cell.method.tokens_per_image == 49
            if name != DEEPER:
                assert cell.depth == 6
            assert (cell.embed_dim, cell.heads, cell.token_dim) == (96, 3, 32)
        for world, plan in PLANS[scale].items():  # type: ignore[index]
            for samples in plan.samples:
                group = {c.seen for _, c in cells if (c.world, c.samples) == (world, samples)}
                assert len(group) == 1
    large = t2t_vit.large_cells(0)
    assert [cell.method.tokens_per_image for _, cell in large] == [49, 49]
    assert large[1][1].method.macs > large[0][1].method.macs


def test_the_deeper_baseline_costs_about_as_much_as_t2t() -> None:
    cells = dict(main_cells({"digits": Plan((200,), 320, 16, 30)}, (0,)))
    macs = {name: cell.method.macs for name, cell in cells.items()}
    assert macs[DEEPER] > macs[NAMES[PERFORMER]]
    assert macs[DEEPER] == pytest.approx(macs[NAMES[ATTENTION]], rel=0.03)


@garments
def test_the_tokeniser_trains_in_the_tiny_vision_language_model(tmp_path: Path) -> None:
    said: list[str] = []
    checks = t2t_vit_seer.checks((0,), tmp_path, said.append, steps=(2, 2), scenes=24)
    assert [check.holds is None for check in checks] == [False, True]
    assert len(said) == 2
    again = t2t_vit_seer.checks((0,), tmp_path, silent, steps=(2, 2), scenes=24)
    assert again == checks
