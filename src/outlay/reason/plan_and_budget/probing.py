"""Uncertainty curves of sub-questions from short probes; the estimator is ours.

Each step is opened alone and given a few tokens, then the answer is forced; the mean surprisal of
the forced answer (the sampled form of its entropy) is the uncertainty U at that budget. From two or
more budgets follows a curve (`bam.fit`). Probes are booked in the role "planner".
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

from outlay.models.base import Branch, SamplingParams
from outlay.reason.base import Extend, Request, Session
from outlay.reason.plan_and_budget.bam import Curve, fit

ANSWER_TOKENS = 8
_LEAST = 1e-4  # of U; a logarithm needs one

Probing = Generator[Request, Any, list[Curve] | None]


def probe(
    session: Session,
    root: Branch,
    headings: Sequence[str],
    closing: str,
    budgets: Sequence[int],
    probes: int,
) -> Probing:
    """A curve per step; None where a step's uncertainty does not fall with its budget.

    Args:
        session: of the question.
        root: its prompt.
        headings: what opens each step.
        closing: what opens the answer.
        budgets: of the probes, rising.
        probes: samples per step and budget.

    Raises:
        CapabilityError: if the model gives no log-probabilities.
        BudgetError: if the budget is spent.
    """
    model, account = session.model, session.account.at("think", "planner")
    model.capabilities.require("probing for BAM", "logprobs", "append", model=model.name)
    ends = tuple(sorted(getattr(model, "eos_ids", ())))
    growing = [model.append(root, h, account=account) if h else root for h in headings] * probes
    grown: list[Branch] = []
    spent = 0
    for budget in budgets:
        sampling = replace(
            session.sampling, max_tokens=budget - spent, stop_token_ids=ends, include_stop=False
        )
        each = [_reseeded(sampling, i // len(headings)) for i in range(len(growing))]
        rows = yield Extend(growing, each, role="planner")
        growing = [row[0] for row in rows]
        grown += growing
        spent = budget
    answers = [model.append(branch, closing, account=account) for branch in grown]
    asked = replace(session.sampling, max_tokens=ANSWER_TOKENS, logprobs=True)
    per_budget = len(headings) * probes
    each = [_reseeded(asked, i % per_budget // len(headings)) for i in range(len(answers))]
    rows = yield Extend(answers, each, role="planner")
    found = [_surprisal(row[0]) for row in rows]
    surprisal: list[list[float]] = []
    for step in range(len(headings)):
        values = [
            found[at : at + per_budget][step :: len(headings)]
            for at in range(0, len(found), per_budget)
        ]
        surprisal.append([max(_LEAST, math.fsum(part) / probes) for part in values])
    curves = [fit(budgets, values) for values in surprisal]
    return [c for c in curves if c is not None] if all(curves) else None


def _reseeded(sampling: SamplingParams, probe: int) -> SamplingParams:
    return replace(sampling, seed=sampling.seed + probe)


def _surprisal(branch: Branch) -> float:
    logprobs = branch.logprobs or ()
    return -math.fsum(logprobs) / len(logprobs) if logprobs else _LEAST
