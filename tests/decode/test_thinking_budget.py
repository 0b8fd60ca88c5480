"""Thinking budgets in sessions: every bound, every count, every refusal."""

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from completions_server import MODEL, serving
from outlay.budget import Budget
from outlay.decode.base import Decoder, ThinkResult
from outlay.decode.delimiters import resolve
from outlay.decode.plain import NoThinking, PlainDecoder
from outlay.decode.thinking_budget import ThinkingBudget
from outlay.errors import BudgetError, CapabilityError, InputError
from outlay.models.base import Account, Capabilities, SamplingParams
from outlay.models.endpoint import EndpointModel
from outlay.models.local import LocalModel
from outlay.testbeds.reasoner import ChainArith

PROMPT = "<user>3+4=?<assistant><think>"
PREFIX = "\n</think><answer>"
Says = Callable[[str], LocalModel]


def spent_thinking(result: ThinkResult, wait: int = 1) -> int:
    """What B bounds, from the books alone."""
    total = result.ledger.totals(stage="think")
    assert total.forced == result.waits * wait
    return total.generated + total.forced


# --- bounds -------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    limit=st.integers(2, 14),
    n_wait=st.sampled_from([0, 1, 3, math.inf]),
    min_think=st.integers(0, 6),
    min_by=st.sampled_from(["mask", "wait"]),
    seeds=st.lists(st.integers(0, 10**6), min_size=2, max_size=4),
)
def test_no_branch_exceeds_its_budget_and_a_batch_equals_single_runs(
    restless, limit, n_wait, min_think, min_by, seeds
):
    decoder = ThinkingBudget(
        max_think=limit, n_wait=n_wait, min_think=min(min_think, limit), min_by=min_by, max_answer=4
    )
    prompts = [f"<user>{seed % 100}=?<assistant><think>" for seed in seeds]
    each = [SamplingParams(temperature=1.0, seed=seed) for seed in seeds]
    batch = decoder.generate_many(restless, prompts, None, each)
    for prompt, sampling, result in zip(prompts, each, batch, strict=True):
        assert spent_thinking(result) <= limit
        assert result.ledger.totals(stage="answer").generated <= 4
        single = decoder.generate(restless, prompt, None, sampling)
        for name in ("text", "thinking", "token_ids", "think_finish", "finish_reason", "waits"):
            assert getattr(single, name) == getattr(result, name), name
        assert single.tokens == result.tokens
        assert single.ledger.totals().all == result.ledger.totals().all


def test_a_model_that_never_stops_is_cut_at_b_and_answers(babbler):
    result = ThinkingBudget(max_think=30, max_answer=7).generate(babbler, PROMPT)
    prefix = babbler.count(PREFIX)
    assert result.think_finish == "length"
    assert result.tokens == {"thinking": 30, "forced": prefix, "answer": 7}
    produced = result.ledger.totals()
    assert produced.generated + produced.forced == 30 + prefix + 7
    assert len(result.token_ids) == 7


def test_one_that_stops_at_once_is_continued_exactly_n_wait_times(says: Says):
    for waits in (0, 1, 4):
        decoder = ThinkingBudget(max_think=50, n_wait=waits, max_answer=3)
        result = decoder.generate(says("</think>"), PROMPT)
        assert result.waits == waits
        assert result.thinking == "Wait" * waits
        rounds = [e for e in result.ledger if e.stage == "think" and e.generated]
        assert len(rounds) == waits + 1


def test_waits_stop_when_no_further_one_fits(says: Says):
    # Each round samples its marker (1 token), each wait appends 1: after k waits 2k + 1 are used.
    result = ThinkingBudget(max_think=8, n_wait=math.inf, max_answer=3).generate(
        says("</think>"), PROMPT
    )
    assert result.waits == 3
    assert spent_thinking(result) == 7
    assert result.think_finish == "stop"


def test_unlimited_waits_use_the_budget_up(restless):
    decoder = ThinkingBudget(max_think=40, n_wait=math.inf, max_answer=2)
    for seed in range(4):
        result = decoder.generate(restless, PROMPT, None, SamplingParams(temperature=1, seed=seed))
        assert 39 <= spent_thinking(result) <= 40


