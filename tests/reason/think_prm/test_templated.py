"""The reasoner's world: exact labels, and a teacher whose faults are known."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.reason.think_prm import COMPACT, ChainFilter, ModelTeacher, Source, collect, sample
from outlay.reason.think_prm.templated import (
    TeacherNoise,
    TemplatedTeacher,
    expected,
    label_solution,
    practice,
    split,
)
from outlay.testbeds.reasoner import parse_question, render_trace, sample_problem
from outlay.testbeds.reasoner.chains import apply

CLEAN = TeacherNoise(0, 0, 0, 0)


def solution(seed, operations=4, format="short", slip=None):
    """An exact solution; with `slip`, that step's result is off by one, and carried on."""
    problem = sample_problem(random.Random(seed), [operations])
    if slip is None:
        return problem, split(render_trace(problem, format))
    chain = problem.chains[0]
    value, steps = chain.start, []
    for at, (sign, operand) in enumerate(chain.operations):
        result = (apply(sign, value, operand, 20) + (at == slip)) % 20
        steps.append(f"{value}{sign}{operand}={result};")
        value = result
    return problem, (*steps, f"</think><answer>{value}")


@given(
    seed=st.integers(0, 10**6),
    operations=st.integers(1, 8),
    format=st.sampled_from(["short", "long"]),
)
def test_exact_solutions_are_good_throughout(seed, operations, format):
    problem, steps = solution(seed, operations, format)
    assert "".join(steps) + "<eos>" == render_trace(problem, format)
    assert set(label_solution(problem, steps)) == {"good"}
    wanted = expected(problem, steps)
    stated = [COMPACT.strip(step) for step in steps]
    assert [f"{left}{result}" for left, result in wanted] == stated


@given(seed=st.integers(0, 10**6), operations=st.integers(1, 8), data=st.data())
def test_everything_is_bad_from_the_slip_on(seed, operations, data):
    slip = data.draw(st.integers(0, operations - 1))
    problem, steps = solution(seed, operations, slip=slip)
    labels = label_solution(problem, steps)
    assert labels == ("good",) * slip + ("bad",) * (operations + 1 - slip)


def test_left_out_steps_and_answers_are_judged():
    problem, steps = solution(1)
    assert label_solution(problem, (*steps[:-2], steps[-1]))[-1] == "good"  # one left out
    assert label_solution(problem, (*steps[:-3], steps[-1]))[-1] == "bad"  # two left out
    assert label_solution(problem, (*steps[:-1], "</think><answer>99"))[-1] == "bad"
    assert label_solution(problem, steps[:-1]) is None
    assert label_solution(problem, ("Wait3+4=7;", steps[-1])) is None
    assert label_solution(parse_question("(1+1)+(2+2)=?"), steps) is None


@given(seed=st.integers(0, 10**6), slip=st.sampled_from([None, 0, 2, 3]))
def test_a_faultless_teacher_passes_and_a_flipped_verdict_fails(seed, slip):
    problem, steps = solution(seed, slip=slip)
    source = Source(problem.question, steps, label_solution(problem, steps))
    [[clean]] = TemplatedTeacher(CLEAN).critique([source], 1)
    [[flipped]] = TemplatedTeacher(TeacherNoise(0, 1, 0, 0)).critique([source], 1)
    assert ChainFilter().verdict(clean, COMPACT) is None
    assert ChainFilter().verdict(flipped, COMPACT) is not None


def sources(n=400):
    found = []
    for seed in range(n):
        problem, steps = solution(seed, 3 + seed % 3, slip=None if seed % 2 else seed % 3)
        found.append(Source(problem.question, steps, label_solution(problem, steps)))
    return found


@pytest.mark.parametrize("fault", ["recompute", "verdict", "format", "ramble"])
def test_each_fault_spoils_about_its_share(fault):
    share = {"recompute": 0.15, "verdict": 0.1, "format": 0.1, "ramble": 0.1}[fault]
    noise = TeacherNoise(**{**vars(CLEAN), fault: share})
    given = sources()
    chains = sample(given, TemplatedTeacher(noise), 1)
    clean = sample(given, TemplatedTeacher(CLEAN), 1)
    spoilt = sum(a.text != b.text for a, b in zip(chains, clean, strict=True)) / len(given)
    assert share / 2 < spoilt < share * 1.7


def test_the_teacher_is_wrong_about_the_same_facts_each_time():
    noise = TeacherNoise()
    lefts = [f"{a}{sign}{b}=" for a in range(20) for sign in "+-*" for b in range(20)]
    wrong = {left: noise.mistaken(left, 5, 20) for left in lefts}
    assert wrong == {left: noise.mistaken(left, 5, 20) for left in lefts}
    share = sum(value != 5 for value in wrong.values()) / len(lefts)
    assert 0.02 < share < 0.06
    assert all(0 <= value < 20 for value in wrong.values())


def test_practice_shows_no_verdict_and_uses_no_label():
    chains = practice(50, (2, 4))
    assert all(not COMPACT.decisions(chain.text) for chain in chains)
    assert len({chain.source.question for chain in chains}) > 40
    with pytest.raises(InputError, match="low <= high"):
        practice(5, (3, 2))


def test_a_model_can_be_the_teacher(reasoner):
    teacher = ModelTeacher(reasoner, COMPACT, temperature=1.0, max_tokens=12)
    rows = teacher.critique(sources(3), 2)
    assert [len(row) for row in rows] == [2, 2, 2]
    assert all(reasoner.count(chain.text) <= 12 for row in rows for chain in row)
    assert len(sample(sources(3), teacher, 2)) == 6
    for knobs in ({"max_tokens": 0}, {"temperature": -1}):
        with pytest.raises(InputError, match=next(iter(knobs))):
            ModelTeacher(reasoner, **knobs)
    with pytest.raises(InputError, match="no labelled"):
        sample([], teacher)
    with pytest.raises(InputError, match="n=0"):
        sample(sources(1), teacher, 0)
    with pytest.raises(InputError, match="ramble"):
        TeacherNoise(ramble=2)


class Counting:
    """A faultless or noisy teacher that counts the solutions it saw."""

    def __init__(self, noise):
        self.teacher = TemplatedTeacher(noise)
        self.seen = 0

    def critique(self, sources, n):
        self.seen += len(sources)
        return self.teacher.critique(sources, n)


def test_sampling_stops_when_enough_chains_survive():
    given, chosen = sources(), ChainFilter(num_samples=20, per_solution=1)
    clean, noisy = Counting(CLEAN), Counting(TeacherNoise(verdict=0.8))
    for teacher in (clean, noisy):
        kept = collect(given, teacher, chosen, COMPACT, len, n=1, batch=8)
        assert len(kept.chains) == 20
    assert 20 <= clean.seen < noisy.seen < len(given)
    few = collect(given[:6], Counting(CLEAN), chosen, COMPACT, len, n=2)
    assert len(few.chains) == 6  # all there is: repeated texts count once
    with pytest.raises(InputError, match="batch=0"):
        collect(given, clean, chosen, COMPACT, len, batch=0)
    with pytest.raises(InputError, match="no chain of 4 survives"):
        collect(given[:4], Counting(TeacherNoise(0, 1, 0, 0)), ChainFilter(), COMPACT, len, n=1)
