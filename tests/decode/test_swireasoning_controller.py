"""SwiReasoning's controller: a pure state machine against a reference, and its invariants."""

import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.decode.swireasoning.controller import START_WEIGHT, Rules, SwiController
from outlay.errors import InputError, ModelError

END = 9
relaxed = settings(deadline=None)
entropies = st.lists(st.floats(0, 5), min_size=1, max_size=60)
tokens = st.integers(0, 9)


def run(rules: Rules, steps):
    """Decisions for (entropy, token) steps, until the controller stops."""
    controller, made = SwiController(rules), []
    for t, (entropy, token) in enumerate(steps):
        made.append(controller.step(entropy, token, t))
        if made[-1].stop:
            break
    return made


def reference(r: Rules, steps):
    """The sheet's steps 2 to 8, as written there: (token, weight, anchor, mode, C, stop) a step."""
    m, bar, d, c, lock, queue, left, out = r.start_mode, None, 0, 0, False, [], -1, []
    for t, (h, x) in enumerate(steps):
        lock = lock or x == END
        if queue:
            x, queue = queue[0], queue[1:]
            lock = lock or (r.lock_on_injected and x == END)
        m = "explicit" if lock else m
        to_latent = to_explicit = False
        if t == 0:
            bar = h
        else:
            d += 1
            to_explicit = m == "latent" and h < bar
            to_latent = m == "explicit" and h > bar and d >= r.window and not lock
        if to_latent or to_explicit:
            m, bar, d, c = "latent" if to_latent else "explicit", h, 0, c + to_explicit
        grown = t / r.steps
        feed = (0.0, None) if m == "explicit" or x in r.discrete_ids else (1.0, None)
        if t == 0 and feed[0]:
            feed = (0.9, "newline")
        if to_latent and feed[0]:
            feed = (r.alpha0 + (1 - r.alpha0) * grown, "think")
        if to_explicit:
            feed = (r.beta0 + (1 - r.beta0) * grown, "end_think")
            if r.c_max is not None and c > r.c_max:
                queue, left = list(r.termination_ids), r.answer_budget
            elif r.c_max is not None and c >= r.c_max / 2:
                queue = list(r.convergence_ids)
        left = left - 1 if left > 0 else left
        out.append((x, *feed, m, c, left == 0))
        if left == 0:
            break
    return out


@given(
    st.lists(st.tuples(st.floats(0, 5), tokens), min_size=1, max_size=80),
    st.integers(0, 6),
    st.one_of(st.none(), st.integers(1, 4)),
    st.booleans(),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["latent", "explicit"]),
)
@relaxed
def test_the_controller_follows_the_reference(steps, window, c_max, lock, alpha0, beta0, start):
    rules = Rules(
        steps=len(steps),
        end_think_id=END,
        alpha0=alpha0,
        beta0=beta0,
        window=window,
        c_max=c_max,
        answer_budget=6,
        convergence_ids=(END,),
        termination_ids=(END, 7, 8),
        discrete_ids=frozenset({3, 4}),
        start_mode=start,
        lock_on_injected=lock,
    )
    ours = [(d.token, d.soft, d.anchor, d.mode, d.switches, d.stop) for d in run(rules, steps)]
    assert ours == reference(rules, steps)


@given(entropies, st.integers(1, 8))
@relaxed
def test_an_explicit_block_lasts_at_least_the_window(values, window):
    made = run(Rules(len(values), END, window=window), [(h, 0) for h in values])
    modes = [d.mode for d in made]
    changes = [t for t in range(1, len(modes)) if modes[t] != modes[t - 1]]
    for begun, ended in pairwise(changes):
        if modes[begun] == "explicit":
            assert ended - begun >= window


def test_a_latent_block_may_last_one_step():
    made = run(Rules(9, END, window=1), [(2, 0), (1, 0), (3, 0), (2, 0)])
    assert [d.mode for d in made] == ["latent", "explicit", "latent", "explicit"]


def test_a_window_longer_than_the_trace_allows_one_switch():
    values = [3.0, 1.0, *([2.0, 0.5] * 20)]
    assert run(Rules(50, END), [(h, 0) for h in values])[-1].switches == 1


@given(entropies)
@relaxed
def test_switches_count_the_ends_of_latent_mode(values):
    made = run(Rules(len(values), END, window=2), [(h, 0) for h in values])
    ends = sum(d.switched and d.mode == "explicit" for d in made)
    assert made[-1].switches == ends


@given(st.floats(0, 5), tokens)
@relaxed
def test_the_first_step_never_switches(entropy, token):
    (decision,) = run(Rules(5, END, window=0), [(entropy, token)])
    assert not decision.switched
    assert decision.reference == entropy


@given(st.lists(st.tuples(st.floats(0, 5), tokens), min_size=1, max_size=60), st.integers(1, 3))
@relaxed
def test_a_locked_sequence_is_never_fed_softly_again(steps, c_max):
    rules = Rules(60, END, window=1, c_max=c_max, convergence_ids=(END,), termination_ids=(END, 7))
    locked = False
    for decision in run(rules, steps):
        assert decision.locked or not locked
        locked = decision.locked
        assert not locked or (decision.soft == 0 and decision.anchor is None)


