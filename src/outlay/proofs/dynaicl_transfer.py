"""Another generalist: how a controller does on a model that it was not trained for.

The second model of the in-context testbed is smaller and trained for a fraction of the time. It
looks images up as well as the first one, but never learns to shift, so that its inputs need other
numbers of demonstrations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from outlay.prompt.dynaicl.method import DynaICL
from outlay.prompt.dynaicl.table import Table
from outlay.proofs.base import Check, Progress
from outlay.proofs.dynaicl_runs import (
    PROPORTIONAL,
    SEQ2SEQ,
    UTILITY,
    World,
    by_controller,
    everybody_alike,
    gap,
)
from outlay.testbeds.icl.answers import Answerer
from outlay.testbeds.icl.labels import labels
from outlay.testbeds.icl.tasks import workload
from outlay.testbeds.icl.train import TrainConfig, train
from outlay.testbeds.icl.world import FAMILIES

OTHER = TrainConfig(steps=700, seed=1, hidden=64, layers=2, batch=32)
FIRST, SECOND = "the first model", "the second model"
HEADS = (PROPORTIONAL, UTILITY, SEQ2SEQ)


def other_generalist(config: TrainConfig = OTHER) -> Answerer:
    """A second in-context model, trained now."""
    return Answerer(train(config)[0])


def swapped(world: World, other: Answerer, mean_k: int, progress: Progress) -> list[Check]:
    """The matrix of controllers and generalists: gains over uniform, reported.

    Args:
        world: labels and controllers of the first model.
        other: the second model, asked about the same inputs.
        mean_k: mean demonstrations per input.
        progress: called with what is being done.
    """
    progress("another generalist: labels and controllers")
    method = world.methods[PROPORTIONAL]
    sizes = {"train": len(world.train), "test": len(world.test)}
    batches = {name: workload(world.seed, n, name=name) for name, n in sizes.items()}
    tables = {name: labels(other, batch, method) for name, batch in batches.items()}
    fitted = {
        name: replace(world.methods[name], fitted=None).fit(tables["train"]) for name in HEADS
    }
    controllers = {FIRST: dict(world.methods), SECOND: fitted}
    needs = _needs(tables["test"], batches["test"].families)
    checks = []
    for tested, table in ((FIRST, world.test), (SECOND, tables["test"])):
        for trained, methods in controllers.items():
            checks += [
                _cell(table, methods[name], name, mean_k, trained, tested, needs) for name in HEADS
            ]
    return checks


def _cell(
    table: Table, method: DynaICL, name: str, mean_k: int, trained: str, tested: str, needs: str
) -> Check:
    base = everybody_alike(table, mean_k)
    mine = by_controller(table, method, name, mean_k)
    gain, ci = gap([mine], [base])
    return Check(
        f"controller of {trained} on {tested}: {name} over uniform",
        "a trained controller works with other models",
        gain,
        None,
        ci,
        f"mean k={mean_k}; {mine.accuracy:.3f} against {base.accuracy:.3f}, {len(table)} inputs"
        + (f"; {needs}" if tested == SECOND else ""),
    )


def _needs(table: Table, families: Sequence[str]) -> str:
    parts = []
    for family in FAMILIES:
        rows = [i for i, name in enumerate(families) if name == family]
        curve_K = table.accuracy_NK[rows].mean(axis=0)
        parts.append(f"{family} {curve_K[0]:.2f} to {curve_K[-1]:.2f}")
    return f"accuracy from k=0 to k={table.K}: " + ", ".join(parts)