@pytest.mark.parametrize("text", ["</think>", "<eos>"])
def test_every_way_of_stopping_is_continued(says: Says, text: str):
    result = ThinkingBudget(max_think=50, n_wait=2, max_answer=3).generate(says(text), PROMPT)
    assert result.waits == 2
    assert "<eos>" not in result.thinking


def test_end_of_text_while_thinking_still_gives_an_answer(says: Says):
    result = ThinkingBudget(max_think=50, max_answer=3).generate(says("<eos>"), PROMPT)
    assert result.think_finish == "eos"
    assert result.thinking == ""
    # Closed by force, but not cut: no "Final Answer:".
    assert result.tokens["forced"] == 3


def test_min_think_by_mask_delays_the_end(says: Says):
    result = ThinkingBudget(max_think=20, min_think=6, max_answer=2).generate(
        says("</think>"), PROMPT
    )
    assert result.tokens["thinking"] == 7  # six others, then the marker
    assert result.think_finish == "stop"
    assert says("</think>").count(result.thinking) == 6


def test_min_think_by_wait_appends_until_it_is_reached(says: Says):
    decoder = ThinkingBudget(max_think=20, min_think=6, min_by="wait", max_answer=2)
    result = decoder.generate(says("</think>"), PROMPT)
    assert result.waits == 3
    assert spent_thinking(result) >= 6


# --- counts -------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    st.integers(3, 30),
    st.integers(0, 4),
    st.integers(0, 10**6),
    st.sampled_from(["Wait", "Wait\n", "Hold on: "]),
)
def test_forced_tokens_are_the_waits_the_newline_and_the_answer_prefix(
    restless, limit, n_wait, seed, wait
):
    cost = restless.count(wait)
    if limit <= cost:
        limit += cost
    decoder = ThinkingBudget(
        max_think=limit, n_wait=n_wait, wait=wait, overthink_prefix="So: ", max_answer=2
    )
    result = decoder.generate(restless, PROMPT, None, SamplingParams(temperature=1, seed=seed))
    assert spent_thinking(result, cost) <= limit
    closing = result.tokens["forced"] - result.waits * cost
    kept = not closing  # the model closed by itself, and its marker stayed
    assert not (kept and result.think_finish != "stop")
    if not kept:
        newline = not (PROMPT + result.thinking).endswith("\n")
        cut = result.think_finish == "length"
        text = "\n" * newline + "</think><answer>" + ("\nSo: " if cut else "")
        assert closing == restless.count(text)
    totals = result.ledger.totals()
    assert totals.forced == result.tokens["forced"]
    assert totals.generated == result.tokens["thinking"] + result.tokens["answer"]
    assert totals.discarded == 0


def test_stages_are_booked_apart(babbler):
    result = ThinkingBudget(max_think=9, max_answer=5).generate(babbler, PROMPT)
    assert result.ledger.totals(stage="think").generated == 9
    assert result.ledger.totals(stage="answer").generated == 5
    assert result.ledger.totals(stage="answer").forced == babbler.count(PREFIX)
    assert result.ledger.totals().prompt_new == babbler.count(PROMPT)


# --- budgets ------------------------------------------------------------------------------------


def test_a_staged_budget_is_honoured(babbler):
    budget = Budget(tokens=40, stages={"think": 25, "answer": 15})
    result = ThinkingBudget().generate(babbler, PROMPT, budget)
    assert result.tokens["thinking"] == 25
    assert result.tokens["answer"] == 15


def test_an_unsplit_budget_keeps_a_quarter_for_the_answer(babbler):
    result = ThinkingBudget().generate(babbler, PROMPT, Budget(tokens=40))
    assert result.tokens["thinking"] == 30
    assert result.tokens["answer"] == 10


def test_a_thinking_budget_leaves_the_answer_free(babbler):
    budget = Budget(tokens=12, counts="think")
    result = ThinkingBudget(max_answer=20).generate(babbler, PROMPT, budget)
    assert result.tokens["thinking"] == 12
    assert result.tokens["answer"] == 20


def test_a_budget_of_everything_counts_prompt_and_forced_tokens(babbler):
    for tokens in (40, 60, 100):
        result = ThinkingBudget().generate(babbler, PROMPT, Budget(tokens=tokens, counts="all"))
        assert result.ledger.totals().all == tokens


