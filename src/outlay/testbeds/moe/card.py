"""The routers' measurements and model card, written from the numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from outlay.machine import sentence, versions
from outlay.testbeds.cards import save_card
from outlay.testbeds.moe.train import TrainConfig, Trained

_CARD = """---
license: apache-2.0
library_name: transformers
---

# Routers of a sliced SmolLM2

SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0) with every MLP cut into experts: a Mixtral of the
same size whose weights are all SmolLM2's, except the routers that are stored here (bf16, one tensor
`router_LEC` of layers x experts x width). It exists for experiments on serving mixtures of experts:
tokens choose experts as in a trained model, and nothing has to be downloaded but the dense model.

    from outlay.testbeds import moe
    model = moe.load(experts=48)

## How they were made

    python -m outlay.testbeds.moe --out DIR --steps {steps} --rows {rows} --length {length} \\
        --lr {lr} --seed {seed}

Only the routers were trained: KL from the dense model's next-token distribution, cross-entropy with
each expert's contribution to the dense MLP's output, a tenth of the next-token cross-entropy, and
balance by a loss and by a bias. Adam, {tokens:,} tokens of Python's standard library (one document
in ten held out by a hash of its name), {minutes:.1f} minutes in all on {device} ({machine};
{versions}).

## Measured on held-out text

{table}

`distinct` counts the experts of a layer that {chunk} successive tokens use; uniform routing would
use the number behind the stroke. The largest share is the load of the most used expert over the
mean.

## Limits

A token uses {top_k} slices of the MLP, a quarter to a twelfth of what SmolLM2 was trained with, so
the text is of no use, as the NLL says. It is a load for schedulers, not a model to talk to.
"""


def save(out: Path, done: Sequence[tuple[TrainConfig, Trained]], device: str) -> None:
    """Write `measured.json` and README.md into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "config": asdict(config),
            "losses": result.losses,
            "seconds": round(result.seconds, 1),
            "measured": result.measured,
        }
        for config, result in done
    ]
    lines = [
        "| experts | NLL dense | NLL untrained router | NLL | largest share | distinct |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for config, result in done:
        found = result.measured
        lines.append(
            f"| {config.experts} | {found['nll_dense']:.2f} | {found['nll_untrained']:.2f} | "
            f"{found['nll']:.2f} | {found['largest_share']:.2f} | "
            f"{found['distinct']:.1f} / {found['distinct_uniform']:.1f} |"
        )
    first = done[0][0]
    card = _CARD.format(
        steps=first.steps,
        rows=first.rows,
        length=first.length,
        lr=first.lr,
        seed=first.seed,
        tokens=sum(c.steps * c.rows * c.length for c, _ in done),
        minutes=sum(result.seconds for _, result in done) / 60,
        device=device,
        machine=sentence(),
        versions=", ".join(f"{k} {v}" for k, v in versions().items() if k != "outlay"),
        table="\n".join(lines),
        chunk=32,
        top_k=first.top_k,
    )
    save_card(out, rows, card)
