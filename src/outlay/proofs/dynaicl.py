"""Proof of DynaICL on a model that really learns in context.

"Efficient Prompting via Dynamic In-Context Learning" (arXiv 2305.11170) says: a controller that
predicts how many demonstrations an input needs gives a better trade-off than the same number for
everybody, both with a fixed budget and with a fixed accuracy, and saves up to 46 % of the tokens.
The testbed's three families of rules need 0, 1 and about 4 demonstrations; the controller sees the
question alone.

Everything is compared at exactly equal tokens of demonstrations, on the same draws. The oracle
against which gains are measured knows every input's family and its mean accuracy curve: that is all
that can be known from an input, since within a family only the draw decides. An oracle that sees
the drawn outcomes themselves is reported beside it.

Three controllers are trained: one that predicts the number, one that predicts accuracies, and an
encoder-decoder that reads the question's characters and writes the number, as the paper's does. Two
further parts are in modules of their own: another generalist (`dynaicl_transfer`), and a real
language model on real text, with unseen tasks (`dynaicl_real`).

Every target below was written before the first run. Changes that were tried after it are reported
without targets, see `dynaicl_changes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from outlay.frontier import points
from outlay.prompt.dynaicl.config import Training
from outlay.prompt.dynaicl.method import DynaICL
from outlay.prompt.dynaicl.serving import break_even, saving
from outlay.prompt.dynaicl.stream import Stream
from outlay.prompt.dynaicl.table import Table
from outlay.proofs.base import Check, Progress, ProofResult, Scale, silent
from outlay.proofs.dynaicl_changes import changed
from outlay.proofs.dynaicl_page import drawer, mean_of, methods_data
from outlay.proofs.dynaicl_real import SIZE, real_checks, smollm
from outlay.proofs.dynaicl_runs import (
    GUESSES,
    LUCKY,
    ORACLE,
    PROPORTIONAL,
    SEQ2SEQ,
    SHUFFLED,
    TRAINING,
    UNIFORM,
    UTILITY,
    FloatArray,
    IntArray,
    Outcome,
    World,
    all_methods,
    budgets_at,
    costs_of,
    gain_share,
    gap,
    in_proportion,
    make_world,
    needed_by_family,
    records,
    run_split,
)
from outlay.proofs.dynaicl_transfer import other_generalist, swapped
from outlay.stats import mean_interval
from outlay.testbeds.icl.answers import Answerer
from outlay.testbeds.icl.store import load
from outlay.testbeds.icl.world import FAMILIES

# Targets.
NEEDED = {"stored": (0, 0), "shift": (1, 1), "lookup": (3, 4)}  # by a family's mean curve
MEANS = (1, 2, 3)  # mean demonstrations per input
GAIN = 0.08  # accuracy over uniform
SHARE = 0.9  # of the oracle's gain
SAVED = 0.4  # tokens at equal accuracy
NO_GAIN = 0.02  # of a controller that cannot know
FLOOR = 0.85  # accuracy to reach
STREAM = 0.05  # relative distance of a stream's mean cost from its budget
LAMBDAS = (0.0, 0.1, 0.3, 1.0, 3.0)
RL_EPOCHS = 30  # of the sweep over lambda
PRICED = (0.0, 1.0, 3.0)  # the lambdas of the encoder-decoder, whose training takes longer
HEADS = (PROPORTIONAL, UTILITY, SEQ2SEQ)
MIDDLE = 2  # the mean at which baselines, savings and leaks are judged


@dataclass(frozen=True)
class Size:
    """Inputs with labels for training and testing, draws, seeds, epochs of the encoder-decoder."""

    train: int
    test: int
    n_s: int
    seeds: int
    epochs: int = TRAINING.epochs


SIZES: Mapping[Scale, Size] = {
    "ci": Size(150, 120, 2, 1, epochs=20),
    "laptop": Size(600, 500, 4, 3, epochs=30),
    "gpu": Size(4000, 4000, 8, 5, epochs=30),
}
Outcomes = dict[int, dict[str, list[Outcome]]]


def run(
    scale: Scale, *, seed: int = 0, progress: Progress = silent, folder: str | Path | None = None
) -> ProofResult:
    """Run the experiment; see `SIZES` for what each scale means.

    Args:
        scale: how much is run.
        seed: the first of the seeds.
        progress: called with what is being done.
        folder: where tables of labels are kept between runs; None keeps none.
    """
    size = SIZES[scale]
    seeds = [seed + i for i in range(size.seeds)]
    result = ProofResult("dynaicl", scale, seeds)
    ask = Answerer(load()[0])
    place = None if folder is None else Path(folder)
    writer = replace(TRAINING, epochs=size.epochs)
    worlds = [
        make_world(ask, each, size.train, size.test, size.n_s, progress, place, writer)
        for each in seeds
    ]
    outcomes: Outcomes = {}
    for mean_k in MEANS:
        progress(f"all methods at mean k={mean_k}")
        found = [all_methods(world, mean_k) for world in worlds]
        outcomes[mean_k] = {name: [each[name] for each in found] for name in found[0]}
    curve = _uniform_curve(worlds)
    families = needed_by_family(worlds, worlds[0].methods[UTILITY].t)
    checks = result.checks
    checks += _needs(families)
    checks += _gains(outcomes)
    checks += _savings(outcomes, curve)
    progress("lambda, leaks, floors, streams")
    checks.append(_prices(worlds, PROPORTIONAL, LAMBDAS))
    checks += _leaks(worlds, outcomes)
    checks += _rivals(worlds, outcomes)
    checks.append(_floor(worlds, curve))
    checks.append(_stream(worlds))
    checks.append(_budgets(outcomes))
    checks.append(_controller(worlds, outcomes, curve))
    real: dict[str, Any] | None = None
    if scale != "ci":
        progress("changes after the first run")
        checks += changed(worlds, outcomes, partial(_floor_figures, worlds))
        progress("the encoder-decoder's lambda")
        checks.append(_prices(worlds[:1], SEQ2SEQ, PRICED))
        checks.append(_written(worlds, outcomes))
        progress("another generalist: training")
        checks += swapped(worlds[0], other_generalist(), MIDDLE, progress)
        told, real = real_checks(smollm(), SIZE, seed, progress, place)
        checks += told
    result.points = points(records(worlds, outcomes), axis="prompt", seed=seed)
    rows = methods_data(outcomes)
    result.data = {"families": families, "uniform": curve, "methods": rows}
    if real is not None:
        result.data["real"] = real
    result.draw = drawer(families, curve, rows, real)
    return result.finish()


def _uniform_curve(worlds: Sequence[World]) -> dict[str, list[float]]:
    """Mean tokens and accuracy of k = 0..K for everybody."""
    acc_K = np.mean([world.test.accuracy_NK.mean(axis=0) for world in worlds], axis=0)
    tokens_K = np.mean([world.test.costs_NK.mean(axis=0) for world in worlds], axis=0)
    return {"tokens": [float(t) for t in tokens_K], "accuracy": [float(a) for a in acc_K]}


# -- claims ---------------------------------------------------------------------------------------


def _needs(families: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    checks = []
    for family, (low, high) in NEEDED.items():
        found = families[family]
        needed = int(found["needed"])
        checks.append(
            Check(
                f"{family}: demonstrations until the mean accuracy exceeds t",
                "k* differs between inputs",
                float(needed),
                low <= needed <= high,
                None,
                f"inputs with k* = 0, 1, ...: {found['k_star']}; "
                f"target: {low if low == high else f'{low} to {high}'}",
            )
        )
    return checks


def _gains(outcomes: Outcomes) -> list[Check]:
    checks = []
    for name in HEADS:
        for mean_k in MEANS:
            by = outcomes[mean_k]
            gain, ci = gap(by[name], by[UNIFORM])
            checks.append(
                Check(
                    f"{name} beats uniform k={mean_k} at equal tokens",
                    "a better trade-off than uniform",
                    gain,
                    gain >= GAIN,
                    ci,
                    f"{mean_of(by[name], 'accuracy'):.3f} against "
                    f"{mean_of(by[UNIFORM], 'accuracy'):.3f}; target: {GAIN}",
                )
            )
            share, share_ci = gain_share(by[name], by[UNIFORM], by[ORACLE])
            lucky, _ = gain_share(by[name], by[UNIFORM], by[LUCKY])
            checks.append(
                Check(
                    f"{name} at mean k={mean_k}: share of the oracle's gain",
                    "no figure",
                    share,
                    share >= SHARE,
                    share_ci,
                    f"of the gain of an oracle that sees the drawn outcomes: {lucky:.2f}; "
                    f"target: {SHARE} of what can be known",
                )
            )
    return checks


def _savings(outcomes: Outcomes, curve: Mapping[str, Sequence[float]]) -> list[Check]:
    checks = []
    for name in HEADS:
        shares = {}
        for mean_k in MEANS:
            mine = outcomes[mean_k][name]
            spent, reached = mean_of(mine, "tokens"), mean_of(mine, "accuracy")
            shares[mean_k] = saving(spent, reached, curve["tokens"], curve["accuracy"]).normalised
        shown = ", ".join(
            f"mean k={k}: " + ("uniform never gets there" if s is None else f"{s:.2f}")
            for k, s in shares.items()
        )
        middle = shares[MIDDLE]
        checks.append(
            Check(
                f"{name}: demonstration tokens saved at equal accuracy",
                "up to 46 %",
                "more than all" if middle is None else middle,
                middle is None or middle >= SAVED,
                None,
                f"at mean k={MIDDLE}; all: {shown}; target: {SAVED}",
            )
        )
    return checks


def _prices(worlds: Sequence[World], name: str, lambdas: Sequence[float]) -> Check:
    """Stage 2: a dearer demonstration, a smaller mean number."""
    means = []
    for lam in lambdas:
        each = []
        for world in worlds:
            training = replace(world.methods[name].training, rl_epochs=RL_EPOCHS)
            method = replace(world.methods[name], lam=lam, training=training, fitted=None).fit(
                world.train
            )
            policy_NK = method.predict(world.test.inputs).policy_NK
            each.append(float((policy_NK @ np.arange(world.test.K + 1)).mean()))
        means.append(float(np.mean(each)))
    falls = all(a > b for a, b in pairwise(means))
    return Check(
        f"{name}: a larger lambda lowers the policy's mean number of demonstrations",
        "the reward trades accuracy against k",
        means[-1] - means[0],
        falls,
        None,
        "mean k at lambda "
        + ", ".join(f"{lam}: {mean:.3f}" for lam, mean in zip(lambdas, means, strict=True))
        + f"; exact gradient, {RL_EPOCHS} epochs; target: falling at every step",
    )


def _written(worlds: Sequence[World], outcomes: Outcomes) -> Check:
    """The likeliest number instead of the mean of what may be written."""
    mine = []
    for world in worlds:
        policy_NK = world.methods[SEQ2SEQ].predict(world.test.inputs).policy_NK
        mine.append(in_proportion(world.test, policy_NK.argmax(axis=1).astype(float), MIDDLE))
    gain, ci = gap(mine, outcomes[MIDDLE][UNIFORM])
    return Check(
        f"{SEQ2SEQ}, the likeliest number instead of the mean: gain over uniform",
        "the controller writes the number",
        gain,
        None,
        ci,
        f"mean k={MIDDLE}; {mean_of(mine, 'accuracy'):.3f} against "
        f"{mean_of(outcomes[MIDDLE][SEQ2SEQ], 'accuracy'):.3f} by the mean",
    )


def _leaks(worlds: Sequence[World], outcomes: Outcomes) -> list[Check]:
    checks = []
    by = outcomes[MIDDLE]
    for name, label in SHUFFLED.items():
        gain, ci = gap(by[label], by[UNIFORM])
        checks.append(
            Check(
                f"{name}: trained on shuffled inputs it gains nothing",
                "what it gains comes from the input",
                gain,
                gain <= NO_GAIN,
                ci,
                f"over uniform k={MIDDLE}; target: at most {NO_GAIN}",
            )
        )
    for family in FAMILIES:
        found = [all_methods(world, MIDDLE, world.family_rows(family)) for world in worlds]
        for name in (PROPORTIONAL, UTILITY):
            gain, ci = gap([each[name] for each in found], [each[UNIFORM] for each in found])
            checks.append(
                Check(
                    f"a batch of {family} alone: {name} over uniform",
                    "nothing to distribute",
                    gain,
                    None,
                    ci,
                    f"mean k={MIDDLE}, {sum(len(e[name].quality_N) for e in found)} inputs",
                )
            )
    return checks


def _rivals(worlds: Sequence[World], outcomes: Outcomes) -> list[Check]:
    by = outcomes[MIDDLE]
    inputs = sum(len(world.test) for world in worlds)
    extra = sum(world.entropy_tokens for world in worlds) / inputs
    checks = []
    for name in GUESSES:
        gain, ci = gap(by[UTILITY], by[name])
        note = f"{mean_of(by[name], 'accuracy'):.3f}"
        if name == "zero-shot entropy":
            note += f", after {extra:.1f} further prompt tokens per input for its extra call"
        checks.append(
            Check(
                f"{UTILITY} beats {name} at equal tokens",
                "a baseline",
                gain,
                ci[0] > 0,
                ci,
                f"mean k={MIDDLE}; {name} reaches {note}; target: interval above 0",
            )
        )
    return checks


def _floor_runs(worlds: Sequence[World], training: Training) -> list[Outcome]:
    """Fixed accuracy, fewest tokens: half of the labels train, the other half calibrates."""
    outcomes = []
    for world in worlds:
        half = len(world.train) // 2
        learn, held = world.train.rows(range(half)), world.train.rows(range(half, 2 * half))
        method = replace(
            world.methods[UTILITY],
            allocation="floor",
            target_acc=FLOOR,
            training=training,
            fitted=None,
        ).fit(learn, held)
        table = world.test
        whole = [int(costs_of(table, d)[:, -1].sum()) for d in range(table.quality_NKD.shape[2])]

        def split(draw: int, _: int, *, method: DynaICL = method, table: Table = table) -> IntArray:
            return method.allocate(table.inputs, costs_of(table, draw), keys=table.ids)

        outcomes.append(run_split(table, whole, split))
    return outcomes


def _floor_figures(worlds: Sequence[World], training: Training) -> tuple[float, float]:
    """Accuracy and tokens where `FLOOR` is demanded."""
    outcomes = _floor_runs(worlds, training)
    return mean_of(outcomes, "accuracy"), mean_of(outcomes, "tokens")


def _floor(worlds: Sequence[World], curve: Mapping[str, Sequence[float]]) -> Check:
    outcomes = _floor_runs(worlds, TRAINING)
    quality_N = np.concatenate([outcome.quality_N for outcome in outcomes])
    interval = mean_interval(quality_N)
    error = float(quality_N.std(ddof=1)) / len(quality_N) ** 0.5
    tokens = mean_of(outcomes, "tokens")
    made = saving(tokens, interval.mean, curve["tokens"], curve["accuracy"])
    share = "no" if made.normalised is None else f"{made.normalised:.2f}"
    return Check(
        f"floor: a demanded accuracy of {FLOOR} is reached",
        "accuracy fixed, fewest tokens",
        interval.mean,
        interval.mean >= FLOOR - 2 * error,
        None if interval.lo is None or interval.hi is None else (interval.lo, interval.hi),
        f"{tokens:.1f} tokens of demonstrations per input, {share} saved against uniform at the "
        f"accuracy reached; calibrated on held-out inputs; target: within 2 s.e. of {FLOOR}",
    )


def _stream(worlds: Sequence[World]) -> Check:
    worst, scores = 0.0, []
    for world in worlds:
        table = world.test
        budgets = budgets_at(table, MIDDLE)
        method = world.methods[UTILITY]
        curves_NK = method.predict(table.inputs).curves_NK
        streams: list[Stream] = []

        def split(
            draw: int,
            budget: int,
            *,
            table: Table = table,
            method: DynaICL = method,
            curves_NK: FloatArray = curves_NK,
            streams: list[Stream] = streams,
        ) -> IntArray:
            costs_NK = costs_of(table, draw)
            stream = method.stream(costs_NK, budget)
            streams.append(stream)
            pairs = zip(curves_NK, costs_NK, strict=True)
            return np.array([stream.take(curve_K, cost_K) for curve_K, cost_K in pairs])

        outcome = run_split(table, budgets, split)
        scores.append(outcome.accuracy)
        worst = max(
            [worst, *(abs(s.mean / s.target - 1) for s in streams)],
        )
    return Check(
        "stream: the mean cost of inputs one by one meets the budget",
        "no figure",
        worst,
        worst <= STREAM,
        None,
        f"largest relative distance after {len(worlds[0].test)} inputs, over draws and seeds, at "
        f"mean k={MIDDLE}; accuracy {np.mean(scores):.3f}; target: {STREAM}",
    )


def _budgets(outcomes: Outcomes) -> Check:
    over = sum(o.over for by in outcomes.values() for runs in by.values() for o in runs)
    runs = sum(len(runs) for by in outcomes.values() for runs in by.values())
    return Check(
        "no allocation costs a token more than its budget",
        "rounding may break the paper's formula",
        float(over),
        over == 0,
        None,
        f"draws over budget, in {runs} runs of all methods; target: 0",
    )


def _controller(
    worlds: Sequence[World], outcomes: Outcomes, curve: Mapping[str, Sequence[float]]
) -> Check:
    inputs = [x for world in worlds for x in world.batch.inputs]
    read = sum(len(x.input) for x in inputs) / len(inputs)
    mine = outcomes[MIDDLE][UTILITY]
    tokens = mean_of(mine, "tokens")
    made = saving(tokens, mean_of(mine, "accuracy"), curve["tokens"], curve["accuracy"])
    saved = (curve["tokens"][-1] if made.uniform is None else made.uniform) - tokens
    return Check(
        "break-even: price of the generalist's token over the controller's",
        "the controller is small",
        break_even(read, saved),
        None,
        None,
        f"the controller reads {read:.1f} tokens an input, {saved:.1f} are saved at equal accuracy",
    )
