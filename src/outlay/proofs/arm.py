"""Proof of ARM's inference modes on the tiny reasoner.

"ARM" (arXiv 2505.20258) says of its consensus mode: ask three cheap formats, think long only where
they disagree. It is then as accurate as the best single format or better, long thinking is kept for
hard problems, and that costs more tokens than one format alone. Problems are chains of 1 to 12
operations; the reasoner knows four formats, which its training taught independently of difficulty,
as the paper's first stage does. Choosing well (the paper's second stage, reinforcement learning) is
not part of this proof: what the model's own choice does is reported without a target.

Other families of problems, which have no programs, are reported beside the chains: facts to recall,
which need no thinking, and several chains in one problem.

Beside the modes: votes over adaptive samples at equal tokens, a format drawn at random, and the
oracle that knows the best format per question. Two changes are recorded, with targets for neither:
consensus without direct answers, and then with programs run instead of emulated.

Every target below was written before the first run. The range of operations, the second change, the
other families and the number of votes were settled after trial runs of 48 problems.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from outlay.errors import CapabilityError
from outlay.frontier import Point, points, quality_at
from outlay.paired import paired
from outlay.proofs.arm_figure import drawer
from outlay.proofs.arm_runs import (
    CONSENSUS,
    FAMILIES,
    FORMATS,
    LONG,
    PAIR,
    ROOM,
    RUN,
    TASK,
    Cell,
    FloatArray,
    Remembering,
    by_difficulty,
    difficulty,
    play,
    problems,
    slopes,
)
from outlay.proofs.base import Check, Progress, ProofResult, Scale, silent
from outlay.proofs.m1_runs import distinct
from outlay.reason.adaptive import Adaptive
from outlay.stats import percentiles
from outlay.testbeds.reasoner import checkpoint_path

CHEAP = FORMATS[:-1]
PAIRED = tuple(name for name in CHEAP if name != "direct")
RANDOM, ORACLE = "random format", "oracle format"
PAPER_MEAN = "means of 7B: consensus 75.2, guided 46.2 to 74.5"

# Targets.
AT_LEAST = 0.0  # accuracy of consensus minus the best cheap format's
GROWS = 0.0  # long use per operation more: the interval lies above
GUIDED = 1.0  # share of guided responses in the requested format


@dataclass(frozen=True)
class Size:
    """Chains, sampling seeds, votes that consensus is compared with, problems of other families."""

    problems: int
    seeds: int
    votes: tuple[int, ...]
    others: int


SIZES: Mapping[Scale, Size] = {
    "ci": Size(48, 1, (3,), 8),
    "laptop": Size(504, 3, (3,), 60),
    "gpu": Size(2004, 5, (2, 4, 6, 8), 500),
}


def run(
    scale: Scale, *, seed: int = 0, progress: Progress = silent, folder: str | Path | None = None
) -> ProofResult:
    """Run the experiment; see `SIZES` for what each scale means.

    Args:
        scale: how much.
        seed: of the problems and the first sampling seed.
        progress: told what runs.
        folder: of another reasoner checkpoint; None takes the shipped one.
    """
    size = SIZES[scale]
    seeds = [seed + i for i in range(size.seeds)]
    result = ProofResult("arm", scale, seeds)
    path = Path(checkpoint_path() if folder is None else folder)
    model = Remembering.load(path, name="reasoner", device=None if scale == "gpu" else "cpu")
    some = problems(size.problems, seed)
    hardN = difficulty(some)
    cells: dict[str, Cell] = {}
    for name, method in _methods(size).items():
        progress(name)
        cells[name] = play(model, some, name, method, seeds)
    try:
        for name, method in _run_methods().items():
            progress(name)
            cells[name] = play(model, some, name, method, seeds)
    except CapabilityError as error:
        result.data["programs"] = f"not run: {error}"
    families: dict[str, dict[str, Cell]] = {}
    for name, task in FAMILIES.items():
        progress(name)
        others = distinct(task, seed, size.others)
        families[name] = {
            label: play(model, others, label, method, seeds, task)
            for label, method in _without_programs().items()
        }
    drawn = _mixtures(cells, seed)
    records = [record for cell in (*cells.values(), *drawn.values()) for record in cell.records]
    result.points = points(records, axis="generated+forced", seed=seed)
    result.checks += _consensus(cells, hardN, seed)
    result.checks += _mechanics(cells)
    result.checks += _reported(cells, result.points, hardN, seed)
    result.checks += _families(families, seed)
    result.data |= _data(cells, families, hardN, path)
    result.draw = drawer(cells, result.points, hardN)
    return result.finish()


def _methods(size: Size) -> dict[str, Adaptive]:
    ours = Adaptive(formats="reasoner")
    found = {f"guided:{name}": replace(ours, mode=f"guided:{name}") for name in FORMATS}
    found |= {"adaptive": ours, CONSENSUS: replace(ours, mode="consensus")}
    found |= {f"maj@{k}": replace(ours, mode=f"maj@{k}") for k in size.votes}
    return found | {PAIR: replace(ours, mode="consensus", consensus_formats=PAIRED)}


def _without_programs() -> dict[str, Adaptive]:
    names = ("direct", "short")
    ours = Adaptive(formats="reasoner", consensus_formats=names)
    found = {f"guided:{name}": replace(ours, mode=f"guided:{name}") for name in (*names, LONG)}
    return found | {CONSENSUS: replace(ours, mode="consensus")}


def _run_methods() -> dict[str, Adaptive]:
    running = Adaptive(formats="reasoner", mode="guided:code", execute_code=True)
    pair = replace(running, mode="consensus", consensus_formats=PAIRED)
    return {"guided:code, run": running, RUN: pair}


def _mixtures(cells: Mapping[str, Cell], seed: int) -> dict[str, Cell]:
    """What a random choice among the guided answers gives, and the best choice per question."""
    guided = [cells[f"guided:{name}"] for name in FORMATS]
    first = guided[0]
    best, drawn = Cell(ORACLE, [], [], []), Cell(RANDOM, [], [], [])
    rng = np.random.default_rng([seed, 0xA53])
    for i in range(len(first.records)):
        choices = [cell.records[i] for cell in guided]
        # The cheapest right one, else the cheapest.
        top = min(choices, key=lambda r: (-r.quality, r.ledger.totals().generated))
        best.records.append(replace(top, method_stack=ORACLE))
        one = choices[int(rng.integers(len(choices)))]
        drawn.records.append(replace(one, method_stack=RANDOM))
    return {RANDOM: drawn, ORACLE: best}


# -- claims ---------------------------------------------------------------------------------------


def _best_cheap(cells: Mapping[str, Cell]) -> Cell:
    return max((cells[f"guided:{name}"] for name in CHEAP), key=lambda c: float(c.right.mean()))


def _gap(cell: Cell, other: Cell, seed: int = 0) -> tuple[float, tuple[float, float], int]:
    found = paired(cell.records, other.records, seed=seed)
    return found.mean, (found.lo, found.hi), found.n


def _grows(valueN: FloatArray, hardN: FloatArray, seed: int) -> tuple[float, tuple[float, float]]:
    slope_R = slopes(hardN, valueN, 1000, seed)
    return float(slope_R[0]), percentiles(slope_R[1:], 0.95)


def _shares(hardN: FloatArray, value_SN: FloatArray) -> str:
    return ", ".join(f"{d}: {v:.2f}" for d, v in by_difficulty(hardN, value_SN).items())


def _consensus(cells: Mapping[str, Cell], hardN: FloatArray, seed: int) -> list[Check]:
    ours, cheap = cells[CONSENSUS], _best_cheap(cells)
    mean, ends, n = _gap(ours, cheap, seed)
    long_SN = ours.used(LONG)
    slope, slope_ends = _grows(long_SN.mean(axis=0), hardN, seed)
    return [
        Check(
            "consensus is at least as accurate as the best single cheap format",
            PAPER_MEAN,
            mean,
            mean >= AT_LEAST,
            ends,
            f"{ours.right.mean():.3f} minus {cheap.right.mean():.3f} of {cheap.method}, the best "
            f"on these problems; n={n}; target: at least {AT_LEAST:g}",
        ),
        Check(
            "in consensus mode long thinking is used more as difficulty grows",
            "13 % of CSQA, 55 % over all, 100 % of AIME",
            slope,
            slope_ends[0] > GROWS,
            slope_ends,
            "share of questions per operation more; by operations: "
            f"{_shares(hardN, long_SN)}; target: interval above {GROWS:g}",
        ),
    ]


def _mechanics(cells: Mapping[str, Cell]) -> list[Check]:
    asked = [(name, cells[f"guided:{name}"]) for name in FORMATS]
    kept = [c["format"] == name for name, cell in asked for row in cell.calls for (c,) in row]
    modes = [(CONSENSUS, len(CHEAP)), (PAIR, len(PAIRED))]
    wrong = 0
    for name, few in modes:
        cell = cells[name]
        tokens_SN = cell.tokens
        for s, row in enumerate(cell.calls):
            for i, calls in enumerate(row):
                expected = few if cell.status[s][i] == "agreed" else few + 1
                total = sum(call["tokens"] for call in calls)
                wrong += int(len(calls) != expected or total != tokens_SN[s, i])
    count = sum(len(row) for name, _ in modes for row in cells[name].calls)
    return [
        Check(
            "a guided response has the format that was asked for",
            "the tag is pre-filled",
            float(np.mean(kept)),
            float(np.mean(kept)) >= GUIDED,
            None,
            f"share of {len(kept)} responses; target: {GUIDED:g}",
        ),
        Check(
            "consensus makes one call per cheap format, one more where they disagree, and the "
            "ledger is their sum",
            "cost is that of all calls",
            float(wrong),
            wrong == 0,
            None,
            f"answers of {count} that break the rule; target: 0",
        ),
    ]


def _reported(
    cells: Mapping[str, Cell], found: Sequence[Point], hardN: FloatArray, seed: int
) -> list[Check]:
    checks = []
    for point in found:
        ends = None if point.lo is None or point.hi is None else (point.lo, point.hi)
        note = f"at {point.cost:.1f} tokens per question, forced tags included; n={point.n}"
        checks.append(Check(f"accuracy of {point.stack}", "", point.quality, None, ends, note))
    ours = cells[CONSENSUS]
    mean, ends, n = _gap(ours, cells[f"guided:{LONG}"], seed)
    ratio = float(ours.tokens.mean() / cells[f"guided:{LONG}"].tokens.mean())
    checks.append(
        Check(
            "consensus against long thinking alone",
            "+0.7 accuracy at 1.77x the tokens",
            mean,
            None,
            ends,
            f"difference in accuracy, at {ratio:.2f}x the tokens; n={n}",
        )
    )
    votes = [p for p in found if p.stack.startswith("maj@") or p.stack == "adaptive"]
    cost = float(ours.tokens.mean())
    equal = quality_at(sorted(votes, key=lambda p: p.cost), cost)
    checks.append(
        Check(
            "consensus against a vote over adaptive samples at equal tokens",
            "not given",
            "outside the votes' range" if equal is None else float(ours.right.mean()) - equal,
            None,
            None,
            f"difference in accuracy at {cost:.1f} tokens, votes interpolated",
        )
    )
    checks += _own_choice(cells, hardN, seed)
    checks += _changes(cells, hardN, seed)
    return checks


def _own_choice(cells: Mapping[str, Cell], hardN: FloatArray, seed: int) -> list[Check]:
    """Which formats the model chooses itself: training taught the formats, not the choice."""
    checks = []
    for name in FORMATS:
        used_SN = cells["adaptive"].used(name)
        slope, ends = _grows(used_SN.mean(axis=0), hardN, seed)
        checks.append(
            Check(
                f"adaptive mode: use of {name} per operation more",
                "almost independent of difficulty before reinforcement learning",
                slope,
                None,
                ends,
                f"mean {used_SN.mean():.2f}; by operations: {_shares(hardN, used_SN)}",
            )
        )
    return checks


def _changes(cells: Mapping[str, Cell], hardN: FloatArray, seed: int) -> list[Check]:
    checks = []
    for name in (PAIR, RUN):
        if name not in cells:
            continue
        cell = cells[name]
        mean, ends, n = _gap(cell, _best_cheap(cells), seed)
        long_SN = cell.used(LONG)
        checks.append(
            Check(
                f"{name}: accuracy minus the best cheap format's",
                "",
                mean,
                None,
                ends,
                f"{cell.right.mean():.3f} at {cell.tokens.mean():.1f} tokens; n={n}",
            )
        )
        slope, slope_ends = _grows(long_SN.mean(axis=0), hardN, seed)
        note = f"by operations: {_shares(hardN, long_SN)}"
        claim = f"{name}: long use per operation more"
        checks.append(Check(claim, "", slope, None, slope_ends, note))
    if "guided:code, run" in cells:
        mean, ends, n = _gap(cells["guided:code, run"], cells["guided:code"], seed)
        checks.append(
            Check(
                "running programs instead of emulating them",
                "+0.4 mean accuracy",
                mean,
                None,
                ends,
                f"difference in accuracy of guided:code; n={n}",
            )
        )
    return checks


def _families(families: Mapping[str, Mapping[str, Cell]], seed: int) -> list[Check]:
    checks = []
    for name, cells in families.items():
        ours = cells[CONSENSUS]
        cheap = max(
            (cells[f"guided:{f}"] for f in ("direct", "short")), key=lambda c: float(c.right.mean())
        )
        mean, ends, n = _gap(ours, cheap, seed)
        checks.append(
            Check(
                f"{name}: consensus of direct and short minus the better of the two",
                "long used on 13 % of CSQA, 100 % of AIME",
                mean,
                None,
                ends,
                f"{ours.right.mean():.3f} minus {cheap.right.mean():.3f} of {cheap.method}; long "
                f"thinking alone {cells[f'guided:{LONG}'].right.mean():.3f}; long used for "
                f"{ours.used(LONG).mean():.2f} of the questions; {ours.tokens.mean():.1f} tokens; "
                f"n={n}",
            )
        )
    return checks


# -- data -----------------------------------------------------------------------------------------


def _data(
    cells: Mapping[str, Cell],
    families: Mapping[str, Mapping[str, Cell]],
    hardN: FloatArray,
    path: Path,
) -> dict[str, Any]:
    weights = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
    rows = [
        {
            "method": name,
            "operations": d,
            "accuracy": value,
            "tokens": by_difficulty(hardN, cell.tokens)[d],
            "formats": {f: by_difficulty(hardN, cell.used(f))[d] for f in FORMATS},
        }
        for name, cell in cells.items()
        for d, value in by_difficulty(hardN, cell.right).items()
    ]
    return {
        "checkpoint": weights[:16],
        "task": f"{TASK.name}, {TASK.operations[0]} to {TASK.operations[1]} operations",
        "budget": ROOM.label(),
        "rows": rows,
        "families": [
            {
                "family": family,
                "method": name,
                "accuracy": float(cell.right.mean()),
                "tokens": float(cell.tokens.mean()),
                "long": float(cell.used(LONG).mean()),
            }
            for family, row in families.items()
            for name, cell in row.items()
        ],
    }
