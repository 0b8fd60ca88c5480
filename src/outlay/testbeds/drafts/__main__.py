"""Distil, measure and save a draft: `python -m outlay.testbeds.drafts --out DIR`.

Writes the updates (safetensors), `measured.json` and a model card, which says how the draft beside
it was made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outlay.testbeds.drafts.train import DraftConfig

DEFAULTS = DraftConfig()


def main(
    out: Annotated[Path, typer.Option(help="Folder for the draft.")],
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps; default: the best.")] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = DEFAULTS.steps,
    rows: Annotated[int, typer.Option(help="Rows per step.")] = DEFAULTS.rows,
    length: Annotated[int, typer.Option(help="Tokens per row.")] = DEFAULTS.length,
    rank: Annotated[int, typer.Option(help="Rank of the updates.")] = DEFAULTS.rank,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = DEFAULTS.lr,
    chats: Annotated[
        int, typer.Option(help="Answers sampled from the target to train on.")
    ] = DEFAULTS.chats,
    minutes: Annotated[
        float, typer.Option(help="Training ends after so many; 0 is no limit.")
    ] = DEFAULTS.minutes,
    seed: Annotated[int, typer.Option(help="Of everything.")] = DEFAULTS.seed,
    measure: Annotated[int, typer.Option(help="Held-out rows per kind of text.")] = 32,
) -> None:
    """Distil a draft for the embedded model, measure it and save it."""
    import torch
    from transformers.utils import logging

    from outlay.models import embedded
    from outlay.models.truncated import truncated
    from outlay.testbeds import text
    from outlay.testbeds.drafts import lowrank
    from outlay.testbeds.drafts.card import save
    from outlay.testbeds.drafts.chats import questions
    from outlay.testbeds.drafts.train import (
        Agreement,
        Rows,
        State,
        agreement,
        sample_chats,
        split_chats,
        train,
    )

    logging.disable_progress_bar()
    config = DraftConfig(
        steps=steps,
        rows=rows,
        length=length,
        rank=rank,
        lr=lr,
        chats=chats,
        minutes=minutes,
        seed=seed,
    )
    exact = embedded.load(device=device)
    cut = truncated(exact.model, config.keep)
    target = exact if exact.device.type == "cpu" else embedded.load("fast", device=device)
    typer.echo(f"{chats} answers of the target ...")
    trained_on, held_out = split_chats(sample_chats(target, config))
    typer.echo(f"training on {target.device} ...")
    last: list[State] = []

    def report(state: State) -> None:
        last[:] = [state]
        if state.step % max(1, min(100, steps // 10)) == 0:
            typer.echo(f"step {state.step}: KL {state.kl:.3f}, {state.seconds:.0f} s")

    state = train(target, cut, config, trained_on, report)
    typer.echo("measuring on held-out text ...")
    draft = truncated(exact.model, config.keep)
    lowrank.merge(draft, state)
    measured: dict[tuple[str, str], Agreement] = {}
    for kind in ("english", "code", "chats"):
        found: Rows
        if kind == "chats":
            found = held_out[0][:measure], held_out[1][:measure]
        else:
            ids_NT = text.batch(
                target.tokenizer,
                measure,
                length=length,
                kinds=("english" if kind == "english" else "code",),
            )
            found = ids_NT, torch.ones_like(ids_NT, dtype=torch.bool)
        measured[kind, "as cut"] = agreement(exact, cut, found)
        measured[kind, "distilled"] = agreement(exact, draft, found)
    asked = min(chats, len(questions(chats, seed)))
    save(out, state, config, measured, last[0], target.device, asked)
    typer.echo((out / "README.md").read_text())


if __name__ == "__main__":
    typer.run(main)
