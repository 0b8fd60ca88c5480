"""Draft trees against chains, transformers' assisted generation and plain decoding.

All sides run the same target (SmolLM2-135M, fp32), the same distilled draft and the same number of
threads, one prompt at a time, in turns. Reported: seconds of a pass by its rows, block efficiency,
tokens per second, and the block efficiency at which a tree would break even. On two cores a pass
over 15 rows costs many times one row, so that a loss of time is expected there; the tokens accepted
per pass are what RSD claims. On a CPU the clock is the process's own time, one thread, which is
wall clock on a free core; on a GPU it is wall clock.

    python benchmarks/decode.py [--device cuda] [--draft DIR] [--out DIR] [--tokens 48]
        [--prompts 6] [--repeats 3]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import common
from common import Row, turns, warn_if_busy, write
from outlay.decode.plain import PlainDecoder
from outlay.decode.rsd import RSD
from outlay.decode.speculative import Assisted, MultiDraft, PromptLookup, Speculative
from outlay.models import embedded
from outlay.models.base import Generation, SamplingParams
from outlay.models.local import LocalModel
from outlay.proofs.rsd_pairs import chat_prompts, code_prompts
from outlay.proofs.rsd_runs import row_costs
from outlay.testbeds.drafts import smollm2_draft

ROWS = (1, 2, 4, 7, 13, 15, 31)
PAST = 128
VERSION = metadata.version("transformers")
OURS = "RSD-S, 4x3"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--draft", type=Path, help="a draft's folder; default: the shipped one")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens per prompt")
    parser.add_argument("--prompts", type=int, default=6, help="how many; a third are code")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds")
    options = parser.parse_args()
    if options.out is not None:
        common.RESULTS = options.out
    warn_if_busy()
    torch.set_num_threads(1)
    target = embedded.load(device=options.device)
    draft = smollm2_draft(target, options.draft)
    rows, ratio, relative = _costs(target, draft)
    code = options.prompts // 3
    prompts = [*chat_prompts(target, options.prompts - code), *code_prompts(target, code)]
    decoders: dict[str, Any] = {
        OURS: RSD("rsd_s", draft=draft),
        "RSD-C, 2-2-2": RSD("rsd_c", draft=draft),
        "RSD-S, 2x3": RSD("rsd_s", beam=2, draft=draft),
        "one chain, 3": Speculative(3, draft),
        "four independent sequences, 3": MultiDraft(4, 3, draft),
        f"transformers {VERSION}: assisted generation, 3": Assisted(3, draft),
        f"transformers {VERSION}: prompt lookup, 8": PromptLookup(8),
        "outlay's plain decoding": PlainDecoder(),
    }
    for temperature in (0.0, 1.0):
        sampling = SamplingParams(max_tokens=options.tokens, temperature=temperature)
        rows += _rates(target, decoders, prompts, sampling, options, ratio, relative)
    write("decode" if options.device == "cpu" else f"decode_{options.device}", rows)


def _costs(target: LocalModel, draft: LocalModel) -> tuple[list[Row], float, dict[int, float]]:
    seconds = row_costs(target, ROWS, PAST, 7)
    small = row_costs(draft, (1, 4), PAST, 7)
    relative = {count: taken / seconds[1] for count, taken in seconds.items()}
    note = f"behind {PAST} cached tokens; one row takes {1e3 * seconds[1]:.1f} ms"
    rows = [
        Row(f"a pass of the target over {count} rows", "times one row", value, note=note)
        for count, value in relative.items()
        if count > 1
    ]
    ratio = small[1] / seconds[1]
    rows.append(
        Row("a pass of the draft over one row", "times one row of the target", ratio, note=note)
    )
    return rows, ratio, relative


def _rates(
    target: LocalModel,
    decoders: dict[str, Any],
    prompts: list[Any],
    sampling: SamplingParams,
    options: argparse.Namespace,
    ratio: float,
    relative: dict[int, float],
) -> list[Row]:
    """Tokens per second and per pass of all sides, in turns."""
    made: dict[str, list[list[Generation]]] = {name: [] for name in decoders}

    def side(name: str) -> Callable[[], None]:
        def work() -> None:
            made[name].append(
                [decoders[name].generate(target, prompt, None, sampling) for prompt in prompts]
            )

        return work

    clock = "cpu" if options.device == "cpu" else "wall"
    seconds = turns({name: side(name) for name in decoders}, options.repeats, clock=clock)
    warmth = f"temperature {sampling.temperature:g}"
    tokens = {
        name: [sum(len(one.token_ids) for one in each) for each in runs[1:]]
        for name, runs in made.items()
    }
    rates = {
        name: [n / taken for n, taken in zip(tokens[name], seconds[name], strict=True)]
        for name in decoders
    }
    etas = {name: _efficiency(made[name][-1]) for name in decoders}
    rows = []
    for peer in decoders:
        if peer == OURS:
            continue
        ratios = [a / b for a, b in zip(rates[OURS], rates[peer], strict=True)]
        rows.append(
            Row(
                f"{warmth}: {OURS}",
                "tokens/s",
                statistics.median(rates[OURS]),
                statistics.median(rates[peer]),
                peer,
                statistics.median(ratios),
                (min(ratios), max(ratios)),
                f"{options.device}, fp32, 1 thread, {len(prompts)} prompts one at a time, "
                f"{clock} time",
            )
        )
        rows.append(
            Row(
                f"{warmth}: {OURS}",
                "tokens per pass of the target",
                etas[OURS],
                etas[peer],
                peer,
                etas[OURS] / etas[peer],
                note="cut ends included",
            )
        )
    even = relative[13] + 3 * ratio
    rows.append(
        Row(
            f"{warmth}: tokens per pass of {OURS} over what breaks even",
            "ratio",
            etas[OURS] / even,
            note=f"{etas[OURS]:.2f} of {even:.2f}: 13 rows of the target and 3 passes of the "
            "draft, both by the table above",
        )
    )
    if sampling.temperature == 0:
        plain = [one.token_ids for one in made["outlay's plain decoding"][-1]]
        for name, runs in made.items():
            same = sum(a.token_ids == b for a, b in zip(runs[-1], plain, strict=True))
            rows.append(Row(f"{warmth}: texts equal to plain, {name}", "texts", same, len(plain)))
    return rows


def _efficiency(texts: list[Generation]) -> float:
    """New tokens per pass of the target over all texts."""
    passes = 0
    for one in texts:
        stats, counted = getattr(one, "stats", None), getattr(one, "passes", None)
        passes += (
            len(stats.emitted) if stats else len(one.token_ids) if counted is None else counted
        )
    return sum(len(one.token_ids) for one in texts) / passes


if __name__ == "__main__":
    main()
