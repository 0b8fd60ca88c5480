"""Sampling, stops, seeds, budgets and streaming of local models."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from outlay.budget import Budget
from outlay.errors import BudgetError
from outlay.models.base import Account, Branch, Generation, SamplingParams
from outlay.models.local import LocalModel
from outlay.models.sampling import StopMatcher, filters, pick, stream
from tiny_models import chain_model, plain_logprobs, tiny_model

WORDS = "the cat in the hat"
MODEL = tiny_model(seed=2)
FREE = SamplingParams(max_tokens=12, temperature=1.0, ignore_eos=True)


def sampled(model: LocalModel, prompt: str, sampling: SamplingParams, n: int = 1) -> list[Branch]:
    return model.extend([model.open(prompt)], sampling, n)[0]


def streamed(model: LocalModel, prompt: str, **knobs: Any) -> tuple[list[str], Generation]:
    chunks = list(model.stream(prompt, **knobs))
    last = chunks[-1].generation
    assert last is not None
    assert all(chunk.generation is None for chunk in chunks[:-1])
    return [chunk.text for chunk in chunks], last


# -- filters ----------------------------------------------------------------------------------


def slow_filter(logits_V: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Probabilities after the three filters, written out."""
    scores = logits_V.astype(float) / temperature
    if top_k:
        scores[scores < np.sort(scores)[-min(top_k, len(scores))]] = -np.inf
    p = np.exp(scores - scores.max())
    p /= p.sum()
    if top_p < 1:
        order = np.argsort(-p, kind="stable")
        mass, kept = 0.0, []
        for i in order:
            if mass >= top_p and kept:
                break
            kept.append(i)
            mass += p[i]
        p = np.where(np.isin(np.arange(len(p)), kept), p, 0)
        p /= p.sum()
    return p


@given(
    st.integers(0, 10**6),
    st.floats(0.2, 3),
    st.integers(0, 30),
    st.sampled_from([1.0, 0.95, 0.7, 0.31]),
)
def test_filters_equal_transformers_warpers_and_the_definition(
    seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits_BV = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed)) * 3
    sampling = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    none = torch.empty(0, dtype=torch.long)
    found_BV = filters(sampling)(none, logits_BV)
    want_BV = logits_BV / temperature if temperature != 1 else logits_BV
    if temperature != 1:
        want_BV = TemperatureLogitsWarper(temperature)(none, logits_BV)
    if top_k:
        want_BV = TopKLogitsWarper(top_k)(none, want_BV)
    if top_p < 1:
        want_BV = TopPLogitsWarper(top_p)(none, want_BV)
    assert torch.equal(found_BV, want_BV)
    for row_V, logits_V in zip(found_BV.double().softmax(-1), logits_BV, strict=True):
        slow_V = slow_filter(logits_V.numpy(), temperature, top_k, top_p)
        np.testing.assert_allclose(row_V.numpy(), slow_V, atol=1e-5)


def test_picking_is_the_inverse_cdf() -> None:
    logits_BV = torch.log(torch.tensor([[0.2, 0.0, 0.5, 0.3]]))
    sampling = SamplingParams(temperature=1.0)
    for uniform, token in ((0.0, 0), (0.19, 0), (0.21, 2), (0.69, 2), (0.71, 3), (1 - 1e-16, 3)):
        assert pick(logits_BV, sampling, [uniform]).tolist() == [token]


def test_samples_follow_the_filtered_distribution() -> None:
    logits_V = plain_logprobs(MODEL, MODEL.encode(WORDS))[-1]
    sampling = SamplingParams(temperature=1.3, top_k=6, top_p=0.9)
    root = MODEL.open(WORDS)
    n = 20_000
    uniforms = [float(stream(0, root, child, 1)[0]) for child in range(n)]
    counts = np.bincount(pick(logits_V.expand(n, -1), sampling, uniforms), minlength=len(logits_V))
    p = slow_filter(logits_V.numpy(), 1.3, 6, 0.9)
    assert counts[p == 0].sum() == 0
    kept = p > 0
    chi2 = float((((counts - n * p) ** 2)[kept] / (n * p[kept])).sum())
    assert chi2 < 30  # 5 degrees of freedom: 1 in 70,000


