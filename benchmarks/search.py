"""Search over steps: what is computed twice, and tokens per second against plainer ways.

Peers, on the same weights: a step search that prompts again with the whole text at every step
(transformers' `generate`, batched), as libraries over text endpoints do, and
`generate(num_return_sequences=N)` for independent samples. Tokens are those that were sampled up to
and including the end of a step or text. Target: at most 1.05 tokens computed per distinct token of
the search tree.

    python benchmarks/search.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import torch

from common import Row, turns, warn_if_busy, write
from outlay.models.base import Account, SamplingParams
from outlay.models.local import LocalModel
from outlay.proofs.a_star_decoding_runs import questions
from outlay.reason import BeamSearch, ParticleFilter, Question, Reasoner, SelfConsistency
from outlay.reason.astar import AStarDecoding
from outlay.testbeds.reasoner import checkpoint_path
from outlay.testbeds.reasoner.oracle import ChainOracle

TARGET = 1.05
REPEATS = 3
LONGEST = 120
SAMPLING = SamplingParams(temperature=1.0, max_tokens=LONGEST)
JUDGE = ChainOracle(auc=0.8)


def main() -> None:
    warn_if_busy()
    torch.set_num_threads(1)
    model = LocalModel.load(checkpoint_path(), name="reasoner")
    asked = questions(8, 7)
    methods: dict[str, Reasoner] = {
        "A*, k=4": AStarDecoding(JUDGE, 4),
        "A*, k=4, width 8": AStarDecoding(JUDGE, 4, width=8),
        "beam search, N=16": BeamSearch(JUDGE, 16, 4),
        "particle filter, N=16": ParticleFilter(JUDGE, 16),
    }
    rows = [_recomputed(name, method, model, asked) for name, method in methods.items()]
    rows.append(_stepwise(model, asked))
    rows.append(_samples(model, asked, 16))
    write("search", rows)


def _recomputed(name: str, method: Reasoner, model: LocalModel, asked: Sequence[Question]) -> Row:
    before, distinct, start = model.computed_tokens, 0, time.process_time()
    for question in asked:
        total = method.solve(model, question, sampling=SAMPLING).ledger.totals(role="target")
        distinct += total.prompt_new + total.generated + total.forced
    seconds = time.process_time() - start
    return Row(
        f"{name}: tokens computed over distinct tokens",
        "ratio",
        (model.computed_tokens - before) / distinct,
        note=f"target: at most {TARGET}; {distinct} distinct tokens in {seconds:.1f} CPU seconds",
    )


def _rates(case: str, sides: dict[str, Callable[[], int]], peer: str, note: str) -> Row:
    """Tokens per second of both sides, in turns."""
    made: dict[str, list[int]] = {name: [] for name in sides}

    def counted(name: str) -> Callable[[], None]:
        def work() -> None:
            made[name].append(sides[name]())

        return work

    seconds = turns({name: counted(name) for name in sides}, REPEATS, clock="cpu")
    rates = {
        name: [tokens / taken for tokens, taken in zip(made[name][1:], seconds[name], strict=True)]
        for name in sides
    }
    ratios = [a / b for a, b in zip(rates["ours"], rates["theirs"], strict=True)]
    return Row(
        case,
        "tokens/s",
        statistics.median(rates["ours"]),
        statistics.median(rates["theirs"]),
        peer,
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        note,
    )


def _stepwise(model: LocalModel, asked: Sequence[Question]) -> Row:
    width, fan = 16, 4

    def ours() -> int:
        made = 0
        for question in asked:
            answer = BeamSearch(JUDGE, width, fan).solve(model, question, sampling=SAMPLING)
            made += answer.ledger.totals(role="target").generated
        return made

    def theirs() -> int:
        return sum(_prompting_again(model, question, width, fan) for question in asked)

    return _rates(
        f"beam search, N={width}, M={fan}: sampled tokens",
        {"ours": ours, "theirs": theirs},
        f"the same search, prompting again each step (transformers {_version()})",
        "CPU time; one question at a time",
    )


def _prompting_again(model: LocalModel, question: Question, width: int, fan: int) -> int:
    """Beam search whose every step starts from text; returns the tokens sampled."""
    beams: list[tuple[str, ...]] = [()]
    made, per_beam = 0, width
    ends = [*model.eos_ids, *model.encode(question.delimiter)]
    for _ in range(40):
        prompts = [str(question.prompt) + "".join(path) for path in beams]
        texts, tokens = _generate(model, prompts, per_beam, ends, LONGEST // 4)
        made += tokens
        paths = [
            (*path, text)
            for path, row in zip(beams, texts, strict=True)
            for text in row
            if text.endswith(question.delimiter)
        ]
        if not paths:
            break
        account = Account(role="verifier")
        rows = JUDGE.score(
            [question] * len(paths), paths, [()] * len(paths), accounts=[account] * len(paths)
        )
        order = sorted(range(len(paths)), key=lambda i: (-rows[i][-1], i))
        beams, per_beam = [paths[i] for i in order[: width // fan]], fan
    return made


def _generate(
    model: LocalModel, prompts: Sequence[str], n: int, ends: Sequence[int], longest: int
) -> tuple[list[list[str]], int]:
    """n continuations of every prompt by transformers, and the tokens sampled up to their ends."""
    tokenizer: Any = model.tokenizer
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True)
    with torch.inference_mode():
        output_BT = model.model.generate(
            **inputs,
            do_sample=True,
            temperature=SAMPLING.temperature,
            top_k=0,
            num_return_sequences=n,
            max_new_tokens=longest,
            eos_token_id=list(ends),
        )
    new_BT = output_BT[:, inputs["input_ids"].shape[1] :].tolist()
    texts, made = [], 0
    for ids in new_BT:
        at = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
        made += at
        texts.append(tokenizer.decode(ids[:at]))
    return [texts[i : i + n] for i in range(0, len(texts), n)], made


def _samples(model: LocalModel, asked: Sequence[Question], n: int) -> Row:
    def ours() -> int:
        method = SelfConsistency(n, early_stop=False)
        found = [method.solve(model, question, sampling=SAMPLING) for question in asked]
        return sum(answer.ledger.totals().generated for answer in found)

    def theirs() -> int:
        ends = sorted(model.eos_ids)
        return sum(_generate(model, [str(q.prompt)], n, ends, LONGEST)[1] for q in asked)

    return _rates(
        f"{n} samples a question",
        {"ours": ours, "theirs": theirs},
        f"generate(num_return_sequences={n}) of transformers {_version()}",
        "CPU time; one question at a time",
    )


def _version() -> str:
    return metadata.version("transformers")


if __name__ == "__main__":
    main()
