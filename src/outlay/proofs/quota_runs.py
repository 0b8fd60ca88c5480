"""Runs of QuoTA's proof: ways of spending a clip's tokens, on the same questions and budgets.

Maps of features are computed once for a clip and serve the scorer and every way; nothing else is
shared. A record's ledger has the prompt that answers (role target) and the prompts that scored
(role scorer).

Shapes: B clips, T frames, K tokens of a frame's map, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outlay.budget import Budget
from outlay.ledger import Ledger
from outlay.models.base import Account
from outlay.proofs.quota_world import Part, SeerScorer, flops, oracle, text_of
from outlay.records import Record
from outlay.testbeds.seer.evaluate import Examples, answered
from outlay.testbeds.seer.model import Seer
from outlay.vision.counts import counts_of
from outlay.vision.in_decoder import FastV
from outlay.vision.quota import QuoTA
from outlay.vision.quota.allocation import Assigner, Grid, grid
from outlay.vision.quota.assigners import assign

UNIFORM = "uniform"
FEWER = "every second frame"
TOP = "top-k frames"
DIRECT = "QuoTA without decoupling"
ENTITY = "QuoTA"
SMALL = "QuoTA, scored on small frames"
ORACLE = "QuoTA, oracle scores"
FASTV = "FastV-like"
LITERAL = "question as it is, read by the word yes"
MAIN = (UNIFORM, FEWER, TOP, DIRECT, ENTITY, SMALL, ORACLE)
SCORED = {TOP: "entity", DIRECT: "question", ENTITY: "entity", SMALL: "small", ORACLE: "oracle"}
SMALL_SIDE = 3
BATCH = 16

Grids = Sequence[Grid]
Spend = Callable[[Sequence[float], int], Grids]
"""Scores of a clip's frames and a budget -> the grid of every frame."""


@dataclass(frozen=True)
class Way:
    """A way of spending tokens.

    Args:
        name: shown.
        scores: which scores it needs: "entity", "question", "letters", "small", "oracle", or ""
            for none.
        spend: how.
        assigner: of maps.
    """

    name: str
    scores: str
    spend: Spend
    assigner: Assigner = "bilinear"