@settings(max_examples=20)
@given(
    tokens=st.integers(1, 60),
    counts=st.sampled_from(["generated", "think"]),
    limit=st.one_of(st.none(), st.integers(0, 60)),
    seed=st.integers(0, 999),
)
def test_no_setting_overspends_a_budget(restless, tokens, counts, limit, seed):
    budget = Budget(tokens=tokens, counts=counts)
    account = Account.open(budget)
    sampling = SamplingParams(temperature=1, seed=seed)
    result = ThinkingBudget(max_think=limit, max_answer=9).generate(
        restless, PROMPT, budget, sampling, account=account
    )
    stage = "think" if counts == "think" else None
    assert result.ledger.totals(stage=stage).generated <= tokens
    assert account.meter is not None
    assert account.meter.spent <= tokens


def test_a_budget_tightens_an_accounts_larger_meter(babbler):
    account = Account.open(Budget(tokens=1000))
    result = ThinkingBudget().generate(babbler, PROMPT, Budget(tokens=20), account=account)
    assert result.ledger.totals().generated == 20


def test_what_others_spent_of_a_shared_meter_is_gone(babbler):
    account = Account.open(Budget(tokens=60))
    first = ThinkingBudget().generate(babbler, PROMPT, account=account)
    assert first.ledger.totals().generated == 60
    with pytest.raises(BudgetError, match="nothing is left for an answer"):
        ThinkingBudget().generate(babbler, PROMPT, account=account)


def test_time_that_runs_out_gives_what_there_is(babbler):
    ThinkingBudget(max_think=1500).generate(babbler, PROMPT)  # the first call is slower
    start = time.monotonic()
    whole = ThinkingBudget(max_think=1500).generate(babbler, PROMPT)
    taken = time.monotonic() - start
    start = time.monotonic()
    budget = Budget(seconds=taken / 3)
    result = ThinkingBudget(max_think=1500).generate(babbler, PROMPT, budget)
    assert result.finish_reason == "budget"
    assert result.ledger.totals().generated < whole.ledger.totals().generated
    assert time.monotonic() - start < taken + 5


def test_a_batch_keeps_to_every_prompts_own_budget(babbler):
    prompts = [f"<user>{k}+4=?<assistant><think>" for k in range(3)]
    results = ThinkingBudget().generate_many(babbler, prompts, Budget(tokens=20))
    assert [r.ledger.totals().generated for r in results] == [20, 20, 20]
    hard = ThinkingBudget().generate_many(babbler, prompts, Budget(tokens=20, calls=4))
    assert [r.text for r in hard] == [r.text for r in results]


def test_the_window_is_kept(tokenizer):
    from tiny_networks import tiny_llama

    small = LocalModel(tiny_llama(tokenizer, max_position_embeddings=64), tokenizer, "small")
    result = ThinkingBudget(max_think=500).generate(small, PROMPT)
    totals = result.ledger.totals()
    assert totals.prompt_new + totals.forced + totals.generated == 64
    assert result.tokens["answer"] > 0
    with pytest.raises(InputError, match="shorten the prompt"):
        ThinkingBudget().generate(small, "<user>" + "+" * 54 + PROMPT[6:])


# --- limits that are other methods ---------------------------------------------------------------


@pytest.fixture(scope="module")
def problems():
    task = ChainArith(operations=(2, 6))
    return [(task.prompt(p, ""), p, task) for p in task.sample(0, 10)]


def test_without_a_limit_it_is_plain_generation_split_at_the_marker(reasoner, problems):
    whole = SamplingParams(max_tokens=500)
    decoder = ThinkingBudget()
    results = decoder.generate_many(reasoner, [prompt for prompt, _, _ in problems])
    for (prompt, _, _), result in zip(problems, results, strict=True):
        plain = reasoner.generate(prompt, None, whole)
        assert "</think>" in plain.text
        assert result.thinking + "</think>" + result.text == plain.text
        assert result.tokens["forced"] == 0
        assert result.ledger.totals().generated == plain.ledger.totals().generated


def test_a_budget_of_zero_is_a_direct_answer_after_the_prefix(reasoner, babbler, problems):
    for model in (reasoner, babbler):
        for prompt, _, _ in problems[:3]:
            none = NoThinking(max_answer=8).generate(model, prompt)
            direct = model.generate(prompt + PREFIX, None, SamplingParams(max_tokens=8))
            assert none.text == direct.text
            assert none.thinking == ""
            assert NoThinking(max_answer=8).generate_many(model, [prompt])[0].text == none.text
            assert none.ledger.totals(stage="think").generated == 0


