"""The rule, bounds and their calibration, and which heads come with the package."""

from dataclasses import replace

import numpy as np
import pytest

from outlay.audit.coin import CoIn
from outlay.audit.heads import Heads
from outlay.audit.verifiers import SURE, Track, Verifier, binomial_p, llr, tolerance, wald
from outlay.errors import InputError


def test_the_rule_is_walds_ratio_of_the_counts():
    rule = Verifier("rule", prior=(0.05, 0.4))
    assert rule.evidence([(0, 0)] * 3, [True, False, False]) == llr(1, 3, 0.05, 0.4)
    assert llr(1, 1, 0.05, 0.4) == pytest.approx(np.log(8))
    lower, upper = wald(0.05, 0.1)
    assert lower == pytest.approx(np.log(0.1 / 0.95))
    assert upper == pytest.approx(np.log(0.9 / 0.05))
    assert rule.bounds(0.05, 0.1, 3) == (lower, upper)
    for rates in ((0.0, 0.1), (0.6, 0.5), (0.1, 1.0)):
        with pytest.raises(InputError, match="together below 1"):
            wald(*rates)


def test_walds_test_keeps_its_error_rates_on_independent_blocks():
    rng = np.random.default_rng(0)
    lower, upper = wald(0.05, 0.05)
    for rate, end in ((0.05, upper), (0.4, lower)):
        wrong = 0
        for _ in range(2000):
            bad = blocks = 0
            while True:
                blocks += 1
                bad += rng.random() < rate
                value = llr(bad, blocks, 0.05, 0.4)
                if value >= upper or value <= lower:
                    break
            wrong += value >= end if end == upper else value <= end
        assert wrong / 2000 <= 0.06


def test_calibrated_bounds_keep_their_rates_on_what_they_were_set_on():
    rng = np.random.default_rng(2)
    paths = [list(rng.normal(size=12) / np.sqrt(np.arange(1, 13))) for _ in range(199)]
    honest, padded = Track.of(paths, 1, 5), Track.of(paths, -1, 5)
    for kind in ("rule", "deepset"):
        verifier = replace(Heads.load().verifiers[kind], honest=honest, padded=padded)
        levels = {n: verifier.bounds(0.05, 0.05, n) for n in range(5, 13)}
        assert all(lower < upper for lower, upper in levels.values())
        above = [any(path[n - 1] >= levels[n][1] for n in levels) for path in paths]
        below = [any(path[n - 1] <= levels[n][0] for n in levels) for path in paths]
        assert np.mean(above) <= 0.05
        assert np.mean(below) <= 0.05
    few = replace(verifier, honest=Track.of(paths[:5], 1, 5), padded=Track.of(paths[:5], -1, 5))
    assert few.bounds(0.05, 0.05, 5) == (-np.inf, np.inf)  # too few to promise anything


def test_learned_bounds_come_closer_as_blocks_are_seen():
    rng = np.random.default_rng(3)
    paths = [list(rng.normal() / 3 + rng.normal(size=20) / np.arange(1, 21)) for _ in range(200)]
    track = Track.of(paths, 1, 5)
    verifier = replace(Heads.load().verifiers["deepset"], honest=track)
    uppers = [verifier.bounds(0.05, 0.05, n)[1] for n in (1, 5, 20, 500)]
    assert uppers[0] > uppers[1] > uppers[2]
    assert uppers[3] == uppers[2]  # beyond what was seen, the last stands


def test_a_tolerance_holds_for_further_values_with_its_confidence():
    rng = np.random.default_rng(4)
    held = [
        np.mean(rng.normal(size=4000) > tolerance(list(rng.normal(size=120)), 0.05)) <= 0.05
        for _ in range(300)
    ]
    assert np.mean(held) >= SURE - 0.06
    assert tolerance([1.0] * 44, 0.05) == np.inf  # .95 ** 44 > 1 - SURE
    assert tolerance([1.0] * 45, 0.05) == 1.0


def test_tracks_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="at least one block"):
        Track.of([[], [0.0]], 1, 5)
    with pytest.raises(InputError, match="above 0"):
        Track((0.0,), (0.0,), ())


def test_heads_come_for_the_default_block_size_and_others_say_how_to_make_them():
    for block in (32, CoIn().block):
        assert Heads.load(block=block).about["block"] == block
        assert CoIn(block=block).load_heads().dimension == 384
    with pytest.raises(InputError, match=r"32 or 256 tokens.*--block 48"):
        CoIn(block=48).load_heads()


def test_binomial_tails_are_exact():
    assert binomial_p(0, 5, 0.1) == 1.0
    assert binomial_p(5, 5, 0.1) == pytest.approx(1e-5)
    assert binomial_p(1, 2, 0.5) == pytest.approx(0.75)


def test_verifiers_that_cannot_work_are_refused():
    with pytest.raises(InputError, match="choose rule"):
        Verifier("magic")
    with pytest.raises(InputError, match="no weights phi1"):
        Verifier("deepset")
    with pytest.raises(InputError, match="p0 < p1"):
        Verifier("rule", prior=(0.5, 0.4))
    with pytest.raises(InputError, match="at least one block"):
        Verifier("rule").evidence([], [])
