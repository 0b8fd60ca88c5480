"""Answers from kept keys and values equal answers from whole prefixes, and cost what is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from outlay.errors import BudgetError, CapabilityError, InputError
from outlay.rl.anytime import AnytimeBRPO, AnytimeReasoner
from outlay.rl.anytime.forking import Record, Spent, fork, recorded
from outlay.rl.anytime.measure import curve, explore, variance
from outlay.rl.anytime.outcomes import Fork
from outlay.rl.verifiers import ChainArithVerifier
from outlay.testbeds.chainarith_rl import dataset, load
from tiny_models import tiny_network

METHOD = AnytimeBRPO(
    budgets=(8, 16, 32),
    n_traces=3,
    n_summaries=2,
    max_summary_tokens=3,
    forced="..\n</think>",
    heading="<answer>",
    reward_fn=ChainArithVerifier(),
)


@pytest.fixture(scope="module")
def policy() -> tuple[Any, Any]:
    torch.set_num_threads(1)
    return load()


def greedy(model: Any, ids: list[int], most: int) -> list[int]:
    """The slow way: the whole prefix, a token at a time, without a cache."""
    new: list[int] = []
    with torch.no_grad():
        while len(new) < most and (not new or new[-1] != 2):
            logits = model(torch.tensor([ids + new]), use_cache=False).logits
            new.append(int(logits[0, -1].argmax()))
    return new


@pytest.mark.parametrize("at_once", [512, 3])
def test_forked_answers_equal_those_from_the_whole_prefix(at_once: int) -> None:
    model = tiny_network("Llama")
    prompts = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
    ids = torch.tensor([[0] * (4 - len(p)) + p for p in prompts])
    config = GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=2)
    with recorded(model) as record:
        out = model.generate(ids, attention_mask=(ids > 0).long(), generation_config=config)
    thinkings = out[:, 4:].tolist()
    forks = [
        Fork(row, cut, suffix, copies)
        for row in range(3)
        for cut, suffix, copies in (
            (1, (20, 21, 22), 2),
            (5, (), 1),
            (7, (23,), 3),
            (12, (20, 21, 22), 1),
        )
    ]
    found, spent = fork(model, record, prompts, thinkings, forks, config, 4, at_once=at_once)
    for one, answers in zip(forks, found, strict=True):
        prefix = prompts[one.row] + thinkings[one.row][: one.cut] + list(one.suffix)
        assert len(answers) == one.copies
        assert all(answer == greedy(model, prefix, 4) for answer in answers)
    lengths = [len(prompts[one.row]) + one.cut + len(one.suffix) for one in forks]
    assert spent.answers == sum(one.copies for one in forks)
    assert spent.generated == sum(len(a) for answers in found for a in answers)
    assert spent.computed == sum(len(one.suffix) + one.copies for one in forks)
    assert spent.once == sum(lengths)
    assert spent.anew == sum(n * f.copies for n, f in zip(lengths, forks, strict=True))
    kept = [n - len(one.suffix) - 1 for n, one in zip(lengths, forks, strict=True)]
    assert spent.reused == sum(n * one.copies for n, one in zip(kept, forks, strict=True))


def test_the_thinkings_cache_is_left_as_it_was() -> None:
    model = tiny_network("Llama")
    ids = torch.tensor([[5, 6, 7]])
    config = GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=2)
    with recorded(model) as record:
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    before = [layer.keys.clone() for layer in record.cache.layers]
    fork(model, record, [[5, 6, 7]], [out[0, 3:].tolist()], [Fork(0, 3, (8,), 2)], config, 2)
    for old, layer in zip(before, record.cache.layers, strict=True):
        assert torch.equal(old, layer.keys)


def test_a_cut_beyond_the_record_or_without_one_is_refused() -> None:
    model = tiny_network("Llama")
    config = GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=2)
    with pytest.raises(InputError, match="record"):
        fork(model, Record(), [[5]], [[6]], [Fork(0, 1, (), 1)], config, 2)
    ids = torch.tensor([[5, 6]])
    with recorded(model) as record:
        model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    for cut in (0, 4, 9):
        with pytest.raises(InputError, match="cut"):
            fork(model, record, [[5, 6]], [[7, 8, 9]], [Fork(0, cut, (), 1)], config, 2)


def test_a_cache_that_drops_tokens_is_not_used() -> None:
    model = tiny_network("Mistral")
    ids = torch.tensor([[5, 6]])
    config = GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=2)
    with recorded(model) as record:
        model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    assert record.cache is not None
    assert not record.usable


def test_no_tokens_have_no_ratio() -> None:
    assert Spent().ratio is None
    assert Spent().ratio_anew is None


# -- measuring ------------------------------------------------------------------------------------


def test_a_trained_policy_answers_better_from_later_cuts(policy: tuple[Any, Any]) -> None:
    rows = list(dataset(24, seed=3, ops=(2, 5), split="heldout"))
    found = curve(*policy, METHOD, rows, budgets=(2, 16, 64), temperature=0.0)
    assert found.accuracy[0] + 0.2 < found.accuracy[-1] == found.final
    assert found.anytime == pytest.approx(float(np.mean(found.accuracy)))
    again = curve(*policy, METHOD, rows, budgets=(2, 16, 64), temperature=0.0)
    assert np.array_equal(found.right, again.right)


def test_sampled_answers_equal_greedy_recomputation_at_temperature_0(
    policy: tuple[Any, Any],
) -> None:
    model, tokenizer = policy
    rows = list(dataset(4, seed=1, ops=(2, 4), split="heldout"))
    found = explore(model, tokenizer, METHOD, rows, temperature=0.0)
    eos = tokenizer.eos_token_id
    for row, outcome in zip([row for row in rows for _ in range(3)], found.outcomes, strict=True):
        asked = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        for cut, suffix, given in zip(
            outcome.cuts, outcome.suffixes, outcome.summaries, strict=True
        ):
            prefix = [*asked, *outcome.thinking[: cut.cut], *suffix]
            slow: list[int] = []
            with torch.no_grad():
                while len(slow) < 3 and eos not in slow:
                    logits = model(torch.tensor([prefix + slow])).logits
                    slow.append(int(logits[0, -1].argmax()))
            assert all(list(ids) == slow for ids in given)


def test_variance_equals_numpys_over_the_thinkings_that_have_the_segment() -> None:
    rng = np.random.default_rng(0)
    means = rng.integers(0, 3, (40, 4, 3)) / 2.0
    lengths = rng.integers(1, 33, (40, 4))
    method = replace(METHOD, n_traces=4, prior="linear")
    found = variance(means, lengths, method, resamples=50)
    prior = np.array(method.weights)
    for s, segment in enumerate(found):
        has = lengths > (0, 8, 16)[s]
        r = (means * prior)[:, :, s:].sum(2)
        v2 = np.broadcast_to(r.mean(1, keepdims=True), r.shape)
        v1 = np.zeros_like(r)
        if s:
            w = 0.5 ** np.arange(s, 0, -1)
            v1 = (means[:, :, :s] * w).sum(2) / w.sum() * prior[s:].sum()
        brpo = s / 3 * v1 + (1 - s / 3) * v2
        assert segment.n == has.sum()
        for name, v in (("v1", v1), ("v2", v2), ("brpo", brpo)):
            expected = np.var((r - v)[has]) / np.var(r[has])
            assert segment.ratio[name].mean == pytest.approx(expected, abs=1e-9)
            assert segment.ratio[name].lo <= expected <= segment.ratio[name].hi
        assert segment.correlation["v2"].mean == pytest.approx(
            np.corrcoef(r[has], v2[has])[0, 1], abs=1e-9
        )
        if s:
            assert segment.correlation["v1"].mean == pytest.approx(
                np.corrcoef(r[has], v1[has])[0, 1], abs=1e-9
            )
    assert found[0].correlation["v1"].mean == 0


def test_segments_without_thinkings_or_without_spread_are_left_out() -> None:
    means = np.random.default_rng(0).integers(0, 2, (20, 4, 3)).astype(float)
    means[:, :, 2] = 1.0
    found = variance(means, np.full((20, 4), 9), replace(METHOD, n_traces=4), resamples=20)
    assert [segment.budget for segment in found] == [8, 16]
    found = variance(means, np.full((20, 4), 30), replace(METHOD, n_traces=4), resamples=20)
    assert [segment.budget for segment in found] == [8, 16]


def test_measuring_refuses_bad_input(policy: tuple[Any, Any]) -> None:
    row = {"prompt": "<user>3+4=?<assistant><think>", "answer": "7"}
    with pytest.raises(InputError, match="rows"):
        explore(*policy, METHOD, [])
    with pytest.raises(InputError, match="temperature"):
        explore(*policy, METHOD, [row], temperature=-1)
    with pytest.raises(BudgetError, match="context"):
        explore(*policy, replace(METHOD, budgets=(8, 5000)), [row])
    with pytest.raises(InputError, match="budgets"):
        variance(np.zeros((2, 3, 4)), np.ones((2, 3), dtype=np.int64), METHOD)


# -- thinking, cut, continued ---------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_thinking_goes_on_after_answers_as_if_they_had_not_been(
    policy: tuple[Any, Any], temperature: float
) -> None:
    reasoner = AnytimeReasoner(*policy, METHOD, temperature)
    row = dataset(1, seed=4, ops=(5, 5), split="heldout")[0]
    plain = reasoner.begin(row["prompt"], seed=3)
    plain.think(30)
    broken = reasoner.begin(row["prompt"], seed=3)
    while len(broken.ids) < 30 and not broken.ended:
        broken.think(min(7, 30 - len(broken.ids)))
        broken.answer()
        broken.answer(at=1 + len(broken.ids) // 2)
    assert broken.ids == plain.ids


def test_an_answer_is_that_of_the_whole_prefix(policy: tuple[Any, Any]) -> None:
    model, tokenizer = policy
    reasoner = AnytimeReasoner(model, tokenizer, METHOD, temperature=0.0)
    thought = reasoner.begin(dataset(1, seed=4, ops=(3, 3), split="heldout")[0]["prompt"])
    thought.think(100)
    assert thought.ended
    for at in (1, 5, len(thought.ids)):
        answer = thought.answer(at)
        suffix = reasoner.method.pieces.forced if answer.forced else reasoner.method.pieces.natural
        prefix = [*thought.prompt, *thought.ids[:at], *suffix]
        for token in answer.ids:
            with torch.no_grad():
                assert token == int(model(torch.tensor([prefix])).logits[0, -1].argmax())
            prefix.append(token)
        assert answer.forced == (at < len(thought.ids))
        assert answer.text == tokenizer.decode(list(answer.ids)).removesuffix("<eos>")
    entries = [(e.stage, e.generated, e.forced) for e in reasoner.ledger.entries]
    assert entries[0] == ("think", len(thought.ids), 0)
    assert [stage for stage, *_ in entries[1:]] == ["answer"] * 3
    assert reasoner.ledger.totals(stage="answer").prompt_cached == sum(
        len(thought.prompt) + at - 1 for at in (1, 5, len(thought.ids))
    )


def test_a_reasoner_refuses_bad_input(policy: tuple[Any, Any]) -> None:
    with pytest.raises(InputError, match="temperature"):
        AnytimeReasoner(*policy, METHOD, -0.1)
    with pytest.raises(CapabilityError, match="full attention"):
        AnytimeReasoner(tiny_network("Mistral"), policy[1], METHOD)
    reasoner = AnytimeReasoner(*policy, METHOD, 0.0)
    with pytest.raises(InputError, match="empty"):
        reasoner.begin("")
    thought = reasoner.begin("<user>3+4=?<assistant><think>")
    with pytest.raises(InputError, match="at=None"):
        thought.answer()
    with pytest.raises(BudgetError, match="tokens=0"):
        thought.think(0)
    with pytest.raises(BudgetError, match="context"):
        thought.think(10_000)
    thought.think(3)
    with pytest.raises(InputError, match="at=4"):
        thought.answer(4)
    with pytest.raises(BudgetError, match="max_tokens=0"):
        thought.answer(max_tokens=0)
