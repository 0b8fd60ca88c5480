"""The proof of LongCodeZip at ci scale, and its statistics on made-up numbers."""

import pytest

from outlay.budget import Budget
from outlay.ledger import Ledger
from outlay.proofs import longcodezip as proof
from outlay.records import Record


@pytest.mark.model
def test_the_ci_variant_ranks_and_compresses_a_real_case(tmp_path) -> None:
    result = proof.run("ci", folder=tmp_path)
    (ranks,) = result.data["ranks"]["visible"]
    assert 0 <= ranks["longcodezip"] < ranks["chunks"]
    assert {point.stack for point in result.points} == {"longcodezip", "head"}
    for point in result.points:
        assert point.quality > 0
        assert point.kinds["prompt_new"] > 0


def record(label: str, method: str, example: str, quality: float) -> Record:
    budget = Budget(tokens=100, counts="prompt")
    return Record(label, example, method, budget, 0, quality, Ledger())


def test_a_gap_holds_only_when_its_interval_excludes_zero() -> None:
    rows = [record("10%", "longcodezip", str(i), 1.0) for i in range(12)]
    rows += [record("10%", "head", str(i), 1.5 + 0.01 * i) for i in range(12)]
    rows += [record("10%", "bm25", str(i), 1.0 + (-1) ** i * 0.3) for i in range(12)]
    by_name = {c.claim: c for c in proof._use_checks(rows, (0.1,), 0)}
    (head,) = [c for claim, c in by_name.items() if "head" in claim]
    (bm25,) = [c for claim, c in by_name.items() if "bm25" in claim]
    assert head.holds
    assert head.measured == pytest.approx(0.555)
    assert not bm25.holds


def test_the_needed_chunk_is_found_by_its_lines() -> None:
    from outlay.evals.base import Problem

    context = "a = 1\ndef f():\n    return 2\nb = 3\n"
    start = context.index("def")
    problem = Problem("x", "q", context, gold_span=(start, context.index("b = 3")))
    chunks = [{"lines": [4, 4]}, {"lines": [2, 3]}, {"lines": [1, 1]}]
    assert proof._first_with(chunks, problem) == 1
