"""The runs behind the proof of latent-trajectory signals: questions, traces, policies, intervals.

Shapes: Q questions, S traces, R resamples.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from outlay.evals.answers import extract_number
from outlay.models.base import IntArray, Message, Model, SamplingParams, Trail
from outlay.models.local import LocalModel
from outlay.reason import Question, Session
from outlay.reason.latent_trajectory import (
    Drawn,
    LTEarly,
    LTSequential,
    Table,
    Trace,
    collect,
    forced,
    nearest_to_centroid,
    partial_correlation,
    replay,
    split,
)
from outlay.reason.latent_trajectory.calibration import Weights, fit, raw, rights
from outlay.reason.latent_trajectory.early import choose
from outlay.reason.latent_trajectory.signals import EPS
from outlay.stats import FloatArray, auc, draw_counts, percentiles
from outlay.testbeds.reasoner import ChainArith, parse_question, render_prompt

OPERATIONS = (2, 8)
K_TOKENS, TRACES, EARLY_K = 16, 5, 3
LONGEST = 240  # tokens of a trace; the longest chain, checked, needs about 100
TEMPERATURES = (0.6, 0.8, 1.0, 1.2, 1.4)
ACCURACY = 0.55  # what the temperature is chosen for: the middle of 40-70 %
LATENT = ("combined", "net", "cumulative", "aligned")
RIVALS = ("layer_mag", "layer_ang", "entropy", "margin", "inverse", "logprob", "length")
NEGATED = ("cumulative", "layer_ang", "length")
RESAMPLES = 1000


def questions(n: int, seed: int, format: str | None = None) -> list[Question]:
    """Held-out chains; the model chooses how it thinks unless `format` is given; all different."""
    task = ChainArith(operations=OPERATIONS)
    found: dict[str, Question] = {}
    for problem in task.sample(seed, 2 * n):
        if problem.question not in found and len(found) < n:
            found[problem.question] = Question(
                render_prompt(problem.question, format),
                problem.question,
                "custom",
                read=partial(task.read, problem),
                delimiter=task.delimiter,
                id=problem.id,
            )
    return list(found.values())


def right(question: Question, answer: str) -> bool:
    """Whether an answer is the right one."""
    return answer == parse_question(question.text).answer


def _look(session: Session, drawn: Sequence[Drawn]) -> list[dict[str, float]]:
    """Output baselines, and whether ST-BoN would choose a trace after the first segments."""
    model = session.model
    assert isinstance(model, LocalModel)
    outputs = forced(model, [each.thought for each in drawn], "</think>", "<answer>", tokens=2)
    early = [each.means_NLC[:EARLY_K] for each in drawn if each.means_NLC is not None]
    central = nearest_to_centroid(early) if len(early) == len(drawn) else 0
    return [
        {
            "entropy": -output.entropy,  # confidence: high where the answer is clear
            "margin": output.margin,
            "inverse": -output.inverse,
            "central": float(index == central),
            "waits": float(each.thought.completion().count("Wait")),
        }
        for index, (each, output) in enumerate(zip(drawn, outputs, strict=True))
    ]


def pool(
    model: LocalModel, n: int, seed: int, temperature: float, format: str | None = None
) -> list[Trace]:
    """`TRACES` traces of each of n questions."""
    return collect(
        model,
        questions(n, seed, format),
        right,
        R=TRACES,
        k=K_TOKENS,
        sampling=SamplingParams(
            temperature=temperature, max_tokens=LONGEST, seed=1000 * (seed + 1)
        ),
        look=_look,
    )


def choose_temperature(model: LocalModel, n: int) -> tuple[float, float]:
    """The temperature whose accuracy is nearest to `ACCURACY`, and that accuracy.

    It is chosen on questions of their own.
    """
    found = []
    for temperature in TEMPERATURES:
        traces = collect(
            model,
            questions(n, 9001),
            right,
            R=2,
            k=K_TOKENS,
            sampling=SamplingParams(temperature=temperature, max_tokens=LONGEST, seed=7),
        )
        found.append((temperature, float(rights(traces).mean())))
    return min(found, key=lambda each: (abs(each[1] - ACCURACY), each[0]))


# -- streaming against the formula ----------------------------------------------------------------


def slow_signals(states_TLC: FloatArray, k: int) -> tuple[float, float, float]:
    """The three formulas on stored hidden states, layer by layer and step by step."""
    rows = []
    for layer in range(states_TLC.shape[1]):
        h = [
            states_TLC[start : start + k, layer].mean(axis=0)
            for start in range(0, len(states_TLC), k)
        ]
        drift = h[-1] - h[0]
        net = math.sqrt(float(drift @ drift)) / (len(h) - 1)
        cumulative, cosines = 0.0, []
        for before, after in pairwise(h):
            update = after - before
            size = math.sqrt(float(update @ update))
            cumulative += size
            whole = max(math.sqrt(float(drift @ drift)), EPS)
            cosines.append(float(update @ drift) / (max(size, EPS) * whole))
        rows.append((net, cumulative, sum(cosines) / len(cosines)))
    net, cumulative, aligned = np.mean(rows, axis=0)
    return float(net), float(cumulative), float(aligned)


def streaming_error(model: LocalModel, n: int, seed: int, temperature: float) -> tuple[float, int]:
    """Largest relative difference of streamed signals to the formulas, and traces compared.

    The stored states come from one plain pass of transformers over prompt and thinking.
    """
    import torch

    from outlay.reason.latent_trajectory import signals

    asked = questions(n, seed)
    roots = [model.open(question.prompt) for question in asked]
    wants = [
        SamplingParams(temperature=temperature, max_tokens=LONGEST, seed=i, stop=("</think>",))
        for i in range(n)
    ]
    thoughts = [row[0] for row in model.extend(roots, wants, trail=Trail(K_TOKENS))]
    worst, compared = 0.0, 0
    for root, thought, means_NLC in zip(roots, thoughts, model.hidden(thoughts), strict=True):
        if len(means_NLC) < 2:
            continue
        ids_BT = torch.tensor([thought.path()])
        with torch.inference_mode():
            out = model.model(ids_BT.to(model.device), output_hidden_states=True, use_cache=False)
        stack_TLC = torch.stack(out.hidden_states[1:], 2)[0, len(root.token_ids) :]
        truth = slow_signals(stack_TLC.double().cpu().numpy(), K_TOKENS)
        found = signals(means_NLC)
        for value, true in zip((found.net, found.cumulative, found.aligned), truth, strict=True):
            worst = max(worst, abs(value - true) / max(1.0, abs(true)))
        compared += 1
    return worst, compared


def overhead(model: LocalModel, n: int, temperature: float) -> float:
    """Time of decoding with a trail over time without; the best of three each."""
    roots = [model.open(question.prompt) for question in questions(n, 9002)]
    best = {}
    for trail in (None, Trail(K_TOKENS)):
        times = []
        for _ in range(3):
            start = time.process_time()
            sampling = SamplingParams(temperature=temperature, max_tokens=64, ignore_eos=True)
            model.extend(roots, sampling, trail=trail)
            times.append(time.process_time() - start)
        best[trail is not None] = min(times)
    return best[True] / best[False]


# -- AUC ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictive:
    """How well one value tells right traces from wrong ones, on evaluation questions.

    Args:
        name: of the signal, signed as the paper signs it.
        pooled: AUC over all traces, with `ci`.
        within: AUC over pairs of traces of one question, with `within_ci`.
        partial: correlation with being right once length is taken out of both.
    """

    name: str
    pooled: float
    ci: tuple[float, float]
    within: float
    within_ci: tuple[float, float]
    partial: float


def predictive(name: str, value_S: FloatArray, traces: Sequence[Trace]) -> Predictive:
    """AUCs with intervals from a bootstrap over questions."""
    right_S = rights(traces)
    groups = np.unique([trace.question for trace in traces], return_inverse=True)[1]
    known_S = np.isfinite(value_S)
    value_S, right_S, group_S = value_S[known_S], right_S[known_S], groups[known_S]
    tokens_S = raw(traces, "length")[known_S]
    count = int(groups.max()) + 1
    won_Q, pairs_Q = _won(value_S, right_S, group_S, count)
    within_R = [
        float(counts_Q @ won_Q / max(1, counts_Q @ pairs_Q))
        for block in draw_counts(count, RESAMPLES, 0)
        for counts_Q in block
    ]
    order = np.argsort(value_S, kind="stable")
    value_S, right_S, group_S = value_S[order], right_S[order], group_S[order]
    tokens_S = tokens_S[order]
    pooled_R = [
        _weighted_auc(value_S, right_S, counts_Q[group_S])
        for block in draw_counts(count, RESAMPLES, 0)
        for counts_Q in block
    ]
    return Predictive(
        name,
        auc(value_S, right_S),
        percentiles(np.array(pooled_R), 0.95),
        auc(value_S, right_S, list(group_S)),
        percentiles(np.array(within_R), 0.95),
        partial_correlation(value_S, right_S, tokens_S),
    )


def _won(
    value_S: FloatArray, right_S: FloatArray, group_S: IntArray, count: int
) -> tuple[FloatArray, FloatArray]:
    """(Q,) pairs won and pairs compared within each question."""
    won_Q, pairs_Q = np.zeros(count), np.zeros(count)
    for q in range(count):
        own = group_S == q
        good, bad = value_S[own & (right_S == 1)], value_S[own & (right_S == 0)]
        if len(good) and len(bad):
            over = (good[:, None] > bad).sum() + 0.5 * (good[:, None] == bad).sum()
            won_Q[q], pairs_Q[q] = over, len(good) * len(bad)
    return won_Q, pairs_Q


def _weighted_auc(value_S: FloatArray, right_S: FloatArray, weight_S: FloatArray) -> float:
    """AUC where each trace counts `weight` times; values ascending, ties count half."""
    good_S, bad_S = weight_S * right_S, weight_S * (1 - right_S)
    starts = np.flatnonzero(np.r_[True, np.diff(value_S) > 0])
    good, bad = np.add.reduceat(good_S, starts), np.add.reduceat(bad_S, starts)
    below = np.cumsum(bad) - bad
    return float((good * (below + bad / 2)).sum() / max(1.0, good.sum() * bad.sum()))


# -- policies on held-out questions ---------------------------------------------------------------


@dataclass(frozen=True)
class Policy:
    """One policy on evaluation questions of all seeds: (Q,) right answers and thinking tokens."""

    name: str
    right_Q: FloatArray
    tokens_Q: FloatArray

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.right_Q.mean())

    @property
    def tokens(self) -> float:
        """Mean thinking tokens of a question."""
        return float(self.tokens_Q.mean())

    def ratio(self, other: Policy) -> tuple[float, tuple[float, float]]:
        """Tokens relative to another policy's, with a paired interval."""
        means = [
            block @ np.stack([self.tokens_Q, other.tokens_Q], 1)
            for block in draw_counts(len(self.tokens_Q), RESAMPLES, 0)
        ]
        sums_R2 = np.concatenate(means)
        return self.tokens / other.tokens, percentiles(sums_R2[:, 0] / sums_R2[:, 1], 0.95)


