"""SwiReasoning on real networks: soft feeds, batches, books, bounds and refusals."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import tiny_llama

from completions_server import MODEL, serving
from outlay.budget import Budget
from outlay.cache.base import Over
from outlay.cache.loop import FullCache
from outlay.decode.base import Decoder, ThinkResult
from outlay.decode.swireasoning import (
    RandomSwitching,
    Rules,
    SoftThinking,
    SwiController,
    SwiReasoning,
)
from outlay.decode.swireasoning.embeddings import Embeddings, check_feeding, entropies
from outlay.decode.swireasoning.markers import formula_ids
from outlay.errors import BudgetError, CapabilityError, InputError, ModelError
from outlay.models.base import Account, SamplingParams
from outlay.models.endpoint import EndpointModel
from outlay.models.local import LocalModel
from tiny_models import chain_model, tiny_model, tiny_network

PROMPT = "<user>3+4=?<assistant><think>"
FAMILIES = ("Llama", "Qwen2", "Gemma2", "Cohere", "Granite", "GPT2", "Bloom", "Mixtral")
SHORT = {"termination_text": "</think><answer>", "math_tokens": "none"}


class Muted(torch.nn.Module):
    """A head that never says some tokens."""

    def __init__(self, head: Any, ids: list[int]) -> None:
        super().__init__()
        self.head, self.ids = head, ids

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.head(hidden)
        logits[..., self.ids] = -1e4
        return logits


@pytest.fixture(scope="module")
def tireless(tokenizer) -> LocalModel:
    """A random network that neither closes its thinking nor ends the text."""
    network = tiny_llama(tokenizer)
    ends = [tokenizer.eos_token_id, tokenizer.get_vocab()["</think>"]]
    network.lm_head = Muted(network.lm_head, ends)
    return LocalModel(network, tokenizer, "tireless")


def written(result: Any) -> list[int]:
    """Every token of a run."""
    return [each.token for each in result.trace]


# --- soft embeddings ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_feeding_an_embedding_equals_feeding_its_token(kind):
    network = tiny_network(kind)
    check_feeding(network)
    embeddings = Embeddings(network, {})
    ids = [5, 9, 40]
    by_ids = network(torch.tensor([ids]), use_cache=False).logits
    by_embeds = network(inputs_embeds=embeddings.tokens(ids)[None], use_cache=False).logits
    assert torch.allclose(by_ids, by_embeds, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_certain_mixture_is_the_token_itself(kind):
    embeddings = Embeddings(tiny_network(kind), {})
    one_hot_V = torch.zeros(1, embeddings._weight_VC.shape[0])
    one_hot_V[0, 7] = 1
    assert torch.allclose(embeddings.soft(one_hot_V), embeddings.tokens([7]), atol=1e-6)


@given(seed=st.integers(0, 10**6), top_k=st.one_of(st.none(), st.integers(1, 300)))
@settings(max_examples=20)
def test_mixtures_lie_between_the_embeddings(seed, top_k):
    network = tiny_network()
    embeddings = Embeddings(network, {}, top_k)
    generator = torch.Generator().manual_seed(seed)
    logits_BV = 5 * torch.randn(3, network.config.vocab_size, generator=generator)
    soft_BC = embeddings.soft(logits_BV.softmax(-1))
    table_VC = network.get_input_embeddings().weight
    slack = 1e-5
    assert (soft_BC >= table_VC.min(0).values - slack).all()
    assert (soft_BC <= table_VC.max(0).values + slack).all()


def test_a_mixture_of_the_likeliest_k_is_the_slow_one():
    network = tiny_network()
    probs_BV = torch.randn(2, network.config.vocab_size).softmax(-1)
    table_VC = network.get_input_embeddings().weight
    for row, soft_C in enumerate(Embeddings(network, {}, 3).soft(probs_BV)):
        best = sorted(range(len(table_VC)), key=lambda v: -float(probs_BV[row, v]))[:3]
        total = sum(float(probs_BV[row, v]) for v in best)
        slow_C = sum(float(probs_BV[row, v]) / total * table_VC[v] for v in best)
        assert torch.allclose(soft_C, slow_C, atol=1e-6)


def test_a_scaled_table_keeps_its_scale():
    class Scaled(torch.nn.Embedding):
        def forward(self, ids):
            return super().forward(ids) * 5.5

    network = tiny_network()
    table = Scaled(*network.get_input_embeddings().weight.shape)
    network.set_input_embeddings(table)
    certain_V = torch.eye(network.config.vocab_size)[3:4]
    soft_C = Embeddings(network, {}).soft(certain_V)
    assert torch.allclose(soft_C, table.weight[3:4] * 5.5, atol=1e-5)


def test_entropies_are_those_of_a_sum_over_the_vocabulary():
    probs_BV = torch.tensor([[0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]])
    assert entropies(probs_BV) == pytest.approx([1.0397207708399179, 0.0])


def test_a_network_without_embedding_input_is_refused_by_name():
    class Deaf(torch.nn.Module):
        config = tiny_network().config

        def get_input_embeddings(self):
            return torch.nn.Embedding(8, 4)

        def forward(self, input_ids, use_cache=False):
            return input_ids

    with pytest.raises(CapabilityError, match="Deaf takes no embeddings"):
        check_feeding(Deaf())


# --- decoding -----------------------------------------------------------------------------------


@torch.no_grad()
def slow_run(model: LocalModel, method: SwiReasoning, prompt: str, steps: int) -> list[int]:
    """Greedy SwiReasoning without a cache: the whole input again for every token."""
    tokenizer, network = model.tokenizer, model.model
    table_VC = network.get_input_embeddings().weight
    known = tokenizer.get_vocab()
    rules = Rules(
        steps,
        known["</think>"],
        alpha0=method.alpha0,
        beta0=method.beta0,
        window=method.window,
    )
    anchors = {"newline": known["\n"], "think": known["<think>"], "end_think": known["</think>"]}
    controller = SwiController(rules)
    fed_TC = table_VC[torch.tensor(tokenizer(prompt)["input_ids"])]
    out: list[int] = []
    for t in range(steps):
        logits_V = network(inputs_embeds=fed_TC[None], use_cache=False).logits[0, -1]
        probs_V = logits_V.softmax(-1)
        entropy = float(-(probs_V * probs_V.log()).nan_to_num().sum())
        made = controller.step(entropy, int(logits_V.argmax()), t)
        out.append(made.token)
        if made.token == tokenizer.eos_token_id:
            break
        next_C = table_VC[made.token]
        if made.soft or made.anchor:
            next_C = made.soft * (probs_V @ table_VC)
            next_C = next_C + (1 - made.soft) * table_VC[anchors[made.anchor or "newline"]]
        fed_TC = torch.cat([fed_TC, next_C[None]])
    return out


@pytest.mark.parametrize("window", [0, 2, 5])
@pytest.mark.parametrize("start", [1.0, 0.3])
def test_decoding_follows_the_slow_loop(restless, window, start):
    method = SwiReasoning(window=window, alpha0=start, math_tokens="none")
    for prompt in ("<user>7=?<assistant><think>", PROMPT):
        made = method.generate(restless, prompt, sampling=SamplingParams(max_tokens=24))
        assert written(made) == slow_run(restless, method, prompt, 24)


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Gemma2", "GPT2", "Bloom"])
def test_explicit_thinking_without_an_end_is_plain_decoding(kind):
    model = tiny_model(kind)
    markers: Any = {"think_token": "<|im_start|>", "end_think_token": "<|im_end|>"}
    method = SwiReasoning(start_mode="explicit", window=10**9, beta0=0.0, **markers)
    for sampling in (
        SamplingParams(max_tokens=20),
        SamplingParams(max_tokens=20, temperature=1.0, top_k=40, top_p=0.9, seed=3),
    ):
        made = method.generate(model, "abc the<|im_start|>", sampling=sampling)
        plain = model.generate("abc the<|im_start|>", sampling=sampling)
        assert tuple(written(made)) == plain.token_ids
        assert made.soft_steps == 0


def test_a_sure_model_thinks_softly_what_it_would_have_said():
    model = chain_model("<|im_start|>abcdefg<|im_end|>hij")
    model.model.lm_head.weight.mul_(1e3)
    made = SoftThinking(think_token="<|im_start|>", end_think_token="<|im_end|>").generate(
        model, "<|im_start|>", sampling=SamplingParams(max_tokens=40)
    )
    assert (made.thinking, made.text, made.finish_reason) == ("abcdefg", "hij", "eos")
    assert made.soft_steps == 5  # abc is one token
    assert made.think_finish == "stop"


def test_soft_thinking_never_switches(babbler):
    made = SoftThinking().generate(babbler, PROMPT, sampling=SamplingParams(max_tokens=30))
    closed = [d.locked for d in made.trace]
    assert made.switches == 0
    assert all((d.soft == 1.0) is not locked for d, locked in zip(made.trace, closed, strict=True))


@settings(max_examples=12)
@given(
    seeds=st.lists(st.integers(0, 10**6), min_size=2, max_size=5),
    window=st.integers(0, 4),
    c_max=st.one_of(st.none(), st.integers(1, 3)),
)
def test_a_batch_equals_single_runs_early_finishers_included(reasoner, seeds, window, c_max):
    method = SwiReasoning(window=window, c_max=c_max, answer_budget=9, **SHORT)
    prompts = [f"<user>{'3+4*'[: seed % 3 * 2]}7=?<assistant><think>" for seed in seeds]
    each = [SamplingParams(max_tokens=24, temperature=1.0, seed=seed) for seed in seeds]
    batch = method.generate_many(reasoner, prompts, None, each)
    for prompt, sampling, made in zip(prompts, each, batch, strict=True):
        single = method.generate(reasoner, prompt, None, sampling)
        assert written(made) == written(single)
        assert (made.text, made.finish_reason) == (single.text, single.finish_reason)
        assert made.tokens == single.tokens
        assert made.ledger.totals().generated == single.ledger.totals().generated


def test_over_a_full_cache_nothing_changes(restless):
    method = SwiReasoning(window=2, math_tokens="none")
    assert isinstance(method, Over)
    sampling = SamplingParams(max_tokens=20, temperature=1.0, seed=5)
    alone = method.generate(restless, PROMPT, sampling=sampling)
    over = method.over(FullCache()).generate(restless, PROMPT, sampling=sampling)
    assert written(over) == written(alone)
    assert over.ledger.totals().prompt_new == alone.ledger.totals().prompt_new


@pytest.mark.model
def test_a_real_model_thinks_between_reserved_tokens(model):
    method = SwiReasoning(
        window=4, c_max=2, think_token="<jupyter_start>", end_think_token="<jupyter_output>"
    )
    chat = [{"role": "user", "content": "What is 2 + 3?"}]
    made = method.generate(model, chat, sampling=SamplingParams(max_tokens=16, ignore_eos=True))
    assert made.soft_steps > 0
    assert made.switches >= 1
    assert made.tokens["forced"] > 0
    assert made.think_finish == "forced"
    assert made.text
    assert made.gauges.kv_bytes == pytest.approx(
        (len(made.trace) + made.ledger.totals().prompt_new - 1) * 30 * 2 * 3 * 64 * 4
    )


def test_random_switching_switches_as_often_as_it_is_told(tireless):
    method = RandomSwitching(5, 20, SwiReasoning(math_tokens="none"))
    made = method.generate(tireless, PROMPT, sampling=SamplingParams(max_tokens=20, seed=4))
    assert {t for t, d in enumerate(made.trace) if d.switched} == method.plan(4)
    assert len(method.plan(4)) == 5
    assert method.plan(4) != method.plan(5)


def test_formula_tokens_are_pieces_of_letters_digits_and_signs(babbler):
    ids = formula_ids(babbler.tokenizer)
    known = babbler.tokenizer.get_vocab()
    assert {known[text] for text in ("a", "Z", "7", "+", "\\", "(")} <= ids
    assert not {known[text] for text in ("<think>", "\n", "?", ";")} & ids
    made = SwiReasoning(window=0).generate(babbler, PROMPT, sampling=SamplingParams(max_tokens=40))
    for each in made.trace:
        assert each.token not in ids or each.soft == 0 or each.anchor == "end_think"


# --- results and books --------------------------------------------------------------------------


def test_the_markers_split_thinking_and_answer(reasoner):
    made = SwiReasoning(start_mode="explicit", window=10**6).generate(
        reasoner, "<user>3+4=?<assistant>", sampling=SamplingParams(max_tokens=60)
    )
    plain = reasoner.generate(PROMPT, sampling=SamplingParams(max_tokens=60))
    assert f"{made.thinking}</think>{made.text}" == plain.text
    assert made.tokens["thinking"] + made.tokens["answer"] == len(plain.token_ids)
    assert made.token_ids == plain.token_ids[made.tokens["thinking"] :][: len(made.token_ids)]
    assert isinstance(made, ThinkResult)
    assert isinstance(SwiReasoning(), Decoder)


def test_injected_tokens_are_booked_as_forced(tireless):
    method = SwiReasoning(window=0, c_max=1, answer_budget=9, lock_on_injected=True, **SHORT)
    made = method.generate(tireless, PROMPT, sampling=SamplingParams(max_tokens=60))
    total = made.ledger.totals()
    assert total.forced == made.tokens["forced"] == sum(d.injected for d in made.trace) > 0
    assert total.generated + total.forced == len(made.trace)
    assert made.think_finish == "forced"
    assert total.flops > 0
    think, answer = (made.ledger.totals(stage=stage) for stage in ("think", "answer"))
    assert think.generated == made.tokens["thinking"]
    assert answer.generated == made.tokens["answer"]
    assert made.ledger.totals(stage="prompt").prompt_new == len(
        tireless.tokenizer(PROMPT)["input_ids"]
    )


def test_tokens_fall_with_the_limit_of_switches(tireless):
    lengths = []
    for c_max in (1, 2, 4, 8, None):
        method = SwiReasoning(
            window=3, c_max=c_max, answer_budget=6, lock_on_injected=True, **SHORT
        )
        made = method.generate(tireless, PROMPT, sampling=SamplingParams(max_tokens=200))
        lengths.append(made.tokens["thinking"])
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-2]


@pytest.mark.parametrize("tokens", [1, 7, 30])
def test_a_budget_bounds_what_is_sampled(tireless, tokens):
    account = Account.open(Budget(tokens=tokens))
    made = SwiReasoning(window=1).generate(
        tireless, PROMPT, sampling=SamplingParams(max_tokens=50), account=account
    )
    assert made.ledger.totals().generated == tokens
    assert made.finish_reason == "budget"
    assert account.meter is not None
    assert account.meter.remaining() == 0


def test_a_budget_of_thinking_closes_it_and_leaves_an_answer(tireless):
    method = SwiReasoning(window=1, **SHORT)
    for budget in (
        Budget(tokens=20, stages={"think": 8, "answer": 12}),
        Budget(tokens=20, stages={"answer": 12}),
        Budget(tokens=8, counts="think"),
    ):
        made = method.generate(tireless, PROMPT, budget, SamplingParams(max_tokens=24))
        assert made.ledger.totals(stage="think").generated == 8
        assert made.tokens["forced"] == 2
        assert made.tokens["answer"] > 0
        assert made.think_finish == "forced"


def test_a_failing_run_gives_its_budget_back():
    network = tiny_network()
    network.lm_head.weight[3, 0] = float("nan")
    model = LocalModel(network, tiny_model().tokenizer, "broken")
    account = Account.open(Budget(tokens=20))
    method = SwiReasoning(think_token="<|im_start|>", end_think_token="<|im_end|>")
    with pytest.raises((ModelError, CapabilityError)):
        method.generate(model, "abc", sampling=SamplingParams(max_tokens=9), account=account)
    assert account.meter is not None
    assert account.meter.remaining() == 20


def test_a_text_that_ends_without_a_mark_is_the_answer():
    model = chain_model("<|im_start|>abcdefg")
    method = SwiReasoning(
        start_mode="explicit", think_token="<|im_start|>", end_think_token="<|im_end|>"
    )
    made = method.generate(model, "<|im_start|>", sampling=SamplingParams(max_tokens=20))
    assert (made.thinking, made.text, made.think_finish) == ("", "abcdefg", "eos")
    assert made.token_ids[-1] in model.eos_ids
    assert made.ledger.totals(stage="think").generated == made.tokens["thinking"]


def test_an_account_without_a_meter_gets_the_budget(tireless):
    account = Account(method="mine")
    made = SwiReasoning(window=1).generate(
        tireless, PROMPT, Budget(tokens=5), SamplingParams(max_tokens=50), account=account
    )
    assert made.ledger is account.ledger
    assert made.ledger.totals().generated == 5
    assert {entry.method for entry in made.ledger} == {"mine"}


def test_log_probabilities_are_those_of_the_unfiltered_model(reasoner):
    sampling = SamplingParams(max_tokens=60, logprobs=True)
    made = SwiReasoning(start_mode="explicit", window=10**6).generate(
        reasoner, PROMPT, sampling=sampling
    )
    plain = reasoner.generate(PROMPT, sampling=sampling)
    assert made.logprobs is not None
    assert plain.logprobs is not None
    assert len(made.logprobs) == len(made.token_ids)
    assert made.logprobs == pytest.approx(plain.logprobs[-len(made.logprobs) :], abs=1e-4)


def test_stop_strings_end_the_answer_only(says):
    model = says("7")
    method = SwiReasoning(**SHORT)
    made = method.generate(
        model,
        PROMPT,
        Budget(tokens=4, counts="think"),
        SamplingParams(max_tokens=20, stop=("77",), include_stop=False),
    )
    assert made.thinking == "7777"
    assert (made.text, made.finish_reason) == ("<answer>", "stop")


def test_thinking_is_opened_unless_the_prompt_did(babbler):
    method = SwiReasoning(window=1)
    sampling = SamplingParams(max_tokens=12)
    opened = method.generate(babbler, PROMPT, sampling=sampling)
    bare = method.generate(babbler, PROMPT.removesuffix("<think>"), sampling=sampling)
    assert written(opened) == written(bare)


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"alpha0": 1.5}, "alpha0=1.5"),
        ({"beta0": -0.1}, "beta0=-0.1"),
        ({"alpha0": float("nan")}, "alpha0=nan"),
        ({"window": -1}, "window=-1"),
        ({"window": 2.5}, "window=2.5"),
        ({"c_max": 0}, "c_max=0"),
        ({"c_max": 1.5}, "c_max=1.5"),
        ({"max_switch_count": True}, "max_switch_count=True"),
        ({"c_max": 2, "max_switch_count": 1}, "half of the first"),
        ({"top_k_soft": 0}, "top_k_soft=0"),
        ({"start_mode": "dreaming"}, "start_mode"),
        ({"math_tokens": "all"}, "math_tokens"),
        ({"newline_token": ""}, "newline_token"),
        ({"think_token": "<think>"}, "give both"),
    ],
)
def test_knobs_out_of_range_are_named(knobs, match):
    with pytest.raises(InputError, match=match):
        SwiReasoning(**knobs)


def test_an_answer_budget_that_does_not_hold_its_prefix_is_refused(babbler):
    with pytest.raises(BudgetError, match="answer_budget=0"):
        SwiReasoning(answer_budget=0)
    method = SwiReasoning(c_max=2, answer_budget=3, **SHORT)
    with pytest.raises(BudgetError, match="at least 4"):
        method.generate(babbler, PROMPT)


def test_the_published_knob_is_half_of_the_papers():
    assert SwiReasoning(max_switch_count=3).limit == SwiReasoning(c_max=6).limit == 6
    assert SwiReasoning().limit is None


def test_markers_must_be_one_token_each_and_differ(babbler):
    with pytest.raises(InputError, match="takes 5 tokens"):
        SwiReasoning(think_token="begin", end_think_token="</think>").generate(babbler, PROMPT)
    with pytest.raises(InputError, match="same token"):
        SwiReasoning(think_token="<think>", end_think_token="<think>").generate(babbler, PROMPT)
    with pytest.raises(InputError, match="end_think_token=9999 is outside"):
        SwiReasoning(think_token=3, end_think_token=9999).generate(babbler, PROMPT)
    with pytest.raises(InputError, match="think_token= and end_think_token="):
        SwiReasoning().generate(tiny_model(), "abc")


def test_markers_may_be_token_ids(babbler):
    known = babbler.tokenizer.get_vocab()
    by_id = SwiReasoning(
        window=1, think_token=known["<think>"], end_think_token=known["</think>"]
    ).generate(babbler, PROMPT, sampling=SamplingParams(max_tokens=12))
    by_name = SwiReasoning(window=1).generate(
        babbler, PROMPT, sampling=SamplingParams(max_tokens=12)
    )
    assert written(by_id) == written(by_name)


def test_the_official_newline_must_be_in_the_vocabulary(babbler):
    with pytest.raises(InputError, match="newline_token='official'"):
        SwiReasoning(newline_token="official").generate(babbler, PROMPT)


def test_a_signal_that_the_tokenizer_cannot_write_is_named(babbler):
    method = SwiReasoning(c_max=2, termination_text="</think>schließlich")
    with pytest.raises(InputError, match="termination_text"):
        method.generate(babbler, PROMPT)


def test_an_endpoint_is_refused(babbler):
    with serving(babbler) as server:
        model = EndpointModel(server.url, MODEL, tokenizer=babbler.tokenizer, api_key="none")
        for method in (SwiReasoning(), SoftThinking(), RandomSwitching()):
            with pytest.raises(CapabilityError, match="local model"):
                method.generate(model, "abc")


def test_a_prompt_that_fills_the_window_is_refused(babbler):
    with pytest.raises(InputError, match="nothing to generate"):
        SwiReasoning().generate(babbler, PROMPT, sampling=SamplingParams(max_tokens=0))


@pytest.mark.parametrize("given_", [(3, 3), (-1, 5), (5, 2**21)])
def test_random_switches_must_fit(given_):
    with pytest.raises(InputError, match="switches"):
        RandomSwitching(*given_)


def test_one_sampling_and_one_account_a_prompt(babbler):
    with pytest.raises(InputError, match="2 prompts"):
        SwiReasoning().generate_many(babbler, [PROMPT, PROMPT], None, [SamplingParams()])
