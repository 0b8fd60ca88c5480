"""Accuracy of answers at several budgets, and how much variance each baseline removes.

Both from thinkings sampled outside of training: figure 4 (variance) and tables 1 and 2 (accuracy
over budgets) of arXiv 2505.13438. Answers at all budgets come from the same thinkings, whose keys
and values they reuse.

Shapes: Q questions, G thinkings of each, S budgets, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig

from outlay.errors import BudgetError, InputError
from outlay.rl.anytime.advantages import from_earlier, from_group, returns
from outlay.rl.anytime.forking import Spent, fork, recorded
from outlay.rl.anytime.method import AnytimeBRPO
from outlay.rl.anytime.outcomes import Fork, ForkSampler, Outcome
from outlay.stats import draw_counts, percentiles

if TYPE_CHECKING:
    from outlay.rl.base import Row

FloatArray = npt.NDArray[np.float64]
MAX_ROWS = 1_000_000
BASELINES = ("v1", "v2", "brpo")


@dataclass(frozen=True)
class Explored:
    """Thinkings and their answers.

    Args:
        outcomes: G for every question, in order.
        group: G.
        thinking: tokens sampled as thinking.
        spent: tokens of answers.
    """

    outcomes: list[Outcome]
    group: int
    thinking: int
    spent: Spent

    @property
    def means(self) -> FloatArray:
        """(Q, G, S): mean reward of every thinking at every budget."""
        made = np.array([one.means for one in self.outcomes], dtype=np.float64)
        return made.reshape(-1, self.group, made.shape[1])

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(Q, G): tokens of every thinking."""
        made = np.array([len(one.thinking) for one in self.outcomes], dtype=np.int64)
        return made.reshape(-1, self.group)


class _Recorded(ForkSampler):
    """Answers from the thinkings that a `generate` call has just made."""

    def __init__(self, model: Any, record: Any, config: GenerationConfig) -> None:
        self._model, self._record, self._config = model, record, config
        self.spent = Spent()

    @property
    def trees(self) -> bool:
        """Nothing is trained here."""
        return False

    def fork(
        self,
        prompts: Sequence[Sequence[int]],
        thinkings: Sequence[Sequence[int]],
        forks: Sequence[Fork],
        most: int,
    ) -> list[list[list[int]]]:
        """Sample the copies of every fork."""
        found, self.spent = fork(
            self._model, self._record, prompts, thinkings, forks, self._config, most
        )
        return found


@torch.no_grad()
def explore(
    model: Any,
    tokenizer: Any,
    method: AnytimeBRPO,
    rows: Sequence[Row],
    *,
    temperature: float = 1.0,
    seed: int = 0,
    at_once: int = 128,
) -> Explored:
    """Sample `n_traces` thinkings of every question, cut them at all budgets, and have each cut
    answered `n_summaries` times.

    Args:
        model: the policy; its layers must keep all tokens.
        tokenizer: its tokenizer.
        method: budgets, templates and `reward_fn`.
        rows: with a `prompt`, and what `reward_fn` reads.
        temperature: of thinkings and answers; 0 is greedy.
        seed: of the sampling.
        at_once: thinkings sampled together.

    Raises:
        InputError: for no rows or too many, or a negative temperature.
        BudgetError: if the largest budget does not fit into the model's context.
    """
    if not 1 <= len(rows) * method.n_traces <= MAX_ROWS:
        raise InputError(
            f"{len(rows)} rows of {method.n_traces} thinkings; give 1 to {MAX_ROWS:,} in all"
        )
    if not temperature >= 0 or at_once < 1:
        raise InputError(
            f"temperature={temperature}, at_once={at_once}; must be >= 0 and at least 1"
        )
    if method.templates is None:
        method = method.tokenized(tokenizer)
    pieces = method.pieces
    asked = [row for row in rows for _ in range(method.n_traces)]
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False}
    )
    pad = tokenizer.pad_token_id
    common = {**sampling, "pad_token_id": pieces.eos[0] if pad is None else pad}
    stops = [*pieces.eos, *(pieces.end if len(pieces.end) == 1 else ())]
    thinks = GenerationConfig(max_new_tokens=method.budgets[-1], eos_token_id=stops, **common)
    answers = GenerationConfig(eos_token_id=list(pieces.eos), **common)
    outcomes: list[Outcome] = []
    spent, thinking = Spent(), 0
    was_training = model.training
    model.train(False)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for start in range(0, len(asked), at_once):
                part = asked[start : start + at_once]
                prompts = [
                    list(tokenizer(row["prompt"], add_special_tokens=False)["input_ids"])
                    for row in part
                ]
                _check_context(model, method, max(map(len, prompts)))
                completions, record = _think(model, prompts, thinks)
                sampler = _Recorded(model, record, answers)
                made = method.outcomes(part, prompts, completions, sampler)
                outcomes += made
                spent += sampler.spent
                thinking += sum(len(one.thinking) for one in made)
    finally:
        model.train(was_training)
    return Explored(outcomes, method.n_traces, thinking, spent)