@dataclass(frozen=True)
class Held:
    """One seed: what was fitted on its calibration questions, and its evaluation traces."""

    calibration: Sequence[Trace]
    evaluation: Sequence[Trace]
    weights: Mapping[str, Weights]
    early: LTEarly


def hold_out(traces: Sequence[Trace], seed: int) -> Held:
    """Split by question and fit everything on the calibration side."""
    calibration, evaluation = split(traces, 0.3, 42 + seed)
    weights = {}
    for name in (*LATENT, *RIVALS):
        weights[name] = _fit(calibration, name)
    weights["combined, length out"] = _fit(calibration, "combined", length_control=True)
    return Held(calibration, evaluation, weights, LTEarly(k=K_TOKENS, K=EARLY_K).fit(calibration))


def _fit(traces: Sequence[Trace], name: str, *, length_control: bool = False) -> Weights:
    plain = LTSequential()
    return fit(
        traces,
        name,
        R=TRACES,
        grid=plain.grid,
        top_k=plain.top_k,
        min_incorrect=plain.min_incorrect,
        length_control=length_control,
        learn_sign=True,
    )


def policies(held: Sequence[Held]) -> dict[str, Policy]:
    """Every policy on the evaluation questions of all seeds."""
    parts: dict[str, list[tuple[FloatArray, FloatArray]]] = {}

    def add(name: str, right_Q: FloatArray, tokens_Q: FloatArray) -> None:
        parts.setdefault(name, []).append((right_Q, tokens_Q))

    for one in held:
        table = Table.of(one.evaluation)
        right_QR = _grid(table, rights(one.evaluation))
        tokens_QR = _grid(table, raw(one.evaluation, "length"))
        total_Q = tokens_QR.sum(axis=1)
        add("majority@5", table.voted(), total_Q)
        add("first trace", right_QR[:, 0], tokens_QR[:, 0])
        add("majority@3", table.first(3).voted(), tokens_QR[:, :3].sum(axis=1))
        add("oracle@5", right_QR.max(axis=1), total_Q)
        add("random of 5", right_QR.mean(axis=1), total_Q)
        answered_QR = _grid(table, np.array([t.answer is not None for t in one.evaluation], float))
        short_Q = np.where(answered_QR == 1, tokens_QR, np.inf).argmin(axis=1)
        add("shortest@5", right_QR[np.arange(len(short_Q)), short_Q], total_Q)
        for name, weights in one.weights.items():
            played = replay(table, weights.scores(one.evaluation), weights.threshold)
            add(f"sequential: {name}", played.right_Q, played.tokens_Q)
        chosen = one.early.replay(one.evaluation, one.calibration)
        add("early: forest", chosen.right_Q, chosen.tokens_Q)
        central = choose(table, raw(one.evaluation, "central"), EARLY_K * K_TOKENS)
        add("early: ST-BoN", central.right_Q, central.tokens_Q)
    return {
        name: Policy(
            name, np.concatenate([r for r, _ in rows]), np.concatenate([t for _, t in rows])
        )
        for name, rows in parts.items()
    }


