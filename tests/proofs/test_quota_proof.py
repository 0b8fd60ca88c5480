"""QuoTA's proof: its world, its ways of spending, and its claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.fashion import needs_fashion

from outlay.budget import Budget
from outlay.ledger import Ledger
from outlay.models.base import Account
from outlay.proofs import quota as proof
from outlay.proofs.base import ProofResult
from outlay.proofs.quota_decoupling import QUESTIONS, judge
from outlay.proofs.quota_runs import (
    DIRECT,
    ENTITY,
    FEWER,
    ORACLE,
    SMALL,
    SMALL_SIDE,
    TOP,
    UNIFORM,
    answer,
    best,
    changed_ways,
    even,
    main_ways,
    scores_of,
)
from outlay.proofs.quota_world import LENGTH, NEEDLE, WHOLE, Part, SeerScorer, oracle, parts
from outlay.records import Record
from outlay.testbeds.seer.model import Seer, build, size_of
from outlay.testbeds.seer.questions import VOCABULARY, Question
from outlay.vision.quota import Asked, decouple, templated

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def seer() -> Seer:
    return Seer(size_of("V"), build(size_of("V"), seed=1))


@pytest.fixture(scope="module")
def needles() -> Part:
    return parts(3, 12, needles_only=True)[0]


@pytest.fixture(scope="module")
def result() -> ProofResult:
    return proof.run("ci", seed=0)


@needs_fashion
def test_what_does_not_depend_on_answers_holds_at_ci_scale(result: ProofResult) -> None:
    judged = [check for check in result.checks if check.holds is not None]
    assert len(judged) == 3
    assert all(check.holds for check in judged)
    assert {check.claim for check in judged} == {
        "visual tokens beyond the budget, at most",
        "logits of prepared inputs differ from the proof's own packing by at most",
        "clips that exponent 0 does not split evenly",
    }
    assert result.minutes < 5
    assert {point.task for point in result.points} == {NEEDLE, WHOLE}


@needs_fashion
def test_the_picture_is_drawn(result: ProofResult, tmp_path: Path) -> None:
    assert result.draw is not None
    result.draw(tmp_path / "quota.png")
    assert (tmp_path / "quota.png").stat().st_size > 20_000


@needs_fashion
def test_needles_are_there_in_one_to_three_frames(needles: Part) -> None:
    shown = np.array(oracle(needles.asked)).sum(1)
    assert shown.min() >= 1
    assert shown.max() <= 3
    assert len(set(needles.names)) == len(needles.asked)


@needs_fashion
def test_the_oracle_knows_the_frames_of_every_kind() -> None:
    for part in parts(3, 12):
        if part.group != WHOLE:
            continue
        seen: Any = part.asked.seen
        for at, row in enumerate(oracle(part.asked)):
            shown = seen.visible()[at]
            wanted = shown.any(1)  # every frame with something in it
            question = part.asked.questions[at]
            if question.kind == "frames":
                wanted = shown[:, question.subject]
                assert int(sum(row)) == int(wanted.sum())
            if question.kind == "first":
                assert row[int(shown[:, question.subject].argmax())] == 1
                continue
            assert row == wanted.astype(float).tolist()


@needs_fashion
def test_a_score_is_the_answer_about_that_frame_alone(seer: Seer, needles: Part) -> None:
    asked: Any = needles.asked[:1]
    found = scores_of(seer, "entity", seer.features(asked.seen), asked)[0][0]
    colour = asked.questions[0].words[-1]
    frames = asked.seen.each_frame()
    question = Question("exist", ("is", "there", colour), ("yes",))
    inputs = seer.inputs(frames, [question] * LENGTH)
    with torch.no_grad():
        logits = seer.model(**inputs, logits_to_keep=1).logits[:, -1]
    wanted = logits.softmax(-1)[:, VOCABULARY["yes"]]
    assert found == pytest.approx(wanted.tolist(), abs=1e-5)


@needs_fashion
def test_two_objects_score_by_the_better_one(seer: Seer, needles: Part) -> None:
    asked: Any = needles.asked[:1]
    frames = list(seer.features(asked.seen)[0][:3])
    scorer = SeerScorer(seer, seer.size.grid, Account())
    both = scorer(frames, Asked("", "first red blue", ("red blue",)))
    one, other = (scorer(frames, Asked("", "", (name,))) for name in ("red", "blue"))
    assert both == pytest.approx([max(pair) for pair in zip(one, other, strict=True)])
    assert templated("first red blue") == ("red blue",)


@needs_fashion
def test_scoring_is_booked_in_tokens_and_operations(seer: Seer, needles: Part) -> None:
    asked: Any = needles.asked[:2]
    for kind, side, words in (
        ("entity", 8, 3),
        ("small", SMALL_SIDE, 3),
        ("question", 8, 4),
        ("letters", 8, 4),
    ):
        _, ledgers = scores_of(seer, kind, seer.features(asked.seen), asked)
        totals = ledgers[0].totals(role="scorer")
        assert totals.prompt == LENGTH * (2 + side**2 + words)
        assert totals.flops > 0


@needs_fashion
def test_the_even_split_at_full_size_is_the_seer_itself(seer: Seer, needles: Part) -> None:
    some: Any = needles.asked[:2]
    maps = seer.features(some.seen)
    grids = [[(8, 8)] * LENGTH] * len(some)

    def logits(inputs: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = seer.model(**inputs, logits_to_keep=1).logits[:, -1]
        return found

    packed = answer(seer, maps, some, grids, "bilinear", read=logits)
    plain = logits(seer.inputs(some.seen, some.questions))
    torch.testing.assert_close(packed, plain, atol=1e-4, rtol=1e-4)


SCORES = st.lists(st.integers(0, 100).map(lambda k: k / 100), min_size=16, max_size=16)


@given(SCORES, st.sampled_from([16, 32, 64, 128, 256]))
@pytest.mark.filterwarnings("ignore:every frame has the score 0")
def test_no_way_spends_more_than_the_budget_or_a_frame_can_hold(
    scores: list[float], n_t: int
) -> None:
    for way in (*main_ways(8, LENGTH), *changed_ways(8)):
        grids = way.spend(scores, n_t)
        assert len(grids) == LENGTH
        counts = [h * w for h, w in grids]
        assert 0 < sum(counts) <= n_t
        if way.name != "frames may grow":
            assert max(counts) <= 64
        if way.name in (UNIFORM, FEWER):
            assert n_t - sum(counts) < 8  # not enough for another row or column


def test_the_even_split_gives_all_frames_alike_where_the_budget_divides() -> None:
    assert even([], 64, frames=16) == [(2, 2)] * 16
    assert even([], 256, frames=16) == [(4, 4)] * 16
    half = even([], 64, frames=16, step=2)
    assert [h * w for h, w in half[1::2]] == [0] * 8
    assert {(h, w) for h, w in half[::2]} <= {(3, 2), (3, 3)}
    spread = even([], 128, frames=16)
    assert sum(h * w for h, w in spread) == 126
    assert spread.count((3, 3)) == 10


def test_the_best_frames_come_at_full_size() -> None:
    grids = best([0.1, 0.9, 0.2, 0.9], 128, side=8)
    assert grids == [(0, 0), (8, 8), (0, 0), (8, 8)]
    assert best([0.5] * 4, 64, side=8)[0] == (8, 8)
    assert best([0.1, 0.9], 16, side=8) == [(0, 0), (4, 4)]


def made(accuracy: dict[str, float], n: int = 100) -> list[Record]:
    """Records in which the first share of questions is answered."""
    found = []
    for group in (NEEDLE, WHOLE):
        for n_t in proof.BUDGETS:
            for name, value in accuracy.items():
                right = value if group == NEEDLE else 0.5
                for at in range(n):
                    ledger = Ledger()
                    ledger.record("answer", "target", prompt_new=90, note=f"{n_t} visual")
                    budget = Budget(tokens=n_t, counts="prompt")
                    quality = float(at < right * n)
                    found.append(Record(group, str(at), name, budget, 0, quality, ledger))
    return found


GOOD = {UNIFORM: 0.4, FEWER: 0.4, TOP: 0.6, DIRECT: 0.3, ENTITY: 0.7, SMALL: 0.6, ORACLE: 0.72}


def test_claims_hold_where_the_numbers_say_so() -> None:
    judged = [check for check in proof.claims(made(GOOD)) if check.holds is not None]
    assert len(judged) == 5
    assert all(check.holds for check in judged)
    assert judged[0].measured == pytest.approx(0.3)
    assert judged[1].measured == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({ENTITY: 0.45}, {0, 1}),  # too small a gain, too far from the oracle
        ({ORACLE: 0.9}, {1}),
        ({UNIFORM: 0.7}, {0, 2}),
        ({DIRECT: 0.7}, {3}),
    ],
)
def test_claims_fail_where_the_numbers_say_so(change: dict[str, float], broken: set[int]) -> None:
    judged = [c for c in proof.claims(made({**GOOD, **change})) if c.holds is not None]
    assert {at for at, check in enumerate(judged) if not check.holds} == broken


def test_being_better_on_whole_clips_would_contradict_the_sheet() -> None:
    records = made(GOOD)
    whole = [
        Record(r.task, r.example, r.method_stack, r.budget, 0, 1.0, r.ledger)
        if r.task == WHOLE and r.method_stack == ENTITY
        else r
        for r in records
    ]
    judged = [check for check in proof.claims(whole) if check.holds is not None]
    assert [check.holds for check in judged] == [True, True, True, True, False]


def test_tight_budgets_are_reported_and_not_judged() -> None:
    tight = [
        Record(
            r.task,
            r.example,
            r.method_stack,
            Budget(tokens=proof.TIGHT[at], counts="prompt"),
            0,
            r.quality,
            r.ledger,
        )
        for r in made(GOOD, n=20)
        for at in (0, 1)
        if r.budget.tokens == 64
    ]
    checks = proof.starved(made(GOOD, n=20), tight)
    assert len(checks) == 10
    assert all(check.holds is None for check in checks)
    assert checks[0].measured == pytest.approx(0.3)
    assert checks[-1].measured == pytest.approx(0.3)
    assert "6.25% of the budget" in checks[0].claim


def test_a_prompt_beyond_the_budget_is_found() -> None:
    records = made(GOOD, n=2)
    assert proof.within_budget(records).holds
    ledger = Ledger()
    ledger.record("answer", "target", prompt_new=90, note="65 visual")
    budget = Budget(tokens=64, counts="prompt")
    check = proof.within_budget([*records, Record(NEEDLE, "x", ENTITY, budget, 0, 1.0, ledger)])
    assert not check.holds
    assert check.measured == 1


def test_decoupling_is_judged_by_what_a_person_would_look_for() -> None:
    assert len(QUESTIONS) == 20
    wanted = [("cup", "man"), ("cup",), ()]
    found = [
        decouple("?", lambda _: 'step 1: yes\nstep 3: ["red cups"]'),
        decouple("?", lambda _: "I do not know."),
        decouple("?", lambda _: "step 1: no\nstep 3: null"),
    ]
    read = judge(found, wanted)
    assert read.parsed == pytest.approx(2 / 3)
    assert read.recall == pytest.approx(1 / 3)
    assert read.useful == pytest.approx(1 / 2)
    assert read.silent == 1.0