def even(_: Sequence[float], n_t: int, *, frames: int, step: int = 1) -> Grids:
    """The same grid for every `step`-th frame; what is left gives frames, evenly spread, the next
    larger one."""
    chosen = list(range(0, frames, step))
    small = grid(n_t // len(chosen))
    count = small[0] * small[1]
    larger = (small[0] + 1, small[1]) if small[0] == small[1] else (small[0], small[1] + 1)
    more = larger[0] * larger[1] - count
    extra = min(len(chosen), (n_t - count * len(chosen)) // more)
    lucky = {chosen[at] for at in np.linspace(0, len(chosen) - 1, extra).round().astype(int)}
    return [(larger if at in lucky else small) if at in chosen else (0, 0) for at in range(frames)]


def best(scores: Sequence[float], n_t: int, *, side: int) -> Grids:
    """As many of the best frames as the budget holds at full size; the best one smaller, where it
    does not hold any."""
    order = sorted(range(len(scores)), key=lambda at: (-scores[at], at))
    size = grid(min(n_t, side**2), (side, side))
    chosen = {*order[: max(1, n_t // side**2)]}
    return [size if at in chosen else (0, 0) for at in range(len(scores))]


def quota(scores: Sequence[float], n_t: int, *, method: QuoTA, side: int) -> Grids:
    """What the method gives."""
    return replace(method, n_t=n_t).allocate(scores, native=(side, side)).grids


def main_ways(side: int, frames: int) -> list[Way]:
    """The ways that are compared at every budget."""
    capped = QuoTA(cap_upsample=True)
    made = [
        Way(UNIFORM, "", partial(even, frames=frames)),
        Way(FEWER, "", partial(even, frames=frames, step=2)),
        Way(TOP, SCORED[TOP], partial(best, side=side)),
    ]
    spend = partial(quota, method=capped, side=side)
    return made + [Way(name, SCORED[name], spend) for name in (DIRECT, ENTITY, SMALL, ORACLE)]


def changed_ways(side: int) -> list[Way]:
    """Ablations: the same scores under other knobs, and other scores under the same."""
    base = QuoTA(cap_upsample=True)
    knobs: dict[str, QuoTA] = {
        f"sharpness {value:g}": replace(base, sharpness=value) for value in (0.0, 1.0, 4.0)
    }
    for assigner in ("avgpool", "linspace", "merge", "lines"):
        knobs[f"assigner {assigner}"] = replace(base, assigner=assigner)
    knobs["rounding floor"] = replace(base, rounding="floor")
    knobs["single sweep"] = replace(base, rounding="floor", spill="sweep", eps=0.0)
    knobs["frames may grow"] = replace(base, cap_upsample=False)
    knobs["min_tokens 1"] = replace(base, min_tokens=1)
    made = [
        Way(name, "entity", partial(quota, method=method, side=side), method.assigner)
        for name, method in knobs.items()
    ]
    return [*made, Way(LITERAL, "letters", partial(quota, method=base, side=side))]


@torch.no_grad()
def outcomes(seer: Seer, part: Part, ways: Sequence[Way], budgets: Sequence[int]) -> list[Record]:
    """Every question of a part, under every way and budget."""
    made: list[Record] = []
    wanted = {way.scores for way in ways} - {""}
    for start in range(0, len(part.asked), BATCH):
        some = part.asked[start : start + BATCH]
        maps_BTKD = seer.features(some.seen)
        scored = {kind: scores_of(seer, kind, maps_BTKD, some) for kind in sorted(wanted)}
        names = part.names[start : start + BATCH]
        for n_t in budgets:
            for way in ways:
                rows, ledgers = scored.get(way.scores, ([[]] * len(some), None))
                grids = [way.spend(row, n_t) for row in rows]
                right = answer(seer, maps_BTKD, some, grids, way.assigner)
                for at, name in enumerate(names):
                    ledger = spent(seer, some, at, grids[at])
                    if ledgers is not None:
                        ledger = ledger + ledgers[at]
                    made.append(_record(part, name, way.name, n_t, right[at], ledger))
    return made


def _record(part: Part, name: str, way: str, n_t: int, right: Any, ledger: Ledger) -> Record:
    budget = Budget(tokens=n_t, counts="prompt")
    return Record(part.group, name, way, budget, part.seed, float(right), ledger)


@torch.no_grad()
def inside(seer: Seer, part: Part, full: int, n_t: int) -> list[Record]:
    """The even split of `full` tokens, of which FastV drops some before layer 1, so that the mean
    over layers is `n_t`."""
    layers = seer.model.config.text_config.num_hidden_layers
    method = FastV(layer=1).within(n_t, full, layers)
    left = counts_of([1.0] + [method.rate] * (layers - 1), full)
    made: list[Record] = []
    for start in range(0, len(part.asked), BATCH):
        some = part.asked[start : start + BATCH]
        maps_BTKD = seer.features(some.seen)
        grids = [even([], full, frames=maps_BTKD.shape[1])] * len(some)
        with method(seer.model):
            right = answer(seer, maps_BTKD, some, grids, "bilinear")
        for at, name in enumerate(part.names[start : start + BATCH]):
            ledger = spent(seer, some, at, grids[at], left)
            made.append(_record(part, name, FASTV, n_t, right[at], ledger))
    return made


def scores_of(
    seer: Seer, kind: str, maps_BTKD: Tensor, asked: Examples
) -> tuple[list[list[float]], list[Ledger]]:
    """Scores of every clip's frames, and what finding them cost."""
    if kind == "oracle":
        return oracle(asked), [Ledger() for _ in asked.questions]
    found, ledgers = [], []
    for maps_TKD, question in zip(maps_BTKD, asked.questions, strict=True):
        account = Account(stage="vision", role="scorer", method="quota")
        side = SMALL_SIDE if kind == "small" else seer.size.grid
        method = QuoTA(
            frame_scorer=SeerScorer(seer, side, account, literal=kind == "letters"),
            decouple="none" if kind in ("question", "letters") else "entity",
        )
        found.append(method.score(list(maps_TKD), text_of(question.words)))
        ledgers.append(_with_flops(seer, account.ledger, side, len(maps_TKD)))
    return found, ledgers


def _with_flops(seer: Seer, ledger: Ledger, side: int, frames: int) -> Ledger:
    """The scorer's calls, each about all frames, with what they compute."""
    each = side**2
    return Ledger(
        replace(
            entry,
            flops=float(frames * flops(seer, entry.prompt_new // frames - each, each)),
        )
        for entry in ledger
    )


def spent(
    seer: Seer, asked: Examples, at: int, grids: Grids, layers: Sequence[int] | None = None
) -> Ledger:
    """What answering costs: every kept frame has its mark.

    Args:
        seer: answers.
        asked: the question is number `at` of these.
        at: see `asked`.
        grids: of the frames.
        layers: visual tokens of each layer, where some leave on the way.
    """
    visual, kept = sum(h * w for h, w in grids), sum(1 for h, w in grids if h * w)
    text = 1 + kept + len(asked.questions[at].words)
    ledger = Ledger()
    ledger.record(
        "answer",
        "target",
        prompt_new=text + visual,
        flops=float(flops(seer, text, visual if layers is None else layers)),
        note=f"{visual if layers is None else sum(layers) / len(layers):g} visual",
    )
    return ledger


def answer(
    seer: Seer,
    maps_BTKD: Tensor,
    asked: Examples,
    grids: Sequence[Grids],
    assigner: Assigner,
    read: Callable[[Mapping[str, Any]], Any] | None = None,
) -> Any:
    """(B,) 1 where the seer answers exactly from frames of these grids; or what `read` makes of
    the inputs."""
    side = seer.size.grid
    rows = []
    for maps_TKD, row in zip(maps_BTKD, grids, strict=True):
        rows.append(
            [
                assign(map_KD.unflatten(0, (side, side)), size, assigner).flatten(0, 1)
                if size[0]
                else map_KD[:0]
                for map_KD, size in zip(maps_TKD, row, strict=True)
            ]
        )
    inputs = seer.inputs_of_features(rows, asked.questions)
    return answered(seer, asked, inputs) if read is None else read(inputs)


def pick(
    records: Iterable[Record], name: str, *, group: str, n_t: int | None = None
) -> list[Record]:
    """The records of one way in one group, at one budget or at all."""
    return [
        record
        for record in records
        if record.method_stack == name
        and record.task == group
        and (n_t is None or record.budget.tokens == n_t)
    ]


def mean_prompt(records: Sequence[Record], role: Any = "target") -> float:
    """Mean prompt tokens of a role."""
    return float(np.mean([record.ledger.totals(role=role).prompt for record in records]))


def accuracies(records: Sequence[Record]) -> Mapping[str, dict[str, dict[str, float]]]:
    """Group -> way -> budget -> accuracy; JSON-ready."""
    table: dict[str, dict[str, dict[str, list[float]]]] = {}
    for record in records:
        ways = table.setdefault(record.task, {}).setdefault(record.method_stack, {})
        ways.setdefault(str(record.budget.tokens), []).append(record.quality)
    return {
        group: {
            way: {n_t: round(float(np.mean(values)), 4) for n_t, values in row.items()}
            for way, row in ways.items()
        }
        for group, ways in table.items()
    }
