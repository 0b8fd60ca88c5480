"""The trained policy in the hands of `outlay.reason.adaptive`: cheap formats first, long if they
disagree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from outlay.errors import ResultsError
from outlay.models.base import SamplingParams
from outlay.models.local import LocalModel
from outlay.proofs.ada_grpo_runs import CHEAP
from outlay.proofs.base import Check
from outlay.reason.adaptive import Adaptive
from outlay.reason.base import Question
from outlay.rl.grid_results import CellResult
from outlay.testbeds.chainarith_rl import problems, render_prompt, verify

N = 96  # held-out problems, 1 to 6 operations in turn
OPS = (1, 6)
_GREEDY = SamplingParams(max_tokens=112)


def consensus(result: CellResult) -> list[Check]:
    """Claim 4, on one trained policy.

    Raises:
        ResultsError: if its weights were not kept.
    """
    if result.weights is None:
        raise ResultsError(f"{result.label} kept no weights; delete its cell and run again")
    model = LocalModel.load(str(result.weights))
    asked = problems(N, seed=7, ops=OPS, split="heldout")
    right: dict[str, list[float]] = {}
    tokens: dict[str, list[int]] = {}
    long: list[float] = []
    for mode in (*(f"guided:{name}" for name in (*CHEAP, "long")), "consensus"):
        method = Adaptive(mode=mode, formats="reasoner")
        for problem in asked:
            question = Question(
                render_prompt(problem.question), kind="custom", read=_reader(problem.answer)
            )
            found: Any = method.solve(model, question, sampling=_GREEDY)
            totals = found.ledger.totals()
            right.setdefault(mode, []).append(float(found.value == problem.answer))
            tokens.setdefault(mode, []).append(totals.generated + totals.forced)
            if mode == "consensus":
                calls = [call["format"] for call in found.detail["calls"]]
                long.append(float("long" in calls))
    accuracy = {mode: float(np.mean(values)) for mode, values in right.items()}
    best = max((f"guided:{name}" for name in CHEAP), key=lambda mode: accuracy[mode])
    ops = [problem.operations for problem in asked]
    slope = float(np.polyfit(ops, long, 1)[0])
    shown = ", ".join(
        f"{mode} {accuracy[mode]:.3f} at {np.mean(tokens[mode]):.1f}" for mode in accuracy
    )
    return [
        Check(
            "consensus is at least as right as the best cheap format alone",
            "75.2 against 67.5",
            accuracy["consensus"] - accuracy[best],
            accuracy["consensus"] >= accuracy[best],
            None,
            f"greedy, {N} problems of {OPS[0]} to {OPS[1]} operations; accuracy at tokens: {shown}",
        ),
        Check(
            "consensus thinks long more often on harder problems",
            "13 % on CSQA, 100 % on AIME",
            slope,
            slope > 0,
            None,
            f"slope of the share a further operation; in all {np.mean(long):.2f}; target: above 0",
        ),
    ]


def _reader(answer: str) -> Callable[[str], str | None]:
    def read(text: str) -> str | None:
        return verify(text, answer).given

    return read
