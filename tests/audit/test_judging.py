"""Heads, verifiers, attacks, baselines and whole audits."""

from dataclasses import replace

import numpy as np
import pytest
from hashed_embedder import ANSWER, EMBED, TOKENS, vectors
from hypothesis import given
from hypothesis import strategies as st

from outlay.audit import baselines
from outlay.audit.attacks import ATTACKS, Hidden, World, pad
from outlay.audit.coin import CoIn
from outlay.audit.embedding import Embedder, embedder
from outlay.audit.fingerprints import quantise
from outlay.audit.heads import Head, Heads, shipped, sigmoid
from outlay.audit.judge import Judge
from outlay.audit.simulation import Subject, decide, look
from outlay.audit.verifiers import Verifier
from outlay.errors import InputError, ModelError

BLOCK = 8
HIDDEN = Hidden(TOKENS, (" an", " answer"), (" a", " prompt"))
FOREIGN = [tuple(f" far{i}.{k}" for k in range(BLOCK)) for i in range(60)]
WORLD = World(
    BLOCK,
    vocabulary=[f"v{i}" for i in range(50)],
    foreign=FOREIGN,
    foreign_FD=vectors(["".join(block) for block in FOREIGN]),
    fill=lambda hidden, n: [" filler"] * n,
)
ANSWER_D = vectors([ANSWER])[0]
COIN = CoIn(block=BLOCK, heads=str(shipped(32)))


@pytest.fixture(scope="module")
def heads():
    return Heads.load()


# -- attacks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ATTACKS)
def test_without_inflation_every_attack_is_the_honest_trace_bit_for_bit(attack):
    made = pad(attack, HIDDEN, 0.0, WORLD, 3, answer_D=ANSWER_D)
    assert made.tokens == TOKENS
    assert made.billed == len(TOKENS)
    coin = CoIn(block=BLOCK)
    assert coin.commit(made.tokens, EMBED).commit() == coin.commit(TOKENS, EMBED).commit()


@pytest.mark.parametrize("place", ["end", "uniform", "interleaved"])
@pytest.mark.parametrize("attack", [name for name in ATTACKS if name != "naive_count"])
def test_attacks_inject_what_the_rate_says_and_keep_the_own_tokens_in_order(attack, place):
    for ir in (0.13, 1.0, 2.5):
        made = pad(attack, HIDDEN, ir, WORLD, 3, place=place, answer_D=ANSWER_D)
        assert sum(made.injected) == round(ir * len(TOKENS)) == made.billed - len(TOKENS)
        kept = [t for t, false in zip(made.tokens, made.injected, strict=True) if not false]
        assert tuple(kept) == TOKENS


def test_attacks_say_what_they_need():
    bare = World(BLOCK)
    for attack in ("random_vocab", "foreign_text", "nearest_text", "lm_filler"):
        with pytest.raises(InputError, match="needs"):
            pad(attack, HIDDEN, 1.0, bare, 0)
    with pytest.raises(InputError, match="choose naive_count"):
        pad("magic", HIDDEN, 1.0, WORLD, 0)
    with pytest.raises(InputError, match="place"):
        pad("repeat_last", HIDDEN, 1.0, WORLD, 0, place="start")
    with pytest.raises(InputError, match="between 0 and 100"):
        pad("repeat_last", HIDDEN, -0.1, WORLD, 0)
    with pytest.raises(InputError, match="without tokens"):
        pad("repeat_last", Hidden((), ()), 1.0, WORLD, 0)


# -- heads and verifiers --------------------------------------------------------------------------


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20))
def test_a_head_is_monotone_in_the_cosine(cosines):
    head = Head(np.eye(2, dtype=np.float32), 9.0, -2.0)
    angles = np.arccos(np.sort(np.array(cosines)))
    right = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    left = np.repeat([[1.0, 0.0]], len(right), axis=0).astype(np.float32)
    scores = head(left, right)
    assert (np.diff(scores) >= -1e-6).all()
    assert ((scores >= 0) & (scores <= 1)).all()


def test_heads_need_a_square_map_and_a_positive_scale():
    with pytest.raises(ModelError, match="square"):
        Head(np.ones((2, 3), np.float32), 1.0, 0.0)
    with pytest.raises(ModelError, match="above 0"):
        Head(np.eye(2, dtype=np.float32), 0.0, 0.0)
    assert sigmoid(np.array([-1e9, 0.0, 1e9])).tolist() == [0.0, 0.5, 1.0]