def _grid(table: Table, value_S: FloatArray) -> FloatArray:
    return np.array([[value_S[at] for at in row] for row in table.rows])


def evaluation_auc(held: Sequence[Held]) -> list[Predictive]:
    """AUCs of all values on evaluation traces of all seeds; the combined score as calibrated."""
    traces = [trace for one in held for trace in one.evaluation]
    rows = []
    for name in (*LATENT, *RIVALS):
        if name == "combined":
            parts = [one.weights[name].scores(one.evaluation) for one in held]
            value_S = np.concatenate(parts)
        else:
            value_S = raw(traces, name) * (-1 if name in NEGATED else 1)
        rows.append(predictive(name, value_S, traces))
    return rows


# -- a real model ---------------------------------------------------------------------------------


def sums(n: int, seed: int) -> list[Question]:
    """Sums of single digits, as a chat."""
    rng = random.Random(f"sums:{seed}")
    return [
        Question(
            [Message(role="user", content=text)],
            text=text,
            kind="custom",
            read=extract_number,
            id=f"sum-{index}",
        )
        for index in range(n)
        for text in (f"What is {rng.randrange(1, 10)} + {rng.randrange(1, 10)}? Explain briefly.",)
    ]


def sum_right(question: Question, answer: str) -> bool:
    """Whether the number is the sum."""
    digits = [int(word) for word in question.text.replace("?", "").split() if word.isdigit()]
    return answer == str(sum(digits))


def real_traces(model: Model, n: int, seed: int) -> list[Trace]:
    """Five samples of each sum; all that is written counts as thinking."""
    return collect(
        model,
        sums(n, seed),
        sum_right,
        R=TRACES,
        k=8,
        think_close="",
        sampling=SamplingParams(temperature=0.8, max_tokens=40, seed=seed),
        together=20,
    )