def _check_context(model: Any, method: AnytimeBRPO, question: int) -> None:
    context = getattr(model.config, "max_position_embeddings", None)
    most = question + method.budgets[-1] + len(method.pieces.forced) + method.max_summary_tokens
    if context is not None and most > context:
        raise BudgetError(
            f"a question of {question} tokens, budgets up to {method.budgets[-1]}, a template and "
            f"an answer take {most} tokens; the model's context holds {context}"
        )


def _think(
    model: Any, prompts: Sequence[Sequence[int]], config: GenerationConfig
) -> tuple[list[list[int]], Any]:
    width = max(map(len, prompts))
    ids_BP = torch.full((len(prompts), width), config.pad_token_id, device=model.device)
    mask_BP = torch.zeros_like(ids_BP)
    for row, ids in enumerate(prompts):
        ids_BP[row, width - len(ids) :] = torch.tensor(ids)
        mask_BP[row, width - len(ids) :] = 1
    with recorded(model) as record:
        output_BT = model.generate(ids_BP, attention_mask=mask_BP, generation_config=config)
    ends = set(config.eos_token_id)
    completions = []
    for ids in output_BT[:, width:].tolist():
        stop = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
        completions.append(ids[:stop])
    return completions, record


@dataclass(frozen=True)
class Curve:
    """Accuracy of answers forced at budgets.

    Args:
        budgets: tokens of thinking.
        right: (Q, S): share of a question's answers that are right.
        thinking: (Q,) mean tokens of thinking under the largest budget.
        spent: tokens of answers.
    """

    budgets: tuple[int, ...]
    right: FloatArray
    thinking: FloatArray
    spent: Spent

    @property
    def accuracy(self) -> list[float]:
        """At each budget."""
        return [float(value) for value in self.right.mean(axis=0)]

    @property
    def anytime(self) -> float:
        """Mean over the budgets (table 2)."""
        return float(self.right.mean())

    @property
    def final(self) -> float:
        """At the largest budget (table 1)."""
        return self.accuracy[-1]


def curve(
    model: Any,
    tokenizer: Any,
    method: AnytimeBRPO,
    rows: Sequence[Row],
    *,
    budgets: Sequence[int] | None = None,
    temperature: float = 0.6,
    seed: int = 0,
) -> Curve:
    """Anytime accuracy: one thinking a question, one answer a cut (section 5).

    Args:
        model: the policy.
        tokenizer: its tokenizer.
        method: templates and `reward_fn`.
        rows: held-out problems.
        budgets: of the curve; None takes the method's.
        temperature: 0 is greedy.
        seed: of the sampling.
    """
    chosen = method.budgets if budgets is None else tuple(budgets)
    single = replace(
        method,
        budgets=chosen,
        n_traces=1,
        n_summaries=1,
        prior="uniform",
        variance_reduction="none",
    )
    found = explore(model, tokenizer, single, rows, temperature=temperature, seed=seed)
    return Curve(chosen, found.means[:, 0], found.lengths[:, 0].astype(np.float64), found.spent)


@dataclass(frozen=True)
class Value:
    """A statistic with its bootstrap interval over questions."""

    mean: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Segment:
    """What baselines do for the segment that ends at one budget.

    Args:
        budget: where it ends.
        n: thinkings that have it.
        ratio: Var[R - V] / Var[R] of "v1", "v2", "brpo".
        correlation: of "v1" and "v2" with R.
        gain: the lower ratio of V1 and V2, less BRPO's: above 0, BRPO is better than both.
    """

    budget: int
    n: int
    ratio: dict[str, Value]
    correlation: dict[str, Value]
    gain: Value