def test_saved_heads_are_the_same_and_other_folders_say_so(heads, tmp_path):
    heads.save(tmp_path)
    again = Heads.load(tmp_path)
    assert (again.tokens.map_DD == heads.tokens.map_DD).all()
    assert again.thresholds == heads.thresholds
    pairs, bad = [(0.4, 0.3), (0.9, 0.2)], [False, True]
    for name, verifier in heads.verifiers.items():
        assert again.verifiers[name].evidence(pairs, bad) == verifier.evidence(pairs, bad)
        assert again.verifiers[name].bounds(0.05, 0.1, 7) == verifier.bounds(0.05, 0.1, 7)
    with pytest.raises(ModelError, match="python -m outlay"):
        Heads.load(tmp_path / "none")


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=12), st.data())
def test_deepsets_does_not_see_the_order_of_blocks(pairs, data):
    verifier = Heads.load().verifiers["deepset"]
    other = data.draw(st.permutations(pairs))
    flags = [False] * len(pairs)
    assert verifier.evidence(pairs, flags) == verifier.evidence(other, flags)


def test_the_recurrent_verifier_does(heads):
    pairs, flags = [(0.1, 0.1), (0.9, 0.9), (0.5, 0.2)], [False] * 3
    rnn = heads.verifiers["rnn"]
    assert rnn.evidence(pairs, flags) != rnn.evidence(pairs[::-1], flags)


def test_duplicates_count_as_bad_only_with_dedup(heads):
    block = vectors(["one"])[0]
    for dedup in (True, False):
        judge = Judge(heads, Verifier("rule"), block, dedup)
        first = judge.see(0, block, block[None])
        second = judge.see(1, block, block[None])
        assert not first.duplicate
        assert second.duplicate
        assert second.bad is dedup
        assert not first.bad
    with pytest.raises(InputError, match="no token of it"):
        judge.see(2, block, block[:0][None][:0])
    with pytest.raises(InputError, match="the heads read 384"):
        Judge(heads, Verifier("rule"), block[:10])


# -- whole audits ---------------------------------------------------------------------------------


def audit(coin, tokens=TOKENS, billed=None, answer=ANSWER, ask=None):
    provider = coin.commit(tokens, EMBED)
    held = provider.commit()
    billed = len(tokens) if billed is None else billed
    return provider, coin.audit(held, billed, answer, ask or provider.prove, embed=EMBED)


@pytest.mark.parametrize("verifier", ["rule", "deepset", "rnn"])
def test_exposure_is_counted_exactly_and_stays_within_the_limits(verifier):
    coin = replace(COIN, verifier=verifier, seed=4)
    provider, report = audit(coin)
    assert report.tokens_opened == len(provider.exposure.tokens)
    assert report.blocks_opened == len(provider.exposure.blocks)
    assert 0 < report.token_share <= 0.04
    assert 0 < report.block_share <= 0.4
    assert report.verdict in ("malicious", "benign", "inconclusive")
    assert report.bytes > report.tokens_opened * 2 * 384 * 4


def test_a_bill_above_the_commitment_does_not_hold():
    _, report = audit(COIN, billed=500)
    assert report.verdict == "malicious"
    assert report.reasons == ("500 tokens were billed and 400 committed to",)


def test_a_provider_that_answers_only_some_challenges_fails():
    coin = replace(COIN, seed=1)
    provider = coin.commit(TOKENS, EMBED)
    calls = []

    def ask(challenge):
        calls.append(challenge)
        if len(calls) > 1:
            raise InputError("not today")
        return provider.prove(challenge)

    report = coin.audit(provider.commit(), 400, ANSWER, ask, embed=EMBED)
    assert report.verdict == "malicious"
    assert "not today" in report.reasons[0]
    silent = coin.audit(provider.commit(), 400, ANSWER, lambda challenge: [], embed=EMBED)
    assert silent.verdict == "malicious"
    assert silent.tokens_opened == 0


def test_without_an_answer_the_count_holds_and_the_content_is_open():
    _, report = audit(COIN, answer="  \n")
    assert report.verdict == "inconclusive"
    assert report.tokens_opened == 5


def test_a_reasoning_too_short_for_the_limits_is_inconclusive():
    _, report = audit(COIN, tokens=TOKENS[:20])
    assert report.verdict == "inconclusive"
    assert report.tokens_opened == 0


def test_no_tokens_on_the_bill_or_in_the_trace_are_refused():
    coin = COIN
    with pytest.raises(InputError, match="0 hidden tokens"):
        coin.commit([], EMBED)
    held = coin.commit(TOKENS, EMBED).commit()
    with pytest.raises(InputError, match="nothing to audit"):
        coin.audit(held, 0, ANSWER, lambda challenge: [])


def test_the_papers_tree_is_warned_about():
    _, report = audit(replace(COIN, tree="paper"))
    assert any("does not bind the count" in warning for warning in report.warnings)
    assert any("calibrated on blocks of 32" in warning for warning in report.warnings)


