"""How well a searcher answers: greedy and sampled, and when its thinking is cut short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from outlay.errors import InputError
from outlay.evals.base import Problem
from outlay.testbeds.searcher.tasks import HiddenLeaf
from outlay.testbeds.searcher.tokenizer import END_THINK, EOS
from outlay.testbeds.searcher.trees import read_steps

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

LONGEST = 140
CUTS = (0, 5, 10, 20, 30)
ANSWER = 3  # tokens: the leaf, the end, and one to spare


@dataclass(frozen=True)
class Row:
    """Results in one mode.

    Args:
        mode: "greedy", "sampled" or "cut at N".
        n: problems.
        accuracy: share answered right.
        thinking: mean tokens of thinking, the end tag not counted.
        right_steps: share of moves that follow an edge, or begin at the root.
        repeated: share of walks that end in a leaf seen before.
    """

    mode: str
    n: int
    accuracy: float
    thinking: float
    right_steps: float
    repeated: float


@torch.inference_mode()
def complete(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    longest: int = LONGEST,
    sample: bool = False,
    batch_size: int = 128,
) -> list[str]:
    """Completions of `prompts`, tags kept, cut after the end-of-text tag."""
    texts = []
    ways: dict[str, Any] = {"do_sample": sample}
    if sample:
        ways |= {"temperature": 1.0, "top_k": 0}
    for start in range(0, len(prompts), batch_size):
        inputs = tokenizer(
            list(prompts[start : start + batch_size]), return_tensors="pt", padding=True
        ).to(model.device)
        output_BT = model.generate(**inputs, max_new_tokens=longest, **ways)
        for text in tokenizer.batch_decode(output_BT[:, inputs["input_ids"].shape[1] :]):
            head, ended, _ = text.partition(EOS)
            texts.append(head + ended)
    return texts


def table(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, n: int = 400, seed: int = 10
) -> list[Row]:
    """Results on `n` held-out problems.

    Raises:
        InputError: for no problems.
    """
    if n < 1:
        raise InputError("no problems to measure; give at least one")
    task = HiddenLeaf()
    problems = task.sample(seed, n)
    prompts = [task.prompt(problem, "") for problem in problems]
    rows = []
    torch.manual_seed(seed)
    greedy = complete(model, tokenizer, prompts)
    for mode, texts in (
        ("greedy", greedy),
        ("sampled", complete(model, tokenizer, prompts, sample=True)),
    ):
        rows.append(_row(mode, tokenizer, task, problems, texts))
    for cut in CUTS:
        heads = [_cut(tokenizer, text, cut) + END_THINK for text in greedy]
        joined = [prompt + head for prompt, head in zip(prompts, heads, strict=True)]
        ends = complete(model, tokenizer, joined, longest=ANSWER)
        texts = [head + end for head, end in zip(heads, ends, strict=True)]
        rows.append(_row(f"cut at {cut}", tokenizer, task, problems, texts))
    return rows


def _thinking(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text.split(END_THINK)[0], add_special_tokens=False)["input_ids"]
    return ids


def _cut(tokenizer: PreTrainedTokenizerFast, text: str, tokens: int) -> str:
    """The first tokens of a thinking; tags in it are not cut in two."""
    return str(tokenizer.decode(_thinking(tokenizer, text)[:tokens]))


def _row(
    mode: str,
    tokenizer: PreTrainedTokenizerFast,
    task: HiddenLeaf,
    problems: Sequence[Problem],
    texts: Sequence[str],
) -> Row:
    right = tokens = 0.0
    good = moves = begun = repeated = 0
    for problem, text in zip(problems, texts, strict=True):
        right += task.verify(problem, text) if END_THINK in text else 0.0
        tokens += len(_thinking(tokenizer, text))
        steps = read_steps(task.puzzle(problem), text.split(END_THINK)[0])
        good, moves = good + steps.right, moves + steps.moves
        begun, repeated = begun + steps.walks, repeated + steps.repeated
    n = len(problems)
    return Row(
        mode, n, right / n, tokens / n, good / moves if moves else 1.0, repeated / max(1, begun)
    )
