"""Local models against transformers' own `generate` and forward pass, same weights and threads.

python benchmarks/models.py [--repeats 5] [--tokens 64] [--threads 2]
"""

from __future__ import annotations

import argparse
import inspect
import textwrap
from typing import Any

import torch

import common
from outlay.models import embedded, scoring
from outlay.models.base import SamplingParams
from outlay.models.kv import segment
from outlay.models.local import LocalModel

PROMPT = "def quicksort(items):\n    "


def generate(model: LocalModel, ids_BT: torch.Tensor, tokens: int) -> Any:
    return model.model.generate(
        ids_BT,
        attention_mask=torch.ones_like(ids_BT),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )


def decoding(exact: LocalModel, fast: LocalModel, tokens: int, repeats: int) -> list[common.Row]:
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
    ids_BT = torch.tensor([exact.prompt_ids(PROMPT)])
    seconds = common.turns(
        {
            "ours": lambda: exact.generate(PROMPT, None, sampling),
            "generate": lambda: generate(exact, ids_BT, tokens),
            "fast": lambda: fast.generate(PROMPT, None, sampling),
        },
        repeats,
    )
    ours = exact.generate(PROMPT, None, sampling).token_ids
    quick = fast.generate(PROMPT, None, sampling).token_ids
    theirs = generate(exact, ids_BT, tokens)[0, ids_BT.shape[1] :].tolist()
    same = list(ours) == theirs
    agree = sum(a == b for a, b in zip(ours, quick, strict=True)) / tokens
    peer = "transformers generate, fp32"
    return [
        common.faster(
            f"exact: {tokens} greedy tokens",
            seconds["ours"],
            seconds["generate"],
            peer,
            f"target >= 1.0; token ids {'identical' if same else 'DIFFER'}",
        ),
        common.faster(
            f"fast: {tokens} greedy tokens",
            seconds["fast"],
            seconds["generate"],
            peer,
            f"target >= 1.5; {agree:.0%} of the positions hold the same token",
        ),
    ]


def forking(exact: LocalModel, tokens: int, repeats: int) -> common.Row:
    """Eight continuations of one 128-token prompt: one prefill against eight."""
    prompt = exact.encode(inspect.getsource(textwrap))[:128]
    sampling = SamplingParams(max_tokens=tokens, temperature=0.8, ignore_eos=True)

    def ours() -> None:
        exact.extend([exact.open(prompt)], sampling, n=8)

    def theirs() -> None:
        torch.manual_seed(0)
        exact.model.generate(
            torch.tensor([prompt] * 8),
            attention_mask=torch.ones((8, len(prompt)), dtype=torch.long),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=True,
            temperature=0.8,
            top_k=0,
            pad_token_id=0,
        )

    seconds = common.turns({"ours": ours, "theirs": theirs}, repeats)
    return common.faster(
        f"8 branches x {tokens} tokens of a 128-token prompt",
        seconds["ours"],
        seconds["theirs"],
        "transformers generate, batch of 8",
        "one prefill, shared by all branches",
    )


def prefill(exact: LocalModel, repeats: int) -> common.Row:
    """Opening a prompt against the plain forward pass that keeps the last logits."""
    ids = exact.encode(inspect.getsource(textwrap))[:256]
    ids_BT = torch.tensor([ids])

    def plain() -> None:
        with torch.inference_mode():
            exact.model(ids_BT, use_cache=True, logits_to_keep=1)

    seconds = common.turns({"ours": lambda: exact.open(ids), "theirs": plain}, repeats)
    return common.faster(
        "prefill of 256 tokens",
        seconds["ours"],
        seconds["theirs"],
        "plain forward",
        "target >= 0.9",
    )


def batched_scoring(exact: LocalModel, repeats: int) -> list[common.Row]:
    """Losses of functions of unequal length, against padded batches in the given order."""
    import statistics as module

    texts = [
        inspect.getsource(value)
        for _, value in inspect.getmembers(module, inspect.isfunction)
        if value.__module__ == "statistics"
    ][:8]
    texts = [text[:800] for text in texts]
    lengths = [exact.count(text) for text in texts]
    groups = list(scoring.batches(lengths, max_tokens=exact.max_score_tokens))
    waste = scoring.padding_waste(lengths, groups)
    width = max(lengths)
    ids_BT = torch.zeros((len(texts), width), dtype=torch.long)
    for i, text in enumerate(texts):
        row = exact.encode(text)
        ids_BT[i, : len(row)] = torch.tensor(row)
    mask_BT = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()

    def padded() -> None:
        with torch.inference_mode():
            for at in range(0, len(texts), 4):
                logits_BTV = exact.model(
                    ids_BT[at : at + 4], attention_mask=mask_BT[at : at + 4], use_cache=False
                ).logits
                torch.nn.functional.cross_entropy(
                    logits_BTV[:, :-1].flatten(0, 1),
                    ids_BT[at : at + 4, 1:].flatten(),
                    reduction="none",
                )

    seconds = common.turns({"ours": lambda: exact.losses(texts), "theirs": padded}, repeats)
    return [
        common.faster(
            f"losses of {len(texts)} functions, {sum(lengths)} tokens",
            seconds["ours"],
            seconds["theirs"],
            "padded batches of 4, in order",
            f"padding waste {waste:.1%}, target < 10 %",
        ),
        common.Row("padding waste of batched scoring", "share", waste, note="target < 0.10"),
    ]


def decode_nll(model: LocalModel, ids: list[int]) -> float:
    """Mean loss of `ids`, fed one token at a time: the path that decoding takes."""
    root = model.open(ids[:1])
    logits_V = segment(root).next_logits_V
    assert logits_V is not None
    total = 0.0
    with torch.inference_mode():
        cache, _ = model.gather([root.lineage()], len(ids))
        logits_BV = logits_V[None]
        for position, token in enumerate(ids[1:], 1):
            total -= float(logits_BV.float().log_softmax(-1)[0, token])
            last_B = torch.zeros(1, dtype=torch.long)
            logits_BV = model.logits(torch.tensor([[token]]), cache, [position], last_B)
    return total / (len(ids) - 1)


def quality(exact: LocalModel, fast: LocalModel, tokens: int) -> list[common.Row]:
    """What the fast mode costs: loss on code and prose that neither mode was fitted to."""
    from pydoc_data import topics

    code = exact.encode(inspect.getsource(argparse.HelpFormatter))[:tokens]
    prose = exact.encode(topics.topics["exceptions"])[:tokens]
    rows = []
    for name, ids in (("code", code), ("prose", prose)):
        a, b = decode_nll(exact, ids), decode_nll(fast, ids)
        rows.append(
            common.Row(
                f"fast: loss on held-out {name}, {len(ids)} tokens, decoding path",
                "nats per token",
                b,
                a,
                "exact",
                a / b,
                note=f"difference {b - a:+.4f}, target within 0.02",
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    common.warn_if_busy()
    exact, fast = embedded.load(), embedded.load("fast")
    rows = decoding(exact, fast, options.tokens, options.repeats)
    rows += quality(exact, fast, 160)
    rows.append(prefill(exact, options.repeats))
    print(common.table("models, so far", rows), flush=True)
    rows += batched_scoring(exact, max(2, options.repeats // 2))
    rows.append(forking(exact, 16, max(2, options.repeats // 2)))
    common.write("models", rows)


if __name__ == "__main__":
    main()
