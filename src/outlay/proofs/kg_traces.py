"""Proof of KG-traces, part B: graph paths in the prompt make a real model answer more exactly.

fs1 (arXiv 2505.11140) says that reasoning along knowledge-graph paths raises factual accuracy, and
that test-time scaling adds a little. Part B runs SmolLM2-135M-Instruct on templated questions of
one and two hops over the graph of countries: closed book against the path in the prompt, each with
at most 40 new tokens, two worked examples before the question. Budgets of thinking and n samples
per question are reported for the same two prompts. Part A, which trains models on traces, is an
experiment of its own; its checks belong beside those of `real_model` in `run`.

The targets below were written before the first run. The form of the prompt was chosen on 16
questions of another seed: without worked examples this model puts no answer in a box, and exact
match is 0 for both prompts. Two things were changed after the first run, neither of them a target.
The paper's ChatML markers of thinking make this model, which was not trained on them, end every
forced answer at once (exact match 0 at every budget); the reported budgets now use plain-text
markers. And as the gain at one hop was not separable (0.2, p = 0.06), two changes of the prompt are
run on the one-hop questions and reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from outlay.decode.base import ThinkResult
from outlay.evals.base import Problem
from outlay.evals.factuality.analysis import Process, process
from outlay.evals.factuality.answers import extract_answer, semantic_match
from outlay.evals.factuality.countries import WORDS, countries
from outlay.figure import MARKERS, PALETTE
from outlay.frontier import points
from outlay.models.base import Model
from outlay.paired import Difference, paired
from outlay.proofs.base import Check, Progress, ProofResult, Scale, silent
from outlay.proofs.kg_traces_runs import (
    CLOSED,
    HOPS,
    NEW_TOKENS,
    PATH,
    TASKS,
    Arm,
    FactsFirst,
    Size,
    examples,
    greedy,
    run_arm,
)
from outlay.records import Record
from outlay.stats import Interval, mean_interval

# Targets.
GAIN = 0.2  # exact match with the path minus closed book: at least this, and separable


SIZES: Mapping[Scale, Size] = {
    "ci": Size(2, 1, (4, 8), 1, 2, full=False),
    "laptop": Size(60, 16, (64, 128, 256), 4, 8, full=True),
    "gpu": Size(600, 200, (64, 128, 256, 512), 8, 16, full=True),
}


def run(scale: Scale, *, seed: int = 0, progress: Progress = silent) -> ProofResult:
    """Run the experiment; see `SIZES` for what each scale means."""
    size = SIZES[scale]
    result = ProofResult("kg-traces", scale, [seed])
    real_model(result, size, seed, progress, None if scale == "gpu" else "cpu")
    return result.finish()


def real_model(
    result: ProofResult, size: Size, seed: int, progress: Progress, device: str | None
) -> None:
    """Part B: adds its checks, points, data and picture to `result`."""
    from outlay.models import embedded

    model = embedded.load(device=device)
    problems = TASKS[PATH].sample(seed, size.questions)
    bare = [replace(problem, context="") for problem in problems]
    asked = {PATH: problems, CLOSED: bare}
    shown = {name: examples(task, seed, problems) for name, task in TASKS.items()}
    arms = {
        name: run_arm(model, name, asked[name], shown[name], size, seed, progress) for name in TASKS
    }
    result.checks += [_gain(arms, problems, None)]
    result.checks += [_gain(arms, problems, hops) for hops in HOPS]
    if size.full:
        result.checks += _changes(model, asked, arms, shown, seed, progress)
    result.checks += [_mechanics(arms, size), *_reported(arms, asked, size)]
    result.points = points(
        [record for arm in arms.values() for record in arm.records], axis="all", seed=seed
    )
    result.data = _data(arms, asked)
    result.draw = _drawer(arms)


def _changes(
    model: Model,
    asked: Mapping[str, Sequence[Problem]],
    arms: Mapping[str, Arm],
    shown: Mapping[str, Sequence[Problem]],
    seed: int,
    progress: Progress,
) -> list[Check]:
    """Two changes tried on the one-hop questions: reported, without a target."""
    single = {name: [p for p in rows if p.meta["hops"] == 1] for name, rows in asked.items()}
    four: dict[str, list[Record]] = {}
    for name, task in TASKS.items():
        progress(f"{name}: four worked examples")
        worked = examples(task, seed, asked[PATH], kinds=2)
        four[name] = greedy(model, task, name, single[name], worked, seed)[1]
    progress("facts before the question")
    first = FactsFirst(paths="path", hops=HOPS)
    moved = greedy(model, first, PATH, single[PATH], shown[PATH], seed)[1]
    return [
        _changed(
            "four worked examples, two kinds of answers per number of hops",
            four[PATH],
            four[CLOSED],
        ),
        _changed("facts before the question", moved, arms[CLOSED].records),
    ]


def _changed(what: str, ours: Sequence[Record], theirs: Sequence[Record]) -> Check:
    gap = paired(ours, theirs)
    mean = float(np.mean([record.quality for record in ours]))
    return Check(
        f"change tried at 1 hop: {what}",
        "",
        gap.mean,
        None,
        (gap.lo, gap.hi),
        f"{mean:.3f} with the path, n={gap.n}, p={gap.p:.3f}",
    )


# -- claims ---------------------------------------------------------------------------------------


def _gain(arms: Mapping[str, Arm], problems: Sequence[Problem], hops: int | None) -> Check:
    chosen = {p.id for p in problems if hops is None or p.meta["hops"] == hops}
    rows = {
        name: [record for record in arm.records if record.example in chosen]
        for name, arm in arms.items()
    }
    gap = paired(rows[PATH], rows[CLOSED])
    return gain_check(
        gap, hops, {name: float(np.mean([r.quality for r in row])) for name, row in rows.items()}
    )


def gain_check(gap: Difference, hops: int | None, means: Mapping[str, float]) -> Check:
    """Whether exact match rises: strongly over all questions, separably at each number of hops."""
    least = GAIN if hops is None else 0.0
    held = gap.separable and gap.mean > 0 and gap.mean >= least
    where = "" if hops is None else f" at {hops} hop{'s' * (hops > 1)}"
    target = f"at least {GAIN} and separable from 0" if hops is None else "separably above 0"
    return Check(
        f"SmolLM2-135M: the path in the prompt raises exact match{where}",
        "upper reference: path prompting; gains grow with hops",
        gap.mean,
        held,
        (gap.lo, gap.hi),
        f"{means[PATH]:.3f} against {means[CLOSED]:.3f} closed book, n={gap.n}, p={gap.p:.3f}, "
        f"{NEW_TOKENS} new tokens; target: {target}",
    )


def _mechanics(arms: Mapping[str, Arm], size: Size) -> Check:
    broken = 0
    for arm in arms.values():
        broken += sum(a.passed > b.passed + 1e-9 for a, b in pairwise(arm.parallel))
        broken += sum(point.majority > point.passed + 1e-9 for point in arm.parallel)
        for shorter, longer in pairwise(arm.sequential):
            broken += sum(
                _thought(a) > _thought(b)
                for a, b in zip(shorter.results, longer.results, strict=True)
            )
        for point in arm.sequential:
            broken += sum(_thought(made) > point.budget for made in point.results)
            broken += sum(made.waits > size.waits for made in point.results)
    return Check(
        "curves obey their definitions",
        "pass@k grows with k and bounds the vote; thinking stays within B",
        float(broken),
        broken == 0,
        None,
        "violations of: pass@k monotone, majority@k <= pass@k, tokens of thinking <= B and growing "
        "with B, waits bounded; target: 0",
    )


def _thought(made: ThinkResult) -> int:
    total = made.ledger.totals(stage="think")
    return total.generated + total.forced


def _reported(
    arms: Mapping[str, Arm], asked: Mapping[str, Sequence[Problem]], size: Size
) -> list[Check]:
    checks = []
    for name, arm in arms.items():
        for point in arm.sequential:
            interval = mean_interval(np.array(point.correct, dtype=float))
            checks.append(
                Check(
                    f"{name}: exact match with {point.budget} tokens of thinking",
                    "v1: +2 to 8 %, best near 2K tokens",
                    interval.mean,
                    None,
                    _ends(interval.lo, interval.hi),
                    f"n={interval.n}, {point.thinking:.0f} tokens of thinking, "
                    f"{point.waits:.1f} waits; not trained to think",
                )
            )
        last = arm.parallel[-1]
        checks.append(
            Check(
                f"{name}: pass@{last.k}",
                "Qwen2.5-0.5B: pass@1 .135 (rt), .209 (fs1)",
                last.passed,
                None,
                None,
                f"pass@1 {arm.parallel[0].passed:.3f}, majority@{last.k} {last.majority:.3f}, "
                f"{len(arm.samples)} questions",
            )
        )
        score = _process(arm)
        checks.append(
            Check(
                f"{name}: share of checkable statements in the thinking that the graph states",
                "process accuracy is ours",
                "none checkable" if score.accuracy is None else score.accuracy,
                None,
                None,
                f"{score.right} right, {score.wrong} wrong, at the largest budget",
            )
        )
        if not size.full:
            continue
        near = _semantic(arm, asked[name])
        checks.append(
            Check(
                f"{name}: semantic match",
                "rt .52, fs1 .60 (of teacher traces)",
                near.mean,
                None,
                _ends(near.lo, near.hi),
                f"MiniLM cosine > 0.9, n={near.n}, greedy replies",
            )
        )
    return checks


def _ends(lo: float | None, hi: float | None) -> tuple[float, float] | None:
    return None if lo is None or hi is None else (lo, hi)


def _process(arm: Arm) -> Process:
    graph = countries()
    scores = [process(graph, made.thinking, WORDS) for made in arm.sequential[-1].results]
    return sum(scores, Process(0, 0))


def _semantic(arm: Arm, problems: Sequence[Problem]) -> Interval:
    given = [extract_answer(reply.text).text for reply in arm.replies]
    gold = [problem.meta["answers"] for problem in problems]
    return mean_interval(np.array(semantic_match(given, gold), dtype=float))


# -- data and picture -----------------------------------------------------------------------------


def _data(arms: Mapping[str, Arm], asked: Mapping[str, Sequence[Problem]]) -> dict[str, Any]:
    graph = countries()
    return {
        "graph": f"{graph.name} {graph.version}",
        "parts": ["B"],
        "arms": {
            name: {
                "found_by": _counts(extract_answer(reply.text).how for reply in arm.replies),
                "parallel": [
                    {
                        "k": point.k,
                        "pass": round(point.passed, 4),
                        "majority": round(point.majority, 4),
                        "tokens": round(point.tokens, 1),
                    }
                    for point in arm.parallel
                ],
                "sequential": [
                    {
                        "B": point.budget,
                        "accuracy": round(point.accuracy, 4),
                        "thinking": round(point.thinking, 1),
                        "tokens": round(point.tokens, 1),
                        "waits": round(point.waits, 2),
                    }
                    for point in arm.sequential
                ],
                "replies": [
                    {
                        "question": problem.question,
                        "hops": problem.meta["hops"],
                        "gold": problem.answer,
                        "reply": reply.text,
                        "right": record.quality,
                    }
                    for problem, reply, record in zip(
                        asked[name], arm.replies, arm.records, strict=True
                    )
                ],
            }
            for name, arm in arms.items()
        },
    }


def _counts(items: Any) -> dict[str, int]:
    found = list(items)
    return {item: found.count(item) for item in sorted(set(found))}


def _drawer(arms: Mapping[str, Arm]) -> Callable[[Path], None]:
    def draw_to(path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10.0, 4.2), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.5), sharey=True)
        for index, (name, arm) in enumerate(arms.items()):
            _bar(left, index, name, arm)
            _curves(right, index, name, arm)
        left.set_xticks(range(len(arms)), list(arms))
        left.set_xlim(-0.6, len(arms) - 0.4)
        left.set_ylabel("exact match, 95 % interval")
        questions = len(next(iter(arms.values())).records)
        left.set_title(f"Greedy, {questions} questions", loc="left", fontsize=10)
        few = len(next(iter(arms.values())).samples)
        right.set_title(f"Test-time scaling, {few} questions", loc="left", fontsize=10)
        right.set_xlabel("tokens per question (prompt included)")
        right.legend(frameon=False, fontsize=8)
        for axes in (left, right):
            axes.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_ylim(-0.02, 1.02)
        figure.savefig(path)

    return draw_to


def _bar(axes: Any, index: int, name: str, arm: Arm) -> None:
    interval = mean_interval(np.array([record.quality for record in arm.records]))
    lo, hi = _ends(interval.lo, interval.hi) or (interval.mean, interval.mean)
    errors = [[interval.mean - lo], [hi - interval.mean]]
    axes.bar(index, interval.mean, 0.55, color=PALETTE[index], yerr=errors, capsize=4)


def _curves(axes: Any, index: int, name: str, arm: Arm) -> None:
    cost = [point.tokens for point in arm.parallel]
    for offset, (label, values) in enumerate(
        (
            ("pass@k", [point.passed for point in arm.parallel]),
            ("majority@k", [point.majority for point in arm.parallel]),
        )
    ):
        axes.plot(
            cost,
            values,
            color=PALETTE[index],
            marker=MARKERS[offset],
            linestyle=("-", "--")[offset],
            linewidth=1.6,
            label=f"{name}: {label}",
        )
    axes.plot(
        [point.tokens for point in arm.sequential],
        [point.accuracy for point in arm.sequential],
        color=PALETTE[index],
        marker=MARKERS[2],
        linestyle=":",
        linewidth=1.6,
        label=f"{name}: budget forcing",
    )