def test_plain_decoding_is_hard_truncation(reasoner, problems):
    prompt, problem, task = problems[-1]
    cut = PlainDecoder().generate(reasoner, prompt, Budget(tokens=5))
    assert len(cut.token_ids) == 5
    assert task.verify(problem, cut.text) == 0
    full = PlainDecoder().generate(reasoner, prompt, Budget(tokens=400))
    assert full.text == reasoner.generate(prompt, None, SamplingParams(max_tokens=400)).text
    assert PlainDecoder(max_tokens=3).generate(reasoner, prompt).ledger.totals().generated == 3


def test_truncation_in_a_batch_equals_truncation_one_by_one(babbler):
    prompts = [f"<user>{k}+4=?<assistant><think>" for k in range(3)]
    together = PlainDecoder().generate_many(babbler, prompts, Budget(tokens=7))
    for prompt, result in zip(prompts, together, strict=True):
        alone = PlainDecoder().generate(babbler, prompt, Budget(tokens=7))
        assert (alone.text, alone.token_ids) == (result.text, result.token_ids)
        assert result.ledger.totals().generated == 7


def test_forcing_keeps_answers_parsable_where_truncation_loses_them(reasoner, problems):
    decoder = ThinkingBudget(max_think=8, overthink_prefix="", newline="", max_answer=4)
    results = decoder.generate_many(reasoner, [prompt for prompt, _, _ in problems])
    assert all(result.text.strip().isdigit() for result in results)


def test_all_three_are_decoders():
    for decoder in (ThinkingBudget(), NoThinking(), PlainDecoder()):
        assert isinstance(decoder, Decoder)


# --- delimiters ----------------------------------------------------------------------------------


def test_delimiters_come_from_the_chat_template(tokenizer):
    found = resolve(tokenizer, None, None, None, None, name="reasoner")
    assert (found.open, found.close, found.answer) == ("<think>", "</think>", "<answer>")
    assert found.prefix == ""  # the tag opens the answer: no "Final Answer:" on top
    assert found.close_id == tokenizer.convert_tokens_to_ids("</think>")


def test_a_chat_and_its_rendering_give_the_same(reasoner):
    chat = ThinkingBudget(max_think=40).generate(reasoner, [{"role": "user", "content": "3+4=?"}])
    text = ThinkingBudget(max_think=40).generate(reasoner, PROMPT)
    ids = ThinkingBudget(max_think=40).generate(reasoner, reasoner.prompt_ids(PROMPT))
    assert (chat.thinking, chat.text) == (text.thinking, text.text) == (ids.thinking, ids.text)


def test_a_tag_quoted_by_the_user_does_not_count_as_open(babbler):
    quoted = [{"role": "user", "content": "what is <think>?"}]
    # The template opens the thinking itself: nothing is added twice.
    result = ThinkingBudget(max_think=4, max_answer=2).generate(babbler, quoted)
    rendered = babbler.render(quoted)
    assert result.ledger.totals().prompt_new == babbler.count(rendered)
    bare = ThinkingBudget(max_think=4, max_answer=2).generate(babbler, "<user>1=?<assistant>")
    assert bare.ledger.totals().prompt_new == babbler.count("<user>1=?<assistant><think>")


def test_any_pair_of_strings_will_do(says: Says):
    pair = {"think_open": "[[", "think_close": "]]", "answer_open": "("}
    cut = ThinkingBudget(max_think=6, max_answer=3, **pair).generate(says("]"), "q", None)
    # Two tokens of "]" make the marker: it stops by itself.
    assert cut.think_finish == "stop"
    assert cut.tokens["thinking"] == 2
    assert cut.text == "]]]"
    long = ThinkingBudget(max_think=6, max_answer=3, **pair).generate(says("a"), "q", None)
    assert long.thinking == "aaaaaa"
    assert long.tokens["forced"] == says("a").count("\n]](")


