"""Labels and filters: what passes, what is killed, and by which criterion."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.reason.think_prm.data import Chain, Source, cut_prefixes, fix_labels
from outlay.reason.think_prm.filters import ChainFilter
from outlay.reason.think_prm.format import BOXED

LABELS = st.lists(st.sampled_from(["good", "bad"]), min_size=1, max_size=12)


def source(labels, question="q"):
    return Source(question, tuple(f"s{i}" for i in range(len(labels))), tuple(labels))


def boxes(*labels):
    words = {"good": "correct", "bad": "incorrect"}
    return "\n".join(f"Step {i}: \\boxed{{{words[x]}}}" for i, x in enumerate(labels, start=1))


def words(text):
    return len(text.split())


@given(labels=LABELS)
def test_fixing_labels_is_idempotent_and_monotone(labels):
    fixed = fix_labels(labels)
    assert fix_labels(fixed) == fixed
    assert list(fixed) == sorted(fixed, key=lambda label: label == "bad")
    for before, after in zip(labels, fixed, strict=True):
        assert before == after or (before, after) == ("bad", "good")


def test_all_bad_stays_all_bad_and_repaired_steps_are_good():
    assert fix_labels(["bad", "bad"]) == ("bad", "bad")
    assert fix_labels(["good", "bad", "good", "bad"]) == ("good", "good", "good", "bad")


G, B = "good", "bad"
WRONG = source([G, G, B, B])


@pytest.mark.parametrize(
    ("text", "killer"),
    [
        (boxes(G, G, B), None),  # stops at the first error
        (boxes(G, G, B, G), None),  # later decisions are ignored
        (boxes(G, B, B), "process"),  # one flipped before the error
        (boxes(G, G, G, B), "process"),
        (boxes(G, G), "format"),
        ("no box at all", "format"),
        (boxes(G, G) + "\n\\boxed{incorect}", "format"),  # malformed
        (boxes(G, G, B) + "\nthe answer is \\boxed{42}", None),  # answer boxes are ignored
    ],
)
def test_the_process_filter_compares_up_to_the_first_error(text, killer):
    assert ChainFilter().verdict(Chain(WRONG, text), BOXED) == killer


def test_the_outcome_filter_looks_at_the_end_alone():
    outcome = ChainFilter(mode="outcome")
    assert outcome.verdict(Chain(WRONG, boxes(B)), BOXED) is None  # a false alarm passes
    assert outcome.verdict(Chain(WRONG, boxes(G, G, B, G)), BOXED) == "outcome"
    assert outcome.verdict(Chain(WRONG, boxes(B), finished=False), BOXED) == "unfinished"
    assert ChainFilter(mode="none").verdict(Chain(WRONG, "?"), BOXED) is None


def slow_process(chain):
    """The filter's definition, spelled out."""
    decisions = [decision.label for decision in BOXED.decisions(chain.text)]
    labels = list(chain.source.labels)
    gold = []
    for label in labels:
        gold.append(label)
        if label == "bad":
            break
    if not decisions or len(decisions) not in {len(gold), len(labels)}:
        return False
    return all(decisions[i] == gold[i] for i in range(len(gold)))


@given(labels=LABELS, decided=st.lists(st.sampled_from([G, B]), max_size=13))
def test_the_process_filter_equals_its_definition(labels, decided):
    chain = Chain(source(labels), boxes(*decided))
    assert (ChainFilter().verdict(chain, BOXED) is None) == slow_process(chain)


@given(
    rows=st.lists(st.tuples(LABELS, st.booleans()), min_size=1, max_size=25),
    balance=st.booleans(),
    cap=st.sampled_from([None, 1, 2]),
    most=st.sampled_from([None, 1, 5]),
)
def test_every_chain_is_kept_or_counted_once(rows, balance, cap, most):
    chains = []
    for number, (labels, honest) in enumerate(rows):
        one = source(labels, f"q{number % 3}")
        chains.append(Chain(one, boxes(*one.judged) if honest else "nothing"))
    chosen = ChainFilter(balance=balance, per_solution=cap, num_samples=most)
    passing = [chain.source.bad for chain in chains if slow_process(chain)]
    if not passing or (balance and len(set(passing)) < 2):
        with pytest.raises(InputError, match="killed by"):
            chosen.apply(chains, BOXED, words)
        return
    kept = chosen.apply(chains, BOXED, words)
    assert len(kept.chains) + sum(kept.killed.values()) == kept.sampled == len(chains)
    if balance and most is None:
        assert sum(c.source.bad for c in kept.chains) * 2 == len(kept.chains)
    assert all(slow_process(chain) for chain in kept.chains)


def test_long_and_repeated_chains_are_killed_by_name():
    right = source([G])
    chains = [Chain(right, boxes(G)), Chain(right, boxes(G)), Chain(right, "x " * 9 + boxes(G))]
    kept = ChainFilter(max_chain_tokens=8, per_solution=2, balance=False).apply(
        chains, BOXED, words
    )
    assert (kept.killed["cap"], kept.killed["length"], len(kept.chains)) == (1, 1, 1)
    assert kept.passed == pytest.approx(1 / 3)


def test_the_order_depends_on_the_seed_alone():
    chains = [Chain(source([G], f"q{i}"), boxes(G)) for i in range(30)]
    orders = [
        ChainFilter(balance=False, num_samples=10, seed=seed).apply(chains, BOXED, words).chains
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_nothing_left_says_which_criterion_killed_how_many():
    chains = [Chain(WRONG, "?"), Chain(WRONG, boxes(B, G, G, G))]
    with pytest.raises(InputError, match=r"format 1, process 1"):
        ChainFilter().apply(chains, BOXED, words)


def test_cut_prefixes_keep_the_problem_and_the_kth_decision():
    labels = [G, G, G, B, B]
    whole = Chain(source(labels, "the problem"), boxes(G, G, G, B))
    cut = cut_prefixes([whole] * 200, 1.0, BOXED, seed=1)
    sizes = {len(chain.source.steps) for chain in cut}
    assert sizes == {1, 2, 3, 4}
    for chain in cut:
        k = len(chain.source.steps)
        assert chain.source.question == "the problem"
        assert chain.source.labels == tuple(labels[:k])
        assert [d.label for d in BOXED.decisions(chain.text)] == labels[:k]
        assert ChainFilter().verdict(chain, BOXED) is None
    assert cut_prefixes([whole], 0.0, BOXED) == [whole]
    short = Chain(source([G, B]), boxes(G, B))
    assert cut_prefixes([short], 1.0, BOXED) == [short]


@pytest.mark.parametrize(
    ("steps", "labels", "message"),
    [
        ((), (), "0 steps"),
        (("a",), (), "0 labels for 1 steps"),
        (("a", " "), ("good", "good"), "empty"),
        (("a",), ("right",), "right.* unknown"),
    ],
)
def test_bad_sources_are_refused(steps, labels, message):
    with pytest.raises(InputError, match=message):
        Source("q", steps, labels)


def test_filter_knobs_are_checked():
    for knobs in ({"mode": "all"}, {"max_chain_tokens": 0}, {"per_solution": 0}):
        with pytest.raises(InputError, match=next(iter(knobs))):
            ChainFilter(**knobs)
    with pytest.raises(InputError, match="no chains"):
        ChainFilter().apply([], BOXED, words)
    with pytest.raises(InputError, match="partial_prefix"):
        cut_prefixes([], 1.5, BOXED)