@given(entropies, st.integers(1, 3), st.integers(4, 9))
@relaxed
def test_termination_bounds_what_follows_by_the_answer_budget(values, c_max, budget):
    rules = Rules(
        len(values) + 40,
        END,
        window=0,
        c_max=c_max,
        answer_budget=budget,
        convergence_ids=(),
        termination_ids=(END, 7),
        lock_on_injected=True,
    )
    made = run(rules, [(h, 0) for h in values] + [(0.0, 0)] * 40)
    over = [t for t, d in enumerate(made) if d.switches > c_max]
    if over:
        assert made[-1].stop
        assert len(made) - over[0] == budget
        assert [d.token for d in made[over[0] + 1 :]][:2] == [END, 7][: budget - 1]
        assert max(d.switches for d in made) == c_max + 1


def test_an_injected_end_of_thinking_does_not_lock_unless_asked():
    steps = [(3, 0), (1, 0), (1, 0), (4, 0), (5, 0)]
    rules = Rules(9, END, window=1, c_max=1, convergence_ids=(END,), termination_ids=(END,))
    assert [d.locked for d in run(rules, steps)] == [False] * 5
    strict = run(replace(rules, lock_on_injected=True), steps)
    assert [d.locked for d in strict] == [False, False, True, True, True]
    assert strict[2].injected


def test_published_termination_arms_again_after_an_injected_end():
    rules = Rules(
        99, END, window=1, c_max=1, answer_budget=9, termination_ids=(END, 7), convergence_ids=()
    )
    made = run(rules, [(h, 0) for h in [3, 2, 9, 8, 9, 8, 9, 8, 9, 8]])
    assert [t for t, d in enumerate(made) if d.token == END] == [4, 6, 8]
    assert not made[-1].stop


def test_convergence_comes_from_half_the_limit_on():
    values = [9.0, 8.0] * 6 + [9.0]
    made = run(
        Rules(99, END, window=0, c_max=4, convergence_ids=(5,), termination_ids=(7,)),
        [(h, 0) for h in values],
    )
    injected = {made[t - 1].switches: d.token for t, d in enumerate(made) if d.injected}
    assert injected == {2: 5, 3: 5, 4: 5, 5: 7, 6: 7}


def test_without_a_limit_nothing_is_injected():
    made = run(Rules(99, END, window=0, termination_ids=(7,)), [(2.0, 0), (1.0, 0)] * 30)
    assert made[-1].switches > 10
    assert not any(d.injected for d in made)


@given(st.floats(0, 1), st.integers(1, 50))
@relaxed
def test_the_weights_of_the_mixtures_grow_to_one(start, late):
    rules = Rules(51, END, alpha0=start, beta0=start, window=0)
    steps = [(2.0, 0)] * late + [(1.0, 0), (3.0, 0)]
    made = run(rules, steps)
    out, back = made[late], made[late + 1]
    assert out.anchor == "end_think"
    assert out.soft == pytest.approx(start + (1 - start) * late / 51)
    assert back.anchor == "think"
    assert back.soft == pytest.approx(start + (1 - start) * (late + 1) / 51)


def test_the_first_soft_step_mixes_a_newline_in():
    (first,) = run(Rules(5, END), [(1.0, 0)])
    assert (first.soft, first.anchor) == (START_WEIGHT, "newline")
    (plain,) = run(Rules(5, END, start_mix=False), [(1.0, 0)])
    assert (plain.soft, plain.anchor) == (1.0, None)


def test_formula_tokens_stay_discrete_but_for_the_exit():
    made = run(Rules(9, END, discrete_ids=frozenset({3})), [(2, 3), (3, 3), (1, 3)])
    assert [d.soft > 0 for d in made] == [False, False, True]


def test_a_plan_takes_the_place_of_the_entropy():
    rules = Rules(9, END, plan=frozenset({2, 4, 5}))
    made = run(rules, [(1.0, 0)] * 7)
    assert [t for t, d in enumerate(made) if d.switched] == [2, 4, 5]
    never = run(Rules(9, END, plan=frozenset()), [(h, 0) for h in [3.0, 1.0, 0.0]])
    assert all(d.mode == "latent" and d.soft > 0 for d in never)


@given(st.integers(1, 10), st.integers(0, 12))
@relaxed
def test_a_limit_of_thinking_injects_the_termination_once(limit, natural):
    steps = [(1.0, END if t == natural else 0) for t in range(20)]
    rules = Rules(20, END, termination_ids=(END, 7), answer_budget=None, think_limit=limit)
    made = run(rules, steps)
    forced = [t for t, d in enumerate(made) if d.injected]
    assert forced == ([] if natural < limit else [limit, limit + 1])


@pytest.mark.parametrize("entropy", [math.nan, math.inf])
def test_an_entropy_that_is_not_finite_is_refused(entropy):
    with pytest.raises(ModelError, match=r"step 0: the entropy"):
        SwiController(Rules(5, END)).step(entropy, 0, 0)


def test_no_steps_are_refused():
    with pytest.raises(InputError, match="steps=0"):
        Rules(0, END)


def test_the_package_needs_no_torch():
    code = "import sys, outlay.decode.swireasoning; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
