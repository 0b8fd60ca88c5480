"""The thinking budget inside `model.generate`."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import always, tiny_llama
from transformers import TextIteratorStreamer

from outlay.decode.processor import ThinkingBudgetProcessor
from outlay.decode.thinking_budget import ThinkingBudget
from outlay.errors import BudgetError, InputError
from outlay.models.local import LocalModel
from outlay.testbeds.reasoner import ChainArith

PROMPT = "<user>3+4=?<assistant><think>"
PREFIX = "\n</think><answer>"
PLAIN = {"overthink_prefix": "", "newline": ""}


def complete_ids(
    network: Any, tokenizer: Any, prompts: list[str], processor: Any, **knobs: Any
) -> list[list[int]]:
    """The ids that `generate` writes after each prompt, up to end-of-text."""
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    settings_ = {"max_new_tokens": 60, "do_sample": False, **knobs}
    out_BT = network.generate(**inputs, logits_processor=[processor], **settings_)
    rows = out_BT[:, inputs["input_ids"].shape[1] :].tolist()
    ends = [
        row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else None
        for row in rows
    ]
    return [row[:end] for row, end in zip(rows, ends, strict=True)]


def complete(
    network: Any, tokenizer: Any, prompts: list[str], processor: Any, **knobs: Any
) -> list[str]:
    """What `generate` writes after each prompt, as text."""
    rows = complete_ids(network, tokenizer, prompts, processor, **knobs)
    return [tokenizer.decode(row) for row in rows]


def test_it_writes_what_the_session_writes(reasoner, tokenizer):
    task = ChainArith(operations=(2, 5))
    prompts = [task.prompt(p, "") for p in task.sample(1, 6)]
    for limit in (0, 7, 25, 300):
        decoder = ThinkingBudget(max_think=limit, max_answer=20)
        texts = complete(
            reasoner.model,
            tokenizer,
            prompts,
            decoder.processor(tokenizer, limit),
            max_new_tokens=340,
        )
        for prompt, text in zip(prompts, texts, strict=True):
            result = decoder.generate(reasoner, prompt)
            ending = "</think>" if result.think_finish == "stop" else PREFIX
            assert text.startswith(result.thinking + ending + result.text)


def test_a_model_that_never_stops_is_cut_to_the_token(tokenizer):
    network = always(tokenizer, "a")
    processor = ThinkingBudgetProcessor(tokenizer, 5, overthink_prefix="Final Answer:")
    (text,) = complete(network, tokenizer, [PROMPT], processor, max_new_tokens=25)
    assert text == "aaaaa\n</think><answer>\nFinal Answer:aaa"
    assert processor.forced_tokens() == 17


def test_a_newline_that_is_there_is_not_doubled(tokenizer):
    network = always(tokenizer, "\n")
    processor = ThinkingBudgetProcessor(tokenizer, 2, overthink_prefix="")
    (text,) = complete(network, tokenizer, [PROMPT], processor, max_new_tokens=4)
    assert text == "\n\n</think><answer>"


def test_an_end_becomes_a_wait_exactly_n_times(tokenizer):
    network = always(tokenizer, "</think>")
    for waits in (0, 1, 3):
        processor = ThinkingBudgetProcessor(tokenizer, 40, n_wait=waits)
        (text,) = complete(network, tokenizer, [PROMPT], processor, max_new_tokens=8)
        assert text == "Wait" * waits + "</think>" * (8 - waits)


def test_waits_of_several_tokens_are_written_whole(tokenizer):
    network = always(tokenizer, "</think>")
    processor = ThinkingBudgetProcessor(tokenizer, 10, n_wait=math.inf, wait="Hmm,", **PLAIN)
    (text,) = complete(network, tokenizer, [PROMPT], processor, max_new_tokens=12)
    assert text.startswith("Hmm,Hmm,</think>")  # a third one would not leave room


def test_end_of_text_while_thinking_becomes_the_close(tokenizer):
    network = always(tokenizer, "<eos>")
    (text,) = complete(network, tokenizer, [PROMPT], ThinkingBudgetProcessor(tokenizer, 10))
    assert text == "</think><eos>"


def test_the_end_is_masked_until_min_think(tokenizer):
    network = always(tokenizer, "</think>")
    processor = ThinkingBudgetProcessor(tokenizer, 20, min_think=6)
    (ids,) = complete_ids(network, tokenizer, [PROMPT], processor)
    assert ids.index(tokenizer.convert_tokens_to_ids("</think>")) == 6


@settings(max_examples=15)
@given(
    limit=st.integers(0, 12),
    n_wait=st.sampled_from([0, 1, 2, math.inf]),
    least=st.integers(0, 6),
    seed=st.integers(0, 999),
)
def test_no_row_of_a_sampled_batch_goes_over(restless, tokenizer, limit, n_wait, least, seed):
    if limit < 2:
        n_wait = 0
    processor = ThinkingBudgetProcessor(
        tokenizer, limit, n_wait=n_wait, min_think=min(least, limit), **PLAIN
    )
    torch.manual_seed(seed)
    prompts = [f"<user>{'1+' * k}1=?<assistant><think>" for k in range(3)]
    rows = complete_ids(
        restless.model, tokenizer, prompts, processor, do_sample=True, max_new_tokens=limit + 4
    )
    close = tokenizer.convert_tokens_to_ids("</think>")
    for ids in rows:
        assert min(least, limit) <= ids.index(close) <= limit
        if ids.index(close) == limit:
            assert ids[limit + 1] == tokenizer.convert_tokens_to_ids("<answer>")


def test_rows_of_a_batch_do_not_disturb_each_other(reasoner, tokenizer):
    task = ChainArith(operations=(1, 6))
    prompts = [task.prompt(p, "") for p in task.sample(2, 6)]
    processor = ThinkingBudgetProcessor(tokenizer, 13, n_wait=1, **PLAIN)
    together = complete(reasoner.model, tokenizer, prompts, processor)
    for prompt, text in zip(prompts, together, strict=True):
        (alone,) = complete(reasoner.model, tokenizer, [prompt], processor)
        assert alone == text


def test_beams_may_be_reordered(reasoner, tokenizer):
    task = ChainArith(operations=(2, 5))
    prompts = [task.prompt(p, "") for p in task.sample(3, 4)]
    processor = ThinkingBudgetProcessor(tokenizer, 9, **PLAIN)
    for ids in complete_ids(reasoner.model, tokenizer, prompts, processor, num_beams=3):
        assert ids.index(tokenizer.convert_tokens_to_ids("</think>")) <= 9
        assert tokenizer.convert_tokens_to_ids("<answer>") in ids


def test_a_stream_shows_the_same_text(reasoner, tokenizer):
    processor = ThinkingBudgetProcessor(tokenizer, 6, **PLAIN)
    (whole,) = complete(reasoner.model, tokenizer, [PROMPT], processor)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    reasoner.model.generate(
        **inputs,
        logits_processor=[processor],
        streamer=streamer,
        max_new_tokens=60,
        do_sample=False,
    )
    assert "".join(streamer) == whole


def test_rows_that_do_not_think_are_left_alone(tokenizer):
    network = tiny_llama(tokenizer)
    processor = ThinkingBudgetProcessor(tokenizer, 3)
    prompts = ["<user>3+4=?<assistant>", "<user>1=?<assistant><think></think><answer>"]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    plain_BT = network.generate(**inputs, max_new_tokens=20, do_sample=False)
    plain = tokenizer.batch_decode(plain_BT[:, -20:])
    ours = complete(network, tokenizer, prompts, processor, max_new_tokens=20)
    assert all(text.startswith(mine) for text, mine in zip(plain, ours, strict=True))


def test_thinking_that_the_model_opens_is_counted_from_there(tokenizer):
    network = always(tokenizer, "<think>")
    processor = ThinkingBudgetProcessor(tokenizer, 3, **PLAIN)
    prompts = ["<user>3+4=?<assistant>"]
    (ids,) = complete_ids(network, tokenizer, prompts, processor, max_new_tokens=6)
    opened, closed = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert ids[0] == opened
    assert opened not in ids[1:5]  # it would start the count anew
    assert ids[4] == closed


def test_markers_of_several_tokens_work(tokenizer):
    prompt = "<user>q=?<assistant>"
    size = len(tokenizer.encode(prompt, add_special_tokens=False))
    pair = {"think_open": "[[", "think_close": "]]", "answer_open": "(", "prompt_length": size}
    never = ThinkingBudgetProcessor(tokenizer, 4, overthink_prefix="", **pair)
    (text,) = complete(always(tokenizer, "a"), tokenizer, [prompt], never, max_new_tokens=9)
    assert text == "aaaa\n]](a"
    soon = ThinkingBudgetProcessor(tokenizer, 20, min_think=5, **pair)
    (text,) = complete(always(tokenizer, "]"), tokenizer, [prompt], soon, max_new_tokens=12)
    assert "]]" not in text[:5]
    assert "]]" in text


@pytest.mark.model
def test_every_spelling_of_a_marker_is_masked_before_min_think():
    from outlay.models import embedded

    tokenizer = embedded.load().tokenizer
    processor = ThinkingBudgetProcessor(
        tokenizer, 30, min_think=20, think_open="<plan>", think_close="</plan>", prompt_length=0
    )
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    for thought in ("so.</plan", "so.</", "so. <", "so"):
        ids = tokenizer.encode(thought, add_special_tokens=False)
        scores_BV = processor(torch.tensor([ids]), torch.zeros((1, len(tokenizer))))
        masked = {i for i in range(len(texts)) if scores_BV[0, i] == -math.inf}
        completing = {i for i, text in enumerate(texts) if "</plan>" in thought + text}
        assert masked - {tokenizer.eos_token_id} == completing


def test_bad_knobs_are_refused(tokenizer):
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"max_think": -1}, InputError, "max_think=-1"),
        ({"max_think": 3, "min_think": 4}, InputError, "min_think=4"),
        ({"max_think": 3, "n_wait": -1}, InputError, "n_wait=-1"),
        ({"max_think": 1, "n_wait": 1}, BudgetError, "no room for wait"),
        ({"max_think": 9, "n_wait": 1, "wait": "…"}, InputError, "wait"),
        ({"max_think": 9, "think_open": "<x>"}, InputError, "both"),
    ]
    for knobs, error, match in cases:
        with pytest.raises(error, match=match):
            ThinkingBudgetProcessor(tokenizer, **knobs)


def test_the_decoders_knobs_carry_over(tokenizer):
    network = always(tokenizer, "</think>")
    decoder = ThinkingBudget(n_wait=2, answer_open="", overthink_prefix="", max_answer=3)
    processor = decoder.processor(tokenizer, 30)
    model = LocalModel(network, tokenizer, "stopper")
    (text,) = complete(network, tokenizer, [PROMPT], processor, max_new_tokens=4)
    result = decoder.generate(model, PROMPT)
    assert text.startswith(result.thinking + "</think>")
