"""What every run logs: accuracy, tokens, budgets kept or broken, efficiency. No torch.

n are the tokens of a completion, b its budget, c whether it is right. What is undefined (no budget,
nothing right, a spread of one) is None, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median, stdev

from outlay.errors import InputError
from outlay.rl.base import Judgement, Row

Value = float | None
MAX_SAMPLES = 10_000_000


@dataclass(frozen=True)
class Sample:
    """One rollout, as metrics see it.

    Args:
        tokens: n.
        group: which question it answers; rollouts of one question share it.
        reward: total pay, None where nothing was paid.
        budget: b, None without one.
        judgement: None without a verifier.
        difficulty: of the question, None where unknown.
    """

    tokens: int
    group: int
    reward: float | None = None
    budget: float | None = None
    judgement: Judgement | None = None
    difficulty: float | None = None


def samples_of(
    rows: Sequence[Row],
    completion_ids: Sequence[Sequence[int]],
    rewards: Sequence[float],
    group: int,
    difficulty: str | None,
) -> list[Sample]:
    """Rollouts of a gathered batch, NaN rewards read as None.

    Args:
        rows: with `judgement` and `budget` where there are any.
        completion_ids: of each row.
        rewards: of each row.
        group: G.
        difficulty: column with the question's difficulty, None for none.
    """
    return [
        Sample(
            tokens=len(ids),
            group=index // group,
            reward=None if math.isnan(reward) else float(reward),
            budget=row.get("budget"),
            judgement=row.get("judgement"),
            difficulty=None if difficulty is None else float(row[difficulty]),
        )
        for index, (row, ids, reward) in enumerate(zip(rows, completion_ids, rewards, strict=True))
    ]


def summarise(samples: Sequence[Sample]) -> dict[str, Value]:
    """All metrics of some rollouts.

    `acc` share of right ones; `tokens_mean`, `tokens_p50`, `tokens_p90`; `thinking_mean`,
    `answer_mean`; `tokens_correct` mean n of right ones; `tokens_per_correct` all n by the number
    of right ones; `violation` share with n > b; `overshoot` mean max(0, n-b)/b; `utilisation` mean
    min(n, b)/b; `truncated`, `format_ok`, `verifier_failed` shares; `e3` = (100 acc)^2 /
    tokens_mean; `spearman` of difficulty and n; `group_tokens_std` mean over questions of the
    sample std of n; `zero_variance` share of questions whose rollouts were all paid the same;
    `reward_mean`.

    Raises:
        InputError: for more than 10 million samples.
    """
    if len(samples) > MAX_SAMPLES:
        raise InputError(f"{len(samples)} samples; summarise at most {MAX_SAMPLES:,} at once")
    lengths = [float(sample.tokens) for sample in samples]
    judged = [(s.judgement, s.tokens) for s in samples if s.judgement is not None]
    right = [float(n) for judgement, n in judged if judgement.correct]
    budgeted = [(float(s.tokens), s.budget) for s in samples if s.budget is not None]
    acc = _mean([float(judgement.correct) for judgement, _ in judged])
    tokens = _mean(lengths)
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    return {
        "acc": acc,
        "tokens_mean": tokens,
        "tokens_p50": median(lengths) if lengths else None,
        "tokens_p90": percentile(lengths, 0.9),
        "thinking_mean": _mean([float(j.thinking_tokens) for j, _ in judged]),
        "answer_mean": _mean([float(j.answer_tokens) for j, _ in judged]),
        "tokens_correct": _mean(right),
        "tokens_per_correct": sum(n for _, n in judged) / len(right) if right else None,
        "violation": _mean([float(n > b) for n, b in budgeted]),
        "overshoot": _mean([max(0.0, n - b) / b for n, b in budgeted]),
        "utilisation": _mean([min(n, b) / b for n, b in budgeted]),
        "truncated": _mean([float(j.truncated) for j, _ in judged]),
        "format_ok": _mean([float(j.format_ok) for j, _ in judged]),
        "verifier_failed": _mean([float(j.failed) for j, _ in judged]),
        "e3": (100 * acc) ** 2 / tokens if acc is not None and tokens else None,
        "spearman": spearman([(s.difficulty, s.tokens) for s in samples]),
        "group_tokens_std": _mean(
            [stdev(float(s.tokens) for s in g) for g in groups.values() if len(g) > 1]
        ),
        "zero_variance": _mean([float(_equal(g)) for g in groups.values() if len(g) > 1]),
        "reward_mean": _mean([s.reward for s in samples if s.reward is not None]),
    }


def by_bin(samples: Sequence[Sample], edges: Sequence[float]) -> dict[str, dict[str, Value]]:
    """Metrics of each difficulty bin.

    Args:
        samples: those without a difficulty are left out.
        edges: upper ends, ascending: `(2, 4)` makes the bins `<=2`, `<=4` and `>4`. Bins without
            samples are left out; no edges make one bin a difficulty.

    Raises:
        InputError: for edges that do not ascend.
    """
    if any(a >= b for a, b in pairwise(edges)):
        raise InputError(f"metrics_bins={tuple(edges)}; must ascend")
    bins: dict[str, list[Sample]] = {}
    known = [(s.difficulty, s) for s in samples if s.difficulty is not None]
    for difficulty, sample in sorted(known, key=lambda pair: pair[0]):
        bins.setdefault(_bin(difficulty, edges), []).append(sample)
    return {name: summarise(group) for name, group in bins.items()}


def budget_curve(
    points: Sequence[tuple[float, float]], prior: Mapping[float, float] | None = None
) -> tuple[list[tuple[float, float]], float]:
    """Accuracy over budgets, and its mean under a prior.

    Args:
        points: (budget, accuracy), one a budget.
        prior: weight of each budget; None for uniform. Weights are normalised.

    Raises:
        InputError: for no points, a budget that occurs twice, or a prior without weight on them.
    """
    budgets = [budget for budget, _ in points]
    if not points or len(set(budgets)) != len(budgets):
        raise InputError(f"budgets={budgets}; give at least one, each once")
    weights = [1.0 if prior is None else prior.get(budget, 0.0) for budget in budgets]
    if min(weights) < 0 or not sum(weights) > 0:
        raise InputError(f"prior={prior}; needs non-negative weights with a positive sum")
    mean = sum(w * acc for w, (_, acc) in zip(weights, points, strict=True)) / sum(weights)
    return sorted(points), mean


def percentile(values: Sequence[float], q: float) -> Value:
    """The q-quantile by linear interpolation (numpy's default); None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def spearman(pairs: Sequence[tuple[float | None, float]]) -> Value:
    """Rank correlation with average ranks; None where one side does not vary."""
    known = [(x, float(y)) for x, y in pairs if x is not None]
    xs, ys = _ranks([x for x, _ in known]), _ranks([y for _, y in known])
    if len(set(xs)) < 2 or len(set(ys)) < 2:
        return None
    mx, my = fmean(xs), fmean(ys)
    covariance = sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True))
    return covariance / math.sqrt(sum((x - mx) ** 2 for x in xs) * sum((y - my) ** 2 for y in ys))


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for place in range(start, end + 1):
            ranks[order[place]] = (start + end) / 2
        start = end + 1
    return ranks


def _mean(values: Sequence[float]) -> Value:
    return fmean(values) if values else None


def _equal(group: Sequence[Sample]) -> bool:
    return len({sample.reward for sample in group}) == 1


def _bin(difficulty: float, edges: Sequence[float]) -> str:
    if not edges:
        return f"{difficulty:g}"
    for edge in edges:
        if difficulty <= edge:
            return f"<={edge:g}"
    return f">{edges[-1]:g}"
