"""Proof of Plan-and-Budget on joined chains, of its bounds on a real model, and of BAM's optimum.

"Plan and Budget" (arXiv 2505.16122) says: the same budget buys more where it is shared by what the
sub-questions need. Questions are sums of two to four chains of unequal length; a chain that is cut
short spoils the sum. B is a share of what an *even* split needs, that is, steps times the longest
step: at 100 % an even split starves nobody, so there all sensible splits must agree, and below it
only those that know the lengths can be right. Enforced mode throughout; questions differ by seed,
decoding is greedy.

Every target below was written before the first run on the checkpoint that is shipped. The grid of
calibration budgets and the check of ascending lengths were changed after a dry run on a scripted
reasoner that makes no errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from outlay.evals.base import Problem
from outlay.figure import MARKERS, PALETTE
from outlay.frontier import points
from outlay.models.base import Model
from outlay.models.local import LocalModel
from outlay.paired import paired
from outlay.proofs.base import Check, Progress, ProofResult, Scale, silent
from outlay.proofs.plan_and_budget_runs import (
    ASKED,
    OURS,
    RESERVE,
    Adherence,
    Cell,
    EarlyExit,
    PlanningCost,
    Theory,
    adherence,
    calibrate,
    curve_reader,
    even_need,
    natural,
    planning,
    random_groups,
    run_policy,
    theory,
    whole,
)
from outlay.reason import Reasoner
from outlay.reason.plan_and_budget import SCHEDULES, PlanAndBudget, StructuralPlanner
from outlay.reason.plan_and_budget.structural import step_tokens
from outlay.records import Record
from outlay.stats import mean_interval, percentiles
from outlay.testbeds.reasoner import checkpoint_path
from outlay.testbeds.reasoner.joined import JoinedArith, Order

SHARES = (0.4, 0.6, 0.8, 1.0)
TASK = JoinedArith()
PLANNED = 4  # prompts for which the real model plans itself
EQUAL_AT_FULL = 0.03  # accuracies at 100 % are this close
BARELY = 0.3  # correlation of tokens used with tokens asked that counts as barely any


@dataclass(frozen=True)
class Size:
    """How much is run: shares of B, seeds and problems a seed, calibration, problems of the ladder,
    draws of curves, prompts of the real model."""

    shares: tuple[float, ...]
    seeds: int
    problems: int
    calibration: int
    ladder: int
    draws: int
    prompts: int


SIZES: Mapping[Scale, Size] = {
    "ci": Size((0.6, 1.0), 1, 12, 12, 0, 200, 0),
    "laptop": Size(SHARES, 3, 170, 200, 150, 1000, 12),
    "gpu": Size(SHARES, 3, 1000, 1000, 500, 1000, 100),
}
Cells = dict[tuple[str, float], Cell]


def run(
    scale: Scale, *, seed: int = 0, progress: Progress = silent, folder: Path | None = None
) -> ProofResult:
    """Run the experiment; see `SIZES` for what each scale means.

    Args:
        scale: how much is run.
        seed: the first of the seeds.
        progress: called with what is being run.
        folder: of the reasoner's checkpoint; None is the shipped one.
    """
    size = SIZES[scale]
    seeds = list(range(seed, seed + size.seeds))
    result = ProofResult("plan-and-budget", scale, seeds)
    device = None if scale == "gpu" else "cpu"
    model = LocalModel.load(folder or checkpoint_path(), name="reasoner", device=device)
    problems = [p for s in seeds for p in TASK.sample(s, size.problems)]
    progress("calibration")
    measured = calibrate(model, TASK, TASK.sample(1000 + seed, size.calibration))
    policies = _policies(curve_reader(TASK, measured), seed)
    cells: Cells = {}
    for name, method in policies.items():
        for share in size.shares:
            progress(f"{name} at {share:.0%}")
            cells[name, share] = _at(model, problems, name, method, share)
    checks = result.checks
    checks += _allocation(cells, seed)
    checks += _late(cells, problems)
    checks += _efficiency(cells, seed)
    shown: dict[str, Any] = {}
    if size.ladder:
        checks += _levels(model, problems, progress, seed)
        checks += _ladder(model, problems[: size.ladder], progress, shown)
        checks += _front(model, size.ladder, seed, progress)
    checks.append(_bounds(cells, problems))
    progress("theory")
    checks += _theory(theory(size.draws, seed))
    if size.prompts:
        from outlay.models import embedded

        progress("real model")
        real = embedded.load(device=device)
        checks += _real(
            adherence(real, size.prompts, seed), planning(real, min(size.prompts, PLANNED), seed)
        )
    records = [record for cell in cells.values() for record in cell.records]
    result.points = points(records, axis="generated+forced", seed=seed)
    shown["curves"] = {n: [curve.c, curve.a] for n, curve in sorted(measured.items())}
    shown["cells"] = [_row(name, share, cell) for (name, share), cell in cells.items()]
    result.data = shown
    result.draw = _drawer(cells)
    return result.finish()


def _policies(curves: Callable[..., Any], seed: int) -> dict[str, PlanAndBudget]:
    return {
        "even": replace(OURS, planner=StructuralPlanner("equal"), allocator="uniform"),
        "oracle": OURS,
        "noisy": replace(OURS, planner=StructuralPlanner("noisy", seed=seed)),
        "reversed": replace(OURS, planner=StructuralPlanner("reversed")),
        "BAM": replace(OURS, allocator="bam", curves=curves),
        "global cap": replace(OURS, planner=whole, limits="global"),
    }


def _budgets(problems: Sequence[Problem], share: float) -> list[int]:
    return [round(share * even_need(TASK, problem)) for problem in problems]


def _at(
    model: Model, problems: Sequence[Problem], name: str, method: PlanAndBudget, share: float
) -> Cell:
    return run_policy(model, TASK, problems, name, method, _budgets(problems, share), share)


# -- claims ---------------------------------------------------------------------------------------


def _shares(cells: Cells) -> list[float]:
    return list(dict.fromkeys(share for _, share in cells))


def _tight(cells: Cells) -> list[float]:
    return [share for share in _shares(cells) if share < 1]


def _pooled(cells: Cells, name: str) -> list[Record]:
    """The records of one policy at all budgets below 100 %."""
    return [record for share in _tight(cells) for record in cells[name, share].records]


def _accuracies(cells: Cells, name: str) -> str:
    shares = _shares(cells)
    return ", ".join(f"{share:.0%}: {cells[name, share].right.mean():.3f}" for share in shares)


def _allocation(cells: Cells, seed: int) -> list[Check]:
    checks = []
    for better, worse in (("oracle", "even"), ("BAM", "even"), ("even", "reversed")):
        gap = paired(_pooled(cells, better), _pooled(cells, worse), seed=seed)
        checks.append(
            Check(
                f"below 100 % of B, {better} weights beat {worse} ones",
                "allocation by need beats a uniform split, which beats a wrong one",
                gap.mean,
                gap.separable and gap.mean > 0,
                (gap.lo, gap.hi),
                f"accuracy, paired, n={gap.n}; {better} {_accuracies(cells, better)}; {worse} "
                f"{_accuracies(cells, worse)}; target: separably above 0",
            )
        )
    noisy = paired(_pooled(cells, "noisy"), _pooled(cells, "even"), seed=seed)
    checks.append(
        Check(
            "noisy weights (factor e^0.5) against an even split",
            "",
            noisy.mean,
            None,
            (noisy.lo, noisy.hi),
            f"accuracy, paired, n={noisy.n}; noisy {_accuracies(cells, 'noisy')}",
        )
    )
    names = ("even", "oracle", "BAM", "global cap")
    full = {name: float(cells[name, 1.0].right.mean()) for name in names}
    spread = max(full.values()) - min(full.values())
    listed = ", ".join(f"{name} {value:.3f}" for name, value in full.items())
    checks.append(
        Check(
            "at 100 % even, oracle, BAM and global cap are equal",
            "a sufficient budget needs no allocation",
            spread,
            spread <= EQUAL_AT_FULL,
            None,
            f"largest difference in accuracy; {listed}; reversed weights, which still starve the "
            f"longest step: {cells['reversed', 1.0].right.mean():.3f}; target: at most "
            f"{EQUAL_AT_FULL}",
        )
    )
    return checks


def _late(cells: Cells, problems: Sequence[Problem]) -> list[Check]:
    """Which chains a cap on the whole costs: those that come last."""
    share = min(_shares(cells))
    cell = cells["global cap", share]
    cut = [
        i
        for i, problem in enumerate(problems)
        if sum(step_tokens(TASK.chain(problem))) > round(share * even_need(TASK, problem))
    ]
    if not cut:
        return []
    gap_N = np.array([float(cell.blocks[i][0]) - float(cell.blocks[i][-1]) for i in cut])
    gap = mean_interval(gap_N)
    first = float(np.mean([cell.blocks[i][0] for i in cut]))
    return [
        Check(
            "a global cap fails on late chains",
            "truncation falls on what comes last",
            gap.mean,
            gap.lo is not None and gap.lo > 0,
            None if gap.lo is None or gap.hi is None else (gap.lo, gap.hi),
            f"share of first chains right ({first:.3f}) minus last ones, on the {len(cut)} "
            f"questions that need more than {share:.0%}; target: interval above 0",
        )
    ]


def _efficiency(cells: Cells, seed: int) -> list[Check]:
    checks = []
    tight = _tight(cells)
    for name, holds_needed in (("even", True), ("global cap", False)):
        ours = np.mean([cells["oracle", s].e3_resamples(seed) for s in tight], axis=0)
        theirs = np.mean([cells[name, s].e3_resamples(seed) for s in tight], axis=0)
        lo, hi = percentiles(ours - theirs, 0.95)
        listed = "; ".join(
            f"{s:.0%}: {cells['oracle', s].e3:.1f} against {cells[name, s].e3:.1f}" for s in tight
        )
        mean = float(np.mean([cells["oracle", s].e3 - cells[name, s].e3 for s in tight]))
        checks.append(
            Check(
                f"E3 of oracle weights minus that of {_FLAT[name]}, below 100 % of B",
                "E3 up to +193.8 % over the global budget",
                mean,
                lo > 0 if holds_needed else None,
                (lo, hi),
                f"{listed}; {'target: interval above 0' if holds_needed else _WHY_EQUAL}",
            )
        )
    efficiencies = {share: cells["oracle", share].e3 for share in _shares(cells)}
    best = max(efficiencies, key=lambda share: efficiencies[share])
    checks.append(
        Check(
            "E3 of oracle weights peaks below 100 % of B",
            "an interior optimum",
            best,
            best < 1.0,
            None,
            ", ".join(f"{share:.0%}: {value:.2f}" for share, value in efficiencies.items())
            + "; target: below 1",
        )
    )
    return checks


_FLAT = {"even": "a flat split over the steps", "global cap": "a global cap"}
_WHY_EQUAL = (
    "no target: this model stops by itself when a step is done, so a shared pool wastes little; "
    "local budgets pay where a model overthinks, or where a step must not eat the others' share"
)


def _levels(
    model: Model, problems: Sequence[Problem], progress: Progress, seed: int
) -> list[Check]:
    """One B for all questions against B by level, at the same mean."""
    progress("budgets by level")
    needs: dict[int, int] = {}
    for problem in TASK.sample(2000 + seed, 300):
        level = problem.meta["level"]
        needs[level] = max(needs.get(level, 0), sum(step_tokens(TASK.chain(problem))))
    given = [needs.get(problem.meta["level"], max(needs.values())) for problem in problems]
    flat = round(float(np.mean(given)))
    pool = replace(OURS, limits="global")
    by_level = run_policy(model, TASK, problems, "by level", OURS, given, 2.0)
    same = run_policy(model, TASK, problems, "flat B", OURS, [flat] * len(problems), 2.0)
    capped = run_policy(model, TASK, problems, "flat cap", pool, [flat] * len(problems), 2.0)
    checks = []
    for name, other in (("one B for all, shared by need", same), ("one cap for all", capped)):
        lo, hi = percentiles(by_level.e3_resamples(seed) - other.e3_resamples(seed), 0.95)
        checks.append(
            Check(
                f"E3 of budgets by level minus {name}",
                "budgets follow difficulty",
                by_level.e3 - other.e3,
                lo > 0,
                (lo, hi),
                f"mean B {np.mean(given):.0f} in both; accuracy {by_level.right.mean():.3f} "
                f"against {other.right.mean():.3f}, tokens {by_level.tokens.mean():.1f} against "
                f"{other.tokens.mean():.1f}; target: interval above 0",
            )
        )
    return checks


def _ladder(
    model: Model, problems: Sequence[Problem], progress: Progress, shown: dict[str, Any]
) -> list[Check]:
    """All rungs of the published ladder at one B."""
    share = 0.6
    rungs: dict[str, tuple[Reasoner, bool]] = {
        "vanilla": (replace(OURS, planner=natural, limits="none"), False),
        "planned": (replace(OURS, limits="none"), False),
        "global": (replace(OURS, planner=whole, limits="global"), True),
        "planned + global": (replace(OURS, limits="global"), True),
        "planned + uniform": (replace(OURS, allocator="uniform"), True),
        "planned + uniform, no roll-over": (
            replace(OURS, allocator="uniform", rollover="none"),
            True,
        ),
    }
    rungs["random decomposition"] = (replace(OURS, planner=random_groups), True)
    rungs["early exit on a stable answer"] = (EarlyExit(), True)
    for schedule in SCHEDULES:
        rungs[f"planned + weighted, {schedule}"] = (replace(OURS, schedule=schedule), True)
    rows = []
    for name, (method, limited) in rungs.items():
        progress(f"ladder: {name}")
        budgets = _budgets(problems, share) if limited else None
        cell = run_policy(model, TASK, problems, name, method, budgets, share)
        rows.append({"rung": name, **_row(name, share if limited else 0.0, cell)})
    shown["ladder"] = rows
    by_name = {row["rung"]: row["e3"] for row in rows}
    gain = by_name["planned + weighted, constant"] / by_name["vanilla"] - 1
    return [
        Check(
            "E3 of planned + weighted over vanilla",
            "up to +193.8 %",
            f"{gain:+.0%}",
            None,
            None,
            f"n={len(problems)}, B at {share:.0%}; E3 by rung: "
            + ", ".join(f"{name} {value:.1f}" for name, value in by_name.items()),
        )
    ]


def _front(model: Model, n: int, seed: int, progress: Progress) -> list[Check]:
    """Front-loaded schedules where the late chains are the long ones, and where they are short.

    Late chains that are long are starved even at 100 % of B; the others show below it whether
    front-loading helps.
    """
    checks = []
    orders: tuple[tuple[Order, float], ...] = (("ascending", 1.0), ("descending", 0.8))
    for order, share in orders:
        progress(f"schedules: {order} lengths")
        task = JoinedArith(order=order)
        problems = task.sample(seed, n)
        budgets = [round(share * even_need(task, problem)) for problem in problems]
        blind = replace(OURS, planner=StructuralPlanner("equal"), rollover="none")
        made = {
            schedule: run_policy(
                model, task, problems, schedule, replace(blind, schedule=schedule), budgets, share
            )
            for schedule in ("constant", "polynomial", "cosine")
        }
        late = order == "ascending"
        for schedule in ("polynomial", "cosine"):
            gap = paired(made[schedule].records, made["constant"].records, seed=seed)
            checks.append(
                Check(
                    f"{schedule} against constant schedule, {order} lengths",
                    "polynomial and cosine are best",
                    gap.mean,
                    (gap.separable and gap.mean < 0) if late else None,
                    (gap.lo, gap.hi),
                    f"equal credits, no roll-over, {share:.0%} of B, n={gap.n}; accuracy "
                    f"{made[schedule].right.mean():.3f} against "
                    f"{made['constant'].right.mean():.3f}"
                    + ("; target: separably below 0, late chains are longer" if late else ""),
                )
            )
    return checks


def _bounds(cells: Cells, problems: Sequence[Problem]) -> Check:
    over = runs = 0
    for (_, share), cell in cells.items():
        for total, sampled in zip(_budgets(problems, share), cell.sampled, strict=True):
            over += sampled > total + RESERVE
            runs += 1
    return Check(
        "no run samples a token over B + answer_reserve",
        "",
        float(over),
        over == 0,
        None,
        f"runs over, of {runs}; target: 0",
    )


def _theory(found: Theory) -> list[Check]:
    slack = 1 + 1e-9
    worse = int((found.exact_D > slack * np.minimum(found.closed_D, found.uniform_D)).sum())
    draws = len(found.exact_D)
    ratio = float(np.median(found.closed_D / found.exact_D))
    return [
        Check(
            "exact BAM leaves no more uncertainty than the printed form and the even split",
            "the printed form is called optimal",
            float(worse),
            worse == 0,
            None,
            f"draws where it does, of {draws}; target: 0",
        ),
        Check(
            "draws where the printed form is worse than an even split",
            "",
            float((found.closed_D > slack * found.uniform_D).mean()),
            None,
            None,
            f"share of {draws} with unequal rates; printed over exact uncertainty, median "
            f"{ratio:.3f}, largest {float((found.closed_D / found.exact_D).max()):.2f}",
        ),
    ]


def _real(found: Adherence, cost: PlanningCost) -> list[Check]:
    asked = np.array(found.asked, dtype=float)
    prompted, enforced = np.array(found.prompted), np.array(found.enforced)
    related = float(np.corrcoef(asked, prompted)[0, 1]) if prompted.std() > 0 else 0.0
    ratios = "; ".join(
        f"B={total}: prompt {np.median(prompted[asked == total]) / total:.2f}, enforced "
        f"{np.median(enforced[asked == total]) / total:.2f}"
        for total in ASKED
    )
    over = int((enforced > asked + 8).sum())
    return [
        Check(
            "SmolLM2-135M: enforced mode never exceeds its budget",
            "soft limits only",
            float(over),
            over == 0,
            None,
            f"of {len(asked)} runs; in prompt mode {float((prompted > asked).mean()):.0%} exceed; "
            f"median tokens used over asked: {ratios}; target: 0",
        ),
        Check(
            "SmolLM2-135M: tokens used barely follow the tokens asked for in the prompt",
            "models of 32B and more follow them",
            related,
            abs(related) < BARELY,
            None,
            f"correlation over {len(asked)} runs; a model this small does not follow a budget in "
            f"words; target: below {BARELY} in size",
        ),
        Check(
            "SmolLM2-135M as its own planner: planner tokens per answer token",
            "planner tokens are not counted",
            cost.planner / cost.answer,
            None,
            None,
            f"{cost.planner:.0f} planner tokens for {cost.answer:.0f} of the answer; with stored "
            f"plans {cost.cached:.0f}; {cost.fallbacks:.0%} of its plans fall back",
        ),
    ]


# -- data and picture -----------------------------------------------------------------------------


def _row(name: str, share: float, cell: Cell) -> dict[str, Any]:
    interval = mean_interval(cell.right)
    return {
        "policy": name,
        "share": share,
        "accuracy": round(interval.mean, 4),
        "ci": [interval.lo, interval.hi],
        "chains_right": round(float(np.mean([np.mean(b) for b in cell.blocks])), 4),
        "tokens": round(float(cell.tokens.mean()), 2),
        "sampled": round(float(np.mean(cell.sampled)), 2),
        "e3": round(cell.e3, 3),
    }


def _drawer(cells: Cells) -> Callable[[Path], None]:
    def draw(path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10.0, 4.2), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        names = list(dict.fromkeys(name for name, _ in cells))
        for index, name in enumerate(names):
            shift = 0.6 * (index - (len(names) - 1) / 2)  # apart, where points coincide
            shares = _shares(cells)
            x = [100 * share + shift for share in shares]
            found = [mean_interval(cells[name, share].right) for share in shares]
            y = [interval.mean for interval in found]
            below = [max(0.0, i.mean - (i.mean if i.lo is None else i.lo)) for i in found]
            above = [max(0.0, (i.mean if i.hi is None else i.hi) - i.mean) for i in found]
            style: dict[str, Any] = {
                "color": PALETTE[index],
                "marker": MARKERS[index],
                "markersize": 5,
                "linewidth": 1.6,
            }
            left.errorbar(x, y, yerr=[below, above], elinewidth=1.0, capsize=2.5, **style)
            right.plot(x, [cells[name, share].e3 for share in shares], label=name, **style)
        left.set_ylabel("accuracy, 95 % interval")
        right.set_ylabel("E3: accuracy (%) squared per token")
        left.set_title("Who gets the tokens decides what they buy", loc="left", fontsize=10)
        right.set_title("and how efficient they are", loc="left", fontsize=10)
        right.legend(frameon=False, fontsize=8)
        for axes in (left, right):
            axes.set_xlabel("B, in % of what an even split needs")
            axes.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_ylim(bottom=0)
        figure.savefig(path)

    return draw
