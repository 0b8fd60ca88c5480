"""Proof of latent-trajectory signals on the tiny reasoner, with a real model beside it.

"Tracing the Traces" (arXiv 2510.10494) says: how hidden states move while a model thinks tells
right traces from wrong ones better than confidence or cross-layer signals do; a threshold on it
accepts traces early, for up to 70 % fewer tokens than a vote of five; and after a few segments it
tells which of several traces deserves to be finished. What survives at this size is the machinery,
the calibration and the savings; sign and size of the signals are properties of large reasoners.

The reasoner chooses how it thinks (an equation per operation, checked equations, a program, or
nothing at all), so the traces of one question differ. The same questions with all thinking in one
format are the hard case, reported beside it: there, difficulty is nearly all that movement shows.

Every target below was written before the first run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outlay.figure import MARKERS, PALETTE
from outlay.models.local import LocalModel
from outlay.proofs.base import Check, Progress, ProofResult, Scale, silent
from outlay.proofs.latent_trajectory_runs import (
    EARLY_K,
    K_TOKENS,
    LATENT,
    NEGATED,
    TRACES,
    Held,
    Policy,
    Predictive,
    choose_temperature,
    evaluation_auc,
    hold_out,
    overhead,
    policies,
    pool,
    real_traces,
    streaming_error,
)
from outlay.reason.latent_trajectory import Trace
from outlay.reason.latent_trajectory.calibration import raw, rights
from outlay.stats import FloatArray, auc, mean_interval
from outlay.testbeds.reasoner import checkpoint_path

CHECKPOINT = "small"  # its accuracy is in the middle, where there is something to tell apart

# Targets.
STREAMING = 1e-5  # largest relative difference of streamed signals to the formulas
CHANCE_AUC = 0.5  # the lower end of the combined score's interval lies above it
TOKENS = 0.75  # of majority@5, at an accuracy within one standard error of it


@dataclass(frozen=True)
class Size:
    """How much is run: seeds, questions per seed and of the other parts, sums of the real model."""

    seeds: int
    questions: int
    hard: int
    streamed: int
    tuning: int
    sums: int


SIZES: Mapping[Scale, Size] = {
    "ci": Size(1, 24, 0, 8, 4, 0),
    "laptop": Size(3, 500, 300, 60, 60, 100),
    "gpu": Size(3, 2000, 1000, 200, 200, 300),
}


def run(scale: Scale, *, seed: int = 0, progress: Progress = silent) -> ProofResult:
    """Run the experiment; see `SIZES` for what each scale means."""
    size = SIZES[scale]
    seeds = [seed + i for i in range(size.seeds)]
    result = ProofResult("latent-trajectory", scale, seeds)
    device = None if scale == "gpu" else "cpu"
    model = LocalModel.load(checkpoint_path(CHECKPOINT), name="reasoner", device=device)
    temperature, tuned = choose_temperature(model, size.tuning)
    progress(f"temperature {temperature} (accuracy {tuned:.2f})")
    worst, compared = streaming_error(model, size.streamed, seed + 77, temperature)
    held = []
    for each in seeds:
        progress(f"seed {each}: {size.questions} questions x {TRACES} traces")
        held.append(hold_out(pool(model, size.questions, each, temperature), each))
    found, played = evaluation_auc(held), policies(held)
    checks = result.checks
    checks.append(_streaming(worst, compared))
    checks += _predictive(found, held)
    checks += _sequential(played)
    checks += _early(played, held)
    result.data = _data(found, played, held, temperature, tuned)
    if size.hard:
        progress("one format only")
        traces = pool(model, size.hard, seed + 50, temperature, "long")
        hard = [hold_out(traces, seed)]
        checks += _hard(evaluation_auc(hard), policies(hard), traces)
        ratio = overhead(model, 32, temperature)
        checks.append(_overhead(ratio))
    if size.sums:
        from outlay.models import embedded

        progress("real model: sums")
        traces = real_traces(embedded.load(), size.sums, seed)
        checks.append(_real(traces))
        result.data["smollm2"] = _real_aucs(traces)
    result.draw = _drawer(found, played)
    return result.finish()


# -- claims ---------------------------------------------------------------------------------------


def _streaming(worst: float, compared: int) -> Check:
    return Check(
        "signals streamed while decoding equal the formulas on stored hidden states",
        "computed from stored states",
        worst,
        worst <= STREAMING and compared > 0,
        None,
        f"largest relative difference over {compared} traces and three signals; target: at most "
        f"{STREAMING:g}",
    )


def _predictive(found: Sequence[Predictive], held: Sequence[Held]) -> list[Check]:
    by_name = {each.name: each for each in found}
    ours = by_name["combined"]
    lengths = [len(trace.signals.net_K) for one in held for trace in one.evaluation]
    traces, short = len(lengths), sum(not steps for steps in lengths)
    listed = "; ".join(f"{each.name} {each.pooled:.3f}" for each in found if each is not ours)
    within = "; ".join(f"{each.name} {each.within:.3f}" for each in found if each is not ours)
    signs = {
        name: [one.weights["combined"].scales[name].sign for one in held] for name in LATENT[1:]
    }
    return [
        Check(
            "the combined score tells right traces from wrong ones on held-out questions (AUC)",
            "0.71 to 0.74, above cross-layer and output signals",
            ours.pooled,
            ours.ci[0] > CHANCE_AUC,
            ours.ci,
            f"{traces} traces, of which {short} have one segment and are left out; fitted on other "
            f"questions; others: {listed}; target: interval above {CHANCE_AUC}",
        ),
        Check(
            "the same, comparing traces of one question only",
            "not reported",
            ours.within,
            None,
            ours.within_ci,
            f"pooled AUC also rewards telling easy questions from hard ones; others: {within}",
        ),
        Check(
            "correlation of the combined score with being right, length taken out of both",
            "",
            ours.partial,
            None,
            None,
            "; ".join(f"{each.name} {each.partial:.3f}" for each in found if each is not ours),
        ),
        Check(
            "signals whose learned sign is the paper's",
            "net +, cumulative -, aligned +",
            ", ".join(
                f"{name} {sum(s == (-1 if name in NEGATED else 1) for s in found_signs)} of "
                f"{len(found_signs)}"
                for name, found_signs in signs.items()
            ),
            None,
            None,
            "over seeds; signs are properties of the model",
        ),
    ]


def _standard_error(policy: Policy) -> float:
    return float(policy.right_Q.std(ddof=1) / math.sqrt(len(policy.right_Q)))


def _line(policy: Policy, base: Policy) -> str:
    name = policy.name.removeprefix("sequential: ").removeprefix("early: ")
    return f"{name} {policy.accuracy:.3f} at {policy.tokens / base.tokens:.2f}"


def _sequential(played: Mapping[str, Policy]) -> list[Check]:
    base = played["majority@5"]
    error = _standard_error(base)
    checks = []
    for name in ("combined", "combined, length out", "length", "logprob"):
        policy = played[f"sequential: {name}"]
        ratio, ci = policy.ratio(base)
        near = policy.accuracy >= base.accuracy - error
        checks.append(
            Check(
                f"sequential sampling by {name}: tokens relative to majority@5",
                "up to 70 % fewer tokens, accuracy +2.6 points",
                ratio,
                (near and ratio <= TOKENS) if name == "combined" else None,
                ci,
                f"accuracy {policy.accuracy:.3f} against {base.accuracy:.3f} of majority@5 "
                f"(standard error {error:.3f})"
                + (f"; target: at most {TOKENS} within one standard error" * (name == "combined")),
            )
        )
    others = [
        played[name]
        for name in played
        if name not in ("majority@5", "sequential: combined") and not name.startswith("early")
    ]
    checks.append(
        Check(
            "accuracy of the other policies, and their tokens relative to majority@5",
            "",
            "; ".join(_line(policy, base) for policy in others),
            None,
            None,
            "thresholds fitted by the same procedure on the same calibration questions",
        )
    )
    return checks


def _early(played: Mapping[str, Policy], held: Sequence[Held]) -> list[Check]:
    base, ours = played["random of 5"], played["early: forest"]
    gain = mean_interval(ours.right_Q - base.right_Q)
    lo, hi = gain.lo, gain.hi
    bon, short = played["early: ST-BoN"], played["shortest@5"]
    over = mean_interval(bon.right_Q - base.right_Q)
    aucs = [one.early.fitted().about["cross_validated_auc_within"] for one in held]
    saved = 1 - ours.tokens / played["majority@5"].tokens
    return [
        Check(
            f"early selection after {EARLY_K} segments chooses better than chance (accuracy gain)",
            "predictive at 2000 tokens",
            gain.mean,
            lo is not None and lo > 0,
            None if lo is None or hi is None else (lo, hi),
            f"accuracy {ours.accuracy:.3f} against {base.accuracy:.3f} of a random one of "
            f"{TRACES}; {saved:.0%} of all traces' tokens are saved; within-question AUC of the "
            f"forest in cross-validation {np.nanmean([a or math.nan for a in aucs]):.3f}; target: "
            "interval above 0",
        ),
        Check(
            "accuracy gain of ST-BoN's choice, at the same cut",
            "",
            over.mean,
            None,
            None if over.lo is None or over.hi is None else (over.lo, over.hi),
            f"the trace nearest to the centroid of layers' mean states; shortest@5 (all traces "
            f"drawn) has accuracy {short.accuracy:.3f}",
        ),
    ]


def _hard(
    found: Sequence[Predictive], played: Mapping[str, Policy], traces: Sequence[Trace]
) -> list[Check]:
    by_name = {each.name: each for each in found}
    base, ours = played["majority@5"], played["sequential: combined"]
    waits, right_S = raw(traces, "waits"), rights(traces)
    retried = float(right_S[waits > 0].mean()) if (waits > 0).any() else math.nan
    return [
        Check(
            "one format only: AUC of the combined score within questions",
            "",
            by_name["combined"].within,
            None,
            by_name["combined"].within_ci,
            f"pooled {by_name['combined'].pooled:.3f}; length within {by_name['length'].within:.3f}"
            f", log-probability within {by_name['logprob'].within:.3f}; accuracy "
            f"{right_S.mean():.3f}, of the {(waits > 0).mean():.0%} of traces with retries "
            f"{retried:.3f}; sequential: accuracy {ours.accuracy:.3f} at "
            f"{ours.tokens / base.tokens:.2f} of the tokens of majority@5, which has "
            f"{base.accuracy:.3f}",
        )
    ]


def _overhead(ratio: float) -> Check:
    return Check(
        "time of decoding with trails over time without",
        "no extra generation",
        ratio,
        None,
        None,
        "32 rows of 64 tokens on the tiny reasoner, where hooks weigh most; CPU time, best of 3",
    )


def _real_aucs(traces: Sequence[Trace]) -> dict[str, Any]:
    right_S, groups = rights(traces), [trace.question for trace in traces]
    rows = {}
    for name in ("net", "cumulative", "aligned", "layer_mag", "layer_ang", "logprob", "length"):
        value_S = raw(traces, name) * (-1 if name in NEGATED else 1)
        both = auc(value_S, right_S), auc(value_S, right_S, groups)
        rows[name] = [None if math.isnan(value) else round(value, 4) for value in both]
    return {"accuracy": round(float(right_S.mean()), 4), "traces": len(traces), "auc": rows}


def _real(traces: Sequence[Trace]) -> Check:
    found = _real_aucs(traces)
    return Check(
        "SmolLM2-135M on single-digit sums: AUC of net, cumulative, aligned",
        "",
        ", ".join(f"{name} {found['auc'][name][0]}" for name in ("net", "cumulative", "aligned")),
        None,
        None,
        f"{len(traces)} samples, accuracy {found['accuracy']}, k=8, at most 40 tokens; within "
        "questions "
        + ", ".join(f"{n} {found['auc'][n][1]}" for n in ("net", "cumulative", "aligned"))
        + "; published without a target",
    )


# -- data and picture -----------------------------------------------------------------------------


def _data(
    found: Sequence[Predictive],
    played: Mapping[str, Policy],
    held: Sequence[Held],
    temperature: float,
    tuned: float,
) -> dict[str, Any]:
    base = played["majority@5"]
    return {
        "temperature": temperature,
        "tuned_accuracy": tuned,
        "k": K_TOKENS,
        "R": TRACES,
        "K": EARLY_K,
        "auc": [
            {
                "signal": each.name,
                "pooled": round(each.pooled, 4),
                "ci": [round(end, 4) for end in each.ci],
                "within": round(each.within, 4),
                "within_ci": [round(end, 4) for end in each.within_ci],
                "partial": round(each.partial, 4),
            }
            for each in found
        ],
        "policies": [
            {
                "policy": name,
                "accuracy": round(policy.accuracy, 4),
                "tokens": round(policy.tokens, 2),
                "tokens_of_majority": round(policy.tokens / base.tokens, 4),
            }
            for name, policy in played.items()
        ],
        "fits": [{name: dict(w.about) for name, w in one.weights.items()} for one in held],
        "forests": [dict(one.early.fitted().about) for one in held],
    }


def _drawer(found: Sequence[Predictive], played: Mapping[str, Policy]) -> Callable[[Path], None]:
    def draw(path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11.0, 4.6), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
        places = np.arange(len(found), dtype=np.float64)[::-1]
        _bars(left, places + 0.18, [(f.pooled, f.ci) for f in found], 0, "all traces")
        _bars(left, places - 0.18, [(f.within, f.within_ci) for f in found], 1, "of one question")
        left.axvline(0.5, color="black", linewidth=0.8, linestyle=":")
        left.set_yticks(places, [each.name for each in found])
        left.set_xlabel("AUC on held-out questions, 95 % interval")
        left.set_title("What tells right traces from wrong ones", loc="left", fontsize=10)
        left.legend(frameon=False, fontsize=8, loc="lower right")
        _scatter(right, played)
        for axes in (left, right):
            axes.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path)

    return draw


def _bars(
    axes: Any,
    places: FloatArray,
    rows: Sequence[tuple[float, tuple[float, float]]],
    index: int,
    label: str,
) -> None:
    values = [value for value, _ in rows]
    ends = [
        [max(0.0, value - lo) for value, (lo, _) in rows],
        [max(0.0, hi - value) for value, (_, hi) in rows],
    ]
    style: dict[str, Any] = {"color": PALETTE[index], "marker": MARKERS[index], "linestyle": ""}
    axes.errorbar(values, places, xerr=ends, capsize=2.5, markersize=5, label=label, **style)


SHOWN = {
    "majority@5": "majority@5",
    "majority@3": "majority@3",
    "first trace": "first trace",
    "oracle@5": "oracle@5",
    "shortest@5": "shortest@5",
    "sequential: combined": "sequential",
    "sequential: length": "by length",
    "sequential: logprob": "by log-probability",
    "early: forest": "early selection",
    "early: ST-BoN": "ST-BoN",
}


def _scatter(axes: Any, played: Mapping[str, Policy]) -> None:
    for index, (name, label) in enumerate(SHOWN.items()):
        policy = played[name]
        found = mean_interval(policy.right_Q)
        low = found.mean if found.lo is None else found.lo
        high = found.mean if found.hi is None else found.hi
        axes.errorbar(
            policy.tokens,
            found.mean,
            yerr=[[found.mean - low], [high - found.mean]],
            color=PALETTE[index % len(PALETTE)],
            marker=MARKERS[(index + index // len(PALETTE)) % len(MARKERS)],
            markersize=7,
            capsize=2.5,
            linestyle="",
            label=label,
        )
    axes.set_xlabel("thinking tokens sampled for a question")
    axes.set_ylabel("accuracy, 95 % interval")
    axes.set_title("What acting on it buys", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