# -- seeds ------------------------------------------------------------------------------------


def test_the_same_seed_and_path_give_the_same_tokens_whatever_the_batch() -> None:
    want = [b.token_ids for b in sampled(MODEL, WORDS, FREE, 3)]
    roots = [MODEL.open(text) for text in ("a", WORDS, WORDS * 2)]
    assert [b.token_ids for b in MODEL.extend(roots, FREE, 3)[1]] == want
    small = LocalModel(MODEL.model, MODEL.tokenizer, "small", max_batch_tokens=30)
    assert [
        b.token_ids for b in small.extend([small.open(t) for t in ("a", WORDS)], FREE, 3)[1]
    ] == (want)


def test_children_and_seeds_differ() -> None:
    children = sampled(MODEL, WORDS, FREE, 6)
    assert len({child.token_ids for child in children}) == 6
    other = SamplingParams(max_tokens=12, temperature=1.0, ignore_eos=True, seed=1)
    assert sampled(MODEL, WORDS, other)[0].token_ids != children[0].token_ids


def test_a_longer_limit_extends_a_shorter_sample() -> None:
    long = sampled(MODEL, WORDS, FREE)[0].token_ids
    short = SamplingParams(max_tokens=5, temperature=1.0, ignore_eos=True)
    assert sampled(MODEL, WORDS, short)[0].token_ids == long[:5]


# -- stops ------------------------------------------------------------------------------------

ALPHABET = "zyxwvuts"


def test_stop_strings_end_the_branch_at_their_last_token() -> None:
    model = chain_model(ALPHABET)
    account = Account()
    root = model.open("z", account=account)
    ((child,),) = model.extend([root], SamplingParams(max_tokens=20, stop=("wv",)), account=account)
    assert (child.text, child.finish) == ("yxwv", "stop")
    ((child,),) = model.extend([root], SamplingParams(max_tokens=20))
    assert (child.text, child.finish) == ("yxwvuts", "eos")


def test_a_stop_that_is_not_included_is_dropped_but_was_paid_for() -> None:
    model = chain_model(ALPHABET)
    account = Account()
    root = model.open("z", account=account)
    sampling = SamplingParams(max_tokens=20, stop=("uu", "wv"), include_stop=False, logprobs=True)
    ((child,),) = model.extend([root], sampling, account=account)
    assert (child.text, child.finish) == ("yx", "stop")
    assert child.logprobs is not None
    assert len(child.token_ids) == len(child.logprobs) == 2
    assert account.ledger.totals().generated == 4


def test_tokens_that_overlap_a_stop_go_with_it() -> None:
    model = chain_model("zyx\n\nw")  # "x\n" is one token, the second line break another
    (line,) = model.encode("x\n")
    assert line in model.encode("zyx\n\nw")
    keep = model.generate("z", sampling=SamplingParams(max_tokens=9, stop=("\n\n",)))
    drop = model.generate(
        "z", sampling=SamplingParams(max_tokens=9, stop=("\n\n",), include_stop=False)
    )
    assert (keep.text, drop.text) == ("yx\n\n", "y")
    assert keep.ledger.totals().generated == drop.ledger.totals().generated == 3


def test_stops_inside_one_token_and_over_multibyte_characters() -> None:
    model = chain_model("z日é🙂abc")  # "abc" is one token, each character some byte tokens
    for stop, kept, dropped in (("b", "日é🙂abc", "日é🙂"), ("é🙂", "日é🙂", "日")):
        for include, text in ((True, kept), (False, dropped)):
            made = model.generate(
                "z", sampling=SamplingParams(max_tokens=30, stop=(stop,), include_stop=include)
            )
            assert (made.text, made.finish_reason) == (text, "stop")


def test_stop_token_ids_end_the_branch() -> None:
    model = chain_model(ALPHABET)
    (token,) = model.encode("w")
    for include, text in ((True, "yxw"), (False, "yx")):
        made = model.generate(
            "z", sampling=SamplingParams(stop_token_ids=(token,), include_stop=include)
        )
        assert (made.text, made.finish_reason) == (text, "stop")


