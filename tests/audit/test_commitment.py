"""Commit, challenge, prove, check: what holds, and all that must not."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_prints import ALL, D, prints, unit

from outlay.audit.commitment import (
    Auditor,
    Challenge,
    Commitment,
    Provider,
    bind,
    detection,
    opening,
)
from outlay.audit.exposure import Exposure, Limits
from outlay.audit.fingerprints import (
    Fingerprints,
    Partition,
    fingerprint,
    payload,
    quantise,
)
from outlay.audit.rounds import draw
from outlay.audit.tree import Tree
from outlay.audit.wire import challenge_json, opening_json, read_challenge, read_openings
from outlay.errors import InputError


def setting(tokens=20, block=4, form="bound", limits=ALL):
    provider = Provider(prints(tokens, block, form), limits=limits)
    auditor = Auditor(provider.commit(), tokens, seed=0, limits=limits)
    return provider, auditor


@pytest.mark.parametrize("form", ["bound", "paper"])
def test_an_honest_provider_is_never_rejected_even_if_all_is_opened(form):
    for tokens in (1, 2, 5, 16, 33):
        provider, auditor = setting(tokens, 4, form)
        challenge = auditor.challenge(tokens)
        checked = auditor.check(challenge, provider.prove(challenge))
        assert checked.accepted
        assert len(checked.openings) == tokens


def test_every_bit_of_an_opening_and_of_the_commitment_counts():
    provider, _ = setting()
    held = provider.commit()
    rng = np.random.default_rng(3)
    for _ in range(400):
        auditor = Auditor(held, 20, limits=ALL)
        challenge = auditor.challenge(3)
        openings = provider_open(provider, challenge)
        at = int(rng.integers(3))
        openings[at] = mutate(openings[at], rng)
        assert not auditor.check(challenge, openings).accepted
    for name in ("tokens", "blocks", "block"):
        with pytest.raises(InputError):
            Auditor(replace(held, **{name: getattr(held, name) + 1}), 20)
    for name in ("root", "digest"):
        raw = bytearray(getattr(held, name))
        raw[5] ^= 4
        with pytest.raises(InputError, match="not valid"):
            Auditor(replace(held, **{name: bytes(raw)}), 20)


def provider_open(provider, challenge):
    return list(Provider.prove(fresh(provider), challenge))


def fresh(provider):
    again = Provider(provider.fingerprints, limits=ALL)
    again.commit()
    return again


def mutate(given, rng):
    kind = int(rng.integers(4))
    if kind == 0:
        return replace(given, index=given.index ^ (1 << int(rng.integers(6))))
    if kind == 1:
        return replace(given, block=given.block ^ (1 << int(rng.integers(4))))
    if kind == 2 and given.path:
        path = list(given.path)
        at = int(rng.integers(len(path)))
        raw = bytearray(path[at])
        raw[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
        path[at] = bytes(raw)
        return replace(given, path=tuple(path))
    name = ("block_D", "token_D")[int(rng.integers(2))]
    raw = bytearray(getattr(given, name).tobytes())
    raw[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
    return replace(given, **{name: np.frombuffer(bytes(raw), np.float32)})


def test_truncated_reordered_partial_and_foreign_answers_are_rejected():
    other = Provider(Fingerprints(Partition(20, 4), unit(5, 8), unit(20, 9)), limits=ALL)
    other.commit()
    for change in ("short", "order", "path", "foreign", "twice"):
        provider, auditor = setting()
        challenge = auditor.challenge(4)
        openings = provider.prove(challenge)
        if change == "short":
            openings = openings[:-1]
        elif change == "order":
            openings = openings[::-1]
        elif change == "path":
            openings[0] = replace(openings[0], path=openings[0].path[:-1])
        elif change == "foreign":
            openings = other.prove(replace(challenge, digest=other.commit().digest))
        else:
            openings[1] = openings[0]
        assert not auditor.check(challenge, openings).accepted, change


def test_one_block_has_one_embedding_over_all_challenges():
    provider, auditor = setting()
    two = Provider(Fingerprints(Partition(20, 4), unit(5, 1), unit(20, 2)), limits=ALL)
    leaves = list(two.fingerprints.leaves())
    other = unit(1, 77)[0]
    leaves[1] = payload("bound", 1, 0, other, two.fingerprints.tokens_MD[1])
    tree = Tree(leaves)
    held = provider.commit()
    digest = bind("bound", "sha256", 20, 5, 4, tree.root)
    auditor = Auditor(replace(held, root=tree.root, digest=digest), 20, limits=ALL)
    first, second = auditor.ask([0]), auditor.ask([1])
    opened = opening(two.fingerprints, tree, 0)
    assert auditor.check(first, [opened]).accepted
    lie = replace(opening(two.fingerprints, tree, 1), block_D=other)
    checked = auditor.check(second, [lie])
    assert checked.failures == ("token 1: block 0 has two embeddings",)


def test_replayed_challenges_are_refused_on_both_sides():
    provider, auditor = setting()
    challenge = auditor.challenge(3)
    openings = provider.prove(challenge)
    assert auditor.check(challenge, openings).accepted
    with pytest.raises(InputError, match="not open"):
        auditor.check(challenge, openings)
    with pytest.raises(InputError, match="answered before"):
        provider.prove(challenge)
    with pytest.raises(InputError, match="not asked for yet"):
        auditor.ask(challenge.indices[:1])
    with pytest.raises(InputError, match="not open"):
        auditor.check(Challenge(challenge.digest, bytes(16), (1,)), [])


def test_nothing_is_opened_before_it_was_committed_to():
    provider = Provider(prints(), limits=ALL)
    digest = Provider(prints(), limits=ALL).commit().digest
    with pytest.raises(InputError, match="commit before"):
        provider.prove(Challenge(digest, b"n" * 16, (0,)))
    provider.commit()
    assert provider.prove(Challenge(digest, b"n" * 16, (0,)))
    assert provider.commit() is provider.commit()  # no second commitment after the reveal


def test_a_challenge_must_fit_the_commitment():
    provider, auditor = setting()
    with pytest.raises(InputError, match="another commitment"):
        provider.prove(Challenge(bytes(32), b"n" * 16, (0,)))
    with pytest.raises(InputError, match="numbered 0 to 19"):
        provider.prove(Challenge(provider.commit().digest, b"n" * 16, (20,)))
    for indices in ([], [1, 1], [20], [-1]):
        with pytest.raises(InputError):
            auditor.ask(indices)
    for s in (0, 21):
        with pytest.raises(InputError, match="between 1 and the 20"):
            auditor.challenge(s)


def test_both_sides_stop_at_the_limits_and_count_exactly():
    limits = Limits(0.25, 0.6)  # 5 tokens of 3 blocks
    provider, auditor = setting(limits=limits)
    challenge = auditor.ask([0, 1, 4])
    provider.prove(challenge)
    for side in (provider.exposure, auditor.exposure):
        assert side.tokens == {0, 1, 4}
        assert side.blocks == {0, 1}
    with pytest.raises(InputError, match="5 tokens and 3 blocks"):
        auditor.ask([5, 6, 7])
    with pytest.raises(InputError, match="limits allow"):
        auditor.ask([8, 12])
    with pytest.raises(InputError, match="limits allow"):
        provider.prove(Challenge(provider.commit().digest, b"m" * 16, (8, 12)))
    assert auditor.exposure.tokens == provider.exposure.tokens == {0, 1, 4}
    with pytest.raises(InputError, match="above 0"):
        Limits(0.0, 0.5)


def test_the_count_is_bound_and_in_the_papers_form_it_is_not():
    for form, roots in (("bound", 4), ("paper", 1)):
        found = set()
        for extra in range(4):
            part = Partition(5 + extra, 100)
            tokens = np.concatenate([unit(5), np.repeat(unit(5)[-1:], extra, axis=0)])
            found.add(Provider(Fingerprints(part, unit(1, 1), tokens, form)).commit().digest)
        assert len(found) == roots


def test_the_papers_form_accepts_a_claim_that_repeats_the_last_leaf():
    held = Provider(prints(5, 100, "paper"), limits=ALL).commit()
    claim = replace(held, tokens=8)
    auditor = Auditor(claim, 8, limits=ALL)
    repeated = np.concatenate([prints(5, 100).tokens_MD, np.repeat(unit(5, 2)[-1:], 3, axis=0)])
    cheat = Provider(Fingerprints(Partition(8, 100), unit(1, 1), repeated, "paper"), limits=ALL)
    cheat.commit()
    challenge = auditor.challenge(8)
    assert auditor.check(challenge, cheat.prove(challenge)).accepted
    with pytest.raises(InputError, match="not valid"):
        Auditor(replace(Provider(prints(5, 100)).commit(), tokens=8), 8)


def test_detection_is_the_hypergeometric_formula_also_in_simulation():
    from math import comb

    for m, f, s in ((20, 3, 5), (100, 10, 7), (50, 1, 50), (9, 0, 9)):
        assert detection(m, f, s) == pytest.approx(1 - comb(m - f, s) / comb(m, s), abs=1e-9)
    assert detection(30, 1, 30) == 1.0
    assert detection(30, 0, 30) == 0.0
    hits, runs, m, f, s = 0, 3000, 40, 4, 6
    commitment = Provider(prints(m, 4), limits=ALL).commit()
    for seed in range(runs):
        drawn = Auditor(commitment, m, seed=seed, limits=ALL).challenge(s).indices
        hits += any(index < f for index in drawn)
    wanted = detection(m - 1, f, s - 1)  # the last token is always asked for
    assert abs(hits / runs - wanted) < 3 * (wanted * (1 - wanted) / runs) ** 0.5
    with pytest.raises(InputError, match="between 0 and m"):
        detection(5, 6, 1)


def test_sizes_and_vectors_that_do_not_fit_are_refused_by_name():
    with pytest.raises(InputError, match="0 hidden tokens"):
        fingerprint([], lambda texts: unit(len(texts)))
    with pytest.raises(InputError, match="there must be 5"):
        Commitment(20, 4, 4, bytes(32), bytes(32), dimension=D)
    with pytest.raises(InputError, match="32 bytes"):
        Commitment(20, 5, 4, bytes(31), bytes(32), dimension=D)
    with pytest.raises(InputError, match="for 5 blocks of 20"):
        Fingerprints(Partition(20, 4), unit(4), unit(20))
    broken = unit(20)
    broken[7, 0] = np.nan
    with pytest.raises(InputError, match="vector 7 is not finite"):
        Fingerprints(Partition(20, 4), unit(5), broken)
    with pytest.raises(InputError, match="vector 3 has not the length 1"):
        Fingerprints(Partition(20, 4), unit(5) * np.array([[1], [1], [1], [2], [1]]), unit(20))
    with pytest.raises(InputError, match="differ in size"):
        Fingerprints(Partition(20, 4), np.eye(5, 5, dtype=np.float32), unit(20))


def test_quantised_vectors_have_one_zero_and_lie_on_the_grid():
    vector = np.array([[-0.0, 0.1, 1e-9, -1e-9]], np.float32)
    made = quantise(vector)
    assert not np.signbit(made).any()
    assert (made == quantise(made)).all()
    assert (made == made.astype(np.float16)).all()
    assert quantise(vector, "f32")[0, 1] == np.float32(0.1)
    with pytest.raises(InputError, match="choose f16"):
        quantise(vector, "int8")


def test_challenges_openings_and_commitments_survive_json():
    provider, auditor = setting()
    held = provider.commit()
    assert Commitment.from_dict(held.to_dict()) == held
    challenge = auditor.challenge(3)
    assert read_challenge(challenge_json(challenge)) == challenge
    sent = [opening_json(each) for each in provider.prove(challenge)]
    assert auditor.check(challenge, read_openings(sent)).accepted


@pytest.mark.parametrize("data", [None, {}, [], {"tokens": "5"}, {"tokens": True}, 3])
def test_what_is_no_commitment_or_challenge_says_so(data):
    with pytest.raises(InputError):
        Commitment.from_dict(data)
    with pytest.raises(InputError):
        read_challenge(data)
    with pytest.raises(InputError):
        read_openings([data])


def test_plans_stay_within_the_limits_and_cover_the_count_check():
    rng = np.random.default_rng(0)
    for tokens in (1, 24, 25, 100, 480, 3000):
        part = Partition(tokens, 32)
        for limits in (Limits(), Limits(0.1, 0.2), ALL):
            plan = draw(part, rng, s=5, b_1=2, b=2, q=3, limits=limits)
            book = Exposure(part, limits)
            book.open(plan.tokens)
            most_tokens, most_blocks = limits.of(part)
            assert len(plan.count) == min(5, tokens, most_tokens, most_blocks)
            assert not plan.count or tokens - 1 in plan.count
            assert len(set(plan.blocks)) == len(plan.blocks)
            judged = {i for each in plan.rounds for _, opened in each for i in opened}
            assert set(plan.count) <= judged
            for each in plan.rounds:
                for block, opened in each:
                    assert opened
                    assert all(part.of(index) == block for index in opened)
    with pytest.raises(InputError, match="q=0"):
        draw(Partition(10, 2), rng, q=0)


def test_an_altered_leaf_is_always_met_if_all_are_opened_and_never_if_there_is_none():
    for false in range(20):
        provider, auditor = setting()
        challenge = auditor.challenge(20)
        openings = provider.prove(challenge)
        assert auditor.check(challenge, list(openings)).accepted
        again = Auditor(provider.commit(), 20, limits=ALL)
        challenge = again.challenge(20)
        openings[false] = replace(openings[false], token_D=-openings[false].token_D)
        checked = again.check(challenge, openings)
        assert [failure.split(":")[0] for failure in checked.failures] == [f"token {false}"]


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 64))
def test_counts_that_differ_have_commitments_that_differ(tokens, more, block):
    """Even if every leaf holds the same vectors."""
    digests = set()
    for m in (tokens, tokens + more):
        part = Partition(m, block)
        one = unit(1)
        same = Fingerprints(part, np.repeat(one, part.blocks, 0), np.repeat(one, m, 0))
        digests.add(Provider(same).commit().digest)
    assert len(digests) == 2
