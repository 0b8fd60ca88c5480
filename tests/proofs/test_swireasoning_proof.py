"""SwiReasoning's proof: its quick run, and how it matches tokens and measures areas."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from outlay.decode.plain import PlainDecoder
from outlay.models.local import LocalModel
from outlay.proofs import swireasoning
from outlay.proofs.swireasoning_runs import (
    SAMPLING,
    TASK,
    Bench,
    area_gain,
    forced_at,
    truncated,
    truncated_at,
)
from outlay.testbeds.searcher import checkpoint_path


@pytest.fixture(scope="module")
def bench() -> Bench:
    torch.set_num_threads(1)
    model = LocalModel.load(checkpoint_path(), device="cpu")
    return Bench(model, TASK.sample(3, 8), (0,))


def sweep(*points: tuple[float, float]) -> Any:
    return [SimpleNamespace(tokens=tokens, accuracy=accuracy) for tokens, accuracy in points]


def test_the_quick_run_holds():
    torch.set_num_threads(1)
    result = swireasoning.run("ci")
    assert result.holds, result.table()
    assert len(result.checks) == 2


def test_a_truncated_chain_is_the_run_that_is_cut_there(bench):
    chain = bench.chain()
    prompts = [TASK.prompt(problem, "") for problem in bench.problems]
    for limit in (4, 12, 25, 60):
        cell = truncated(chain, limit)
        short = PlainDecoder(max_tokens=limit).generate_many(
            bench.model, prompts, None, replace(SAMPLING, seed=0)
        )
        for record, problem, made in zip(cell.records, bench.problems, short, strict=True):
            assert record.quality == TASK.verify(problem, made.text)
            assert record.cost("generated") == made.ledger.totals().generated


def test_the_other_side_gets_equal_tokens(bench):
    chain = bench.chain()
    for tokens in (6.0, 15.0, 22.0):
        assert tokens <= truncated_at(chain, tokens).tokens < tokens + 1
        assert abs(forced_at(bench, chain, tokens).tokens - tokens) < 3


def test_the_area_gain_is_that_of_the_tokens_in_common():
    low = sweep((0, 0.2), (10, 0.2))
    assert area_gain(sweep((0, 0.3), (10, 0.3)), low) == pytest.approx(0.5)
    assert area_gain(sweep((5, 0.2), (20, 0.5)), low) == pytest.approx(0.25, abs=1e-3)
    assert area_gain(sweep((11, 0.3), (20, 0.3)), low) is None


def test_random_switching_makes_as_many_switches_as_ours(bench):
    ours = bench.swir(None)
    other = bench.random(ours)
    for mine, theirs in zip(ours.results, other.results, strict=True):
        made = sum(step.switched for step in mine.trace)  # type: ignore[attr-defined]
        # A sequence that locks before has no more switches.
        assert sum(step.switched for step in theirs.trace) <= made  # type: ignore[attr-defined]
    assert [r.example for r in ours.records] == [r.example for r in other.records]
