"""SwiReasoning on the real model: its limits hold, and what a soft step costs."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np

from outlay.decode.swireasoning import SoftThinking, SwiReasoning, SwiResult
from outlay.models.base import Message, SamplingParams
from outlay.models.local import LocalModel
from outlay.proofs.base import Check

# Targets and settings.
OVERHEAD = 0.15  # of a soft step over a plain one
STEP_TOKENS = 48  # of a timed run
LONGEST, ANSWER = 120, 24
MARKERS = ("<jupyter_start>", "<jupyter_output>")  # reserved, unused by the chat template
LIMITS = (1, 2, 4, None)


def _chats(n: int) -> list[list[Message]]:
    return [
        [{"role": "user", "content": f"What is {17 + k} + {5 * k}? Explain."}] for k in range(n)
    ]


def real_checks(prompts: int, rounds: int) -> list[Check]:
    """SmolLM2 with two reserved tokens as markers: limits hold, and a step costs little."""
    from outlay.models import embedded

    model = embedded.load(device="cpu")
    think, end = MARKERS
    base = SwiReasoning(
        window=6,
        think_token=think,
        end_think_token=end,
        answer_budget=ANSWER,
        lock_on_injected=False,
    )
    sampling = SamplingParams(max_tokens=LONGEST, temperature=0.6, top_p=0.95, top_k=20, seed=1)
    lengths, switches, over, beyond = [], [], 0, 0
    for limit in LIMITS:
        made = replace(base, c_max=limit).generate_many(model, _chats(prompts), None, sampling)
        lengths.append(float(np.mean([_thought(each) for each in made])))
        counts = [_switches(each) for each in made]
        switches.append(float(np.mean(counts)))
        beyond += sum(limit is not None and count > limit for count in counts)
        over += sum(len(each.trace) > LONGEST for each in made)
        over += sum(_beyond(each, limit) for each in made)
    shown = ", ".join(
        f"{limit or 'none'}: {length:.1f} tokens of thinking, C {count:.1f}"
        for limit, length, count in zip(LIMITS, lengths, switches, strict=True)
    )
    soft, explicit = _step_seconds(model, rounds)
    ratios = [a / b - 1 for a, b in zip(soft, explicit, strict=True)]
    few, _ = _step_seconds(model, rounds, top_k=64)
    return [
        Check(
            "SmolLM2-135M with reserved tokens: thinking falls with C_max",
            "a limit of switches caps the tokens",
            lengths[0] / lengths[-1],
            all(a <= b for a, b in pairwise(lengths)) and lengths[0] < lengths[-1],
            None,
            f"{prompts} prompts; C_max {shown}; target: no step up",
        ),
        Check(
            "SmolLM2-135M with reserved tokens: switches while thinking fall with C_max",
            "at most C_max switches before the end is injected",
            float(beyond),
            beyond == 0 and all(a <= b for a, b in pairwise(switches)),
            None,
            f"sequences with more, of {len(LIMITS) * prompts}; means as above; target: 0, and no "
            "step up",
        ),
        Check(
            "SmolLM2-135M with reserved tokens: T and the answer budget hold",
            "at most T tokens; at most B from the last termination signal on",
            float(over),
            over == 0,
            None,
            f"runs over, of {len(LIMITS) * prompts}; target: 0",
        ),
        Check(
            "SmolLM2-135M: a soft step costs little more than a plain one",
            "one product of the probabilities and the embeddings a step",
            statistics.median(ratios),
            statistics.median(ratios) < OVERHEAD,
            (min(ratios), max(ratios)),
            f"CPU time, one thread, {STEP_TOKENS} steps in {rounds} rounds in turns, least to "
            f"most; {1e3 * statistics.median(explicit):.1f} ms a plain step; with top_k_soft=64: "
            f"{statistics.median([a / b - 1 for a, b in zip(few, explicit, strict=True)]):.3f}; "
            f"target: below {OVERHEAD}",
        ),
    ]


def _thought(made: SwiResult) -> int:
    total = made.ledger.totals(stage="think")
    return total.generated + total.forced


def _switches(made: SwiResult) -> int:
    """C when the thinking ended; as published, an answer may go latent again."""
    closed = next((each for each in made.trace if each.injected), made.trace[-1])
    return closed.switches


def _beyond(made: SwiResult, limit: int | None) -> bool:
    """Whether more than B tokens follow the last termination signal."""
    signals = [
        t
        for t, each in enumerate(made.trace)
        if limit is not None and each.switched and each.mode == "explicit" and each.switches > limit
    ]
    return bool(signals) and len(made.trace) - signals[-1] > ANSWER


def _step_seconds(
    model: LocalModel, rounds: int, top_k: int | None = None
) -> tuple[list[float], list[float]]:
    """CPU seconds a step of soft thinking and of plain decoding, in turns."""
    import torch

    think, end = MARKERS
    soft = SoftThinking(think_token=think, end_think_token=end, top_k_soft=top_k)
    prompt = model.prompt_ids(_chats(1)[0]) + model.encode(think)
    sampling = SamplingParams(max_tokens=STEP_TOKENS, ignore_eos=True)

    def softly() -> int:
        return sum(soft.generate(model, prompt, sampling=sampling).tokens.values())

    def plainly() -> int:
        return len(model.generate(prompt, sampling=sampling).token_ids)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: tuple[list[float], list[float]] = ([], [])
    try:
        for turn in range(rounds + 1):
            for seconds, work in zip(times, (softly, plainly), strict=True):
                start = time.process_time()
                steps = work()
                if turn:  # the first round warms up
                    seconds.append((time.process_time() - start) / steps)
    finally:
        torch.set_num_threads(threads)
    return times
