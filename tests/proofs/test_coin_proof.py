"""The CoIn proof at its smallest: what holds at any size holds."""

import json

import pytest

from outlay.errors import InputError
from outlay.proofs import coin, coin_count


@pytest.fixture(scope="module")
def result():
    import torch

    torch.set_num_threads(1)
    return coin.run("ci", seed=3)


def test_claims_about_the_count_hold_at_any_size(result):
    held = {check.claim: check.holds for check in result.checks}
    for claim, holds in held.items():
        if "tree:" in claim and "formula" not in claim:
            assert holds, claim
    assert held["no altered proof is accepted"]
    assert held["no audit opens more than the limits"]
    assert held["naive_count: detection at IR 1"]
    assert held["dedup catches copies at IR 1"]
    assert held["Tokens-to-Block head tells pairs apart better than the raw cosine"]


def test_the_result_is_json_with_a_table_and_a_picture(result, tmp_path):
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["system"] == "coin"
    assert {row["verifier"] for row in data["data"]["dsr"]} == {"rule", "deepset", "rnn"}
    assert set(data["data"]["mutations"]) == set(coin_count.KINDS)
    assert {"trust", "full disclosure"} <= set(data["data"]["baselines"])
    placed = {(row["attack"], row["place"]) for row in data["data"]["places"]}
    assert placed == {
        (attack, place)
        for attack in ("random_vocab", "duplicate_blocks")
        for place in ("end", "uniform", "interleaved")
    }
    assert set(data["data"]["honest_by_source"]) == set(coin.SIZES["ci"].sources)
    assert len(result.table().splitlines()) == len(result.checks) + 2
    result.draw(tmp_path / "coin.png")
    assert (tmp_path / "coin.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="ci-scale"):
        result.save(tmp_path)


def test_detection_in_simulation_follows_the_formula():
    from outlay.audit.commitment import detection

    got = coin_count.caught(100, 10, 6, 1500, 5)
    wanted = detection(99, 10, 5)
    assert abs(got - wanted) < 4 * (wanted * (1 - wanted) / 1500) ** 0.5
