"""Train, calibrate and save the heads: `python -m outlay.testbeds.coin --out DIR`.

Writes `heads.safetensors`, `heads.json` and a card. The defaults make what is shipped.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from outlay.testbeds.coin.train import TrainConfig

DEFAULTS = TrainConfig()


def main(
    out: Annotated[Path, typer.Option(help="Folder for the heads.")],
    train: Annotated[int, typer.Option(help="Training traces per source.")] = 220,
    calibrate: Annotated[int, typer.Option(help="Calibration traces per source.")] = 200,
    block: Annotated[int, typer.Option(help="Tokens per block.")] = DEFAULTS.block,
    seed: Annotated[int, typer.Option(help="Of weights and pairs.")] = DEFAULTS.seed,
    epochs: Annotated[int, typer.Option(help="Over the pairs.")] = DEFAULTS.epochs,
    lr: Annotated[float, typer.Option(help="Learning rate of the maps.")] = DEFAULTS.lr,
    threads: Annotated[int, typer.Option(help="CPU threads; part of the recipe.")] = 1,
    cache: Annotated[Path | None, typer.Option(help="File that keeps embeddings.")] = None,
) -> None:
    """Train the matching heads on real embeddings, calibrate the verifiers, save them."""
    import torch

    from outlay.audit.embedding import Embedder
    from outlay.testbeds.coin.card import save
    from outlay.testbeds.coin.make import make

    torch.set_num_threads(threads)
    config = TrainConfig(block=block, seed=seed, epochs=epochs, lr=lr)
    embed = Embedder() if cache is None else Embedder.load(cache)
    start = time.process_time()
    try:
        heads = make(config, train, calibrate, embed, typer.echo)
    finally:
        if cache is not None:
            embed.save(cache)
    save(out, heads, config, (time.process_time() - start) / 60)
    typer.echo((out / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
