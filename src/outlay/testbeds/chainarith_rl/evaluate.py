"""How well a policy answers: accuracy, tokens and styles by number of operations.

`natural` lets the policy choose its style; the style modes open that tag, and the tag modes open a
budget tag. `cuts` forces the answer after a number of thinking tokens. All problems are held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from outlay.errors import InputError
from outlay.testbeds.chainarith_rl.corpus import FORCED_END, MAX_OPS
from outlay.testbeds.chainarith_rl.problems import problems
from outlay.testbeds.chainarith_rl.verify import Verdict, verify
from outlay.testbeds.reasoner.chains import ChainProblem
from outlay.testbeds.reasoner.tokenizer import (
    ANSWER,
    BUDGET_TAGS,
    END_THINK,
    FORMATS,
    render_prompt,
)

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

# Shapes: B rows, T tokens.
MAX_NEW = 112  # the longest exact completion has 103 tokens
MODES = ("natural", *FORMATS, *(tag.strip("<>") for tag in BUDGET_TAGS))
CUTS = (8, 16, 32, 64)


@dataclass(frozen=True)
class Row:
    """Results of one mode at one temperature and one difficulty.

    Args:
        mode: see `MODES`.
        temperature: 0 is greedy.
        ops: number of operations of the problems.
        n: number of problems.
        accuracy: share answered right.
        tokens: mean tokens of completions, opened tags and `<eos>` included.
        truncated: share that never ended.
        styles: share of each style among the completions.
        lengths: tokens of every completion.
    """

    mode: str
    temperature: float
    ops: int
    n: int
    accuracy: float
    tokens: float
    truncated: float
    styles: dict[str, float]
    lengths: tuple[int, ...]


@torch.inference_mode()
def complete(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    temperature: float = 0.0,
    seed: int = 0,
    max_new_tokens: int = MAX_NEW,
    batch_size: int = 128,
) -> list[list[int]]:
    """Completions as token ids up to `<eos>`; greedy at temperature 0.

    Raises:
        InputError: for a negative temperature.
    """
    if temperature < 0:
        raise InputError(f"temperature={temperature}; must be >= 0")
    torch.manual_seed(seed)
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0}
        if temperature
        else {"do_sample": False}
    )
    eos = tokenizer.eos_token_id
    found: list[list[int]] = []
    for start in range(0, len(prompts), batch_size):
        inputs = tokenizer(
            list(prompts[start : start + batch_size]), return_tensors="pt", padding=True
        )
        output_BT = model.generate(**inputs, max_new_tokens=max_new_tokens, **sampling)
        rows = output_BT[:, inputs["input_ids"].shape[1] :].tolist()
        found += [row[: row.index(eos) + 1] if eos in row else row for row in rows]
    return found


def judge(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    mode: str,
    chains: Sequence[ChainProblem],
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Verdict]:
    """Verdicts on one completion of every problem, in one mode.

    Raises:
        InputError: for an unknown mode.
    """
    if mode not in MODES:
        raise InputError(f"mode {mode!r}; known are {', '.join(MODES)}")
    opened = "" if mode == "natural" else f"<{mode}>"
    prompts = [render_prompt(chain.question) + opened for chain in chains]
    rows = complete(model, tokenizer, prompts, temperature, seed)
    return [
        verify(ids, chain.answer, prefill=opened) for ids, chain in zip(rows, chains, strict=True)
    ]


def _sum_up(mode: str, temperature: float, ops: int, verdicts: Sequence[Verdict]) -> Row:
    n = len(verdicts)
    lengths = tuple(verdict.tokens for verdict in verdicts)
    named = [verdict.style or "none" for verdict in verdicts]
    return Row(
        mode=mode,
        temperature=temperature,
        ops=ops,
        n=n,
        accuracy=sum(verdict.right for verdict in verdicts) / n,
        tokens=sum(lengths) / n,
        truncated=sum(verdict.truncated for verdict in verdicts) / n,
        styles={style: named.count(style) / n for style in (*FORMATS, "none")},
        lengths=lengths,
    )


def measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    mode: str,
    ops: tuple[int, int] = (1, MAX_OPS),
    temperature: float = 0.0,
    n: int = 100,
    seed: int = 0,
) -> list[Row]:
    """One row per number of operations, of `n` held-out problems each.

    Args:
        model: to measure.
        tokenizer: of the model.
        mode: see `MODES`.
        ops: fewest and most operations.
        temperature: 0 is greedy.
        n: problems per number of operations.
        seed: of problems and sampling.

    Raises:
        InputError: for an unknown mode, or problems that cannot be sampled.
    """
    span = ops[1] - ops[0] + 1
    chains = problems(n * span, seed, ops, "heldout")
    verdicts = judge(model, tokenizer, mode, chains, temperature, seed)
    return [_sum_up(mode, temperature, ops[0] + at, verdicts[at::span]) for at in range(span)]


def table(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, n: int = 100, seed: int = 0
) -> list[Row]:
    """All modes, greedy and at temperature 1, for every number of operations."""
    return [
        row
        for mode in MODES
        for temperature in (0.0, 1.0)
        for row in measure(model, tokenizer, mode, temperature=temperature, n=n, seed=seed)
    ]


def cuts(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, n: int = 100, seed: int = 0
) -> dict[int, float]:
    """Accuracy of greedy answers when sampled thinking is cut after a number of tokens.

    Thinking is sampled at temperature 1 over all difficulties. What ended before the cut keeps its
    own end.
    """
    chains = problems(n * MAX_OPS, seed, split="heldout")
    prompts = [render_prompt(chain.question) for chain in chains]
    thoughts = complete(model, tokenizer, prompts, 1.0, seed)
    end = tokenizer.convert_tokens_to_ids(END_THINK)
    right = {}
    for cut in CUTS:
        opened = []
        for ids in thoughts:
            thinking = ids[: ids.index(end)] if end in ids else ids
            ended = end in ids and len(thinking) <= cut
            kept = tokenizer.decode(thinking[:cut])
            opened.append(kept + (END_THINK + ANSWER if ended else FORCED_END))
        texts = [prompt + text for prompt, text in zip(prompts, opened, strict=True)]
        answers = complete(model, tokenizer, texts, max_new_tokens=4)
        verdicts = [
            verify(ids, chain.answer, prefill=text)
            for ids, chain, text in zip(answers, chains, opened, strict=True)
        ]
        right[cut] = sum(verdict.right for verdict in verdicts) / len(verdicts)
    return right
