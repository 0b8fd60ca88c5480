"""RSD through both models: greedy text, laws, batches, budgets, stops and the books."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.budget import Budget
from outlay.cache.base import Over
from outlay.cache.loop import FullCache
from outlay.decode.base import Decoder
from outlay.decode.rsd import RSD, NGram, RSDResult
from outlay.decode.rsd.ngram import Counts
from outlay.decode.speculative import Assisted, MultiDraft, PromptLookup, Speculative
from outlay.errors import BudgetError, CapabilityError, InputError, ModelError
from outlay.models.base import Account, SamplingParams
from outlay.models.local import LocalModel
from outlay.proofs.rsd_runs import chi_square
from tiny_models import plain_logprobs, tiny_model, tiny_network, tiny_tokenizer

MODES = ("rsd_s", "rsd_c", "chain", "iid_tree", "greedy_tree")
PROMPTS = ("the abc", "on in", "a", "xx the the er")


@pytest.fixture(scope="module")
def target() -> LocalModel:
    return tiny_model()


@pytest.fixture(scope="module")
def near(target: LocalModel) -> LocalModel:
    """A draft that agrees with the target often but not always."""
    network = tiny_network()
    torch.manual_seed(1)
    for parameter in network.parameters():
        parameter.add_(0.12 * parameter.std() * torch.randn_like(parameter))
    return LocalModel(network, target.tokenizer, "near")


def sampling(n: int = 24, **knobs: object) -> SamplingParams:
    return SamplingParams(max_tokens=n, **knobs)  # type: ignore[arg-type]


def check_books(result: RSDResult, tokens: int | None = None) -> None:
    """Tokens of the text, the passes and the ledger add up."""
    made = len(result.token_ids) if tokens is None else tokens
    stats, ledger = result.stats, result.ledger
    assert sum(stats.emitted) + stats.begun == made
    assert all(1 <= n <= result.shape.levels + 1 for n in stats.emitted)
    assert all(n <= result.shape.nodes for n in stats.nodes)
    assert ledger.totals().delivered == made
    assert ledger.totals(role="draft").generated == sum(stats.nodes)
    assert ledger.totals(role="draft").delivered == stats.accepted
    assert ledger.totals(role="target").generated == len(stats.nodes) + stats.begun


def test_it_follows_the_rooms_protocols() -> None:
    assert isinstance(RSD(), Over)
    assert isinstance(RSD().over(FullCache()), Decoder)
    for baseline in (Speculative(), MultiDraft(), Assisted(), PromptLookup()):
        assert isinstance(baseline, Decoder)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("draft", ["near", "ngram", "truncated"])
def test_greedy_text_is_plain_greedy_text(
    target: LocalModel, near: LocalModel, mode: str, draft: str
) -> None:
    decoder = RSD(mode=mode, draft=near if draft == "near" else draft)  # type: ignore[arg-type]
    made = decoder.generate_many(target, PROMPTS, sampling=sampling())
    for prompt, result in zip(PROMPTS, made, strict=True):
        assert result.token_ids == target.generate(prompt, None, sampling()).token_ids
        check_books(result)
    assert sum(len(m.stats.emitted) for m in made) < sum(len(m.token_ids) for m in made)


@pytest.mark.parametrize("mode", MODES)
def test_the_first_tokens_follow_the_targets_law(
    target: LocalModel, near: LocalModel, mode: str
) -> None:
    ids = target.prompt_ids(PROMPTS[0])
    kept = sampling(2, temperature=0.7, top_k=4)

    def law(prefix: list[int]) -> dict[int, float]:
        logp_V = plain_logprobs(target, [*ids, *prefix])[-1] / 0.7
        top = logp_V.topk(4)
        return dict(zip(top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True))

    exact = {(a, b): p * q for a, p in law([]).items() for b, q in law([a]).items()}
    decoder = RSD(mode=mode, branching=(2,), depth=1, beam=2, draft=near)  # type: ignore[arg-type]
    n = 1000
    each = [SamplingParams(**{**vars(kept), "seed": seed}) for seed in range(n)]
    made = decoder.generate_many(target, [PROMPTS[0]] * n, sampling=each)
    seen = Counter(result.token_ids for result in made)
    assert set(seen) <= set(exact)
    counts = np.array([float(seen[word]) for word in exact])
    assert chi_square(counts, np.array(list(exact.values()))) > 1e-3


def test_the_same_seed_gives_the_same_text_in_any_batch(
    target: LocalModel, near: LocalModel
) -> None:
    decoder = RSD(draft=near)
    each = [sampling(temperature=1.0, seed=i) for i in range(len(PROMPTS))]
    together = decoder.generate_many(target, PROMPTS, sampling=each)
    for prompt, want, result in zip(PROMPTS, each, together, strict=True):
        alone = decoder.generate(target, prompt, None, want)
        assert alone.token_ids == result.token_ids
        assert alone.stats.emitted == result.stats.emitted
    other = decoder.generate(target, PROMPTS[0], None, sampling(temperature=1.0, seed=99))
    assert other.token_ids != together[0].token_ids


def test_large_batches_are_split_by_the_models_limit(near: LocalModel) -> None:
    small = tiny_model()
    small.max_batch_tokens = 100
    decoder = RSD(draft=near)
    made = decoder.generate_many(small, PROMPTS, sampling=sampling())
    for prompt, result in zip(PROMPTS, made, strict=True):
        assert result.token_ids == decoder.generate(small, prompt, None, sampling()).token_ids


@settings(max_examples=15, deadline=None)
@given(
    limit=st.integers(1, 60),
    mode=st.sampled_from(MODES),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 99),
)
def test_a_budget_counts_drafts_and_is_never_overspent(
    limit: int, mode: str, temperature: float, seed: int
) -> None:
    model = tiny_model()
    result = RSD(mode=mode, draft="ngram").generate(  # type: ignore[arg-type]
        model, PROMPTS[0], Budget(tokens=limit), sampling(50, temperature=temperature, seed=seed)
    )
    assert result.ledger.totals().generated <= limit
    assert len(result.token_ids) >= 1
    check_books(result)


def test_a_spent_budget_ends_the_text(target: LocalModel, near: LocalModel) -> None:
    result = RSD(draft=near).generate(target, PROMPTS[0], Budget(tokens=20), sampling(100))
    assert result.finish_reason == "budget"
    assert result.ledger.totals().generated == 20
    account = Account.open(Budget(tokens=20))
    RSD(draft=near).generate(target, PROMPTS[0], None, sampling(100), account=account)
    with pytest.raises(BudgetError):
        RSD(draft=near).generate(target, PROMPTS[0], None, sampling(100), account=account)


def test_a_passed_deadline_ends_the_text(target: LocalModel, near: LocalModel) -> None:
    result = RSD(draft=near).generate(target, PROMPTS[0], Budget(seconds=0.1), sampling(400))
    assert result.finish_reason == "budget"
    assert len(result.token_ids) < 400


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_limit_of_new_tokens_is_kept(target: LocalModel, near: LocalModel, n: int) -> None:
    for mode in MODES:
        result = RSD(mode=mode, draft=near).generate(  # type: ignore[arg-type]
            target, PROMPTS[0], None, sampling(n, ignore_eos=True)
        )
        assert len(result.token_ids) == n
        assert result.finish_reason == "length"
        check_books(result)
    assert RSD(draft=near).generate(target, "a", None, sampling(0)).token_ids == ()


def test_a_stop_inside_an_accepted_path_discards_the_rest(target: LocalModel) -> None:
    whole = target.generate(PROMPTS[0], None, sampling(24, ignore_eos=True)).token_ids
    stop = whole[9]
    first = whole.index(stop)
    want = sampling(24, ignore_eos=True, stop_token_ids=(stop,))
    # The target drafts for itself, so that every path is accepted to its end.
    result = RSD(mode="chain", depth=8, draft=target).generate(target, PROMPTS[0], None, want)
    assert result.token_ids == whole[: first + 1]
    assert result.finish_reason == "stop"
    check_books(result)
    bare = RSD(mode="chain", depth=8, draft=target).generate(
        target, PROMPTS[0], None, SamplingParams(**{**vars(want), "include_stop": False})
    )
    assert bare.token_ids == whole[:first]


def test_stop_strings_eos_and_floors_are_those_of_plain_decoding(
    target: LocalModel, near: LocalModel
) -> None:
    text = target.generate(PROMPTS[0], None, sampling(30)).text
    for want in (
        sampling(30, stop=(text[5:8],)),
        sampling(30, stop=(text[5:8],), include_stop=False),
        sampling(60, min_tokens=40),
        sampling(60, ignore_eos=True),
        sampling(12, logprobs=True),
    ):
        plain = target.generate(PROMPTS[0], None, want)
        ours = RSD(draft=near).generate(target, PROMPTS[0], None, want)
        assert (ours.text, ours.token_ids, ours.finish_reason) == (
            plain.text,
            plain.token_ids,
            plain.finish_reason,
        )
        if want.logprobs:
            assert ours.logprobs == pytest.approx(plain.logprobs, abs=1e-4)


def test_streamed_text_is_the_text(target: LocalModel, near: LocalModel) -> None:
    decoder = RSD(draft=near)
    pieces = list(decoder.stream(target, PROMPTS[0], None, sampling(temperature=1.0)))
    last = pieces[-1].generation
    assert last is not None
    assert "".join(piece.text for piece in pieces) == last.text
    assert len(pieces) > 2
    assert last.text == decoder.generate(target, PROMPTS[0], None, sampling(temperature=1.0)).text


def test_over_a_cache_method_the_text_stays_greedy(target: LocalModel, near: LocalModel) -> None:
    over = RSD(draft=near).over(FullCache())
    for prompt in PROMPTS:
        result = over.generate(target, prompt, None, sampling())
        assert result.token_ids == target.generate(prompt, None, sampling()).token_ids
        check_books(result)
    pieces = list(over.stream(target, PROMPTS[0], None, sampling()))
    assert "".join(piece.text for piece in pieces) == pieces[-1].generation.text  # type: ignore[union-attr]
    assert over.generate(target, "a", None, sampling(0)).token_ids == ()


@pytest.mark.parametrize("rotate", ["reindex", "absolute"])
def test_over_a_cache_that_drops_rows_the_text_goes_on(
    target: LocalModel, near: LocalModel, rotate: str
) -> None:
    from outlay.cache.baselines import StreamingLLM
    from outlay.cache.lacache import LaCache
    from outlay.cache.loop import CachedDecoder

    prompt = [5 + i % 90 for i in range(60)]
    for kind in (LaCache, StreamingLLM):
        roomy = kind(capacity=400, rotate=rotate, chunk=16)
        plain = CachedDecoder(roomy).generate(target, prompt, None, sampling())
        assert RSD(draft=near).over(roomy).generate(target, prompt, None, sampling()).token_ids == (
            plain.token_ids
        )
        tight = kind(capacity=32, rotate=rotate, chunk=16)
        result = (
            RSD(draft=near)
            .over(tight)
            .generate(target, prompt, None, sampling(50, ignore_eos=True))
        )
        assert len(result.token_ids) == 50
        check_books(result)


def test_a_draft_with_a_padded_embedding_is_cut(target: LocalModel) -> None:
    network = tiny_network(vocab_size=len(tiny_tokenizer()) + 7)
    wide = LocalModel(network, target.tokenizer, "wide")
    result = RSD(draft=wide).generate(target, PROMPTS[0], None, sampling())
    assert result.token_ids == target.generate(PROMPTS[0], None, sampling()).token_ids
    back = RSD(draft=target).generate(wide, PROMPTS[0], None, sampling(temperature=1.0))
    assert len(back.token_ids) > 0


def test_single_chains_are_rsd_with_one_child(target: LocalModel, near: LocalModel) -> None:
    want = sampling(temperature=1.0, seed=5)
    chain = RSD(mode="chain", depth=3, draft=near).generate(target, PROMPTS[0], None, want)
    tree = RSD(mode="rsd_c", branching=(1, 1, 1), draft=near).generate(
        target, PROMPTS[0], None, want
    )
    assert chain.token_ids == tree.token_ids
    assert Speculative(3, near).generate(target, PROMPTS[0], None, want).token_ids == (
        chain.token_ids
    )


def test_a_draft_that_is_the_target_is_always_accepted(target: LocalModel) -> None:
    result = RSD(draft=target).generate(
        target, PROMPTS[0], None, sampling(40, temperature=1.0, ignore_eos=True)
    )
    assert set(result.stats.emitted[:-1]) == {4}
    assert result.stats.block_efficiency == pytest.approx(4.0, abs=0.4)
    assert result.stats.mbsu(0.1, 3) == pytest.approx(result.stats.block_efficiency / 1.3)


# -- transformers' own ----------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 4])
def test_assisted_generation_is_greedy_and_booked(
    target: LocalModel, near: LocalModel, tokens: int
) -> None:
    plain = target.generate(PROMPTS[0], None, sampling()).token_ids
    for decoder in (Assisted(tokens, near), PromptLookup(tokens)):
        before = near.model.generation_config
        result = decoder.generate(target, PROMPTS[0], None, sampling())
        assert result.token_ids == plain
        assert near.model.generation_config is before
        assert result.ledger.totals().delivered == len(plain)
        assert result.ledger.totals(role="draft").generated == result.drafted
        assert result.passes <= len(plain)
        assert 1 <= result.block_efficiency <= tokens + 1


def test_assisted_generation_keeps_budgets_and_random_numbers(
    target: LocalModel, near: LocalModel
) -> None:
    state = torch.get_rng_state()
    want = sampling(40, temperature=1.0, seed=3)
    result = Assisted(4, near).generate(target, PROMPTS[0], Budget(tokens=23), want)
    assert result.ledger.totals().generated <= 23
    assert result.finish_reason == "budget"
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(InputError, match="include_stop"):
        PromptLookup().generate(target, "a", None, sampling(4, include_stop=False))
    with pytest.raises(InputError, match="PromptLookup"):
        Assisted(draft="ngram").generate(target, "a", None, sampling(4))


# -- n-grams --------------------------------------------------------------------------------------


def slow_law(tokens: list[int], ahead: list[int], v: int, order: int, k: float) -> np.ndarray:
    """The definition, by recursion over contexts."""
    tail = [*tokens, *ahead]

    def law(size: int) -> np.ndarray:
        if size < 0:
            return np.full(v, 1 / v)
        below = law(size - 1)
        context = tail[len(tail) - size :] if size else []
        if size > len(tail):
            return below
        seen = [
            tokens[i + size] for i in range(len(tokens) - size) if tokens[i : i + size] == context
        ]
        if not seen:
            return below
        return (np.bincount(seen, minlength=v) + k * below) / (len(seen) + k)

    return law(order - 1)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    ahead=st.lists(st.integers(0, 3), max_size=3),
    order=st.integers(1, 4),
)
def test_ngram_counts_are_their_definition(tokens: list[int], ahead: list[int], order: int) -> None:
    counts = Counts(NGram(order=order, k=0.3), 5)
    counts.extend(tokens)
    law_V = counts.law(ahead)
    assert law_V.sum() == pytest.approx(1.0)
    assert (law_V > 0).all()
    np.testing.assert_allclose(law_V, slow_law(tokens, ahead, 5, order, 0.3))


def test_a_corpus_is_counted_but_not_continued() -> None:
    counts = Counts(NGram(order=2, k=0.01, corpus=(1, 2, 1, 2)), 4)
    assert counts.law([1]).argmax() == 2
    assert counts.law([]).argmax() in (1, 2)
    assert counts.tokens == []


# -- what is refused ------------------------------------------------------------------------------


def test_bad_input_is_refused_by_name(target: LocalModel, near: LocalModel) -> None:
    with pytest.raises(InputError, match="draft="):
        RSD().generate(target, "a", None, sampling(4))
    with pytest.raises(InputError, match="draft=int"):
        RSD(draft=3)
    with pytest.raises(InputError, match="budget=0"):
        RSD(budget=0)
    with pytest.raises(InputError, match="branching"):
        RSD(branching=())
    with pytest.raises(InputError, match="window"):
        RSD(draft=near).generate(target, [5] * 509, None, sampling(4))
    with pytest.raises(InputError, match="min_tokens"):
        RSD(draft=near).generate(target, "a", None, sampling(4, min_tokens=1, stop=("x",)))
    with pytest.raises(InputError, match="sampling parameters"):
        RSD(draft=near).generate_many(target, ["a", "b"], sampling=[sampling()])
    for build in (
        lambda: NGram(order=0),
        lambda: NGram(k=0.0),
        lambda: Speculative(0),
        lambda: MultiDraft(0),
        lambda: MultiDraft(depth=0),
        lambda: Assisted(0),
        lambda: PromptLookup(99),
        lambda: PromptLookup(ngram=0),
    ):
        with pytest.raises(InputError):
            build()


def test_a_draft_of_another_tokenizer_is_refused(target: LocalModel) -> None:
    from outlay.testbeds.reasoner import checkpoint_path

    other = LocalModel.load(checkpoint_path("small"), name="reasoner/small")
    with pytest.raises(InputError, match="different tokenizers"):
        RSD(draft=other).generate(target, "a", None, sampling(4))


def test_a_model_or_draft_without_a_tree_mask_is_refused(near: LocalModel) -> None:
    sliding = tiny_model("Mistral")
    with pytest.raises(CapabilityError, match="SlidingWindow"):
        RSD(draft=near).generate(sliding, "a", None, sampling(4))
    with pytest.raises(CapabilityError, match="draft=tiny-Mistral"):
        RSD(draft=sliding).generate(near, "a", None, sampling(4))


@pytest.mark.parametrize("broken", ["target", "draft"])
def test_logits_that_are_not_finite_are_refused(near: LocalModel, broken: str) -> None:
    network = tiny_network()
    bad = LocalModel(network, near.tokenizer, "bad")
    network.lm_head.weight[3].fill_(torch.nan)
    pair = (bad, near) if broken == "target" else (near, bad)
    account = Account.open(Budget(tokens=100))
    with pytest.raises(ModelError, match=f"the {broken} gave logits"):
        RSD(draft=pair[1]).generate(pair[0], "a b", None, sampling(), account=account)
    assert account.meter is not None
    assert account.meter.remaining() is not None


def test_more_children_than_tokens_are_clipped_with_a_warning(
    target: LocalModel, near: LocalModel
) -> None:
    decoder = RSD(mode="rsd_c", branching=(target.vocabulary + 5,), draft=near)
    with pytest.warns(UserWarning, match="clipped"):
        result = decoder.generate(target, "a", None, sampling(6))
    assert result.shape.branching == (target.vocabulary,)
    assert result.token_ids == target.generate("a", None, sampling(6)).token_ids
