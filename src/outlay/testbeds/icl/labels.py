"""Labels of the in-context model, and DynaICL trained on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from outlay.prompt.dynaicl.config import Training
from outlay.prompt.dynaicl.method import DynaICL
from outlay.prompt.dynaicl.table import Table
from outlay.testbeds.icl.answers import Answerer
from outlay.testbeds.icl.tasks import DEMO, QUERY, Batch, workload
from outlay.testbeds.icl.world import END

METHOD = DynaICL(
    controller="hash",
    demo=DEMO,
    query=QUERY,
    separator="",
    delimiter=END,
    training=Training(rl_epochs=0),
)
SHIPPED_SEED = 77  # of the labels of the shipped controller; proofs use others


def labels(
    ask: Answerer,
    batch: Batch,
    method: DynaICL = METHOD,
    *,
    folder: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Table:
    """The table of a batch."""
    return method.collect(
        ask,
        batch.inputs,
        batch.pools,
        count=ask.count,
        name="icl",
        folder=folder,
        progress=progress,
    )


def train_controller(ask: Answerer, n: int) -> DynaICL:
    """The shipped controller: accuracy curves, so that fixed prices can be set for any mean."""
    method = replace(METHOD, head="curve")
    return method.fit(labels(ask, workload(SHIPPED_SEED, n)))
