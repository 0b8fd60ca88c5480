"""The changes that the think-prm proof tries: what they are made of, and how they are read off."""

from __future__ import annotations

import numpy as np
import pytest

from outlay.ledger import Ledger
from outlay.models.local import LocalModel
from outlay.proofs import think_prm_changes as changes
from outlay.proofs import think_prm_runs as runs
from outlay.proofs.think_prm_runs import Bench, N, Verdicts
from outlay.reason.think_prm.filters import ChainFilter
from outlay.reason.think_prm.format import COMPACT
from outlay.testbeds.reasoner import checkpoint_path
from outlay.testbeds.reasoner.chains import parse_question


@pytest.fixture(scope="module")
def policy() -> LocalModel:
    return LocalModel.load(checkpoint_path(runs.CHECKPOINT))


@pytest.fixture(scope="module")
def bench(policy: LocalModel) -> Bench:
    return Bench.draw(policy, 12, N, 3)


def truthful(bench: Bench, *, blind: bool = False) -> Verdicts:
    """Exact verdicts, or those of a judge that never objects."""
    bad = [[source is None or source.bad for source in row] for row in bench.labelled]
    errors = [
        [None if source is None or blind else source.first_error for source in row]
        for row in bench.labelled
    ]
    scores = [[0.5 if blind else 1.0 - wrong for wrong in row] for row in bad]
    valid = [[True] * N for _ in bad]
    return Verdicts(bench, scores, errors, valid, [Ledger() for _ in bad])


def test_a_change_reports_every_claim_that_it_bears_on_and_holds_none(bench: Bench) -> None:
    ours, theirs = truthful(bench), truthful(bench, blind=True)
    judged = {changes.PROCESS: ours, changes.OUTCOME: theirs, changes.JUDGE: theirs}
    checks = changes.Found("x", judged, "why").checks()
    assert [check.holds for check in checks] == [None, None]
    error, best = checks
    assert error.claim.endswith("against outcome, first-error F1")
    assert best.claim.endswith(f"against zero-shot judge, best-of-{N}")
    assert error.measured == 1  # all found against nothing found
    assert best.measured == pytest.approx(float((ours.best() - theirs.best()).mean()))
    assert f"{len(bench.problems)} questions" in error.note
    assert error.note.endswith("why")


def test_a_part_is_the_whole_on_those_questions(bench: Bench) -> None:
    whole = truthful(bench)
    where = [1, 4, 7]
    part = whole.part(where)
    assert np.array_equal(part.found, whole.found[where])
    assert np.array_equal(part.best(), whole.best()[where])
    assert np.array_equal(part.bench.majority(N), bench.majority(N)[where])
    assert part.bench.labelled == [bench.labelled[q] for q in where]


def test_short_labels_are_of_short_problems_and_balanced(policy: LocalModel) -> None:
    found = runs.sources(policy, 60, 3, 1)
    short = changes.balanced(found, changes.SHORT)
    assert short
    assert len(short) < len(found)
    assert all(parse_question(s.question).operations <= changes.SHORT for s in short)
    assert [source.bad for source in short] == [True, False] * (len(short) // 2)


def test_the_worse_teacher_leaves_a_fifth_to_the_process_filter(policy: LocalModel) -> None:
    found = runs.sources(policy, 250, 3, 2)
    chains = runs.critiques(found, 0, changes.WORSE)
    kept = ChainFilter(mode="process", num_samples=None, balance=False).apply(
        chains, COMPACT, policy.count
    )
    assert 0.15 < kept.passed < 0.3
    usual = ChainFilter(mode="process", num_samples=None, balance=False).apply(
        runs.critiques(found, 0), COMPACT, policy.count
    )
    assert usual.passed > 2 * kept.passed
