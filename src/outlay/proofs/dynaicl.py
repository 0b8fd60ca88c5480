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

Every target below was written before the first run. Changes that were tried after it are reported
without targets, see `dynaicl_changes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from outlay.figure import MARKERS, PALETTE
from outlay.frontier import points
from outlay.prompt.dynaicl.config import Training
from outlay.prompt.dynaicl.method import DynaICL
from outlay.prompt.dynaicl.serving import break_even, saving
from outlay.prompt.dynaicl.stream import Stream
from outlay.prompt.dynaicl.table import Table
from outlay.proofs.base import Check, Progress, ProofResult, Scale, silent
from outlay.proofs.dynaicl_changes import changed
from outlay.proofs.dynaicl_runs import (
    GUESSES,
    LUCKY,
    ORACLE,
    PROPORTIONAL,
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
    make_world,
    needed_by_family,
    records,
    run_split,
)
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
MIDDLE = 2  # the mean at which baselines, savings and leaks are judged


@dataclass(frozen=True)
class Size:
    """Inputs with labels for training and testing, draws, and seeds."""

    train: int
    test: int
    n_s: int
    seeds: int


SIZES: Mapping[Scale, Size] = {
    "ci": Size(150, 120, 2, 1),
    "laptop": Size(600, 500, 4, 3),
    "gpu": Size(4000, 4000, 8, 5),
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
    worlds = [
        make_world(ask, each, size.train, size.test, size.n_s, progress, place) for each in seeds
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
    checks.append(_prices(worlds))
    checks += _leaks(worlds, outcomes)
    checks += _rivals(worlds, outcomes)
    checks.append(_floor(worlds, curve))
    checks.append(_stream(worlds))
    checks.append(_budgets(outcomes))
    checks.append(_controller(worlds, outcomes, curve))
    if scale != "ci":
        progress("changes after the first run")
        checks += changed(worlds, outcomes, partial(_floor_figures, worlds))
    result.points = points(records(worlds, outcomes), axis="prompt", seed=seed)
    result.data = {"families": families, "uniform": curve, "methods": _data(outcomes)}
    result.draw = _drawer(families, curve, outcomes)
    return result.finish()


def _uniform_curve(worlds: Sequence[World]) -> dict[str, list[float]]:
    """Mean tokens and accuracy of k = 0..K for everybody."""
    acc_K = np.mean([world.test.accuracy_NK.mean(axis=0) for world in worlds], axis=0)
    tokens_K = np.mean([world.test.costs_NK.mean(axis=0) for world in worlds], axis=0)
    return {"tokens": [float(t) for t in tokens_K], "accuracy": [float(a) for a in acc_K]}


def _mean(outcomes: Sequence[Outcome], name: str) -> float:
    return float(np.mean([getattr(outcome, name) for outcome in outcomes]))


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
    for name in (PROPORTIONAL, UTILITY):
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
                    f"{_mean(by[name], 'accuracy'):.3f} against "
                    f"{_mean(by[UNIFORM], 'accuracy'):.3f}; target: {GAIN}",
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
    for name in (PROPORTIONAL, UTILITY):
        shares = {}
        for mean_k in MEANS:
            mine = outcomes[mean_k][name]
            made = saving(
                _mean(mine, "tokens"), _mean(mine, "accuracy"), curve["tokens"], curve["accuracy"]
            )
            shares[mean_k] = made.normalised
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


def _prices(worlds: Sequence[World]) -> Check:
    """Stage 2: a dearer demonstration, a smaller mean number."""
    means = []
    for lam in LAMBDAS:
        each = []
        for world in worlds:
            training = replace(TRAINING, rl_epochs=RL_EPOCHS)
            method = replace(
                world.methods[PROPORTIONAL], lam=lam, training=training, fitted=None
            ).fit(world.train)
            policy_NK = method.predict(world.test.inputs).policy_NK
            each.append(float((policy_NK @ np.arange(world.test.K + 1)).mean()))
        means.append(float(np.mean(each)))
    falls = all(a > b for a, b in pairwise(means))
    return Check(
        "a larger lambda lowers the policy's mean number of demonstrations",
        "the reward trades accuracy against k",
        means[-1] - means[0],
        falls,
        None,
        "mean k at lambda "
        + ", ".join(f"{lam}: {mean:.3f}" for lam, mean in zip(LAMBDAS, means, strict=True))
        + f"; exact gradient, {RL_EPOCHS} epochs; target: falling at every step",
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
        note = f"{_mean(by[name], 'accuracy'):.3f}"
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
    return _mean(outcomes, "accuracy"), _mean(outcomes, "tokens")


def _floor(worlds: Sequence[World], curve: Mapping[str, Sequence[float]]) -> Check:
    outcomes = _floor_runs(worlds, TRAINING)
    quality_N = np.concatenate([outcome.quality_N for outcome in outcomes])
    interval = mean_interval(quality_N)
    error = float(quality_N.std(ddof=1)) / len(quality_N) ** 0.5
    tokens = _mean(outcomes, "tokens")
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
    tokens = _mean(mine, "tokens")
    made = saving(tokens, _mean(mine, "accuracy"), curve["tokens"], curve["accuracy"])
    saved = (curve["tokens"][-1] if made.uniform is None else made.uniform) - tokens
    return Check(
        "break-even: price of the generalist's token over the controller's",
        "the controller is small",
        break_even(read, saved),
        None,
        None,
        f"the controller reads {read:.1f} tokens an input, {saved:.1f} are saved at equal accuracy",
    )


# -- data and picture -----------------------------------------------------------------------------


def _data(outcomes: Outcomes) -> list[dict[str, Any]]:
    return [
        {
            "mean_k": mean_k,
            "method": name,
            "accuracy": round(_mean(runs, "accuracy"), 4),
            "tokens": round(_mean(runs, "tokens"), 2),
            "k": round(float(np.mean([run.k_N.mean() for run in runs])), 3),
        }
        for mean_k, by in outcomes.items()
        for name, runs in by.items()
    ]


def _drawer(
    families: Mapping[str, Mapping[str, Any]],
    curve: Mapping[str, Sequence[float]],
    outcomes: Outcomes,
) -> Callable[[Path], None]:
    def draw(path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10.0, 4.2), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, sharey=True)
        for index, family in enumerate(FAMILIES):
            left.plot(
                families[family]["curve"],
                color=PALETTE[index],
                marker=MARKERS[index],
                markersize=5,
                linewidth=1.6,
                label=family,
            )
        left.set_xlabel("demonstrations k")
        left.set_ylabel("accuracy")
        left.set_title("Inputs need different numbers of demonstrations", loc="left", fontsize=10)
        right.plot(
            curve["tokens"],
            curve["accuracy"],
            color="#6B6B6B",
            marker="x",
            markersize=5,
            linewidth=1.6,
            label="uniform k",
        )
        for index, name in enumerate((PROPORTIONAL, UTILITY, ORACLE)):
            runs = [outcomes[mean_k][name] for mean_k in MEANS]
            quality = [np.concatenate([o.quality_N for o in each]) for each in runs]
            spread = [mean_interval(q_N) for q_N in quality]
            ends = [[i.mean - (i.lo or 0.0), (i.hi or 1.0) - i.mean] for i in spread]
            right.errorbar(
                [_mean(each, "tokens") + 0.25 * (index - 1) for each in runs],  # apart
                [interval.mean for interval in spread],
                yerr=np.array(ends).T,
                color=PALETTE[index],
                marker=MARKERS[index],
                markersize=5,
                linewidth=1.6,
                elinewidth=1.0,
                capsize=2.5,
                linestyle="--" if name == ORACLE else "-",
                label=name,
            )
        right.set_xlabel("tokens of demonstrations per input")
        right.set_title("Giving each what it needs, at equal tokens", loc="left", fontsize=10)
        for axes in (left, right):
            axes.legend(frameon=False, fontsize=8, loc="lower right")
            axes.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_ylim(-0.02, 1.02)
        figure.savefig(path)

    return draw