def test_min_tokens_masks_end_of_text_stop_tokens_and_stop_strings() -> None:
    model = chain_model("zyx")
    (token,) = model.encode("y")
    for sampling in (
        SamplingParams(max_tokens=9, min_tokens=5),
        SamplingParams(max_tokens=9, min_tokens=5, stop_token_ids=(token,)),
        SamplingParams(max_tokens=9, min_tokens=5, stop=("yx", "y")),
    ):
        made = model.generate("z", sampling=sampling)
        assert len(made.token_ids) >= 5
        assert not model.eos_ids & set(made.token_ids[:5])
        assert not set(sampling.stop_token_ids) & set(made.token_ids[:5])
        text = model.decode(made.token_ids[:5])
        assert not any(stop in text for stop in sampling.stop)
    # After that they end it again.
    made = model.generate("z", sampling=SamplingParams(max_tokens=9, min_tokens=2))
    assert (made.text, made.finish_reason) == ("yx", "eos")


def test_ignoring_end_of_text_goes_on_to_the_limit() -> None:
    model = chain_model("zyx")
    made = model.generate("z", sampling=SamplingParams(max_tokens=9, ignore_eos=True))
    assert len(made.token_ids) == 9
    assert made.finish_reason == "length"
    assert not model.eos_ids & set(made.token_ids)


@given(
    st.lists(st.sampled_from(["a", "b", "ab", "\n", "\n\n", "x", "x\n", "é"]), max_size=12),
    st.lists(st.sampled_from(["ab", "ba", "\n\n", "aab", "é", "xx"]), min_size=1, max_size=3),
)
def test_the_matcher_stops_where_a_search_in_the_whole_text_first_finds_a_stop(
    pieces: list[str], stops: list[str]
) -> None:
    tokens = [i for piece in pieces for i in MODEL.encode(piece)]
    matcher = StopMatcher(MODEL.tokenizer, stops)
    found = next((k for k in range(1, len(tokens) + 1) if matcher.completes(tokens[:k])), None)
    want = next(
        (
            k
            for k in range(1, len(tokens) + 1)
            if any(stop in MODEL.decode(tokens[:k]) for stop in stops)
        ),
        None,
    )
    assert found == want
    if found is not None:
        kept = found - matcher.overlap(tokens[:found])
        assert not any(stop in MODEL.decode(tokens[:kept]) for stop in stops)
        tail = MODEL.decode(tokens[kept:found])
        assert any(stop in tail for stop in stops)


# -- budgets ----------------------------------------------------------------------------------

SETTINGS = st.builds(
    SamplingParams,
    max_tokens=st.integers(0, 12),
    temperature=st.sampled_from([0.0, 1.0]),
    min_tokens=st.integers(0, 3),
    seed=st.integers(0, 5),
    ignore_eos=st.booleans(),
    include_stop=st.booleans(),
    stop=st.sampled_from([(), ("a",), ("\n", "e")]),
)


@settings(max_examples=30)
@given(
    budget=st.builds(
        Budget,
        tokens=st.integers(1, 40),
        counts=st.sampled_from(["generated", "think", "all"]),
        stages=st.sampled_from([None, {"think": 1}, {"answer": 1}]),
    ),
    calls=st.lists(
        st.tuples(
            SETTINGS, st.integers(1, 4), st.sampled_from(["think", "answer"]), st.integers(0, 9)
        ),
        min_size=1,
        max_size=5,
    ),
)
def test_no_settings_overspend_a_token_budget(budget: Budget, calls: list[Any]) -> None:
    account = Account.open(budget)
    try:
        live = [MODEL.open("the", account=account)]
    except BudgetError:
        assert budget.counts == "all"
        return
    for sampling, n, stage, at in calls:
        here = account.at(stage=stage)
        parents = [b for b in live if b.finish != "eos"][at % 3 :][:2] or live[:1]
        try:
            for children in MODEL.extend(parents, sampling, n, account=here):
                live += children
            live.append(MODEL.append(parents[0], "a", account=here))
        except BudgetError:
            pass
    think, total = account.ledger.totals(stage="think"), account.ledger.totals()
    assert budget.tokens is not None
    spent = {
        "generated": total.generated,
        "think": think.generated,
        "all": total.prompt + total.generated + total.forced,
    }[budget.counts]
    assert spent <= budget.tokens
    for stage, share in (budget.stages or {}).items():
        if budget.counts == "generated" or stage == "think":
            assert account.ledger.totals(stage=stage).generated <= share
    assert account.meter is not None
    assert account.meter.spent == spent
    assert total.generated + total.forced == total.delivered + total.discarded


