"""The picture and the data of the proof of Curriculum GRPO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outlay.figure import MARKERS, PALETTE
from outlay.proofs.curriculum_grpo_claims import GREEDY, SAMPLED, score
from outlay.proofs.curriculum_grpo_runs import (
    ABLATIONS,
    CURRICULUM,
    MAIN,
    lengths_of,
    methods,
    table_of,
)
from outlay.proofs.rl_figure import Runs
from outlay.rl.curriculum import CurriculumGRPO
from outlay.rl.grid_results import CellResult

_EVERY = 10  # steps between two values of a curve in the data


def data_of(runs: Runs) -> dict[str, Any]:
    """Every method's figures, JSON-ready."""
    rows = []
    for name, trained in runs.items():
        (greedy, tokens), (sampled, spent) = score(trained, GREEDY), score(trained, SAMPLED)
        lengths = np.mean([lengths_of(run) for run in trained], axis=0)
        rows.append(
            {
                "method": name,
                "seeds": [run.seed for run in trained],
                "greedy": {"accuracy": round(greedy, 4), "tokens": round(tokens, 2)},
                "sampled": {"accuracy": round(sampled, 4), "tokens": round(spent, 2)},
                "by_budget": {f"T={at:g}": _curve(trained, at) for at in (GREEDY, SAMPLED)},
                "training": {
                    "steps": len(lengths),
                    "lengths": [round(float(n), 2) for n in lengths[::_EVERY]],
                    "tokens": round(float(np.mean([run.training_tokens for run in trained]))),
                    "seconds": round(float(np.mean([run.seconds["train"] for run in trained])), 1),
                },
            }
        )
    return {"every": _EVERY, "schedule": _table(runs), "methods": rows}


def drawer(runs: Runs) -> Callable[[Path], None]:
    """What draws lengths in training, and accuracy by tokens, to a path."""

    def draw(path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10.4, 4.4), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        steps, table = runs[CURRICULUM][0].steps, _table(runs)
        left.step(
            [step for step, _ in table] + [steps],
            [budget for _, budget in table] + [table[-1][1]],
            where="post",
            color="#000000",
            linewidth=1.0,
            linestyle="--",
            label="budget of the curriculum",
        )
        for index, name in enumerate(MAIN):
            if name not in runs:
                continue
            lengths = np.mean([lengths_of(run) for run in runs[name]], axis=0)
            smooth = np.convolve(lengths, np.ones(5) / 5, mode="valid")
            left.plot(
                np.arange(len(smooth)) + 2,
                smooth,
                color=PALETTE[index],
                linewidth=1.6,
                label=name,
            )
            spent, accuracies = zip(*_spent(runs[name]), strict=True)
            right.plot(
                spent,
                accuracies,
                color=PALETTE[index],
                marker=MARKERS[index],
                markersize=5,
                linewidth=1.6,
                label=name,
            )
        for index, name in enumerate(ABLATIONS, start=len(MAIN)):
            if name not in runs:
                continue
            accuracy, tokens = score(runs[name], GREEDY)
            right.plot(
                [tokens],
                [accuracy],
                color=PALETTE[index % len(PALETTE)],
                marker=MARKERS[index % len(MARKERS)],
                markersize=6,
                markerfacecolor="none",
                linestyle="",
                label=f"{name}, nothing cut",
            )
        left.set_xlabel("optimiser steps")
        left.set_ylabel("sampled tokens a completion, mean of 5 steps")
        left.set_title("Lengths in training", loc="left", fontsize=10)
        left.set_ylim(0, None)
        limits = ", ".join(str(budget) for budget, _ in runs[CURRICULUM][0].budget_curve(GREEDY))
        right.set_xlabel(f"tokens of an answer; markers: limits of {limits}")
        right.set_ylabel("greedy accuracy, held-out problems")
        right.set_title("After training", loc="left", fontsize=10)
        right.set_ylim(-0.02, 1.02)
        for axes in (left, right):
            axes.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=7)
        figure.savefig(path)

    return draw


def _table(runs: Runs) -> list[tuple[int, float]]:
    method = methods()[CURRICULUM]
    assert isinstance(method, CurriculumGRPO)
    return table_of(method, runs[CURRICULUM][0].steps)


def _spent(runs: Sequence[CellResult]) -> list[tuple[float, float]]:
    """Tokens of an answer and accuracy under each inference budget, mean of the seeds."""
    return [
        (
            float(np.mean([run.mean_tokens(GREEDY, scale) for run in runs])),
            float(np.mean([run.accuracy(GREEDY, scale) for run in runs])),
        )
        for scale in runs[0].scales
    ]


def _curve(runs: Sequence[CellResult], at: float) -> list[tuple[int, float]]:
    """Accuracy over inference budgets, mean of the seeds."""
    curves = [run.budget_curve(at) for run in runs]
    means = np.mean([[acc for _, acc in curve] for curve in curves], axis=0)
    return [(b, round(float(acc), 4)) for (b, _), acc in zip(curves[0], means, strict=True)]
