"""Train, measure and save the routers: `python -m outlay.testbeds.moe --out DIR`.

Writes one file per number of experts, `measured.json` and a model card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outlay.testbeds.moe.store import SHIPPED, file_name, write_router
from outlay.testbeds.moe.train import TrainConfig

DEFAULTS = TrainConfig()


def main(
    out: Annotated[Path, typer.Option(help="Folder for the routers.")],
    experts: Annotated[
        list[int] | None, typer.Option(help="Slices of an MLP; repeat for several.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = DEFAULTS.steps,
    rows: Annotated[int, typer.Option(help="Rows of a batch.")] = DEFAULTS.rows,
    length: Annotated[int, typer.Option(help="Tokens of a row.")] = DEFAULTS.length,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = DEFAULTS.lr,
    seed: Annotated[int, typer.Option(help="Of weights and text.")] = DEFAULTS.seed,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: the best.")] = None,
    heldout: Annotated[int, typer.Option(help="Rows that are measured.")] = 8,
) -> None:
    """Train the routers of the sliced model on the embedded model."""
    import torch

    from outlay.models import embedded
    from outlay.testbeds.moe.build import RANDOM_STD
    from outlay.testbeds.moe.card import save
    from outlay.testbeds.moe.train import measure, train

    model = embedded.load(device=device)
    done = []
    for count in experts or SHIPPED:
        config = TrainConfig(count, steps=steps, rows=rows, length=length, lr=lr, seed=seed)

        def report(step: int, kl: float, count: int = count) -> None:
            typer.echo(f"{count} experts, step {step}: KL {kl:.3f}", err=True)

        result = train(model.model, model.tokenizer, config, report)
        result.measured = measure(
            model.model, model.tokenizer, result.router_LEC, config.top_k, rows=heldout
        )
        generator = torch.Generator().manual_seed(seed + 1)
        untrained_LEC = torch.randn(result.router_LEC.shape, generator=generator) * RANDOM_STD
        untrained = measure(model.model, model.tokenizer, untrained_LEC, config.top_k, rows=heldout)
        result.measured["nll_untrained"] = untrained["nll"]
        write_router(out / file_name(count), result.router_LEC)
        done.append((config, result))
    save(out, done, str(model.device))
    typer.echo((out / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