@settings(max_examples=12)
@given(st.floats(0.5, 6), st.integers(1, 3), st.integers(0, 60))
def test_no_settings_overspend_a_flops_budget(factor: float, n: int, forced: int) -> None:
    assert MODEL.shape is not None
    limit = factor * MODEL.shape.flops_generate(20, 10)
    account = Account.open(Budget(flops=limit))
    try:
        branch = MODEL.open(WORDS, account=account)
        for _ in range(4):
            (children,) = MODEL.extend([branch], FREE, n, account=account)
            branch = children[-1]
            if forced:
                branch = MODEL.append(branch, [7] * forced, account=account)
            MODEL.score(branch, [[4, 5], [6]], account=account)
    except BudgetError:
        pass
    assert account.ledger.totals().flops <= limit
    assert account.meter is not None
    assert account.meter.flops == pytest.approx(account.ledger.totals().flops)


def test_forced_text_is_part_of_a_flops_budget() -> None:
    root = MODEL.open(WORDS)
    forced = MODEL.append(root, [7] * 100)
    assert MODEL.shape is not None
    account = Account.open(Budget(flops=20 * MODEL.shape.flops(1, 130)))
    one = SamplingParams(max_tokens=1)
    for call in (
        lambda: MODEL.extend([forced], one, account=account),
        lambda: MODEL.score(forced, ["a"], account=account),
    ):
        with pytest.raises(BudgetError, match="raise flops="):
            call()
    MODEL.extend([root], one, account=account)


def test_flops_of_a_tree_are_those_of_its_tokens() -> None:
    account = Account()
    root = MODEL.open(WORDS, account=account)
    ((child,),) = MODEL.extend([root], FREE, account=account)
    MODEL.extend([child], FREE, account=account)
    assert MODEL.shape is not None
    want = MODEL.shape.flops_generate(len(root.token_ids), 24)
    assert account.ledger.totals().flops == pytest.approx(want)


def test_what_a_budget_cuts_says_so() -> None:
    made = MODEL.generate(WORDS, Budget(tokens=5), FREE)
    assert (len(made.token_ids), made.finish_reason) == (5, "budget")
    made = MODEL.generate(WORDS, Budget(tokens=12), FREE)
    assert (len(made.token_ids), made.finish_reason) == (12, "length")
    account = Account.open(Budget(tokens=10))
    wants = [
        SamplingParams(max_tokens=2, ignore_eos=True),
        SamplingParams(max_tokens=20, ignore_eos=True),
    ]
    root = MODEL.open(WORDS, account=account)
    ((small,), (large,)) = MODEL.extend([root, root], wants, account=account)
    assert (len(small.token_ids), small.finish) == (2, "length")
    assert (len(large.token_ids), large.finish) == (8, "budget")
    with pytest.raises(BudgetError, match="raise tokens="):
        MODEL.extend([root], FREE, account=account)


def test_a_budget_beside_an_account_is_a_limit_too() -> None:
    account = Account()
    made = MODEL.generate(WORDS, Budget(tokens=4), FREE, account=account)
    assert (len(made.token_ids), made.finish_reason) == (4, "budget")
    assert made.ledger is account.ledger


