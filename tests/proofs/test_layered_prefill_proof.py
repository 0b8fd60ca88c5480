"""The proof of layered prefill: its quick run, and the arithmetic of its checks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outlay.errors import InputError
from outlay.proofs import layered_prefill as proof
from outlay.proofs import layered_prefill_gpu as gpu
from outlay.proofs.base import ProofResult
from outlay.proofs.layered_prefill_runs import PAPER, PAPER_COST
from outlay.schedule.serving import Shape

EXACT = ("same greedy tokens", "crosses every layer once", "expert bytes saved", "saving grows")


@pytest.fixture(scope="module")
def result() -> ProofResult:
    return proof.run("ci")


def test_claims_that_are_counted_hold_at_any_size(result: ProofResult) -> None:
    held = {check.claim: check.holds for check in result.checks}
    assert len(held) == len(result.checks)
    for words in EXACT:
        found = [holds for claim, holds in held.items() if words in claim]
        assert found, words
        assert all(found), words
    for words in ("mean TTFT", "p99 TBT", "longest gap", "simulator foretells"):
        assert any(words in claim for claim in held), words


def test_the_result_is_json_with_a_picture(result: ProofResult, tmp_path: Path) -> None:
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))["data"]
    assert {row["schedule"] for row in data["runs"]} == {"layered", "chunked", "chunked 4x", "orca"}
    assert all(row["digest"] for row in data["runs"])
    assert result.draw is not None
    result.draw(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="ci-scale"):
        result.save(tmp_path)


def test_the_papers_cards_are_bound_by_memory_where_few_rows_decode() -> None:
    few = PAPER_COST(Shape(48, decode_rows=8, decode_pairs=8 * 1024, sampled=8))
    bytes_read = 48 * (PAPER_COST.attention_bytes + PAPER.hit(8) * PAPER.expert_bytes)
    assert few == pytest.approx(bytes_read / PAPER_COST.bandwidth + 48 * 20e-6, rel=0.05)
    assert PAPER.experts * PAPER.expert_bytes * PAPER.layers == pytest.approx(58e9, rel=0.02)


def row(schedule: str, **figures: float | None) -> dict:
    base = {"model": "moe", "trace": "gpu-long", "ref_chunk": 512, "joules_per_token": None}
    return {**base, "schedule": schedule, **figures}


def test_gpu_checks_compare_medians_and_skip_what_was_not_measured() -> None:
    rows = [
        row("layered", expert_bytes=6.0, ttft_mean=ttft, tbt_p99=1.0) for ttft in (1.0, 2.0, 9.0)
    ]
    rows += [row("chunked", expert_bytes=10.0, ttft_mean=4.0, tbt_p99=0.5)]
    found = {check.claim: check for check in gpu.checks(rows)}
    assert len(found) == 3
    assert found["gpu-long: expert bytes, layered over chunked"].holds
    assert found["gpu-long: mean TTFT, layered over chunked"].measured == pytest.approx(0.5)
    assert found["gpu-long: p99 TBT, layered over chunked"].holds is False
    assert gpu.checks([]) == []