def test_final_answer_is_announced_where_nothing_else_opens_the_answer(says: Says):
    pair = {"think_open": "[[", "think_close": "]]", "answer_open": ""}
    result = ThinkingBudget(max_think=6, max_answer=3, **pair).generate(says("a"), "q")
    assert result.tokens["forced"] == says("a").count("\n]]\nFinal Answer:")
    tagged = ThinkingBudget(max_think=6, max_answer=3, overthink_prefix="So: ")
    assert tagged.generate(says("a"), PROMPT).tokens["forced"] == says("a").count(PREFIX + "\nSo: ")


def test_other_ends_of_thinking_are_recognised(says: Says):
    decoder = ThinkingBudget(max_think=9, ends=("aaa",), n_wait=1, max_answer=2)
    result = decoder.generate(says("a"), PROMPT)
    assert result.waits == 1
    assert result.think_finish == "stop"
    assert result.thinking == "Wait"


def test_unknown_delimiters_are_refused_naming_the_knob(babbler):
    cases = [
        ({"think_open": "<think>", "think_close": "…"}, "think_close"),
        ({"think_open": "«", "think_close": "</think>"}, "think_open"),
        ({"wait": "Moment…", "n_wait": 1}, "wait"),
        ({"overthink_prefix": "Réponse:"}, "overthink_prefix"),
    ]
    for knobs, name in cases:
        with pytest.raises(InputError, match=name):
            ThinkingBudget(**knobs).generate(babbler, PROMPT)


def test_a_tokenizer_without_think_tags_is_refused_until_they_are_given(tokenizer):
    from tiny_networks import tiny_llama
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {chr(i): i - 32 for i in range(32, 127)} | {"\n": 95, "<eos>": 96}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    core.decoder = decoders.Fuse()
    plain = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")
    model = LocalModel(tiny_llama(plain), plain, "plain")
    with pytest.raises(InputError, match="give think_open= and think_close="):
        ThinkingBudget().generate(model, "1+1")
    decoder = ThinkingBudget(max_think=5, think_open="<plan>", think_close="</plan>", max_answer=2)
    result = decoder.generate(model, "1+1")
    assert result.tokens["thinking"] == 5
    assert result.ledger.totals().prompt_new == len("1+1<plan>")


@pytest.mark.model
def test_custom_tags_work_on_a_model_that_never_saw_them():
    from outlay.models import embedded

    model = embedded.load()
    decoder = ThinkingBudget(
        max_think=12,
        max_answer=6,
        think_open="<reasoning>\n",
        think_close="</reasoning>",
        answer_open="\n<answer>",
        overthink_prefix="",
    )
    chats = [[{"role": "user", "content": f"What is {k} + 2?"}] for k in range(3)]
    results = decoder.generate_many(model, chats)
    for chat, result in zip(chats, results, strict=True):
        assert result.tokens["thinking"] <= 12
        assert result.tokens["answer"] <= 6
        assert result.text.strip()
        single = decoder.generate(model, chat)
        assert (single.thinking, single.text) == (result.thinking, result.text)


# --- endpoints -----------------------------------------------------------------------------------


def remote(url: str, tokenizer: Any, **known: bool) -> EndpointModel:
    model = EndpointModel(url, MODEL, tokenizer=tokenizer, api="completions", api_key="none")
    if known:
        model.capabilities = Capabilities(**known)
    return model