def test_hi_and_lo_decide_where_they_are_given():
    loose = replace(COIN, hi=0.000_002, lo=0.000_001, seed=0)
    assert audit(loose)[1].verdict == "benign"
    strict = replace(COIN, hi=0.999_999, lo=0.999_998, seed=0)
    assert audit(strict)[1].verdict == "malicious"


def test_audits_and_their_simulation_agree(heads):
    for seed in range(4):
        for attack, ir in (("foreign_text", 1.0), ("duplicate_blocks", 2.0), ("naive_count", 0.0)):
            made = pad(attack, HIDDEN, ir, WORLD, seed)
            coin = replace(COIN, seed=seed)
            report = audit(coin, made.tokens)[1]
            views = look(coin, [Subject(made, EMBED.whole(ANSWER), seed)], EMBED)
            outcome = decide(coin, views[0], heads)
            assert (report.verdict, report.rounds) == (outcome.verdict, outcome.rounds)
            assert report.tokens_opened == outcome.tokens
            assert report.blocks_opened == outcome.blocks


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("block", 0),
        ("q", 0),
        ("tree", "merkle"),
        ("hash", "md5"),
        ("quant", "int4"),
        ("verifier", "magic"),
        ("embedder", "ada"),
        ("hi", 1.0),
        ("max_token_exposure", 0.0),
        ("max_block_exposure", 1.5),
        ("delta_fp", 0.0),
        ("seed", -1),
    ],
)
def test_knobs_out_of_range_are_refused_by_name(knob, value):
    with pytest.raises(InputError):
        CoIn(**{knob: value})


def test_lo_must_lie_below_hi():
    with pytest.raises(InputError, match="lo must lie below hi"):
        CoIn(hi=0.4, lo=0.6)


# -- baselines and the embedder -------------------------------------------------------------------


def test_thresholds_of_baselines_allow_their_rate():
    values = [float(i) for i in range(99)]
    limit = baselines.threshold(values, 0.1)
    assert sum(value > limit for value in values) <= 10
    assert baselines.threshold(values[:3], 0.05) == np.inf


def test_the_length_predictor_sees_a_bill_that_is_too_long():
    answers = vectors([f"answer {i}" for i in range(40)])
    predictor = baselines.LengthPredictor.fit(answers, [400] * 40)
    coin = COIN
    for attack, ir in (("naive_count", 0.0), ("foreign_text", 1.0)):
        made = pad(attack, HIDDEN, ir, WORLD, 0)
        seen = look(coin, [Subject(made, answers[0], 0)], EMBED)[0]
        assert predictor(seen) == pytest.approx(np.log(1 + ir), abs=0.5)
        assert baselines.trust(seen) == 0.0
        assert all(np.isfinite(each(seen)) for each in baselines.BASELINES.values())
    with pytest.raises(InputError, match="at least one token"):
        baselines.LengthPredictor.fit(answers, [0] * 40)


def test_full_disclosure_judges_every_block_and_every_token(heads):
    made = pad("foreign_text", HIDDEN, 1.0, WORLD, 0)
    seen = look(COIN, [Subject(made, EMBED.whole(ANSWER), 0)], EMBED)[0]
    got = baselines.Disclosed(heads, COIN, EMBED)(seen)
    judge = Judge(heads, heads.verifiers["deepset"], quantise(EMBED.whole(ANSWER)))
    for at in range(0, len(made.tokens), BLOCK):
        tokens = made.tokens[at : at + BLOCK]
        judge.see(at // BLOCK, quantise(EMBED(["".join(tokens)]))[0], quantise(EMBED(tokens)))
    assert len(judge.seen) == 100
    assert got == pytest.approx(judge.evidence, abs=1e-5)


def test_unknown_embedders_are_refused_and_empty_texts_too():
    with pytest.raises(InputError, match="choose minilm"):
        embedder("ada-002")
    with pytest.raises(InputError, match="empty text"):
        EMBED.whole("  ")
    with pytest.raises(InputError, match="no text"):
        Embedder()([])


def test_real_vectors_in_batches_of_one_or_many_agree_within_a_step_of_the_grid(tmp_path):
    texts = ["The train", " needs", " three", " hours for the whole trip.", "A cat sat."]
    together = Embedder()(texts)
    alone = np.concatenate([Embedder()([text]) for text in texts])
    assert np.abs(together - alone).max() < 1e-5
    # Most values are then the same on the grid; one in the middle of two steps may not be.
    assert np.mean(quantise(together) == quantise(alone)) > 0.98
    kept = Embedder()
    kept(texts)
    kept.save(tmp_path / "table.npz")
    assert (Embedder.load(tmp_path / "table.npz")(texts) == together).all()
    long = Embedder().whole("word " * 1000)
    assert np.linalg.norm(long) == pytest.approx(1, abs=1e-5)