def test_a_deadline_ends_a_generation() -> None:
    account = Account.open(Budget(seconds=0.15))
    start = time.monotonic()
    root = MODEL.open(WORDS, account=account)
    (children,) = MODEL.extend(
        [root], SamplingParams(max_tokens=450, ignore_eos=True), 2, account=account
    )
    assert time.monotonic() - start < 5
    assert {child.finish for child in children} <= {"budget", "length"}
    if any(child.finish == "budget" for child in children):
        assert all(len(child.token_ids) < 450 for child in children)
    time.sleep(0.15)
    with pytest.raises(BudgetError, match=r"time limit of 0\.15 s"):
        MODEL.extend([root], FREE, account=account)


def test_a_failed_call_gives_its_reservation_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(seed=2)
    account = Account.open(Budget(tokens=100, counts="all"))
    meter = account.meter
    assert meter is not None
    root = model.open(WORDS, account=account)
    left, flops = meter.remaining(), meter.flops

    def fails(*args: object, **kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setattr(model.model.model, "forward", fails)
    forced = model.append(root, "a")
    free = Account(meter=meter)
    for call in (
        lambda: model.extend([forced], FREE, account=account),
        lambda: model.open(WORDS, account=free),
        lambda: model.score(root, ["the end"], account=free),
        lambda: model.losses([WORDS], account=free),
        lambda: model.extend([root], FREE, account=account),
    ):
        with pytest.raises(MemoryError):
            call()
    assert meter.remaining() == left - 1  # the last one sampled one token before it failed
    assert meter.flops == pytest.approx(flops)
    assert len(free.ledger) == 0


# -- streaming --------------------------------------------------------------------------------


@settings(max_examples=25)
@given(SETTINGS, st.sampled_from(["the", "é", "x\n"]))
def test_streamed_pieces_join_to_the_generated_text(sampling: SamplingParams, prompt: str) -> None:
    pieces, last = streamed(MODEL, prompt, sampling=sampling)
    whole = MODEL.generate(prompt, sampling=sampling)
    assert last.token_ids == whole.token_ids
    assert "".join(pieces) == last.text == whole.text


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("stop", ["\n\n", "é🙂", "bcQ", "never"])
def test_streams_hold_back_what_a_stop_or_a_character_may_change(stop: str, include: bool) -> None:
    model = chain_model("z日é🙂yx\n\nabc")
    sampling = SamplingParams(max_tokens=40, stop=(stop,), include_stop=include)
    pieces, last = streamed(model, "z", sampling=sampling)
    assert "".join(pieces) == last.text == model.generate("z", sampling=sampling).text
    assert "\ufffd" not in "".join(pieces)
    if not include:
        assert stop not in "".join(pieces)
    assert len([p for p in pieces if p]) > 0


def test_text_is_streamed_as_it_is_made() -> None:
    pieces, _ = streamed(chain_model("z日é🙂yx"), "z", sampling=SamplingParams(max_tokens=40))
    assert [p for p in pieces if p] == ["日", "é", "🙂", "y", "x"]


def test_an_abandoned_stream_settles_what_it_sampled() -> None:
    account = Account.open(Budget(tokens=50))
    chunks = MODEL.stream(
        WORDS, None, SamplingParams(max_tokens=40, ignore_eos=True), account=account
    )
    seen = [next(chunks) for _ in range(3)]
    chunks.close()
    sampled_ = account.ledger.totals().generated
    assert len(seen) <= sampled_ < 40
    assert account.meter is not None
    assert account.meter.spent == sampled_
    assert account.meter.remaining() == 50 - sampled_


def test_the_ledger_of_a_generation_adds_up() -> None:
    made = MODEL.generate(WORDS, sampling=FREE)
    total = made.ledger.totals()
    assert (total.prompt_new, total.generated, total.forced) == (len(MODEL.encode(WORDS)), 12, 0)
    assert (total.delivered, total.discarded) == (12, 0)
    account = Account()
    root = MODEL.open(WORDS, account=account)
    (children,) = MODEL.extend([root], FREE, 4, account=account)
    best = MODEL.append(children[2], "the end", account=account)
    account.ledger.deliver(best.ids())
    total = account.ledger.totals()
    assert total.delivered == 12 + len(best.token_ids)
    assert total.discarded == 36
    assert best.completion() == children[2].text + "the end"