@pytest.mark.server
@pytest.mark.parametrize("kind", ["vllm", "someone"])
def test_over_an_endpoint_the_phases_give_what_the_local_model_gives(
    says: Says, babbler, tokenizer, kind: str
):
    decoder = ThinkingBudget(max_think=14, n_wait=2, max_answer=5)
    for model in (says("</think>"), babbler):
        with serving(model, kind) as server:
            far = remote(server.url, tokenizer, append=True, stop=True)
            there, here = decoder.generate(far, PROMPT), decoder.generate(model, PROMPT)
        assert there.thinking == here.thinking
        assert there.text.startswith(here.text[: len(there.text) // 2])
        assert there.waits == here.waits
        assert spent_thinking(there) <= 14
        assert there.tokens["answer"] == here.tokens["answer"]


@pytest.mark.server
def test_capabilities_are_found_by_looking(babbler, tokenizer):
    with serving(babbler) as server:
        far = remote(server.url, tokenizer)
        result = ThinkingBudget(max_think=6, max_answer=3).generate(far, PROMPT)
        assert result.tokens["thinking"] == 6


@pytest.mark.server
def test_a_server_that_cannot_continue_is_refused_by_name(babbler, tokenizer):
    with serving(babbler) as server:
        far = remote(server.url, tokenizer, stop=True)
        with pytest.raises(CapabilityError, match="append"):
            ThinkingBudget(max_think=6).generate(far, PROMPT)
        far = remote(server.url, tokenizer, stop=True, append=True)
        with pytest.raises(CapabilityError, match="min_tokens"):
            ThinkingBudget(max_think=6, min_think=2).generate(far, PROMPT)
        assert ThinkingBudget(max_think=9, min_think=2, min_by="wait").generate(far, PROMPT).text


@pytest.mark.server
def test_the_servers_own_parameter_takes_one_request(babbler, tokenizer):
    with serving(babbler, "vllm") as server:
        far = remote(server.url, tokenizer)
        decoder = ThinkingBudget(max_think=6, max_answer=10, server="vllm")
        result = decoder.generate(far, PROMPT)
        (request,) = server.requests
    assert request["thinking_token_budget"] == 6
    inner = ThinkingBudget(max_think=6, overthink_prefix="", newline="", max_answer=10)
    here = inner.generate(babbler, PROMPT)
    assert result.thinking == here.thinking
    assert result.tokens["thinking"] == 6 + 1  # and the marker, which the server samples


@pytest.mark.server
def test_a_server_of_another_kind_is_refused(babbler, tokenizer):
    with serving(babbler, "someone") as server:
        far = remote(server.url, tokenizer)
        with pytest.raises(CapabilityError, match="no known limit"):
            ThinkingBudget(max_think=6, server="vllm").generate(far, PROMPT)
    with serving(babbler, "vllm") as server:
        far = remote(server.url, tokenizer)
        with pytest.raises(CapabilityError, match="thinking_budget_tokens"):
            ThinkingBudget(max_think=6, server="llama.cpp").generate(far, PROMPT)
    with pytest.raises(CapabilityError, match="server='client'"):
        ThinkingBudget(max_think=6, server="vllm").generate(babbler, PROMPT)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"max_think": -1}, "max_think=-1"),
        ({"min_think": -1}, "min_think=-1"),
        ({"max_think": 3, "min_think": 4}, "min_think=4 is more than max_think=3"),
        ({"n_wait": -1}, "n_wait=-1"),
        ({"n_wait": 1.5}, "n_wait=1.5"),
        ({"n_wait": math.nan}, "n_wait=nan"),
        ({"n_wait": 1, "wait": ""}, "wait is empty"),
        ({"max_answer": 0}, "max_answer=0"),
        ({"min_by": "hope"}, "min_by"),
        ({"think_close": "</x>"}, "both"),
        ({"think_open": "<x>", "think_close": ""}, "think_close"),
        ({"server": "sglang"}, "server"),
        ({"server": "vllm", "n_wait": 1}, "cannot lengthen"),
    ],
)
def test_bad_knobs_are_refused_with_the_number(knobs, match):
    with pytest.raises(InputError, match=match):
        ThinkingBudget(**knobs)


def test_a_budget_too_small_for_waits_or_min_think_says_so(babbler):
    with pytest.raises(BudgetError, match=r"leave no room for wait='Wait' \(1 tokens\)"):
        ThinkingBudget(max_think=1, n_wait=1).generate(babbler, PROMPT)
    with pytest.raises(BudgetError, match="min_think=30"):
        ThinkingBudget(min_think=30).generate(babbler, PROMPT, Budget(tokens=20))


def test_a_budget_below_the_fixed_parts_says_the_least(babbler):
    fixed = babbler.count(PROMPT) + babbler.count(PREFIX)
    with pytest.raises(BudgetError, match=f"tokens={fixed + 1}"):
        ThinkingBudget().generate(babbler, PROMPT, Budget(tokens=fixed, counts="all"))
    least = ThinkingBudget().generate(babbler, PROMPT, Budget(tokens=fixed + 1, counts="all"))
    assert least.tokens["answer"] == 1


def test_lists_that_do_not_match_are_refused(babbler):
    with pytest.raises(InputError, match="one sampling and one account each"):
        ThinkingBudget().generate_many(babbler, [PROMPT], None, [SamplingParams()] * 2)
    with pytest.raises(InputError, match="max_tokens=0"):
        PlainDecoder(max_tokens=0)
