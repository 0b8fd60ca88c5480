"""Serving an open-loop load: layered prefill beside its peers, on one engine and trace.

Peers: chunked prefill at 1, 2 and 4 reference chunks and whole prompts (orca) on the same engine,
and transformers' continuous batching with `max_batch_tokens` = the reference chunk, prefix sharing
off. The model is SmolLM2 cut into 48 experts, 4 per token; the traces are those of the proof,
shortened. Times are CPU seconds of one thread with idle time skipped, except those beside
transformers, whose manager keeps its own thread and wall clock: there all requests are given at
once and both sides report the whole process's CPU time.

    python benchmarks/schedule.py
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch

from common import Row, warn_if_busy, write
from outlay.schedule.base import Request
from outlay.schedule.engine import Engine
from outlay.schedule.measuring import iteration, paced, run
from outlay.schedule.presets import compared
from outlay.schedule.serving import Run
from outlay.schedule.traces import LONG, MIXED, make
from outlay.testbeds import moe

REF = 32
LOAD = 0.6
REQUESTS = 6
REPEATS = 2
PAGE = 32
FIGURES = (
    ("ttft_mean", "mean TTFT", "s"),
    ("tbt_p99", "p99 TBT", "s"),
    ("expert_bytes", "expert bytes read", "bytes"),
)


def main() -> None:
    warn_if_busy()
    torch.set_num_threads(1)
    model = moe.load(48, device="cpu")
    engine = Engine(model.model)
    seconds, _ = iteration(engine, REF, clock="cpu")
    rows: list[Row] = []
    for spec in (LONG, MIXED):
        trace = make(dataclasses.replace(spec, requests=REQUESTS), model.tokenizer, 1.0)
        requests = paced(trace, REF, seconds, LOAD).requests
        runs: dict[str, list[Run]] = {name: [] for name in compared(REF)}
        for _ in range(REPEATS):  # in turns
            for name, scheduler in compared(REF).items():
                runs[name].append(run(engine, scheduler, requests, clock="cpu"))
        rows += _beside(spec.name, runs)
        rows += _transformers(spec.name, engine, model, requests)
    engine.close()
    write("schedule", rows)


def _beside(trace: str, runs: dict[str, list[Run]]) -> list[Row]:
    rows = []
    for peer in runs:
        if peer == "layered":
            continue
        for key, label, unit in FIGURES:
            ours = [each.to_dict()[key] for each in runs["layered"]]
            theirs = [each.to_dict()[key] for each in runs[peer]]
            ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
            rows.append(
                Row(
                    f"{trace}: {label}",
                    unit,
                    statistics.median(ours),
                    statistics.median(theirs),
                    peer,
                    statistics.median(ratios),
                    (min(ratios), max(ratios)),
                    f"{REQUESTS} requests, load {LOAD}, CPU seconds",
                )
            )
    return rows


def _transformers(trace: str, engine: Engine, model: Any, requests: Sequence[Request]) -> list[Row]:
    """CPU seconds for all requests at once, and whether the tokens agree."""
    together = [dataclasses.replace(request, arrival=0.0) for request in requests]
    ours: list[float] = []
    theirs: list[float] = []
    tokens: dict[int, tuple[int, ...]] = {}
    peer: dict[int, tuple[int, ...]] = {}
    for turn in range(REPEATS + 1):  # the first warms up
        start = time.process_time()
        tokens = run(engine, compared(REF)["layered"], together, clock="cpu").tokens()
        middle = time.process_time()
        peer = _batched(model, together)
        if turn:
            ours.append(middle - start)
            theirs.append(time.process_time() - middle)
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    agree = sum(tokens[id_][: len(peer[id_])] == peer[id_] for id_ in peer)
    return [
        Row(
            f"{trace}: all requests at once",
            "CPU seconds",
            statistics.median(ours),
            statistics.median(theirs),
            f"continuous batching of transformers {metadata.version('transformers')}",
            statistics.median(ratios),
            (min(ratios), max(ratios)),
            f"max_batch_tokens={REF}, page {PAGE}, no prefix sharing; {agree} of {len(peer)} "
            "token streams are ours",
        )
    ]


def _batched(model: Any, requests: Sequence[Request]) -> dict[int, tuple[int, ...]]:
    """Tokens by request from transformers' continuous batching, all requests at once."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    longest = max(request.max_new for request in requests)
    pages = sum(-(-(len(r.prompt) + longest) // PAGE) for r in requests) + 4
    config = GenerationConfig(
        max_new_tokens=longest, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    batching = ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=pages, max_batch_tokens=REF, allow_block_sharing=False
    )
    found: dict[int, tuple[int, ...]] = {}
    with model.model.continuous_batching_context_manager(
        generation_config=config, continuous_batching_config=batching, block=True, timeout=5
    ) as manager:
        names = {
            manager.add_request(list(request.prompt), max_new_tokens=request.max_new): request.id
            for request in requests
        }
        while len(found) < len(requests):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                found[names[result.request_id]] = tuple(result.generated_tokens)
    return found


if __name__ == "__main__":
    main()