def variance(
    means_QGS: FloatArray,
    lengths_QG: npt.NDArray[np.int64],
    method: AnytimeBRPO,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[Segment]:
    """How much of the returns' variance each baseline leaves (figure 4), segment by segment.

    Only thinkings that have a segment count for it; segments whose returns do not vary are left
    out. Questions are resampled.

    Args:
        means_QGS: mean reward of every thinking at every budget.
        lengths_QG: tokens of every thinking.
        method: budgets, prior, lam, `leave_one_out`.
        resamples: of questions.
        seed: of the resampling.
        confidence: of the intervals.

    Raises:
        InputError: for shapes that do not fit.
    """
    questions, group, slots = means_QGS.shape
    if slots != len(method.budgets) or lengths_QG.shape != (questions, group):
        raise InputError(
            f"rewards {means_QGS.shape}, lengths {lengths_QG.shape} and {len(method.budgets)} "
            "budgets do not fit"
        )
    prior = method.weights
    r_QGS, v1_QGS, v2_QGS = (np.empty_like(means_QGS) for _ in range(3))
    for q in range(questions):
        means_GS = torch.from_numpy(means_QGS[q])
        own_GS = returns(means_GS, prior)
        r_QGS[q] = own_GS.numpy()
        v1_QGS[q] = from_earlier(means_GS, prior, method.lam).numpy()
        v2_QGS[q] = from_group(own_GS, method.leave_one_out).numpy()
    past_S = np.arange(slots) / slots
    values = {"v1": v1_QGS, "v2": v2_QGS, "brpo": past_S * v1_QGS + (1 - past_S) * v2_QGS}
    starts = (0, *method.budgets[:-1])
    found = []
    for s, budget in enumerate(method.budgets):
        has_QG = lengths_QG > starts[s]
        columns = [r_QGS[:, :, s], *(values[name][:, :, s] for name in BASELINES)]
        if has_QG.sum() > 1 and np.ptp(columns[0][has_QG]) > 0:
            found.append(_segment(budget, has_QG, columns, resamples, seed, confidence))
    return found


def _segment(
    budget: int,
    has_QG: npt.NDArray[np.bool_],
    columns: Sequence[FloatArray],
    resamples: int,
    seed: int,
    confidence: float,
) -> Segment:
    """Moments of every question, so that a resample is one product."""
    weight_QG = has_QG.astype(np.float64)
    parts = [weight_QG]
    r_QG = columns[0]
    for x_QG in (r_QG, *(r_QG - v_QG for v_QG in columns[1:]), *columns[1:3]):
        parts += [weight_QG * x_QG, weight_QG * x_QG**2]
    parts += [weight_QG * r_QG * v_QG for v_QG in columns[1:3]]
    moments_QM = np.stack([part.sum(axis=1) for part in parts], axis=1)
    whole_1M = moments_QM.sum(axis=0, keepdims=True)
    drawn = [counts @ moments_QM for counts in draw_counts(len(moments_QM), resamples, seed)]
    table_RM = np.concatenate([whole_1M, *drawn])
    n_R = table_RM[:, 0]

    def spread(at: int) -> FloatArray:
        mean_R = table_RM[:, at] / n_R
        found_R: FloatArray = table_RM[:, at + 1] / n_R - mean_R**2
        return found_R

    def value(statistic_R: FloatArray) -> Value:
        drawn_R = statistic_R[1:]
        known_R = drawn_R[np.isfinite(drawn_R)]  # a resample may have no spread at all
        lo, hi = percentiles(known_R, confidence) if len(known_R) else (math.nan, math.nan)
        return Value(float(statistic_R[0]), lo, hi)

    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = {name: spread(3 + 2 * at) / spread(1) for at, name in enumerate(BASELINES)}
        correlations = {}
        for at, name in enumerate(BASELINES[:2]):
            first = 9 + 2 * at
            both_R = table_RM[:, 13 + at] / n_R
            covariance_R = both_R - table_RM[:, 1] * table_RM[:, first] / n_R**2
            spread_R = np.sqrt(np.maximum(spread(1) * spread(first), 0))
            # A baseline that is constant (V1 before the first budget) says nothing about R.
            flat_R = spread_R < 1e-12
            correlations[name] = np.where(
                flat_R, 0.0, covariance_R / np.where(flat_R, 1.0, spread_R)
            )
        gain_R = np.minimum(ratios["v1"], ratios["v2"]) - ratios["brpo"]
    return Segment(
        budget=budget,
        n=int(whole_1M[0, 0]),
        ratio={name: value(found_R) for name, found_R in ratios.items()},
        correlation={name: value(found_R) for name, found_R in correlations.items()},
        gain=value(gain_R),
    )
